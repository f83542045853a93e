"""Low-rank adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

Only settings that are known are read: those that `options` follows, and those that say nothing on what the
model with its adapters computes. Any other setting must be off: null, false, or empty.

Source: huggingface/peft, whose files transformers and vLLM read.
"""
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atlas_jax.language.pretrained import hf_config, hf_import, names, tensor_files
from atlas_jax.language.pretrained.names import Row
from atlas_jax.models import lora
from atlas_jax.models.decoder import Decoder

CONFIG = "adapter_config.json"
STEM = "adapter_model"
PREFIX = "base_model.model."
SCALINGS = {False: "rank", True: "sqrt_rank"}  # By use_rslora.


class Description(NamedTuple):
  """The fields of an adapter config."""

  options: dict          # the field `lora` of a `Decoder`
  base: str | None       # name or folder of the model they were made for
  revision: str | None   # of that model on the hub
  dropout: float         # while they were trained; not applied here
  is_half_frozen: bool   # whether PEFT trains A alone


class Values(NamedTuple):
  """The values that a setting may have."""

  fit: Callable[[Any], bool]
  text: str


def _is_off(value) -> bool:
  return value is None or value is False or isinstance(value, str | list | dict) and not value


def _one_of(*values) -> Values:
  def same(value, known):
    return type(value) is type(known) and value == known

  return Values(lambda value: any(same(value, known) for known in values), " or ".join(map(_json, values)))


def _json(value) -> str:
  return {None: "null", True: "true", False: "false"}[value] if value in (None, True, False) else repr(value)


def _is_number(value) -> bool:
  try:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
  except OverflowError:  # A whole number of more digits than a float holds.
    return False


def _is_causal(value) -> bool:
  name = value.get("base_model_class") if isinstance(value, dict) else None
  return value is None or isinstance(value, dict) and (name is None or str(name).endswith("ForCausalLM"))


# How the adapters were first drawn; their trained numbers stand in the file. Other ways also change the base.
DRAWN = ("gaussian", "orthogonal", "eva", "mica")
NOTE = Values(lambda value: value is None or isinstance(value, str), "a text or null")
OFF = Values(_is_off, "null, false, or empty, as any setting may be that is not known here")
SETTINGS: Mapping[str, Values] = {
    "peft_type": _one_of("LORA", None),
    "r": Values(lambda value: type(value) is int and value >= 1, "a whole number of at least 1"),
    "lora_alpha": Values(lambda value: _is_number(value) and value > 0, "a number above 0"),
    "target_modules": Values(lambda value: isinstance(value, list) and value != []
                             and all(isinstance(one, str) for one in value),
                             "a list of projections, such as ['q_proj', 'v_proj'], and no pattern"),
    "use_rslora": _one_of(True, False, None),
    "init_lora_weights": Values(
        lambda value: value in (True, False, None) or str(value).lower() in DRAWN,
        f"true, false, {', '.join(map(repr, DRAWN))}: others change the model that the adapters are added "
        "to, which is not done here. PEFT makes plain adapters of them with model.save_pretrained(FOLDER, "
        "path_initial_model_for_weight_conversion=INITIAL_ADAPTER)"),
    "bias": _one_of("none", None),
    "task_type": _one_of("CAUSAL_LM", None),
    "lora_dropout": Values(lambda value: value is None or _is_number(value) and 0 <= value <= 1,
                           "a number from 0 to 1"),
    # Notes, and settings of what is off.
    "auto_mapping": Values(_is_causal, "null, or name a class that ends in ForCausalLM"),
    "base_model_name_or_path": NOTE, "revision": NOTE, "peft_version": NOTE, "megatron_core": NOTE,
    "inference_mode": _one_of(True, False, None),
    "merge_weights": _one_of(True, False, None),
    "eva_config": Values(lambda value: value is None or isinstance(value, dict), "an object or null"),
    "qalora_group_size": Values(lambda value: value is None or _is_number(value), "a number"),
    "runtime_config": Values(lambda value: _is_off(value) or isinstance(value, dict)
                             and set(value) == {"ephemeral_gpu_offload"}, "null or {ephemeral_gpu_offload}"),
}
NEEDED = ("r", "lora_alpha", "target_modules")
PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}  # By module; only the value of all is read.


def describe(folder) -> Description:
  """Reads the config of adapters.

  Raises:
    ValueError: naming the file and the setting that is missing, or whose value is not supported, and which
      values are.
  """
  file = pathlib.Path(folder) / CONFIG
  if not file.is_file():
    raise ValueError(f"{file} is missing; a folder of adapters has {CONFIG} beside {STEM}.safetensors")
  settings = hf_config.read_json(file)
  for name in NEEDED:
    if settings.get(name) is None:
      raise ValueError(f"{file} has no {name!r}")
  for name, value in settings.items():
    # A setting that is not known may change what adapters compute, so it must be off to be passed over.
    allowed = _pattern(PATTERNS[name], settings) if name in PATTERNS else SETTINGS.get(name, OFF)
    if not allowed.fit(value):
      raise ValueError(f"{file}: {name}={value!r} is not supported; it must be {allowed.text}")
  return Description(
      {"rank": settings["r"], "alpha": settings["lora_alpha"],
       "scaling": SCALINGS[bool(settings.get("use_rslora"))],
       "targets": _targets(settings["target_modules"], file)},
      settings.get("base_model_name_or_path") or None, settings.get("revision") or None,
      float(settings.get("lora_dropout") or 0), str(settings.get("init_lora_weights")).lower() == "mica")


def options(folder) -> dict:
  """Reads the adapter's config as the field `lora` of a `Decoder`; errors as of `describe`."""
  return describe(folder).options


def _pattern(name: str, settings: dict) -> Values:
  def same(value):
    return isinstance(value, dict) and all(one == settings[name] for one in value.values())

  return Values(lambda value: _is_off(value) or same(value),
                f"empty, or give all modules {name}={settings[name]}: projections have one rank and alpha")


def _targets(modules: list, file: pathlib.Path) -> tuple[str, ...]:
  """Returns our names of the projections that PEFT's name."""
  # The projections of all families are called as Llama's.
  family = names.load("llama")
  ours = {theirs: name for name, theirs in _modules(family).items()}
  # Of "...self_attn.q_proj.lora_A.weight": third from the end the projection, before it the part it is in.
  # PEFT takes either "q_proj" or "self_attn.q_proj" as a name.
  parts = {row.theirs.split(".")[-3]: row.theirs.split(".")[-4] for row in rows(family)}
  known = {**ours, **{f"{part}.{theirs}": ours[theirs] for theirs, part in parts.items()}}
  strange = [str(name) for name in modules if name not in known]
  if strange:
    raise ValueError(f"{file}: target_modules has {', '.join(sorted(strange))}, which cannot have an adapter "
                     f"here; known are {', '.join(sorted(ours))}")
  # In one order, so that equal sets of targets make equal options.
  return tuple(name for name in lora.TARGETS if name in {known[one] for one in modules})


def load(folder, model: Decoder, *, mesh: Mesh | None = None, dtype: str | None = None):
  """Reads adapters to their place.

  Args:
    folder: holds adapter_config.json and adapter_model.safetensors.
    model: made with `lora=options(folder)`.
    mesh: where they go; None puts them on the first device.
    dtype: of the parameters; None keeps the stored one.

  Returns:
    Adapters, as `models.lora.split` gives them.

  Raises:
    ValueError: if the model's adapters are others, or naming the tensor that is missing, left over or wrong.
  """
  asked = options(folder)
  _check_same(asked, model, folder)
  shapes = lora.split(hf_import.abstract(model))[0]
  table = rows(hf_config.family_of(model.shape()))
  return tensor_files.read_tree(tensor_files.TensorFolder(folder, STEM), table, shapes,
                                hf_import.shardings_of(shapes, mesh), dtype)


def save(folder, model: Decoder, adapters, *, base: str, dtype: str | None = None) -> None:
  """Writes adapters. Every process calls it; process 0 writes.

  Args:
    folder: made if absent.
    model: with `lora` set.
    adapters: as `models.lora.split` gives them.
    base: folder or hub name of the model they belong to, which the config names.
    dtype: of the tensors; None keeps the parameters' own.
  """
  folder = pathlib.Path(folder)
  family = hf_config.family_of(model.shape())
  made = tensor_files.tensors_of(adapters, rows(family))
  tensors = {name: tensor_files.fetch(one, jnp.dtype(dtype or one[0].dtype)) for name, one in made.items()}
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    tensor_files.write_file(folder / f"{STEM}.safetensors", tensors, {"format": "pt"})
    tensor_files.write_json(folder / CONFIG, _settings(model.lora, _modules(family), base))


def rows(family: ModuleType) -> tuple[Row, ...]:
  """Returns the names of adapters: A is stored [rank, inputs], B [outputs, rank]."""
  found = []
  for row in family.TABLE:
    # Matrices of attention and MLP; norms, embeddings and heads have no adapters here.
    if not re.fullmatch(r"blocks/(attention|mlp)/\w+/kernel", row.ours):
      continue
    # Stored axes are outputs, then inputs, each one letter or a bracket: "(h k) d".
    out_axes, in_axes = re.findall(r"\([^)]*\)|\w", row.stored)
    ours = row.ours.removesuffix("kernel")
    theirs = PREFIX + row.theirs.removesuffix("weight")
    found.append(Row(ours + "lora_a", theirs + "lora_A.weight", f"r {in_axes}", f"{in_axes.strip('()')} r"))
    found.append(Row(ours + "lora_b", theirs + "lora_B.weight", f"{out_axes} r", f"r {out_axes.strip('()')}"))
  return tuple(found)


def _modules(family: ModuleType) -> dict[str, str]:
  """Returns PEFT's name of every projection, {"q": "q_proj"}."""
  return {row.ours.split("/")[-2]: row.theirs.split(".")[-3] for row in rows(family)}


def _settings(chosen, modules: dict[str, str], base: str) -> dict:
  return {
      "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
      "r": chosen["rank"], "lora_alpha": chosen["alpha"], "lora_dropout": 0.0, "bias": "none",
      "use_rslora": chosen["scaling"] == "sqrt_rank", "use_dora": False, "fan_in_fan_out": False,
      "init_lora_weights": True, "modules_to_save": None, "layers_to_transform": None, "layers_pattern": None,
      "rank_pattern": {}, "alpha_pattern": {},
      "target_modules": [modules[name] for name in chosen["targets"]]}


def _check_same(asked: dict, model: Decoder, folder) -> None:
  # A module keeps its mappings frozen and its lists as tuples; plain values compare.
  mine = {} if model.lora is None else {**model.lora, "targets": tuple(model.lora["targets"])}

  def order(chosen):
    return {**chosen, "targets": sorted(chosen.get("targets", ()))}

  if order(asked) != order(mine):
    raise ValueError(f"{pathlib.Path(folder) / CONFIG} has adapters {asked}, the model has {mine or None}; "
                     "make it with lora=peft.options(folder)")
