"""The memory language model trained on far recall, and measured with and without what its memory holds."""
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.evals import Eval, EvalOut, held_out
from atlas_jax.language import pretraining
from atlas_jax.models import head, lm, memories
from atlas_jax.recipes import Recipe, memory_lm
from experiments.rules_on_recall.task import PAIRS

DISTANCES = (1, 64, 256)  # First distance of each bucket, in tokens; the last goes to the text's end.
WAYS = ("as_is", "emptied", "writes_off", "swapped")


def make(config, mesh) -> Recipe:
  """Makes the recipe; see `recipes.load`."""
  model, start = pretraining.model_of(config), pretraining.start_of(config)
  source = functools.partial(pretraining.held_out_of, config, config.eval.max_tokens)
  return Recipe(pretraining.init_of(config, model), memory_lm.loss_of(config, model),
                pretraining.train_source_of(config), {"recall": Eval(accuracy(model, source, mesh), "end")},
                load=pretraining.load_of(start))


def accuracy(model: lm.LM, source_factory, mesh):
  """Makes the evaluation, on held-out texts.

  Their second half is read in four ways: as it is; "emptied", every memory holds nothing and nothing is
  written; "writes_off", every memory stands at its learned start and nothing is written; "swapped", every
  memory is that of another text, and writes go on. Attention and convolutions go on as they were. What counts
  of it are the questions for pairs that were shown last in the first half.

  Returns:
    run(trained, *, step) -> EvalOut with the fraction of right answers "val/accuracy", by distance
    "val/accuracy_from/64" and so on, by number of pairs "val/accuracy_pairs/8", by both
    "val/accuracy_pairs/8_from/64", and across the halves "val/across_WAY" for each of WAYS, of
    which a model without memory has the first alone.
  """
  step_of = held_out.make_step(functools.partial(_text, model), mesh)

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del step, workdir
    totals = held_out.add_up(step_of, trained.params, model, source_factory(), mesh)
    right_ND, asked_ND = totals["right"], totals["asked"]
    kinds: dict = {"val/accuracy": ...}
    kinds |= {f"val/accuracy_from/{first}": np.s_[:, d] for d, first in enumerate(DISTANCES)}
    for n, pairs in enumerate(PAIRS):
      kinds[f"val/accuracy_pairs/{pairs}"] = n
      kinds |= {f"val/accuracy_pairs/{pairs}_from/{first}": (n, d) for d, first in enumerate(DISTANCES)}
    scalars = {name: right_ND[kind].sum() / asked_ND[kind].sum() for name, kind in kinds.items()
               if asked_ND[kind].sum()}
    for way, right in zip(WAYS, totals["across_right"]):
      scalars[f"val/across_{way}"] = right / totals["across_asked"]
    return EvalOut({name: float(value) for name, value in scalars.items()})

  return run


def _text(model: lm.LM, params, state: lm.LMState, batch: dict):
  half = batch["tokens_BT"].shape[1] // 2
  first, second = ({name: x[:, part] for name, x in batch.items()}
                   for part in (slice(half), slice(half, None)))
  after, right_BT = _read(model, params, state, first)
  states, learned, writes = _ways(model, params, after)

  def read(way):
    state, learned, writes = way
    taught = memories.with_learned(model, params, learned) if model.with_memory else params
    return _read(model, taught, state, second, writes)

  ends, right_WBT = jax.lax.map(read, (states, learned, writes))
  right_BT = jnp.concatenate([right_BT, right_WBT[0]], axis=1)
  across_BT = second["weight_BT"] * (second["distance_BT"] > second["pos_BT"] - half)
  sums = {"right": _by_kind(right_BT, batch), "asked": _by_kind(batch["weight_BT"], batch),
          "across_right": jnp.sum(right_WBT * across_BT[None], axis=(1, 2)),
          "across_asked": jnp.sum(across_BT)}
  return jax.tree.map(lambda leaf: leaf[0], ends), sums


def _read(model: lm.LM, params, state: lm.LMState, batch: dict, writes=None):
  writes = writes if model.with_memory and model.memory["writes"] else None
  out: Any = model.apply({"params": params}, batch["tokens_BT"], state, doc_BT=batch["doc_BT"],
                         memory_writes=writes)
  guess_BT = jnp.argmax(head.logits(params, out.hidden_BTD), axis=-1)
  return out.state, (guess_BT == batch["targets_BT"]) * batch["weight_BT"]


def _ways(model: lm.LM, params, state: lm.LMState):
  """Stacks what each way starts from: the state, what memories have learned, whether they write."""
  learned: Any = ()
  ways = [(state, learned, True)]
  if model.with_memory:
    learned = memories.learned_memory(model, params)
    empty = memories.emptied(model, learned)
    ways = [(state, learned, True), (memories.started(model, empty, state), empty, False),
            (memories.started(model, learned, state), learned, False),
            (memories.swapped(model, state), learned, True)]
  return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *ways)


def _by_kind(x_BT, batch: dict):
  """Adds up by number of pairs and by bucket of distances."""
  distance_BT, pairs_BT = batch["distance_BT"], batch["pairs_BT"]
  in_BTD = jnp.stack([(distance_BT >= first) & (distance_BT < end)
                      for first, end in zip(DISTANCES, (*DISTANCES[1:], 2**30))], axis=-1)
  of_BTN = jnp.stack([pairs_BT == pairs for pairs in PAIRS], axis=-1)
  kinds = (x_BT, of_BTN.astype(x_BT.dtype), in_BTD.astype(x_BT.dtype))
  return jnp.einsum("bt,btn,btd->nd", *kinds)
