"""Plain and episodic training as the package has them, with faults of the original around them."""
import functools

import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.evals import Eval, memory_gain
from atlas_jax.evals.recall import episodes as asked
from atlas_jax.language import pretraining
from atlas_jax.losses.next_token import next_token_loss
from atlas_jax.models import head
from atlas_jax.models.layer_metrics import layer_metrics
from atlas_jax.recipes import Accounting, LossOut, Recipe, Update, episodic, memory_lm
from experiments.gate_collapse import faults as forward
from experiments.gate_collapse.config import TASKS

SHUT_BY = 6.0  # The bias of gates that start shut; they let .0025 through.


def make(config, mesh) -> Recipe:
  """Makes the recipe; see `recipes.load`."""
  config, model, _, tokenizer = pretraining.prepare(config)
  train = config.data.options["train"]
  faults = tuple(filter(None, config.data.options["faults"].split("+")))
  learning = forward.with_faults(model, faults)
  used = forward.with_faults(model, [name for name in faults if name not in forward.IN_TRAINING])
  text = functools.partial(pretraining.held_out_of, config, config.eval.gain_max_tokens)
  found = {**pretraining.evals_of(config, used, mesh, with_gain=False),
           "memory_gain": Eval(memory_gain.make(used, text, mesh), "every"),
           "episodes": asked.eval_of(config, used, mesh, TASKS)._replace(when="end")}
  init = pretraining.init_of(config, used)
  init = functools.partial(init_shut, init) if "shut" in faults else init
  if train == "plain":
    return Recipe(init, memory_lm.loss_of(config, learning), pretraining.train_source_of(config), found,
                  update=Update(by_step=pretraining.by_step_of(config)), accounting=Accounting())
  loss = (loss_with_copies if "copy_loss" in faults else episodic.loss_of)(config, learning)
  return Recipe(init, loss, episodic.source_of(config, used, tokenizer), found,
                update=Update(by_step=episodic.by_step_of(config)), accounting=episodic.ACCOUNTING)


def init_shut(init, rng):
  """Returns what training starts from, with gates of reading that are shut."""
  def shut(name: str, leaf):
    return leaf - SHUT_BY if name.endswith("mix_gate/bias") else leaf

  drawn = init(rng)
  return drawn._replace(params=tree.map_named(shut, drawn.params))


def loss_with_copies(config, model):
  """Makes the loss of the original's cycle: every text counts as text, and episodes are shown a second time.

  In the second showing each token is to be said where it is read, which asks nothing of a memory; that has
  the place and the weight of answers. Rows count alike, as in the original, whose batches do.
  """
  def loss(params, batch, *, frozen, carry, rng, phase=None, gate_floor=None):
    del frozen, rng, phase
    out = model.apply({"params": params}, batch["tokens_BT"], carry, doc_BT=batch["doc_BT"],
                      gate_floor=gate_floor)
    copied_BT, none_BT = copied(batch), jnp.zeros_like(batch["weight_BT"])
    nll = functools.partial(next_token_loss, out.hidden_BTD, head.head_weights(params), **config.loss)
    text_BT = nll(batch["targets_BT"], batch["weight_BT"])[2]
    copy_BT = nll(batch["tokens_BT"], copied_BT)[2]
    total = (jnp.mean(row_means(text_BT, batch["weight_BT"]))
             + config.episode.recall_weight * jnp.mean(row_means(copy_BT, copied_BT)))
    weight = jnp.float32(batch["tokens_BT"].size)
    sums = episodic.loss_metrics(text_BT, batch["weight_BT"], none_BT, batch["bytes_BT"], weight)
    of_copies = episodic.loss_metrics(copy_BT, none_BT, copied_BT, batch["bytes_BT"], weight)
    metrics = sums | {name: of_copies[name] for name in ("answer_nats", "answer_tokens")}
    real = jnp.sum(batch["doc_BT"] >= 0).astype(jnp.float32)
    return LossOut(total, weight, out.state, metrics | layer_metrics(out.stats), seen=real)

  return loss


def copied(batch):
  """Returns 1 at the real tokens of rows that hold episodes, each of which is its own target."""
  of_episodes_B1 = jnp.any(batch["answer_BT"] > 0, axis=1, keepdims=True)
  return (of_episodes_B1 & (batch["doc_BT"] >= 0)).astype(batch["answer_BT"].dtype)


def row_means(nll_BT, weight_BT):
  """Returns each row's mean over the tokens that count; 0 where none does."""
  return jnp.sum(nll_BT * weight_BT, axis=1) / jnp.maximum(jnp.sum(weight_BT, axis=1), 1)
