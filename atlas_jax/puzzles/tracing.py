"""Traces of a recursive model's answers, supervision step by supervision step."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atlas_jax.losses import recursion
from atlas_jax.losses.stablemax import NOT_SCORED, log_stablemax
from atlas_jax.models import act
from atlas_jax.parallel import mesh as meshes
from atlas_jax.puzzles import solver

LOG_CHANCE = {"stablemax": log_stablemax, "softmax": jax.nn.log_softmax}  # As the loss reads logits.


class SolvingTrace(NamedTuple):
  """The answers to some puzzles after each of N supervision steps, all of NumPy."""

  prediction_NBT: np.ndarray  # int32, the likeliest token
  chance_NBT: np.ndarray  # float32, how likely the model takes that token to be
  halt_NB: np.ndarray  # float32, how likely it takes its whole answer to be right

  def changed(self) -> np.ndarray:
    """Returns which tokens differ from those of the step before, [N, B, T]; none at the first step."""
    # The step before the first is not among the answers, so nothing is said to have changed there.
    same = self.prediction_NBT[1:] == self.prediction_NBT[:-1]
    return np.concatenate([np.zeros_like(same, shape=(1, *same.shape[1:])), ~same])

  def solved(self, labels_BT) -> np.ndarray:
    """Says after which steps every scored token is right, [N, B]."""
    labels_BT = np.asarray(labels_BT)
    return np.all((self.prediction_NBT == labels_BT) | (labels_BT == NOT_SCORED), axis=-1)


def trace(model, params, batch: dict, reset: tuple, *, n_supervision: int, tables=(),
          token_loss: str = "stablemax") -> SolvingTrace:
  """Works on all puzzles of a batch at once, and keeps what the model answers after every step.

  Args:
    model, params, batch, reset, tables: see `make`.
    n_supervision: steps.
    token_loss: "stablemax" or "softmax", which the model was trained with: how logits become chances.

  Raises:
    ValueError: if the loss is not known, or a table is needed and missing.
  """
  work = make(model, n_supervision=n_supervision, token_loss=token_loss)
  return work(params, batch, reset, tables)


def make(model, *, n_supervision: int, token_loss: str = "stablemax", mesh: Mesh | None = None):
  """Makes the function that traces a batch of puzzles; it is compiled once for a number of rows.

  Args:
    model: see `solver.make`.
    n_supervision: steps.
    token_loss: see `trace`.
    mesh: where parameters lie; its processes must call the function alike, and each gets the whole trace.
      None: the default device.

  Returns:
    (params, batch, reset, tables) -> `SolvingTrace`. `batch` has inputs_BT, labels_BT and ids_B, as an
    evaluation reads them, `reset` the vectors that latents start from, see `TRM.reset`, and `tables`
    "puzzles", [ids, row_width], if the model needs rows. The last step's answers are those of an evaluation
    in mode "all"; none of them halts early.

  Raises:
    ValueError: if the loss is not known; the function raises it if a table is needed and missing.
  """
  if token_loss not in LOG_CHANCE:
    raise ValueError(f"config.supervision.token_loss={token_loss!r} is not known; choose one of "
                     f"{', '.join(recursion.TOKEN_LOSSES)}")

  def work(params, offered, reset, table):
    rows = len(offered["ids_B"])
    rows_BE = jnp.zeros((rows, 0), jnp.float32) if table is None else table[offered["ids_B"]]
    pool = act.refill(act.empty_pool(model, rows, model.seq_len), offered, tuple(map(jnp.asarray, reset)))

    def step(latents, _):
      out = model.apply({"params": params}, pool.inputs_BT, rows_BE, latents)
      # bfloat16 has three digits: chances near 1 would all be 1.
      logits_BTV = out.logits_BTV.astype(jnp.float32)
      chance_BT = jnp.exp(jnp.max(LOG_CHANCE[token_loss](logits_BTV), axis=-1))
      prediction_BT = jnp.argmax(logits_BTV, axis=-1).astype(jnp.int32)
      return out.latents, SolvingTrace(prediction_BT, chance_BT, jax.nn.sigmoid(out.halt_logit_B))

    return jax.lax.scan(step, pool.latents, length=n_supervision)[1]

  compiled = jax.jit(work) if mesh is None else jax.jit(work, out_shardings=meshes.replicated(mesh))

  def run(params, batch: dict, reset: tuple, tables=()) -> SolvingTrace:
    # NumPy arrays, which every process has alike, and no arrays of one of its devices.
    offered = {name: np.asarray(batch[name], np.int32) for name in ("inputs_BT", "labels_BT", "ids_B")}
    table = solver.table_of(model, tables)
    return jax.tree.map(np.asarray, compiled(params, offered, tuple(map(np.asarray, reset)), table))

  return run
