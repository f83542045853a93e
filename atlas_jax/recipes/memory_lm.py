"""Next-token training of a decoder whose memory passes from segment to segment of a document.

It starts from the seed, or with config.model.path from the parameters of another run of the same model: a run
of its own, with a fresh optimizer, from step 0, on whatever text the config names.
"""
import jax
import jax.numpy as jnp

from atlas_jax.evals import recall
from atlas_jax.language import pretraining
from atlas_jax.losses.next_token import next_token_loss
from atlas_jax.models import head, lm
from atlas_jax.models.layer_metrics import layer_metrics
from atlas_jax.recipes import Assets, LossOut, Recipe, Update


def make(config, mesh) -> Recipe:
  """Makes the recipe; see `recipes.load`."""
  config, model, start, tokenizer = pretraining.prepare(config)
  source = pretraining.train_source_of(config)
  found = {**pretraining.evals_of(config, model, mesh), **recall.evals_of(config, model, mesh)}
  return Recipe(pretraining.init_of(config, model), loss_of(config, model), source, found,
                load=pretraining.load_of(start), update=Update(by_step=pretraining.by_step_of(config)),
                assets=Assets(save=pretraining.save_of(config, start, tokenizer)))


def loss_of(config, model: lm.LM):
  """Makes the loss of a batch as `packing.read_row` describes it; see `Recipe.loss`.

  It also takes seen_tokens, [] int32: how far attention sees; None: config.model.window_tokens.
  """
  def loss(params, batch, *, frozen, carry, rng, seen_tokens=None):
    del frozen, rng
    # Documents that end inside of a row reset the memory there by doc_BT; the state is of whole rows.
    state = carry if config.data.carry else model.zero_state(batch["tokens_BT"].shape[0])
    out = model.apply({"params": params}, batch["tokens_BT"], state, doc_BT=batch["doc_BT"],
                      seen_tokens=seen_tokens)
    mean, weight, nll_BT = next_token_loss(out.hidden_BTD, head.head_weights(params), batch["targets_BT"],
                                           batch["weight_BT"], **config.loss)
    # For a metric alone, so without gradient. Bits per byte compare across tokenizers; nats per token do not.
    nats = jnp.sum(jax.lax.stop_gradient(nll_BT) * batch["weight_BT"])
    bits_per_byte = nats / jnp.log(2.0) / jnp.maximum(jnp.sum(batch["bytes_BT"]), 1)
    metrics = {"train/bits_per_byte": bits_per_byte, **layer_metrics(out.stats)}
    if seen_tokens is not None:
      metrics["train/window_tokens"] = seen_tokens.astype(jnp.float32)
    return LossOut(mean, weight, out.state if config.data.carry else (), metrics)

  return loss
