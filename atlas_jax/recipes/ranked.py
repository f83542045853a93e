"""Tuning on ranked responses: recorded answers to a prompt, of which the better ones become likelier.

At its end a run leaves a folder with the trained model, its vocabulary and what is known of its training.

Source: the ranked-response objective of the Atlas guide to training a model of 1.1B parameters from scratch.
"""
import functools
import pathlib

import jax
import jax.numpy as jnp

from atlas_jax import evals
from atlas_jax.data import ranked as data
from atlas_jax.data import responses, stepped
from atlas_jax.data.traces import sources as traces
from atlas_jax.evals import ranking
from atlas_jax.language import assets, first_params, lengths
from atlas_jax.language.initial_model import InitialModel, load_initial_model, merge_frozen
from atlas_jax.language.pretrained import model_folder
from atlas_jax.losses import ranked
from atlas_jax.losses.token_logprobs import token_logprobs
from atlas_jax.models.layer_metrics import layer_metrics
from atlas_jax.recipes import Accounting, Assets, LossOut, Recipe
from atlas_jax.state import Trained

NON_LOSS_FIELDS = ("eval_files", "max_responses", "folder")  # Of config.ranked.
SPLITS = ("train", "held_out")
RIGHT = "ranked/pairs_right_frac"
PAIRS = "ranked/pairs"


def make(config, mesh) -> Recipe:
  """Makes the recipe; see `recipes.load`."""
  settings = settings_of(config)
  model_folder.check_name("ranked.folder", config.ranked.folder)
  start = load_initial_model(config)
  lengths.check_segment_len(config, start)
  groups = groups_of(config, start)
  source = source_of(config, start, groups["train"], "train")

  def save(workdir) -> None:
    assets.save(config, start, workdir)
    model_folder.write_vocabulary(workdir, start.tokenizer)

  def export(workdir, trained: Trained, summary) -> None:
    # Every process takes part, for parameters may lie on the devices of all; only process 0 has a summary.
    folder = pathlib.Path(workdir) / config.ranked.folder
    stats = stats_of(config, groups, summary) if summary else {}
    model_folder.write(folder, config, start, merge_frozen(trained.params, trained.frozen), stats)

  compares = needs_reference(settings)
  backward_frac = start.backward_frac / (2 if compares else 1)  # A reference is only read.
  return Recipe(first_params.init_of(start, reference=compares), loss_of(config, start, settings), source,
                evals_of(config, start, settings, groups, mesh),
                load=first_params.load_of(start, reference=compares),
                accounting=Accounting("prompts", finish, optional=(RIGHT,), backward_frac=backward_frac),
                assets=Assets(save, export=export))


def settings_of(config) -> ranked.RankedSettings:
  """Returns the settings of the loss.

  Raises:
    ValueError: if they cannot be.
  """
  fields = {name: value for name, value in config.ranked.items() if name not in NON_LOSS_FIELDS}
  return ranked.RankedSettings(**fields)


def needs_reference(settings: ranked.RankedSettings) -> bool:
  """Returns whether the loss compares with the model that training starts from."""
  return settings.anchored or settings.kl_weight > 0


def groups_of(config, start: InitialModel) -> dict[str, list[responses.AnswerGroup]]:
  """Reads the groups of both splits; see `data.ranked.load`, and `data.traces.pairs` for traces."""
  fields = config.data
  if fields.name == traces.NAME:
    if config.ranked.eval_files is not None:
      raise ValueError(f"config.ranked.eval_files={config.ranked.eval_files!r}: of traces a part is held "
                       "out; set config.data.held_out_frac in its place")
    sides = traces.load_groups(fields.files, config.traces, held_out_frac=fields.held_out_frac)
    return dict(zip(SPLITS, sides, strict=True))
  found = data.load(files=fields.files, eval_files=config.ranked.eval_files, name=fields.name,
                    held_out_frac=fields.held_out_frac, seed=config.seed, options=fields.options.to_dict(),
                    fields=fields.fields.to_dict(), template=start.template)
  return dict(zip(SPLITS, found, strict=True))


def source_of(config, start: InitialModel, found, split: str, **place) -> data.RankedSource:
  """Encodes groups and batches them: this process's rows, unless `place` says otherwise.

  Args:
    config: with the fields of config.data.
    start: whose tokenizer and template encode them.
    found: the groups.
    split: "train", endless and shuffled, or "held_out", read once in the rows of config.eval.
    **place: process_index and process_count.

  Raises:
    ValueError: naming the place of a response that cannot be used, or fields that do not fit.
  """
  fields = config.data
  train = split == "train"
  coded = data.encode(found, start.tokenizer, segment_len=fields.segment_len, template=start.template,
                      overlong=fields.overlong, max_responses=config.ranked.max_responses)
  for one in coded:
    # An id beyond the embedding has no vector; on a device the lookup would go on without an error.
    highest = max(int(row.ids_T.max()) for row in one.rows)
    if highest >= start.language.vocab_size:
      raise ValueError(f"{one.where}: has the id {highest}, the model only {start.language.vocab_size}; "
                       f"config.data.tokenizer={fields.tokenizer!r} and config.data.chat_template="
                       f"{fields.chat_template!r} must be those of the model")
  return data.RankedSource(
      coded, batch_rows=fields.batch_rows if train else config.eval.batch_rows,
      doc_id=start.tokenizer.doc_id, seed=config.seed if train else None,
      align_tokens=start.language.align_tokens, **(place or stepped.this_process()))


def score_of(config, start: InitialModel, settings: ranked.RankedSettings):
  """Makes (params, batch, frozen) -> (logprob_BGT, the reference's or None, statistics of the layers)."""
  language = start.language

  def score(params, batch):
    # Responses become rows of one batch: a group meets only in the
    # loss, so prompts are read once per response.
    def flat(x_BGT):
      return x_BGT.reshape(-1, x_BGT.shape[-1])

    hidden_BTD, stats = language.read(params, flat(batch["tokens_BGT"]), flat(batch["doc_BGT"]))
    logprob_BT = token_logprobs(hidden_BTD, language.head(params), flat(batch["targets_BGT"]),
                                block_tokens=config.loss.block_tokens)
    return logprob_BT.reshape(batch["tokens_BGT"].shape), stats

  def both(params, batch, frozen):
    logprob_BGT, stats = score(merge_frozen(params, frozen), batch)
    if not needs_reference(settings):
      return logprob_BGT, None, stats
    # A reference of adapters is a copy of them and joined with the same base as the policy.
    ref_logprob_BGT, _ = score(merge_frozen(frozen[first_params.REFERENCE], frozen), batch)
    return logprob_BGT, jax.lax.stop_gradient(ref_logprob_BGT), stats

  return both


def loss_of(config, start: InitialModel, settings: ranked.RankedSettings):
  """Makes the loss of a batch as `RankedSource.next` describes it; see `Recipe.loss`. It weighs prompts."""
  score = score_of(config, start, settings)

  def loss(params, batch, *, frozen, carry, rng):
    del carry, rng
    logprob_BGT, ref_logprob_BGT, stats = score(params, batch, frozen)
    out = ranked.ranked_loss(logprob_BGT, batch["mask_BGT"], batch["score_BG"], batch["valid_BG"], settings,
                             ref_logprob_BGT=ref_logprob_BGT)
    # Pairs by the mean per token, whatever config.ranked.reduction the loss uses, so that runs compare.
    order = ranking.orders(jax.lax.stop_gradient(logprob_BGT), batch)

    def mean(x_B):
      return jnp.sum(x_B) / jnp.maximum(out.weight, 1)

    # Counts per prompt, not fractions: averages over pieces of a batch stay right, and `finish` divides them.
    metrics = {**out.metrics, PAIRS: mean(order["pairs"]), RIGHT: mean(order["pairs_right"]),
               "ranked/best_nats": mean(order["best_nats"])}
    return LossOut(out.loss, out.weight, (), {**metrics, **layer_metrics(stats)})

  return loss


def finish(means: dict) -> dict:
  """Turns right pairs per prompt into a fraction of all pairs; see `recipes.Accounting`."""
  # 0 / 0 where no prompt has a pair: `Accounting.optional` has this metric left out then.
  return {**means, RIGHT: means[RIGHT] / means[PAIRS]}


def evals_of(config, start: InitialModel, settings: ranked.RankedSettings, groups, mesh) -> dict:
  """The evaluation of a run: how it ranks the responses to held-out prompts; none without any."""
  if not groups["held_out"]:
    return {}
  score = score_of(config, start, settings)
  held_out = functools.partial(
source_of, config, start, groups["held_out"], "held_out")
  held_out()  # What is wrong with it is said before anything compiles.
  run = ranking.make(lambda *args: score(*args)[:2], settings, held_out, mesh)
  return {"ranking": evals.Eval(run, "every")}


def stats_of(config, groups, summary: dict) -> dict:
  """Returns what is known of a training: its summary, settings and data."""
  return {
      **summary, "epochs": summary["prompts_seen"] / len(groups["train"]), "learning_rate": config.optim.lr,
      "batch_size": config.data.batch_rows, "grpo_preference_weight": config.ranked.pair_weight,
      "ranked": config.ranked.to_dict(),
      "data": {"files": config.data.files, **{split: responses.counts(groups[split]) for split in SPLITS}}}
