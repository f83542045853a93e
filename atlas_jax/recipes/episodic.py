"""Episodic training: things are stored in real text and asked for where attention does not see them.

Some rows of a batch are episodes (`data.episodes`), the others plain text whose memory passes on from segment
to segment. The loss is the mean over tokens, of which those of text weigh store_weight and those of answers
recall_weight. An episode stands in one segment, so an answer's gradient flows through the read to what was
written.

The read gate's floor falls in phases; it is an argument of the compiled update, and the model is used with
the last one.
"""
import functools

import jax
import jax.numpy as jnp

from atlas_jax.data import episodes, stepped
from atlas_jax.evals import collapse, recall
from atlas_jax.evals.recall import episodes as asked
from atlas_jax.fields import mixes
from atlas_jax.language import pretraining
from atlas_jax.losses.next_token import next_token_loss
from atlas_jax.models import head, lm
from atlas_jax.models.layer_metrics import layer_metrics
from atlas_jax.optim import floors, windows
from atlas_jax.recipes import Accounting, Assets, LossOut, Recipe, Update


def make(config, mesh) -> Recipe:
  """Makes the recipe; see `recipes.load`.

  Raises:
    ValueError: see `pretraining.prepare`, `source_of`, `floors.schedule`.
  """
  config, model, start, tokenizer = pretraining.prepare(config)
  by_step = by_step_of(config)
  source = source_of(config, model, tokenizer)
  whole = functools.partial(source_of, config, model, tokenizer, process_index=0, process_count=1)
  held_out = functools.partial(pretraining.held_out_of, config)
  found = {**pretraining.evals_of(config, model, mesh, with_gain=False, train_factory=whole),
           **recall.evals_of(config, model, mesh)}
  if config.data.held_out_frac:  # Without, episodes could not be asked in other text than that of training.
    found |= collapse.evals_of(config, model, held_out, mesh)
    found["episodes"] = asked.eval_of(config, model, mesh, list(source.fields.tasks))
  return Recipe(pretraining.init_of(config, model), loss_of(config, model), source, found,
                load=pretraining.load_of(start), update=Update(by_step=by_step), accounting=ACCOUNTING,
                assets=Assets(save=pretraining.save_of(config, start, tokenizer)))


def source_of(config, model: lm.LM, tokenizer, **place) -> episodes.Episodes:
  """Opens the training text of a config and makes episodes of it: this process's rows, or as `place` says.

  Raises:
    ValueError: for a source whose rows cannot be read one by one, or segments too short for an episode.
  """
  count = episodes.text_row_count(config.data.batch_rows, config.episode.text_frac)
  whole = {"process_index": 0, "process_count": 1}  # Rows of text are asked for one by one.
  text = pretraining.train_source_of(config, batch_rows=max(1, count), threads=0, **whole)
  if not (isinstance(text, stepped.IndexedSource) and hasattr(text, "manifest")):
    raise ValueError(f"config.data.source={config.data.source!r} is no text that config.recipe='episodic' "
                     "can read on row by row; take 'text', or an IndexedSource of yours with a manifest")
  setting = recall.setting_of(config, model, [], tokenizer, split="train")
  rows = stepped.rows_of(config.data.batch_rows, **(place or stepped.this_process()))
  return episodes.make(config, text=text, setting=setting, rows=rows)


def by_step_of(config):
  """Makes the function from an update's number to arguments of the loss: phase, floor, reach of attention.

  Raises:
    ValueError: see `floors.schedule` and `floors.check_last`.
  """
  window = pretraining.by_step_of(config) or (lambda step: {})
  if config.model.memory_mix not in mixes("gate"):
    return window
  fields = config.episode
  phases = floors.schedule(phase_fracs=fields.phase_fracs, gate_floors=fields.gate_floors,
                           steps=config.optim.steps)
  floors.check_last(fields.gate_floors, config.model.gate_floor)

  def by_step(step):
    phase, floor = phases(step)
    return {**window(step), "phase": phase, "gate_floor": floor}

  return by_step


def loss_of(config, model: lm.LM):
  """Makes the loss of a batch of `data.episodes`; see `Recipe.loss`.

  It also takes seen_tokens, [] int32, how far attention sees (None: config.model.window_tokens), phase,
  [] int32, and gate_floor, [] float32, the read gates' floor (None: config.model.gate_floor).
  """
  fields = config.episode
  targets = {"read": fields.read_target, "write": fields.write_target}
  check_usage(config, model, targets)

  def loss(params, batch, *, frozen, carry, rng, seen_tokens=None, phase=None, gate_floor=None):
    del frozen
    state = carry if config.data.carry else model.zero_state(batch["tokens_BT"].shape[0])
    keep_B = windows.kept_rows(rng, batch["tokens_BT"].shape[0], config.window.drop_frac)
    out = model.apply({"params": params}, batch["tokens_BT"], state, doc_BT=batch["doc_BT"],
                      seen_tokens=seen_tokens, gate_floor=gate_floor, attention_keep_B=keep_B)
    _, _, nll_BT = next_token_loss(out.hidden_BTD, head.head_weights(params), batch["targets_BT"],
                                   batch["weight_BT"], **config.loss)
    answer_BT = batch["answer_BT"] * batch["weight_BT"]
    text_BT = batch["weight_BT"] - answer_BT
    weight_BT = fields.store_weight * text_BT + fields.recall_weight * answer_BT
    # By tokens, so that what a token weighs does not depend on how few answers its row has.
    weight = jnp.sum(weight_BT)
    mean = jnp.sum(nll_BT * weight_BT) / jnp.maximum(weight, 1)
    mean += price(out.usage, targets, fields.usage_weight)
    metrics = {**loss_metrics(nll_BT, text_BT, answer_BT, batch["bytes_BT"], weight),
               **layer_metrics(out.stats)}
    metrics |= pretraining.attention_metrics(seen_tokens, keep_B)
    given = {"train/phase": phase, "train/gate_floor": gate_floor}
    metrics |= {name: value.astype(jnp.float32) for name, value in given.items() if value is not None}
    real = jnp.sum(batch["doc_BT"] >= 0).astype(jnp.float32)
    return LossOut(mean, weight, out.state if config.data.carry else (), metrics, seen=real)

  return loss


def price(usage, targets, weight: float):
  """Returns the price of gates away from their targets: the mean over blocks of squared differences.

  Raises:
    ValueError: if a gate that has a target is none of the model's.
  """
  found = jnp.float32(0)
  for name, target in targets.items():
    if target is not None and name not in usage:
      raise ValueError(f"config.episode.{name}_target={target} has no {name} gate with a bound to act on: "
                       "config.model.memory.rule has none, or config.model.memory.writes=False; leave it out")
    if target is not None:
      found += weight * jnp.mean((usage[name] - target) ** 2)
  return found


def check_usage(config, model: lm.LM, targets) -> None:
  """Refuses a price of what is not there, or one that costs nothing.

  Raises:
    ValueError: names the fields.
  """
  weight = config.episode.usage_weight
  if (weight > 0) != any(target is not None for target in targets.values()):
    raise ValueError(f"config.episode.usage_weight={weight} is the weight of a price on gates away from "
                     f"config.episode.read_target={targets['read']} and write_target={targets['write']}; set "
                     "the weight above 0 and one of the targets, or neither")
  has = {"read": config.model.memory_mix in mixes("gate") and bool(model.with_memory),
         "write": model.has_fast_weights}
  for name, target in targets.items():
    if target is not None and not has[name]:
      raise ValueError(f"config.episode.{name}_target={target} has no {name} gate to act on with "
                       f"config.model.memory_mix={config.model.memory_mix!r}; leave it out")


def loss_metrics(nll_BT, text_BT, answer_BT, bytes_BT, weight) -> dict:
  """Returns sums over the loss's weight, which `finish` turns into losses; without gradient."""
  nll_BT = jax.lax.stop_gradient(nll_BT)
  sums = {"text_nats": jnp.sum(nll_BT * text_BT), "text_tokens": jnp.sum(text_BT),
          "text_bytes": jnp.sum(bytes_BT * (text_BT > 0)).astype(jnp.float32),
          "answer_nats": jnp.sum(nll_BT * answer_BT), "answer_tokens": jnp.sum(answer_BT)}
  # The loop averages metrics of pieces by their weights: so divided, these add up to the batch's.
  return {name: value / jnp.maximum(weight, 1) for name, value in sums.items()}


def finish(means: dict) -> dict:
  """Turns sums into the losses of text and answers, and bits per byte of text."""
  sums = {name: means[name] for name in ("text_nats", "text_tokens", "text_bytes", "answer_nats",
                                         "answer_tokens")}
  found = {name: value for name, value in means.items() if name not in sums}
  tiny = 1e-9  # Far below one token over a batch's weight.
  found["train/text_loss_nats"] = sums["text_nats"] / jnp.maximum(sums["text_tokens"], tiny)
  found["train/recall_loss_nats"] = sums["answer_nats"] / jnp.maximum(sums["answer_tokens"], tiny)
  found["train/bits_per_byte"] = sums["text_nats"] / jnp.log(2.0) / jnp.maximum(sums["text_bytes"], tiny)
  return found


# The loss is no mean over tokens, so there is no perplexity of it.
ACCOUNTING = Accounting(is_mean_nll=False, finish=finish)
