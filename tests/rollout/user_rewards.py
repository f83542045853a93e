"""Rewards as users write them, for tests that load them by name."""

import asyncio
import functools
import math
import sys

import numpy as np

CALLS = []


def boom(prompt, completion, answer):
  """Raises for one completion."""
  return 1 / (completion != "2")


VALUES = {
  "nan": math.nan,
  "inf": math.inf,
  "text": "1",
  "list": [1.0],
  "none": None,
  "true": True,
  "numpy": np.float32(0.5),
  "array": np.array(0.25),
  "row": np.array([1.0]),
  "large": 1e39,
  "huge": 10**400,
  "endless": 10**5000,
  "complex": 1j,
  "whole": 3,
}


def strange(prompt, completion, answer):
  """Returns what no reward may give, as the answer says."""
  return VALUES[answer]


def strange_list(completions, answer):
  """Returns it for all completions."""
  return [VALUES[one] for one in answer]


def curious(prompt, completion, answer, tokens, length, extra):
  """Asks for all it may."""
  return sum(tokens) + 10 * length + 100 * extra["level"]


def needs_question(question, completion, answer):
  """Asks for a column."""
  return float(question == completion)


def no_parameters():
  """Asks for nothing."""
  return 0.0


def mixed(prompts, completion):
  """Is neither of one completion nor of all."""
  return 0.0


# --- with TRL's signature ---


def longer(completion_ids, **kwargs):
  """Rewards long completions: example 1 of TRL's guide."""
  return [float(len(ids)) for ids in completion_ids]


def formatted(completions, **kwargs):
  """Reads messages: example 2."""
  return [1.0 if message[0]["content"].startswith("<think>") else 0.0 for message in completions]


def matches(completions, ground_truth, **kwargs):
  """Compares with a column: example 3."""
  return [1.0 if one == truth else 0.0 for one, truth in zip(completions, ground_truth)]


def by_task(prompts, completions, task, **kwargs):
  """Has nothing to say of other tasks: example 4."""
  return [1.0 if kind == "math" else None for _, kind in zip(prompts, task)]


async def slow(prompts, completions, **kwargs):
  """Is async: example 5."""
  CALLS.append("slow began")
  await asyncio.sleep(0.01)
  CALLS.append("slow ended")
  return [0.5] * len(completions)


async def slow_one(completion):
  """Is async, of one completion."""
  CALLS.append("one began")
  await asyncio.sleep(0.01)
  CALLS.append("one ended")
  return float(len(completion))


async def leaves(completion):
  """Ends the program when awaited."""
  sys.exit(f"no {completion}")


def extends(prompts, completions, tags, **kwargs):
  """Adds to what it is given, as in prompt + completion."""
  for prompt, completion, tag in zip(prompts, completions, tags):
    prompt += completion
    tag.append("seen")
  return [float(len(prompt)) for prompt in prompts]


def extends_one(completion, tokens, extra):
  """Adds to what it is given of one completion."""
  extra["tags"].append("seen")
  tokens.append(0)
  return float(len(tokens) + len(extra["tags"]))


async def slow_boom(completion):
  """Raises when awaited."""
  await asyncio.sleep(0)
  raise KeyError(completion)


def logging(completions, log_extra, log_metric, trainer_state, **kwargs):
  """Logs: example 6."""
  log_extra("lengths", [len(one) for one in completions])
  log_metric("mean", sum(map(len, completions)) / len(completions))
  return [trainer_state.global_step / trainer_state.max_steps] * len(completions)


def everything(**kwargs):
  """Takes whatever there is."""
  CALLS.append(sorted(kwargs))
  return [0.0] * len(kwargs["completions"])


def too_few(completions):
  """Returns one number too few."""
  return [0.0] * (len(completions) - 1)


def as_array(completions):
  """Returns an array."""
  return np.arange(len(completions), dtype=np.float32)


def as_number(completions):
  """Returns one number for all."""
  return 1.0


def as_generator(completions):
  """Returns no list."""
  return (1.0 for _ in completions)


# --- other things that can be called ---


def scaled(completion, scale=2.0, level=1):
  """Has defaults, one of which may be a column."""
  return scale * len(completion) + 100 * level


def only_positions(prompt, completion, /):
  """Takes its parameters by position."""
  return float(len(prompt) - len(completion))


class Length:
  """An object that can be called."""

  def __init__(self, factor):
    self.factor = factor

  def __call__(self, completion):
    """Returns the length."""
    return self.factor * len(completion)

  async def later(self, completions):
    """Is async and a method."""
    return [self.factor for _ in completions]


length = Length(3)
later = Length(4).later
halved = functools.partial(scaled, scale=0.5)
bound = functools.partial(matches, ground_truth=["x", "x", "x"])
not_a_function = ["prompt", "completion"]
