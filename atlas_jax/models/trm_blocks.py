"""Blocks of the recursive models: post-norm, a mixer over positions, then a gated feed-forward layer.

A block's parameters are a dictionary of arrays, handed to pure functions, because one stack of blocks is
called many times in a step and some of the calls run inside loops. Arrays are [B, T, D] for attention and
[T, B, D] for the token MLP: with positions first, both of its halves are single products of large matrices.
"""
import functools
import math

import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.memory.norms import inverse_rms
from atlas_jax.models import rope
from atlas_jax.models.layers import gated

MIXERS = ("attention", "mlp")
WIDTH_STEP = 256  # Hidden widths are multiples of it.
# The deviation of a standard normal cut at two: dividing by it gives the cut one the deviation asked for.
CUT_DEVIATION = 0.87962566103423978


def truncated_normal(key, shape, deviation: float, dtype=jnp.float32):
  """Draws from a normal cut so that the result has the deviation asked for; it stays within 2.2737 of it."""
  unit = jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)
  return unit * jnp.asarray(deviation / CUT_DEVIATION, dtype)


def hidden_width(inputs: int, expansion: float) -> int:
  """Returns the hidden width of a gated layer: two thirds of expansion * inputs, up to a multiple of 256."""
  # Two thirds, since a gated layer has three matrices where a plain one has two; 4 and 512 make 1,536.
  return math.ceil(round(expansion * inputs * 2 / 3) / WIDTH_STEP) * WIDTH_STEP


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def rms_normalize(x, eps: float, axis: int = -1):
  """Scales to root mean square one along an axis, in float32 or wider; gives x's dtype."""
  return _rms_normalize(x, eps, axis)[0]


def _rms_normalize(x, eps: float, axis: int):
  full = x.astype(tree.accumulation_dtype(x.dtype))
  scale = inverse_rms(full, eps=eps, axis=axis)
  y = (full * scale).astype(x.dtype)
  return y, (y, scale)


def _rms_normalize_vjp(eps: float, axis: int, kept, grad):
  # The result is kept for the layer behind anyway, so that the input need not be.
  y, scale = kept
  full = y.astype(scale.dtype)
  grad = grad.astype(scale.dtype)
  # With y = s x and s = (mean x^2 + eps)^-.5, dx = s (dy - y mean(y dy)): exact, eps included.
  along = jnp.mean(full * grad, axis, keepdims=True)
  return ((grad - full * along) * scale).astype(y.dtype),


rms_normalize.defvjp(_rms_normalize, _rms_normalize_vjp)


def init_block(key, *, mixer: str, width: int, positions: int, heads: int, expansion: float) -> dict:
  """Draws the parameters of one block; every matrix has deviation 1 / sqrt(inputs)."""
  keys = jax.random.split(key, 4)
  ff = hidden_width(width, expansion)
  mlp = {"gate_up_kernel": truncated_normal(keys[0], (width, 2 * ff), width**-0.5),
         "out_kernel": truncated_normal(keys[1], (ff, width), ff**-0.5)}
  if mixer == "mlp":
    hidden = hidden_width(positions, expansion)
    # Matrices that act on positions from the left: [outputs, inputs].
    mix = {"gate_up_kernel": truncated_normal(keys[2], (2 * hidden, positions), positions**-0.5),
           "out_kernel": truncated_normal(keys[3], (positions, hidden), hidden**-0.5)}
    return {"token_mlp": mix, "mlp": mlp}
  inner = heads * (width // heads)
  mix = {"qkv_kernel": truncated_normal(keys[2], (width, 3 * inner), width**-0.5),
         "out_kernel": truncated_normal(keys[3], (inner, width), inner**-0.5)}
  return {"attention": mix, "mlp": mlp}


def block(weights: dict, x, *, heads: int, eps: float, cos_sin):
  """Runs one block.

  Args:
    weights: what `init_block` gives; the mixer it has is the one that runs.
    x: [B, T, D] with attention, [T, B, D] with the token MLP, in the dtype of all arithmetic but norms.
    heads: of attention.
    eps: of the norms.
    cos_sin: cosine and sine of the positions, [T, K/2], see `rope.cos_sin`; None: no positions.

  Returns:
    As x. The norm after the token MLP is taken over positions, all others over features.
  """
  if "token_mlp" in weights:
    x = rms_normalize(x + token_mlp(weights["token_mlp"], x), eps, axis=0)
  else:
    x = rms_normalize(x + attention(weights["attention"], x, heads=heads, cos_sin=cos_sin), eps)
  return rms_normalize(x + channel_mlp(weights["mlp"], x), eps)


def channel_mlp(weights: dict, x):
  """The gated feed-forward layer over features: (silu(x W_gate) * x W_up) W_out."""
  flat = x.reshape(-1, x.shape[-1])
  return gated_right(flat, weights["gate_up_kernel"], weights["out_kernel"]).reshape(x.shape)


def token_mlp(weights: dict, x_TBD):
  """The gated feed-forward layer over positions, the same for every feature; [T, B, D]."""
  flat = x_TBD.reshape(x_TBD.shape[0], -1)
  return gated_left(flat, weights["gate_up_kernel"], weights["out_kernel"]).reshape(x_TBD.shape)


@jax.custom_vjp
def gated_right(x, gate_up, out):
  """Returns (silu(x gate) * x up) out, with gate and up side by side in one matrix.

  The backward pass keeps x and its product with gate_up, and computes everything between again.
  """
  return _gated_right(x, gate_up, out)[0]


def _gated_right(x, gate_up, out):
  # Gate and up in one product: one pass over x.
  hidden = x @ gate_up.astype(x.dtype)
  return gated(*jnp.split(hidden, 2, axis=1)) @ out.astype(x.dtype), (x, hidden, gate_up, out)


def _gated_right_grad(kept, grad):
  x, hidden, gate_up, out = kept
  # Behind the barrier, else silu's values would be shared with the forward pass, that is, kept.
  hidden, grad = _apart(hidden, grad)
  gate, up = jnp.split(hidden, 2, axis=1)
  gated_grad = _product(grad, out.astype(x.dtype), 1, 1, x.dtype)
  out_grad = _product(gated(gate, up), grad, 0, 0, out.dtype)
  hidden_grad = jnp.concatenate(_gate_grads(gate, up, gated_grad), axis=1)
  x_grad = _product(hidden_grad, gate_up.astype(x.dtype), 1, 1, x.dtype)
  return x_grad, _product(x, hidden_grad, 0, 0, gate_up.dtype), out_grad


gated_right.defvjp(_gated_right, _gated_right_grad)


@jax.custom_vjp
def gated_left(x, gate_up, out):
  """Returns out (silu(gate x) * up x), with gate above up in one matrix; see `gated_right`."""
  return _gated_left(x, gate_up, out)[0]


def _gated_left(x, gate_up, out):
  hidden = gate_up.astype(x.dtype) @ x
  return out.astype(x.dtype) @ gated(*jnp.split(hidden, 2, axis=0)), (x, hidden, gate_up, out)


def _gated_left_grad(kept, grad):
  x, hidden, gate_up, out = kept
  hidden, grad = _apart(hidden, grad)
  gate, up = jnp.split(hidden, 2, axis=0)
  gated_grad = _product(out.astype(x.dtype), grad, 0, 0, x.dtype)
  out_grad = _product(grad, gated(gate, up), 1, 1, out.dtype)
  hidden_grad = jnp.concatenate(_gate_grads(gate, up, gated_grad), axis=0)
  x_grad = _product(gate_up.astype(x.dtype), hidden_grad, 0, 0, x.dtype)
  return x_grad, _product(hidden_grad, x, 1, 1, gate_up.dtype), out_grad


gated_left.defvjp(_gated_left, _gated_left_grad)


def _apart(kept, grad):
  """Has the backward pass compute from `kept` again, not hold results of the forward pass."""
  return jax.lax.optimization_barrier((kept, grad))


def _gate_grads(gate, up, grad):
  """Returns the gradients to gate and up."""
  opened = jax.nn.sigmoid(gate)
  # silu(g) = g sigmoid(g), whose derivative is sigmoid(g) + g sigmoid(g) (1 - sigmoid(g)).
  passed = gate * opened
  return grad * up * (opened + passed * (1 - opened)), grad * passed


def _product(a, b, of_a: int, of_b: int, dtype):
  """Multiplies matrices, adding over the given axis of each."""
  return jax.lax.dot_general(a, b, (((of_a,), (of_b,)), ((), ())), preferred_element_type=dtype)


def attention(weights: dict, x_BTD, *, heads: int, cos_sin):
  """Attention of every position to every position, heads rotated by their positions; [B, T, D]."""
  rows, length, width = x_BTD.shape
  qkv = x_BTD.reshape(-1, width) @ weights["qkv_kernel"].astype(x_BTD.dtype)
  mixed_BTHK = attend(qkv.reshape(rows, length, 3, heads, -1), cos_sin)
  mixed = mixed_BTHK.reshape(rows * length, -1) @ weights["out_kernel"].astype(x_BTD.dtype)
  return mixed.reshape(x_BTD.shape)


@jax.custom_vjp
def attend(qkv, cos_sin):
  """Mixes values by the softmax of scaled products of queries and keys.

  Args:
    qkv: queries, keys and values, [B, T, 3, H, K].
    cos_sin: cosine and sine by which queries and keys are rotated, see `block`; None: not at all.

  Returns:
    [B, T, H, K] in the dtype of qkv; scores and their softmax are float32 or wider.
  """
  return _attend(qkv, cos_sin)[0]


def _attend(qkv, cos_sin):
  # With positions and features last, both products run over one matrix per row and head, without copies.
  q_BHTK, k_BHTK, v_BHTK = (jnp.swapaxes(qkv[:, :, i], 1, 2) for i in range(3))
  q_BHTK = rotate(q_BHTK, cos_sin)
  k_BHTK = rotate(k_BHTK, cos_sin)
  prob = _probabilities(q_BHTK, k_BHTK)
  mixed_BHTK = _per_head(prob.astype(v_BHTK.dtype), v_BHTK, 3, 2, qkv.dtype)
  heads, length, size = q_BHTK.shape[1:]
  # Weights are T T numbers a head, up to T = 3 K fewer than its queries, keys and values. Longer inputs would
  # fill the memory with them: there the backward pass computes them again.
  kept = prob if length <= 3 * size else None
  return jnp.swapaxes(mixed_BHTK, 1, 2), (q_BHTK, k_BHTK, v_BHTK, mixed_BHTK, kept, cos_sin)


def _attend_grad(kept, grad_BTHK):
  q_BHTK, k_BHTK, v_BHTK, mixed_BHTK, prob, cos_sin = kept
  dtype = q_BHTK.dtype
  wide = tree.accumulation_dtype(q_BHTK.dtype)
  prob = _probabilities(q_BHTK, k_BHTK) if prob is None else prob
  grad_BHTK = jnp.swapaxes(grad_BTHK, 1, 2)
  v_grad = _per_head(prob.astype(dtype), grad_BHTK, 2, 2, dtype)
  # The softmax's gradient is P (dP - sum over keys of P dP); that sum is the product of output and its
  # gradient, over K numbers in place of T.
  along = jnp.sum(grad_BHTK.astype(wide) * mixed_BHTK.astype(wide), -1, keepdims=True)
  score_grad = prob * (_per_head(grad_BHTK, v_BHTK, 3, 3, wide) - along)
  score_grad = (score_grad * _score_scale(q_BHTK)).astype(dtype)
  # A rotation's transpose is the rotation back.
  q_grad = rotate(_per_head(score_grad, k_BHTK, 3, 2, dtype), cos_sin, back=True)
  k_grad = rotate(_per_head(score_grad, q_BHTK, 2, 2, dtype), cos_sin, back=True)
  grads = [jnp.swapaxes(x_BHTK, 1, 2) for x_BHTK in (q_grad, k_grad, v_grad)]
  # Positions are constants.
  return jnp.stack(grads, axis=2), jax.tree.map(jnp.zeros_like, cos_sin)


attend.defvjp(_attend, _attend_grad)


def rotate(x_BHTK, cos_sin, *, back: bool = False):
  """Rotates the heads of every position, or back; as they are where there are no positions."""
  if cos_sin is None:
    return x_BHTK
  cos, sin = (part.astype(tree.accumulation_dtype(x_BHTK.dtype))[None, None] for part in cos_sin)
  return rope.apply_rope(x_BHTK, cos, -sin if back else sin)


def _probabilities(q_BHTK, k_BHTK):
  """Returns attention weights, of each position (row) for every other, [B, H, T, T], float32 or wider."""
  scores = _per_head(q_BHTK, k_BHTK, 3, 3, tree.accumulation_dtype(q_BHTK.dtype))
  return jax.nn.softmax(scores * _score_scale(q_BHTK), axis=-1)


def _score_scale(q_BHTK):
  return jnp.asarray(q_BHTK.shape[-1] ** -0.5, tree.accumulation_dtype(q_BHTK.dtype))


def _per_head(a, b, of_a: int, of_b: int, dtype):
  """Multiplies one matrix per row and head, adding over the given axis of each."""
  return jax.lax.dot_general(a, b, (((of_a,), (of_b,)), ((0, 1), (0, 1))), preferred_element_type=dtype)
