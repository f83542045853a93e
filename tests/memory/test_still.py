"""A memory that writes nothing stands still, and an empty one tells nothing of what it was or learned."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import scan
from atlas_jax.memory.types import Learned, by_steps
from tests.helpers import (
  SHIFTED,
  assert_close,
  assert_same_bits,
  quick_compilation,
  random_gates,
  random_tokens,
  tiny_memory,
  tiny_rule,
)
from tests.memory.contract import CHUNK, VARIANT_IDS, VARIANTS, WIDTH, N, case

every_variant = pytest.mark.parametrize("name,options", VARIANTS, ids=VARIANT_IDS)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@functools.partial(jax.jit, static_argnums=0)
def stand(rule, learned, tokens, gates):
  """Reads without writing, from the start; the last token but two is padding."""
  read_T = jnp.ones((N,), bool).at[-2].set(False)
  memory = rule.start(learned)
  after, out = scan.scan_packed(rule, memory, learned, tokens, gates, jnp.zeros((N,), bool),
                                jnp.zeros((N // CHUNK,), bool), chunk_size=CHUNK, read_T=read_T)
  return memory, after, out.out_CM


@every_variant
def test_what_writes_nothing_changes_nothing_and_reads_alike_by_chunks_and_by_steps(x64, name, options):
  one = case(name, options, "float64")
  before, after, out_TM = stand(one.rule, one.learned, one.tokens, one.gates)
  assert_same_bits(after, before)
  assert_close(stand(by_steps(one.rule), one.learned, one.tokens, one.gates)[2], out_TM)
  assert not np.any(out_TM[-2]) and np.all(np.isfinite(out_TM))
  other = random_tokens(5, N, key_dim=WIDTH, value_dim=WIDTH, dtype="float64")
  gates = one.as_used(random_gates(5, N, rule=one.rule, dtype="float64"))
  assert_same_bits(stand(one.rule, one.learned, other._replace(q=one.tokens.q), gates)[2], out_TM)


@every_variant
def test_an_empty_memory_reads_alike_whatever_it_learned_as_its_start(x64, name, options):
  one = case(name, options, "float64")
  _, started = tiny_rule(name, seed=9, dtype="float64", chunk_size=CHUNK, **options)
  # Only tnt has starts among its constants.
  slow = started.slow if name == "tnt" else one.learned.slow
  reads = [stand(one.rule, one.rule.empty(learned), one.tokens, one.gates)[2]
           for learned in (one.learned, Learned(started.fast, slow))]
  assert_same_bits(*reads)
  if not options.get("global_memory", True):
    return  # Local memories are asked for nothing while no key was written.
  assert np.abs(stand(one.rule, one.learned, one.tokens, one.gates)[2] - reads[0]).max() > 1e-3


@functools.partial(jax.jit, static_argnums=0)
def apply(layer, params, x_BTD, writes=None):
  doc_BT = jnp.zeros(x_BTD.shape[:2], jnp.int32)
  state = layer.zero_state(x_BTD.shape[0])
  return layer.apply({"params": params}, x_BTD, state, doc_BT, doc_BT[:, 0] - 1, None, mode="packed",
                     writes=writes)


LAYERS = [dict(rule="titans"), dict(rule="titans", impl="reference"),
          dict(rule="atlas"), SHIFTED]


@pytest.mark.parametrize("fields", LAYERS)
def test_a_layer_that_may_write_is_the_layer(x64, fields):
  """Up to rounding: one is told so as data: these are two programs, which the compiler fuses each its way."""
  layer, params, x_BTD = tiny_memory(dtype="float64", **fields)
  assert_close(apply(layer, params, x_BTD, True), apply(layer, params, x_BTD))


@pytest.mark.parametrize("fields", LAYERS)
def test_a_layer_that_may_not_write_keeps_its_learned_start_and_reads_it(fields):
  layer, params, x_BTD = tiny_memory(**fields)
  out_BTHM, state, _ = apply(layer, params, x_BTD, False)
  start = layer.zero_fast() if layer.initial == "zero" else params["initial_fast"]
  assert_same_bits(state.running.memory.fast, jax.tree.map(lambda w: jnp.stack([w] * 2), start))
  assert (np.abs(out_BTHM).max() == 0) == (layer.initial == "zero")
  whole_BTHM, _, _ = apply(layer, params, x_BTD)
  assert np.abs(np.asarray(whole_BTHM - out_BTHM))[:, 1:].max() > 1e-3


def test_writes_are_shut_off_in_packed_text_alone():
  layer, params, x_BTD = tiny_memory()
  doc_BT = jnp.zeros(x_BTD.shape[:2], jnp.int32)
  with pytest.raises(ValueError, match="in mode='packed' alone, not in mode='stream'"):
    layer.apply({"params": params}, x_BTD, layer.zero_state(2), doc_BT, doc_BT[:, 0], None, mode="stream",
                writes=False)
