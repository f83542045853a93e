"""What MkDocs does besides: files of the repository that pages link to become files of the site.

A page of docs/ links to code and studies by their places in the repository, so that links work there as well.
In the site such a file stands under repository/, at its own path, and so do the files that it links to.
MkDocs then checks these links as it checks all others.
"""
import pathlib
import posixpath
import re
from collections.abc import Callable

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = "docs"
APART = "repository"
FENCE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)[^\n]*$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def replace_links(text: str, replace: Callable[[str], str]) -> str:
  """Returns a Markdown text with other relative links; code is left as it is."""
  def found(match):
    target = match[2]
    is_relative = not re.match(r"[a-z]+:|#|/", target)
    return match[1] + (replace(target) if is_relative else target) + match[3]

  parts = FENCE.split(text)
  # Odd parts are code; a link's own text may hold code, so links are looked for in the joined rest.
  hidden = parts[1::2]
  joined = "".join(part if at % 2 == 0 else f"\0{at // 2}\0" for at, part in enumerate(parts))
  return re.sub(r"\0(\d+)\0", lambda match: hidden[int(match[1])], LINK.sub(found, joined))


def links_of(text: str) -> list[str]:
  """Lists the relative links of a Markdown text, outside of code."""
  found: list[str] = []
  replace_links(text, lambda target: (found.append(target), target)[1])
  return found


def source_of(page: str) -> str:
  """Returns the place in the repository of a page of the site."""
  return page.removeprefix(f"{APART}/") if page.startswith(f"{APART}/") else f"{DOCS}/{page}"


def site_of(source: str) -> str:
  """Returns the place in the site of a file of the repository."""
  return source.removeprefix(f"{DOCS}/") if source.startswith(f"{DOCS}/") else f"{APART}/{source}"


def target_of(source: str, link: str) -> str:
  """Returns the file of the repository that a link leads to, from a file of it."""
  return posixpath.normpath(posixpath.join(posixpath.dirname(source), link.partition("#")[0]))


def linked(sources: list[str]) -> set[str]:
  """Returns the files outside of docs/ that pages link to, and those that these link to in turn.

  Raises:
    ValueError: if a link leads to a folder, or nowhere.
  """
  found: set[str] = set()
  left = list(sources)
  while left:
    source = left.pop()
    for link in links_of((ROOT / source).read_text()):
      target = target_of(source, link)
      if not (ROOT / target).is_file():
        raise ValueError(f"{source}: the link {link} leads to no file of the repository")
      if not target.startswith(f"{DOCS}/") and target not in found:
        found.add(target)
        left += [target] if target.endswith(".md") else []
  return found


def on_files(files, config):
  """Adds what pages link to."""
  pages = [f"{DOCS}/{file.src_uri}" for file in files.documentation_pages()]
  for source in sorted(linked(pages)):
    files.append(File.generated(config, site_of(source), abs_src_path=str(ROOT / source)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Turns links within the repository into links within the site."""
  source = source_of(page.file.src_uri)
  here = posixpath.dirname(page.file.src_uri)

  def within_site(link):
    _, sign, anchor = link.partition("#")
    return posixpath.relpath(site_of(target_of(source, link)), here or ".") + sign + anchor

  return replace_links(markdown, within_site)
