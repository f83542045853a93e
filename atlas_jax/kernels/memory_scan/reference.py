"""The scan of an MLP memory with every token's gradient and weights in full: the definition."""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

ACTIVATIONS = {
    "identity": lambda x: x,
    "silu": lambda x: x * jax.lax.logistic(x),
    # The tanh form with sqrt(2 / pi), spelled out in operations that a kernel has.
    "gelu": lambda x: 0.5 * x * (1 + jnp.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))),
}


class Decay(NamedTuple):
  """Weights of the state before a chunk, and of the gradients in it, in each later state.

  With W_t and S_t the fast weights and momentum after token t of a chunk, W and S those before it, and grad_i
  the gradient of token i at W:
    W_t = fast[t] W + momentum[t] S - sum_i mix[t, i] grad_i
    S at the end = keep S - sum_i surprise[i] grad_i
  Padding has columns of 0. Without momentum, `momentum`, `keep` and `surprise` are ().
  """

  fast_GT: Any
  momentum_GT: Any
  mix_GNCC: Any  # [G, N, C, C]: row t, column i
  keep_GN: Any
  surprise_GNC: Any


class ScanForm(NamedTuple):
  """The memory: an MLP of the given matrices, and the bound of its surprise."""

  activation: str = "silu"  # a name in ACTIVATIONS, between matrices
  residual: bool = True  # whether the input is added to the output
  surprise_max: float | None = None  # longest gradient of a token over all matrices; None: no bound


def recall(form: ScanForm, fast, x_K):
  """Recalls with one set of weights."""
  h = x_K
  for i, w in enumerate(fast):
    h = (ACTIVATIONS[form.activation](h) if i else h) @ w
  return x_K + h if form.residual else h


def loss(form: ScanForm, fast, k_K, v_M):
  """Returns half the squared error of what is recalled under a key."""
  error_M = recall(form, fast, k_K) - v_M
  return 0.5 * jnp.sum(error_M * error_M)


def by_chunks(x, chunk_size: int):
  """Splits the second axis: [G, T, ...] to [G, N, C, ...]."""
  return x.reshape(x.shape[0], -1, chunk_size, *x.shape[2:])


def bound(form: ScanForm, square):
  """Returns the factor that brings a gradient of that squared norm within the bound."""
  if form.surprise_max is None:
    return jnp.ones_like(square)
  # 1 within the bound, and a norm of 0 is never divided by.
  return form.surprise_max * jax.lax.rsqrt(jnp.maximum(square, form.surprise_max**2))


def _surprise(form: ScanForm, fast, k_K, v_M):
  """Returns a token's bounded gradient, its norm before the bound, and its loss."""
  value, grad = jax.value_and_grad(functools.partial(loss, form))(fast, k_K, v_M)
  square = sum(jnp.sum(g * g) for g in grad)
  return [g * bound(form, square) for g in grad], jnp.sqrt(jax.lax.stop_gradient(square)), value


def _chunk(form: ScanForm, state, initial, chunk):
  (q_CK, k_CK, v_CM), decay, reset = chunk
  fresh = initial, jax.tree.map(jnp.zeros_like, state[1])
  fast, momentum = jax.tree.map(lambda new, old: jnp.where(reset, new, old), fresh, state)
  # All at the chunk's first weights: the chunk size belongs to the model, not to its speed.
  grads, norm_C, loss_C = jax.vmap(functools.partial(_surprise, form, fast))(k_CK, v_CM)
  # The weights after every token, [C, in, out]: what the dual form never makes.
  each = [jnp.multiply.outer(decay.fast_GT, w) - jnp.tensordot(decay.mix_GNCC, g, 1)
          for w, g in zip(fast, grads)]
  if momentum:
    each = [w + jnp.multiply.outer(decay.momentum_GT, s) for w, s in zip(each, momentum)]
    momentum = [decay.keep_GN * s - jnp.tensordot(decay.surprise_GNC, g, 1) for s, g in zip(momentum, grads)]
  out_CM = jax.vmap(functools.partial(recall, form))(each, q_CK)
  return ([w[-1] for w in each], momentum), (out_CM, norm_C, jax.lax.stop_gradient(loss_C))


def memory_scan(q_GTK, k_GTK, v_GTM, decay: Decay, reset_GN, initial, fast, momentum, *, chunk_size: int,
                form: ScanForm):
  """Reads one chunk after the other, in time and memory T times the weights; arguments as in the package."""
  def head(tokens, decay, reset_N, initial, fast, momentum):
    def body(state, chunk):
      return _chunk(form, state, initial, chunk)

    (fast, momentum), out = jax.lax.scan(body, (fast, momentum), (tokens, decay, reset_N))
    return *(x.reshape(-1, *x.shape[2:]) for x in out), fast, momentum

  split = functools.partial(by_chunks, chunk_size=chunk_size)
  tokens = tuple(split(x) for x in (q_GTK, k_GTK, v_GTM))
  decay = decay._replace(fast_GT=split(decay.fast_GT), momentum_GT=jax.tree.map(split, decay.momentum_GT))
  arguments = (tokens, decay, reset_GN, initial, fast, momentum)
  out_GTM, surprise_GT, loss_GT, fast, momentum = jax.vmap(head)(*arguments)
  return out_GTM, fast, momentum, surprise_GT, loss_GT
