"""Training of memory models from text, as far as recipes share it: model, start, sources, files, evaluations.

A run starts from the seed, or with config.model.path from the parameters of another run of the same model: a
run of its own, with a fresh optimizer, from step 0, on whatever text the config names.
"""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from absl import logging

from atlas_jax import config as configs
from atlas_jax import evals
from atlas_jax.data import source as sources
from atlas_jax.data import stepped
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.evals import accuracy, baseline, baselines, memory_gain, perplexity
from atlas_jax.fields import at
from atlas_jax.files import inventory
from atlas_jax.language import assets
from atlas_jax.language.initial_model import MODEL, InitialModel, find, is_run, load_initial_model
from atlas_jax.models import lm
from atlas_jax.optim import windows
from atlas_jax.state import Init, LoadedParams
from atlas_jax.workdir import TOKENIZER

READS = ("tokens_BT", "targets_BT", "weight_BT", "doc_BT", "bytes_BT")  # Of a batch.
STABLEMAX_VOCABULARY = 1_000  # Tokens above which a warning is logged, see `next_token.stablemax_nll`.


class Prepared(NamedTuple):
  """The parts of a run that are known before any data are read."""

  config: Any  # whose tokenizer is named by its place
  model: lm.LM
  start: InitialModel | None  # what its parameters are read from; None: they are drawn
  tokenizer: tokenizers.Tokenizer


def prepare(config) -> Prepared:
  """Makes the model of a config, and opens its tokenizer and what it starts from.

  Raises:
    ValueError, TypeError: see `model_of`, `start_of`, `with_tokenizer`, `check_vocabulary`.
  """
  model = model_of(config)
  start = start_of(config)
  # From here on the tokenizer is named by its folder: sources and evaluations do not know of `start`.
  config = with_tokenizer(config)
  if model.has_fast_weights and not config.model.memory.writes:
    logging.info("config.model.memory.writes=False: gates and values of the memories get no gradient")
  if config.loss.kind == "stablemax" and config.model.vocab_size > STABLEMAX_VOCABULARY:
    logging.warning("config.loss.kind='stablemax' with config.model.vocab_size=%d: for half of the "
                    "probability a token needs a logit near that number, and embeddings may collapse on the "
                    "way there; it is meant for up to about %d", config.model.vocab_size,
                    STABLEMAX_VOCABULARY)
  tokenizer = tokenizers.load(config.data.tokenizer)  # Of the config: a source of one's own need have none.
  check_vocabulary(config, tokenizer)
  return Prepared(config, model, start, tokenizer)


def model_of(config) -> lm.LM:
  """Makes the network of a config.

  Raises:
    ValueError, TypeError: if it is no memory model, or its rule or one of its options does not fit.
  """
  if config.model.kind != "memory":
    raise ValueError(f"config.model.kind={config.model.kind!r}: config.recipe={config.recipe!r} trains "
                     "memory models; set config.recipe='sft' (configs/sft.py) to tune others")
  return lm.build(config.model.to_dict())


def start_of(config) -> InitialModel | None:
  """Opens what config.model.path names; None where parameters are drawn.

  Raises:
    ValueError: if it is no run of the same memory model, or a run with another tokenizer.
  """
  path = config.model.path
  if path is None:
    return None
  if not is_run(path):
    find(path)
    raise ValueError(f"config.model.path={path!r} is a pretrained model, from which no memory model can "
                     "start; give the workdir of a run of this recipe, or tune it as it is with "
                     "config.recipe='sft' (configs/sft.py)")
  other = configs.load(path)
  if other.model.kind != "memory":
    raise ValueError(f"config.model.path={path!r} is a run of config.recipe={other.recipe!r} without a "
                     "memory model; give one of a memory model, or tune it with config.recipe='sft' "
                     "(configs/sft.py)")
  # A run that itself started from a run names that one's path; its own copies say what the model is.
  changed = configs.unfrozen(other)
  assets.resolve(changed, path)
  check_same_model(config, changed)
  return load_initial_model(config)


# Fields of config.model that say how it is computed, or what is drawn: a start may differ in them.
OTHERWISE_EQUAL = ("path", "dtype", "remat", "scan_unroll", "memory.impl", "memory.remat_chunks",
                   "memory.retention_init", "memory.momentum_init", "memory.write_rate_init",
                   "memory.half_life_spread")
# Lists of which only the length decides on shapes. The second stage of TNT starts with smaller chunks.
SAME_LENGTH = ("memory.options.local_chunks",)


def check_same_model(config, other) -> None:
  """Refuses to start from a run of another model.

  Raises:
    ValueError: names the fields that differ, with both values.
  """
  mine = configs.flat(config.model)
  theirs = configs.flat(other.model)
  same_shapes = [name for name in SAME_LENGTH if name in mine and name in theirs
                 and len(mine[name]) == len(theirs[name])]
  differ = [name for name in sorted({*mine, *theirs} - {*OTHERWISE_EQUAL, *same_shapes})
            if mine.get(name) != theirs.get(name)]
  if differ:
    both = "; ".join(f"config.model.{name} is {mine.get(name)!r}, there {theirs.get(name)!r}"
                     for name in differ)
    raise ValueError(f"config.model.path={config.model.path!r} is a run of another model: {both}; set these "
                     "fields as they are there")


def with_tokenizer(config):
  """Returns a config whose tokenizer "model" is named by its place in the run that training starts from."""
  if config.data.tokenizer != MODEL:
    return config
  if config.model.path is None:
    raise ValueError(f"config.data.tokenizer={MODEL!r} is that of config.model.path, which is None; set "
                     "--config.model.path to the workdir of a run, or name a tokenizer")
  changed = configs.unfrozen(config)
  changed.data.tokenizer = f"{config.model.path}/{TOKENIZER}"
  return configs.resolve(changed)


def load_of(start: InitialModel | None) -> Callable | None:
  """Makes the reader of what training starts from, or None where all of it is drawn."""
  return None if start is None else lambda mesh, fresh: LoadedParams(*start.read(mesh, fresh))


def save_of(config, start: InitialModel | None, tokenizer) -> Callable:
  """Makes the function that writes what using the run needs, also without the run that it started from."""
  def save(workdir) -> None:
    tokenizer.save(workdir / TOKENIZER)
    inventory.seal(workdir / TOKENIZER)
    if start is not None:
      assets.save(config, start, workdir)

  return save


def init_params(config, model: lm.LM, rng):
  """Draws the parameters a run starts from."""
  # One chunk is the least that a memory reads; no parameter's shape depends on the length.
  dummy_BT = jnp.zeros((1, model.align_tokens), jnp.int32)
  return model.init(rng, dummy_BT, model.zero_state(1), doc_BT=dummy_BT)["params"]


def held_out_of(config, max_tokens: int | None, **place):
  """Opens the held-out documents of a config: this process's rows, unless `place` says otherwise."""
  fields = {**sources.fields_of(config.data), "batch_rows": config.eval.batch_rows}
  if config.eval.transform is not None:
    if "transform" not in fields:
      raise ValueError(f"config.eval.transform={config.eval.transform!r} is not read by config.data.source="
                       f"{config.data.source!r}; leave it out")
    fields["transform"] = config.eval.transform
  source = sources.load(**fields, seed=config.seed, split="held_out", max_tokens=max_tokens,
                        **(place or stepped.this_process()))
  return sources.checked(source, name=config.data.source, vocab_size=config.model.vocab_size)


def setting_of(config, source=None) -> dict:
  """Returns what two runs must share for their held-out losses to be compared: text, order and budget.

  Args:
    config: resolved.
    source: of held-out text, which is opened if it is not given.
  """
  if source is None:
    source = held_out_of(config, config.eval.max_tokens)
    source.close()
  state = source.state()
  split = {name: value for name, value in state.items() if name.startswith("held_out")}
  fields = {f"config.{name}": at(config, name) for name in COMPARED}
  fields |= windows.differing(config.window)
  if config.recipe == "episodic":  # As well: those of plain text name no recipe.
    fields |= {f"config.episode.{name}": value for name, value in config.episode.items()}
  return {**data_of(state.get("manifest", {})), **split, **fields}  # A source of one's own may name no text.


# Fields of a config that decide what is read in training and in evaluation, and what attention sees of it.
COMPARED = ("data.segment_len", "data.align_tokens", "data.batch_rows", "data.carry", "optim.steps",
            "eval.batch_rows", "eval.max_tokens", "model.window_tokens")


def data_of(manifest) -> dict:
  """Names the entries of a corpus's manifest as parts of a setting."""
  return {f"data.{name}": value for name, value in manifest.items()}


def train_source_of(config, **place):
  """Opens the training documents of a config: this process's rows, unless `place` says otherwise.

  Args:
    config: resolved.
    place: process_index and process_count, and fields of config.data that differ.

  Raises:
    ValueError: for a source that the loss cannot read; see also `data.source.load`.
  """
  sources.check(config.data.source, READS, recipe=config.recipe)
  fields = {**sources.fields_of(config.data), **(place or stepped.this_process())}
  source = sources.load(**fields, seed=config.seed, split="train")
  return sources.checked(source, name=config.data.source, vocab_size=config.model.vocab_size)


def check_vocabulary(config, tokenizer) -> None:
  """Refuses a model whose vocabulary is not the tokenizer's.

  Raises:
    ValueError: names both sizes.
  """
  if config.model.vocab_size != tokenizer.vocab_size:
    raise ValueError(f"config.model.vocab_size={config.model.vocab_size} is not the vocabulary of "
                     f"config.data.tokenizer={config.data.tokenizer!r}, {tokenizer.vocab_size}; set "
                     f"--config.model.vocab_size={tokenizer.vocab_size}, or choose another tokenizer")


def init_of(config, model: lm.LM):
  """Makes the function from a key to what training starts from."""
  def init(rng):
    # With carry the memory is part of the train state, saved and split over devices by its rows; without it
    # every segment starts from the memory's learned start.
    carry = model.zero_state(config.data.batch_rows) if config.data.carry else ()
    return Init(init_params(config, model, rng), carry=carry)

  return init


def attention_metrics(seen_tokens, keep_B) -> dict:
  """Returns how far attention saw and the fraction of rows that had it, where they are other than all."""
  metrics = {}
  if seen_tokens is not None:
    metrics["train/window_tokens"] = seen_tokens.astype(jnp.float32)
  if keep_B is not None:
    metrics["train/attention_kept_frac"] = jnp.mean(keep_B)
  return metrics


def by_step_of(config) -> Callable | None:
  """Makes the function from an update's number to how far attention sees in it; None: always all of it."""
  fields = {name: value for name, value in config.window.items() if name != "drop_frac"}  # Of the loss.
  window = windows.schedule(**fields, window_tokens=config.model.window_tokens, seed=config.seed)
  return None if window is None else lambda step: {"seen_tokens": window(step)}


def evals_of(config, model, mesh, *, with_gain: bool = True, train_factory: Callable | None = None) -> dict:
  """The evaluations of a run: perplexity as it goes, memory gain, and baselines at its end.

  None where nothing is held out. The held-out documents are opened once here, so that what is wrong with them
  is said before anything compiles.

  Args:
    config, model, mesh: of the run.
    with_gain: whether memory gain is among them, at the end; False where another evaluation measures it.
    train_factory: gives all rows of what is trained on, anew; None: `train_source_of`.
  """
  if not config.data.held_out_frac:
    return {}
  if model.has_fast_weights and config.eval.batch_rows < 2:
    raise ValueError("config.eval.batch_rows=1 leaves no other row whose memory could be swapped in to "
                     "measure memory gain; use 2 or more")
  source = held_out_of(config, config.eval.max_tokens)
  source.close()
  held_out = functools.partial(held_out_of, config)
  found = {"perplexity": evals.Eval(
      perplexity.make(model, functools.partial(held_out, config.eval.max_tokens), mesh,
                      kind=config.loss.kind), "every")}
  if config.eval.accuracy:
    found["accuracy"] = evals.Eval(
        accuracy.make(model, functools.partial(train_source_of, config),
                      functools.partial(held_out, config.eval.max_tokens), mesh, **config.loss), "every")
  if model.has_fast_weights:
    # Every segment is read five times, see `memory_gain.make`, hence a limit of its own.
    if with_gain:
      gain = memory_gain.make(model, functools.partial(held_out, config.eval.gain_max_tokens), mesh,
                              kind=config.loss.kind)
      found["memory_gain"] = evals.Eval(gain, "end")
    if (path := config.eval.baseline) is not None:
      run = baseline.make(baseline.read(path), path, setting_of(config, source))
      found["baseline"] = evals.Eval(run, "end")
  if config.eval.baselines:
    whole = {"process_index": 0, "process_count": 1}  # Counts of all that was read, in every process.
    run = baselines.make(train_factory or functools.partial(train_source_of, config, **whole),
                         functools.partial(held_out, config.eval.max_tokens, **whole),
                         tokenizers.load(config.data.tokenizer))
    found["baselines"] = evals.Eval(run, "end")
  return found
