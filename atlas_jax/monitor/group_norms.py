"""Norms of gradients, updates and parameters by group: which part of a model learns too fast or not at all.

The groups are those that a reader asks for, coarser than `tree.GROUPS`, and the same for every recipe.
"""
from atlas_jax import tree

GROUPS = ("embed", "memory", "gates", "attention", "feed_forward", "norms", "other")
# Groups of `tree` -> groups here; "head" is the table that tokens are written with.
_SAME = {"embed": "embed", "head": "embed", "memory": "memory", "mix_gate": "gates", "attention": "attention",
         "mlp": "feed_forward", "norm": "norms", "final_norm": "norms", tree.OTHER: "other"}
_GATES = ("gates", "mix_gate")  # Parts of names, also within a memory.
_FEED_FORWARD = ("token_mlp",)  # Of recursive models: over places in place of attention.


def group_of(name: str) -> str:
  """Returns the group of a parameter by its name, such as "blocks/memory/gates/bias" -> "gates"."""
  parts = name.split("/")
  if any(part in _GATES for part in parts):
    return "gates"
  if any(part in _FEED_FORWARD for part in parts):
    return "feed_forward"
  return _SAME[tree.group_of(name)]


def of_update(grads, updates, params) -> dict:
  """Returns train/grad_norm/GROUP, train/update_norm/GROUP and train/param_norm/GROUP, float32 [].

  Args:
    grads: of the loss, of what is trained, before clipping.
    updates: what the optimizer adds to the parameters.
    params: before the update.
  """
  # The sums of squares of leaves are those of tree.group_norms in `step`: the compiler makes each once.
  return {f"train/{what}_norm/{group}": norm
          for what, values in (("grad", grads), ("update", updates), ("param", params))
          for group, norm in tree.group_norms(values, group=group_of, order=GROUPS).items()}
