"""Finds updates that teach nothing: says why, with numbers and the field to change, and when to end the run.

It takes only the metrics of an update, which the host reads anyway; see `Idle`.
"""
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from atlas_jax.parallel import hosts

LEARNT = "learnt"
IDLE = "idle"
UNTAUGHT = "untaught"
WARMING = "warming"
SKIPPED = "skipped"
UNMOVED = "unmoved"
WARN_AFTER = 3  # Updates in a row that teach nothing before a warning; then at 10, 30, 100 and so on.
TABLES = "grad/norm_tables"  # Of rows of tables, which the optimizer never sees.
CHANGED = "update/changed_frac"  # Fraction of the parameters that an update changed.
LARGEST = "update/largest_change"  # By which any one number of the parameters changed.
# At rates below 1e-8, an update that moves no number by 1e-9 is lost: float32 weights of 0.02 have steps of
# 2e-9, and only those that begin at 0 hold it, too small for any other number to feel it.
LOW_RATE, LOST_CHANGE = 1e-8, 1e-9
LEARNABLE = "rollout/learnable_frac"  # Fraction of completions whose advantage is not 0 and that count.


class IdleError(RuntimeError):
  """Too many updates in a row learnt nothing; the run is saved."""


class Idle:
  """Counts updates in a row that teach nothing, warns of them, and says when the run should end.

  An update is idle if no gradient flows, or if none of its parameters and tables changed. Updates whose only
  gradient is that of an entropy bonus or of the distance to a reference are logged, and do not end a run, nor
  do those that the learning rate makes too small to matter. A learning rate of 0 in the warm-up is logged
  once. Updates that were skipped count as neither, nor does the last one of a run that learnt, where the
  schedule ends at 0.

  Attributes:
    in_row: idle updates in a row so far, those of earlier starts too.
    ending: why the run should end now; None: it should not.
  """

  def __init__(self, config, *, in_row: int = 0):
    """Takes the config of a run, and how many idle updates in a row it had when it was saved.

    A run that was ended for them and is started again has config.train.idle_limit more.
    """
    self._config = config
    self._limit = config.train.idle_limit
    # The run that ended for the limit is started again on purpose; with the old count it would end at once.
    self.in_row = 0 if self._limit is not None and in_row >= self._limit else in_row
    self.ending: str | None = None
    self._untaught = self.in_row
    self._warming = 0
    self._last: tuple[int, Mapping[str, float], str] | None = None
    self._warned = False

  def observe(self, step: int, row: Mapping[str, float]) -> str:
    """Takes the metrics of an update, those of its source among them; returns which kind of update it was."""
    kind = kind_of(step, row, self._config)
    # A skipped update says nothing of learning, and `skipped.check` has a limit of its own: counts stay.
    if kind == SKIPPED:
      return kind
    if kind == WARMING:
      self._warming += 1
      if self._warming == WARN_AFTER:
        _warn("update %d: the last %d updates changed nothing yet: %s", step, WARN_AFTER,
              "; ".join(reasons(step, row, self._config)))
      return kind
    # The last update of a schedule that ends at 0 changes nothing, and that is as it should be. A run that
    # has never learnt has no such excuse.
    if kind == IDLE and not self._untaught and self._warming < step - 1 and _is_end(step, row, self._config):
      return kind
    self.in_row = self.in_row + 1 if kind == IDLE else 0
    self._untaught = 0 if kind == LEARNT else self._untaught + 1
    # Kept for `close`: a run may be over before the first warning is due.
    self._last = (step, row, kind)
    self._warned = self._warned and kind != LEARNT
    if self.ending is not None:
      return kind
    if self._limit is not None and self.in_row >= self._limit:
      self.ending = (f"step {step}: the last {self.in_row} updates learnt nothing (config.train.idle_limit="
                     f"{self._limit}; None never ends a run): "
                     f"{'; '.join(reasons(step, row, self._config))}")
    elif _is_due(self._untaught):
      self._warn()
    return kind

  def close(self) -> None:
    """Tells of a run that is over before the first warning was due."""
    if self._untaught and not self._warned and self.ending is None:
      self._warn()

  def _warn(self) -> None:
    assert self._last is not None  # Something was counted.
    step, row, kind = self._last
    self._warned = True
    what = "learnt nothing from rewards" if kind == UNTAUGHT else "learnt nothing"
    ends = ""
    if self.in_row and self._limit is not None:
      ends = f"; the run ends after {self._limit} such updates in a row (config.train.idle_limit)"
    _warn("update %d: %s %s: %s%s", step,
          "this update" if self._untaught == 1 else f"the last {self._untaught} updates", what,
          "; ".join(reasons(step, row, self._config)), ends)


def kind_of(step: int, row: Mapping[str, float], config) -> str:
  """Returns what an update was.

  It is "learnt", "idle", "unmoved" (by a learning rate far too low), "untaught" (by rewards), "warming" (its
  rate is 0 so far) or "skipped".
  """
  if row["train/skipped_in_row"]:
    return SKIPPED
  # Rows of tables are outside the optimizer: their gradient is in no grad/norm, and their change in no
  # changed_frac. A gradient is all that is known of them.
  tables = row.get(TABLES, 0.0) > 0
  flows = row["grad/norm"] > 0 or tables
  # With a tiny rate, float32 parameters stay what they are to the last bit although a gradient flows.
  changed = row["train/lr"] > 0 and (row[CHANGED] > 0 or tables)
  if flows and not changed and step <= config.optim.warmup_steps:
    return WARMING
  if not (flows and changed):
    return IDLE
  if not tables and _is_lost(row, config):
    return UNMOVED
  return UNTAUGHT if row.get(LEARNABLE) == 0 else LEARNT


def _is_lost(row: Mapping[str, float], config) -> bool:
  """Returns whether an update is too small to matter, and would be at the schedule's highest rate, too."""
  # Not by the rate of this update: in the warm-up and at the end of a schedule it is small as it should be.
  return (config.optim.lr < LOW_RATE and row["train/lr"] > 0 and row[CHANGED] > 0
          and row[LARGEST] * config.optim.lr / row["train/lr"] < LOST_CHANGE)


def reasons(step: int, row: Mapping[str, float], config) -> list[str]:
  """Returns why an update taught nothing, each reason with its numbers and the field to change.

  Args:
    step: its number, from 1.
    row: its metrics, those of its source among them.
    config: of the run.

  Returns:
    At least one sentence; the causes that lie furthest from the loss come first.
  """
  # All that apply: an update often teaches nothing for two reasons at once.
  found = [said for rule in RULES if (said := rule(step, row, config)) is not None]
  return found or [_unknown(row, config)]


def _rate(step: int, row: Mapping[str, float], config) -> str | None:
  lr = row["train/lr"]
  optim = config.optim
  # Without a gradient nothing can change at any rate: the rate is then not what is to blame.
  if lr > 0 and (row[CHANGED] > 0 or row["grad/norm"] == 0):
    return None
  warming = step <= optim.warmup_steps
  when = f" in the warm-up, which ends at update {optim.warmup_steps} (config.optim.warmup_steps)"
  if not warming and _is_end(step, row, config):
    return "the learning rate is 0 at the end of the run (config.optim.final_lr_frac=0)"
  if lr == 0:
    return f"the learning rate is 0{when if warming else ''}" + (
        "" if warming else f"; raise config.optim.lr={optim.lr} or config.optim.final_lr_frac="
                           f"{optim.final_lr_frac}")
  return (f"the learning rate is {lr:.3g}{when if warming else ''}, too low for any parameter to change in "
          f"float32; raise config.optim.lr={optim.lr}" + (" or lower warmup_steps" if warming else ""))


def _lost(step: int, row: Mapping[str, float], config) -> str | None:
  if not _is_lost(row, config):
    return None
  return (f"no number of the parameters changed by more than {row[LARGEST]:.2g} at a learning rate of "
          f"{row['train/lr']:.3g}, which is lost beside weights of 0.01 or more; raise config.optim.lr="
          f"{config.optim.lr}")


def _is_end(step: int, row: Mapping[str, float], config) -> bool:
  return row["train/lr"] == 0 and step >= config.optim.steps and config.optim.final_lr_frac == 0


def _unrewarded(step: int, row: Mapping[str, float], config) -> str | None:
  part = row.get("rollout/unrewarded_frac", 0.0)
  if not part:
    return None
  undecided = row.get("rollout/judge_no_verdict_frac", 0.0)
  if undecided >= part:
    return (f"{part:.0%} of completions got no reward, since judges had no verdict on {undecided:.0%}; look "
            "at the endpoint of config.rim and at why, in the table of completions")
  return (f"{part:.0%} of completions got no reward: config.rewards={config.rewards!r} has nothing to say "
          "of them, as of rows without an answer; name the column that holds answers in "
          "config.data.fields.answer, or choose other rewards")


def _truncated(step: int, row: Mapping[str, float], config) -> str | None:
  part = row.get("rollout/truncated_frac", 0.0)
  how = config.rollout.truncated
  if not part or how == "keep":
    return None
  return (f"{part:.0%} of completions were cut off before their end and config.rollout.truncated={how!r} "
          f"leaves them out of the loss; raise config.sampler.max_tokens={config.sampler.max_tokens}, or set "
          "config.rollout.truncated=keep")


def _flat(step: int, row: Mapping[str, float], config) -> str | None:
  part = row.get("rollout/flat_groups_frac", 0.0)
  # Completions without any reward are equal as well, and `_unrewarded` has said so.
  if not part or row["rollout/unrewarded_frac"] == 1:
    return None
  mean = row.get("rollout/reward_mean", math.nan)
  cut = ""
  if config.rollout.truncated != "drop" and row["rollout/truncated_frac"] > 0.5:
    cut = (f" ({row['rollout/truncated_frac']:.0%} of completions were cut off at config.sampler.max_tokens="
           f"{config.sampler.max_tokens})")
  return (f"in {part:.0%} of groups all rewards are equal (mean {mean:.3g}){cut}, so that no completion is "
          f"better than another; raise config.data.group_size={config.data.group_size} or config.sampler."
          "temperature, set config.rollout.zero_std_groups=resample, or give rewards with more steps "
          "(config.rewards)")


def _bounds(step: int, row: Mapping[str, float], config) -> str | None:
  """Names the bound that took all counted tokens out of a policy's loss, if one did."""
  # Where nothing was left to count, no bound has taken it.
  if not _counts(row):
    return None
  if row.get("policy/stale_frac", 0.0) == 1:
    return ("all completions drifted too far from the policy that wrote them; raise config.policy.stale_nats="
            f"{config.policy.stale_nats}, or lower config.rollout.updates_per_batch="
            f"{config.rollout.updates_per_batch}")
  if row.get("policy/sampler_ratio_mean", 1.0) == 0:
    return ("config.policy.sampler_correction leaves no token, for the sampler's log-probabilities are "
            f"{row.get('policy/sampler_gap_nats', math.nan):.3g} nats off; raise config.policy.sampler_high="
            f"{config.policy.sampler_high}, or look at config.sampler")
  if row.get("policy/clip_frac", 0.0) == 1:
    return ("all ratios are clipped; raise config.policy.clip_low and clip_high, or lower "
            f"config.rollout.updates_per_batch={config.rollout.updates_per_batch}")
  return None


def _uncounted(step: int, row: Mapping[str, float], config) -> str | None:
  """Says that the loss counts nothing of a batch; rollouts have reasons of their own."""
  counted = {name: value for name, value in row.items() if name.startswith("train/counted_")}
  if any(counted.values()) or not counted or LEARNABLE in row:
    return None
  unit = next(iter(counted)).removeprefix("train/counted_").replace("_", " ")
  if "sft/counted_frac" in row:
    return (f"no token of these rows is supervised (0 of {row['sft/filled_frac']:.0%} of places that hold "
            "text); look at the answers of the data and their weights, config.data.turns="
            f"{config.data.turns!r}, and config.data.overlong={config.data.overlong!r} with "
            f"config.data.segment_len={config.data.segment_len}")
  return f"the loss counts 0 {unit}; look at the rows of config.data and their lengths"


def _probability(step: int, row: Mapping[str, float], config) -> str | None:
  # A gradient that is weighted by 1e-30 has squares that are 0 in float32, and so is its norm.
  if config.sft.loss != "dft" or row.get("sft/probability_mean", 1.0) > 1e-30 or not row["sft/counted_frac"]:
    return None
  return (f"config.sft.loss='dft' weighs tokens by their probability, {row['sft/probability_mean']:.3g} on "
          "average; set config.sft.loss=nll")


def _responses(step: int, row: Mapping[str, float], config) -> str | None:
  if row.get("ranked/pairs", 1.0):
    return None
  return ("no two responses of a prompt have different scores (0 pairs): none is better than another; look "
          f"at the scores or ranks of config.data.files={config.data.files!r}")


def _taught(step: int, row: Mapping[str, float], config) -> str | None:
  if "distill/on_policy_frac" not in row or row["train/loss_nats"] != 0 or not _counts(row):
    return None
  return ("the divergence between student and teacher is 0: they predict the same; choose another "
          f"config.distill.teacher={config.distill.teacher!r} or another student, config.model.path="
          f"{config.model.path!r}")


def _frozen(step: int, row: Mapping[str, float], config) -> str | None:
  """Returns which parameters can get a gradient, where some cannot."""
  if row["grad/norm"] > 0 or not _counts(row) or row["train/loss_nats"] == 0 or LEARNABLE in row:
    return None
  if not any(name.startswith("grad/norm/") for name in row):
    return "there is no parameter to train"
  if "freeze" in config.optim and config.optim.freeze is not None:
    return (f"config.optim.freeze={config.optim.freeze!r} leaves only parameters to train whose gradient is "
            "0; freeze fewer")
  return None


def _other_terms(step: int, row: Mapping[str, float], config) -> str | None:
  """Returns what moves the parameters where rewards do not."""
  if row.get(LEARNABLE) != 0 or row["grad/norm"] == 0:
    return None
  named = [f"config.policy.{name}={config.policy[name]}" for name in ("entropy_weight", "kl_weight")
           if config.policy[name]]
  return f"only {' and '.join(named)} move the parameters" if named else None


def _unknown(row: Mapping[str, float], config) -> str:
  found = row["grad/norm"]
  return (f"the loss is {row['train/loss_nats']:.6g}, and its gradient has norm {found:.3g} over all "
          f"parameters; look at the rows of config.data, and at config.recipe={config.recipe!r}")


# Causes that lie furthest from the loss come first, since later ones often follow from them.
RULES: Sequence[Callable[[int, Mapping[str, float], Any], str | None]] = (
    _rate, _lost, _unrewarded, _truncated, _flat, _bounds, _uncounted, _probability, _responses, _taught,
    _frozen, _other_terms)


def _counts(row: Mapping[str, float]) -> bool:
  return all(value for name, value in row.items() if name.startswith("train/counted_"))


def _is_due(count: int) -> bool:
  """Returns whether so many in a row are logged: 3, 10, 30, 100 and so on."""
  # Ever more rarely: a run of a million updates that learns nothing has a dozen lines, not a million.
  return count >= WARN_AFTER and count in (10 ** (len(str(count)) - 1), 3 * 10 ** (len(str(count)) - 1))


def _warn(line: str, *values) -> None:
  if hosts.is_main():
    logging.warning(line, *values)
