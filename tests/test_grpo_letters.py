"""The toy of the study grpo_letters: its reward, its prompts and its shapes are what the peers had."""

import pytest

from atlas_jax import config as configs
from atlas_jax.command import read_config
from atlas_jax.data import prompts
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.rollout import held_out, rewards
from experiments.grpo_letters.reward import letters

CONFIG = "experiments/grpo_letters/config.py"


def test_the_reward_is_the_share_of_ids_that_are_ascii_letters():
  ids = [ord("a"), ord("Z"), ord("@"), ord("["), ord("`"), ord("{"), 0xE4, 900]
  assert letters("", "", None, ids) == 2 / 8
  assert letters("", "", None, []) == 0.0


@pytest.mark.parametrize("arg", ["", ":small"])
def test_the_config_asks_64_prompts_of_32_ids_for_64_more_that_nothing_ends(arg):
  config = configs.resolve(read_config(CONFIG + arg))
  start = load_initial_model(config)
  found = prompts.load(config.data.name, files=config.data.files, split="train", held_out_frac=0.0, seed=0,
                       options={}, fields={}, download=False)
  encode = held_out.encoder_of(config, start)
  assert {len(encode(problem)) for problem in found.first(100)} == {32} and found.count == 64
  options = held_out.options_of(config, start, n=config.data.group_size, temperature=1.0)
  assert (options.n, options.max_tokens, options.stop_tokens) == (4, 64, ()) and config.data.batch_rows == 32
  assert rewards.Rewards(rewards.parse_weights(config.rewards)).weights
