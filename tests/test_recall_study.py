"""The study of all rules on far recall: its texts, its sizes, and what it measures."""

import jax
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import recipes
from atlas_jax.data import source as sources
from atlas_jax.memory import rules
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Trained
from experiments.rules_on_recall import config as settings
from experiments.rules_on_recall import recipe, sizes, task

FIELDS = {"source": "experiments.rules_on_recall.task", "name": "far", "segment_len": 400, "batch_rows": 5,
          "seed": 3}


def test_every_question_asks_for_a_pair_and_says_how_far_it_is():
  batch = sources.load(**FIELDS).next(None)
  assert set(batch["pairs_BT"].ravel()) <= {0, *task.PAIRS}
  for tokens_T, targets_T, distance_T, pairs_T in zip(*(batch[name] for name in (
      "tokens_BT", "targets_BT", "distance_BT", "pairs_BT"))):
    last, value = {}, {}
    for at in range(1, 399, task.WIDTH):
      key, shown = int(tokens_T[at]), int(tokens_T[at + 1])
      assert tokens_T[at - 1] == task.MARK < key <= task.KEYS < shown < task.VOCAB
      if key in last:
        assert distance_T[at] == at - last[key] >= 6 and targets_T[at] == value[key] == shown
      else:
        assert distance_T[at] == targets_T[at] == 0
      last[key], value[key] = at, shown
    assert len(value) <= pairs_T.max() and not set(tokens_T[1:132:3]) & set(tokens_T[136:265:3])
    assert set(np.flatnonzero(pairs_T)) == set(np.flatnonzero(distance_T)) and distance_T.max() > 130
  assert np.array_equal(batch["weight_BT"] > 0, batch["distance_BT"] > 0)


@pytest.mark.parametrize("rule", rules.names())
def test_states_are_of_one_size_within_an_eighth(rule):
  assert abs(sizes.floats(rule, sizes.width_of(rule)) / sizes.FLOATS - 1) <= 0.15


@pytest.mark.parametrize("arm", ["rule=tnt", "none", "unwritten"])
def test_an_untrained_model_is_at_chance_in_all_ways(arm):
  asked = settings.get_config(f"{arm},rows=2")
  asked.data.segment_len, asked.eval.batch_rows, asked.eval.max_tokens = 384, 2, 1
  asked.model.memory.update(key_dim=8, value_dim=8)
  config, mesh = configs.resolve(asked), meshes.make(devices=jax.devices()[:1])
  made = recipes.load(config, mesh)
  scalars = made.evals["recall"].run(Trained(made.init(jax.random.key(0)).params), step=0).scalars
  ways = ("as_is",) if arm == "none" else recipe.WAYS
  assert {name for name in scalars if "across" in name} == {f"val/across_{way}" for way in ways}
  assert all(np.isnan(value) or value < 0.3 for value in scalars.values())
  assert scalars["val/across_as_is"] < 0.2
