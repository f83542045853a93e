"""Writes the tables of `schema` into README.md of this folder: `python -m atlas_jax.monitor.schema_page`."""
import pathlib

from atlas_jax.files import write
from atlas_jax.monitor import schema

PAGE = pathlib.Path(__file__).with_name("README.md")
BEGIN = "<!-- From here on written by python -m atlas_jax.monitor.schema_page -->"


def tables() -> str:
  """Returns the version, the placeholders and all metrics, as Markdown."""
  lines = [f"Version {schema.VERSION}.", "", "## Placeholders", "", "| in a name | stands for |",
           "| --- | --- |"]
  lines += [f"| `{{{name}}}` | {words} |" for name, (_, words) in schema.PLACEHOLDERS.items()]
  for heading, metrics in schema.SECTIONS.items():
    lines += ["", f"## {heading}", "", "| metric | unit | meaning | written by | since |",
              "| --- | --- | --- | --- | --- |"]
    lines += [f"| `{metric.pattern}` | {metric.unit} | {metric.meaning} | {metric.writer} | {metric.since} |"
              for metric in metrics]
  return "\n".join(lines) + "\n"


def page(text: str) -> str:
  """Returns a page with its tables written anew.

  Raises:
    ValueError: if the page has no mark where they begin.
  """
  head, mark, _ = text.partition(BEGIN)
  if not mark:
    raise ValueError(f"{PAGE} has no line {BEGIN!r}; put it where the tables begin")
  return f"{head}{BEGIN}\n\n{tables()}"


if __name__ == "__main__":
  write.whole(PAGE, page(PAGE.read_text(encoding="utf-8")))
