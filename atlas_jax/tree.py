"""Named leaves of pytrees: names, casts, counts and norms, whole and by group.

A leaf's name is its path with slashes, "blocks/memory/query/kernel"; parameters, optimizer moments and
moving averages have names with equal ends, by which placement and weight decay recognise them.
"""
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# In the order in which metrics list them. A name belongs to the outermost of its parts that is a group.
GROUPS = ("embed", "attention", "memory", "mix_gate", "mlp", "norm", "final_norm", "head")
# Parts named otherwise than their group.
_ALSO = {"memory_out": "memory", "memory_tokens": "memory", "fast_mlp": "memory", "ngram_embed": "embed"}
OTHER = "other"
_SMALLEST_NORM = 1e-12  # Keeps the ratio of an all-zero group at 0 instead of NaN.


def name_of(path) -> str:
  """Returns the name of one leaf from its key path, "blocks/memory/query/kernel"."""
  return "/".join(_part(key) for key in path)


def _part(key) -> str:
  # The keys of JAX's paths: of dicts, of named tuples and dataclasses, of lists and tuples.
  for field in ("key", "name", "idx"):
    if hasattr(key, field):
      return str(getattr(key, field))
  return str(key)


def named_leaves(tree) -> Iterator[tuple[str, Any]]:
  """Yields (name, leaf) in the tree's own order."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield name_of(path), leaf


def map_named(function: Callable, tree, *rest):
  """Applies `function(name, leaf, *rest_leaves)` to every leaf and keeps the tree's form."""
  return jax.tree_util.tree_map_with_path(lambda path, *leaves: function(name_of(path), *leaves), tree, *rest)


def cast(tree, dtype):
  """Casts floating leaves to `dtype`; integers, booleans and random keys stay as they are."""
  return jax.tree.map(lambda leaf: leaf.astype(dtype) if _is_float(leaf) else leaf, tree)


def accumulation_dtype(dtype):
  """Returns the type for sums and softmax: float32 for narrower floats, and for others their own."""
  return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def count(tree) -> int:
  """Counts the numbers in all leaves; works on abstract trees too."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def size_bytes(tree) -> int:
  """Adds up the bytes of all leaves; works on abstract trees too."""
  return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def leaf_bytes(leaf) -> int:
  """Returns the bytes of one array or abstract array; a random key counts the words behind it."""
  # The type of a key says nothing of its size: behind it are words of 32 bits.
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.eval_shape(jax.random.key_data, leaf)
  return math.prod(leaf.shape) * leaf.dtype.itemsize


def global_norm(tree):
  """Returns the Euclidean norm over all floating leaves, float32 []; 0 for a tree without any."""
  return jnp.sqrt(_square_sum([leaf for leaf in jax.tree.leaves(tree) if _is_float(leaf)]))


def all_finite(tree):
  """Returns a boolean []: whether every floating leaf is free of NaN and infinity."""
  checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if _is_float(leaf)]
  return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def changed_frac(old, new):
  """Returns the fraction of the numbers in two trees that differ, float32 []; 0 for trees without any."""
  differ = [jnp.sum(a != b, dtype=jnp.float32) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new))]
  return sum(differ, start=jnp.zeros((), jnp.float32)) / max(1, count(old))


def largest_change(old, new):
  """Returns the largest distance between two numbers at one place of two trees, float32 []; 0 without any."""
  found = [jnp.max(jnp.abs(b.astype(jnp.float32) - a.astype(jnp.float32)), initial=0.0)
           for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new)) if _is_float(a)]
  return functools.reduce(jnp.maximum, found, jnp.zeros((), jnp.float32))


def group_of(name: str) -> str:
  """Returns the metric group of a parameter's name: the first part of it that is a group, else "other"."""
  for part in name.split("/"):
    if part in GROUPS:
      return part
    if part in _ALSO:
      return _ALSO[part]
    if part.startswith("norm_"):
      return "norm"
  return OTHER


def group_norms(tree, *, group: Callable = group_of, order: Sequence[str] = (*GROUPS, OTHER)
                ) -> dict[str, jax.Array]:
  """Returns the Euclidean norm of every group present, float32 [], keyed by group in that order.

  Args:
    tree: arrays.
    group: name of a leaf -> its group, one of `order`.
    order: all groups.
  """
  members: dict[str, list] = {}
  for name, leaf in named_leaves(tree):
    if _is_float(leaf):
      members.setdefault(group(name), []).append(leaf)
  present = [group for group in order if group in members]
  return {group: jnp.sqrt(_square_sum(members[group])) for group in present}


def update_to_weight_ratio(updates, params) -> dict[str, jax.Array]:
  """Returns, for every group, the norm of its update over the norm of its weights, float32 []."""
  update_norms = group_norms(updates)
  weight_norms = group_norms(params)
  return {group: update_norms[group] / jnp.maximum(weight_norms[group], _SMALLEST_NORM)
          for group in update_norms}


def _is_float(leaf) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.floating)


def _square_sum(leaves: list):
  # Cast before the square: bfloat16 has 8 bits of precision, and a long sum in it stops growing.
  sums = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves]
  return sum(sums, start=jnp.zeros((), jnp.float32))
