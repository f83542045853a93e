"""The loss of held-out examples, over the tokens that are to be learnt."""
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atlas_jax.evals import EvalOut, stopping
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes


def make(score, source_factory, mesh: Mesh):
  """Makes the evaluation.

  Args:
    score: (params, batch, frozen) -> logprob_BT, of each of the batch's targets_BT, float32 or wider.
    source_factory: gives a fresh source that ends; a batch's weight_BT is 1 where a target counts, and 0 in
      rows that only fill up.
    mesh: over which rows are split; all processes must read equally many batches.

  Returns:
    run(trained, *, step) -> EvalOut with, over all targets that count, "val/loss_nats",
    "val/perplexity" and "val/tokens".
  """
  def sums(params, batch, frozen):
    counts_BT = batch["weight_BT"] > 0
    # Selected, not multiplied: what stands at padding may be NaN.
    nats_BT = jnp.where(counts_BT, -score(params, batch, frozen), 0)
    return {"nats": jnp.sum(nats_BT), "tokens": jnp.sum(counts_BT, dtype=jnp.float32)}

  sums_of = jax.jit(sums, out_shardings=meshes.replicated(mesh))

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del step, workdir
    totals = np.zeros(2)  # float64: beyond 2^24 tokens float32 would count no further.
    waiting = None
    for batch in _batches(source_factory()):
      # Sums of a batch are read while the next one is computed.
      totals = totals + _pair(waiting)
      waiting = sums_of(trained.params, hosts.global_batch(mesh, batch),
                 trained.frozen)
    nats, tokens = totals + _pair(waiting)
    if not tokens:
      raise ValueError("the held-out examples have no token that counts; raise config.data.held_out_frac")
    loss = nats / tokens
    # exp overflows float64 at 709.8, and Python raises where NumPy gives inf.
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return EvalOut({"val/loss_nats": loss, "val/perplexity": perplexity, "val/tokens": float(tokens)})

  return run


def _batches(source):
  """Yields all batches of a source that ends."""
  while True:
    stopping.check()
    try:
      yield source.next(None)
    except StopIteration:
      return


def _pair(sums) -> np.ndarray:
  return np.zeros(2) if sums is None else np.array([sums["nats"], sums["tokens"]], np.float64)
