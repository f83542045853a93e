"""Phases of a run, told from accuracy and loss on held-out rows alone.

A network can know all of its training rows by heart and nothing else, so accuracy on training rows says
nothing here and is not looked at. Phases are told, logged and drawn; nothing of them stops a run.

  insufficient_data  fewer evaluations with finite numbers than config.monitor.phases.window_evals
  no_change          neither number has moved, and the loss is no lower than at the first evaluation
  learning           the loss falls below that of the first evaluation, accuracy stands
  memorising         the loss is above that of the first evaluation and accuracy does not rise with a falling
                     or standing loss: what was learnt of the training rows does not hold for others
  generalising       accuracy rises
  converged          both stand, or the accuracy is high from the start
  grokked            accuracy is high, after the run was memorising
  overfitting        accuracy falls, or the loss rises without being above that of the first evaluation

Power et al. 2022, arXiv:2201.02177, named grokking: generalisation long after the training rows were known.
"""
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

ACCURACY, LOSS = "eval/held_out_accuracy", "eval/held_out_loss_nats"
PHASE = "eval/phase"  # Index into PHASES.
GROKKED_AT = "eval/grokked_at_step"
PHASES = ("insufficient_data", "no_change", "learning", "memorising", "generalising", "converged", "grokked",
          "overfitting")
SURE = 4.0  # Standard errors by which the rise of a window must differ from zero.
LEVEL_EVALS = 3  # The level of a curve is the median of its last so many evaluations.


class Thresholds(NamedTuple):
  """Fields of config.monitor.phases."""

  window_evals: int  # evaluations over which a change is judged
  confirm_evals: int  # evaluations in a row that must agree before a phase is told
  high_accuracy: float  # accuracy from which on a task is solved
  least_change: float  # of accuracy, and as a fraction of the loss: less is none


class TimedPhase(NamedTuple):
  """A phase and the evaluation at which it was told."""

  step: int
  phase: str


def phases_of(rows: Iterable[Mapping[str, Any]], thresholds: Thresholds) -> list[TimedPhase]:
  """Returns the phase at each evaluation; of the rows so far alone, so that later ones change nothing of it.

  Args:
    rows: of metrics, oldest first; those without held-out accuracy are passed over.
    thresholds: see there.
  """
  timed: list[TimedPhase] = []
  accuracies: list[float] = []
  losses: list[float] = []
  phase, candidate, agreeing, memorised = PHASES[0], PHASES[0], 0, False
  for row in rows:
    if ACCURACY not in row:
      continue
    accuracy, loss = (_number(row.get(name)) for name in (ACCURACY, LOSS))
    # An evaluation that gave no number tells nothing: the phase stays, and nothing is confirmed by it.
    if np.isfinite(accuracy) and np.isfinite(loss):
      accuracies.append(accuracy)
      losses.append(loss)
      found = _phase(accuracies, losses, thresholds, memorised=memorised)
      agreeing = agreeing + 1 if found == candidate else 1
      candidate = found
      if agreeing >= thresholds.confirm_evals:
        phase = candidate
        memorised = memorised or phase == "memorising"
    timed.append(TimedPhase(int(row["step"]), phase))
  return timed


def changes(timed: Iterable[TimedPhase]) -> list[TimedPhase]:
  """Returns the first evaluation of every phase, in order; a phase that comes back is there again."""
  found: list[TimedPhase] = []
  for one in timed:
    if not found or found[-1].phase != one.phase:
      found.append(one)
  return found


def in_words(timed: Iterable[TimedPhase]) -> str:
  """Writes the changes as a sentence, such as "memorising from step 400, grokked from step 3000"."""
  return ", ".join(f"{one.phase} from step {one.step}" for one in changes(timed))


def scalars(timed: list[TimedPhase]) -> dict[str, float]:
  """Returns metrics of the newest evaluation: "eval/phase", and "eval/grokked_at_step" once it has."""
  found = {PHASE: float(PHASES.index(timed[-1].phase))}
  grokked = [one.step for one in timed if one.phase == "grokked"]
  return {**found, **({GROKKED_AT: float(grokked[0])} if grokked else {})}


def _phase(accuracies: list[float], losses: list[float], thresholds: Thresholds, *, memorised: bool) -> str:
  """Returns the phase that the numbers so far tell, before it is confirmed."""
  if len(accuracies) < thresholds.window_evals:
    return "insufficient_data"
  least = thresholds.least_change
  accuracy = _trend(accuracies[-thresholds.window_evals:], least)
  window = losses[-thresholds.window_evals:]
  loss = _trend(window, least * abs(_level(window)))
  start = losses[0]
  worse_than_at_first = _level(losses) > (1 + least) * start
  if _level(accuracies) >= thresholds.high_accuracy:
    if accuracy >= 0:
      return "grokked" if memorised else "generalising" if accuracy > 0 else "converged"
    return "overfitting"
  # Guesses that are surer and more wrong than those of the first evaluation: the few held-out rows that come
  # right along with them are no sign of a rule.
  if worse_than_at_first and (accuracy <= 0 or loss > 0):
    return "memorising"
  if accuracy:
    return "generalising" if accuracy > 0 else "overfitting"
  if loss:
    return "learning" if loss < 0 else "overfitting"
  return "converged" if _level(losses) < (1 - least) * start else "no_change"


def _level(values: list[float]) -> float:
  return float(np.median(values[-LEVEL_EVALS:]))


def _trend(values: list[float], least: float) -> int:
  """Returns 1 if a window rises, -1 if it falls, 0 if its line is flat, changes too little or is not sure."""
  x = np.arange(len(values)) - (len(values) - 1) / 2
  y = np.asarray(values) - np.mean(values)
  rise = np.sum(x * y) / np.sum(x * x)
  if abs(rise) * (len(values) - 1) < least:
    return 0
  # Noise alone rises or falls, too, of about this size: the error of a line through so many points.
  error = np.sqrt(np.sum((y - rise * x) ** 2) / (len(values) - 2) / np.sum(x * x))
  return int(np.sign(rise)) if abs(rise) > SURE * error else 0


def _number(value) -> float:
  return float("nan") if value is None else float(value)
