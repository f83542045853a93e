"""Reading, checking, saving and comparing the settings of a run; `defaults` lists them all."""
import difflib
import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import ml_collections
from absl import logging

from atlas_jax.defaults import default, published_trm, small_arc

__all__ = ["default", "published_trm", "small_arc"]  # For the files in configs/.

# Groups whose fields are not listed here: the rule, the task, the files or the template know them.
OPTIONS = ("model.memory.options", "data.fields", "data.options", "data.template_values")
# May be None, though their default is not.
ALSO_NONE = ("optim.clip_norm", "optim.steps", "policy.sampler_high", "eval.max_problems")
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
SWITCH = {"true": True, "1": True, "false": False, "0": False}


def nearest(name: str, known: Iterable[str]) -> str:
  """Gives "did you mean ...?" for a misspelt name, or lists the known ones."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def unknown_field(name: str) -> str:
  """Says that there is no such field and which one may be meant; its groups may be left out or wrong."""
  ends = {field.rpartition(".")[2]: field for field in reversed(FIELDS)}
  last = name.rpartition(".")[2]
  close = [ends[last]] if last in ends else difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.7)
  close = close or [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.6)]
  known = f"did you mean 'config.{close[0]}'?" if close else "atlas_jax/defaults.py lists all fields"
  return f"there is no field config.{name}; {known}"


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
      raise ValueError(f"config argument {name!r} is unknown; {nearest(name, defaults)}")
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
  """Gives which of several flags of `parse_arg` is set, or the default's name; they exclude each other.

  Raises:
    ValueError: if two are set.
  """
  chosen = [name for name in (default_name, *others) if name in arg and arg[name]]
  if len(chosen) > 1:
    raise ValueError(f"config arguments {' and '.join(map(repr, chosen))} exclude each other")
  return chosen[0] if chosen else default_name


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Makes any config small enough for a CPU test: a few steps of a tiny model; every part still runs."""
  config.data.update(tokenizer="byte", segment_len=64, batch_rows=4, threads=0)
  if config.data.source == "text":
    config.data.name = "python_stdlib"
  config.model.update(vocab_size=257, width=32, depth=2, heads=2, ff_width=48, window_tokens=16,
                      dtype="float32")
  config.model.memory.update(heads=2, key_dim=16, value_dim=16, chunk_size=16)
  config.trm.update(width=32, heads=2, n_outer=2, n_inner=2, n_prefix=2, row_width=32, dtype="float32")
  config.supervision.update(n_supervision=3)
  config.puzzles.update(n_train=12, n_test=6, n_augmentations=2, max_tasks=3, epochs=None)
  if config.puzzles.name == "sudoku":
    config.puzzles.update(side=4, path=None)
  if config.puzzles.name == "maze":
    config.puzzles.update(side=7, min_rating=5, path=None)
  if config.puzzles.name.startswith("arc"):
    config.puzzles.update(canvas=10, concept_path=None)
  config.data.update(download=False, group_size=2, max_prompt_tokens=48, files=None)
  config.ranked.eval_files = None
  if config.decoder.learned_positions is not None:
    config.decoder.learned_positions = 256
  config.decoder.update(vocab_size=257, width=32, depth=2, heads=2, kv_heads=1, head_dim=16, ff_width=48,
                        dtype="float32")
  config.sampler.max_tokens = 8
  config.rollout.pad_tokens = 8
  config.optim.update(steps=4, warmup_steps=2)
  config.train.update(log_every_steps=1)
  config.checkpoint.update(every_steps=2)
  config.eval.update(batch_rows=4, max_tokens=2_048, gain_max_tokens=1_024, sample_tokens=8)
  return config


def resolve(config: ml_collections.ConfigDict) -> ml_collections.FrozenConfigDict:
  """Checks what can be checked without a device, fills derived fields, and freezes.

  Raises:
    ValueError: names the field, its value, and what to do.
  """
  config = ml_collections.ConfigDict(config.copy_and_resolve_references())
  _check_fields(config)
  _check_ranges(config)
  _check_choices(config)
  _check_model(config.model)
  _check_trm(config)
  _check_decoder(config)
  if config.data.align_tokens is None:
    config.data.align_tokens = config.model.memory.chunk_size if config.model.kind == "memory" else 1
  for name, parts in (MEMORY_MULTIPLES if config.model.kind == "memory" else ()) + MULTIPLES:
    value, part = at(config, name), at(config, parts)
    if value % part:
      raise ValueError(f"config.{name}={value} is not a multiple of config.{parts}={part}; "
                       f"nearest are {near(value, part)}")
  chunks = config.data.segment_len // config.model.memory.chunk_size
  together = config.model.memory.remat_chunks
  if together and chunks % together:
    raise ValueError(f"config.model.memory.remat_chunks={together} does not divide the {chunks} chunks of a "
                     "segment (config.data.segment_len / config.model.memory.chunk_size)")
  return ml_collections.FrozenConfigDict(config)


MULTIPLES = (("data.segment_len", "data.align_tokens"), ("data.batch_rows", "train.accumulate_steps"))
MEMORY_MULTIPLES = (
    ("data.segment_len", "model.memory.chunk_size"),
    ("data.align_tokens", "model.memory.chunk_size"))  # A document starts a chunk.


def near(value: int, parts: int) -> str:
  """Names the multiples of `parts` around a value."""
  low = value // parts * parts
  return f"{low} and {low + parts}" if low else str(parts)


POSITIVE = (
    "data.segment_len", "data.batch_rows", "data.limit_bytes", "data.align_tokens", "model.vocab_size",
    "model.width", "model.depth", "model.heads", "model.ff_width", "model.window_tokens", "model.scan_unroll",
    "model.memory.heads", "model.memory.key_dim", "model.memory.value_dim", "model.memory.chunk_size",
    "model.memory.remat_chunks", "optim.steps", "train.accumulate_steps",
    "train.log_every_steps", "train.eval_every_steps", "train.skip_limit", "checkpoint.every_steps",
    "checkpoint.keep_last", "checkpoint.keep_every_steps", "eval.batch_rows", "eval.max_tokens",
    "eval.gain_max_tokens", "loss.block_tokens", "trm.width", "trm.heads", "trm.depth", "trm.n_outer",
    "trm.n_inner", "supervision.n_supervision", "supervision.steps_per_update", "puzzles.n_train",
    "puzzles.n_test", "puzzles.max_tasks", "puzzles.epochs", "puzzles.epochs_per_iteration",
    "puzzle_eval.n_trajectories", "puzzle_eval.max_examples", "data.epochs", "data.max_problems",
    "data.group_size", "data.max_prompt_tokens", "decoder.vocab_size", "decoder.width", "decoder.depth",
    "decoder.heads", "decoder.kv_heads", "decoder.head_dim", "decoder.ff_width", "decoder.learned_positions",
    "decoder.scan_unroll", "decoder.attention_block_tokens", "lora.rank", "rollout.batches",
    "rollout.passes", "rollout.overlong_tokens", "rollout.pad_tokens", "policy.reference_every_steps",
    "eval.max_problems", "sampler.max_tokens", "ranked.max_responses", "vllm.port", "vllm.parallel_requests")
NOT_NEGATIVE = ("seed", "data.threads", "checkpoint.keep_best", "eval.sample_tokens", "trm.n_prefix",
                "trm.row_width", "puzzles.n_augmentations", "puzzles.seed",
                "puzzle_eval.noise_std", "puzzle_eval.pictures", "table.lr", "table.weight_decay",
                "rollout.max_resamples", "rollout.max_staleness", "rollout.table_rows", "eval.temperature",
                "eval.shown", "vllm.retries", "vllm.backoff_s")
ABOVE_ZERO = ("trm.expansion", "trm.norm_eps", "trm.rope_base", "decoder.rope_base", "decoder.norm_eps",
              "lora.alpha", "distill.temperature", "vllm.gap_limit_nats", "vllm.start_timeout_s",
              "vllm.timeout_s")
SHARES = ("data.bad_input_frac", "supervision.explore_prob", "policy.reference_share", "distill.beta",
          "distill.on_policy_frac", "distill.alpha")
CHOICES = {
    "model.memory_mix": "gate none", "model.remat": "none dots block", "model.dtype": "float32 bfloat16",
    "model.memory.impl": "auto reference chunked pallas", "trm.variant": "trm single hrm transformer",
    "trm.mixer": "attention mlp", "trm.positions": "rope learned none", "trm.dtype": "float32 bfloat16",
    "supervision.token_loss": "stablemax softmax", "supervision.loss_dtype": "float32 float64",
    "puzzles.shift": "frozen fresh", "puzzles.sampler": "counter original", "puzzle_eval.mode": "all halting",
    "puzzle_eval.vote": "count noisy_or", "optim.name": "adamw adam_atan2", "optim.decay_of": "matrices all",
    "model.kind": "memory decoder", "decoder.dtype": "float32 bfloat16", "decoder.remat": "none dots block",
    "lora.scaling": "rank sqrt_rank", "data.overlong": "error truncate skip", "data.turns": "all last split",
    "sft.loss": "nll dft", "sampler.kind": "native vllm", "distill.rest": "recorded teacher",
    "distill.alignment": "auto tokens spans",
    "rollout.flat_groups": "keep skip resample", "rollout.truncated": "keep mask drop"}
OPEN_SHARES = ("model.memory.retention_init", "model.memory.momentum_init")


def _check_fields(config) -> None:
  """Checks that the fields are those of `default`, and of their types; a field set to None loses its type."""
  found = {name: value for name, value in _flat(config).items() if not name.startswith(OPTIONS)}
  for name in found:
    if name not in FIELDS:
      raise ValueError(unknown_field(name))
  for name, (kind, optional) in FIELDS.items():
    value = found[name]
    is_kind = isinstance(value, (int, float) if kind is float else kind)
    is_bool = isinstance(value, bool)  # Which is a whole number to Python, but not to a reader.
    if not (is_kind and is_bool == (kind is bool) or optional and value is None):
      raise ValueError(f"config.{name}={value!r} {need(name)}")


def need(name: str) -> str:
  """Says which values a field takes."""
  kind, optional = FIELDS[name]
  return f"must be {KINDS[kind]}{', or None' if optional else ''}"


def _check_ranges(config) -> None:
  for names, fits, need in (
      (POSITIVE, lambda value: value >= 1, "at least 1"),
      (("model.memory.conv_taps",), lambda value: value >= 2, "at least 2"),
      (NOT_NEGATIVE, lambda value: value >= 0, "at least 0"),
      (ABOVE_ZERO, lambda value: 0 < value < math.inf, "above 0"),
      (("puzzle_eval.halt_threshold",), math.isfinite, "a finite number"),
      (SHARES, lambda value: 0 <= value <= 1, "from 0 to 1"),
      (OPEN_SHARES, lambda value: 0 < value < 1, "above 0 and below 1")):
    for name in names:
      value = at(config, name)
      if value is not None and not fits(value):
        raise ValueError(f"config.{name}={value} must be {need}")
  for name in ("seed", "puzzles.seed"):
    if at(config, name) >= 2**32:
      raise ValueError(f"config.{name}={at(config, name)} must be below 2**32")


def at(config, name: str):
  """Gives the field or group that a dotted name stands for."""
  for part in name.split("."):
    config = config[part]
  return config


def _check_choices(config) -> None:
  for name, known in CHOICES.items():
    if (value := at(config, name)) not in known.split():
      raise ValueError(f"config.{name}={value!r} is unknown; {nearest(value, known.split())}")


def _check_trm(config) -> None:
  trm = config.trm
  if trm.width % (2 * trm.heads):
    raise ValueError(f"config.trm.width={trm.width} is not a multiple of 2 * config.trm.heads = "
                     f"{2 * trm.heads}; nearest are {near(trm.width, 2 * trm.heads)}")
  if trm.row_width > trm.n_prefix * trm.width:
    raise ValueError(f"config.trm.row_width={trm.row_width} does not fit into config.trm.n_prefix="
                     f"{trm.n_prefix} positions of config.trm.width={trm.width}; it may be "
                     f"{trm.n_prefix * trm.width} at most")
  if trm.n_prefix and not trm.row_width:
    raise ValueError(f"config.trm.n_prefix={trm.n_prefix} holds puzzle rows, and config.trm.row_width=0 has "
                     "none; set both to 0, or neither")
  if config.optim.steps is None and config.puzzles.epochs is None and config.data.epochs is None:
    raise ValueError("config.optim.steps=None takes the run's length from config.puzzles.epochs or "
                     "config.data.epochs, which are None as well; set one of them")


def _check_decoder(config) -> None:
  decoder = config.decoder
  if decoder.heads % decoder.kv_heads:
    raise ValueError(f"config.decoder.heads={decoder.heads} is not a multiple of config.decoder.kv_heads="
                     f"{decoder.kv_heads}; nearest are {near(decoder.heads, decoder.kv_heads)}")
  if decoder.head_dim % 2:
    raise ValueError(f"config.decoder.head_dim={decoder.head_dim} must be even: rotary positions turn pairs "
                     "of features")


def _check_model(model) -> None:
  if model.width % (2 * model.heads):
    raise ValueError(f"config.model.width={model.width} is not a multiple of 2 * config.model.heads="
                     f"{2 * model.heads} (rotary positions turn pairs of features); nearest are "
                     f"{near(model.width, 2 * model.heads)}")
  if not 0 <= model.gate_floor < 1:
    raise ValueError(f"config.model.gate_floor={model.gate_floor} must be at least 0 and below 1")
  memory = model.memory
  if memory.chunk_size < memory.conv_taps - 1:
    raise ValueError(f"config.model.memory.chunk_size={memory.chunk_size} must be at least conv_taps - 1 = "
                     f"{memory.conv_taps - 1}, so that what the convolutions keep is of one document")
  if not 0 < memory.write_rate_init < memory.write_rate_max:
    raise ValueError(f"config.model.memory.write_rate_init={memory.write_rate_init} must be above 0 and "
                     f"below config.model.memory.write_rate_max={memory.write_rate_max}")


# What may change between the runs of one workdir: speed, memory, what is measured and kept, and the length.
# None of it decides what an update computes, but the length: the learning rate follows, and a line says so.
FREE = ("checkpoint", "mesh", "monitor", "eval", "puzzle_eval", "loss.block_tokens", "optim.steps", "train",
        "data.threads", "data.cache_dir", "data.download", "data.bad_input_frac", "model.scan_unroll",
        "model.remat", "model.memory.remat_chunks", "model.memory.impl", "puzzles.path",
        "puzzles.concept_path", "decoder.remat", "decoder.scan_unroll", "decoder.attention_block_tokens",
        "rollout.table_rows", "ranked.eval_files", "ranked.folder", "vllm")


def is_free(name: str) -> bool:
  """Says whether a field may change between the runs of one workdir."""
  return name in FREE or name.startswith(tuple(f"{group}." for group in FREE))


def check_same(config, workdir) -> None:
  """Refuses a workdir whose run has other settings than these; logs what else has changed.

  Raises:
    ValueError: names the fields that differ.
  """
  if not _file(workdir).exists():
    return
  changes = _differences(load(workdir), config)
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
  part = file.with_suffix(".part")
  part.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
  part.replace(file)


def load(workdir) -> ml_collections.FrozenConfigDict:
  """Reads the config a run was made with; it is enough to build the model again.

  Raises:
    ValueError: if there is none in the workdir, or it was made by another version of the program.
  """
  file = _file(workdir)
  if not file.is_file():
    raise ValueError(f"--workdir={workdir} holds no run: there is no {file}; train one first with "
                     "--config=configs/memory_40m.py:cpu")
  try:
    saved = json.loads(file.read_text())
  except ValueError as error:
    raise ValueError(f"{file} is damaged ({error}); restore it, or use another --workdir") from None
  if not isinstance(saved, dict):
    raise ValueError(f"{file} is damaged (it holds no fields); restore it, or use another --workdir")
  fields = default().to_dict()
  fields["model"]["memory"]["options"] = {}  # Those of the run replace the default's, they do not join them.
  try:
    return resolve(ml_collections.ConfigDict(_merged(fields, saved)))
  except ValueError as error:
    raise ValueError(f"{file} is not of this version of the program: {error}") from error


def _merged(old: dict, new: dict) -> dict:
  both = lambda name: isinstance(old.get(name), dict) and isinstance(new[name], dict)
  return {**old, **{name: _merged(old[name], new[name]) if both(name) else new[name] for name in new}}


def _file(workdir) -> pathlib.Path:
  return pathlib.Path(workdir) / "config.json"


def _flat(config, prefix: str = "") -> dict[str, Any]:
  values = config.to_dict() if hasattr(config, "to_dict") else config
  flat = {}
  for name, value in values.items():
    flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
  return flat


def _differences(old, new) -> list[tuple[str, Any, Any]]:
  flat_old, flat_new = _flat(old), _flat(new)
  return [(name, flat_old.get(name), flat_new.get(name)) for name in sorted({*flat_old, *flat_new})
          if flat_old.get(name) != flat_new.get(name)]


def _types(config, prefix: str = "") -> dict[str, tuple[type, bool]]:
  types = {}
  for name in config:
    kind, full = config.get_type(name), prefix + name
    if kind is ml_collections.ConfigDict:
      types.update(_types(config[name], full + ".") if full not in OPTIONS else {})
    else:
      types[full] = kind, config[name] is None or full in ALSO_NONE
  return types


# Type of each field of `default`, and whether it may be None.
FIELDS = _types(default())
