"""The folder that a run leaves with its trained model: weights, config, tokenizer, vocabulary, statistics.

Weights are safetensors; a pickle is never written.
"""
import pathlib
from collections.abc import Mapping
from typing import Any

from atlas_jax import tree
from atlas_jax.data import chats
from atlas_jax.data.tokenizer import BYTE_OF_CHAR, Tokenizer
from atlas_jax.files import write as write_file
from atlas_jax.language.initial_model import InitialModel
from atlas_jax.language.pretrained import hf_export, tensor_files, tokenizer_files
from atlas_jax.language.pretrained.names import Row
from atlas_jax.models import lora
from atlas_jax.models.decoder import Decoder
from atlas_jax.parallel import hosts
from atlas_jax.workdir import CHECKPOINTS, EVALS, EVENTS, PRETRAINED, TEMPLATE, TOKENIZER

CONFIG = "config.json"
VOCABULARY = "vocabulary.json"
STATS = "training_stats.json"
RESERVED = (CHECKPOINTS, TOKENIZER, PRETRAINED, TEMPLATE, EVALS, EVENTS)  # What else a workdir holds.
CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}


def check_name(field: str, name: str) -> None:
  """Refuses a name by which the folder would lie outside the workdir, or on a folder that the run needs.

  Raises:
    ValueError: names the field.
  """
  if name in ("", ".", "..", *RESERVED) or pathlib.PurePath(name).name != name:
    raise ValueError(f"config.{field}={name!r} must be the name of one folder in the workdir, and none of "
                     f"{', '.join(RESERVED)}; 'model' will do")


def write(folder, config, start: InitialModel, params, stats: Mapping) -> None:
  """Writes a model. Every process calls it; process 0 writes.

  Args:
    folder: made if absent; its parent is the workdir, with the run's own copy of the tokenizer.
    config: of the run.
    start: what it started from.
    params: whole; adapters are merged.
    stats: what becomes training_stats.json, to which the number of parameters is added; {} but in process 0.
  """
  folder = pathlib.Path(folder)
  module = start.language.module
  # Whoever loads the folder knows of no adapters.
  if start.adapted:
    params = lora.merge(params, module.lora)
  if start.language.has_hf_form:
    _write_decoder(folder, config, start, module.copy(lora=None), params)
  else:
    _write_memory(folder, module, params)
  if not hosts.is_main():
    return
  # The run's own copy, which lies beside this folder.
  tokenizer_files.write(folder, folder.parent / TOKENIZER, max_tokens=config.data.segment_len)
  if start.template is not None:
    write_file.whole(folder / chats.FILES[0], start.template.source)
  write_vocabulary(folder, start.tokenizer)
  tensor_files.write_json(folder / STATS, {**stats, "all_params": tree.count(params)})


def _write_decoder(folder: pathlib.Path, config, start: InitialModel, module: Decoder, params) -> None:
  """Writes weights and config in the format of a pretrained model, laid out as those the run started from."""
  # A workdir's copy of a pretrained folder has its config and no weights, so there is no layout to follow.
  like = start.folder if start.folder is not None and any(start.folder.glob("model*.safetensors*")) else None
  specials = {name: int(start.tokenizer.doc_id) for name in ("bos_token_id", "eos_token_id")}
  hf_export.save(folder, module, params, like=like, max_tokens=config.data.segment_len,
                 specials=specials if like is None else {})


def _write_memory(folder: pathlib.Path, module, params) -> None:
  """Writes a memory model's weights by our names for them, which no other program knows, and its fields."""
  def row(name: str, leaf) -> Row:
    # Stored as it is: axes need names only because a row has them.
    axes = " ".join(f"a{axis}" for axis in range(leaf.ndim))
    return Row(name, name.replace("/", "."), axes, axes)

  table = [row(name, leaf) for name, leaf in tree.named_leaves(params)]
  made = tensor_files.tensors_of(params, table)
  tensors = {name: tensor_files.fetch(one, one[0].dtype) for name, one in made.items()}
  if hosts.is_main():
    folder.mkdir(parents=True, exist_ok=True)
    tensor_files.write_file(folder / "model.safetensors", tensors, hf_export.METADATA)
    # Flax adds these two to every module.
    names = module.__dataclass_fields__.keys() - {"parent", "name"}
    fields = {name: _plain(getattr(module, name)) for name in sorted(names)}
    tensor_files.write_json(folder / CONFIG, {"model_type": "atlas_memory", **fields})


def _plain(value: Any) -> Any:
  """Returns nested mappings as dicts."""
  return {key: _plain(part) for key, part in value.items()} if isinstance(value, Mapping) else value


def write_vocabulary(folder, tokenizer: Tokenizer) -> None:
  """Writes vocabulary.json: what each id stands for.

  A byte that cannot be shown has the sign that byte-level vocabularies give it; ids that stand for no text,
  such as the mark of documents (doc_id), are "".
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  # Id by id, for an id may be a part of a character alone.
  shown = ["".join(CHAR_OF_BYTE[byte] for byte in tokenizer.decode_bytes([number]))
           for number in range(tokenizer.vocab_size)]
  tensor_files.write_json(folder / VOCABULARY, {
      "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size,
      "doc_id": int(tokenizer.doc_id), "tokens": shown})
