"""Low-rank adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

Source: huggingface/peft, whose files transformers and vLLM read.
"""
import pathlib
import re
from types import ModuleType

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atlas_jax.interop import hf_config, hf_import, names, tensor_files
from atlas_jax.interop.names import Row
from atlas_jax.models import lora
from atlas_jax.models.decoder import Decoder

CONFIG = "adapter_config.json"
STEM = "adapter_model"
PREFIX = "base_model.model."
SCALINGS = {False: "rank", True: "sqrt_rank"}
# What an adapter may ask for that we do not have, and the values that ask for nothing.
REFUSED = {"peft_type": ("LORA",), "bias": ("none",), "use_dora": (False,), "modules_to_save": ((), []),
           "rank_pattern": ({},), "alpha_pattern": ({},), "layers_to_transform": (),
           "fan_in_fan_out": (False,), "target_parameters": ([],), "exclude_modules": ([],),
           "lora_bias": (False,)}


def options(folder) -> dict:
  """Reads the adapter's config as the field `lora` of a `Decoder`; its dropout, for training only, is left.

  Raises:
    ValueError: naming the file and the setting that is missing or not supported.
  """
  file = pathlib.Path(folder) / CONFIG
  settings = hf_config.read_json(file)
  for name, harmless in REFUSED.items():
    if settings.get(name) is not None and settings[name] not in harmless:
      raise ValueError(f"{file}: {name}={settings[name]!r} is not supported; only "
                       f"{' or '.join(map(repr, harmless)) or 'a config without it'} is")
  for name in ("r", "lora_alpha", "target_modules"):
    if settings.get(name) is None:
      raise ValueError(f"{file} has no {name!r}")
  ours = {theirs: name for name, theirs in _modules(names.load("llama")).items()}
  if isinstance(settings["target_modules"], str):
    raise ValueError(f"{file}: target_modules={settings['target_modules']!r} is a pattern; list the "
                     f"projections: {', '.join(sorted(ours))}")
  asked = {name.split(".")[-1] for name in settings["target_modules"]}
  if not asked <= set(ours):
    raise ValueError(f"{file}: target_modules has {', '.join(sorted(asked - set(ours)))}, which cannot have "
                     f"an adapter; known are {', '.join(sorted(ours))}")
  scaling = SCALINGS[bool(settings.get("use_rslora"))]
  return dict(rank=settings["r"], alpha=settings["lora_alpha"], scaling=scaling,
              targets=tuple(name for name in lora.TARGETS if name in {ours[one] for one in asked}))


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
  """Gives the names of adapters: A is stored [rank, inputs], B [outputs, rank]."""
  found = []
  for row in family.TABLE:
    if not re.fullmatch(r"blocks/(attention|mlp)/\w+/kernel", row.ours):
      continue
    out_axes, in_axes = re.findall(r"\([^)]*\)|\w", row.stored)
    ours, theirs = row.ours.removesuffix("kernel"), PREFIX + row.theirs.removesuffix("weight")
    found.append(Row(ours + "lora_a", theirs + "lora_A.weight", f"r {in_axes}", f"{in_axes.strip('()')} r"))
    found.append(Row(ours + "lora_b", theirs + "lora_B.weight", f"{out_axes} r", f"r {out_axes.strip('()')}"))
  return tuple(found)


def _modules(family: ModuleType) -> dict[str, str]:
  """Gives the published name of every projection, {"q": "q_proj"}."""
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
  mine = {} if model.lora is None else {**model.lora, "targets": tuple(model.lora["targets"])}
  order = lambda chosen: {**chosen, "targets": sorted(chosen.get("targets", ()))}
  if order(asked) != order(mine):
    raise ValueError(f"{pathlib.Path(folder) / CONFIG} has adapters {asked}, the model has {mine or None}; "
                     "make it with lora=peft.options(folder)")
