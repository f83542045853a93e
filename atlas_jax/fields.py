"""Fields and the values they take: what can be checked of a config by itself."""
import difflib
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import ml_collections

from atlas_jax import aliases, modules
from atlas_jax.defaults import bounded, default

# Groups whose fields are not listed here: the rule, the task, the files or the template know them.
OPTIONS = ("model.memory.options", "data.fields", "data.options", "data.template_values", "alerts.rules")
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
# Ways of mixing memory into a block by name, and what is true of each, see `models.blocks`. Read from the
# text of the files: importing them loads the models, and a check of settings must do without.
MIXES: dict[str, tuple[str, ...]] = modules.constants("models/blocks", "HAS")
BOUNDED = bounded()
CHOICES = {name: one.choices for name, one in BOUNDED.items() if one.choices} | {
    "model.memory_mix": tuple(MIXES)}
SWITCH = {"true": True, "1": True, "false": False, "0": False}


def _types(config, prefix: str = "") -> dict[str, tuple[type, bool]]:
  types = {}
  for name in config:
    # A placeholder has a type although its value is None; type(None) would be all that is known otherwise.
    kind = config.get_type(name)
    full = prefix + name
    if kind is ml_collections.ConfigDict:
      types.update(_types(config[name], full + ".") if full not in OPTIONS else {})
    else:
      types[full] = kind, config[name] is None or full in BOUNDED and BOUNDED[full].may_be_none
  return types


# Type of each field of `default`, and whether it may be None.
FIELDS = _types(default())


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns "did you mean ...?" for a misspelt name, or lists the known ones."""
  known = sorted(known)
  # 0.6 is difflib's own default: a letter or two of a short name may be wrong.
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


class Likely(NamedTuple):
  """Fields that a name may stand for."""

  names: list[str]
  is_guess: bool  # whether the name is only spelt like them


def fields_like(name: str) -> Likely | None:
  """Returns the fields that a name stands for; its groups may be left out or wrong. None: none is like it."""
  last = name.rpartition(".")[2]
  if name in FIELDS:
    return Likely([name], False)
  if last in aliases.ALIASES:
    return Likely([aliases.ALIASES[last]], False)
  if same := [field for field in FIELDS if field.rpartition(".")[2] == last]:
    return Likely(same, False)
  # Of several fields with one ending the first listed stays, as the last one put into a dict does.
  ends = {field.rpartition(".")[2]: field for field in reversed(FIELDS)}
  # Whole names must be nearer than endings: two long names are alike by their groups alone.
  close = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.7)
  close = close or [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.6)]
  return Likely(close, True) if close else None


def unknown_field(name: str) -> str:
  """Says that there is no such field and which one may be meant; its groups may be left out or wrong."""
  likely = fields_like(name)
  known = "atlas_jax/defaults/ lists all fields"
  if likely is not None:
    known = f"did you mean {' or '.join(repr(f'config.{field}') for field in likely.names)}?"
  return f"there is no field config.{name}; {known}"


def need(name: str) -> str:
  """Returns which values a field takes."""
  kind, optional = FIELDS[name]
  return f"must be {KINDS[kind]}{', or None' if optional else ''}"


def with_defaults(group: str, given: Mapping[str, Any]) -> dict:
  """Returns the fields of a group of the default config, some of them replaced; for use without a config.

  Args:
    group: its dotted name, such as "model.memory".
    given: the fields that differ; options of a rule replace the default ones, other groups are filled up.

  Raises:
    ValueError, TypeError: if a field does not exist, or takes no such value.
  """
  config = default()
  found = at(config, group)
  _fill(found, group, given)
  check(config)
  return found.to_dict()


def _fill(found, group: str, given: Mapping[str, Any]) -> None:
  for name, value in given.items():
    full = f"{group}.{name}"
    if name not in found:
      raise ValueError(unknown_field(full))
    if full in OPTIONS:
      if not isinstance(value, Mapping):
        raise TypeError(f"config.{full}={value!r} must be options by name, such as {{'depth': 2}}")
      found[name] = ml_collections.ConfigDict(dict(value))
    elif isinstance(value, Mapping) and full not in FIELDS:
      _fill(found[name], full, value)
    else:
      # Converted first: the config knows Python's numbers alone, and values from code are often numpy's.
      found.update({name: _plain(full, value)})


def _plain(name: str, value):
  """Returns a field's value as Python's own number, if it is one of numpy's; groups as they are."""
  if name not in FIELDS:
    return value
  kind, optional = FIELDS[name]
  if optional and value is None:
    return None
  # True is a whole number to Python: without the second test it would pass as 1.
  like: Any = numbers.Integral if kind is int else numbers.Real if kind is float else kind
  if not isinstance(value, like) or isinstance(value, bool) != (kind is bool):
    raise TypeError(f"config.{name}={value!r} {need(name)}")
  return kind(value)


def near(value: int, parts: int) -> str:
  """Names the multiples of `parts` around a value."""
  low = value // parts * parts
  return f"{low} and {low + parts}" if low else str(parts)


def at(config, name: str):
  """Returns the field or group that a dotted name stands for."""
  for part in name.split("."):
    config = config[part]
  return config


def mixes(fact: str) -> list[str]:
  """Returns the ways of mixing memory into a block of which a fact is true."""
  return [name for name, facts in MIXES.items() if fact in facts]


def grid_of(memory_mix: str) -> str:
  """Returns the field whose multiples packed documents start at, and whole segments of text end at."""
  if memory_mix in mixes("inner_steps"):
    return "model.inner.batch_tokens"
  return "model.window_tokens" if memory_mix in mixes("segments") else "model.memory.chunk_size"


def attends(model) -> bool:
  """Returns whether blocks of a memory model have attention, of fields or a config of config.model."""
  return model["memory_mix"] in mixes("attention") or model["memory_layers"] is not None


def block_numbers(text: str | None, depth: int) -> tuple[int, ...] | None:
  """Reads config.model.memory_layers, such as "1,3"; None stands for all blocks.

  Raises:
    ValueError: if a block is none of the model's, or is named twice.
  """
  if text is None:
    return None
  words = [word.strip() for word in text.split(",")]
  chosen = [int(word) for word in words if word.isdecimal()]
  # In this order: `max` is reached only with numbers alone, and at least one.
  if len(chosen) < len(words) or len(set(chosen)) < len(chosen) or max(chosen) >= depth:
    raise ValueError(f"config.model.memory_layers={text!r} must name different blocks from 0 to {depth - 1} "
                     "(config.model.depth - 1), with commas between them, or be None for all; for none set "
                     "config.model.memory_mix='none'")
  return tuple(sorted(chosen))


def flat(config, prefix: str = "") -> dict[str, Any]:
  """Returns the values of a config by their dotted names."""
  values = config.to_dict() if hasattr(config, "to_dict") else config
  named: dict[str, Any] = {}
  for name, value in values.items():
    named.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
  return named


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses fields that do not exist, and values that cannot be.

  Raises:
    ValueError: names the field, its value, and what to do.
  """
  # The first three make sure that fields exist and have values of their types; the others calculate with
  # them.
  _check_fields(config)
  _check_bounds(config)
  _check_choices(config)
  _check_evaluations(config.train)
  _check_puzzles(config.puzzles)
  _check_model(config.model)
  _check_window(config)
  _check_trm(config)
  _check_decoder(config)


def _check_fields(config) -> None:
  """Checks that the fields are those of `default`, and of their types; a field set to None loses its type."""
  # The user or a rule makes up the names in OPTIONS: whoever reads them checks them.
  found = {name: value for name, value in flat(config).items() if not name.startswith(OPTIONS)}
  for name in found:
    if name not in FIELDS:
      raise ValueError(unknown_field(name))
  for name, (kind, optional) in FIELDS.items():
    value = found[name]
    is_kind = isinstance(value, (int, float) if kind is float else kind)
    is_bool = isinstance(value, bool)  # Which is a whole number to Python, but not to a reader.
    if not (is_kind and is_bool == (kind is bool) or optional and value is None):
      raise ValueError(f"config.{name}={value!r} {need(name)}")


def _check_bounds(config) -> None:
  for name, bound in BOUNDED.items():
    value = at(config, name)
    if value is not None and bound.fits is not None and not bound.fits(value):
      raise ValueError(f"config.{name}={value} must be {bound.need}")


def _check_puzzles(puzzles) -> None:
  if puzzles.test_path is not None and puzzles.name != "files":
    raise ValueError(f"config.puzzles.test_path={puzzles.test_path!r} is read with config.puzzles.name="
                     f"'files', and this is {puzzles.name!r}, which has a test set of its own; set "
                     "name=files, or leave test_path out")


def _check_evaluations(train) -> None:
  if train.eval_from_step is not None and train.eval_every_steps is None:
    raise ValueError(f"config.train.eval_from_step={train.eval_from_step} says when evaluations begin, and "
                     "config.train.eval_every_steps=None has none before the end; set it, or leave both None")


def _check_choices(config) -> None:
  for name, known in CHOICES.items():
    value = at(config, name)
    # With a dot it names a module of the user's own, which is looked for when it is loaded.
    is_module = name in BOUNDED and BOUNDED[name].or_module and "." in value
    if value not in known and not is_module and not (value is None and FIELDS[name][1]):
      raise ValueError(f"config.{name}={value!r} is unknown; {nearest(value, known)}")


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


def _check_shared_projections(model) -> None:
  """Refuses heads of the memory that are not attention's."""
  memory = model.memory
  width = model.width // model.heads
  needed = {"heads": model.heads, "key_dim": width}
  if memory.value_source == "input":
    needed["value_dim"] = width
  for name, value in needed.items():
    if memory[name] != value:
      raise ValueError(f"config.model.memory.{name}={memory[name]} must be {value}, that of attention "
                       f"(config.model.heads={model.heads} of config.model.width={model.width}), as config."
                       "model.memory.qkv_source='attention' shares its projections")


def _check_model(model) -> None:
  if attends(model) and model.width % (2 * model.heads):
    raise ValueError(f"config.model.width={model.width} is not a multiple of 2 * config.model.heads="
                     f"{2 * model.heads} (rotary positions turn pairs of features); nearest are "
                     f"{near(model.width, 2 * model.heads)}")
  if not 0 <= model.gate_floor < 1:
    raise ValueError(f"config.model.gate_floor={model.gate_floor} must be at least 0 and below 1")
  memory = model.memory
  # The convolutions keep so many tokens for the next chunk. A document starts at the start of a chunk, so
  # where they fit into one chunk they are all of one document.
  lags = memory.conv_taps - 1 + memory.shift
  if memory.chunk_size < lags:
    raise ValueError(f"config.model.memory.chunk_size={memory.chunk_size} must be at least conv_taps - 1"
                     f"{' + shift' * memory.shift} = {lags}, so that what the convolutions keep is of one "
                     "document")
  if not memory.writes and memory.initial == "zero":
    raise ValueError("config.model.memory.writes=False reads the start of the memory, and config.model."
                     "memory.initial='zero' leaves nothing in it; set initial='learned'")
  if memory.qkv_source == "attention" and model.memory_mix in mixes("memory"):
    _check_shared_projections(model)
  if model.memory_mix in mixes("segments") and model.window_tokens % memory.chunk_size:
    nearest_ones = near(model.window_tokens, memory.chunk_size)
    raise ValueError(f"config.model.window_tokens={model.window_tokens} is the length of segments with "
                     f"config.model.memory_mix={model.memory_mix!r}, and not a multiple of config.model."
                     f"memory.chunk_size={memory.chunk_size}; nearest are {nearest_ones}")
  # Called for its refusal alone; the model reads the numbers itself.
  block_numbers(model.memory_layers, model.depth)
  start = memory.write_rate_init
  most = memory.write_rate_max
  if None not in (start, most) and not start < most:  # Against the rule's own: see `GateStarts.replaced`.
    raise ValueError(f"config.model.memory.write_rate_init={memory.write_rate_init} must be above 0 and "
                     f"below config.model.memory.write_rate_max={memory.write_rate_max}")


# What each window of training reads besides.
WINDOWS = {"full": (), "random": ("least_tokens",), "delayed": ("least_tokens", "delay_steps")}


def _check_window(config) -> None:
  window = config.window
  whole = config.model.window_tokens
  steps = config.optim.steps
  kind = f"config.window.kind={window.kind!r}"
  for name in ("least_tokens", "delay_steps"):
    if (window[name] is None) == (name in WINDOWS[window.kind]):
      fault = "needs it: set it" if window[name] is None else "does not read it: leave it out"
      raise ValueError(f"config.window.{name}={window[name]}, and {kind} {fault}, or choose another kind")
  if window.kind != "full" and window.least_tokens >= whole:
    raise ValueError(f"config.window.least_tokens={window.least_tokens} must be below config.model."
                     f"window_tokens={whole}: {kind} trains with shorter windows than that of the model")
  if window.kind == "delayed" and steps is not None and window.delay_steps >= steps:
    raise ValueError(f"config.window.delay_steps={window.delay_steps} must be below config.optim.steps="
                     f"{steps}, or no update has the window of the model; lower it, or train longer")
