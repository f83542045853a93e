"""Placement of every leaf of a train state on the mesh.

The default rule splits a parameter's largest axis that divides over `fsdp`. Exceptions say, by the end of a
leaf's name, which axis is split over `tensor` as well: heads and the feed-forward width, wherever they stand,
so that a projection into them needs no message and the one back sums over the devices. They stand in the file
of the module that makes the leaf; `models.placement` collects them. Optimizer moments and moving averages end
in the same names and have the same shapes, so they follow their parameters. Leaves of the carry lead with B
and are split like the batch; tables are split by rows over data and fsdp, so that a device holds the rows it
changes.
"""
import math
import re
from typing import NamedTuple

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atlas_jax import tree
from atlas_jax.parallel import mesh as meshes

WHOLE_BELOW_NUMBERS = 4096  # Splitting fewer costs more in messages than it saves in memory.
CARRY = "carry"  # The field of the train state whose leaves lead with B.
TABLES = "tables"  # The field whose leaves are tables of rows.
STACKED = re.compile(r"blocks(_\d+)?")  # Leaves under such a name lead with depth, which is never split.


class Exceptions(NamedTuple):
  """Leaves that the default rule does not place, by patterns for the end of their names."""

  # (pattern, axes): the first axis that divides is split over `tensor`. Negative ones count from the end,
  # others from the first axis after depth.
  tensor_axes: tuple[tuple[str, tuple[int, ...]], ...] = ()
  whole: tuple[str, ...] = ()  # may stay whole on every device although they are large


def shardings(mesh: Mesh, abstract_tree, exceptions: Exceptions):
  """Returns a tree of NamedSharding for a train state, parameters alone, or any tree with their names.

  Args:
    mesh: what `mesh.make` gives.
    abstract_tree: arrays or ShapeDtypeStructs; leaves under a top field "carry" lead with B.
    exceptions: to the default rule.

  Raises:
    ValueError: if the rows of a carried leaf do not divide over data x fsdp.
  """

  def place(name, leaf):
    return NamedSharding(mesh, _spec(mesh, name, leaf, exceptions))

  return tree.map_named(place, abstract_tree)


def row_shardings(mesh: Mesh, abstract_tree):
  """Returns shardings for a tree whose every leaf leads with B, such as a model's state or a batch."""
  return tree.map_named(lambda name, leaf: NamedSharding(mesh, _row_spec(mesh, name, leaf)), abstract_tree)


def large_replicated(mesh: Mesh, abstract_tree, exceptions: Exceptions, *,
                     above_bytes: int = 2**20) -> list[str]:
  """Names the leaves that every device would hold whole although they are large and no exceptions.

  Small splits do not count as whole: a leaf is named only if no axis of it is split on a mesh that could.
  """
  if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
    return []
  return [name for name, leaf in tree.named_leaves(abstract_tree)
          if tree.leaf_bytes(leaf) > above_bytes and not _ends_in_any(name, exceptions.whole)
          and not any(_spec(mesh, name, leaf, exceptions))]


def _spec(mesh: Mesh, name: str, leaf, exceptions: Exceptions) -> PartitionSpec:
  if name.split("/")[0] == CARRY:
    return _row_spec(mesh, name, leaf)
  if name.split("/")[0] == TABLES:
    # The number of rows of a table may follow from the data, so one that does not divide is not refused.
    even = leaf.shape[0] % meshes.n_row_shards(mesh) == 0
    return PartitionSpec(meshes.ROW_AXES) if even else PartitionSpec()
  axes: list[str | None] = [None] * len(leaf.shape)
  first = int(any(map(STACKED.fullmatch, name.split("/"))))
  # Over tensor first: where it splits is said by the layer, while fsdp takes any axis that is left.
  _split_over_tensor(axes, mesh.shape["tensor"], name, leaf.shape, first, exceptions)
  if math.prod(leaf.shape) >= WHOLE_BELOW_NUMBERS and not _ends_in_any(name, exceptions.whole):
    _split_over_fsdp(axes, mesh.shape["fsdp"], leaf.shape, first)
  return PartitionSpec(*axes)


def _row_spec(mesh: Mesh, name: str, leaf) -> PartitionSpec:
  if not leaf.shape:
    return PartitionSpec()
  shards = meshes.n_row_shards(mesh)
  if leaf.shape[0] % shards:
    raise ValueError(
        f"{name} has {leaf.shape[0]} rows, which config.mesh.data x fsdp = {shards} does not divide; change "
        "config.data.batch_rows or the mesh")
  return PartitionSpec(meshes.ROW_AXES)


def _split_over_tensor(axes: list, size: int, name: str, shape, first: int, exceptions: Exceptions) -> None:
  if size == 1:
    return
  for pattern, candidates in exceptions.tensor_axes:
    if not _ends_in_any(name, (pattern,)):
      continue
    for axis in (candidate + (len(shape) if candidate < 0 else first) for candidate in candidates):
      if axis >= first and shape[axis] % size == 0:
        axes[axis] = "tensor"
        return


def _split_over_fsdp(axes: list, size: int, shape, first: int) -> None:
  if size == 1:
    return
  free = [axis for axis in range(first, len(shape)) if axes[axis] is None and shape[axis] % size == 0]
  if free:
    axes[max(free, key=lambda axis: shape[axis])] = "fsdp"


def _ends_in_any(name: str, patterns) -> bool:
  return any(re.search(f"(^|/){pattern}$", name) for pattern in patterns)
