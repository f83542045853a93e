"""Recorded answers as rollouts: a policy learns from what a server sampled, by the very ids.

Answers to the same prompt, id by id, are compared with each other, however many requests or sessions asked
it. They were drawn by other weights than those that are trained: the sampler's log-probabilities are the
recorded ones, of the distribution that was drawn from, and config.policy.sampler_correction weighs by the
ratio to them. No text is encoded.
"""
import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from absl import logging

from atlas_jax.data.problems import Problem
from atlas_jax.data.prompts import ProblemList, PromptSource
from atlas_jax.data.traces.served_tokens import ServedAnswer
from atlas_jax.evals import EvalOut
from atlas_jax.language.decoding import sampler
from atlas_jax.rollout import groups
from atlas_jax.rollout.groups import CompletionGroup
from atlas_jax.rollout.source import Pending, RolloutSource
from atlas_jax.state import Trained

AGE = "rollout/age_updates"  # Of weights of another run nothing is known that could be counted.
REPLACED = "\ufffd"
REASONS = {"long_prompt": "the prompt is longer than config.data.max_prompt_tokens",
           "long": "the answer is longer than config.sampler.max_tokens",
           "alone": "fewer than config.data.group_size answers to its prompt are left"}


class ServedGroup(NamedTuple):
  """Answers to one prompt."""

  problem: Problem
  answers: tuple[ServedAnswer, ...]


def of_answers(found: Sequence[ServedAnswer], tokenizer: Any, *, group_size: int, max_prompt_tokens: int,
               max_tokens: int, overlong: str, vocab_size: int) -> list[ServedGroup]:
  """Returns answers in groups, and logs what is left out.

  Args:
    found: the answers.
    tokenizer: of the model that is trained, for texts alone.
    group_size: answers of a group.
    max_prompt_tokens, max_tokens: of prompts and answers.
    overlong: "error" refuses longer ones, "skip" leaves them out.
    vocab_size: of the model.

  Raises:
    ValueError: if nothing is left, one is too long, or the ids are not those of the tokenizer.
  """
  left_out: Counter = Counter()
  by_prompt: dict[Any, list[ServedAnswer]] = defaultdict(list)
  for one in found:
    _check_ids(one, tokenizer, vocab_size)
    long = ("long_prompt" if len(one.row.prompt_ids) > max_prompt_tokens else
            "long" if len(one.row.token_ids) > max_tokens else None)
    if long is None:
      by_prompt[one.row.prompt_ids, one.answer].append(one)
      continue
    if overlong == "error":
      raise ValueError(f"{one.row.where} ({len(one.row.prompt_ids)} and {len(one.row.token_ids)} tokens): "
                       f"{REASONS[long]}; raise it, or set config.data.overlong=skip")
    left_out[long] += 1
  made = _groups(by_prompt, tokenizer, group_size, left_out)
  said = ", ".join(f"{count} ({REASONS[name]})" for name, count in left_out.most_common() if count) or "none"
  if not made:
    raise ValueError(f"of {len(found)} recorded answers none is left to learn from; left out: {said}; record "
                     f"config.data.group_size={group_size} answers to a prompt (n={group_size} in a "
                     "request), or change these fields")
  logging.info("%d groups of %d recorded answers; left out: %s", len(made), group_size, said)
  return made


def _groups(by_prompt: Mapping[Any, list[ServedAnswer]], tokenizer: Any, group_size: int,
            left_out: Counter) -> list[ServedGroup]:
  made = []
  for (prompt_ids, answer), listed in by_prompt.items():
    whole = len(listed) // group_size * group_size
    left_out["alone"] += len(listed) - whole
    for at in range(0, whole, group_size):
      part = tuple(listed[at:at + group_size])
      # The ids are part of what the data are: a run that goes on with others is refused.
      ids = repr([one.row[1:] for one in part]).encode()
      problem = Problem(part[0].row.where, tokenizer.decode(list(prompt_ids)), answer,
                        extra={"ids_sha256": hashlib.sha256(ids).hexdigest()})
      made.append(ServedGroup(problem, part))
  return made


def _check_ids(one: ServedAnswer, tokenizer: Any, vocab_size: int) -> None:
  ids = one.row.token_ids
  remedy = "train from the model that was served: set config.model.path, and config.data.tokenizer=model"
  largest = max(*ids, *one.row.prompt_ids)
  if largest >= vocab_size:
    raise ValueError(f"{one.row.where} has the id {largest}, and the model has {vocab_size}; {remedy}")
  # What a stop cut off is among the ids; characters that came in parts may be replaced otherwise.
  decoded = tokenizer.decode(list(ids))
  if one.text and REPLACED not in one.text and not decoded.startswith(one.text):
    raise ValueError(f"{one.row.where}: its ids are {decoded[:60]!r} to config.data.tokenizer, and the "
                     f"client was shown {one.text[:60]!r}; {remedy}")


def check(config) -> None:
  """Refuses settings that do not go with answers of other weights.

  Raises:
    ValueError: naming the field.
  """
  if config.policy.sampler_correction is None:
    raise ValueError("config.policy.sampler_correction=None with config.traces.completions='served': the "
                     "answers were drawn by other weights than those that learn; set token_truncate, which "
                     "weighs by the ratio to the recorded log-probabilities")
  if config.rollout.max_staleness:
    raise ValueError(f"config.rollout.max_staleness={config.rollout.max_staleness} is not read with "
                     "config.traces.completions='served': recorded answers may be of any weights; leave it "
                     "out")
  if config.data.overlong == "truncate":
    raise ValueError("config.data.overlong='truncate' with config.traces.completions='served': an answer to "
                     "a prompt that is cut is none that was sampled; set error, or skip")


class ServedSource(RolloutSource):
  """`RolloutSource` whose completions were recorded; the sampler is used by evaluations alone."""

  def __init__(self, found: Sequence[ServedGroup], writer: Any, rewards: Any, *, ends: Sequence[int],
               options: sampler.SamplingOptions, seed: int, **given: Any):
    """Takes groups.

    Args:
      found: the groups.
      writer: is closed at the end.
      rewards: score the answers.
      ends: ids that end an answer of the model.
      options: n is the size of a group, max_tokens the longest answer.
      seed: draws the order.
      **given: see `RolloutSource`.

    Raises:
      ValueError: as of `RolloutSource`.
    """
    self._groups: Mapping[str, ServedGroup] = {one.problem.where: one for one in found}
    self._ends = frozenset(ends)
    # One group per step, as `RolloutSource` wants its prompts.
    prompts = PromptSource(ProblemList([one.problem for one in found]), batch_rows=options.n,
                           group_size=options.n, seed=seed)
    super().__init__(prompts, writer, rewards, encode=_never_encoded, options=options, seed=seed, **given)

  def _make(self, trained: Trained) -> tuple[dict[str, np.ndarray], list[str], EvalOut]:
    batch, where, out = super()._make(trained)
    scalars = {name: value for name, value in out.scalars.items() if name != AGE}
    return batch, where, EvalOut(scalars, out.text)

  def _sample(self, trained: Trained) -> Pending:
    """Returns the next rollout; nothing is written, so no sampler is loaded."""
    first = self._prompts.step
    asked, _ = self._ask_all()
    return self._compare(trained, asked, {}, number=first)

  def _ask(self, count: int) -> tuple[list[CompletionGroup], float]:
    """Returns the next groups; no time is spent on writing."""
    taken = [self._groups[problem.where] for problem in
             (self._prompts.next()["problems"][0] for _ in range(count))]
    answers = [one for group in taken for one in group.answers]
    rollout = sampler.assemble([self._completion(one) for one in answers], pad_id=self.tokenizer.doc_id)
    prompts = [list(group.answers[0].row.prompt_ids) for group in taken]
    sampler.check(rollout, prompts, self._options)
    made = groups.score([group.problem for group in taken], prompts, rollout, self._options, self._rewards,
                        self._scoring, step=self.step)
    learnt = [tuple(ids) for group in made for ids in group.tokens]
    assert learnt == [one.row.token_ids for one in answers]  # A policy gradient sees recorded ids alone.
    return made, 0.0

  def _completion(self, one: ServedAnswer) -> sampler.Completion:
    ids = one.row.token_ids
    is_ended = ids[-1] in self._ends and ids[-1] in self._options.stop_tokens
    reason = "length" if one.is_cut else "stop_token" if is_ended else "stop_string"
    text = self.tokenizer.decode(list(ids[:-1] if is_ended else ids)) if one.text is None else one.text
    # Both: the ratio is to the distribution that was drawn from, with whatever cut it short.
    return sampler.Completion(ids, one.row.sampler_logprobs, one.row.sampler_logprobs, reason, text,
                              one.row.weights_version or 0)


def _never_encoded(problem: Problem) -> NoReturn:
  raise AssertionError(f"{problem.where} would be encoded again, which may give other ids than were sampled")
