"""FLOPs of a memory layer by formula: those of the algorithm, whatever a program really executes."""
from collections.abc import Mapping

from atlas_jax.memory import rules


def layer_flops(rule: str, *, width: int, heads: int, key_dim: int, value_dim: int, chunk_size: int,
                options: Mapping) -> float | None:
  """Counts the FLOPs of one token's forward pass through a layer: projections of width D, and every head.

  A head's are those that the rule's own file gives as `MemoryRule.flops` (see `memory.flops`); an MLP of two
  matrices, hidden width r K, has 22 r K^2 + 4 C K (1 + r) with momentum. Projections are 2 D (2 K + M) for
  queries, keys and values and 2 M D back. A backward pass is twice this.

  Args:
    rule: by name; options: its own.
    width: D; key_dim, value_dim: K and M, of each head.
    chunk_size: C.

  Returns:
    FLOPs per token, or None for rules without such a formula.
  """
  made = rules.load(rule, key_dim=key_dim, value_dim=value_dim, chunk_size=chunk_size, **options)
  if made.flops is None:
    return None
  # made.flops is of one head. 2 D per output of a projection are a multiplication and an addition for each of
  # its inputs; K stands twice, for queries and keys, and M twice, for values and the way back.
  return heads * (made.flops(chunk_size) + 2 * width * (2 * key_dim + 2 * value_dim))
