"""Plain and episodic training as the package has them, with faults of the original around them."""
import functools
from typing import Any

import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.evals.recall import episodes as asked
from atlas_jax.language import pretraining
from atlas_jax.recipes import Accounting, Recipe, Update, episodic, memory_lm
from experiments.gate_collapse import faults as forward
from experiments.gate_collapse.config import TASKS

SHUT_BY = 6.0  # The bias of gates that start shut; they let .0025 through.


def make(config, mesh) -> Recipe:
  """Makes the recipe; see `recipes.load`."""
  config, model, _, tokenizer = pretraining.prepare(config)
  train, faults = config.data.options["train"], tuple(filter(None, config.data.options["faults"].split("+")))
  learning = forward.with_faults(model, faults)
  used = forward.with_faults(model, [name for name in faults if name not in forward.IN_TRAINING])
  found = {**pretraining.evals_of(config, used, mesh, gain_when="every"),
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

  In the second showing each token is to be said where it is read, which asks nothing of a memory; it takes the
  place and the weight of answers.
  """
  inner: Any = episodic.loss_of(config, model)

  def loss(params, batch, **given):
    text, copies = showings(batch)
    first = inner(params, text, **given)
    again = inner(params, copies, **given)
    metrics = {**first.metrics, **{name: again.metrics[name] for name in ("answer_nats", "answer_tokens")}}
    return first._replace(loss=first.loss + again.loss, metrics=metrics)

  return loss


def showings(batch) -> tuple[dict, dict]:
  """Returns the batch as text alone, and its episodes with each token as its own target."""
  none_BT = jnp.zeros_like(batch["answer_BT"])
  of_episodes_B1 = jnp.any(batch["answer_BT"] > 0, axis=1, keepdims=True)
  copied_BT = (of_episodes_B1 & (batch["doc_BT"] >= 0)).astype(none_BT.dtype)
  copies = {"targets_BT": batch["tokens_BT"], "weight_BT": copied_BT, "answer_BT": copied_BT}
  return {**batch, "answer_BT": none_BT}, {**batch, **copies}
