"""Converts files of traces between JSON lines and the compact form, which are read alike.

  python -m atlas_jax.data.traces.convert export.jsonl small.jsonl.gz          the compact form
  python -m atlas_jax.data.traces.convert small.jsonl.gz export.jsonl --plain  JSON lines

Nothing is filtered; what no store takes is replaced, see `storable`. A line that is no trace stops it.
"""
import argparse
import sys

from atlas_jax.data.traces import compact
from atlas_jax.data.traces.jsonl import TraceReader
from atlas_jax.files import closed_pipe


def convert(files: str, out: str, *, plain: bool = False) -> int:
  """Writes the traces of files in one form; returns how many.

  Args:
    files: see `TraceReader`.
    out: file to write, packed where it ends in ".gz".
    plain: whether as JSON lines, else in the compact form.

  Raises:
    rejects.RejectedError: if a line is no trace.
    ValueError: if `files` cannot be read.
  """
  rows = (one.trace.to_json() for one in TraceReader(files, strict=True))
  return (compact.unpack if plain else compact.pack)(rows, out)


@closed_pipe.quiet
def main(arguments: list[str]) -> int:
  """Converts what the arguments name; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("files", help="files, folders or globs with commas between them")
  parser.add_argument("out", help="file to write")
  parser.add_argument("--plain", action="store_true", help="write JSON lines")
  given = parser.parse_args(arguments)
  try:
    count = convert(given.files, given.out, plain=given.plain)
  except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    return 1
  print(f"{count} traces in {given.out}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
