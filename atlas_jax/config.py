"""Reading, saving and comparing the settings of a run; `defaults` lists them all, `fields` checks them."""
import difflib
import pathlib
from typing import Any

import ml_collections
from absl import logging

from atlas_jax import readers, trust
from atlas_jax.defaults import default
from atlas_jax.defaults.mixes import set_mix, set_size
from atlas_jax.defaults.puzzles import published_trm, small_arc
from atlas_jax.fields import (
  FIELDS,
  KINDS,
  OPTIONS,
  SWITCH,
  at,
  check,
  fields_like,
  flat,
  grid_of,
  mixes,
  near,
  nearest,
  need,
  unknown_field,
)
from atlas_jax.files import json_file, write
from atlas_jax.workdir import CONFIG

# Config files and those who hold a config find all they need here.
__all__ = ["FIELDS", "OPTIONS", "SWITCH", "at", "default", "fields_like", "flat", "near", "nearest", "need",
           "published_trm", "set_mix", "set_size", "small_arc", "unknown_field"]


def parse_arg(arg: str | None, **defaults) -> ml_collections.ConfigDict:
  """Reads a config's string argument, such as "cpu,rule=delta": flags by name, others by name=value.

  Args:
    arg: what stands behind the colon of --config=FILE:ARG.
    **defaults: the names allowed; a boolean is a flag, others keep their default's type.

  Raises:
    ValueError: for an unknown name or a value of the wrong type.
  """
  parsed: dict[str, Any] = dict(defaults)
  for part in filter(None, (arg or "").split(",")):
    name, given, text = part.partition("=")
    if name not in defaults:
      known = f"known are {', '.join(sorted(defaults))}" if defaults else "this config takes none"
      close = difflib.get_close_matches(name, defaults, n=1, cutoff=0.6)
      raise ValueError(f"config argument {name!r} is unknown; "
                       f"{f'did you mean {close[0]!r}? ' if close else ''}{known}")
    # bool("no") is True: a flag therefore stands alone and takes no text.
    kind = type(defaults[name])
    if kind is bool and given:
      raise ValueError(f"config argument {part!r}: {name} is a flag, write {name} alone")
    if kind is not bool and not text:
      raise ValueError(f"config argument {name!r} needs a value, {name}=...")
    try:
      parsed[name] = True if kind is bool else kind(text)
    except ValueError:
      raise ValueError(f"config argument {part!r} must be {KINDS[kind]}") from None
  return ml_collections.ConfigDict(parsed)


def choose(arg: ml_collections.ConfigDict, default_name: str, *others: str) -> str:
  """Returns which of several flags of `parse_arg` is set, or the default's name; they exclude each other.

  Raises:
    ValueError: if two are set.
  """
  chosen = [name for name in (default_name, *others) if name in arg and arg[name]]
  if len(chosen) > 1:
    raise ValueError(f"config arguments {' and '.join(map(repr, chosen))} exclude each other")
  return chosen[0] if chosen else default_name


# Sizes for the smoke test of any config; only fields that its recipe reads are set. 257 are the byte values
# and the separator of the byte tokenizer. Segments are four chunks long, so that state passes between chunks.
SMALL_MODEL = {
    **{f"model.{name}": value for name, value in dict(
        vocab_size=257, width=32, depth=2, heads=2, ff_width=48, window_tokens=16, dtype="float32").items()},
    "model.inner.batch_tokens": 16, "model.inner.ff_width": 24,
    **{f"model.memory.{name}": value for name, value in dict(
        heads=2, key_dim=16, value_dim=16, chunk_size=16).items()},
    **{f"decoder.{name}": value for name, value in dict(
        vocab_size=257, width=32, depth=2, heads=2, kv_heads=1, head_dim=16, ff_width=48,
        dtype="float32").items()},
    **{f"trm.{name}": value for name, value in dict(
        width=32, heads=2, n_outer=2, n_inner=2, n_prefix=2, row_width=32, dtype="float32").items()}}
SMALL = {
    "data.tokenizer": "byte", "data.segment_len": 64, "data.batch_rows": 4, "data.threads": 0,
    "data.group_size": 2, "data.max_prompt_tokens": 48, "supervision.n_supervision": 3, "puzzles.n_train": 12,
    "puzzles.n_test": 6, "puzzles.n_augmentations": 2, "puzzles.max_tasks": 3, "puzzles.canvas": 10,
    "sampler.max_tokens": 8, "teacher.max_tokens": 8, "teacher.probe_tokens": 4, "rollout.pad_tokens": 8,
    "optim.warmup_steps": 2, "window.least_tokens": 4, "window.delay_steps": 2,
    "train.log_every_steps": 1, "checkpoint.every_steps": 2, "eval.batch_rows": 4, "eval.max_tokens": 2_048,
    "eval.gain_max_tokens": 1_024, "eval.sample_tokens": 8}

SMALL_EPISODES = {
    "data.segment_len": 256, "episode.most_items": 2, "episode.curriculum_steps": 2,
    "eval.episode_items": "1,2", "eval.episode_distances": "64", "eval.task_samples": 2}
SMALL_BOARDS = {"sudoku": {"puzzles.side": 4}, "maze": {"puzzles.side": 7, "puzzles.min_rating": 5}}


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Makes any config small enough for a CPU test: a few steps of a tiny model; every part still runs."""
  # Nothing is downloaded or read from the user's disk: a smoke test runs on a bare machine.
  if config.recipe in ("memory_lm", "episodic") and config.data.source == "text":
    config.data.name = "python_stdlib"
  config.data.update(download=False, files=None, epochs=None)
  config.puzzles.update(path=None, concept_path=None, epochs=None, one_solution=True)
  config.ranked.eval_files = None
  # After the fields above, since they decide which others are read.
  set_read(config, SMALL)
  if config.recipe == "episodic":  # A segment holds an episode.
    set_read(config, SMALL_EPISODES)
  if config.puzzles.name in SMALL_BOARDS:
    set_read(config, SMALL_BOARDS[config.puzzles.name])
  config.optim.steps = 4
  return shrink_model(config)


def shrink_model(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Makes the model of a config tiny, of whichever kind it is."""
  if config.decoder.learned_positions is not None:
    config.decoder.learned_positions = 256
  if config.model.memory_layers is not None:
    config.model.memory_layers = "1"
  return set_read(config, SMALL_MODEL)


def set_read(config, values: dict[str, Any]) -> ml_collections.ConfigDict:
  """Changes of some fields those that the recipe reads."""
  for name, value in values.items():
    if readers.is_read(config, name):
      group, _, last = name.rpartition(".")
      at(config, group)[last] = value
  return config


def resolve(config: ml_collections.ConfigDict) -> ml_collections.FrozenConfigDict:
  """Checks what can be checked without a device, fills derived fields, and freezes.

  Raises:
    ValueError: names the field, its value, and what to do.
  """
  # A copy: the caller's config keeps its None, and can be changed and resolved again.
  config = ml_collections.ConfigDict(config.copy_and_resolve_references())
  check(config)
  is_memory = config.model.kind == "memory"
  grid = grid_of(config.model.memory_mix)  # A document starts a chunk, or a segment of whole chunks.
  if config.data.align_tokens is None:
    config.data.align_tokens = at(config, grid) if is_memory else 1
  on_grid = (("data.segment_len", grid), ("data.align_tokens", grid)) if is_memory else ()
  for name, parts in on_grid + MULTIPLES:
    value = at(config, name)
    part = at(config, parts)
    if value % part:
      raise ValueError(f"config.{name}={value} is not a multiple of config.{parts}={part}; "
                       f"nearest are {near(value, part)}")
  _check_remat(config)
  _check_stablemax(config)
  return ml_collections.FrozenConfigDict(config)


def unfrozen(config) -> ml_collections.ConfigDict:
  """Returns a copy of a resolved config that can be changed.

  A config's own `as_configdict` gives the same object each time: what one caller changes, the next one reads.
  """
  return config.as_configdict().copy_and_resolve_references()


def _check_remat(config) -> None:
  """Refuses chunks that are to be computed again together and do not divide what is read at once."""
  together = config.model.memory.remat_chunks
  by_segments = config.model.memory_mix in mixes("segments")
  name = "model.window_tokens" if by_segments else "data.segment_len"
  chunks = at(config, name) // config.model.memory.chunk_size
  if together and chunks % together:
    raise ValueError(f"config.model.memory.remat_chunks={together} does not divide the {chunks} chunks of a "
                     f"segment (config.{name} / config.model.memory.chunk_size)")


def _check_stablemax(config) -> None:
  """Refuses what would read the logits of a model trained with stablemax as those of a softmax."""
  if config.loss.kind != "stablemax":
    return
  for name, wrong, remedy in (
      ("model.memory_mix", config.model.memory_mix in mixes("inner_steps"), "take another way of mixing"),
      ("eval.sample_tokens", bool(config.eval.sample_tokens), "set it to 0"),
      ("eval.tasks", "lm_eval" in str(config.eval.tasks), "leave lm_eval out"),
      ("eval.baseline", config.eval.baseline is not None, "set it to None")):
    if wrong:
      raise ValueError(f"config.{name}={at(config, name)!r} takes logits for those of a softmax, and "
                       f"config.loss.kind='stablemax' trains others; {remedy}, or set loss.kind=softmax")


# Checked behind those of a memory: a segment that is no multiple of its chunks is none of align_tokens
# either, which is derived, and the first names the field that the user knows.
MULTIPLES = (("data.segment_len", "data.align_tokens"), ("data.batch_rows", "train.accumulate_steps"))


# What may change between the runs of one workdir: speed, memory, what is measured and kept, and the length.
# None of it decides what an update computes, but the length: the learning rate follows, and a line says so.
FREE = ("checkpoint", "mesh", "hosts", "monitor", "alerts", "eval", "puzzle_eval", "loss.block_tokens",
        "optim.steps", "train", "data.threads", "data.cache_dir", "data.download", "data.bad_input_frac",
        "model.scan_unroll", "model.remat", "model.memory.remat_chunks", "model.memory.impl", "puzzles.path",
        "puzzles.test_path", "puzzles.concept_path", "decoder.remat", "decoder.scan_unroll",
        "decoder.attention_block_tokens", "rollout.table_rows", "ranked.eval_files", "ranked.folder", "vllm",
        "serve", "server", "upload")


# Of these, what training alone reads: any other use of a run would ignore it.
TRAINING_ONLY = ("checkpoint", "monitor", "alerts", "optim.steps", "train", "rollout.table_rows",
                 "ranked.folder")


def is_of_training(name: str) -> bool:
  """Returns whether a field that may change between the runs of one workdir is read by training alone."""
  return name in TRAINING_ONLY or name.startswith(tuple(f"{group}." for group in TRAINING_ONLY))


def is_free(name: str) -> bool:
  """Returns whether a field may change between the runs of one workdir."""
  # With the dot, so that a group stands for its own fields and for no other group whose name begins alike.
  return name in FREE or name.startswith(tuple(f"{group}." for group in FREE))


def check_same(config, workdir) -> None:
  """Refuses a workdir whose run has other settings than these; logs what else has changed.

  Raises:
    ValueError: names the fields that differ.
  """
  if not _file(workdir).exists():
    return
  # Trusted: the two configs are only compared, and what runs is the one that the user gives now.
  changes = _differences(load(workdir, trusted=True), config)
  differ = [f"config.{name} was {old!r}, is {new!r}" for name, old, new in changes if not is_free(name)]
  if differ:
    raise ValueError(f"{_file(workdir)} was written by a run with other settings: {'; '.join(differ)}; use "
                     "another --workdir, or the settings of that run")
  for name, old, new in changes:
    if name == "optim.steps" and new is None:
      continue  # Found again from the data.
    follows = "; from here on the learning rate follows the new length" if name == "optim.steps" else ""
    logging.info("config.%s was %r, is %r%s", name, old, new, follows)


def save(config, workdir) -> None:
  """Writes config.json, whole or not at all; see `check_same` for a workdir that has one."""
  file = _file(workdir)
  file.parent.mkdir(parents=True, exist_ok=True)
  # The signature says who may be imported here, the seal that no bit has changed; the seal is of the
  # signature, too.
  signature = trust.sign(flat(config))
  signed = {trust.SIGNATURE: signature} if signature else {}
  write.json(file, json_file.sealed({**config.to_dict(), **signed}))


def load(workdir, *, given=(), trusted: bool = False) -> ml_collections.FrozenConfigDict:
  """Reads the config a run was made with; it is enough to build the model again.

  Args:
    workdir: of the run.
    given: names of fields that the user gives anew, as flags.
    trusted: whether what it names is the user's own, and not to be checked; nothing is imported here.

  Raises:
    ValueError: if there is none in the workdir, it is damaged, it was made by another version of the program,
      or it came from elsewhere and names code to run; see `trust`.
  """
  file = _file(workdir)
  if not file.is_file():
    raise ValueError(f"--workdir={workdir} holds no run: there is no {file}; train one first with "
                     "--config=configs/memory_40m.py:cpu")
  remedy = "it is damaged: restore it, or use another --workdir"
  saved = json_file.read_sealed(file, remedy=remedy, nan=True)
  signature = saved.pop(trust.SIGNATURE, None)
  # A run of an older version lacks the fields that came later: they get their defaults. Fields that exist no
  # longer are left in, so that `resolve` refuses them and does not train something else.
  fields = default().to_dict()
  fields["model"]["memory"]["options"] = {}  # Those of the run replace the default's, they do not join them.
  config = ml_collections.ConfigDict(_merged(fields, saved))
  # Before anything can import what the config names.
  if not trusted:
    trust.check(flat(config), signature, file, given=given)
  try:
    return resolve(config)
  except (ValueError, TypeError, AttributeError, KeyError) as error:
    raise ValueError(f"{file} is not of this version of the program: {error}") from error


def _merged(old: dict, new: dict) -> dict:
  def both(name):
    return isinstance(old.get(name), dict) and isinstance(new[name], dict)

  return {**old, **{name: _merged(old[name], new[name]) if both(name) else new[name] for name in new}}


def _file(workdir) -> pathlib.Path:
  return pathlib.Path(workdir) / CONFIG


def _differences(old, new) -> list[tuple[str, Any, Any]]:
  flat_old = flat(old)
  flat_new = flat(new)
  # A field that one side lacks counts as None, which is "off" wherever it is allowed.
  return [(name, flat_old.get(name), flat_new.get(name)) for name in sorted({*flat_old, *flat_new})
          if flat_old.get(name) != flat_new.get(name)]
