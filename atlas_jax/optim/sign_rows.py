"""Sign descent on the rows of a large table: only the rows of a batch are read and written.

The table is no parameter of the model. Its rows are gathered, the loss is differentiated to the gathered
rows, and this writes the new ones back; a donated table is changed in place, also when its rows are split
over devices.
"""
import jax
import jax.numpy as jnp


def update(table_NE, ids_B, grad_BE, *, rate, weight_decay: float):
  """Moves the rows of a batch by `rate` against the sign of their gradient.

  Gradients of equal ids are added first; where they cancel exactly the row is only decayed. Each row of the
  batch becomes row * (1 - rate * weight_decay) - rate * sign(sum), once however often its id comes.

  Args:
    table_NE: one row per puzzle id, float32.
    ids_B: int32, the rows that were gathered.
    grad_BE: gradient of the loss to each gathered row.
    rate: may be traced; 0 leaves the table as it is, bit for bit.
    weight_decay: fraction of a row taken off, times the rate.

  Returns:
    The new table.
  """
  # For each row the first one with its id. B^2 comparisons, of puzzles in one batch, and no sorting.
  first_B = jnp.argmax(ids_B[:, None] == ids_B[None], axis=1)
  # Summed before the sign: equal ids are one row, which moves by one step of `rate`.
  sum_BE = jax.ops.segment_sum(grad_BE.astype(table_NE.dtype), first_B, num_segments=ids_B.shape[0])[first_B]
  rate = jnp.asarray(rate, table_NE.dtype)
  old_BE = table_NE[ids_B]
  new_BE = old_BE * (1 - rate * weight_decay) - rate * jnp.sign(sum_BE)
  # Equal ids write equal rows. A rate of 0 would still turn -0 into 0.
  return table_NE.at[ids_B].set(jnp.where(rate == 0, old_BE, new_BE))
