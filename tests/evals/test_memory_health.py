"""Health of memories: each number equals its computation by hand, over real tokens and over all segments."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.evals import memory_health
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Trained
from tests.evals.documents import Documents, lm_and_params, random_documents
from tests.helpers import quick_compilation, tiny_lm

LENGTHS = (170, 5, 9, 61, 30, 44)
LAYERS = ("layer_00", "layer_01")
FLOOR = 0.1  # Of the small model.


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def source(segment_len=12):
  return Documents(random_documents(LENGTHS), rows=4, segment_len=segment_len)


def one_device():
  return meshes.make(devices=jax.devices()[:1])


@functools.lru_cache
def measure():
  return memory_health.make(lm_and_params()[0], source, one_device())


@functools.partial(jax.jit, static_argnums=0)
def read(model, params, batch, state):
  out, kept = model.apply({"params": params}, batch["tokens_BT"], state, doc_BT=batch["doc_BT"],
                          mode="packed", mutable=["intermediates"])
  return out.state, kept["intermediates"]["blocks"]


def by_hand(params):
  """Sums per block over the real tokens: raw gates, rates, norms of the rows that were read."""
  model, text, sums = lm_and_params()[0], source(), {}
  state, tokens = model.zero_state(4), 0
  while True:
    try:
      batch = text.next(None)
    except StopIteration:
      return {name: total / tokens for name, total in sums.items()}, tokens
    state, kept = read(model, params, batch, state)
    real_BT = np.asarray(batch["doc_BT"]) >= 0
    tokens += real_BT.sum()
    gate_LBT = (np.asarray(kept["mix_gate"]["gate_BT"][0], np.float64) - FLOOR) / (1 - FLOOR)
    rate_LBT = np.asarray(kept["memory"]["tokens"][0]["write_rate_BT"], np.float64)
    fast = jax.tree.leaves(state.memory.running.memory.fast)
    norm_BLH = np.sqrt(sum(np.sum(np.asarray(w, np.float64) ** 2, axis=(3, 4)) for w in fast))
    for i, layer in enumerate(LAYERS):
      values = [np.linalg.svd(np.asarray(w[:, i], np.float64), compute_uv=False) for w in fast]
      found = {**spectra(values, real_BT.sum(1)),
               "raw_gate_mean": gate_LBT[i][real_BT].sum(), "write_rate_mean": rate_LBT[i][real_BT].sum(),
               "gate_mean": (FLOOR + (1 - FLOOR) * gate_LBT[i])[real_BT].sum(),
               "memory_norm": (norm_BLH[:, i].mean(1) * real_BT.sum(1)).sum()}
      for name, total in found.items():
        sums[f"eval/{name}/{layer}"] = sums.get(f"eval/{name}/{layer}", 0.0) + total


def spectra(values, read_B):
  """Of the singular values [B, H, n] of each matrix of a block, summed over rows by the tokens they read."""
  shares = [s / s.sum(-1, keepdims=True) for s in values]
  ranks = [np.exp(-np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0), -1)) for p in shares]
  found = {"effective_rank": ranks, "singular_value_00": [s[..., 0] for s in values],
           "singular_value_01": [s[..., 1] for s in values],
           "singular_value_mean": [s.mean(-1) for s in values]}
  return {name: (np.mean(parts, axis=0).mean(1) * read_B).sum() for name, parts in found.items()}


def with_gates(params, *, retention, mix):
  """Params whose memory gates and mixing gates are the same at every token."""
  blocks = dict(params["blocks"])
  gates = blocks["memory"]["gates"]
  third = gates["bias"].shape[1] // 3
  bias = gates["bias"].at[:, :third].set(math.log(math.expm1(-math.log(retention))))
  blocks["memory"] = blocks["memory"] | {"gates": {"kernel": 0 * gates["kernel"], "bias": bias}}
  gate = blocks["mix_gate"]
  blocks["mix_gate"] = {"kernel": 0 * gate["kernel"], "bias": 0 * gate["bias"] + mix}
  return {**params, "blocks": blocks}


def test_each_number_equals_its_computation_by_hand():
  params = lm_and_params()[1]
  scalars = measure()(Trained(params), step=0).scalars
  expected, tokens = by_hand(params)
  # Each document has a mark at its end.
  assert scalars["eval/memory_health_tokens"] == tokens == sum(LENGTHS) + len(LENGTHS)
  for name, value in expected.items():
    # Singular values are roots of those of a product in float32, see `memory.spectrum`.
    np.testing.assert_allclose(scalars[name], value, rtol=2e-3 if "rank" in name else 1e-4, err_msg=name)
  start = params["blocks"]["memory"]["initial_fast"]
  square_LH = sum(np.sum(np.asarray(w, np.float64) ** 2, axis=(2, 3)) for w in jax.tree.leaves(start))
  for i, layer in enumerate(LAYERS):
    ratio = expected[f"eval/memory_norm/{layer}"] / np.sqrt(square_LH)[i].mean()
    np.testing.assert_allclose(scalars[f"eval/memory_norm_ratio/{layer}"], ratio, rtol=1e-4)
  gates = [scalars[f"eval/raw_gate_mean/{layer}"] for layer in LAYERS]
  assert scalars["eval/raw_gate_mean_min_layer"] == min(gates) < max(gates)
  assert not any(name.startswith("eval/memory_norm_in_values") for name in scalars)


def test_constant_gates_are_found_whatever_the_padding():
  """Six documents leave rows of padding alone behind: they must not pull a gate towards zero."""
  params = with_gates(lm_and_params()[1], retention=0.5 ** (1 / 20), mix=-6.0)
  out = measure()(Trained(params), step=0)
  for layer in LAYERS:
    np.testing.assert_allclose(out.scalars[f"eval/half_life_tokens/{layer}"], 20, rtol=1e-4)
    np.testing.assert_allclose(out.scalars[f"eval/raw_gate_mean/{layer}"], 1 / (1 + math.exp(6)), rtol=1e-4)
    assert out.scalars[f"eval/raw_gate_below_0.1_frac/{layer}"] == pytest.approx(1)
    assert out.scalars[f"eval/gate_mean/{layer}"] > FLOOR
    assert f"memory of {layer}: raw_gate_mean 0.00247" in out.text


def test_a_gate_that_is_no_number_leaves_the_least_one_unknown():
  params = with_gates(lm_and_params()[1], retention=0.9, mix=0.0)
  gate = params["blocks"]["mix_gate"]
  gate = gate | {"bias": gate["bias"].at[1].set(jnp.nan)}
  scalars = measure()(Trained({**params, "blocks": params["blocks"] | {"mix_gate": gate}}), step=0).scalars
  assert scalars["eval/raw_gate_mean/layer_00"] == pytest.approx(0.5)
  assert math.isnan(scalars["eval/raw_gate_mean/layer_01"])
  assert math.isnan(scalars["eval/raw_gate_mean_min_layer"])


@pytest.mark.parametrize("mix", ["e2e", "context"])
def test_other_mixes_have_what_they_have(mix):
  """Inner steps have no gate and no common retention; segments of padding alone have no gates to tell of."""
  model, params, _ = tiny_lm(memory_mix=mix, depth=1, memory_layers=(0,), window_tokens=4)
  if mix == "context":
    gate = params["blocks"]["mix_gate"]
    params = {**params, "blocks": params["blocks"] | {"mix_gate": jax.tree.map(jnp.zeros_like, gate)}}
  scalars = memory_health.make(model, source, one_device())(Trained(params), step=0).scalars
  if mix == "e2e":
    spectra = {name for name in scalars if name.startswith(("eval/effective_rank", "eval/singular_value_"))}
    assert "eval/effective_rank/layer_00" in spectra
    assert scalars.keys() - spectra == {"eval/memory_health_tokens", "eval/memory_norm/layer_00",
                                        "eval/memory_norm_ratio/layer_00"}
  else:
    assert scalars["eval/raw_gate_mean/layer_00"] == pytest.approx(0.5, rel=1e-5)
    assert scalars["eval/half_life_tokens/layer_00"] < 1e4


def test_a_rule_that_forgets_nothing_has_no_half_life():
  model, params, _ = tiny_lm(memory=dict(rule="linear_attention"), depth=1)
  scalars = memory_health.make(model, source, one_device())(Trained(params), step=0).scalars
  assert "eval/half_life_tokens/layer_00" not in scalars
  assert 0 < scalars["eval/write_rate_mean/layer_00"] < 1
  assert scalars["eval/inner_loss_ratio/layer_00"] <= 1  # It aims at directions: scaled as suits it best.


def test_a_text_without_tokens_says_so_and_a_model_without_memory_is_refused():
  out = memory_health.result({})
  assert out.scalars == {"eval/memory_health_tokens": 0.0} and "held_out_frac" in out.text
  with pytest.raises(ValueError, match="memory_mix='none'"):
    memory_health.make(lm_and_params()[0].clone(memory_mix="none"), source, one_device())
