"""The memory language model trained on recall, and measured by the fraction of answers that it gets right."""
import functools

import jax.numpy as jnp

from atlas_jax.evals import Eval, EvalOut, held_out
from atlas_jax.language import pretraining
from atlas_jax.models import head, lm
from atlas_jax.recipes import Recipe, Update, memory_lm


def make(config, mesh) -> Recipe:
  """Makes the recipe; see `recipes.load`."""
  model, start = pretraining.model_of(config), pretraining.start_of(config)
  source = functools.partial(pretraining.held_out_of, config, config.eval.max_tokens)
  return Recipe(pretraining.init_of(config, model), memory_lm.loss_of(config, model),
                pretraining.train_source_of(config), {"recall": Eval(accuracy(model, source, mesh), "every")},
                load=pretraining.load_of(start), update=Update(by_step=pretraining.by_step_of(config)))


def accuracy(model: lm.LM, source_factory, mesh):
  """Makes the evaluation.

  Returns:
    run(trained, *, step) -> EvalOut with "val/accuracy", over the answers of held-out sequences.
  """
  def segment(params, state, batch):
    out = model.apply({"params": params}, batch["tokens_BT"], state, doc_BT=batch["doc_BT"])
    guess_BT = jnp.argmax(head.logits(params, out.hidden_BTD), axis=-1)
    right_BT = (guess_BT == batch["targets_BT"]) * batch["weight_BT"]
    return out.state, {"right": jnp.sum(right_BT), "asked": jnp.sum(batch["weight_BT"])}

  step_of = held_out.make_step(segment, mesh)

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del step, workdir
    totals = held_out.add_up(step_of, trained.params, model, source_factory(), mesh)
    return EvalOut({"val/accuracy": float(totals["right"] / totals["asked"])})

  return run


