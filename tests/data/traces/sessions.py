"""Builds sessions of agents as records, small and whole, and files of them."""

import json
import pathlib

from atlas_jax import config as configs

FIXTURES = pathlib.Path(__file__).parents[2] / "fixtures" / "arc_atlas"


def exported():
  """The sessions that the SDK's exporter wrote."""
  return [json.loads(line) for line in (FIXTURES / "export_all.jsonl").read_text().splitlines()]


def attempt(number, answer, score, *, guidance=None, source="grader", **fields):
  """An attempt of schema version 2."""
  return {"attempt": number, "status": "unverified", "answer": answer, "score": score, "score_source": source,
          "guidance": [guidance] if guidance else [], "validation": {"valid": bool(score)}, **fields}


def session(number=1, **fields):
  """An approved session of two attempts, the second one right."""
  tries = [attempt(1, "21", 0.0, guidance=f"Carry the one {number}."), attempt(2, "31", 1.0)]
  step = {"step_id": 1, "description": "Add", "trace": "", "output": "31", "reward": None,
          "tool": None, "tool_params": {}, "context": {}, "validation": {"valid": True, "guidance": None},
          "attempts": 2, "guidance": [f"Carry the one {number}."], "attempt_details": tries}
  metadata = {"session_id": number, "status": "succeeded", "created_at": "2026-01-02T03:04:05+00:00",
              "ground_truth": "31"}
  return {"task": f"Add 14 and 17 {number}", "final_answer": "31", "plan": {}, "steps": [step],
          "session_metadata": metadata, "execution_mode": "paired", "review_status": "approved",
          "session_reward": {"score": 0.9}, "schema_version": 2, "verified": True, **fields}


def with_metadata(found, **fields):
  """A session with some keys of its metadata replaced."""
  return {**found, "session_metadata": {**found["session_metadata"], **fields}}


def write(path, rows):
  """Writes a line for each row, texts and bytes as they are; returns the file's name."""
  lines = [row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
           for row in rows]
  path.write_bytes(b"".join(line + b"\n" for line in lines))
  return str(path)


def config_of(recipe, files, **fields):
  """A config that reads traces without holding any out; `fields` are of config.traces."""
  config = configs.default()
  config.recipe = recipe
  config.data.update(name="traces", files=files, held_out_frac=0.0)
  config.traces.update(**fields)
  return config
