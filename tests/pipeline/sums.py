"""Sessions about sums, which the toy student gets wrong where they have carries, as traces."""

import json
import pathlib

import numpy as np


def session(number: int, *, review: str = "approved", status: str = "succeeded", truth: bool = True) -> dict:
  """Returns the record of one session, whose id is one more than its number."""
  draw = np.random.default_rng(number)
  left, right = draw.integers(10, 100, size=2)
  when = f"2026-01-02T12:{number % 60:02}:00+00:00"
  metadata = {"session_id": number + 1, "status": status, "created_at": when}
  if truth:
    metadata["ground_truth"] = str(left + right)
  return {"task": f"{left}+{right}=", "final_answer": str(left + right), "plan": {}, "steps": [],
          "session_metadata": metadata, "review_status": review}  # fmt: skip


def write(file: pathlib.Path, count: int = 40) -> pathlib.Path:
  """Writes sessions as JSON lines, and beside them one quarantined, one pending, one that failed, no JSON."""
  rows = [session(number) for number in range(count)]
  rows += [session(count, review="quarantined"), session(count + 1, review="pending"),
           session(count + 2, status="failed")]  # fmt: skip
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "{broken\n")
  return file
