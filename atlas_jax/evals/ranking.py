"""Ranking of recorded responses by likelihood: held-out loss, pairs in the right order, the top one."""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atlas_jax.evals import EvalOut, stopping
from atlas_jax.losses import ranked
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes


def make(score: Callable, settings: ranked.RankedSettings, source_factory: Callable, mesh: Mesh):
  """Makes the evaluation.

  Args:
    score: (params, batch, frozen) -> (logprob_BGT, ref_logprob_BGT or None), see `ranked.ranked_loss`.
    settings: of the loss.
    source_factory: gives a fresh source whose `next` gives batches of held-out groups, then StopIteration;
      rows past the end have no valid response.
    mesh: over which prompts are split.

  Returns:
    run(trained, *, step) -> EvalOut with "val/prompts" and, over these,
    "val/loss_nats" and the parts of the loss; "val/best_nats", per token of the best response (of equal ones,
    the first); "val/pairs" and "val/pairs_right_frac", the fraction of pairs with an order that likelihoods
    per token put right; "val/top1_prompts", prompts whose responses are not all tied, and "val/top1_frac",
    the fraction of these whose likeliest response is a best one. Fractions of nothing are left out.
  """
  def sums(params, batch, frozen):
    logprob_BGT, ref_BGT = score(params, batch, frozen)
    out = ranked.ranked_loss(logprob_BGT, batch["mask_BGT"], batch["score_BG"], batch["valid_BG"], settings,
                             ref_logprob_BGT=ref_BGT)
    # Means times their weight are sums, which batches add up to; the last batch may hold fewer prompts.
    of_prompts = {name: value * out.weight for name, value in {"loss_nats": out.loss, **out.metrics}.items()}
    counts = {name: jnp.sum(value_B) for name, value_B in orders(logprob_BGT, batch).items()}
    return {"prompts": out.weight, **of_prompts, **counts}

  compiled = jax.jit(sums, out_shardings=meshes.replicated(mesh))

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del step, workdir
    totals: dict[str, float] = {}
    source = source_factory()
    while True:
      stopping.check()
      try:
        batch = hosts.global_batch(mesh, source.next(None))
      except StopIteration:
        return EvalOut(scalars(totals))
      for name, value in compiled(trained.params, batch, trained.frozen).items():
        totals[name] = totals.get(name, 0.0) + float(np.asarray(value, np.float64))

  return run


def orders(logprob_BGT, batch) -> dict:
  """Counts, for each prompt, what likelihoods per token put in the right order.

  Args:
    logprob_BGT: of the responses' tokens.
    batch: mask_BGT, score_BG and valid_BG, as `ranked.ranked_loss` takes them.

  Returns:
    [B] arrays: "pairs" with an order and "pairs_right" of them; "top1_prompts", 1 where there is such a pair,
    and "top1" where besides the likeliest response is a best one; "best_nats" per token of the best response.
  """
  mask_BGT = batch["mask_BGT"]
  score_BG = batch["score_BG"]
  valid_BG = batch["valid_BG"]
  count_BG = jnp.maximum(jnp.sum(mask_BGT, axis=-1), 1).astype(logprob_BGT.dtype)
  # Per token, whatever the loss reduces by: a sum would rank by length.
  mean_BG = jnp.sum(jnp.where(mask_BGT, logprob_BGT, 0), axis=-1) / count_BG
  _, pairs_B, right_frac_B = ranked.pair_loss(mean_BG, score_BG, valid_BG)

  def among(x_BG):
    return jnp.where(valid_BG, x_BG, -jnp.inf)

  def take(x_BG, at_B):
    return jnp.take_along_axis(x_BG, at_B[:, None], axis=1)[:, 0]

  # Of equal ones the first, as argmax takes it.
  best_B = jnp.argmax(among(score_BG), axis=1)
  likeliest_B = jnp.argmax(among(mean_BG), axis=1)
  # Where all scores are tied any choice is a best one, and counting it would only raise the figure.
  choice_B = (pairs_B > 0).astype(mean_BG.dtype)
  # By score and not by place: several responses may be best.
  is_best_B = take(score_BG, likeliest_B) == take(score_BG, best_B)
  there_B = jnp.any(valid_BG, axis=1)
  return {"pairs": pairs_B, "pairs_right": right_frac_B * pairs_B, "top1_prompts": choice_B,
          "top1": choice_B * is_best_B, "best_nats": -jnp.where(there_B, take(mean_BG, best_B), 0)}


def scalars(totals: dict[str, float]) -> dict[str, float]:
  """Turns sums over prompts into metrics; see `make`."""
  found = {f"val/{name}": totals[name] for name in ("prompts", "pairs", "top1_prompts")}
  counted = {"pairs_right": ("pairs", "pairs_right_frac"), "top1": ("top1_prompts", "top1_frac")}
  for name, total in totals.items():
    # What has a count of its own is divided by it; all else is a sum over prompts.
    if name in counted:
      of, fraction = counted[name]
      found |= {f"val/{fraction}": total / totals[of]} if totals[of] else {}
    elif name not in ("prompts", "pairs", "top1_prompts", "ranked/pairs", "ranked/pairs_right_frac"):
      found[f"val/{name.removeprefix('ranked/')}"] = total / totals["prompts"]
  return found
