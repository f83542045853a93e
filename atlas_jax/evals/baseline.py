"""The recorded figures of a model without memory, which stand beside those of a run they hold for.

The file is written by scripts/record_baseline.py, as JSON: "bits_per_byte", "loss_nats_by_position" (bucket
-> nats), "params", "command", "date", and "setting", all that a run must share for them to be compared with
its own; its parameters must be as many within ALIKE.
"""
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from atlas_jax import tree
from atlas_jax.evals import EvalOut, perplexity
from atlas_jax.files import json_file
from atlas_jax.files.damage import Damaged

FIELD = "config.eval.baseline"
ALIKE = 0.011  # Fraction by which two models may differ in parameters.
PROJECT = pathlib.Path(__file__).parents[2]


class Baseline(NamedTuple):
  """The recorded figures of a file."""

  bits_per_byte: float
  loss_nats_by_position: dict[str, float]  # bucket of `perplexity.bucket_names` -> nats per token
  params: int  # of the model
  command: str
  date: str
  setting: dict[str, Any]  # name, such as "steps" or "data.sha256" -> value


def read(path: str) -> Baseline:
  """Reads a file of recorded figures; a relative path begins here, or where the project lies.

  Raises:
    ValueError: if it is not there or not such a file; names the config's field and the file.
  """
  here = pathlib.Path(path).expanduser()
  file = here if here.exists() else PROJECT / here
  given = f"{FIELD}={path!r}"
  remedy = "write it with scripts/record_baseline.py, or set the field to None"
  if not file.is_file():
    raise ValueError(f"{given} is no file; {remedy}")
  try:
    # A missing or unknown name is a TypeError of the record itself, so the file needs no schema.
    found = Baseline(**json_file.read(file, nan=True))
  except (ValueError, TypeError) as error:
    why = error.why if isinstance(error, Damaged) else error
    raise ValueError(f"{given} is no file of recorded figures ({why}); {remedy}") from error
  numbers = [found.bits_per_byte]
  if isinstance(found.loss_nats_by_position, dict):
    numbers += found.loss_nats_by_position.values()
  kinds = zip(found, (int | float, dict, int, str, str, dict))
  if not all(isinstance(value, kind) for value, kind in kinds) or not all(map(_is_number, numbers)) or (
      not json_file.is_int(found.params, 1, 2**53)):
    raise ValueError(f"{given} holds no figures where they are expected; {remedy}")
  known = perplexity.bucket_names(perplexity.bucket_starts())
  if strange := sorted(set(found.loss_nats_by_position) - set(known)):
    raise ValueError(f"{given}: loss_nats_by_position has {', '.join(strange)}, and buckets of positions are "
                     f"{', '.join(known)}; record it anew with scripts/record_baseline.py")
  return found


def _is_number(value) -> bool:
  # A bool is an int to isinstance, and json_file.read is asked to let NaN through.
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
  """Says in which respects two settings differ, "steps=360 there, 40 here"."""
  missing = "nothing"
  both = [(name, there.get(name, missing), here.get(name, missing)) for name in sorted({*there, *here})]
  return [f"{name}={old!r} there, {new!r} here" for name, old, new in both if old != new]


def make(recorded: Baseline, path: str, setting: Mapping[str, Any]):
  """Makes the evaluation.

  Args:
    recorded: what `read` gave.
    path: of its file, for messages.
    setting: of this run.

  Returns:
    run(trained, *, step) -> EvalOut with "eval/baseline_bits_per_byte",
    "eval/baseline_loss_nats_by_position/FIRST-LAST" and the note "baseline_command"; or, if this run's
    setting is not that of the figures or its model of another size, with a line that says why there are none.
  """
  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del step, workdir
    # Figures of another setting are left out with a reason, not refused:
    # a run must not fail at its end over them.
    differ = differences(recorded.setting, setting)
    count = tree.count(trained.params)
    if abs(count / recorded.params - 1) > ALIKE:
      differ.append(f"{recorded.params:,} parameters there, {count:,} here")
    if differ:
      return EvalOut({}, f"the figures recorded in {path} are left out, as they hold for another setting: "
                         f"{'; '.join(differ)}")
    curve = {f"eval/baseline_loss_nats_by_position/{bucket}": float(nats)
             for bucket, nats in recorded.loss_nats_by_position.items()}
    return EvalOut({"eval/baseline_bits_per_byte": float(recorded.bits_per_byte), **curve},
                   notes={"baseline_command": recorded.command})

  return run


def record(setting: Mapping[str, Any], summary: Mapping[str, Any], *, command: str, date: str) -> dict:
  """Returns what the file of a finished run holds.

  Args:
    setting: of the run.
    summary: its summary.json.
    command: that made it.
    date: on which it ran, YYYY-MM-DD.

  Raises:
    ValueError: if the run measured no bits per byte.
  """
  start = "val_loss_nats_by_position_"
  curve = {name.removeprefix(start): value for name, value in summary.items() if name.startswith(start)}
  if "val_bits_per_byte" not in summary or not curve:
    raise ValueError("the run's summary.json has no val_bits_per_byte by position; hold out documents "
                     "(config.data.held_out_frac) and train it anew")
  found = Baseline(summary["val_bits_per_byte"], curve, summary["params"], command, date, dict(setting))
  return found._asdict()
