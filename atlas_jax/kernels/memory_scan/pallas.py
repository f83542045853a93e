"""The memory scan as one kernel: state stays on chip from chunk to chunk, only tokens come and go.

Two routes. On TPUs the grid is memories by groups of chunks, the second axis in order; state lies in the last
state's own block, which stays on chip while its index does not change. Triton keeps nothing between
steps of a grid, so on GPUs a program reads all groups of a memory in a loop that carries the state. Mosaic
GPU is not offered: see the kernels' README.

For training the forward pass keeps the state before each group. The backward pass walks the groups in
reverse, finds each chunk's state again from its group's, and takes the gradients of one chunk at a time.
"""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton

from atlas_jax.kernels.memory_scan.chunked import Chunk, State, advance, chunks, scan_chunk
from atlas_jax.kernels.memory_scan.reference import Decay, ScanForm


def _sizes(q_GTK, v_GTM, fast, chunk_size: int) -> tuple[int, ...]:
  """Returns the size of a chunk and all widths, from keys to values."""
  return chunk_size, q_GTK.shape[-1], *(w.shape[-1] for w in fast[:-1]), v_GTM.shape[-1]


def _gpu_bytes(sizes, group: int) -> int:
  """Returns the bytes that a program of the backward pass carries from chunk to chunk."""
  del group
  # Weights, momentum, gradients of both, and of what memories start from.
  return 4 * 5 * sum(a * b for a, b in zip(sizes[1:-1], sizes[2:]))


def _tpu_bytes(sizes, group: int) -> int:
  """Returns the bytes of a program of the backward pass; three parts, fitted to what the compiler reports."""

  def tiles(rows, columns):
    return 4 * (rows + -rows % 8) * (columns + -columns % 128)

  C, K, *_, M = sizes
  # Tokens and weights of a group and their gradients, each twice: one is filled while the other is read.
  chunk = 4 * tiles(C, K) + 3 * tiles(C, M) + 2 * tiles(C, C) + 8 * tiles(C, 1) + 8 * tiles(1, 1)
  states = 32 * sum(tiles(a, b) for a, b in zip(sizes[1:-1], sizes[2:]))
  return 2 * group * chunk + states + 80 * tiles(C, max(sizes[1:]))


class ScanPlatform(NamedTuple):
  """Settings of the kernel on one platform.

  Attributes:
    compiler_params: named explicitly, since the compiler that a kernel gets without them changes with jax.
    precision: of products.
    powers: whether every size is a power of two, 16 or more.
    needs_bytes: (sizes, chunks of a group) -> bytes on chip that the backward pass takes.
    limit_bytes: the most of them.
    in_grid: whether a step of the grid reads one group; else a program reads all groups of a memory.
    group_chunks: chunks of a group, if nothing else is asked for.
  """
  compiler_params: Any
  precision: Any
  powers: bool
  needs_bytes: Callable[[tuple[int, ...], int], int]
  limit_bytes: int
  in_grid: bool
  group_chunks: int


ROUTES = {
    # 227 KiB: the most shared memory of one program on Hopper. Groups of one chunk: the state before every
    # chunk is kept, in memory off the chip, and none is found again.
    "gpu": ScanPlatform(
        triton.CompilerParams(num_warps=8, num_stages=1), jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6,
        powers=True, needs_bytes=_gpu_bytes, limit_bytes=227 * 1024, in_grid=False, group_chunks=1),
    # Memories in any order, their groups in order. Of four chunks one state is kept and the others are found
    # again: in all 6 more writes per group.
    "tpu": ScanPlatform(
        tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")), jax.lax.Precision.HIGHEST,
        powers=False, needs_bytes=_tpu_bytes, limit_bytes=16 * 1024**2, in_grid=True, group_chunks=4),
}


class Static(NamedTuple):
  """Static sizes and settings of a kernel."""

  form: ScanForm
  platform: str
  interpret: bool

  @property
  def route(self) -> ScanPlatform:
    """The platform's entry in ROUTES."""
    return ROUTES[self.platform]


def _read_group(static: Static, at, refs, initial, out, state: State) -> State:
  """Reads a group of chunks; `at` is its index in the blocks of arrays by groups."""
  def body(j, state):
    place = (*at, j, ...)
    chunk = jax.tree.map(lambda ref: ref[place], refs)
    fresh = [ref[...] for ref in initial]
    # The same function as the chunked form's: what differs is where the state lies.
    state, results = scan_chunk(static.form, state, fresh, chunk, static.route.precision)
    for ref, value in zip(out, results, strict=True):
      ref[place] = value
    return state

  return jax.lax.fori_loop(0, refs.q_CK.shape[len(at)], body, state)


def _retreat_group(static: Static, at, refs, initial, before: State, grad_out, grad_refs, grads):
  """Takes gradients of a group of chunks, last chunk first.

  Args:
    before: the state before the group.
    grads: gradients of the state after the group, and of `initial` as far as known.

  Returns:
    the gradients of the state before it and of `initial`.
  """
  form = static.form
  precision = static.route.precision
  size = refs.q_CK.shape[len(at)]

  def load(tree, j):
    return jax.tree.map(lambda ref: ref[(*at, j, ...)], tree)

  def body(done, grads):
    grad_state, grad_initial = grads
    j = size - 1 - done
    fresh = [ref[...] for ref in initial]
    # From the group's start each time, j writes for chunk j: g (g - 1) / 2 for g chunks. Holding the states
    # of all would take g times the room.
    state = jax.lax.fori_loop(
        0, j, lambda i, state: advance(form, state, fresh, load(refs, i), precision), before)

    def read(state, fresh, chunk):
      return scan_chunk(form, state, fresh, chunk, precision)

    # Differentiated while the kernel is traced: it becomes one kernel with the products of both passes.
    (_, (_, norm_CE, loss_CE)), pull = jax.vjp(read, state, fresh, load(refs, j))
    # Norm and loss are reports without a gradient.
    grad_results = load(grad_out, j), jnp.zeros_like(norm_CE), jnp.zeros_like(loss_CE)
    grad_state, grad_fresh, grad_chunk = pull((grad_state, grad_results))
    for ref, value in zip(jax.tree.leaves(grad_refs), jax.tree.leaves(grad_chunk), strict=True):
      ref[(*at, j, ...)] = value
    # Every reset reads `initial`: its gradients add up over chunks, and are 0 where there was none.
    return grad_state, jax.tree.map(jnp.add, grad_initial, grad_fresh)

  return jax.lax.fori_loop(0, size, body, grads)


def _values(refs):
  return jax.tree.map(lambda ref: ref[...], refs)


def _store(refs, values, at=...):
  for ref, value in zip(jax.tree.leaves(refs), jax.tree.leaves(values), strict=True):
    ref[at] = value


def _forward(refs, initial, first, out, last, before, *, static: Static):
  """Kernel: reads; keeps the state before each group in `before`, if that is not None."""
  if static.route.in_grid:
    # `last` is an output that carries the state: one block for all groups of a memory, written back at last.
    pl.when(pl.program_id(1) == 0)(lambda: _store(last, _values(first)))
    state = _values(last)
    if before is not None:
      _store(before, state)
    _store(last, _read_group(static, (), refs, initial, out, state))
    return

  def group(i, state):
    if before is not None:
      _store(before, state, (i, ...))
    return _read_group(static, (i,), refs, initial, out, state)

  _store(last, jax.lax.fori_loop(0, refs.q_CK.shape[0], group, _values(first)))


def _backward(refs, initial, before, grad_out, grad_last, grad_refs, grad_initial, grad_first, *,
              static: Static):
  """Kernel: takes gradients of all that `_forward` reads."""
  retreat = functools.partial(_retreat_group, static)
  ends = grad_first, grad_initial
  if static.route.in_grid:
    @pl.when(pl.program_id(1) == 0)
    def _start():
      # The gradients' carries, likewise in output blocks; the first step here has the last group.
      _store(grad_first, _values(grad_last))
      _store(grad_initial, [jnp.zeros_like(ref) for ref in grad_initial])
    _store(ends, retreat((), refs, initial, _values(before), grad_out, grad_refs, _values(ends)))
    return

  groups = refs.q_CK.shape[0]

  def group(done, grads):
    at = (groups - 1 - done,)
    state = jax.tree.map(lambda ref: ref[(*at, ...)], before)
    return retreat(at, refs, initial, state, grad_out, grad_refs, grads)

  start = _values(grad_last), [jnp.zeros(ref.shape, ref.dtype) for ref in grad_initial]
  _store(ends, jax.lax.fori_loop(0, groups, group, start))


def _call(kernel, static: Static, arguments, results, *, grouped_in, grouped_out, reverse: bool):
  """Runs a kernel for every memory.

  Args:
    arguments: trees of arrays [G, ...] or, by groups, [G, N / group, ...].
    results: trees of what comes out, likewise.
    grouped_in, grouped_out: for each tree, whether its arrays are by groups.
    reverse: whether the grid takes the last group first.
  """
  in_grid = static.route.in_grid
  G, groups = arguments[0].q_CK.shape[:2]

  def spec(grouped, array):
    rest = array.shape[2 if grouped else 1:]
    # In the grid a block is one group, its axis dropped; else one block has all groups of a memory.
    own = (None if in_grid else groups,) if grouped else ()

    def place(*ids):
      n = ids[1] if in_grid else 0
      # The backward pass takes the same blocks, last one first.
      n = groups - 1 - n if in_grid and reverse else n
      return (ids[0], *(n,) * len(own), *(0,) * len(rest))

    return pl.BlockSpec((None, *own, *rest), place)

  def specs(trees, grouped):
    return tuple(
jax.tree.map(functools.partial(spec, flag), tree) for tree, flag in zip(trees, grouped, strict=True))

  return pl.pallas_call(
      functools.partial(kernel, static=static), name=f"memory_scan{kernel.__name__}",
      grid=(G, groups) if in_grid else (G,), in_specs=specs(arguments, grouped_in),
      out_specs=specs(results, grouped_out), out_shape=tuple(results),
      compiler_params=static.route.compiler_params, interpret=static.interpret)(*arguments)


def _like(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def _read(static: Static, parts: Chunk, initial, first: State, keep: bool):
  """Runs the forward kernel; gives the tokens' results, the last state and, if kept, those before groups."""
  lead = parts.q_CK.shape[:3]
  dtype = parts.q_CK.dtype
  C, M = parts.v_CM.shape[-2:]
  out = [jax.ShapeDtypeStruct((*lead, C, width), dtype) for width in (M, 1, 1)]

  def by_groups(x):
    return jax.ShapeDtypeStruct((x.shape[0], lead[1], *x.shape[1:]), x.dtype)

  before = jax.tree.map(by_groups, first) if keep else None
  return _call(_forward, static, (parts, initial, first), (out, _like(first), before),
               grouped_in=(True, False, False), grouped_out=(True, False, True), reverse=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(static: Static, parts: Chunk, initial, first: State):
  # Without a gradient no states are written out.
  out, last, _ = _read(static, parts, initial, first, keep=False)
  return out, last


def _scan_forward(static, parts, initial, first):
  out, last, before = _read(static, parts, initial, first, keep=True)
  # `first` is not among them: it is the state before the first group.
  return (out, last), (parts, initial, before)


def _scan_backward(static, kept, grads):
  parts, initial, before = kept
  (grad_out, _, _), grad_last = grads
  results = _like(parts), _like(initial), _like(grad_last)
  return _call(_backward, static, (parts, initial, before, grad_out, grad_last), results,
               grouped_in=(True, False, True, True, False), grouped_out=(True, False, False), reverse=True)


_scan.defvjp(_scan_forward, _scan_backward)


def _groups(sizes, chunk_count: int, most: int, platform: str) -> int | None:
  """Returns the largest group that divides the chunks and fits on chip, up to a bound; None if none does."""
  route = ROUTES[platform]
  # Groups of one size alone, since a block has one shape: a prime number of chunks is read by ones.
  fitting = (g for g in range(min(most, chunk_count), 0, -1)
             if chunk_count % g == 0 and route.needs_bytes(sizes, g) <= route.limit_bytes)
  return next(fitting, None)


def problem(q_GTK, k_GTK, v_GTM, decay, reset_GN, initial, fast, momentum, *, chunk_size: int,
            platform: str) -> str | None:
  """Returns why these arrays do not fit the kernel of a platform, or None if they do."""
  del decay, initial
  if platform not in ROUTES:
    return f"there is no kernel for {platform}, only for {' and '.join(ROUTES)}"
  for x in (q_GTK, k_GTK, v_GTM, *fast, *momentum):
    if x.dtype != jnp.float32:
      return f"the kernel works in float32, not in {jnp.dtype(x.dtype).name}"
  sizes = _sizes(q_GTK, v_GTM, fast, chunk_size)
  route = ROUTES[platform]
  named = f"chunks of {chunk_size} and widths of {' x '.join(map(str, sizes[1:]))}"
  if route.powers and any(size < 16 or size & (size - 1) for size in sizes):
    return f"{named} are not all powers of two from 16 up, as {platform} needs them"
  # If one chunk does not fit, no group does.
  if _groups(sizes, reset_GN.shape[1], 1, platform) is None:
    return (f"{named} take {route.needs_bytes(sizes, 1) // 1024} KiB on chip, and {platform} has "
            f"{route.limit_bytes // 1024}")
  return None


def memory_scan(q_GTK, k_GTK, v_GTM, decay: Decay, reset_GN, initial, fast, momentum, *, chunk_size: int,
                form: ScanForm, platform: str, group_chunks: int | None = None, interpret: bool = False):
  """Runs one program per memory; arguments as in the package, and three more.

  Args:
    platform: "gpu" or "tpu", whose kernel is built, also where another platform traces it.
    group_chunks: chunks whose states the backward pass finds again from one that is kept; the largest number
      up to this one that divides the number of chunks and fits on chip. None: the route's.
    interpret: whether the kernel is run step by step by the platform at hand, with any sizes and dtype.

  Raises:
    ValueError: if the platform has no kernel or its kernel does not hold these arrays.
  """
  arguments = (q_GTK, k_GTK, v_GTM, decay, reset_GN, initial, fast, momentum)
  why = problem(*arguments, chunk_size=chunk_size, platform=platform)
  if why and not interpret:
    raise ValueError(f"memory_scan cannot use impl='pallas': {why}; impl='chunked' takes every shape")
  parts = chunks(*arguments[:5], chunk_size=chunk_size)
  sizes = _sizes(q_GTK, v_GTM, fast, chunk_size)
  group = _groups(sizes, reset_GN.shape[1], group_chunks or ROUTES[platform].group_chunks, platform) or 1
  # [G, N, ...] to [G, N / group, group, ...].
  parts = jax.tree.map(lambda x: x.reshape(x.shape[0], -1, group, *x.shape[2:]), parts)
  (out, norm, loss), last = _scan(Static(form, platform, interpret), parts, initial, State(fast, momentum))

  def flat(x):
    return x.reshape(x.shape[0], -1, x.shape[-1])

  return flat(out), last.fast, last.momentum, flat(norm)[..., 0], flat(loss)[..., 0]
