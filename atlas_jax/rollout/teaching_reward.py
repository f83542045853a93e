"""The teaching reward: what a teacher's guidance did to the answers of its student.

With perf in [0, 1] the performance without guidance (baseline) and with it (guided), d = guided - baseline,
and a bonus x of at least 0 for being short:

  d >= 0:  reward = d * (1 + x) + keep * baseline * (1 + x)       r0 to r3, x = w * s / (s + tokens)
           reward = d * (1 + x) + baseline * x                    r4, x = max(0, 1 - guided / baseline length)
  d < 0:   reward = 0                                             degradation "zero"
           reward = m * d                                         degradation "penalty"

| preset | degradation | m | keep | w | s | tokens of | perf was graded by, in the original |
| --- | --- | --- | --- | --- | --- | --- | --- |
| r0 | penalty | 2 | 0 | 1 | 100 | the teacher's whole text | equal text, 0.5 for a substring |
| r1 | penalty | 2 | 0 | 1 | 100 | the teacher's whole text | equal text |
| r2 | penalty | 2 | 0.5 | 1 | 100 | the guidance alone | equal text |
| r3 | zero | - | 0.5 | 1 | 100 | the guidance alone | equal numbers or text |
| r4 | penalty | 1 | - | - | - | the student's two answers | equal numbers or text |

For perf of 0 and 1 these are the formulas of the five revisions. Between them they never fall when the
guided performance rises, which d * (1 + x) beside keep * (1 + x) for d = 0 would: keeping 0.5 would beat
reaching 0.6.
Under "zero" no reward is below 0. With r4 guidance costs nothing, so r3 is the default.
"""
import dataclasses
import math

import numpy as np

DEGRADATIONS = ("zero", "penalty")
_EFFICIENT = {"efficiency_weight": 1.0, "efficiency_tokens": 100.0}
_PENALTY = {"degradation": "penalty", "degradation_penalty_multiplier": 2.0}
PRESETS: dict[str, dict] = {
  "r0": {**_PENALTY, **_EFFICIENT, "keep_correct_value": 0.0},
  "r1": {**_PENALTY, **_EFFICIENT, "keep_correct_value": 0.0},
  "r2": {**_PENALTY, **_EFFICIENT, "keep_correct_value": 0.5},
  "r3": {"degradation": "zero", **_EFFICIENT, "keep_correct_value": 0.5},
  "r4": {"degradation": "penalty", "degradation_penalty_multiplier": 1.0},
}
_NUMBERS = ("degradation_penalty_multiplier", "efficiency_weight", "keep_correct_value", "efficiency_tokens")
_MULTIPLIER = 2.0  # Of a penalty in a preset that has none.


@dataclasses.dataclass(frozen=True)
class TeachingReward:
  """Settings of the reward; a field that is None takes its preset's value.

  Attributes:
    preset: "r0" to "r4", see the table of this module.
    degradation: what guidance that made the answer worse earns: "zero", or a "penalty" in proportion.
    degradation_penalty_multiplier: m, at least 0; read with "penalty" alone.
    efficiency_weight: w, at least 0; not read by r4.
    keep_correct_value: keep, in [0, 1]: what leaving a right answer right is worth; not read by r4.
    efficiency_tokens: s, above 0, the length at which the bonus is half of w; not read by r4.

  Raises:
    ValueError: for a value that cannot be or that the preset does not read, naming the field.
  """

  preset: str = "r3"
  degradation: str | None = None
  degradation_penalty_multiplier: float | None = None
  efficiency_weight: float | None = None
  keep_correct_value: float | None = None
  efficiency_tokens: float | None = None

  def __post_init__(self):
    if self.preset not in PRESETS:
      raise ValueError(f"teaching reward preset={self.preset!r} must be one of {', '.join(PRESETS)}")
    preset = PRESETS[self.preset]
    if self.degradation not in (None, *DEGRADATIONS):
      raise ValueError(f"teaching reward degradation={self.degradation!r} must be one of "
                       f"{', '.join(DEGRADATIONS)}, or None for the preset's, {preset['degradation']}")
    for name in _NUMBERS:
      value = getattr(self, name)
      top = 1 if name == "keep_correct_value" else math.inf
      if value is not None and not (0 <= value <= top and math.isfinite(value)):
        raise ValueError(f"teaching reward {name}={value} must be a finite number of at least 0"
                         f"{' and at most 1' if top == 1 else ''}")
      if value is not None and self.preset == "r4" and name not in preset:
        raise ValueError(f"teaching reward {name}={value} is not read by preset r4, whose bonus is how much "
                         "shorter the student's answer became; leave it out, or take preset r3")
    if self.efficiency_tokens == 0:
      raise ValueError("teaching reward efficiency_tokens=0 must be above 0")
    if self.degradation_penalty_multiplier is not None and self.penalty_multiplier == 0 and \
        self.degradation_penalty_multiplier > 0:
      raise ValueError(
        f"teaching reward degradation_penalty_multiplier={self.degradation_penalty_multiplier} is not read "
        "where degradation is 'zero'; leave it out, or set degradation='penalty'")

  @property
  def penalty_multiplier(self) -> float:
    """Returns m, 0 where degradation costs nothing."""
    preset = PRESETS[self.preset]
    if (self.degradation or preset["degradation"]) == "zero":
      return 0.0
    if self.degradation_penalty_multiplier is not None:
      return float(self.degradation_penalty_multiplier)
    return preset.get("degradation_penalty_multiplier", _MULTIPLIER)

  @property
  def counts_whole_text(self) -> bool:
    """Returns whether the tokens to give are those of the teacher's whole text, not of its guidance alone."""
    return self.preset in ("r0", "r1")

  @property
  def needs_answer_lengths(self) -> bool:
    """Returns whether the lengths of the student's answers decide the bonus."""
    return self.preset == "r4"

  def value(self, name: str) -> float:
    """Returns a number of the settings, the preset's where it is None."""
    given = getattr(self, name)
    return float(PRESETS[self.preset][name] if given is None else given)


def teaching_reward(baseline_B, guided_B, guidance_tokens_B, settings: TeachingReward | None = None, *,
                    baseline_length_B=None, guided_length_B=None) -> np.ndarray:
  """Returns the reward of the guidance of each sample.

  Args:
    baseline_B: performance without guidance, in [0, 1]; NaN: there is no truth, or no verdict.
    guided_B: performance with guidance, likewise.
    guidance_tokens_B: tokens of the guidance, by the teacher's tokenizer, at least 0; of the teacher's whole
      text where `settings.counts_whole_text`.
    settings: which formula; None: preset r3.
    baseline_length_B: tokens of the answer without guidance; for preset r4 alone.
    guided_length_B: tokens of the answer with it, likewise.

  Returns:
    reward_B, float32; NaN, which takes the sample out of its group, where a performance is NaN.

  Raises:
    ValueError: if lengths differ, a performance is outside [0, 1] or a count below 0 or not finite, or if r4
      gets no lengths or another preset gets some.

  Source: five revisions of the reward of Arc's ATLAS, named r0 to r4; for performances between 0 and 1 ours.
  """
  settings = settings or TeachingReward()
  baseline_B = _column("baseline_B", baseline_B, top=1.0)
  guided_B = _column("guided_B", guided_B, top=1.0)
  tokens_B = _column("guidance_tokens_B", guidance_tokens_B)
  columns = {"baseline_B": baseline_B, "guided_B": guided_B, "guidance_tokens_B": tokens_B}
  lengths = {"baseline_length_B": baseline_length_B, "guided_length_B": guided_length_B}
  if any((length_B is not None) != settings.needs_answer_lengths for length_B in lengths.values()):
    verb = "needs" if settings.needs_answer_lengths else "does not read"
    raise ValueError(f"preset {settings.preset} {verb} baseline_length_B and guided_length_B; preset r4 "
                     "alone reads them, and needs both")
  columns |= {name: _column(name, length_B) for name, length_B in lengths.items() if length_B is not None}
  rows = {name: len(column_B) for name, column_B in columns.items()}
  if len(set(rows.values())) > 1:
    raise ValueError(f"columns of the teaching reward differ in length: {rows}; give one of each per sample")
  change_B = guided_B - baseline_B
  if settings.needs_answer_lengths:
    before_B, after_B = columns["baseline_length_B"], columns["guided_length_B"]
    bonus_B = np.maximum(0, 1 - after_B / np.maximum(before_B, 1)) * (before_B > 0)
    kept_B = baseline_B * bonus_B
  else:
    scale = settings.value("efficiency_tokens")
    bonus_B = settings.value("efficiency_weight") * scale / (scale + tokens_B)
    kept_B = settings.value("keep_correct_value") * baseline_B * (1 + bonus_B)
  helped_B = change_B * (1 + bonus_B) + kept_B
  # Adding 0 turns the -0.0 of "zero" into 0.0; comparisons with NaN are false and leave NaN.
  return (np.where(change_B < 0, settings.penalty_multiplier * change_B, helped_B) + 0.0).astype(np.float32)


def _column(name: str, values, *, top: float = math.inf) -> np.ndarray:
  """Returns numbers as float64 [B]; a performance, of at most `top` 1, may be NaN."""
  column_B = np.asarray(values, np.float64)
  if column_B.ndim != 1:
    raise ValueError(f"{name} of the teaching reward has shape {column_B.shape}; give a list of numbers")
  missing_B = np.isnan(column_B) & (top == 1.0)
  bad_B = ~((column_B >= 0) & (column_B <= top) & np.isfinite(column_B)) & ~missing_B
  if bad_B.any():
    row = int(np.argmax(bad_B))
    wanted = "in [0, 1], or NaN where there is no verdict" if top == 1.0 else "a finite number of at least 0"
    raise ValueError(f"{name} of the teaching reward has {column_B[row]} in row {row}; it must be {wanted}")
  return column_B
