"""Every setting of a run, with its default, its unit and its meaning; and the checks that need no device."""
import difflib
import json
import pathlib
from typing import Any

import ml_collections
from ml_collections import config_dict

OPTIONAL = config_dict.placeholder


def default() -> ml_collections.ConfigDict:
  """Returns every field with a working value. Configs change what differs; unknown fields are refused."""
  config = ml_collections.ConfigDict()
  config.recipe = "memory_lm"  # Kind of training: a file in recipes/, or a dotted module name.
  config.seed = 0  # Draws parameters, order of data, and everything else random.
  config.data = _data()
  config.model = _model()
  config.loss = ml_collections.ConfigDict({
      "block_tokens": OPTIONAL(int),  # Tokens whose logits exist at the same time; None: all of a batch.
  })
  config.optim = _optim()
  config.train = ml_collections.ConfigDict({
      "accumulate_steps": 1,  # Parts a batch is cut into, one after another, for one update.
      "log_every_steps": 10,  # Updates between rows of metrics.
      "eval_every_steps": OPTIONAL(int),  # Updates between evaluations; None: at the end only.
      "skip_limit": 10,  # Updates in a row with a loss or gradient that is not finite before the run stops.
  })
  config.checkpoint = ml_collections.ConfigDict({
      "every_steps": 1_000,  # Updates between checkpoints.
      "keep_last": 2,  # Newest checkpoints kept.
      "keep_best": 1,  # Checkpoints of lowest held-out bits per byte kept.
      "keep_every_steps": OPTIONAL(int),  # Checkpoints at multiples of this are kept for ever.
  })
  config.mesh = ml_collections.ConfigDict({
      "data": -1,  # Devices with other rows and the same parameters; -1: all that are left.
      "fsdp": 1,  # Devices with other rows and other parts of the parameters.
      "tensor": 1,  # Devices with the same rows and other heads and columns.
  })
  config.eval = ml_collections.ConfigDict({
      "batch_rows": 8,  # Held-out streams read side by side.
      "max_tokens": OPTIONAL(int),  # Held-out tokens read by an evaluation; None: all.
      "gain_max_tokens": 65_536,  # Held-out tokens on which memory gain is measured.
      "baselines": True,  # Whether the end of a run measures trigram and gzip on the same bytes.
      "sample_prompt": "def ",  # Prompt of the text sample at the end of a run.
      "sample_tokens": 200,  # Its length; 0: none.
  })
  config.monitor = ml_collections.ConfigDict({
      "progress": True,  # A progress bar, where there is a terminal.
      "tensorboard": True,  # TensorBoard events beside metrics.jsonl.
  })
  return config.lock()


def _data() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "source": "text",  # A file in data/, or a dotted module name.
      "name": "python_stdlib",  # Corpus: python_stdlib, files, a TFDS name such as lm1b, or hf:NAME.
      "path": OPTIONAL(str),  # Files, folders or a pattern, comma-separated, for name "files".
      "text_field": "text",  # Field of JSON lines or records that holds the text.
      "limit_bytes": OPTIONAL(int),  # Bytes of a corpus that are read; None: all.
      "bad_input_frac": 0.01,  # Share of unreadable documents before it is an error.
      "tokenizer": "byte",  # "byte", or a tokenizer.json or its folder.
      "segment_len": 2_048,  # Tokens per row and update.
      "batch_rows": 16,  # Rows per update, over all processes.
      "held_out_frac": 0.05,  # Share of documents never trained on.
      "align_tokens": OPTIONAL(int),  # Documents start at multiples of it; filled in: the memory's chunk_size.
      "carry": True,  # Whether memory and attention pass from segment to segment of a document.
      "threads": 2,  # Threads that prepare batches.
      "cache_dir": OPTIONAL(str),  # Tokenised corpora; None: the user's cache folder.
      "download": False,  # Whether a corpus that is not here may be fetched.
  })


def _model() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "vocab_size": 257,  # Must be the tokenizer's; 257: bytes and the document mark.
      "width": 512,  # Width of the residual stream.
      "depth": 8,  # Blocks.
      "heads": 8,  # Attention heads.
      "ff_width": 1_408,  # Hidden width of the feed-forward layers.
      "window_tokens": 256,  # How far attention sees, the token itself included.
      "memory_mix": "gate",  # "gate": memory beside attention; "none": attention alone.
      "gate_floor": 0.0,  # Least share of memory's output that enters a block, in [0, 1).
      "dtype": "bfloat16",  # Of activations. Parameters, fast weights and losses are float32.
      "remat": "none",  # Recomputed in the backward pass: "none", "dots" or "block".
      "scan_unroll": 1,  # Blocks unrolled per step of the scan over depth.
      "memory": {
          "rule": "titans",  # A file in memory/rules/, or a dotted module name.
          "options": {"surprise_max": 1.0},  # The rule's own options.
          "heads": 8,  # Memory heads.
          "key_dim": 64,  # Width of keys per head.
          "value_dim": 64,  # Width of values per head.
          "chunk_size": 64,  # Tokens whose writes are computed from one base state.
          "conv_taps": 4,  # Width of the causal convolutions on queries, keys and values.
          "retention_init": 0.995,  # Share of the memory kept per token at the start.
          "momentum_init": 0.6,  # Share of the momentum kept per token at the start.
          "write_rate_init": 0.01,  # Inner step size at the start.
          "write_rate_max": 0.1,  # Its bound.
          "remat_chunks": OPTIONAL(int),  # Chunks recomputed together in the backward pass; None: none.
      },
  })


def _optim() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict({
      "lr": 1e-3,  # Highest learning rate.
      "warmup_steps": 100,  # Updates until it is reached; the first one already moves.
      "steps": 1_000,  # Updates of the run.
      "schedule": "cosine",  # "cosine" or "wsd" (warm-up, stable, decay).
      "decay_frac": 0.2,  # wsd: share of the run spent falling.
      "final_lr_frac": 0.1,  # Learning rate at the end, as a share of the highest.
      "beta1": 0.9,  # Adam's averaging of gradients.
      "beta2": 0.95,  # Adam's averaging of squares.
      "eps": 1e-8,  # Adam's floor under the root.
      "weight_decay": 0.1,  # On matrices only.
      "clip_norm": 1.0,  # Bound of the global gradient norm; None: no bound.
      "ema_decay": OPTIONAL(float),  # Keep of an average of the parameters, used by evals; None: none.
  })


def nearest(name: str, known) -> str:
  """Gives ", did you mean ...?" for a misspelt name, or the known ones."""
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
  return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


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
    if kind is not bool and not given:
      raise ValueError(f"config argument {name!r} needs a value, {name}=...")
    try:
      parsed[name] = True if kind is bool else kind(text)
    except ValueError:
      raise ValueError(f"config argument {part!r}: {text!r} is not of type {kind.__name__}") from None
  return ml_collections.ConfigDict(parsed)


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Makes any config small enough for a CPU test: a few steps of a tiny model; every part still runs."""
  config.data.update(name="python_stdlib", tokenizer="byte", segment_len=64, batch_rows=4, threads=0)
  config.model.update(vocab_size=257, width=32, depth=2, heads=2, ff_width=48, window_tokens=16, dtype="float32")
  config.model.memory.update(heads=2, key_dim=16, value_dim=16, chunk_size=16)
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
  _check_ranges(config)
  _check_model(config.model)
  data, chunk = config.data, config.model.memory.chunk_size
  if data.align_tokens is None:
    data.align_tokens = chunk
  for name, parts in (("model.memory.chunk_size", chunk), ("data.align_tokens", data.align_tokens)):
    if data.segment_len % parts:
      raise ValueError(f"config.data.segment_len={data.segment_len} is not a multiple of config.{name}={parts}; "
                       f"nearest are {_near(data.segment_len, parts)}")
  if data.align_tokens % chunk:
    raise ValueError(f"config.data.align_tokens={data.align_tokens} is not a multiple of "
                     f"config.model.memory.chunk_size={chunk}; a document must start at a chunk's start")
  if data.batch_rows % config.train.accumulate_steps:
    raise ValueError(f"config.data.batch_rows={data.batch_rows} is not a multiple of "
                     f"config.train.accumulate_steps={config.train.accumulate_steps}; nearest are "
                     f"{_near(data.batch_rows, config.train.accumulate_steps)}")
  return ml_collections.FrozenConfigDict(config)


def _near(value: int, parts: int) -> str:
  low = value // parts * parts
  return f"{low} and {low + parts}" if low else str(parts)


POSITIVE = (
    "data.segment_len", "data.batch_rows", "model.vocab_size", "model.width", "model.depth", "model.heads",
    "model.ff_width", "model.window_tokens", "model.scan_unroll", "model.memory.heads", "model.memory.key_dim",
    "model.memory.value_dim", "model.memory.chunk_size", "model.memory.conv_taps", "model.memory.remat_chunks",
    "optim.steps", "train.accumulate_steps", "train.log_every_steps", "train.eval_every_steps",
    "train.skip_limit", "checkpoint.every_steps", "checkpoint.keep_last", "checkpoint.keep_every_steps",
    "eval.batch_rows", "eval.max_tokens", "eval.gain_max_tokens", "loss.block_tokens")
OPEN_SHARES = ("model.memory.retention_init", "model.memory.momentum_init")


def _check_ranges(config) -> None:
  for name in POSITIVE:
    value = _at(config, name)
    if value is not None and value < 1:
      raise ValueError(f"config.{name}={value} must be at least 1")
  for name in OPEN_SHARES:
    value = _at(config, name)
    if not 0 < value < 1:
      raise ValueError(f"config.{name}={value} must lie between 0 and 1")
  if config.eval.sample_tokens < 0:
    raise ValueError(f"config.eval.sample_tokens={config.eval.sample_tokens} must be at least 0; 0 writes none")


def _at(config, name: str):
  for part in name.split("."):
    config = config[part]
  return config


def _check_model(model) -> None:
  for name, known in (("memory_mix", ("gate", "none")), ("remat", ("none", "dots", "block")),
                      ("dtype", ("float32", "bfloat16"))):
    if model[name] not in known:
      raise ValueError(f"config.model.{name}={model[name]!r} is unknown; {nearest(str(model[name]), known)}")
  if model.width % (2 * model.heads):
    raise ValueError(f"config.model.width={model.width} is not a multiple of 2 * config.model.heads="
                     f"{2 * model.heads} (rotary positions turn pairs of features); nearest are "
                     f"{_near(model.width, 2 * model.heads)}")
  if not 0 <= model.gate_floor < 1:
    raise ValueError(f"config.model.gate_floor={model.gate_floor} must lie in [0, 1)")
  memory = model.memory
  if not 0 < memory.write_rate_init < memory.write_rate_max:
    raise ValueError(f"config.model.memory.write_rate_init={memory.write_rate_init} must lie between 0 and "
                     f"write_rate_max={memory.write_rate_max}")


# What may change between the runs of one workdir: nothing of it decides what an update computes.
FREE = ("checkpoint", "mesh", "monitor", "eval", "train.log_every_steps", "train.eval_every_steps",
        "train.skip_limit", "data.threads", "data.cache_dir", "data.download", "optim.steps", "model.scan_unroll",
        "model.remat", "model.memory.remat_chunks", "loss.block_tokens")


def save(config, workdir) -> None:
  """Writes config.json; a workdir made with other settings is refused.

  Raises:
    ValueError: names the fields that differ.
  """
  file = pathlib.Path(workdir) / "config.json"
  if file.exists():
    differ = [f"{name} was {old!r}, is {new!r}" for name, old, new in _differences(load(workdir), config)
              if not name.startswith(FREE)]
    if differ:
      raise ValueError(f"{file} was written by a run with other settings: {'; '.join(differ)}. "
                       "Use another --workdir, or the settings of that run")
  file.parent.mkdir(parents=True, exist_ok=True)
  part = file.with_suffix(".part")
  part.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
  part.replace(file)


def load(workdir) -> ml_collections.FrozenConfigDict:
  """Reads the config a run was made with.

  Raises:
    ValueError: if there is none in the workdir, or it was made by another version of the program.
  """
  file = pathlib.Path(workdir) / "config.json"
  if not file.is_file():
    raise ValueError(f"--workdir={workdir} holds no run: {file} does not exist; train one first with "
                     "--config=configs/memory_40m.py:cpu")
  try:
    saved = json.loads(file.read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f"{file} is not JSON ({error}); restore it, or use another --workdir") from None
  config = default()
  unknown = [name for name, *_ in _differences(saved, config) if _missing(config, name)]
  if unknown:
    raise ValueError(f"{file} has fields this version does not know: {', '.join(unknown)}")
  with config.unlocked():
    config.update(saved)
  return ml_collections.FrozenConfigDict(config)


def _missing(config, name: str) -> bool:
  parts = name.split(".")
  if name.startswith("model.memory.options"):
    return False
  for part in parts:
    if part not in config:
      return True
    config = config[part]
  return False


def _flat(config, prefix: str = "") -> dict[str, Any]:
  values = config.to_dict() if hasattr(config, "to_dict") else config
  flat = {}
  for name, value in values.items():
    flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
  return flat


def _differences(old, new):
  flat_old, flat_new = _flat(old), _flat(new)
  return [(name, flat_old.get(name), flat_new.get(name)) for name in sorted({*flat_old, *flat_new})
          if flat_old.get(name) != flat_new.get(name)]
