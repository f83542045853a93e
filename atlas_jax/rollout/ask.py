"""Problems put to a sampler: prompts as ids, and a function that answers them."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.data import chats, problems
from atlas_jax.data.problems import Problem
from atlas_jax.data.tokenizer import Tokenizer
from atlas_jax.evals import stopping
from atlas_jax.language.decoding.sampler import Sampler, SamplingOptions
from atlas_jax.rollout import reward_calls
from atlas_jax.rollout.rewards import Rewards


class ProblemCompletions(NamedTuple):
  """The completions that a sampler wrote for a problem."""

  text: str              # without what stopped it, and without special tokens
  tokens: list[int]      # ids, the one that stopped it included
  reason: str            # of `sampler.REASONS`


def encoder(tokenizer: Tokenizer, template: chats.Template | None = None, *, max_tokens: int | None = None,
            overlong: str = "error", values: Mapping[str, Any] = problems.NOTHING) -> Callable:
  """Makes the function from a problem to the ids of its prompt.

  Args:
    tokenizer: of the ids.
    template: chat template, or None for plain texts; see `chats.prompt_ids`.
    max_tokens: of a prompt; None: any number.
    overlong: of a longer one: "error", "truncate" (its start is cut off), or "skip" (None is given).
    values: what the template may use besides.

  Returns:
    problem -> int32 ids, or None. It raises ValueError, naming the place of the problem.
  """
  def encode(problem: Problem) -> np.ndarray | None:
    ids = chats.prompt_ids(problem, tokenizer, template, **values)
    if max_tokens is None or len(ids) <= max_tokens:
      return ids
    if overlong == "error":
      raise ValueError(f"{problem.where}: its prompt has {len(ids)} tokens, more than "
                       f"config.data.max_prompt_tokens={max_tokens}; raise that, or set config.data.overlong "
                       "to 'truncate' (cuts off its start) or 'skip'")
    # What a prompt asks stands near its end.
    return None if overlong == "skip" else ids[-max_tokens:]

  return encode


def in_vocabulary(encode: Callable, vocab_size: int, *, tokenizer: str,
                  chat_template: str | None) -> Callable:
  """Makes an encoder refuse ids that a model has not.

  Args:
    encode: problem -> ids, or None; such as of `encoder`.
    vocab_size: of the model.
    tokenizer, chat_template: fields of config.data, for the error.

  Returns:
    problem -> what `encode` returns. It raises ValueError, naming the place of the problem.
  """
  def known(problem: Problem) -> np.ndarray | None:
    ids = encode(problem)
    if ids is not None and len(ids) and max(ids) >= vocab_size:
      raise ValueError(f"{problem.where}: has the id {max(ids)}, the model only {vocab_size}; "
                       f"config.data.tokenizer={tokenizer!r} and config.data.chat_template={chat_template!r} "
                       "must be those of the model")
    return ids

  return known


def prompt_text(problem: Problem) -> str:
  """Returns a prompt as rewards read it.

  The text, or the contents of its messages with blank lines between.
  """
  return reward_calls.text_of(problem.prompt)


def batch_generate(sampler: Sampler, encode: Callable, options: SamplingOptions, *, rows: int,
                   seed: int = 0) -> Callable:
  """Makes the function that has problems answered.

  Args:
    sampler: who answers.
    encode: see `encoder`.
    options: how; n must be 1.
    rows: prompts that are asked at a time; the last ones are repeated where fewer are left, so that there is
      one shape to compile for.
    seed: draws, where the temperature is not 0.

  Returns:
    (params, problems, *, step) -> `ProblemCompletions` of each problem, None for one whose prompt is skipped;
    `params` are what the sampler loads.
  """
  def write(params, found: Sequence[Problem], *, step: int) -> list[ProblemCompletions | None]:
    sampler.load(params, step)
    prompts = [(at, encode(problem)) for at, problem in enumerate(found)]
    asked = [(at, prompt.tolist()) for at, prompt in prompts if prompt is not None]
    written: list[ProblemCompletions | None] = [None] * len(found)
    for first in range(0, len(asked), rows):
      stopping.check()
      part = asked[first:first + rows]
      # Draws depend on the seed and the row of the call, so every call has a seed of its own; a repeated row
      # at its end is drawn but not read.
      filled = [*part, *[part[-1]] * (rows - len(part))]
      rollout = sampler.generate([prompt for _, prompt in filled], options, seed=seed + first)
      for row, (at, _) in enumerate(part):
        ids = rollout.tokens_BT[row, :rollout.length_B[row]].tolist()
        written[at] = ProblemCompletions(rollout.text_B[row], ids, rollout.reason_B[row])
    return written

  return write


def grader(rewards: Rewards) -> Callable:
  """Makes the function (problems, what was written for them, *, step) -> (reward_B, name -> reward_B).

  NaN where a reward has nothing to say.
  """
  def grade(found: Sequence[Problem], written: Sequence[ProblemCompletions], *, step: int):
    scores = rewards.score(found, [one.text for one in written], tokens=[one.tokens for one in written],
                           step=step)
    return scores.reward_B, scores.each

  return grade
