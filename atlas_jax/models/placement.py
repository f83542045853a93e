"""Placement of the leaves of all models: the default rule, with the exceptions of each module's own file.

A module of `models` or `memory` that makes leaves with heads or feed-forward widths says in TENSOR_AXES which
axes of them are split over `tensor`, and in WHOLE which large ones stay whole, with the reason; both as
`parallel.place.Exceptions` has them. They are found by these names. Recursive models, whose blocks have heads
and halves of gates side by side in one axis, are small and say nothing: they are only split over fsdp.
"""
import functools
import importlib
import pkgutil

import jax
from jax.sharding import Mesh

from atlas_jax import memory, models
from atlas_jax.parallel import place


def shardings(mesh: Mesh, abstract_tree):
  """Returns a tree of NamedSharding for a train state, parameters alone, or any tree with their names.

  Args:
    mesh: see `parallel.mesh`.
    abstract_tree: arrays or ShapeDtypeStructs; leaves under a top field "carry" lead with B.

  Raises:
    ValueError: if the rows of a carried leaf do not divide over data x fsdp.
  """
  return place.shardings(mesh, abstract_tree, exceptions())


def abstract(mesh: Mesh, shapes):
  """Returns shapes with their shardings: the ShapeDtypeStructs that restoring a checkpoint needs."""

  def join(leaf, where):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  return jax.tree.map(join, shapes, shardings(mesh, shapes))


def large_replicated(mesh: Mesh, abstract_tree) -> list[str]:
  """Names the leaves above 1 MiB that every device would hold whole although their modules do not say so."""
  return place.large_replicated(mesh, abstract_tree, exceptions())


@functools.cache
def exceptions() -> place.Exceptions:
  """Collects TENSOR_AXES and WHOLE from the files of `models` and `memory`."""
  # Every file is imported, also blocks that no config names: placement must not depend on what ran before.
  found = [importlib.import_module(name) for name in _modules()]

  def gather(what):
    return tuple(dict.fromkeys(one for module in found for one in getattr(module, what, ())))

  return place.Exceptions(gather("TENSOR_AXES"), gather("WHOLE"))


def _modules() -> list[str]:
  packages = (pkgutil.walk_packages(room.__path__, f"{room.__name__}.") for room in (memory, models))
  return sorted(module.name for package in packages for module in package if module.name != __name__)
