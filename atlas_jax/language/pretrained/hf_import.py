"""Pretrained models, read from a folder of safetensors straight to their place on the mesh."""
import importlib
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atlas_jax.files import tokenizer_json
from atlas_jax.language.pretrained import hf_config, names, tensor_files
from atlas_jax.models import lora as adapters
from atlas_jax.models import placement
from atlas_jax.models.decoder import Decoder
from atlas_jax.models.hybrid_decoder import AnyDecoder, HybridDecoder
from atlas_jax.parallel import mesh as meshes

HUB = "hf:"
# What is fetched from the hub; no pickles.
TAKEN = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
# Tensors that some programs store although others follow from the config; an export copies them.
SPARE: tuple[str, ...] = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


class Imported(NamedTuple):
  """A model that was read."""

  model: AnyDecoder
  params: Any           # without adapters
  folder: pathlib.Path  # what it was read from, for `hf_export.save(like=...)`


def load(name: str, *, mesh: Mesh | None = None, param_dtype: str | None = None, **how) -> Imported:
  """Reads a model.

  Args:
    name: a folder with config.json and safetensors, in one file or in shards with an index; or "hf:NAME" for
      one on the hub or in its cache.
    mesh: where the parameters go, by the rules of `models.placement`; None puts them on the first device.
    param_dtype: of the parameters, "float32" for training; None keeps each as it is stored.
    **how: fields of the `Decoder` that say how it is run: dtype, remat, scan_unroll, attention_block_tokens,
      lora.

  Returns:
    The model and its parameters, of which the host never holds a second copy. With `lora` the model has
    adapters and the parameters have none: `models.lora.join` adds those of `models.lora.start` or
    `peft.load`.

  Raises:
    ValueError: naming the file, and the setting or tensor in it that is missing, wrong or not supported.
  """
  folder = find(name)
  family, fields = hf_config.read(folder / "config.json")
  check_tokenizer(folder, fields["vocab_size"])
  model = build(fields, **how)
  tensors = tensor_files.TensorFolder(folder)
  # Adapters are no part of the folder; the rest is what its tensors must fill.
  shapes = adapters.split(abstract(model))[1]
  spare = SPARE
  # Some programs store the head of a tied model as well; it must say the same, and is not read twice.
  if model.tied and HEAD in tensors.file_of:
    _check_tied(tensors)
    spare = (*SPARE, HEAD.replace(".", r"\."))
  params = tensor_files.read_tree(tensors, names.rows(family, fields), shapes, shardings_of(shapes, mesh),
                                  param_dtype, spare=spare)
  return Imported(model, params, folder)


def build(fields: dict, **how) -> AnyDecoder:
  """Makes the model of the fields that `hf_config.read` gives, and of those that say how it is run."""
  return HybridDecoder(**fields, **how) if "pattern" in fields else Decoder(**fields, **how)


def abstract(model: AnyDecoder):
  """Returns the shapes of a model's parameters, its adapters' among them."""
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def shardings_of(shapes, mesh: Mesh | None):
  """Returns the places of parameters: by the mesh's rules, or the first device where there is no mesh."""
  return placement.shardings(meshes.make(devices=jax.local_devices()[:1]) if mesh is None else mesh, shapes)


def find(name: str) -> pathlib.Path:
  """Returns a model's folder by its path, or by its name on the hub, "hf:NAME", which fetches it if need be.

  Raises:
    ValueError: if there is no such folder, or the hub does not give it.
    ModuleNotFoundError: if the extra that the hub needs is missing, with its name.
  """
  if name.startswith(HUB):
    hub = _hub()
    try:
      return pathlib.Path(hub.snapshot_download(name[len(HUB):], allow_patterns=list(TAKEN)))
    except Exception as error:  # Offline, absent and forbidden all end here, each with a type of its own.
      raise ValueError(f"the model {name!r} cannot be fetched ({type(error).__name__}); without a network "
                       "give the path of a local folder") from error
  folder = pathlib.Path(name).expanduser()
  if not folder.is_dir():
    raise ValueError(f"the model {name!r} is no folder; give one with config.json and safetensors, or "
                     "'hf:NAME' for one on the Hugging Face hub")
  return folder


def _hub():
  try:
    return importlib.import_module("huggingface_hub")
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError("a model on the hub needs the package huggingface_hub: pip install "
                              "'atlas_jax[hf]', or give the path of a local folder") from error


def check_tokenizer(folder, vocab_size: int) -> None:
  """Refuses a tokenizer that has ids for which the model has no embedding; fewer ids are usual.

  Args:
    folder: the tokenizer's; one without a tokenizer.json passes.
    vocab_size: of the model.

  Raises:
    ValueError: naming the file and both sizes.
  """
  file = pathlib.Path(folder) / "tokenizer.json"
  if not file.is_file():
    return
  largest = tokenizer_json.largest_id(file, tokenizer_json.read(file))
  if largest >= vocab_size:
    raise ValueError(f"{file} has ids up to {largest}, but the model's vocab_size is {vocab_size}: they do "
                     "not belong together; take the tokenizer from the model's own folder")


def _check_tied(tensors: tensor_files.TensorFolder) -> None:
  """Refuses a stored head that differs from the embedding although the config ties them."""
  if tensors.shape(HEAD) == tensors.shape(EMBEDDING):
    rows = tensors.shape(HEAD)[0]
    cuts = [slice(start, min(start + 4096, rows)) for start in range(0, rows, 4096)]  # Bounds host memory.
    if all((tensors.read(HEAD, cut) == tensors.read(EMBEDDING, cut)).all() for cut in cuts):
      return
  raise ValueError(f"{tensors.where(HEAD)} differs from {EMBEDDING}, but config.json has tie_word_embeddings "
                   "true; set it to false to use both")
