"""A model's `config.json`, read into the fields of a `Decoder` and written from them.

Both spellings are read: rope settings and dtype at the top level (`rope_theta`, `rope_scaling`,
`torch_dtype`), and the later one (`rope_parameters`, `dtype`).
"""
import functools
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from atlas_jax.files import inventory, json_file
from atlas_jax.files.damage import Damaged
from atlas_jax.language.pretrained import hybrid_config, names
from atlas_jax.language.pretrained.names import atlas
from atlas_jax.models import rope

AGAIN = "fetch it again, or name another model"
# Settings that are read, by what they must be; the largest numbers are beyond every model.
SIZES = {"vocab_size": 2**24, "hidden_size": 2**20, "num_attention_heads": 2**16, "num_hidden_layers": 2**14,
         "num_key_value_heads": 2**16, "head_dim": 2**16, "intermediate_size": 2**24,
         "max_position_embeddings": 2**31}
SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window")
LISTS = ("architectures", "layer_types")
GROUPS = ("rope_parameters", "rope_scaling")
NUMBERS = {"rms_norm_eps": (0, 1), "partial_rotary_factor": (0, 1)}
ROPE_BASE = 10_000.0  # What a config that names no base means.
REFUSED = {  # Settings that change what a model computes, and the values under which they do not.
    "hidden_act": ("silu", "swish"), "use_sliding_window": (False,), "partial_rotary_factor": (1, 1.0),
    "quantization_config": (), "pretraining_tp": (1,)}


def read(file) -> tuple[ModuleType, dict]:
  """Reads a config.

  Args:
    file: path of a `config.json`.

  Returns:
    (family out of `names`, fields of a `Decoder`, or of a `HybridDecoder`, that say what the model is).

  Raises:
    ValueError: naming the file and the setting that is missing, wrong or not supported.
  """
  settings = read_json(file)
  _check_kinds(settings, file)
  # Some configs name no architecture; their model_type then says the family.
  architectures = settings.get("architectures") or [None]
  family = names.find(architectures[0], settings.get("model_type"), file)
  hybrid = names.is_hybrid(family)
  plain = hybrid_config.shared(settings) if hybrid else settings
  _refuse(plain, file)

  def need(name: str):
    if settings.get(name) is None:
      raise ValueError(f"{file} has no {name!r}, which {family.ARCHITECTURE} needs")
    return settings[name]

  # null is as if absent, as transformers reads it.
  filled = {**family.DEFAULTS, **{name: value for name, value in settings.items() if value is not None}}
  width = need("hidden_size")
  heads = need("num_attention_heads")
  head_dim = filled["head_dim"]
  # Configs from before grouped queries name no key-value heads: each head has its own.
  kv_heads = settings.get("num_key_value_heads") or heads
  if head_dim is None and width % heads:
    raise ValueError(f"{file} has no 'head_dim', and hidden_size={width} is not a multiple of "
                     f"num_attention_heads={heads}")
  _check_heads(heads, kv_heads, head_dim or width // heads, file)
  base, scaling = _rope(plain, file)
  common = dict(
      vocab_size=need("vocab_size"), width=width, depth=need("num_hidden_layers"), heads=heads,
      kv_heads=kv_heads, head_dim=head_dim or width // heads,
      ff_width=need("intermediate_size"), rope_base=base, rope_scaling=scaling,
      tied=bool(settings.get("tie_word_embeddings")), norm_eps=filled.get("rms_norm_eps", 1e-6))
  if hybrid:
    return family, hybrid_config.fields(filled, common, file)
  learned = {"learned_positions": need("max_position_embeddings")} if family is atlas else {}
  return family, {**common, **learned, **family.biases(filled)}


def write(fields: dict, *, max_tokens: int, dtype: str, specials: dict) -> dict:
  """Returns a config, in the older spelling that all versions read, for a model that was made here.

  Args:
    fields: of a `Decoder`, as `read` gives them.
    max_tokens: the longest text the model is meant for; learned positions say it themselves.
    dtype: of the weights, "float32", "bfloat16" or "float16".
    specials: `bos_token_id`, `eos_token_id`, `pad_token_id`; any may be left out.

  Raises:
    ValueError: if no known family has models with these fields.
  """
  family = family_of(fields)
  settings = {
      "architectures": [family.ARCHITECTURE], "model_type": family.MODEL_TYPE, "torch_dtype": dtype,
      "vocab_size": fields["vocab_size"], "hidden_size": fields["width"], "hidden_act": "silu",
      "intermediate_size": fields["ff_width"], "num_hidden_layers": fields["depth"],
      "num_attention_heads": fields["heads"], "num_key_value_heads": fields["kv_heads"],
      "head_dim": fields["head_dim"], "rms_norm_eps": fields["norm_eps"], "rope_theta": fields["rope_base"],
      "tie_word_embeddings": fields["tied"],
      "max_position_embeddings": fields.get("learned_positions") or max_tokens, **specials}
  # A family without the field, such as Qwen2, has its biases where they are; nothing is to be written.
  if "attention_bias" in family.DEFAULTS:
    settings["attention_bias"] = fields["qkv_bias"]
  if "mlp_bias" in family.DEFAULTS:
    settings["mlp_bias"] = fields["mlp_bias"]
  if fields["rope_scaling"] is not None:
    settings["rope_scaling"] = dict(fields["rope_scaling"])
  return settings


def family_of(fields: dict) -> ModuleType:
  """Returns the family whose models have these fields; `write` says more.

  Models with learned positions are a family of this program, which others do not read.
  """
  # Families differ in where biases and norms are, and ours in its learned positions; sizes fit any of them.
  wanted = {name: fields[name] for name in ("qk_norm", "qkv_bias", "out_bias", "mlp_bias")}
  asked = {"attention_bias": wanted["qkv_bias"], "mlp_bias": wanted["mlp_bias"]}
  learned = fields.get("learned_positions") is not None
  for family in (names.load(name) for name in names.known()):
    biases = family.biases({name: asked[name] for name in asked if name in family.DEFAULTS})
    if biases == wanted and learned == (family is atlas):
      return family
  listed = ", ".join(f"{name}={value}" for name, value in wanted.items())
  raise ValueError(f"no known family has models with {listed}; known are {', '.join(names.known())}")


def read_json(file) -> dict:
  """Reads a file that holds one JSON object.

  Raises:
    ValueError: naming the file, if it is missing or holds something else.
  """
  file = pathlib.Path(file)
  if not file.is_file():
    raise ValueError(f"{file} is missing; a model's folder has config.json beside its safetensors")
  inventory.check_sealed(file.parent)
  return json_file.read(file, remedy=AGAIN)


def _check_kinds(settings: dict, file) -> None:
  """Refuses settings that are read and of another type, or out of all range; null is as if absent."""

  def listed(value):
    return isinstance(value, list) and all(isinstance(one, str) for one in value)

  kinds: dict[str, tuple[Callable[[Any], bool], str]] = {
      **{name: (functools.partial(json_file.is_int, low=1, high=high), f"a whole number from 1 to {high}")
         for name, high in SIZES.items()},
      **dict.fromkeys(SWITCHES, (lambda value: isinstance(value, bool), "true or false")),
      **dict.fromkeys(LISTS, (listed, "a list of names")),
      **dict.fromkeys(GROUPS, (lambda value: isinstance(value, dict), "an object")),
      **{name: (functools.partial(json_file.is_real, low=low, high=high), f"a number of {low:g} to {high:g}")
         for name, (low, high) in NUMBERS.items()},
      "model_type": (lambda value: isinstance(value, str), "a name")}
  for name, (fits, needs) in kinds.items():
    if settings.get(name) is not None:
      json_file.field(file, settings, name, fits, needs)


def _check_heads(heads: int, kv_heads: int, head_dim: int, file) -> None:
  if heads % kv_heads:
    raise Damaged(file, f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}",
                  AGAIN)
  if head_dim % 2:
    raise Damaged(file, f"head_dim={head_dim} is odd, and rotary positions turn pairs", AGAIN)


def _check_scaling(scaling: dict, file) -> None:
  for name, value in scaling.items():
    if name != "rope_type" and not json_file.is_real(value, 1e-6, 1e12):
      raise Damaged(file, f"rope scaling {name}={str(value)[:60]} must be a positive number", AGAIN)
  low = scaling.get("low_freq_factor")
  high = scaling.get("high_freq_factor")
  if low is not None and high is not None and low >= high:
    raise Damaged(file, f"low_freq_factor={low} must be below high_freq_factor={high}", AGAIN)


def _refuse(settings: dict, file) -> None:
  for name, harmless in REFUSED.items():
    # Types too: in Python True == 1, and true is not a value that pretraining_tp may have.
    if settings.get(name) is not None and not any(type(one) is type(settings[name]) and one == settings[name]
                                                  for one in harmless):
      raise ValueError(f"{file}: {name}={settings[name]!r} is not supported; only "
                       f"{' or '.join(map(repr, harmless)) or 'a config without it'} is")
  kinds = set(settings.get("layer_types") or ()) - {"full_attention"}
  if kinds:
    raise ValueError(f"{file}: layer_types has {', '.join(sorted(kinds))}; only full_attention is supported")


def _rope(settings: dict, file) -> tuple[float, dict | None]:
  """Returns the base and the scaling, or None for none, from either spelling."""
  # The later spelling first, which holds the base as well; the older one has it at the top level.
  found = dict(settings.get("rope_parameters") or settings.get("rope_scaling") or {})
  base = found.pop("rope_theta", None) or settings.get("rope_theta") or ROPE_BASE
  json_file.field(file, {"rope_theta": base}, "rope_theta", functools.partial(
      json_file.is_real, low=1 + 1e-6, high=1e12), "a number above 1")
  # "type" is what rope_type was called before.
  kind = found.pop("rope_type", None) or found.pop("type", None) or "default"
  found.pop("type", None)
  if not isinstance(kind, str):
    raise Damaged(file, f"its rope_type is {str(kind)[:60]}; it must be a name", AGAIN)
  if found.pop("partial_rotary_factor", 1) != 1:
    raise ValueError(f"{file}: partial_rotary_factor is not supported; only a config without it is")
  if kind == "default":
    return float(base), None
  # YaRN stretches from the length before its extension; a config that names none means its own length.
  if kind == "yarn" and settings.get("max_position_embeddings"):
    found.setdefault("original_max_position_embeddings", settings["max_position_embeddings"])
  scaling = {"rope_type": kind, **{name: value for name, value in found.items() if value is not None}}
  try:
    rope.check(scaling)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from error
  _check_scaling(scaling, file)
  return float(base), scaling
