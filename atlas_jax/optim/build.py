"""The optimizer from config: clip the global norm, scale by Adam, decay, apply the rate, all in float32.

Source: Loshchilov and Hutter 2019, arXiv:1711.05101 (decay apart from the gradient).
"""
import math
import re

import jax
import jax.numpy as jnp
import optax

from atlas_jax import tree
from atlas_jax.optim import freeze as freezing
from atlas_jax.optim import precision, schedules
from atlas_jax.optim.adam_atan2 import scale_by_adam_atan2
from atlas_jax.optim.factored import matrix_shape, scale_by_factored_adam
from atlas_jax.optim.orthogonal import orthogonal

NAMES = ("adamw", "adam_atan2")
STACKED = re.compile(r"blocks(_\d+)?")  # Leaves under such a name lead with depth.
GATES = ("gates", "mix_gate")  # Leaves under such a name decide how much a memory writes, keeps and enters.
PER_HEAD = ("slow", "initial_fast")  # Leaves under such a name lead with heads, after depth.
READ_INTO = (*PER_HEAD, "fast_mlp")  # Leaves under such a name are what a memory's weights start from.


def build(params_abstract, *, name: str, lr: float, warmup_steps: int, steps: int, schedule: str,
          decay_frac: float, final_lr_frac: float, beta1: float, beta2: float, eps: float,
          weight_decay: float, decay_of: str, clip_norm: float | None,
          ema_decay: float | None, gate_lr_scale: float = 1.0,
          freeze: str | None = None, orthogonal_grads: float | None = None,
          first_moment: str = "float32", second_moment: str = "float32") -> optax.GradientTransformation:
  """Makes the optimizer of a run from `config.optim`.

  Args:
    params_abstract: parameters or their ShapeDtypeStructs; names and shapes decide which are decayed.
    name: "adamw", or "adam_atan2" as tiny recursive models use it, which has no eps.
    lr, warmup_steps, steps, schedule, decay_frac, final_lr_frac: see `schedules.schedule`.
    beta1, beta2, eps: Adam's.
    weight_decay: fraction of a parameter taken off per update, times the learning rate.
    decay_of: "matrices", see `decay_mask`, or "all" parameters.
    clip_norm: the largest global gradient norm let through; None lets every one through.
    ema_decay: checked here; the moving average itself is kept by the training loop.
    gate_lr_scale: factor on the learning rate of a memory's gates, see `gate_mask`.
    freeze: patterns of the parameters that are not changed, see `freeze.mask`; None: all are trained.
    orthogonal_grads: fraction of a matrix's own direction taken out of its gradient, see `orthogonal`.
    first_moment: dtype of Adam's mean, "float32" or "bfloat16".
    second_moment: of Adam's mean square: "float32", "bfloat16", see `precision`, or "factored", see there.

  Returns:
    A chain whose moments are named like the parameters, so they are placed like them. It computes in float32
    or wider whatever the parameters are, and so are its updates; see `precision.apply_updates`.

  Raises:
    ValueError: for a field out of range, by its config name; for a pattern that matches nothing.
  """
  rate = schedules.schedule(lr=lr, warmup_steps=warmup_steps, steps=steps, schedule=schedule,
                            decay_frac=decay_frac, final_lr_frac=final_lr_frac)
  if name not in NAMES:
    raise ValueError(f"config.optim.name={name!r} is not known; choose one of {', '.join(NAMES)}")
  check(beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay, clip_norm=clip_norm,
        ema_decay=ema_decay, gate_lr_scale=gate_lr_scale)
  mask = decay_mask(params_abstract) if decay_of == "matrices" else None
  optimizer = optax.chain(
      _prepared(params_abstract, orthogonal_grads, clip_norm),
      _scale(params_abstract, name, beta1, beta2, eps, first_moment, second_moment),
      # Behind Adam, so that decay is not divided by the gradient's size (AdamW, Loshchilov and Hutter,
      # algorithm 2); before the rate, which multiplies it.
      optax.add_decayed_weights(weight_decay, mask=mask),
      optax.scale_by_learning_rate(rate))
  if gate_lr_scale != 1:
    # Behind Adam as well: its quotient would cancel a factor on the gradients.
    optimizer = optax.chain(optimizer, _scale_of_gates(params_abstract, gate_lr_scale))
  if freeze is not None:
    optimizer = freezing.wrap(optimizer, freezing.mask(params_abstract, freeze))
  return precision.widened(optimizer)


def _scale_of_gates(params_abstract, gate_lr_scale: float) -> optax.GradientTransformation:
  gates = gate_mask(params_abstract)
  if not any(jax.tree.leaves(gates)):
    raise ValueError(f"config.optim.gate_lr_scale={gate_lr_scale} has nothing to scale: no memory gate is "
                     "trained; set it to 1")
  return optax.masked(optax.scale(gate_lr_scale), gates)


def _scale(params_abstract, name: str, b1: float, b2: float, eps: float, first_moment: str,
           second_moment: str) -> optax.GradientTransformation:
  """Makes what divides gradients by their size."""
  if name == "adam_atan2":
    if (first_moment, second_moment) != ("float32", "float32"):
      raise ValueError(f"config.optim.first_moment={first_moment!r} and second_moment={second_moment!r} are "
                       "not for name='adam_atan2', whose moments are float32; set name='adamw'")
    return scale_by_adam_atan2(b1, b2)
  if second_moment == "factored":
    return scale_by_factored_adam(_matrices(params_abstract), b1, b2, jnp.dtype(first_moment))
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=jnp.dtype(first_moment))
  return precision.narrow_squares(adam) if second_moment == "bfloat16" else adam


def _prepared(params_abstract, orthogonal_grads: float | None, clip_norm: float | None):
  """Makes what happens to gradients before Adam."""
  # identity in place of nothing: the state keeps its tree, so a checkpoint fits with and without clipping.
  clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
  if orthogonal_grads is None:
    return clip
  # Projected before it is clipped: the paper's is the gradient that an optimizer is handed. Clipped first, a
  # part that is thrown away would use up the norm that is let through.
  project = orthogonal(own_axes(params_abstract), orthogonal_grads)
  return optax.GradientTransformation(  # One step, of no state, so that the state keeps its tree here, too.
      clip.init, lambda grads, state, params: clip.update(project.update(grads, state, params)[0], state))


def learning_rate(*, lr: float, warmup_steps: int, steps: int, schedule: str, decay_frac: float,
                  final_lr_frac: float, **others):
  """Returns the schedule `build` uses, from the same fields, for logging; the others it leaves to `build`."""
  del others  # Splatting the whole group is easier for a caller than picking the fields out.
  return schedules.schedule(lr=lr, warmup_steps=warmup_steps, steps=steps, schedule=schedule,
                            decay_frac=decay_frac, final_lr_frac=final_lr_frac)


def decay_mask(params_abstract):
  """Marks the leaves that are decayed: matrices, apart from convolutions and gates; never scales or biases.

  A leaf that leads with depth or with heads is what it is for one block and head: a vector per head is none.
  """
  return tree.map_named(lambda name, leaf: _is_matrix(name, leaf.shape), params_abstract)


def own_axes(params_abstract):
  """Counts, for each matrix of `decay_mask`, the first axes that count matrices: depth, heads; else -1."""
  def lead(name, leaf):
    parts = name.split("/")
    stacked = any(map(STACKED.fullmatch, parts))
    return stacked + any(part in PER_HEAD for part in parts) if _is_matrix(name, leaf.shape) else -1

  return tree.map_named(lead, params_abstract)


def _matrices(params_abstract):
  """Reads each leaf as stacked matrices, see `factored.matrix_shape`; None for those that are kept whole."""
  # What each head starts from is small, and placed by its axes of heads.
  return tree.map_named(
      lambda name, leaf, lead: None if _is_under(name, PER_HEAD) else matrix_shape(leaf.shape, lead),
      params_abstract, own_axes(params_abstract))


def kernel_mask(params_abstract):
  """Marks the leaves that `config.train.param_dtype` is of: kernels of products with activations in blocks.

  Not marked are vectors, gates and convolutions, what a memory's weights start from, and embeddings and
  heads, whose gradients are sums over very many tokens.
  """
  def marked(name, leaf):
    is_kernel = name.endswith("kernel") and any(map(STACKED.fullmatch, name.split("/")))
    return is_kernel and _is_matrix(name, leaf.shape) and not _is_under(name, READ_INTO)

  return tree.map_named(marked, params_abstract)


def gate_mask(params_abstract):
  """Marks the gates of memories: retention, momentum, write rate, a rule's own, and what lets reads in."""
  return tree.map_named(lambda name, _: _is_gate(name.split("/")), params_abstract)


def _is_under(name: str, parts: tuple[str, ...]) -> bool:
  return any(part in parts for part in name.split("/"))


def _is_gate(parts: list[str]) -> bool:
  return any(part in GATES for part in parts)


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
  parts = name.split("/")
  last = parts[-1]
  # Names first: a scale that leads with depth, [L, D], has the shape of a matrix.
  if last in ("scale", "bias") or last.endswith(("_bias", "_scale")) or any("conv" in part for part in parts):
    return False
  if _is_gate(parts):
    return False
  shape = shape[any(map(STACKED.fullmatch, parts)):]  # A bool as an index: 1 drops the axis of depth.
  if any(part in PER_HEAD for part in parts):
    return sum(size > 1 for size in shape[1:]) >= 2  # An inner bias is a matrix of one row.
  return len(shape) >= 2


def check(*, beta1: float, beta2: float, eps: float, weight_decay: float, clip_norm: float | None,
          ema_decay: float | None, gate_lr_scale: float = 1.0) -> None:
  """Refuses optimizer fields out of range; works without a device."""
  for name, value, good, need in (
      ("beta1", beta1, 0 <= beta1 < 1, "lie in [0, 1)"),
      ("beta2", beta2, 0 <= beta2 < 1, "lie in [0, 1)"),
      ("eps", eps, eps > 0, "be above 0, such as 1e-8"),
      ("weight_decay", weight_decay, weight_decay >= 0, "be at least 0; 0 switches decay off"),
      ("clip_norm", clip_norm, clip_norm is None or clip_norm > 0, "be above 0, or None for no clipping"),
      ("gate_lr_scale", gate_lr_scale, 0 < gate_lr_scale < math.inf,
       "be above 0 and finite; what shall not be trained goes into config.optim.freeze"),
      ("ema_decay", ema_decay, ema_decay is None or 0 < ema_decay < 1, "lie in (0, 1), or None for none")):
    if not good:
      raise ValueError(f"config.optim.{name}={value} must {need}")
