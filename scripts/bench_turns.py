"""Training loops that go on only when told, so that several can be timed in turn; needs no package.

A loop calls `Turns.step` before each of its steps. The process speaks in JSON lines as `bench_child` does.
"""
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable

import bench_child

from atlas_jax.files import closed_pipe

WARM_STEPS = 2  # The first steps compile, and touch memory that the others use again.


class Turns:
  """Says what a step took when the next one is asked for, and waits until it may go on."""

  def __init__(self, say: Callable, words: Iterable[str]):
    """Takes where to say things, and the words that let it go on."""
    self._say, self._words, self._steps = say, iter(words), 0
    self._start: tuple | None = None
    self._parted: dict = {}
    self.info: dict = {}

  def step(self) -> None:
    """Ends the step before, if there was one; gives control back when the next may begin."""
    if self._start is None:
      self._say(self.info)
    else:
      took = bench_child.since(self._start)
      self._say({**took, **self._parted, "peak_memory_mib": bench_child.host_peak_bytes() / bench_child.MIB})
      self._steps += 1
      if self._steps == WARM_STEPS:
        bench_child.forget_peak()
    if next(self._words, None) is None:
      os._exit(0)  # Nobody asks any more; the loop itself has no end.
    self._start, self._parted = bench_child.clock(), {}

  def part(self) -> None:
    """Notes that the completions of this step are written and scored."""
    assert self._start is not None
    self._parted = {f"generate_{name}": value for name, value in bench_child.since(self._start).items()}


@closed_pipe.quiet
def main(loops: dict[tuple[str, str], Callable]) -> int:
  """Runs the loop (spec, turns) that the process was started for; says why, if it fails."""
  lines = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # Libraries print to standard error.
  say = lambda line: print(json.dumps(line), file=lines, flush=True)
  spec = json.loads(sys.argv[1])
  if spec["core"] is not None:
    os.sched_setaffinity(0, {spec["core"]})
  try:
    loops[spec["system"], spec["side"]](spec, Turns(say, sys.stdin))
  except Exception as error:
    traceback.print_exc()
    known = spec["system"] == "atlas_jax" and isinstance(error, (ValueError, TypeError))
    what = f"{error}" if known else f"{type(error).__name__}: {error}"
    say({"error": " ".join(what.split())[:500], "known": known})
    return 1
  say({"error": "the loop ended before it was told to"})
  return 1
