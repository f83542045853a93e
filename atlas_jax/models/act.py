"""Adaptive computation time: a pool of puzzles that leave when they halt and make room for others.

A slot works on one puzzle for several supervision steps. When it halts, the next call of `refill` gives it
the puzzle offered to it; what is offered to a slot still at work is passed over.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

MIN_EXPLORED_STEPS = 2


class Pool(NamedTuple):
  """Puzzles at work; every leaf leads with B."""

  latents: tuple  # each [B, n_prefix + T, D]
  steps_B: Any  # int32, supervision steps made on this puzzle
  halted_B: Any  # bool, whether the slot takes a new puzzle next
  inputs_BT: Any  # int32
  labels_BT: Any  # int32, -100 where nothing is scored
  ids_B: Any  # int32, rows of the puzzle table


def empty_pool(model, batch_rows: int, seq_len: int) -> Pool:
  """Returns a pool whose every slot is free."""
  tokens_BT = jnp.zeros((batch_rows, seq_len), jnp.int32)
  return Pool(latents=model.zero_latents(batch_rows), steps_B=jnp.zeros((batch_rows,), jnp.int32),
              halted_B=jnp.ones((batch_rows,), bool), inputs_BT=tokens_BT,
              labels_BT=jnp.full_like(tokens_BT, -100), ids_B=jnp.zeros((batch_rows,), jnp.int32))


def refill(pool: Pool, batch: dict, reset: tuple) -> Pool:
  """Puts into every halted slot the puzzle offered to it.

  Args:
    pool: what the last step left.
    batch: inputs_BT, labels_BT and ids_B, one puzzle per slot.
    reset: the vector that each latent starts from, see `TRM.reset`.

  Returns:
    The pool to work on. Refilled slots have made no step; all others are as they were.
  """
  def choose(new, old):
    return jnp.where(pool.halted_B.reshape(-1, *(1,) * (old.ndim - 1)), new.astype(old.dtype), old)

  latents = tuple(choose(start[None, None], old) for start, old in zip(reset, pool.latents, strict=True))
  return Pool(latents=latents, steps_B=jnp.where(pool.halted_B, 0, pool.steps_B),
              halted_B=jnp.zeros_like(pool.halted_B), inputs_BT=choose(batch["inputs_BT"], pool.inputs_BT),
              labels_BT=choose(batch["labels_BT"], pool.labels_BT), ids_B=choose(batch["ids_B"], pool.ids_B))


def halt(steps_B, halt_logit_B, rng, *, n_supervision: int, explore_prob: float, continue_logit_B=None):
  """Returns which slots have finished their puzzle, in training.

  A slot halts when its halting logit is above 0 (above the continue logit, if that is given). Some slots,
  drawn anew at every step, must have made a random number of steps first. The last step halts in any case.

  Args:
    steps_B: steps made before this one.
    halt_logit_B, continue_logit_B: what this step gave.
    rng: key of this step; two draws per slot.
    n_supervision: most steps on a puzzle.
    explore_prob: probability that a slot draws a least number of steps, uniform in 2 .. n_supervision.

  Returns:
    (steps_B, halted_B), this step counted.
  """
  steps_B = steps_B + 1
  halted_B = steps_B >= n_supervision
  # The draw below would be from 2 to 1.
  if n_supervision == 1:
    return steps_B, halted_B
  bound_B = jnp.zeros_like(halt_logit_B) if continue_logit_B is None else continue_logit_B
  explore_key, least_key = jax.random.split(rng)
  explores_B = jax.random.uniform(explore_key, steps_B.shape) < explore_prob
  least_B = jax.random.randint(least_key, steps_B.shape, MIN_EXPLORED_STEPS, n_supervision + 1)
  # A least number is at most n_supervision, so that the last step passes the second condition in any case.
  halted_B = (halted_B | (halt_logit_B > bound_B)) & (steps_B >= jnp.where(explores_B, least_B, 0))
  return steps_B, halted_B


def halt_eval(steps_B, halt_logit_B, *, n_supervision: int, threshold: float | None = None):
  """Returns which slots have finished their puzzle, in evaluation.

  Args:
    steps_B: steps made before this one.
    halt_logit_B: what this step gave.
    n_supervision: steps on a puzzle.
    threshold: None: every puzzle has all its steps. Else a slot halts early when its logit is above it.

  Returns:
    (steps_B, halted_B), this step counted.
  """
  steps_B = steps_B + 1
  halted_B = steps_B >= n_supervision
  return steps_B, halted_B if threshold is None else halted_B | (halt_logit_B > threshold)


def continue_target(halt_logit_B, continue_logit_B, last_B):
  """Returns what the continue logit is trained towards, in [0, 1].

  Args:
    halt_logit_B, continue_logit_B: of one more step, whose latents are not kept.
    last_B: where this step was the last: there only halting is left.
  """
  # The target of Q-learning: the better of both actions one step on.
  best_B = jnp.where(last_B, halt_logit_B, jnp.maximum(halt_logit_B, continue_logit_B))
  return jax.lax.stop_gradient(jax.nn.sigmoid(best_B))
