"""Rollouts as a source of batches: prompts are answered, scored, compared, and trained on.

A rollout holds `batches_per_rollout` batches, and each makes `updates_per_batch` updates. Every process asks
the sampler alike, so that all know the whole rollout, and takes its own rows of each batch; groups stay
together.
"""
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from atlas_jax.data import packing
from atlas_jax.data.problems import StableRandom
from atlas_jax.data.prompts import PromptSource
from atlas_jax.data.stepped import rows_of
from atlas_jax.evals import EvalOut
from atlas_jax.language.decoding import sampler
from atlas_jax.parallel import hosts
from atlas_jax.rollout import arrays, groups
from atlas_jax.rollout.groups import CompletionGroup, Scoring
from atlas_jax.rollout.prompted import PromptedSource
from atlas_jax.rollout.rewards import Rewards
from atlas_jax.rollout.table import CompletionLog, text_of
from atlas_jax.state import Trained

TOO_LONG = "prompts in a row are longer than config.data.max_prompt_tokens; raise it"


@dataclasses.dataclass(frozen=True)
class RolloutPlan:
  """Settings by which rollouts become batches. "Off" is None.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  batch_rows: int                 # completions per update, over all processes
  batches_per_rollout: int = 1                # per rollout
  updates_per_batch: int = 1                 # updates per batch
  zero_std_groups: str = "keep"       # of equal rewards: "skip" trains no row of them, "resample" asks others
  max_resamples: int = 3          # times that others are asked, at most
  pad_tokens: int = 1             # lengths are multiples of it
  align_tokens: int = 1           # and of this
  max_staleness: int = 0          # updates that the weights of a completion may be behind when it is written
  table_rows: int = 0             # completions of a rollout that are written down

  def __post_init__(self):
    if self.zero_std_groups not in groups.FLAT:
      raise ValueError(f"config.rollout.zero_std_groups={self.zero_std_groups!r} must be one of "
                       f"{', '.join(groups.FLAT)}")
    for name in ("batches_per_rollout", "updates_per_batch", "pad_tokens"):
      if getattr(self, name) < 1:
        raise ValueError(f"config.rollout.{name}={getattr(self, name)} must be at least 1")

  @property
  def updates(self) -> int:
    """Returns the number of updates that use a rollout."""
    return self.batches_per_rollout * self.updates_per_batch


@dataclasses.dataclass
class Pending:
  """A rollout that updates are being made with; a checkpoint holds its fields by these names."""

  arrays: dict[str, np.ndarray]  # of all its rows, over all processes
  where: list[str]               # of the prompt of each row
  number: int                    # place of its first prompt, which also draws the order of its groups
  told: dict[str, float]         # metrics of it
  text: str
  version: int
  given: int = 0                 # updates it was used for


def _check(options: sampler.SamplingOptions, plan: RolloutPlan, scoring: Scoring, process_count: int, *,
           has_scorer: bool) -> None:
  if plan.batch_rows % (options.n * process_count):
    raise ValueError(f"config.data.batch_rows={plan.batch_rows} must be a multiple of "
                     f"config.data.group_size={options.n} times the {process_count} processes")
  if options.n < 2:
    raise ValueError(f"config.data.group_size={options.n} leaves a completion nothing to be compared with; "
                     "set it to 2 or more")
  if not options.temperature:
    raise ValueError("config.sampler.temperature=0 draws nothing that a policy could learn from; set it "
                     "above 0, such as 1.0")
  if plan.updates > 1 and not has_scorer:
    raise ValueError(f"{plan.updates} updates per rollout need old_logprobs")
  if scoring.overlong_tokens is not None and scoring.overlong_tokens > options.max_tokens:
    raise ValueError(f"config.rollout.overlong_tokens={scoring.overlong_tokens} is more than "
                     f"config.sampler.max_tokens={options.max_tokens}; lower it")


class RolloutSource(PromptedSource):
  """Batches of completions with advantages.

  A batch has what `arrays.of_completions` gives, and advantage_B, sampler_logprob_BT (the sampler's, in the
  tempered distribution over all ids), old_logprob_BT (the trainer's at the time of the rollout; only with
  several updates per rollout), row_mask_B (0 for rows that only fill up), truncated_B, and tokens_per_row_B
  (the same in all rows: counted tokens of the batch over its counted rows).

  Attributes:
    step: batches given so far.
    tokenizer: of the ids.
  """

  def __init__(self, prompts: PromptSource, writer: sampler.Sampler, rewards: Rewards | Any, *,
               encode: Callable, options: sampler.SamplingOptions, plan: RolloutPlan, scoring: Scoring,
               tokenizer: Any = None, seed: int = 0, whole: Callable = lambda params, frozen: params,
               old_logprobs: Callable | None = None, workdir=None, process_index: int = 0,
               process_count: int = 1):
    """Takes all parts.

    Args:
      prompts: one problem per step, of batch_rows = group_size = options.n.
      writer: writes the completions; where it has `stats`, numbers by name, they are logged.
      rewards: score them; a subclass that scores otherwise needs their `weights` alone.
      encode: problem -> ids of its prompt, or None for one that is passed over; see `ask.encoder`.
      options: how completions are drawn; n is the size of a group, the temperature is above 0.
      plan: how rollouts become batches.
      scoring: how groups are compared.
      tokenizer: of the ids, for who uses the run.
      seed: draws.
      whole: (what is trained, frozen) -> what the sampler loads.
      old_logprobs: (what is trained, frozen, this process's rows) -> logprob_BT of the whole batch, NumPy;
        needed for several updates per rollout.
      workdir: of the run, gets tables of completions; None: nowhere.
      process_index, process_count: whose rows these are, see `stepped.rows_of`.

    Raises:
      ValueError: if sizes do not divide, or the settings cannot make a policy gradient.
    """
    _check(options, plan, scoring, process_count, has_scorer=old_logprobs is not None)
    # The names are those of checkpoints, older than the settings' own.
    super().__init__(prompts, {"batch_rows": plan.batch_rows, "batches": plan.batches_per_rollout,
                               "passes": plan.updates_per_batch},
                     rows_of(plan.batch_rows, process_index, process_count), tokenizer=tokenizer)
    self._sampler = writer
    self._rewards = rewards
    self._encode = encode
    self._options = options
    self._plan = plan
    self._scoring = scoring
    self._seed = seed
    self._whole = whole
    self._old_logprobs = old_logprobs
    self._pending: Pending | None = None
    # Every process knows the whole rollout, and one writes it down.
    self._table = CompletionLog(workdir) if workdir is not None and hosts.is_main() else None

  def score_with(self, old_logprobs: Callable) -> None:
    """Takes another function in place of `old_logprobs`, for who has no parameters to score with."""
    if self._old_logprobs is not None:
      self._old_logprobs = old_logprobs

  def _make(self, trained: Trained) -> tuple[dict[str, np.ndarray], list[str], EvalOut]:
    """Returns the next batch, after a new rollout with these parameters if the last one is used up."""
    pending = self._sample(trained) if self._pending is None else self._pending
    picked = self._rows_of_update(pending)[self._mine]
    batch = {name: array[picked] for name, array in pending.arrays.items()}
    batch["tokens_per_row_B"] = np.full(len(picked), self._tokens_per_row(pending), np.float32)
    age = {"rollout/age_updates": float(self.step - pending.version)}
    # The text is that of the whole rollout, and belongs to the update that it was made for.
    metrics = EvalOut({**pending.told, **age}, "" if pending.given else pending.text)
    pending.given += 1
    self._pending = pending if pending.given < self._plan.updates else None
    return batch, [pending.where[row] for row in picked], metrics

  def _rows_of_update(self, pending: Pending) -> np.ndarray:
    """Returns the rows of the rollout that its next update uses, over all processes.

    In the first pass as they were written, in later ones by groups in an order of its own.
    """
    rows = self._plan.batch_rows * self._plan.batches_per_rollout
    n = self._options.n
    number, at = divmod(pending.given, self._plan.batches_per_rollout)
    order = np.arange(rows)
    if number and self._plan.batches_per_rollout > 1:  # A single batch has the same rows in any order.
      group = packing.permutation(rows // n, seed=self._seed + pending.number, epoch=number)
      order = (group[:, None] * n + np.arange(n)[None]).reshape(-1)
    return order[at * self._plan.batch_rows:][:self._plan.batch_rows]

  def _tokens_per_row(self, pending: Pending) -> float:
    # Of the whole batch: a loss that divides by it must divide alike in all processes and pieces of a batch.
    picked = self._rows_of_update(pending)
    row_B = pending.arrays["row_mask_B"][picked] > 0
    counted_B = row_B & ~(pending.arrays["truncated_B"][picked] & (self._scoring.truncated != "keep"))
    tokens_B = pending.arrays["completion_mask_BT"][picked].sum(axis=1)
    return float((tokens_B * counted_B).sum() / max(row_B.sum(), 1))

  # A rollout.

  def _sample(self, trained: Trained) -> Pending:
    """Writes, scores and compares completions."""
    began = time.perf_counter()
    first = self._prompts.step
    self._sampler.load(self._whole(trained.params, trained.frozen), self.step)
    asked, written_s = self._ask_all()
    spent = {"generate_s": written_s, "reward_s": time.perf_counter() - began - written_s,
             **(self._sampler.stats if hasattr(self._sampler, "stats") else {})}
    return self._compare(trained, asked, spent, number=first)

  def _ask_all(self) -> tuple[list[CompletionGroup], float]:
    """Returns the groups that were asked, as many as wanted, and the seconds that the sampler took."""
    wanted = self._plan.batches_per_rollout * self._plan.batch_rows // self._options.n
    asked, seconds = self._ask(wanted)
    for _ in range(self._plan.max_resamples if self._plan.zero_std_groups == "resample" else 0):
      lacking = wanted - sum(not group.flat for group in asked)
      if lacking <= 0:
        break
      more, took = self._ask(min(wanted, 1 << (lacking - 1).bit_length()))  # Few sizes: few compilations.
      asked = [*asked, *more]
      seconds = seconds + took
    return asked, seconds

  def _ask(self, count: int) -> tuple[list[CompletionGroup], float]:
    """Has the next prompts answered; gives their groups, and the seconds that the sampler took."""
    place = self._prompts.step
    found, ids = self._questions(count)
    began = time.perf_counter()
    # By the place in the prompts: a resumed run, and every process, draws what this one would.
    rollout = self._sampler.generate(ids, self._options, seed=StableRandom(self._seed, place).below(2**31))
    seconds = time.perf_counter() - began
    sampler.check(rollout, ids, self._options, version=self.step, max_staleness=self._plan.max_staleness)
    return self._scored(found, ids, rollout, place), seconds

  def _questions(self, count: int) -> tuple[list, list[list[int]]]:
    """Returns the next questions, and the ids of the prompt that the policy is given for each."""
    taken = self._take(count, self._encode, TOO_LONG)
    return [problem for problem, _ in taken], [prompt.tolist() for _, prompt in taken]

  def _scored(self, found: list, ids: list[list[int]], rollout: sampler.Rollout,
              place: int) -> list[CompletionGroup]:
    """Returns the group of each question of `_questions`, which was asked at that place in the prompts."""
    del place
    return groups.score(found, ids, rollout, self._options, self._rewards, self._scoring, step=self.step)

  def _more_metrics(self, asked: list[CompletionGroup]) -> dict[str, float]:
    """Returns metrics beside those of every rollout."""
    del asked
    return {}

  def _compare(self, trained: Trained, asked: list[CompletionGroup], spent: dict[str, float], *,
               number: int) -> Pending:
    """Chooses the groups to train on, and makes arrays, metrics and tables."""
    wanted = self._plan.batches_per_rollout * self._plan.batch_rows // self._options.n
    chosen = asked[:wanted]
    if self._plan.zero_std_groups == "resample":
      chosen = sorted(asked, key=lambda group: group.flat)[:wanted]  # Flat ones only fill up what is left.
    masked = [group.flat and self._plan.zero_std_groups != "keep" for group in chosen]
    weights = self._rewards.weights
    advantage_B = groups.compare(chosen, weights, self._scoring)
    made = self._arrays(chosen, advantage_B, masked)
    if self._plan.updates > 1:
      made["old_logprob_BT"] = self._score_old(trained, made)
    # Of all that were asked: what is left out of training still says how the model answers.
    metrics = {**groups.metrics(asked, options=self._options),
               "rollout/resampled_groups": float(len(asked) - wanted),
               "rollout/masked_groups": float(sum(masked)),
               "rollout/skipped_prompts": float(self._prompts.step - number - len(asked)),
               "rollout/learnable_frac": float(self._learnable(made).mean()),
               **{f"rollout/{name}": float(value) for name, value in spent.items()},
               **self._more_metrics(asked)}
    rows = groups.rows(chosen, advantage_B, self._plan.table_rows)
    if self._table is not None:
      self._table.write(self.step + 1, rows)
    where = [group.problem.where for group in chosen for _ in range(self._options.n)]
    return Pending(made, where, number, metrics, text_of(rows),
                   min(group.version for group in chosen))

  def _learnable(self, made: dict[str, np.ndarray]) -> np.ndarray:
    """Returns which completions have a gradient: better or worse than others, and in the loss."""
    counted_B = made["row_mask_B"] > 0
    if self._scoring.truncated != "keep":
      counted_B &= ~made["truncated_B"]
    return counted_B & (made["advantage_B"] != 0) & made["completion_mask_BT"].any(axis=1)

  def _arrays(self, chosen: list[CompletionGroup], advantage_B, masked: list[bool]) -> dict[str, np.ndarray]:
    n = self._options.n
    made = arrays.of_completions(
        [group.prompt for group in chosen for _ in range(n)],
        [ids for group in chosen for ids in group.tokens],
        pad_tokens=self._plan.pad_tokens, align_tokens=self._plan.align_tokens)
    width = made["completion_BT"].shape[1]
    return {**made, "advantage_B": advantage_B,
            "sampler_logprob_BT": arrays.padded([one for group in chosen for one in group.logprobs], width),
            "row_mask_B": np.repeat(~np.array(masked), n).astype(np.float32),
            "truncated_B": np.concatenate([group.truncated_G for group in chosen])}

  def _score_old(self, trained: Trained, made: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the trainer's log-probabilities of the rollout, batch after batch."""
    assert self._old_logprobs is not None  # The constructor sees to it.
    size = self._plan.batch_rows
    parts = []
    # In the batches of updates, so that it needs no more memory than they do.
    for first in range(0, size * self._plan.batches_per_rollout, size):
      mine = {name: array[first:first + size][self._mine] for name, array in made.items()}
      parts.append(self._old_logprobs(trained.params, trained.frozen, mine))
    return np.concatenate(parts).astype(np.float32)

  def state(self) -> dict:
    """Returns the place, with the rollout that is in use; independent of the number of processes."""
    if self._pending is None:
      return {**super().state(), "pending": None}
    # It cannot be made again: its completions were drawn with parameters that are gone.
    pending = dataclasses.asdict(self._pending)
    return {**super().state(), "pending": {**pending, "arrays": arrays.to_json(pending["arrays"])}}

  def restore(self, state: dict) -> None:
    """Goes to the saved place; see `SteppedSource.restore`."""
    super().restore(state)
    saved = state["pending"]
    self._pending = None if saved is None else Pending(
        **{**saved, "arrays": arrays.from_json(saved["arrays"])})

  def _places(self, step: int) -> list[int]:
    """Returns the prompt of each of this process's rows of a step, in the order of the first pass."""
    rollout, update = divmod(step, self._plan.updates)
    batch = rollout * self._plan.batches_per_rollout + update % self._plan.batches_per_rollout
    return [(batch * self._plan.batch_rows + row) // self._options.n for row in self._mine]

  def close(self) -> None:
    """Ends what the sampler has started, such as a server."""
    if hasattr(self._sampler, "close"):
      self._sampler.close()
