"""Data made up for a plan have the sizes that the config allows at most, and are named."""
import json

import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax.command import read_config
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.plan import stand_in, update


@pytest.mark.parametrize("size", [257, 300])
def test_a_tokenizer_has_as_many_tokens_as_it_is_asked_for(size, tmp_path):
  pytest.importorskip("tokenizers")
  stand_in.write_tokenizer(tmp_path / "tokenizer.json", size)
  found = tokenizers.load(str(tmp_path))
  assert found.vocab_size == size and found.decode(found.encode("a line, 12.")) == "a line, 12."


def test_many_tokens_are_joined_from_more_than_two(tmp_path):
  stand_in.write_tokenizer(tmp_path / "tokenizer.json", 66_000)
  model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
  assert len(model["vocab"]) == 66_000 - 1 and max(map(len, model["vocab"])) == 3


def test_a_tokenizer_of_less_than_all_bytes_is_refused(tmp_path):
  with pytest.raises(ValueError, match="vocab_size=256 must be at least 257"):
    stand_in.write_tokenizer(tmp_path / "tokenizer.json", 256)


def prepared(spec, **overrides):
  texts = {name: str(value) for name, value in overrides.items()}
  return update.prepare(configs.resolve(read_config(spec, texts)))


def test_a_text_and_its_tokenizer_are_made_up():
  pytest.importorskip("tokenizers")
  changed = {"data.tokenizer": "runs/none", "model.vocab_size": 300}
  planned = prepared("configs/memory_40m.py:smoke", **changed)
  assert planned.batch["tokens_BT"].shape == (4, 256) and "tokenizer of 300 tokens" in planned.made_up[0]


def test_ranked_responses_fill_their_rows():
  planned = prepared("configs/atlas_ranked.py:smoke", **{"data.files": "data/none.json"})
  rows, count, length = planned.batch["tokens_BGT"].shape
  assert (rows, count, length) == (planned.config.data.batch_rows, stand_in.RESPONSES,
                                   planned.config.data.segment_len)
  assert np.all(planned.batch["mask_BGT"][..., -1]) and "groups of 4 responses" in planned.made_up[0]


def test_completions_are_as_long_as_they_may_be():
  planned = prepared("configs/grpo_arithmetic.py:smoke")
  longest = planned.config.data.max_prompt_tokens + planned.config.sampler.max_tokens
  assert planned.batch["completion_mask_BT"].sum(axis=1).min() == planned.config.sampler.max_tokens
  assert planned.batch["tokens_BS"].shape[1] == longest
  again = prepared("configs/grpo_arithmetic.py:smoke", **{"rollout.updates_per_batch": 2})
  assert again.batch["old_logprob_BT"].shape == again.batch["completion_BT"].shape
  rollout = stand_in.LongestSampler(5).generate([[1], [2]], SamplingOptions(max_tokens=3, n=2), 0)
  assert rollout.tokens_BT.shape == (4, 3)
