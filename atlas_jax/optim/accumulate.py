"""Gradients of a batch too large for the memory: in pieces, one after another."""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from atlas_jax.optim import precision


def gradients(loss: Callable, params, batch, carry, *, frozen, rng, parts: int, rows=()):
  """Differentiates the mean loss of a batch.

  Args:
    loss: (params, batch, *, frozen, carry, rng) -> LossOut(loss, weight, carry, metrics): the mean over
      counted tokens and their number, what the next batch starts from, and means to be logged.
    params: differentiated.
    batch, carry: every leaf leads with B.
    frozen: handed to the loss.
    rng: every piece has a key of its own, folded in from it.
    parts: pieces of B / parts rows; more of them need less memory and more time.
    rows: rows of tables, every leaf leads with B; handed to the loss as rows= and differentiated, unless ().

  Returns:
    ((grads, row_grads), out): gradients of params and of rows, loss and metrics per counted token of
    the whole batch, whatever the pieces, and the carry of all rows in their order; gradients are float32 or
    wider. Sums of pieces for bfloat16 parameters are bfloat16, rounded at random.
  """

  def piece(index, batch, carry, rows):
    def total(params, rows):
      given = {"rows": rows} if jax.tree.leaves(rows) else {}
      out = loss(params, batch, frozen=frozen, carry=carry, rng=jax.random.fold_in(rng, index), **given)
      # The sum over counted tokens, not their mean: sums of pieces add up to the batch's, which one division
      # turns into its mean. A mean of the pieces' means would weigh tokens of sparsely filled pieces more.
      return out.loss * out.weight, out

    grads, out = jax.grad(total, argnums=(0, 1), has_aux=True)(params, rows)
    nats, metrics = jax.tree.map(lambda x: x * out.weight, (out.loss, out.metrics))
    return grads, out._replace(loss=nats, metrics=metrics)

  if parts == 1:
    grads, sums = piece(0, batch, carry, rows)
  else:
    grads, sums = _in_turn(piece, batch, carry, rows, parts, rng)

  grads = precision.wide(grads)  # Before the quotient: a count of tokens is not exact in bfloat16.

  def mean(x):
    return x / jnp.maximum(sums.weight, 1).astype(x.dtype)

  grads, nats, metrics = jax.tree.map(mean, (grads, sums.loss, sums.metrics))
  return grads, sums._replace(loss=nats, metrics=metrics)


def _in_turn(piece: Callable, batch, carry, rows, parts: int, rng):
  """Adds up what pieces give; their carries, and the gradients of their rows, are put together."""
  # Piece i takes rows i, i + parts, ...: every device keeps its own rows.

  def split(x):
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

  def join(x):
    return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

  pieces = (jnp.arange(parts), *jax.tree.map(split, (batch, carry, rows)))

  def apart(index, batch, carry, rows):
    (grads, row_grads), out = piece(index, batch, carry, rows)
    # Sums of all rows are added up in the scan's carry; what belongs to rows is stacked by it instead.
    return (grads, out._replace(carry=())), (row_grads, out.carry)

  # Shapes alone, without computing a piece; the zeros are of the dtypes that the pieces really have.
  shapes, _ = jax.eval_shape(apart, *jax.tree.map(lambda x: x[0], pieces))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def body(so_far, xs):
    (grads, out), of_rows = apart(*xs)
    # A float32 sum would need twice the memory of the parameters; to the nearest, late pieces would count
    # less and less.
    grads = precision.apply_updates(so_far[0], grads, jax.random.fold_in(rng, xs[0]))
    return (grads, jax.tree.map(jnp.add, so_far[1], out)), of_rows

  # One program for a piece, run `parts` times: memory and compile time do not grow with `parts`.
  (grads, sums), of_rows = jax.lax.scan(body, zeros, pieces)
  row_grads, carry = jax.tree.map(join, of_rows)
  return (grads, row_grads), sums._replace(carry=carry)
