"""Texts that are written on from rings: token by token, many turns on, each row for itself."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from atlas_jax.language.decoding import engine
from atlas_jax.models import blocks, ring
from tests.helpers import assert_close, quick_compilation, tiny_lm

T = 15  # Five windows of the tiny model.
RINGED = ("conv", "gate", "layer", "none")


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def begun(model, params, tokens_BT, count_B):
  """Returns the state behind the first count_B tokens of each row, with rings."""
  state = model.zero_state(len(tokens_BT))
  out = model.apply({"params": params}, tokens_BT, state, count_B=count_B, mode="stream")
  return model.with_rings(out.state)


def stepper(model, params):
  @jax.jit
  def step(state, token_B):
    out = model.apply({"params": params}, token_B[:, None], state, mode="stream")
    return out.state, out.hidden_BTD[:, 0]

  return step


@pytest.mark.parametrize("name, given", [(name, {}) for name in RINGED] + [
    ("gate", dict(memory_layers=(1,), depth=4)), ("only", dict(memory_layers=(0,))),
    ("gate", dict(ngram_embed=freeze({"max_n": 3, "table_rows": 16}), memory_layers=(1,)))])
def test_tokens_read_one_by_one_equal_one_parallel_pass(x64, name, given):
  """Rows stand at different places: one has read nothing, one less than a window, one more."""
  model, params, tokens_BT = tiny_lm(memory_mix=name, B=3, T=T, dtype="float64", **given)
  whole = model.apply({"params": params}, tokens_BT, model.zero_state(3), mode="stream").hidden_BTD
  count_B = np.array([0, 2, 5], np.int32)
  state, step = begun(model, params, tokens_BT, jnp.asarray(count_B)), stepper(model, params)
  assert isinstance(state.attention, ring.Rings)
  for n in range(T - 5):
    place_B = count_B + n
    state, hidden_BD = step(state, tokens_BT[np.arange(3), place_B])
    assert_close(hidden_BD, whole[np.arange(3), place_B], tolerance=1e-9)


def test_a_row_has_the_same_bits_whatever_the_others_do():
  model, params, tokens_BT = tiny_lm(B=2, T=T)
  step = stepper(model, params)
  alone = begun(model, params, tokens_BT[:1], jnp.array([4], jnp.int32))
  late = begun(model, params, tokens_BT[1:], jnp.array([7], jnp.int32))
  def join(*rows):
    return engine.by_rows(lambda axis, *parts: jnp.concatenate(parts, axis), model.ring_row_axes, *rows)

  states = [join(alone, late), join(late, alone)]  # Of two rows both: one row is another product of matrices.
  found = []
  for at, state in enumerate(states):
    for n in range(8):
      token_B = np.array([tokens_BT[0, 4 + n], tokens_BT[1, 7 + n]])
      state, hidden_BD = step(state, token_B[::-1] if at else token_B)
      found.append(np.asarray(hidden_BD[at]))
  np.testing.assert_array_equal(found[:8], found[8:])


def test_a_window_that_is_cut_shorter_is_so_for_a_ring():
  model, params, tokens_BT = tiny_lm(memory_mix="none", T=T)
  read = lambda tokens, state, **given: model.apply({"params": params}, tokens, state, mode="stream",
                                                    seen_tokens=jnp.int32(2), **given)
  plain = read(tokens_BT[:, :6], model.zero_state(2)).state
  found = read(tokens_BT[:, 6:7], model.with_rings(plain))
  assert_close(found.hidden_BTD, read(tokens_BT[:, 6:7], plain).hidden_BTD, tolerance=1e-5)


def test_a_state_with_rings_stays_so_and_takes_no_other_calls():
  model, params, tokens_BT = tiny_lm()
  state = model.with_rings(model.zero_state(2))
  assert model.with_rings(state) is state
  for length, given in ((2, {}), (1, dict(count_B=jnp.ones(2, jnp.int32)))):
    with pytest.raises(ValueError, match="reads one token of each row"):
      model.apply({"params": params}, tokens_BT[:, :length], state, mode="stream", **given)


@pytest.mark.parametrize("name", sorted(set(blocks.names()) - set(RINGED)))
def test_other_mixes_keep_their_states(name):
  model = tiny_lm(memory_mix=name, window_tokens=4)[0]
  state = model.zero_state(1)
  assert model.with_rings(state) is state
