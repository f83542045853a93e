"""Measures the reading of traces: sessions per second, and whether memory stays as it is.

  python scripts/bench_traces.py [--sessions=100000] [--folder=FOLDER] [--json]

So many synthetic sessions are written once, in the folder (a temporary one by default): two attempts with
guidance, an old-style transcript, and one session in ten that review has not let pass. Then they are read in
this process, which is one core's work:

  read    every line parsed, checked and made storable
  select  the same, with filters, hashes, the split, and the problems of supervised fine-tuning

Rates are by the clock and per CPU-second, which other work on the machine changes least. `tenth_mib` is the
most memory of the process when a tenth of the lines was read, `peak_mib` when all were. `select` keeps the
problems, as a recipe does, and they are in its `peak_mib`.
"""
import argparse
import json
import pathlib
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator

from atlas_jax import config as configs
from atlas_jax.data.traces.conversation import TraceConversation
from atlas_jax.data.traces.jsonl import TraceReader
from atlas_jax.data.traces.sources import read
from atlas_jax.files import closed_pipe

WORDS = "pump valve bearing pressure stall table unit load check the a of to and is not row log value".split()
KIB = 1024


def text_of(draw: random.Random, words: int) -> str:
  """Returns words with spaces between them."""
  return " ".join(draw.choices(WORDS, k=words))


def session(number: int, draw: random.Random) -> dict:
  """Returns a session of about three kilobytes."""
  answer = str(draw.randrange(1000))
  tries = []
  for place in (1, 2):
    tries.append({
        "attempt": place, "status": "passed" if place == 2 else "failed",
        "answer": text_of(draw, 30) + answer, "score": float(place == 2), "score_source": "grader",
        "guidance": [text_of(draw, 25)] * (place == 1),
        "validation": {"valid": place == 2, "guidance": None, "confidence": draw.random()},
        "tokens": {"student": {"prompt": 90, "completion": 40, "calls": 1}, "teacher": {"prompt": 200,
                   "completion": 30, "calls": 1}}})
  step = {
      "step_id": 1, "description": text_of(draw, 10), "trace": text_of(draw, 80), "output": answer,
      "reward": None, "tool": None, "tool_params": {}, "context": {"prior_results": {}},
      "validation": {"valid": True, "guidance": None}, "attempts": 2, "guidance": tries[0]["guidance"],
      "attempt_details": tries, "depends_on": [], "metadata": {"status": "ok"}}
  sample = {"score": 0.9, "rationale": text_of(draw, 15), "uncertainty": 0.1, "temperature": 0.2}
  return {
      "task": f"{number}: {text_of(draw, 20)}", "final_answer": answer, "plan": {"steps": [{"id": 1}]},
      "steps": [step], "execution_mode": "paired",
      "review_status": "pending" if number % 10 == 0 else "approved",
      "session_metadata": {
          "session_id": number, "status": "succeeded", "created_at": "2026-01-02T03:04:05+00:00",
          "learning_key": f"family-{number % 50}", "ground_truth": answer, "tags": ["bench"]},
      "session_reward": {"score": 0.9, "rationale": None, "judges": [{"identifier": "session_reward",
                         "score": 0.9, "samples": [sample] * 3}], "raw": {"score": 0.9}},
      "schema_version": 2, "verified": True, "versions": {"student": "1", "teacher": "1", "protocol": "1"}}


def peak_mib() -> float:
  """Returns the most memory that the process has used."""
  return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB, 1)


def measured(what: str, items: Iterator, sessions: int) -> dict:
  """Goes through items and returns rates and memory."""
  wall, cpu = time.perf_counter(), time.process_time()
  tenth = None
  count = 0
  for count, _ in enumerate(items, start=1):
    if count == sessions // 10 and what == "read":
      tenth = peak_mib()
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  return {"what": what, "sessions": sessions, "items": count,
          "wall_s": round(wall, 2), "cpu_s": round(cpu, 2),
          "sessions_per_s": round(sessions / wall), "sessions_per_cpu_s": round(sessions / cpu),
          "tenth_mib": tenth, "peak_mib": peak_mib()}


def problems(file: str) -> Iterator:
  """Yields the problems of supervised fine-tuning, as `sources.load` makes them."""
  fields = configs.default().traces
  found, _ = read(file, fields, lambda one, refused: TraceConversation().problems(*one, refused))
  yield from found


@closed_pipe.quiet
def main(arguments: list[str]) -> list[dict]:
  """Writes sessions, measures both, and prints and returns a row for each."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--sessions", type=int, default=100_000)
  parser.add_argument("--folder", type=pathlib.Path)
  parser.add_argument("--json", action="store_true")
  given = parser.parse_args(arguments)
  with tempfile.TemporaryDirectory() as temporary:
    file = (given.folder or pathlib.Path(temporary)) / f"traces_{given.sessions}.jsonl"
    if not file.exists():
      draw = random.Random(0)
      file.parent.mkdir(parents=True, exist_ok=True)
      with file.open("w") as out:
        for number in range(given.sessions):
          out.write(json.dumps(session(number, draw)) + "\n")
    size = {"bytes_per_session": round(file.stat().st_size / given.sessions)}
    rows = [measured("read", iter(TraceReader(str(file), strict=True)), given.sessions) | size,
            measured("select", problems(str(file)), given.sessions) | size]
  for row in rows:
    print(json.dumps(row) if given.json else "  ".join(f"{name}={value}" for name, value in row.items()))
  return rows


if __name__ == "__main__":
  main(sys.argv[1:])
