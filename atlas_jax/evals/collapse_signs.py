"""Signs of a memory that is not used or dead, in the numbers of evaluations; pure functions of rows.

A row is one of metrics.jsonl, with what `memory_gain` and `memory_health` measured on held-out text. Each
sign stands, does not stand, or is unknown: a number that is missing, null or not finite is neither collapse
nor health. What a row has no name for, such as the gate of a mix without one, has no sign. Gates are those
before the floor: behind it a gate that is shut looks open by as much as the floor.

  gate                 a block's raw gate mean below 0.1
  norm, norm_in_values a block's weights below 1% of the norm they start with; where they start from zero, of
                       the norm of one value: no read is then longer than that
  recall               what a block has just written is recalled no better than by answering zero, within 1%
  half_life            a block forgets half of it within a chunk
  emptied              the interval of the gain over an emptied memory reaches zero
  swapped              that over another document's memory does, though a gate is open

`collapsed` asks for several evaluations in a row: a sign may stand while training begins, and pass. Signs of
a dead memory, `DEAD`, are no collapse where the swapped gain's interval lies above zero, for what is dead
tells nothing of a document. A model with memories in two blocks that answered all of MQAR, and nothing with
its memory emptied, had a ratio of 1.5 in one block, and a half-life of a third of a chunk in the other.
"""
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.memory import liveness

GATE_LEAST = 0.1  # Of the raw gate's mean.
NORM_LEAST = 1 / liveness.NORM_RANGE  # Of the norm over that of the start, or of a value.
LOSS_MOST = liveness.LOSS_MOST  # Of the recall loss over that of answering zero.
GATE = "eval/raw_gate_mean"
HEALTH = "eval/memory_health_tokens"  # Both are there wherever something was measured,
GAIN = "eval/memory_gain_tokens"      # with 0 where there was no text for it.


class SignKind(NamedTuple):
  """A sign that each block with a memory may have."""

  metric: str  # behind which the block's name follows
  bound: float | None  # None: the tokens of a chunk
  below: bool  # whether it stands below the bound, or from it on
  says: str
  remedy: str


BY_BLOCK = {
    "gate": SignKind(GATE, GATE_LEAST, True, "raw gate mean",
                     "raise config.model.gate_floor, with which a shut gate still gets a gradient, or config."
                     "optim.gate_lr_scale; if attention sees enough to do without memory, lower config.model."
                     "window_tokens or set config.window.kind=random"),
    "norm": SignKind("eval/memory_norm_ratio", NORM_LEAST, True, "norm of the fast weights over that of "
                     "their start", "they fade faster than they are written: in a new run raise config.model."
                     "memory.retention_init or config.model.memory.write_rate_init"),
    "norm_in_values": SignKind("eval/memory_norm_in_values", NORM_LEAST, True, "norm of the fast weights "
                               "over that of one value", "they are hardly written, or fade at once: in a new "
                               "run raise config.model.memory.write_rate_init or config.model.memory."
                               "retention_init"),
    "recall": SignKind("eval/inner_loss_ratio", LOSS_MOST, False, "loss of recalling what was just written "
                       "over that of answering zero", "near 1 nothing is written: in a new run raise config."
                       "model.memory.write_rate_init; above 1 writes overshoot: lower it and config.model."
                       "memory.write_rate_max"),
    "half_life": SignKind("eval/half_life_tokens", None, True, "half-life in tokens", "the memory forgets "
                          "within a chunk what attention sees anyway: in a new run raise config.model.memory."
                          "retention_init, or lower config.model.memory.half_life_spread"),
}
# Of the model as a whole: lower ends of intervals, in nats per token.
OF_MODEL = {
    "emptied": SignKind("eval/memory_gain_emptied_nats_low", 0.0, False, "least gain over an emptied memory "
                        "within the interval", "nothing is read from memory that helps: see the other signs; "
                        "train on documents longer than attention sees (config.model.window_tokens), with a "
                        "longer config.data.segment_len"),
    "swapped": SignKind("eval/memory_gain_swapped_nats_low", 0.0, False, "least gain over another document's "
                        "memory within the interval, while a gate is open,", "what enters tells nothing of "
                        "this document: raise config.data.segment_len, so that training sees texts in which "
                        "it would; config.eval.gain_max_tokens narrows the interval"),
}
KINDS = BY_BLOCK | OF_MODEL
DEAD = ("norm", "norm_in_values", "recall", "half_life")


class Sign(NamedTuple):
  """One sign of one evaluation."""

  name: str  # of KINDS
  layer: str | None  # such as "layer_01"; None: of the model
  value: float  # NaN where it is unknown
  bound: float
  stands: bool | None  # None: unknown

  @property
  def key(self) -> tuple[str, str | None]:
    """Returns what tells it from others, at all evaluations."""
    return self.name, self.layer

  @property
  def title(self) -> str:
    """Returns which sign it is, of what."""
    return f"{self.name} of {'the model' if self.layer is None else self.layer}"

  @property
  def words(self) -> str:
    """Returns which sign it is, of what, its value and bound, and what to do."""
    kind = KINDS[self.name]
    side = "below" if self.name in BY_BLOCK and kind.below else "not below"
    if self.name in OF_MODEL:
      side = "not above"
    return f"{self.title}: {kind.says} is {self.value:.3g}, {side} {self.bound:.3g}; {kind.remedy}"


class Collapse(NamedTuple):
  """The signs of the last evaluations."""

  signs: tuple[Sign, ...]  # that stood at each of the last `evaluations`, with their newest values
  refuted: tuple[Sign, ...]  # that did as well, of a memory that tells of its document all the same
  now: tuple[Sign, ...]  # that stand at the newest
  unknown: tuple[str, ...]  # titles of those that are unknown at the newest
  seen: int  # evaluations looked at, at most `evaluations`
  evaluations: int

  @property
  def stands(self) -> bool | None:
    """Returns whether the memory has collapsed; None: it cannot be said."""
    if self.signs:
      return True
    return None if self.unknown else False


def is_evaluation(row: Mapping[str, Any]) -> bool:
  """Returns whether a row has what signs are read from."""
  return HEALTH in row or GAIN in row


def checks(row: Mapping[str, Any], chunk_size: int) -> list[Sign]:
  """Looks for every sign that one evaluation could have.

  Args:
    row: metrics by name; None, NaN and what is missing are unknown.
    chunk_size: tokens of a chunk.
  """
  found = []
  for name, kind in BY_BLOCK.items():
    bound = float(chunk_size) if kind.bound is None else kind.bound
    for metric in sorted(one for one in row if one.startswith(f"{kind.metric}/")):
      value = _number(row[metric])
      stands = None if value is None else (value < bound) == kind.below
      found.append(Sign(name, metric.removeprefix(f"{kind.metric}/"), _or_nan(value), bound, stands))
  if GAIN in row or any(kind.metric in row for kind in OF_MODEL.values()):
    for name, kind in OF_MODEL.items():
      low = _number(row.get(kind.metric))
      reaches = None if low is None else low <= 0
      stands = _both(reaches, _is_open(row)) if name == "swapped" else reaches
      found.append(Sign(name, None, _or_nan(low), 0.0, stands))
  return found


def signs(row: Mapping[str, Any], chunk_size: int) -> list[Sign]:
  """Returns the signs that stand at one evaluation; arguments as of `checks`."""
  return [sign for sign in checks(row, chunk_size) if sign.stands]


def collapsed(rows: Sequence[Mapping[str, Any]], *, chunk_size: int, evaluations: int) -> Collapse:
  """Judges the last evaluations of a run.

  Args:
    rows: of evaluations, oldest first.
    chunk_size: tokens of a chunk.
    evaluations: at so many in a row a sign must stand.
  """
  last = [{sign.key: sign for sign in checks(row, chunk_size)} for row in rows[-evaluations:]]
  if not any(last):
    return Collapse((), (), (), ("every sign: nothing was measured",), len(last), evaluations)
  newest = last[-1]
  now = tuple(sign for sign in newest.values() if sign.stands)
  stood = tuple(sign for sign in now if len(last) == evaluations
                and all(sign.key in one and one[sign.key].stands for one in last))
  serves = newest["swapped", None].value > 0 if ("swapped", None) in newest else False
  refuted = tuple(sign for sign in stood if serves and sign.name in DEAD)
  # A number that earlier evaluations had and the newest has not: it was lost, and not cured.
  lost = {key: sign for one in last for key, sign in one.items() if key not in newest}
  unknown = [sign.title for sign in (*newest.values(), *lost.values())
             if sign.stands is None or sign.key in lost]
  found = tuple(sign for sign in stood if sign not in refuted)
  return Collapse(found, refuted, now, tuple(unknown), len(last), evaluations)


def _number(value) -> float | None:
  """Returns a finite number; None for all else."""
  known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
  return float(value) if known else None


def _or_nan(value: float | None) -> float:
  return math.nan if value is None else value


def _is_open(row: Mapping[str, Any]) -> bool | None:
  """Returns whether any gate is open; a mix without gates lets all of its memory in."""
  gates = [_number(row[name]) for name in row if name.startswith(f"{GATE}/")]
  if not gates:
    return True if HEALTH in row else None
  if any(gate is not None and gate >= GATE_LEAST for gate in gates):
    return True
  return None if None in gates else False


def _both(first: bool | None, second: bool | None) -> bool | None:
  """Joins what is true, false or unknown: one that is false decides."""
  if first is False or second is False:
    return False
  return None if first is None or second is None else True
