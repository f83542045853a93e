"""Supervised tuning: a language model learns to write the recorded answers to prompts and chats."""
import functools

import jax
import jax.numpy as jnp

from atlas_jax import config as configs
from atlas_jax import evals
from atlas_jax.data import prompts, sft, stepped
from atlas_jax.evals import examples
from atlas_jax.language import assets, first_params, lengths
from atlas_jax.language.decoding.native import NativeSampler
from atlas_jax.language.initial_model import InitialModel, load_initial_model, merge_frozen
from atlas_jax.losses.sft import sft_loss
from atlas_jax.losses.token_logprobs import token_logprobs
from atlas_jax.models.layer_metrics import layer_metrics
from atlas_jax.recipes import Accounting, Assets, LossOut, Recipe
from atlas_jax.rollout import held_out, reward_columns


def make(config, mesh) -> Recipe:
  """Makes the recipe; see `recipes.load`."""
  start = load_initial_model(config)
  lengths.check_segment_len(config, start)
  source = source_of(config, start, examples_of(config, start, problems_of(config, "train", start)), "train")
  return Recipe(first_params.init_of(start), loss_of(config, start), source, evals_of(config, start, mesh),
                load=first_params.load_of(start), accounting=Accounting(backward_frac=start.backward_frac),
                assets=Assets(save=functools.partial(assets.save, config, start)))


def examples_of(config, start: InitialModel, problems) -> list[sft.Example]:
  """Encodes problems as examples.

  Raises:
    ValueError: naming the field that cannot be, or file and line of a row that cannot be used.
  """
  data = config.data
  found = sft.encode(problems, start.tokenizer, segment_len=data.segment_len,
                     template=start.template, turns=data.turns, overlong=data.overlong)
  for one in found:
    most = start.language.vocab_size
    if one.ids_T.max() >= most:
      raise ValueError(f"{one.where}: has the id {one.ids_T.max()}, the model only {most}; "
                       f"config.data.tokenizer={data.tokenizer!r} and config.data.chat_template="
                       f"{data.chat_template!r} must be those of the model")
  return found


def source_of(config, start: InitialModel, found, split: str, **place) -> sft.SftSource:
  """Puts examples into rows: this process's rows, unless `place` says otherwise.

  Args:
    config: with the fields of config.data.
    start: whose tokenizer encoded them.
    found: the examples.
    split: "train", endless and shuffled, or "held_out", read once in the rows of config.eval.
    **place: process_index and process_count.

  Raises:
    ValueError: if sizes do not divide.
  """
  train = split == "train"
  # A caller with `place` wants other rows than this process's, such as all of them.
  place = place or stepped.this_process()
  return sft.SftSource(
      found, segment_len=config.data.segment_len, doc_id=start.tokenizer.doc_id, packed=config.data.packed,
      batch_rows=config.data.batch_rows if train else config.eval.batch_rows,
      # No seed stands for a source that ends: held-out examples are read once and in order.
      seed=config.seed if train else None, align_tokens=start.language.align_tokens, **place)


def problems_of(config, split: str, start: InitialModel | None = None) -> list:
  """Returns the problems of a split, see `prompts.listed`.

  What nothing reads of the rows is logged, once, with "train"; `start` says what its template shows.
  """
  needs = reward_columns.needs_of(config, start, solution=True, answer=config.data.held_out_frac > 0)
  return prompts.listed(config, split, needs=needs)


def score_of(config, start: InitialModel):
  """Makes (params, batch, frozen) -> (logprob_BT of the batch's targets, statistics of the layers)."""
  language = start.language

  def score(params, batch, frozen):
    params = merge_frozen(params, frozen)
    hidden_BTD, stats = language.read(params, batch["tokens_BT"], batch["doc_BT"])
    logprob_BT = token_logprobs(hidden_BTD, language.head(params), batch["targets_BT"],
                                block_tokens=config.loss.block_tokens)
    return logprob_BT, stats

  return score


def loss_of(config, start: InitialModel):
  """Makes the loss of a batch as `sft.SftSource.next` describes it; see `Recipe.loss`."""
  score = score_of(config, start)

  def loss(params, batch, *, frozen, carry, rng):
    del carry, rng
    logprob_BT, stats = score(params, batch, frozen)
    mean, weight = sft_loss(logprob_BT, batch["weight_BT"], kind=config.sft.loss)
    tokens = jnp.sum(batch["doc_BT"] >= 0, dtype=jnp.float32)  # Those of prompts too.
    return LossOut(mean, weight, (), {**token_metrics(logprob_BT, batch), **layer_metrics(stats)}, tokens)

  return loss


def token_metrics(logprob_BT, batch) -> dict:
  """Returns nats and probability of counted tokens, and the fractions of places that count and are filled."""
  logprob_BT = jax.lax.stop_gradient(logprob_BT)
  counts_BT = batch["weight_BT"] > 0
  count = jnp.maximum(jnp.sum(counts_BT), 1)

  def mean(x_BT):
    return jnp.sum(jnp.where(counts_BT, x_BT, 0)) / count

  return {"sft/nll_nats": mean(-logprob_BT), "sft/probability_mean": mean(jnp.exp(logprob_BT)),
          "sft/counted_frac": jnp.mean(counts_BT.astype(jnp.float32)),
          "sft/filled_frac": jnp.mean((batch["doc_BT"] >= 0).astype(jnp.float32))}


def evals_of(config, start: InitialModel, mesh) -> dict:
  """The evaluations of a run: the loss of held-out examples, and answers to problems that have one.

  None where nothing is held out.
  """
  if not config.data.held_out_frac:
    return {}
  problems = problems_of(config, "held_out")
  found = examples_of(config, start, problems)
  score = score_of(config, start)
  # The first id of an example is not counted: no place before it could predict it.
  if not any(one.learn_T[1:].any() for one in found):
    raise ValueError(f"none of the {len(problems)} held-out examples has a token to learn within "
                     f"config.data.segment_len={config.data.segment_len}; raise it, or set "
                     "config.data.held_out_frac=0 to train without evaluation")
  held_out = functools.partial(source_of, config, start, found, "held_out")
  held_out()  # What is wrong with it is said before anything compiles.
  loss = examples.make(lambda *args: score(*args)[0], held_out, mesh)
  evaluations = {"examples": evals.Eval(loss, "every")}
  if any(problem.answer is not None for problem in problems):
    evaluations["problems"] = evals.Eval(answers_of(config, start, mesh), "every")
  return evaluations


def answers_of(config, start: InitialModel, mesh):
  """Makes the evaluation that has held-out problems answered; see `rollout.held_out.make`.

  Raises:
    ValueError: if another sampler than the native one is asked for.
  """
  if config.sampler.kind != "native":
    # The source of sft owns no sampler, so nothing would stop a server at the end of the run.
    raise ValueError(f"config.sampler.kind={config.sampler.kind!r}: sft answers held-out problems with the "
                     "native sampler alone; set config.sampler.kind='native'")
  config = configs.unfrozen(config)
  config.data.max_prompt_tokens = config.data.segment_len  # Whose rows hold the prompts anyway.
  return held_out.make(config, start, NativeSampler(start.language, start.tokenizer, mesh))
