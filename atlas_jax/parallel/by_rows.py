"""Activations stay split by rows: no device holds a part of the width of what a row's tokens are made of.

Without being told the compiler splits activations as the parameters are, which saves it gathering parameters
over `fsdp`: each product is then followed by a sum of whole activations over the devices, far more bytes.
Updates of training are traced inside of `over`; evaluations and sampling are not.
"""
import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_SPLIT: contextvars.ContextVar[tuple[Mesh, tuple[str, ...]] | None] = contextvars.ContextVar(
    "split", default=None)


@contextlib.contextmanager
def over(mesh: Mesh, axes: Sequence[str]) -> Iterator[None]:
  """Has `keep` split rows over axes of a mesh, in what is traced inside."""
  token = _SPLIT.set((mesh, tuple(axes)))
  try:
    yield
  finally:
    _SPLIT.reset(token)


def keep(x_B):
  """Returns activations, [B, ...] or [tokens of rows one behind the other, ...], split by rows.

  Other axes are left to the compiler, which may split them over `tensor`. Outside of `over`, on one device
  and where the rows do not divide, they stay as they are.
  """
  if _SPLIT.get() is None:
    return x_B
  mesh, axes = _SPLIT.get()
  shards = math.prod(mesh.shape[axis] for axis in axes)
  if shards == 1 or x_B.shape[0] % shards:
    return x_B
  others = (PartitionSpec.UNCONSTRAINED,) * (x_B.ndim - 1)
  return jax.lax.with_sharding_constraint(x_B, NamedSharding(mesh, PartitionSpec(axes, *others)))
