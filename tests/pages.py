"""The pages that people read, README and docs/ among them: their links, blocks and anchors."""

import pathlib
import re
import unicodedata

from scripts import docs_hooks
from tests import house

ROOT = pathlib.Path(__file__).parents[1]
GENERATED = "docs/configuration.md"
DOCS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "docs").rglob("*.md"))}
FILE = re.compile(r"# FILE (\S+)\n")
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)


def blocks(text: str, kind: str) -> list[str]:
  """Lists the fenced blocks of a kind; "" is a block without one."""
  return re.findall(rf"^```{kind}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands_of(block: str) -> list[str]:
  """Lists the commands of a block: continued lines joined, comments cut off."""
  lines = re.sub(r"\\\n\s*", "", block).splitlines()
  return [re.sub(r"\s+#.*$", "", line).strip() for line in lines if line.strip() and line[0] != "#"]


def prose_of(text: str) -> str:
  """Returns a text without its fenced blocks."""
  return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def inline(text: str) -> list[str]:
  """Lists what stands in back ticks inside the text."""
  return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose_of(text))]


def inline_commands(text: str) -> list[str]:
  """Lists the commands that stand in back ticks inside the text."""
  return [span for span in inline(text) if re.match(r"(python|bash|pip|jupyter|tensorboard|source) \S", span)]


def files_of(text: str) -> dict[str, str]:
  """Returns the files that a page has its reader write, by name; a page may show one of a name."""
  found = {}
  for block in blocks(text, "python"):
    if head := FILE.match(block):
      assert head[1] not in found, f"{head[1]} is shown twice on one page"
      found[head[1]] = block[head.end() :]
  return found


def programs_of(text: str) -> list[str]:
  """Lists the Python blocks that begin with an import: they run as they are written."""
  return [block for block in blocks(text, "python") if re.match(r"(import|from) ", block)]


def fragments_of(text: str) -> list[str]:
  """Lists the Python blocks that are neither files nor programs, such as lines of a config."""
  return [block for block in blocks(text, "python")
          if not FILE.match(block) and block not in programs_of(text)]  # fmt: skip


def read_pages() -> dict[str, str]:
  """Returns every Markdown file under version control by name, and those of docs/ also before they are."""
  tracked = {path.relative_to(ROOT).as_posix(): path.read_text()
             for path in house.tracked_files(ROOT) if path.suffix == ".md"}  # fmt: skip
  return tracked | DOCS


def words_of(heading: str) -> str:
  """Returns a heading as it is read: links as their text, without marks."""
  return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")


def anchors_of(text: str) -> tuple[set[str], set[str]]:
  """Returns the anchors of a page's headings as a repository's site makes them, and as MkDocs does."""
  headings = [words_of(one) for one in HEADING.findall(prose_of(text))]
  of_site = [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings]
  plain = [unicodedata.normalize("NFKD", one).encode("ascii", "ignore").decode() for one in headings]
  of_docs = [re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", one).strip().lower()) for one in plain]
  return set(of_site), set(of_docs)


def link_faults(texts: dict[str, str]) -> list[str]:
  """Finds relative links of pages to files or headings that are not there, and to folders."""
  bad = []
  for source, text in texts.items():
    own = anchors_of(text)
    for anchor in re.findall(r"\]\(#([^)\s]+)\)", prose_of(text)):
      bad += [] if anchor in own[0] & own[1] else [f"{source}: it has no heading #{anchor}"]
    for link in docs_hooks.links_of(text):
      target, anchor = docs_hooks.target_of(source, link), link.partition("#")[2]
      if not (ROOT / target).is_file() and target not in texts:
        bad.append(f"{source}: the link {link} leads to no file")
      elif anchor:
        found = anchors_of(texts.get(target) or (ROOT / target).read_text())
        if anchor not in found[0] & found[1]:
          bad.append(f"{source}: {target} has no heading #{anchor}")
  return bad
