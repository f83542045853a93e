"""Inner steps on the model's own loss: against a plain loop over mini-batches, and when they are taken."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.models import head, memories
from tests.helpers import assert_close, freeze, quick_compilation, tiny_lm
from tests.models.test_lm import DOCUMENTS, gradient_of, packed, wide_as

INNER = dict(batch_tokens=4, ff_width=16, rate=0.5, clip_norm=0.7)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def model_of(**given):
  fields = dict(memory_mix="e2e", depth=3, memory_layers=(1,), dtype="float64", inner=freeze(INNER)) | given
  return tiny_lm(**fields)


# --- the loop ---


def rms(x_TD, scale_D):
  return x_TD / jnp.sqrt(jnp.mean(x_TD**2, -1, keepdims=True) + 1e-6) * scale_D[None]


def gated(x_TD, weights):
  hidden_TF = jax.nn.silu(x_TD @ weights["gate_kernel"]) * (x_TD @ weights["up_kernel"])
  return hidden_TF @ weights["out_kernel"]


def turned(x_THK, first):
  """Rotary positions, from `first` on."""
  half = x_THK.shape[-1] // 2
  angle_TK = (first + np.arange(len(x_THK)))[:, None] * 10_000.0 ** (-np.arange(half) / half)[None]
  cos, sin = np.cos(angle_TK)[:, None], np.sin(angle_TK)[:, None]
  left, right = x_THK[..., :half], x_THK[..., half:]
  return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1)


def block(weights, x_TD, seen, first, window_tokens, fast=None):
  """One block on the tokens from `first` on; `seen` are keys and values of the tokens before them."""
  h_TD = rms(x_TD, weights["norm_mix"]["scale"])
  q, k, v = jnp.split(jnp.einsum("td,dhe->the", h_TD, weights["attention"]["qkv_kernel"]), 3, axis=-1)
  k, v = (jnp.concatenate([old, new]) if len(old) else new for old, new in zip(seen, (turned(k, first), v)))
  score = jnp.einsum("thk,shk->hts", turned(q, first), k) * q.shape[-1] ** -0.5
  lag_TS = (first + np.arange(len(x_TD)))[:, None] - np.arange(len(k))[None]
  near_TS = (lag_TS >= 0) & (lag_TS < window_tokens)
  weight = jax.nn.softmax(jnp.where(near_TS[None], score, -1e30), axis=-1)
  attended = jnp.einsum("hts,shk->thk", weight, v)
  x_TD = x_TD + jnp.einsum("thk,hkd->td", attended, weights["attention"]["out"]["kernel"])
  if fast is not None:
    x_TD = x_TD + gated(rms(x_TD, weights["norm_fast"]["scale"]), fast)
  return x_TD + gated(rms(x_TD, weights["norm_mlp"]["scale"]), weights["mlp"]), (k, v)


def mini_batch(params, model, fast, x_TD, tokens_T, seen, first):
  """The loss of a mini-batch; its hidden vectors, and keys and values for the next."""
  middle, above = (jax.tree.map(lambda x: x[0], params[f"blocks_{i}"]) for i in (1, 2))
  y_TD, one = block(middle, x_TD, seen[0], first, model.window_tokens, fast)
  y_TD, two = block(above, y_TD, seen[1], first, model.window_tokens)
  hidden_TD = rms(y_TD, params["final_norm"]["scale"])
  logprob_TV = jax.nn.log_softmax(hidden_TD[:-1] @ params["embed"].T)
  return -jnp.mean(logprob_TV[jnp.arange(len(x_TD) - 1), tokens_T[1:]]), (hidden_TD, (one, two))


def loop(params, tokens_T, model):
  """The model on one document: hidden vectors, and the fast weights after it."""
  size = model.inner["batch_tokens"]
  x_TD = params["embed"][tokens_T] * model.width**0.5
  below = jax.tree.map(lambda x: x[0], params["blocks_0"])
  x_TD, _ = block(below, x_TD, ((), ()), 0, model.window_tokens)
  fast = jax.tree.map(lambda x: x[0], params["blocks_1"]["fast_mlp"])
  seen, hidden = [((), ()), ((), ())], []
  for first in range(0, len(tokens_T), size):
    batch = x_TD[first : first + size], tokens_T[first : first + size]
    loss = functools.partial(mini_batch, params, model)
    gradient, (out_TD, seen) = jax.grad(loss, has_aux=True)(fast, *batch, seen, first)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
    rate = model.inner["rate"] * jnp.minimum(1, model.inner["clip_norm"] / norm)
    fast = jax.tree.map(lambda w, step: w - step, fast, jax.tree.map(rate.__mul__, gradient))
    hidden.append(out_TD)
  return jnp.concatenate(hidden), fast


def test_outputs_fast_weights_and_gradients_equal_a_loop_over_mini_batches(x64):
  """Gradients go through the inner ones: of every parameter, the learned start among them."""
  model, params, tokens_BT = model_of()
  state = wide_as(params, model.zero_state(2))

  def ours(params):
    out = model.apply({"params": params}, tokens_BT, state, doc_BT=jnp.zeros_like(tokens_BT))
    return jnp.sum(jnp.sin(out.hidden_BTD)), (out.hidden_BTD, out.state.memory.fast)

  def theirs(params):
    hidden_BTD, fast = jax.vmap(lambda tokens_T: loop(params, tokens_T, model))(tokens_BT)
    return jnp.sum(jnp.sin(hidden_BTD)), (hidden_BTD, jax.tree.map(lambda w: w[:, None], fast))

  (_, found), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
  (_, expected), wanted = jax.jit(jax.value_and_grad(theirs, has_aux=True))(params)
  assert_close(found, expected)
  assert_close(gradient, wanted)
  start = params["blocks_1"]["fast_mlp"]
  moved = jax.tree.map(lambda w, w0: np.abs(np.asarray(w[:, 0] - w0)).max(), found[1], start)
  assert min(jax.tree.leaves(moved)) > 1e-3, "no step was taken"


def test_reading_a_mini_batch_again_in_the_backward_pass_changes_nothing(x64):
  model, params, tokens_BT = model_of()
  assert_close(*(gradient_of(m, params, tokens_BT, DOCUMENTS) for m in (model.clone(remat="block"), model)))


def test_a_document_starts_with_the_learned_weights_wherever_it_begins(x64):
  model, params, tokens_BT = model_of()
  doc_BT = jnp.asarray([[3] * 8 + [4] * 4, [5] * 4 + [6] * 8], jnp.int32)
  together_BTV, _ = packed(model, params, tokens_BT, doc_BT)
  alone_BTV, _ = packed(model, params, jnp.roll(tokens_BT, 4, axis=1), jnp.zeros_like(tokens_BT))
  assert_close(together_BTV[0, 8:], alone_BTV[0, :4])
  later_BTV, _ = packed(model, params, jnp.roll(tokens_BT, -4, axis=1))
  assert not np.allclose(together_BTV[0, 4:8], later_BTV[0, :4])


@pytest.mark.parametrize("writes", [False, True])
def test_writes_that_are_shut_off_take_no_step(writes):
  model, params, tokens_BT = model_of(dtype="float32")
  read = lambda tokens_BT: model.apply({"params": params}, tokens_BT, model.zero_state(2),
    doc_BT=jnp.zeros_like(tokens_BT), memory_writes=jnp.asarray(writes))  # fmt: skip
  fast = jax.jit(read)(tokens_BT).state.memory.fast
  start = memories.learned_memory(model, params).fast
  same = [np.allclose(w, w0[None]) for w, w0 in zip(jax.tree.leaves(fast), jax.tree.leaves(start))]
  assert not any(same) if writes else all(same)


def test_the_memories_are_emptied_started_and_swapped():
  model, params, tokens_BT = model_of(dtype="float32")
  _, state = packed(model, params, tokens_BT)
  learned = memories.learned_memory(model, params)
  fresh = memories.started(model, learned, state).memory.fast
  assert_close(fresh, jax.tree.map(lambda w: jnp.broadcast_to(w[None], (2, *w.shape)), learned.fast))
  swapped = memories.swapped(model, state).memory.fast
  assert_close(jax.tree.map(lambda w: w[::-1], swapped), state.memory.fast)
  empty = memories.emptied(model, learned)
  assert not any(np.any(w) for w in jax.tree.leaves(empty))
  other = memories.with_learned(model, params, empty)
  scaled = packed(model, params, tokens_BT, memory_scale=0.0)[0]
  frozen = model.clone(inner=freeze(INNER | dict(rate=1e-30)))
  assert_close(packed(frozen, other, tokens_BT)[0], scaled, tolerance=1e-5)


def test_the_gradient_of_a_long_step_is_bounded_and_that_of_a_short_one_is_not(x64):
  _, params, tokens_BT = model_of()
  fast = {}
  for clip_norm in (None, 1e3, 1e-3):
    model = model_of(inner=freeze(INNER | dict(clip_norm=clip_norm)))[0]
    fast[clip_norm] = packed(model, params, tokens_BT[:, :4])[1].memory.fast
  assert_close(fast[None], fast[1e3])
  start = memories.learned_memory(model, params).fast
  moved = jax.tree.map(lambda w, w0: w - w0[None], fast[1e-3], start)
  norm_B = sum(np.square(np.asarray(w)).sum(axis=(1, 2, 3)) for w in jax.tree.leaves(moved)) ** 0.5
  assert_close(norm_B, np.full(2, 0.5 * 1e-3), tolerance=1e-8)


def test_decoding_takes_a_step_only_where_a_mini_batch_ends():
  model, params, tokens_BT = model_of(dtype="float32")
  step = jax.jit(functools.partial(model.apply, mode="stream"))
  state, moved = model.zero_state(2), []
  for t in range(9):
    before = state.memory.fast["out_kernel"]
    state = step({"params": params}, tokens_BT[:, t : t + 1], state).state
    moved.append(bool(np.any(np.asarray(state.memory.fast["out_kernel"] != before))))
  assert moved == [True, False, False, True, False, False, False, True, False]  # The first is the start.
  assert head.logits(params, state.memory.rows[:, :1]).shape == (2, 1, model.vocab_size)
