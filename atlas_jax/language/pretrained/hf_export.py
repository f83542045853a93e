"""A decoder written as a pretrained checkpoint: safetensors, config, tokenizer.

Given the folder that a model was read from, the layout of its shards, the dtype of every tensor and the
files that are copied are kept, so that what was not trained comes back bit for bit.
"""
import pathlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.files import write
from atlas_jax.language.pretrained import hf_config, names, tensor_files
from atlas_jax.language.pretrained.hf_import import EMBEDDING, HEAD, SPARE
from atlas_jax.models import lora
from atlas_jax.models.hybrid_decoder import AnyDecoder, HybridDecoder

COPIED_FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
                "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
                "chat_template.jinja", "chat_template.json")
METADATA = {"format": "pt"}  # What transformers asks of a file.
GIB = 2**30


class ExportPlan(NamedTuple):
  """The place of every tensor in the files."""

  made: dict      # name -> (leaf, row, layer), see `tensor_files.tensors_of`
  file_of: dict   # name -> name of the file
  dtype_of: dict  # name -> dtype
  copied: tuple   # names that are copied from `like`, because no parameter makes them


def save(folder, model: AnyDecoder, params, *, like=None, dtype: str | None = None, head: str = "as_is",
         max_shard_gib: float = 4.0, max_tokens: int | None = None, specials: Mapping | None = None,
         durable: bool = True) -> None:
  """Writes a model. Every process calls it; process 0 writes, one file's tensors at a time.

  Args:
    folder: made if absent; must not hold other weights than an earlier export of the same model.
    model, params: as `hf_import.load` gives them, or made here. Adapters must be merged first.
    like: the folder the model was read from: names, shards, dtypes, config and tokenizer are taken from it.
    dtype: of every tensor; None takes those of `like`, or without it those of the parameters.
    head: "as_is", or "untied", which writes the shared embedding a second time as the head, for programs that
      cannot change a shared one in place.
    max_shard_gib: above which a model without `like` is written in shards.
    max_tokens: the longest text the model is meant for; needed without `like`.
    specials: ids of special tokens for the config, such as eos_token_id; without `like` only.
    durable: whether the files are brought to the disk, which takes its time; see `files.write`.

  Raises:
    ValueError: if the model has no Hugging Face format, adapters are left, `like` is another model, or the
      folder holds other weights.
  """
  folder = pathlib.Path(folder)
  if head not in ("as_is", "untied"):
    raise ValueError(f"head={head!r} is unknown; known are 'as_is' and 'untied'")
  if jax.tree.leaves(lora.split(params)[0]):
    raise ValueError("the parameters have adapters; merge them with models.lora.merge, or save them alone "
                     "with interop.peft.save")
  source = None if like is None else tensor_files.TensorFolder(like)
  family = _family(model, like)
  untie = head == "untied" and model.tied
  plan = _plan(params, names.rows(family, model.shape()), source, dtype, untie, max_shard_gib * GIB)
  settings = _settings(model, like, plan, dtype, untie, max_tokens, dict(specials or {}))
  _check_target(folder, like, plan)
  writes = jax.process_index() == 0
  if writes:
    folder.mkdir(parents=True, exist_ok=True)
  # File by file, so that the host holds the tensors of one shard; every process fetches, since a leaf may be
  # spread over the devices of all.
  for file in sorted(set(plan.file_of.values())):
    inside = [name for name, its in plan.file_of.items() if its == file]
    tensors = {name: tensor_files.fetch(plan.made[name], plan.dtype_of[name]) for name in inside
               if name not in plan.copied}
    metadata = METADATA
    if source is not None:
      tensors.update({name: source.read(name) for name in inside if name in plan.copied})
      metadata = source.metadata(file)
    if writes:
      tensor_files.write_file(folder / file, tensors, metadata, durable=durable)
  if writes:
    _write_json_files(folder, like, plan, settings, durable)


def _family(model: AnyDecoder, like) -> ModuleType:
  if like is None and isinstance(model, HybridDecoder):
    raise ValueError("a hybrid model is written as one that was read: give like=FOLDER")
  if like is None:
    return hf_config.family_of(model.shape())
  family, fields = hf_config.read(pathlib.Path(like) / "config.json")
  mine = model.shape()
  # Plain values, because a module keeps its mappings frozen.

  def plain(value):
    return dict(value) if isinstance(value, Mapping) else value

  for name, value in fields.items():
    if plain(mine[name]) != value:
      raise ValueError(f"like={str(like)!r} is another model: its {name} is {value}, this one's is "
                       f"{mine[name]}")
  return family


def _plan(params, table: tuple[names.Row, ...], source, dtype, untie: bool, max_bytes: float) -> ExportPlan:
  made = tensor_files.tensors_of(params, table)
  copied: tuple[str, ...] = ()
  # Made by no parameter, but stored by whoever wrote the original:
  # left out, the round trip would not be exact.
  if source is not None:
    copied = tuple(name for name in source.file_of if name not in made and name != HEAD
                   and any(re.fullmatch(pattern, name) for pattern in SPARE))
  # A tied model has no head of its own; its embedding is written a second time under that name.
  if untie or (source is not None and HEAD in source.file_of):
    made.setdefault(HEAD, made[EMBEDDING])
  if source is None:
    dtype_of = {name: jnp.dtype(dtype or one[0].dtype) for name, one in made.items()}
    return ExportPlan(made, _shards(made, dtype_of, max_bytes), dtype_of, copied)
  # A head that the original does not store has the dtype of what it is a copy of.
  stored = {name: source.dtype(name if name in source.file_of else EMBEDDING) for name in made}
  dtype_of = {name: jnp.dtype(dtype or stored[name]) for name in made}
  last = max(source.file_of.values())  # Takes tensors that the original does not have.
  file_of = {name: source.file_of.get(name, last) for name in (*made, *copied)}
  return ExportPlan(made, file_of, dtype_of, copied)


def _shards(made: dict, dtype_of: dict, max_bytes: float) -> dict[str, str]:
  """Puts tensors into files of at most max_bytes, in order; a larger tensor has a file of its own."""
  files = [0]
  filled = 0
  for name, one in made.items():
    size = _numbers(one) * dtype_of[name].itemsize
    if filled and filled + size > max_bytes:
      files.append(files[-1] + 1)
      filled = 0
    else:
      files.append(files[-1])
    filled += size
  # files begins with a 0 that belongs to no tensor.
  files, total = files[1:], files[-1] + 1
  if total == 1:
    return dict.fromkeys(made, "model.safetensors")
  return {name: f"model-{file + 1:05d}-of-{total:05d}.safetensors"
          for name, file in zip(made, files, strict=True)}


def _numbers(made: tuple) -> int:
  leaf, _, layer = made
  return leaf.size if layer is None else leaf.size // leaf.shape[0]


def _settings(model: AnyDecoder, like, plan: ExportPlan, dtype, untie: bool, max_tokens, specials: dict):
  """Returns the config to write, or None where that of `like` is right as it stands."""
  if like is None:
    if max_tokens is None:
      raise ValueError("a model without like=FOLDER needs max_tokens, the longest text that it is meant for")
    main = str(plan.dtype_of[EMBEDDING])
    fields = {**model.shape(), "tied": model.tied and not untie}
    return hf_config.write(fields, max_tokens=max_tokens, dtype=main, specials=specials)
  # None: the original config is copied byte by byte.
  if not untie and dtype is None:
    return None
  settings = hf_config.read_json(pathlib.Path(like) / "config.json")
  if untie:
    settings["tie_word_embeddings"] = False
  if dtype is not None:
    # In the spelling that the original has.
    settings["dtype" if "dtype" in settings else "torch_dtype"] = str(jnp.dtype(dtype))
  return settings


def _check_target(folder: pathlib.Path, like, plan: ExportPlan) -> None:
  if like is not None and folder.resolve() == pathlib.Path(like).resolve():
    raise ValueError(f"{folder} is the folder the model was read from; export to another")
  files = set(plan.file_of.values())
  other = [file.name for file in sorted(folder.glob("model*.safetensors*"))
           if file.name not in files and (file.name != _INDEX or len(files) == 1)]
  if other:
    raise ValueError(f"{folder} holds {other[0]}, which is not part of this model; choose an empty folder")


_INDEX = f"model{tensor_files.INDEX_SUFFIX}"


def _write_json_files(folder: pathlib.Path, like, plan: ExportPlan, settings: dict | None,
                      durable: bool) -> None:
  index = None if like is None else pathlib.Path(like) / _INDEX
  if like is not None:
    for name in COPIED_FILES:
      if (pathlib.Path(like) / name).is_file():
        write.copy(pathlib.Path(like) / name, folder / name, durable=durable)
  if index is not None and index.is_file() and settings is None:
    write.copy(index, folder / _INDEX, durable=durable)
  elif len(set(plan.file_of.values())) > 1:
    sizes = {name: _numbers(one) * plan.dtype_of[name].itemsize for name, one in plan.made.items()}
    content = {"metadata": {"total_parameters": sum(map(_numbers, plan.made.values())),
                            "total_size": sum(sizes.values())}, "weight_map": plan.file_of}
    tensor_files.write_json(folder / _INDEX, content, durable=durable)
  # Last, so that a folder with a config has the rest.
  if settings is None:
    write.copy(pathlib.Path(like) / "config.json", folder / "config.json", durable=durable)
  else:
    tensor_files.write_json(folder / "config.json", settings, durable=durable)
