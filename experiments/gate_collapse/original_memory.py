"""The original's inner step: powers of unnormalised keys, a step beyond the stable one, a clip of the norm.

  phi(x) = (1, x, x^2 / 2), of keys of mean square 1
  G = 1/C sum_i r_i phi(k_i) (phi(k_i) W - v_i)^T over a chunk, at the W it starts with
  S = m S - G;  W = a W + S, a the product of the chunk's retentions;  then W is cut to an allowed norm
  y_t = phi(q_t) W at the chunk's start

Causal, unlike the original's. Its step at width 384 is r mean|phi|^2 = 51: rate .05, context gate .49, mean
square 1,044, times 2 of the squared error. Here it is 25; powers are alike along half of that length, and the
longest step that converges along it is 2 (1 + m) = 3.8. The original's clip of 50 lets reads be 56 times as
long as values; here that is a norm of 9.

Source: the memory of Behrouz et al. 2025, Atlas, arXiv:2505.23735, as the program that the README names has
it.
"""
import functools
import math

import jax
import jax.numpy as jnp

from atlas_jax.memory.types import ChunkOut, GateStarts, Learned, MemoryRule, MemoryState

MOMENTUM = 0.9
STEP = 25.0
NORM_MAX = 9.0
CHUNK_RETENTION = 0.99


def make(*, key_dim: int, value_dim: int, chunk_size: int, step_size: float = STEP,
         norm_max: float = NORM_MAX) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim, chunk_size: as of every rule.
    step_size: the rate at the start times the mean square length of lifted keys.
    norm_max: the Frobenius norm to which the memory is cut.
  """
  def init(key):
    del key
    return Learned({"w0": jnp.zeros((3 * key_dim, value_dim), jnp.float32)}, {})

  rate = step_size / (2.75 * key_dim)  # Of keys with normal components |phi|^2 is 2.75 key_dim.
  starts = GateStarts(retention=CHUNK_RETENTION ** (1 / chunk_size), write_rate=rate,
                      write_rate_max=10 * rate)
  return MemoryRule(init=init, start=start, step=functools.partial(step, chunk_size), apply=apply,
                    chunk=functools.partial(chunk, chunk_size), close=functools.partial(close, norm_max),
                    uses=("log_retention", "write_rate"), starts=starts, reads="chunk")


def lifted(x_K):
  """Returns powers of a unit vector brought to mean square 1; also with leading axes."""
  x_K = x_K * math.sqrt(x_K.shape[-1])
  return jnp.concatenate([jnp.ones_like(x_K), x_K, 0.5 * x_K * x_K], axis=-1)


def start(learned: Learned) -> MemoryState:
  """Returns a memory that has read nothing; it keeps the chunk's gradient and the log of its retention."""
  zero = jnp.zeros_like(learned.fast["w0"])
  return MemoryState(learned.fast, zero, {"grad": zero, "log": jnp.zeros((), zero.dtype)})


def apply(slow, base, x_K):
  """Returns what a memory recalls."""
  del slow
  return lifted(x_K) @ base["w0"]


def step(chunk_size, slow, state, base, token, gates, place):
  """Reads one token, and adds its gradient to those of its chunk."""
  del place
  key_P = lifted(token.k)
  grad_PM = gates.write_rate / chunk_size * jnp.outer(key_P, key_P @ base["w0"] - token.v)
  kept = {"grad": state.kept["grad"] + grad_PM, "log": state.kept["log"] + gates.log_retention}
  return state._replace(kept=kept), apply(slow, base, token.q)


def chunk(chunk_size, slow, state, base, prepared):
  """Reads a chunk, or a part of one: what `step` does token by token."""
  tokens, gates, write_C, _ = prepared
  write_C = write_C.astype(gates.write_rate.dtype)
  key_CP = lifted(tokens.k)
  error_CM = key_CP @ base["w0"] - tokens.v
  grad_PM = key_CP.T @ (error_CM * (write_C * gates.write_rate)[:, None]) / chunk_size
  kept = {"grad": state.kept["grad"] + grad_PM,
          "log": state.kept["log"] + jnp.sum(gates.log_retention * write_C)}
  square_C = jax.lax.stop_gradient(jnp.sum(error_CM * error_CM, -1))
  return state._replace(kept=kept), ChunkOut(apply(slow, base, tokens.q), jnp.sqrt(square_C), 0.5 * square_C)


def close(norm_max, slow, state, base):
  """Writes the chunk, and cuts the memory to the norm that is allowed."""
  del slow, base
  momentum_PM = MOMENTUM * state.momentum - state.kept["grad"]
  fast_PM = jnp.exp(state.kept["log"]) * state.fast["w0"] + momentum_PM
  square = jnp.maximum(jnp.sum(fast_PM * fast_PM), norm_max**2)
  kept = jax.tree.map(jnp.zeros_like, state.kept)
  return MemoryState({"w0": fast_PM * norm_max * jax.lax.rsqrt(square)}, momentum_PM, kept)
