"""Hands whole texts of a memory of plain descent to the kernel that keeps its state on chip."""
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from atlas_jax.kernels.memory_scan import ACTIVATIONS, DEPTHS, Decay, memory_scan
from atlas_jax.memory import gates
from atlas_jax.memory.types import ChunkOut, Learned, MemoryState


def make(*, depth: int, momentum: bool = True, **options) -> Callable | None:
  """Makes `MemoryRule.kernel` of a rule that descends on half the squared error of an MLP.

  Args:
    depth: matrices of the memory, "w0" and "w1".
    momentum: whether the rule has momentum.
    options: activation, residual and surprise_max, as the kernel takes them.

  Returns:
    the kernel, or None if it does not take such a memory.
  """
  if depth not in DEPTHS or options["activation"] not in ACTIVATIONS:
    return None
  scan = functools.partial(memory_scan, **options)
  # "auto" of a layer never takes it: `rule.kernel` is used on request alone, see `Memory.impl`.
  return functools.partial(read, depth=depth, momentum=momentum, scan=scan)


def chunk_weights(token_gates, write_GT, chunk_size: int, momentum: bool) -> Decay:
  """Accumulates the gates of each chunk of each memory."""

  def split(x):
    return x.reshape(x.shape[0], -1, chunk_size)

  # The kernel knows no gates, only their products. They cost memory: C floats of mix per token,
  # beside 2 K + M of its query, key and value.
  parts = (token_gates.log_retention, token_gates.log_momentum if momentum else None, token_gates.write_rate,
           write_GT)
  found = jax.vmap(jax.vmap(gates.chunk_decay))(*jax.tree.map(split, parts))

  def flat(x):
    return x.reshape(x.shape[0], -1)

  if not momentum:
    return Decay(flat(found.fast_C), (), found.mix_CC, (), ())
  # Reads need fast weights alone, so that of the momentum the chunk's end is enough: last entry, last row.
  return Decay(flat(found.fast_C), flat(found.momentum_C), found.mix_CC, found.keep_C[..., -1],
               found.surprise_CC[..., -1, :])


def read(memory: MemoryState, learned: Learned, tokens, token_gates, write_GT, reset_GN, read_GT, *,
         chunk_size: int, depth: int, momentum: bool, scan: Callable, impl: str = "pallas"):
  """Reads whole chunks of G memories, each of one row and head; as `scan.scan_packed` of each of them.

  Args:
    memory, learned, tokens, token_gates, write_GT, reset_GN, read_GT: as in `scan.scan_packed`, every leaf
      [G, ...].
    depth, momentum: see `make`.
    scan: `memory_scan` with its options.
    impl: its form.

  Returns:
    (memory, ChunkOut with leaves [G, T, ...]).
  """
  # The kernel takes lists: a dictionary's order is that of its names, which need not be that of use.
  names = [f"w{i}" for i in range(depth)]

  def order(weights):
    return [weights[name] for name in names]

  decay = chunk_weights(token_gates, write_GT, chunk_size, momentum)
  out_GTM, fast, last, surprise_GT, loss_GT = scan(
      *tokens, decay, reset_GN, order(learned.fast), order(memory.fast),
      order(memory.momentum) if momentum else [], chunk_size=chunk_size, impl=impl)
  after = MemoryState(dict(zip(names, fast)), dict(zip(names, last)) if momentum else ())
  # Padding has no part in the state by its zero rate, but a query of its own, whose read is cut here.
  real_GTM = read_GT[..., None].astype(out_GTM.dtype)
  return after, ChunkOut(out_GTM * real_GTM, surprise_GT, loss_GT)


def over_heads(kernel: Callable, memory: MemoryState, learned: Learned, tokens, token_gates, write_BT,
               reset_BN, read_BT, *, chunk_size: int):
  """Reads with all heads of all rows at once.

  Args:
    kernel: a rule's `kernel`.
    memory, learned, tokens, token_gates: leaves [B, H, ...].
    write_BT, reset_BN, read_BT: of each row.

  Returns:
    as `read`, with leaves [B, H, ...].
  """
  rows, heads = tokens.q.shape[:2]

  def join(x):
    return x.reshape(rows * heads, *x.shape[2:])

  memory, learned, tokens, token_gates = jax.tree.map(join, (memory, learned, tokens, token_gates))
  # Row-major, as `join` lays rows and heads: each row's masks stand once for every head.
  of_rows = (jnp.repeat(x, heads, axis=0) for x in (write_BT, reset_BN, read_BT))
  results = kernel(memory, learned, tokens, token_gates, *of_rows, chunk_size=chunk_size)
  return jax.tree.map(lambda x: x.reshape(rows, heads, *x.shape[1:]), results)
