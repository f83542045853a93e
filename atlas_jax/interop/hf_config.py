"""A model's `config.json`, read into the fields of a `Decoder` and written from them.

Both spellings are read: rope settings and dtype at the top level (`rope_theta`, `rope_scaling`,
`torch_dtype`), and the later one (`rope_parameters`, `dtype`).
"""
import json
import pathlib
from types import ModuleType

from atlas_jax.interop import names
from atlas_jax.interop.names import atlas
from atlas_jax.models import rope

ROPE_BASE = 10_000.0  # What a config that names no base means.
REFUSED = {  # Settings that change what a model computes, and the values under which they do not.
    "hidden_act": ("silu", "swish"), "use_sliding_window": (False,), "partial_rotary_factor": (1, 1.0),
    "quantization_config": (), "pretraining_tp": (1,)}


def read(file) -> tuple[ModuleType, dict]:
  """Reads a config.

  Args:
    file: path of a `config.json`.

  Returns:
    (family out of `names`, fields of a `Decoder` that say what the model is).

  Raises:
    ValueError: naming the file and the setting that is missing, wrong or not supported.
  """
  settings = read_json(file)
  architectures = settings.get("architectures") or [None]
  family = names.find(architectures[0], settings.get("model_type"), file)
  _refuse(settings, file)

  def need(name: str):
    if settings.get(name) is None:
      raise ValueError(f"{file} has no {name!r}, which {family.ARCHITECTURE} needs")
    return settings[name]

  filled = {**family.DEFAULTS, **{name: value for name, value in settings.items() if value is not None}}
  width, heads = need("hidden_size"), need("num_attention_heads")
  head_dim = filled["head_dim"]
  if head_dim is None and width % heads:
    raise ValueError(f"{file} has no 'head_dim', and hidden_size={width} is not a multiple of "
                     f"num_attention_heads={heads}")
  base, scaling = _rope(settings, file)
  learned = {"learned_positions": need("max_position_embeddings")} if family is atlas else {}
  return family, dict(
      vocab_size=need("vocab_size"), width=width, depth=need("num_hidden_layers"), heads=heads,
      kv_heads=settings.get("num_key_value_heads") or heads, head_dim=head_dim or width // heads,
      ff_width=need("intermediate_size"), rope_base=base, rope_scaling=scaling,
      tied=bool(settings.get("tie_word_embeddings")), norm_eps=settings.get("rms_norm_eps", 1e-6),
      **learned, **family.biases(filled))


def write(fields: dict, *, max_tokens: int, dtype: str, specials: dict) -> dict:
  """Gives a config, in the older spelling that all versions read, for a model that was made here.

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
  if "attention_bias" in family.DEFAULTS:
    settings["attention_bias"] = fields["qkv_bias"]
  if "mlp_bias" in family.DEFAULTS:
    settings["mlp_bias"] = fields["mlp_bias"]
  if fields["rope_scaling"] is not None:
    settings["rope_scaling"] = dict(fields["rope_scaling"])
  return settings


def family_of(fields: dict) -> ModuleType:
  """Gives the family whose models have these fields; `write` says more.

  Models with learned positions are a family of this program, which others do not read.
  """
  wanted = {name: fields[name] for name in ("qk_norm", "qkv_bias", "out_bias", "mlp_bias")}
  asked = {"attention_bias": wanted["qkv_bias"], "mlp_bias": wanted["mlp_bias"]}
  learned = fields.get("learned_positions") is not None
  for family in (names.load(name) for name in names.known()):
    biases = family.biases({name: asked[name] for name in asked if name in family.DEFAULTS})
    if biases == wanted and learned == (family is atlas):
      return family
  told = ", ".join(f"{name}={value}" for name, value in wanted.items())
  raise ValueError(f"no known family has models with {told}; known are {', '.join(names.known())}")


def read_json(file) -> dict:
  """Reads a file that holds one JSON object.

  Raises:
    ValueError: naming the file, if it is missing or holds something else.
  """
  file = pathlib.Path(file)
  if not file.is_file():
    raise ValueError(f"{file} is missing; a model's folder has config.json beside its safetensors")
  try:
    content = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{file} is not JSON ({error})") from error
  if not isinstance(content, dict):
    raise ValueError(f"{file} holds a {type(content).__name__}, not a JSON object")
  return content


def _refuse(settings: dict, file) -> None:
  for name, harmless in REFUSED.items():
    if settings.get(name) is not None and settings[name] not in harmless:
      raise ValueError(f"{file}: {name}={settings[name]!r} is not supported; only "
                       f"{' or '.join(map(repr, harmless)) or 'a config without it'} is")
  kinds = set(settings.get("layer_types") or ()) - {"full_attention"}
  if kinds:
    raise ValueError(f"{file}: layer_types has {', '.join(sorted(kinds))}; only full_attention is supported")


def _rope(settings: dict, file) -> tuple[float, dict | None]:
  """Gives the base and the scaling, or None for none, from either spelling."""
  found = dict(settings.get("rope_parameters") or settings.get("rope_scaling") or {})
  base = found.pop("rope_theta", None) or settings.get("rope_theta") or ROPE_BASE
  kind = found.pop("rope_type", None) or found.pop("type", None) or "default"
  found.pop("type", None)
  if found.pop("partial_rotary_factor", 1) != 1:
    raise ValueError(f"{file}: partial_rotary_factor is not supported; only a config without it is")
  if kind == "default":
    return float(base), None
  if kind == "yarn" and settings.get("max_position_embeddings"):
    found.setdefault("original_max_position_embeddings", settings["max_position_embeddings"])
  scaling = {"rope_type": kind, **{name: value for name, value in found.items() if value is not None}}
  try:
    rope.check(scaling)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from error
  return float(base), scaling
