"""The train state: what it holds, where its leaves live, and that placing them changes nothing."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atlas_jax import config as configs
from atlas_jax import state as states
from atlas_jax import tree
from atlas_jax.language import pretraining
from atlas_jax.models import placement
from atlas_jax.optim import build as optim
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Init
from configs import memory_40m
from tests.helpers import assert_same_bits


def small(rng):
  params = {"embed": jax.random.normal(rng, (96, 64)), "final_norm": {"scale": jnp.ones(64)}}
  return Init(params, frozen={"embed": params["embed"]}, carry={"fast": jnp.zeros((8, 3))})


def args(ema_decay=None, seed=5):
  return small, lambda params: optax.adam(1e-3), ema_decay, seed


@pytest.fixture
def cube():
  return meshes.make(data=2, fsdp=2, tensor=2)


@pytest.mark.core
def test_a_state_starts_at_step_zero_with_the_recipes_parameters():
  state = states.create(*args())
  assert int(state.step) == int(state.skipped) == int(state.skipped_in_row) == 0
  assert state.ema == ()
  assert_same_bits(state.params, states.first(small, 5).params)
  assert_same_bits(jax.random.key_data(state.rng), jax.random.key_data(jax.random.key(5)))
  assert not np.array_equal(state.params["embed"], states.create(*args(seed=6)).params["embed"])


def test_an_average_starts_as_the_parameters():
  state = states.create(*args(ema_decay=0.9))
  assert_same_bits(state.ema, state.params)


def test_a_state_built_on_many_devices_is_that_of_one(cube):
  abstract = states.abstract(cube, *args(ema_decay=0.9))
  built = states.build(abstract, *args(ema_decay=0.9))
  assert jax.tree.map(lambda x: x.sharding, built) == jax.tree.map(lambda x: x.sharding, abstract)
  plain = states.create(*args(ema_decay=0.9))
  assert_same_bits(built._replace(rng=()), plain._replace(rng=()))


def test_moments_and_average_lie_with_their_parameters_and_the_carry_by_rows(cube):
  state = states.abstract(cube, *args(ema_decay=0.9))
  specs = {name: leaf.sharding.spec for name, leaf in tree.named_leaves(state)}
  embeds = [spec for name, spec in specs.items() if name.endswith("embed")]
  assert len(embeds) == 4 and len(set(embeds)) == 1 and any(embeds[0])
  assert specs["carry/fast"] == jax.sharding.PartitionSpec(("data", "fsdp"))


@pytest.mark.parametrize("arg", (None, "baseline", "cpu"))
def test_nothing_large_of_the_main_job_is_whole_on_every_device(arg, cube):
  """At full size, with an average; nothing is computed."""
  config = configs.resolve(memory_40m.get_config(arg))
  model = pretraining.model_of(config)

  def init(rng):
    dummy = jnp.zeros((1, config.model.memory.chunk_size), jnp.int32)
    params = model.init(rng, dummy, model.zero_state(1), doc_BT=dummy)["params"]
    return Init(params, carry=model.zero_state(config.data.batch_rows))

  state = states.abstract(cube, init, lambda params: optim.build(params, **config.optim), 0.999, config.seed)
  assert tree.size_bytes(state.params) > 8 * 2**20
  assert tree.count(state.ema) == tree.count(state.params)
  assert placement.large_replicated(cube, state) == []
