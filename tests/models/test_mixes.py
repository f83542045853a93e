"""What every mix of memory and attention must keep besides its contract: no token sees the future in any way.

By perturbation of each place, and by the Jacobian of each place's output, of mixes with the rules of configs.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import fields
from atlas_jax.models import blocks, head, memories, ngrams, segments
from atlas_jax.models import lm as lms
from atlas_jax.models.blocks import gate
from tests import oracles
from tests.helpers import (
  PAPER,
  SHIFTED,
  assert_close,
  freeze,
  quick_compilation,
  tiny_lm,
  trace_counter,
)
from tests.models.reading import check_causality, check_cut_calls
from tests.models.test_lm import (
  DOCUMENTS,
  MEMORY_FIELDS,
  SHIFT_FIELDS,
  gradient_of,
  packed,
  stream,
  wide_as,
)

FORMS = {"shifted": SHIFTED, "paper": PAPER, "tnt": dict(rule="tnt", options=freeze({"local_chunks": (2,)}))}
GIVEN = {"context": dict(window_tokens=6, memory=dict(chunk_size=3, conv_taps=3))}  # Two chunks to a segment.
NGRAMS = dict(ngram_embed=freeze({"max_n": 2, "table_rows": 512}))
# Rules of the configs; that of the flagship also in the mixes that `test_lm` does not read with.
PAIRS = [("layer", "shifted"), ("only", "paper"), ("context", "shifted"), ("context", "tnt"), ("e2e", "")]


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def model_of(name, form="shifted", dtype="float64", **given):
  """A tiny model; of bigrams it has embeddings, by which its inputs alone can be changed."""
  fields = dict(GIVEN.get(name, {}))
  memory = FORMS.get(form, {}) | fields.pop("memory", {}) | given.pop("memory", {})
  if form == "tnt":
    memory |= dict(chunk_size=4)
    fields |= dict(window_tokens=4)
  return tiny_lm(dtype=dtype, memory_mix=name, memory=memory, **(fields | given))


def reach(name, form):
  """For each place: which outputs a change of its token changes, and by which inputs each output changes."""
  model, params, tokens_BT = model_of(name, form, B=1, **NGRAMS)
  doc_1T = jnp.zeros((1, 12), jnp.int32)
  state = wide_as(params, model.zero_state(1))
  row_TS = ngrams.lookups(tokens_BT, state.ngram, doc_1T, state.doc_B, None, table_rows=512)[0][0]

  def outputs(tokens_T, table):
    given = params | {"ngram_embed": table}
    out = model.apply({"params": given}, tokens_T[None], state, doc_BT=doc_1T, mode="packed")
    return out.hidden_BTD[0]

  @jax.jit
  def both(tokens_T, table):
    change_ST = jnp.concatenate([jnp.eye(12, dtype=jnp.int32), jnp.zeros((1, 12), jnp.int32)])
    all_STD = jax.vmap(outputs, in_axes=(0, None))((tokens_T[None] + change_ST) % model.vocab_size, table)
    hidden_TD, back = jax.vjp(lambda table: outputs(tokens_T, table), table)
    direction_D = jnp.asarray(np.random.default_rng(0).normal(size=model.width), hidden_TD.dtype)
    unit_TTD = jnp.eye(12, dtype=hidden_TD.dtype)[:, :, None] * direction_D[None, None]
    by_table = jax.vmap(lambda one_TD: back(one_TD)[0][0])(unit_TTD)  # [T, rows, D]
    return jnp.abs(all_STD[:-1] - all_STD[-1:]).max(-1), jnp.abs(by_table[:, row_TS[1:, 0]]).max(-1)

  moved_TT, by_input_TT = jax.tree.map(np.asarray, both(tokens_BT[0], params["ngram_embed"]))
  return moved_TT, by_input_TT


@pytest.mark.parametrize("name,form", [*PAIRS, ("gate", "shifted"), ("gate", "tnt")])
def test_no_output_depends_on_a_later_token_and_every_one_on_its_own(x64, name, form):
  moved_TT, by_input_TT = reach(name, form)
  assert np.tril(moved_TT, -1).max() < 1e-13, "changing a token changes an output before it"
  assert (np.diag(moved_TT) > 1e-6).all()
  for t in range(12):  # Of output t, row t has the gradients by the inputs of tokens 1 to 11.
    assert not by_input_TT[t, t:].any(), f"output {t} has a gradient by a later input"
    assert t == 0 or by_input_TT[t, t - 1] > 1e-6
  assert moved_TT[1, -1] > 1e-9, "what attention cannot see is not remembered"


def no_mask(lag_TS, position_BT):
  return jnp.broadcast_to((lag_TS < 99)[None], (len(position_BT), *lag_TS.shape))


def read_at_the_end(recall, parts, y_BTD, memory, call, mode, qkv_BTHE=None):
  """Reads with the memory of the whole segment."""
  _, after, stats = recall(parts, y_BTD, memory, call, mode, qkv_BTHE)
  late = after._replace(tail=memory.tail)
  out_BTHM, _, _ = parts.layer(y_BTD, late, call.doc_BT, call.doc_BT[:, 0], call.count_B, mode="recall",
                               token_BTD=call.token_BTD)  # fmt: skip
  return parts.out(out_BTHM.astype(y_BTD.dtype)), after, stats


@pytest.mark.parametrize("leak", ["memory tokens of the whole segment", "memory of the whole segment"])
def test_both_leaks_of_memory_as_a_context_are_caught_when_they_are_put_back(monkeypatch, x64, leak):
  width = 21 if leak.startswith("memory tokens") else 22  # Programs are cached by the model.
  if leak.startswith("memory tokens"):
    monkeypatch.setattr(segments, "visible", no_mask)
  else:
    monkeypatch.setattr(gate, "recall", functools.partial(read_at_the_end, gate.recall))
  with pytest.raises(AssertionError):
    check_causality(*model_of("context", memory=dict(retention_init=0.9), ff_width=width))


def test_calls_may_end_inside_of_any_chunk_of_a_segment(x64):
  check_cut_calls(*model_of("context", "paper"))


@pytest.mark.parametrize("name", ["layer", "only", "context", "e2e"])
def test_rows_that_stand_at_different_places_read_on_and_decode_by_one_program_each(x64, name):
  model, params, tokens_BT = model_of(name)
  whole_BTV, whole = packed(model, params, tokens_BT)
  state, at = None, np.zeros(2, int)
  for count in ((3, 7), (0, 2), (5, 0)):
    position_BT = np.minimum(at[:, None] + np.arange(12), 11)
    part_BT = jnp.take_along_axis(tokens_BT, jnp.asarray(position_BT), axis=1)
    out_BTV, state = stream(model, params, part_BT, state, jnp.asarray(count, jnp.int32))
    for b in range(2):
      assert_close(out_BTV[b, : count[b]], whole_BTV[b, at[b] : at[b] + count[b]], why=f"row {b}, {count}")
    at += count
  step, traces = trace_counter(
    lambda params, token_B1, state: model.apply({"params": params}, token_B1, state, mode="stream")[:2]
  )
  for t in range(9, 12):  # Row 0 stands at 8, and is given the token that row 1 is given a step later.
    token_B1 = jnp.stack([tokens_BT[0, t - 1 : t], tokens_BT[1, t : t + 1]])
    hidden_BTD, state = step(params, token_B1, state)
    found_BTV = head.logits(params, hidden_BTD)
    assert_close((found_BTV[0, 0], found_BTV[1, 0]), (whole_BTV[0, t - 1], whole_BTV[1, t]))
  assert len(traces) == 1
  last = jax.tree.map(lambda x: x[1], (state, whole))
  assert_close(*last)


@pytest.mark.parametrize("name", ["only", "context"])
def test_one_block_with_a_memory_goes_beside_blocks_of_attention(x64, name):
  check_cut_calls(*model_of(name, depth=3, memory_layers=(1,)))


@pytest.mark.parametrize("name", ["layer", "only", "context", "e2e"])
def test_every_parameter_has_a_gradient_from_the_start(x64, name):
  model, params, tokens_BT = model_of(name, "paper", noise=0.0)
  for path, grad in jax.tree_util.tree_leaves_with_path(gradient_of(model, params, tokens_BT)[1]):
    assert np.isfinite(grad).all() and np.abs(np.asarray(grad)).max() > 1e-9, jax.tree_util.keystr(path)


# --- the mixes against loops ---


def block_of(params, layer=0):
  return jax.tree.map(lambda x: np.asarray(x[layer], np.float64), params["blocks"])


def recalled(block, h_TD, doc_T, memory, gate_floor=0.1):
  """What a gated memory adds, by the loop."""
  out_THM, _ = oracles.memory_layer(block["memory"], h_TD, doc_T, **memory)
  gate_TH = oracles.sigmoid(h_TD @ block["mix_gate"]["kernel"] + block["mix_gate"]["bias"])
  gate_TH = gate_floor + (1 - gate_floor) * gate_TH
  return np.einsum("th,thm,hmd->td", gate_TH, out_THM, block["memory_out"]["kernel"])


def attended(attention, h_TD, doc_T, window_tokens):
  parts = np.split(np.einsum("td,dhe->the", h_TD, attention["qkv_kernel"]), 3, axis=-1)
  q, k = (oracles.rotated(part)[None] for part in parts[:2])
  seen_THK = oracles.local_attention(q, k, parts[2][None], doc_T[None], doc_T[None],
                                     window_tokens=window_tokens)[0]  # fmt: skip
  return np.einsum("thk,hkd->td", seen_THK, attention["out"]["kernel"])


def fed(block, x_TD):
  h_TD, mlp = oracles.rms(x_TD) * block["norm_mlp"]["scale"], block["mlp"]
  return (oracles.silu(h_TD @ mlp["gate_kernel"]) * (h_TD @ mlp["up_kernel"])) @ mlp["out_kernel"]


@pytest.mark.parametrize("name", ["layer", "only"])
def test_a_mix_equals_its_formula(x64, name):
  model, params, tokens_BT = model_of(name, "paper", depth=1)
  rule = memories.memory_rule(model)
  memory = {key: model.memory[key] for key in (*MEMORY_FIELDS, *SHIFT_FIELDS) if key in model.memory}
  memory |= dict(uses=rule.uses, own=rule.gates)
  block = block_of(params)
  logits_BTV = np.asarray(packed(model, params, tokens_BT, DOCUMENTS)[0])
  for b, (tokens_T, doc_T) in enumerate(zip(np.asarray(tokens_BT), DOCUMENTS)):
    x_TD = np.asarray(params["embed"], np.float64)[tokens_T] * np.sqrt(model.width)
    h_TD = oracles.rms(x_TD) * block["norm_mix"]["scale"]
    m_TD = recalled(block, h_TD, doc_T, memory)
    x_TD = x_TD + m_TD
    if name == "layer":
      h_TD = oracles.rms(h_TD + m_TD) * block["norm_attention"]["scale"]
      x_TD = x_TD + attended(block["attention"], h_TD, doc_T, model.window_tokens)
    x_TD = x_TD + fed(block, x_TD)
    final_TD = oracles.rms(x_TD) * np.asarray(params["final_norm"]["scale"], np.float64)
    expected_TV = final_TD @ np.asarray(params["embed"], np.float64).T
    assert_close(logits_BTV[b][doc_T >= 0], expected_TV[doc_T >= 0])


@pytest.mark.parametrize("name", ["layer", "context"])
def test_what_attention_and_memory_see_does_not_depend_on_the_size_of_the_blocks_input(x64, name):
  """In the first block inputs are small: added as they are, they would be drowned by what is recalled."""
  model, params, tokens_BT = model_of(name, depth=1)
  larger = params | {"embed": params["embed"] * 1000}
  found, wide = (packed(model, given, tokens_BT)[1] for given in (params, larger))
  chex.assert_trees_all_close((wide.attention, wide.memory), (found.attention, found.memory), rtol=1e-3,
                              atol=1e-4)  # fmt: skip


def test_attention_by_segments_equals_a_loop(x64):
  """Over learned tokens, recalled rows and tokens of the segment up to its own; any rows may be recalled."""
  width, heads, size = 8, 2, 4
  module = segments.SegmentAttention(heads, persistent_tokens=3, out_scale=1.0)
  draw = np.random.default_rng(0)
  x_BTD, r_BTD = (jnp.asarray(draw.normal(size=(1, 6, width))) for _ in range(2))
  zeros = jnp.zeros((1, 6, heads, size))
  doc_BT = jnp.asarray([[0, 0, 0, 0, 0, -1]])
  call = lms.Call(doc_BT, jnp.zeros(1, jnp.int32), None, jnp.float64(0.5), None, None, None)
  args = (x_BTD, r_BTD, lms.blocks.load("none").zero_state(fields_of(width, heads), 1, "float64").attention,
          segments.RecalledRows(zeros, zeros), jnp.zeros(1, jnp.int32), call)  # fmt: skip
  params = jax.jit(module.init)(jax.random.key(0), *args)
  out_BTD = module.apply(params, *args)[0]
  weights = jax.tree.map(np.asarray, params["params"])
  project = lambda x: np.split(np.einsum("td,dhe->the", x, weights["qkv_kernel"]), 3, axis=-1)
  q, k, v = project(np.asarray(x_BTD[0]))
  _, rk, rv = project(np.asarray(r_BTD[0]))
  _, pk, pv = project(weights["persistent"])
  turned_q, turned_k, turned_rk = (oracles.rotated(part) for part in (q, k, rk))
  for t in range(5):
    for h in range(heads):
      own, memory = turned_k[: t + 1, h] @ turned_q[t, h], turned_rk[: t + 1, h] @ turned_q[t, h]
      score = np.concatenate([own, memory + np.log(0.5) * 2, pk[:, h] @ q[t, h]]) / 2
      weight = np.exp(score - score.max())
      values = np.concatenate([v[: t + 1, h], rv[: t + 1, h], pv[:, h]])
      q[t, h] = (weight / weight.sum()) @ values  # Its place is free now.
  expected_TD = np.einsum("thk,hkd->td", q, weights["out"]["kernel"])
  assert_close(out_BTD[0, :5], expected_TD[:5], tolerance=1e-6)


def fields_of(width, heads):
  return blocks.mixing.BlockFields(width, heads, 6, 8, 0.0, 1.0, {}, "packed")


def test_memory_that_is_shut_off_leaves_attention_to_the_segment_and_learned_tokens(x64):
  """What the memory holds then changes nothing, nor does a row for every token."""
  model, params, tokens_BT = model_of("context")
  other = params | {"blocks": params["blocks"] | {"memory_tokens": {"kernel": 3 + 0 * params["blocks"][
    "memory_tokens"]["kernel"]}}}  # fmt: skip
  one, two = (packed(model, one, tokens_BT, memory_scale=0.0)[0] for one in (params, other))
  assert_close(one, two)
  assert np.abs(np.asarray(packed(model, other, tokens_BT)[0] - one)).max() > 1e-3


def test_a_mix_that_reads_before_attention_has_no_projections_to_share():
  shared = dict(qkv_source="attention", heads=8, key_dim=64, value_dim=64)
  for name in ("layer", "only", "context"):
    with pytest.raises(ValueError, match="qkv_source='attention' needs an attention that reads what the mem"):
      lms.build(fields.with_defaults("model", dict(memory_mix=name, memory=shared)))


def test_segments_are_whole_chunks():
  with pytest.raises(ValueError, match="window_tokens=96 is the length of segments.*nearest are 64 and 128"):
    fields.with_defaults("model", dict(memory_mix="context", window_tokens=96))
