"""Newton-Schulz as one kernel: each program holds one matrix on chip from the normalization to the last step.

Two routes. GPUs go through Triton: its float32 products on the ordinary cores unroll into code that takes
minutes to compile, so each is six bfloat16 products on the matrix unit, as exact as float32. TPUs multiply
float32 in the same way by themselves. Mosaic GPU does not apply: its matrix unit multiplies no float32 beyond
eleven bits. The backward pass starts from X again for every step: holding all steps at once spills registers.
"""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton

from atlas_jax.kernels.newton_schulz import chunked, reference


class NewtonSchulzPlatform(NamedTuple):
  """Settings of the kernel on one platform.

  Attributes:
    compiler_params: named explicitly, since the compiler that a kernel gets without them changes with jax.
    precision: of products.
    pad: (E, S), E <= S -> the (E, S) of a block; what is added is zero and stays zero in every step.
    longest: the largest E of a block.
    entries: the largest E times S of a block.
  """
  compiler_params: Any
  precision: Any
  pad: Callable[[int, int], tuple[int, int]]
  longest: int
  entries: int


def _powers(short: int, long: int) -> tuple[int, int]:
  def up(size):
    # Triton takes arrays whose sides are powers of two, and products from 16 on.
    return max(16, 1 << (size - 1).bit_length())

  return up(short), up(long)


def _tiles(short: int, long: int) -> tuple[int, int]:
  # A TPU's registers hold 8 by 128 entries.
  return short + -short % 8, long + -long % 128


# Limits: what compiles without a device in both passes, for Ampere, Hopper and consumer Blackwell with few
# registers spilled and within 99 KiB of shared memory; for TPU v4, v5e and v6e within 16 MiB of VMEM.
ROUTES = {
    "gpu": NewtonSchulzPlatform(triton.CompilerParams(num_warps=4, num_stages=1),
                                jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6, _powers, longest=64,
                                entries=64 * 64),
    "tpu": NewtonSchulzPlatform(tpu.CompilerParams(dimension_semantics=("parallel",)),
                                jax.lax.Precision.HIGHEST, _tiles, longest=256, entries=256 * 512),
}


def problem(shape, dtype, platform: str) -> str | None:
  """Returns why matrices of this shape do not fit the kernel of a platform, or None if they do."""
  if platform not in ROUTES:
    return f"there is no kernel for {platform}, only for {' and '.join(ROUTES)}"
  if jnp.finfo(dtype).bits > 32:
    return f"the kernel works in float32, the matrices are {jnp.dtype(dtype).name}"
  route = ROUTES[platform]
  short, long = route.pad(*sorted(shape[-2:]))
  if short > route.longest or short * long > route.entries:
    return (f"{shape[-2]} x {shape[-1]} is padded to {short} x {long} on {platform}, where the shorter side "
            f"may have {route.longest} and a matrix {route.entries} entries")
  return None


def _forward(x_ref, out_ref, *, steps: int, precision):
  def step(_, x_ES):
    return chunked.advance(x_ES, precision)

  out_ref[...] = jax.lax.fori_loop(0, steps, step, reference.normalize(x_ref[...]))


def _backward(x_ref, grad_ref, out_ref, *, steps: int, precision):
  # Nothing is kept between the passes but the input: of n steps, n (n - 1) / 2 more are taken on the way
  # back, 10 for 5, all on chip.
  start_ES, to_input = jax.vjp(reference.normalize, x_ref[...])

  def step(done, grad_ES):
    def before(_, x_ES):
      return chunked.advance(x_ES, precision)

    x_ES = jax.lax.fori_loop(0, steps - 1 - done, before, start_ES)
    return chunked.retreat(x_ES, grad_ES, precision)

  out_ref[...] = to_input(jax.lax.fori_loop(0, steps, step, grad_ref[...]))[0]


def _call(kernel, arrays, steps: int, platform: str, interpret: bool):
  """Runs a kernel for every matrix of arrays [B, E, S]."""
  route = ROUTES[platform]
  B, E, S = arrays[0].shape
  # None drops the axis of the batch: a kernel sees one matrix.
  spec = pl.BlockSpec((None, E, S), lambda b: (b, 0, 0))
  return pl.pallas_call(
      functools.partial(kernel, steps=steps, precision=route.precision),
      out_shape=jax.ShapeDtypeStruct((B, E, S), jnp.float32), grid=(B,), in_specs=[spec] * len(arrays),
      out_specs=spec, compiler_params=route.compiler_params, interpret=interpret,
      name=f"newton_schulz{kernel.__name__}")(*arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _iterate(x_BES, steps, platform, interpret):
  return _call(_forward, [x_BES], steps, platform, interpret)


def _iterate_forward(x_BES, steps, platform, interpret):
  return _iterate(x_BES, steps, platform, interpret), x_BES


def _iterate_backward(steps, platform, interpret, x_BES, grad_BES):
  return (_call(_backward, [x_BES, grad_BES], steps, platform, interpret),)


_iterate.defvjp(_iterate_forward, _iterate_backward)


def newton_schulz(x_ES, *, steps: int, platform: str, interpret: bool = False):
  """Runs one program per matrix; arguments as in the package, and two more.

  Args:
    x_ES: matrices of float32 or narrower, within the limits of the platform's entry in ROUTES.
    steps: how often the polynomial is applied.
    platform: "gpu" or "tpu", whose kernel is built, also where another platform traces it.
    interpret: whether the kernel is run step by step by the platform at hand.

  Raises:
    ValueError: if the platform has no kernel or its kernel does not hold these matrices.
  """
  why = problem(x_ES.shape, x_ES.dtype, platform)
  if why:
    raise ValueError(f"newton_schulz cannot use impl='pallas': {why}; impl='chunked' takes every shape")
  if x_ES.shape[-2] > x_ES.shape[-1]:
    return newton_schulz(x_ES.mT, steps=steps, platform=platform, interpret=interpret).mT
  E, S = x_ES.shape[-2:]
  x_BES = x_ES.astype(jnp.float32).reshape(-1, E, S)
  padded_E, padded_S = ROUTES[platform].pad(E, S)
  # Zeros add nothing to norms and products, and stay zeros in every step: cut off at the end, they are free.
  x_BES = jnp.pad(x_BES, ((0, 0), (0, padded_E - E), (0, padded_S - S)))
  return _iterate(x_BES, steps, platform, interpret)[:, :E, :S].reshape(x_ES.shape)
