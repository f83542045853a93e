"""Where every leaf of a train state lives on the mesh.

The default rule splits a parameter's largest axis that divides over `fsdp`. TENSOR_AXES lists, by the end of
a leaf's name, which axis is split over `tensor` as well: heads and the feed-forward width, wherever they
stand, so that a projection into them needs no message and the one back sums over the devices. Optimizer
moments and moving averages end in the same names and have the same shapes, so they follow their parameters.
Leaves of the carry lead with B and are split like the batch; tables are split by rows over data and fsdp, so
that a device holds the rows it changes.
"""
import itertools
import math
import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atlas_jax import modules, tree
from atlas_jax.parallel import mesh as meshes

WHOLE_BELOW_NUMBERS = 4096  # Splitting fewer costs more in messages than it saves in memory.
CARRY = "carry"  # The field of the train state whose leaves lead with B.
TABLES = "tables"  # The field whose leaves are tables of rows.
STACKED = re.compile(r"blocks(_\d+)?")  # Leaves under such a name lead with depth, which is never split.

# (pattern at the end of a name, axes of which the first that divides is split over `tensor`): negative ones
# count from the end, others from the first axis after depth. Recursive models, whose blocks have heads and
# halves of gates side by side in one axis, are small and only split over fsdp.
TENSOR_AXES = (
    (r"blocks(_\d+)?/(attention|memory)/qkv_kernel", (-2,)),  # D, H, queries keys and values
    (r"memory/value_kernel", (-2,)),  # D, H, M
    (r"attention/out/kernel", (-3,)),  # H, K, D
    (r"memory/conv_kernel", (-2,)),  # taps, H, channels
    (r"memory/initial_fast/.*", (0,)),  # H, the rule's own axes
    (r"mlp/(gate|up)_kernel", (-1,)),  # D, F
    (r"blocks(_\d+)?/mlp/out_kernel", (-2,)),  # F, D
    (r"attention/[qkv]/(kernel|bias|lora_b)", (-2,)),  # D or rank, H, K
    (r"attention/out/lora_a", (-3,)),  # H, K, rank
    (r"mlp/(gate|up)/(kernel|bias|lora_b)", (-1,)),  # D or rank, F
    (r"mlp/down/(kernel|lora_a)", (-2,)),  # F, D or rank
    (r"(ngram_)?embed", (-2, -1)),  # V or rows of a table, D
    (r"head/kernel", (-1, -2)),  # D, V, where the output weights are not the embedding
    # What a way of mixing memory into a block has of its own stands in its file.
    *itertools.chain.from_iterable(modules.constants("models/blocks", "TENSOR_AXES").values()),
)
# Leaves that may stay whole although they are large, by the end of their name, with the reason beside each.
WHOLE: tuple[str, ...] = ()


def shardings(mesh: Mesh, abstract_tree):
  """Gives a tree of NamedSharding for a train state, parameters alone, or any tree with their names.

  Args:
    mesh: what `mesh.make` gives.
    abstract_tree: arrays or ShapeDtypeStructs; leaves under a top field "carry" lead with B.

  Raises:
    ValueError: if the rows of a carried leaf do not divide over data x fsdp.
  """
  return tree.map_named(lambda name, leaf: NamedSharding(mesh, _spec(mesh, name, leaf)), abstract_tree)


def row_shardings(mesh: Mesh, abstract_tree):
  """Gives shardings for a tree whose every leaf leads with B, such as a model's state or a batch."""
  return tree.map_named(lambda name, leaf: NamedSharding(mesh, _row_spec(mesh, name, leaf)), abstract_tree)


def large_replicated(mesh: Mesh, abstract_tree, *, above_bytes: int = 2**20) -> list[str]:
  """Names the leaves that every device would hold whole although they are large and not in WHOLE.

  Small splits do not count as whole: a leaf is named only if no axis of it is split on a mesh that could.
  """
  if mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
    return []
  return [name for name, leaf in tree.named_leaves(abstract_tree)
          if tree.leaf_bytes(leaf) > above_bytes and not _ends_in_any(name, WHOLE)
          and not any(_spec(mesh, name, leaf))]


def _spec(mesh: Mesh, name: str, leaf) -> PartitionSpec:
  if name.split("/")[0] == CARRY:
    return _row_spec(mesh, name, leaf)
  if name.split("/")[0] == TABLES:
    even = leaf.shape[0] % meshes.n_row_shards(mesh) == 0
    return PartitionSpec(meshes.ROW_AXES) if even else PartitionSpec()
  axes: list[str | None] = [None] * len(leaf.shape)
  first = int(any(map(STACKED.fullmatch, name.split("/"))))
  _split_over_tensor(axes, mesh.shape["tensor"], name, leaf.shape, first)
  if math.prod(leaf.shape) >= WHOLE_BELOW_NUMBERS and not _ends_in_any(name, WHOLE):
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


def _split_over_tensor(axes: list, size: int, name: str, shape, first: int) -> None:
  if size == 1:
    return
  for pattern, candidates in TENSOR_AXES:
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


def abstract(tree_of_shapes, tree_of_shardings):
  """Joins shapes and shardings into the ShapeDtypeStructs that restoring a checkpoint needs."""
  return jax.tree.map(
      lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
      tree_of_shapes, tree_of_shardings)
