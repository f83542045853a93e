"""The settings of hybrid models, which have gated delta nets beside attention, in their `config.json`."""
import functools

from atlas_jax.files import json_file
from atlas_jax.files.damage import Damaged

AGAIN = "fetch it again, or name another model"
KINDS = {"linear_attention": "linear", "full_attention": "full"}
# Settings of gated delta nets, by the fields of a `HybridDecoder`.
SIZES = {"key_heads": "linear_num_key_heads", "value_heads": "linear_num_value_heads",
         "key_dim": "linear_key_head_dim", "value_dim": "linear_value_head_dim",
         "conv_taps": "linear_conv_kernel_dim"}
MOST = 2**16
# What `fields` reads itself: a decoder of full attention would refuse it.
OWN = ("layer_types", "partial_rotary_factor")


def shared(settings: dict) -> dict:
  """Returns the settings that hybrid models have in common with decoders of full attention."""
  rest = {name: value for name, value in settings.items() if name not in OWN}
  for group in ("rope_parameters", "rope_scaling"):
    if settings.get(group) is not None:
      rest[group] = {name: value for name, value in settings[group].items() if name not in OWN}
  return rest


def fields(filled: dict, common: dict, file) -> dict:
  """Returns the fields of a `HybridDecoder`.

  Args:
    filled: settings, with the family's defaults where they are silent.
    common: fields that a `Decoder` has, too.
    file: of the settings, for messages.

  Raises:
    ValueError: naming the file and the setting that is wrong or not supported.
  """
  size = functools.partial(json_file.is_int, low=1, high=MOST)
  for name in (*SIZES.values(), "full_attention_interval"):
    json_file.field(file, filled, name, size, f"a whole number from 1 to {MOST}")
  own = {ours: filled[theirs] for ours, theirs in SIZES.items()}
  if own["value_heads"] % own["key_heads"]:
    raise Damaged(file, f"linear_num_value_heads={own['value_heads']} is not a multiple of "
                  f"linear_num_key_heads={own['key_heads']}", AGAIN)
  rope = filled.get("rope_parameters") or filled.get("rope_scaling") or {}
  factor = rope.get("partial_rotary_factor", filled["partial_rotary_factor"])
  json_file.field(file, {"partial_rotary_factor": factor}, "partial_rotary_factor", functools.partial(
      json_file.is_real, low=0, high=1), "a number of 0 to 1")
  rotary_dim = int(common["head_dim"] * factor)
  if rotary_dim < 2 or rotary_dim % 2:
    raise ValueError(f"{file}: partial_rotary_factor={factor} rotates {rotary_dim} of {common['head_dim']} "
                     "features; only an even number above 0 is supported")
  if common["rope_scaling"] is not None:
    raise ValueError(f"{file}: rope_type={common['rope_scaling']['rope_type']!r} is not supported in hybrid "
                     "models; only 'default' is")
  shared_fields = {name: value for name, value in common.items() if name != "rope_scaling"}
  return {**shared_fields, **own, "rotary_dim": rotary_dim, "attention_bias": filled["attention_bias"],
          "pattern": _pattern(filled, common["depth"], file)}


def _pattern(filled: dict, depth: int, file) -> tuple[str, ...]:
  """Returns the shortest pattern that repeats over all layers."""
  every = filled["full_attention_interval"]
  kinds = filled.get("layer_types") or [
      "full_attention" if (layer + 1) % every == 0 else "linear_attention" for layer in range(depth)]
  unknown = sorted(set(kinds) - set(KINDS))
  if unknown:
    raise ValueError(f"{file}: layer_types has {', '.join(unknown)}; supported are {', '.join(KINDS)}")
  if len(kinds) != depth:
    raise Damaged(file, f"layer_types has {len(kinds)} layers, num_hidden_layers is {depth}", AGAIN)
  sizes = (size for size in range(1, depth + 1) if depth % size == 0)
  short = next(size for size in sizes if kinds == kinds[:size] * (depth // size))
  return tuple(KINDS[kind] for kind in kinds[:short])
