"""Builds tiny runs of supervised tuning, from the settings of configs/sft.py, and files of examples."""
import json
import pathlib

from configs import sft
from tests import hf_fixture, runs

MEMORY = dict(model__width=32, model__ff_width=48, model__memory__key_dim=8, model__memory__value_dim=8,
              model__memory__chunk_size=8)
TALKS = [
    {"messages": [{"role": "user", "content": f"{a}+{a}?"}, {"role": "assistant", "content": f"{2 * a}"},
                  {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]}
    for a in range(12)]
PAIRS = [{"prompt": f"{a}+1=", "completion": f"{a + 1}", "answer": str(a + 1)} for a in range(24)]


def fields(kind="decoder", **changes) -> dict:
  """Fields of a run of two updates on one device; `changes` by dotted name, with __ for dots."""
  return {**(MEMORY if kind == "memory" else {}), "data__max_problems": 20, "eval__max_problems": 9,
          "eval__sample_tokens": 0, "monitor__tensorboard": False, "monitor__report": False,
          "optim__steps": 2, "data__batch_rows": 4, "checkpoint__every_steps": 100, **changes}


def config_of(kind="decoder", **changes):
  """The resolved config of a run; see `fields`."""
  arg = "smoke,memory" if kind == "memory" else "smoke"
  return runs.changed(sft.get_config(arg), fields(kind, **changes))


def flags_of(kind="decoder", **changes) -> list[str]:
  """The same as flags of the program, on eight devices."""
  given = fields(kind, **{"data__batch_rows": 8, "eval__batch_rows": 8, **changes})
  arg = "smoke,memory" if kind == "memory" else "smoke"
  return [f"--config=configs/sft.py:{arg}",
          *(f"--config.{name.replace('__', '.')}={value}" for name, value in given.items())]


def write_rows(file: pathlib.Path, rows) -> pathlib.Path:
  """Writes rows as JSON lines."""
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return file


def of_file(file, **changes) -> dict:
  """Fields that read a file in place of the task."""
  return {"data__name": "files", "data__files": str(file), "data__max_problems": None,
          "eval__max_problems": None, "data__options": {}, **changes}


def published(name="qwen2_tiny", **changes) -> dict:
  """Fields that start from a pretrained model."""
  return {"model__path": str(hf_fixture.FOLDER / name), **changes}
