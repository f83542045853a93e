"""Breaks small files of every kind at random, and counts what their readers make of them.

  python -m tests.faults.mutations --count=10000 [--seed=0] [--kind=NAME]

Each is refused with one line that names it, or read: with equal contents, or with others where the kind has
no checksum to see that by. Tracebacks, and other contents where there is a checksum, fail the program.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import io
import json
import logging
import multiprocessing
import pathlib
import random
import signal
import sys
import tempfile
import time

from tests.faults import kinds

REFUSED, EQUAL, OTHER = "refused with a line", "read as it was", "read, without a checksum"
TRACEBACK, SILENT = "traceback", "silent acceptance"
OUTCOMES = (REFUSED, EQUAL, OTHER, TRACEBACK, SILENT)
SECONDS = 30  # After which a reader hangs.
PIECES = [text.encode() for text in (
  "\u2028", "\u2029", "\x85", "\0", "\ufeff", "[" * 3000, "9" * 5000, "1e999", "-1", "NaN", "Infinity",
  "null", "true",
  '"x"', "{}", "[]", "\\ud800", "../", "\r\n", "\n", '"', ",", "{%", "}}", "{{ ''.__class__ }}")] + [
  b"\xff\xfe", b"\xed\xa0\x80"]  # fmt: skip
WHOLES = [b"", b"\0", b"null", b"[]", b"{}", b"3", b'"x"', b"[" * 100_000, b'{"a":' * 5000, b"\xff" * 64,
          b"\x93NUMPY", b"PK\x03\x04", b"PAR1", b"\x1f\x8b", b"\n" * 10, b" "]
VALUES = (None, True, -1, 0, 1.5, 10**30, 10**50, 1e308, "", "x", "../x", "\u2028", [], {}, [None], {"a": 1},
          "\ud800", [[[[1]]]])


def mutated(content: bytes, chance: random.Random) -> bytes:
  """Returns the bytes of a file, broken in one of many ways."""
  ways = [_flipped, _flipped, _replaced, _cut, _zeroed, _removed, _doubled, _inserted, _whole]
  return chance.choice([*ways, *[_restructured] * 5])(bytearray(content), chance)


def _span(content, chance) -> tuple[int, int]:
  first = chance.randrange(len(content) + 1)
  return first, min(len(content), first + chance.choice((1, 2, 8, 64, len(content))))


def _flipped(content, chance):
  for _ in range(chance.choice((1, 1, 1, 2, 8))):
    if content:
      content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
  return bytes(content)


def _replaced(content, chance):
  first, last = _span(content, chance)
  content[first:last] = chance.randbytes(last - first)
  return bytes(content)


def _cut(content, chance):
  return bytes(content[:chance.randrange(len(content) + 1)])


def _zeroed(content, chance):
  first, last = _span(content, chance)
  content[first:last] = bytes(last - first)
  return bytes(content)


def _removed(content, chance):
  first, last = _span(content, chance)
  return bytes(content[:first] + content[last:])


def _doubled(content, chance):
  first, last = _span(content, chance)
  return bytes(content[:last] + content[first:])


def _inserted(content, chance):
  at = chance.randrange(len(content) + 1)
  return bytes(content[:at] + chance.choice(PIECES) + content[at:])


def _whole(content, chance):
  return chance.choice(WHOLES)


def _restructured(content, chance):
  """Changes one value of JSON, or of one of its lines, to another type or size; others are flipped."""
  lines = bytes(content).split(b"\n")
  number = chance.randrange(len(lines))
  for first, last in ((0, len(lines)), (number, number + 1)):
    try:
      value = json.loads(b"\n".join(lines[first:last]))
    except ValueError:
      continue
    changed = json.dumps(_changed(value, chance), ensure_ascii=chance.random() < 0.5)
    return b"\n".join([*lines[:first], changed.encode("utf-8", "surrogatepass"), *lines[last:]])
  return _flipped(content, chance)


def _changed(value, chance):
  inner = list(value) if isinstance(value, dict) else []
  inner = list(range(len(value))) if isinstance(value, list) else inner
  if not inner or chance.random() < 0.15:
    return chance.choice(VALUES)
  name = chance.choice(inner)
  if chance.random() < 0.1:
    del value[name]
  else:
    value[name] = _changed(value[name], chance)
  return value


def outcome(kind, content: bytes) -> tuple[str, str]:
  """Reads a broken file; gives what came of it, and what was said."""
  kind.file.write_bytes(content)
  try:
    found = kind.read()
  except (ValueError, OSError) as error:
    said = str(error)
    told = any(part.name and part.name in said for part in (kind.file, kind.file.parent)) or isinstance(
      error, OSError)
    if told and "\n" not in said and type(error).__name__ != "JSONDecodeError":
      return REFUSED, said
    return TRACEBACK, f"{type(error).__name__}: {said}"
  except BaseException as error:
    if isinstance(error, KeyboardInterrupt | SystemExit):
      raise
    return TRACEBACK, f"{type(error).__name__}: {error}"
  if found == kind.wanted:
    return EQUAL, ""
  # Without the field that holds it, a JSON file of ours is one of an older version, or changed by hand.
  has_sum = kind.summed and (kind.file.suffix != ".json" or b"checksum" in content)
  return SILENT if has_sum else OTHER, f"gave {str(found)[:200]}"


def _hangs(*_):
  raise RuntimeError(f"the reader takes more than {SECONDS} s")


def run(name: str, count: int, seed: int, folder, seconds: float = 0) -> tuple[dict[str, int], list[str]]:
  """Breaks the file of one kind so many times; gives numbers of outcomes, and what failed.

  Args:
    name: of the kind.
    count: mutations.
    seed: of them, with the name.
    folder: to write to.
    seconds: after which SIGALRM is sent to a reader; 0: never.
  """
  chance = random.Random(f"{name} {seed}")
  kind = kinds.opened(name, pathlib.Path(folder) / name)
  counts, failed = collections.Counter(), []
  logging.disable(logging.WARNING)
  for number in range(count):
    content = mutated(kind.content, chance)
    if seconds:  # A test has a timer of its own.
      signal.setitimer(signal.ITIMER_REAL, seconds)
    with contextlib.redirect_stderr(io.StringIO()):
      result, said = outcome(kind, content)
    counts[result] += 1
    if result in (TRACEBACK, SILENT):
      failed.append(f"{name} {number}: {result}: {said[:300]}")
  if seconds:
    signal.setitimer(signal.ITIMER_REAL, 0)
  logging.disable(logging.NOTSET)
  return counts, failed


def _alone(name: str, count: int, seed: int, folder: str):
  """Runs a kind in a process of its own, in which a reader that hangs is stopped."""
  signal.signal(signal.SIGALRM, _hangs)
  return run(name, count, seed, folder, SECONDS)


def main(argv=None) -> int:
  """Runs all kinds and prints a line for each and one for all; gives 1 if one failed."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--count", type=int, default=10_000, help="mutations in all")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--kind", default=None, choices=sorted(kinds.ALL))
  asked = parser.parse_args(argv)
  names = [asked.kind] if asked.kind else list(kinds.ALL)
  total, failed, began = collections.Counter(), [], time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    for place, name in enumerate(names):
      count = asked.count // len(names) + (place < asked.count % len(names))
      # A process for each kind: a library that crashes takes its own with it, and is counted.
      with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
          counts, bad = pool.submit(_alone, name, count, asked.seed, folder).result()
        except concurrent.futures.process.BrokenProcessPool:
          counts, bad = {TRACEBACK: 1}, [f"{name}: the process died"]
      total.update(counts)
      failed += bad
      print(f"{name:22}", *(f"{counts.get(one, 0):6} {one}" for one in OUTCOMES), flush=True)
  print(f"{'all':22}", *(f"{total[one]:6} {one}" for one in OUTCOMES))
  print(f"{sum(total.values())} mutations of {len(names)} kinds in {time.perf_counter() - began:.0f} s, "
        f"seed {asked.seed}")
  print(*failed, sep="\n")
  return bool(failed)


if __name__ == "__main__":
  sys.exit(main())
