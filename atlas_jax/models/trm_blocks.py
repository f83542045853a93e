"""Blocks of the recursive models: post-norm, a mixer over positions, then a gated feed-forward layer.

A block's parameters are a dictionary of arrays, handed to pure functions, because one stack of blocks is
called many times in a step and some of the calls run inside loops. Arrays are [B, T, D] for attention and
[T, B, D] for the token MLP: with positions first, both of its halves are single products of large matrices.
"""
import math

import jax
import jax.numpy as jnp

from atlas_jax import tree

MIXERS = ("attention", "mlp")
WIDTH_STEP = 256  # Hidden widths are multiples of it.
# The deviation of a standard normal cut at two: dividing by it gives the cut one the deviation asked for.
CUT_DEVIATION = 0.87962566103423978


def truncated_normal(key, shape, deviation: float, dtype=jnp.float32):
  """Draws from a normal cut so that the result has the deviation asked for; it stays within 2.2737 of it."""
  unit = jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)
  return unit * jnp.asarray(deviation / CUT_DEVIATION, dtype)


def hidden_width(inputs: int, expansion: float) -> int:
  """Gives the hidden width of a gated layer: two thirds of expansion * inputs, up to a multiple of 256."""
  return math.ceil(round(expansion * inputs * 2 / 3) / WIDTH_STEP) * WIDTH_STEP


def unit_rms(x, eps: float, axis: int = -1):
  """Scales to root mean square one along an axis, in float32 or wider; gives x's dtype."""
  full = x.astype(tree.wide(x.dtype))
  return (full * jax.lax.rsqrt(jnp.mean(full * full, axis, keepdims=True) + eps)).astype(x.dtype)


def angles(positions: int, size: int, base: float):
  """Gives cosine and sine of rotary positions 0, 1, ..., each [T, size / 2], float32.

  Source: Su et al. 2021, arXiv:2104.09864.
  """
  speed = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
  angle = jnp.arange(positions, dtype=jnp.float32)[:, None] * speed[None]
  return jnp.cos(angle), jnp.sin(angle)


def turn(x_BTHK, turns):
  """Turns features i and i + K/2 of every head by the angle of their position, in float32; in x's dtype."""
  if turns is None:
    return x_BTHK
  cos, sin = (part.astype(tree.wide(x_BTHK.dtype))[None, :, None] for part in turns)
  left, right = jnp.split(x_BTHK.astype(cos.dtype), 2, axis=-1)
  return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x_BTHK.dtype)


def init_block(key, *, mixer: str, width: int, positions: int, heads: int, expansion: float) -> dict:
  """Draws the parameters of one block; every matrix has deviation 1 / sqrt(inputs)."""
  keys = jax.random.split(key, 4)
  ff = hidden_width(width, expansion)
  mlp = {"gate_up_kernel": truncated_normal(keys[0], (width, 2 * ff), width**-0.5),
         "out_kernel": truncated_normal(keys[1], (ff, width), ff**-0.5)}
  if mixer == "mlp":
    hidden = hidden_width(positions, expansion)
    mix = {"gate_up_kernel": truncated_normal(keys[2], (2 * hidden, positions), positions**-0.5),
           "out_kernel": truncated_normal(keys[3], (positions, hidden), hidden**-0.5)}
    return {"token_mlp": mix, "mlp": mlp}
  inner = heads * (width // heads)
  mix = {"qkv_kernel": truncated_normal(keys[2], (width, 3 * inner), width**-0.5),
         "out_kernel": truncated_normal(keys[3], (inner, width), inner**-0.5)}
  return {"attention": mix, "mlp": mlp}


def block(weights: dict, x, *, heads: int, eps: float, turns):
  """Runs one block.

  Args:
    weights: what `init_block` gives; the mixer it has is the one that runs.
    x: [B, T, D] with attention, [T, B, D] with the token MLP, in the dtype of all arithmetic but norms.
    heads: of attention.
    eps: of the norms.
    turns: what `angles` gives, or None for attention without positions.

  Returns:
    As x. The norm after the token MLP is taken over positions, all others over features.
  """
  if "token_mlp" in weights:
    x = unit_rms(x + token_mlp(weights["token_mlp"], x), eps, axis=0)
  else:
    x = unit_rms(x + attention(weights["attention"], x, heads=heads, turns=turns), eps)
  return unit_rms(x + channel_mlp(weights["mlp"], x), eps)


def channel_mlp(weights: dict, x):
  """The gated feed-forward layer over features: (silu(x W_gate) * x W_up) W_out."""
  cast = lambda w: w.astype(x.dtype)
  gate, up = jnp.split(x @ cast(weights["gate_up_kernel"]), 2, axis=-1)
  return (jax.nn.silu(gate) * up) @ cast(weights["out_kernel"])


def token_mlp(weights: dict, x_TBD):
  """The gated feed-forward layer over positions, the same for every feature; [T, B, D]."""
  cast = lambda w: w.astype(x_TBD.dtype)
  hidden = jnp.einsum("ft,tbd->fbd", cast(weights["gate_up_kernel"]), x_TBD)
  gate, up = jnp.split(hidden, 2, axis=0)
  return jnp.einsum("tf,fbd->tbd", cast(weights["out_kernel"]), jax.nn.silu(gate) * up)


def attention(weights: dict, x_BTD, *, heads: int, turns):
  """Attention of every position to every position; softmax in float32 or wider; [B, T, D]."""
  cast = lambda w: w.astype(x_BTD.dtype)
  rows, length = x_BTD.shape[:2]
  qkv = (x_BTD @ cast(weights["qkv_kernel"])).reshape(rows, length, 3, heads, -1)
  q_BTHK, k_BTHK, v_BTHK = turn(qkv[:, :, 0], turns), turn(qkv[:, :, 1], turns), qkv[:, :, 2]
  wide = tree.wide(x_BTD.dtype)
  scores = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK, preferred_element_type=wide)
  share = jax.nn.softmax(scores * jnp.asarray(q_BTHK.shape[-1] ** -0.5, wide), axis=-1).astype(x_BTD.dtype)
  mixed_BTHK = jnp.einsum("bhts,bshk->bthk", share, v_BTHK)
  return mixed_BTHK.reshape(rows, length, -1) @ cast(weights["out_kernel"])
