"""Builds sources of rollouts that a scripted sampler writes, with rewards to score them."""
import math

import numpy as np

from atlas_jax.data import prompts, tokenizer
from atlas_jax.data.problems import Problem
from atlas_jax.language.decoding.sampler import SamplingOptions, ScriptedSampler
from atlas_jax.rollout import ask
from atlas_jax.rollout.groups import Scoring
from atlas_jax.rollout.rewards import Rewards
from atlas_jax.rollout.source import RolloutPlan, RolloutSource

BYTES = tokenizer.ByteTokenizer()
WORDS = ["", "a", "bb", "ccc", "dddd"]
OPTIONS = SamplingOptions(n=3, max_tokens=4, stop_tokens=(256,))


def size(prompt, completion, answer):
  """Earns its length; nothing to say of prompts that ask for silence."""
  return None if "silence" in prompt else len(completion)


def vowels(prompt, completion, answer):
  """Earns a vowel."""
  return float("a" in completion)


def breaks(prompt, completion, answer):
  """Raises or NaN for one word."""
  if completion == answer:
    raise KeyError("oh")
  return math.nan if prompt == "nan" else 0.0


def listed(*texts):
  """Problems of these prompts."""
  return prompts.ProblemList([Problem(f"f.jsonl:{line}", text, "1") for line,
                              text in enumerate(texts, start=1)])


def made(found=None, *, script=None, rewards=None, options=OPTIONS, scoring=None, seed=3, encode=None,
         place=(0, 1), old=lambda params, frozen, batch: 0.0 * batch["completion_BT"], workdir=None, **plan):
  """A source of a scripted sampler, and the sampler."""
  found = listed("p", "qq", "rrr", "ssss", "t") if found is None else found
  writer = ScriptedSampler(BYTES, script or (lambda text, params: WORDS))
  asked = prompts.PromptSource(found, batch_rows=options.n, group_size=options.n, seed=seed)
  scored = rewards if isinstance(rewards, Rewards) else Rewards(
      rewards or {"tests.rollout.rollouts.size": 1.0})
  given = RolloutSource(
      asked, writer, scored, encode=encode or ask.encoder(BYTES), options=options, seed=seed, tokenizer=BYTES,
      scoring=scoring or Scoring(), plan=RolloutPlan(**{"batch_rows": 6, **plan}), old_logprobs=old,
      workdir=workdir, process_index=place[0], process_count=place[1])
  return given, writer


def old_logprobs(params, frozen, batch):
  """Numbers that tell the rows of all processes apart."""
  del frozen
  return batch["completion_BT"] * 0.125 + params


def written(batch):
  """The texts of a batch's prompts and completions."""
  rows = range(len(batch["start_B"]))
  prompt = [BYTES.decode(batch["tokens_BS"][row, :batch["start_B"][row] + 1]) for row in rows]
  return list(zip(prompt, [BYTES.decode(batch["completion_BT"][row][batch["completion_mask_BT"][row]])
                           for row in rows]))


def same(left, right):
  """Whether two batches are bit-equal."""
  assert left.keys() == right.keys()
  for name in left:
    assert left[name].dtype == right[name].dtype
    np.testing.assert_array_equal(left[name], right[name], err_msg=name)
