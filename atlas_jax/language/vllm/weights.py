"""Weights on their way to a server: folders they are written to, and what they must compute there."""
import functools
import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from atlas_jax.language.pretrained import hf_export
from atlas_jax.losses.token_logprobs import token_logprobs
from atlas_jax.models import lora
from atlas_jax.models.decoder import Decoder
from atlas_jax.models.language import LanguageModel
from atlas_jax.workdir import SERVED

MEMORY = pathlib.Path("/dev/shm")  # A folder in memory, where Linux has one.
SPARE = 2.5  # Room for two exports, and some.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


class Exports:
  """Two folders that take turns, so that a server that still reads one is not disturbed by the next.

  Attributes:
    temporary: what holds both of them if that is in memory; it is taken away at the end of the program.
  """

  def __init__(self, model: Decoder, *, like, shared_folder: str | None, workdir, dtype: str,
               max_tokens: int | None, in_memory: bool = True):
    """Chooses where; makes nothing yet.

    Args:
      model: what is written.
      like: folder of the pretrained model that it was read from, or None.
      shared_folder: where the two folders are made; None is in memory or in the workdir.
      workdir: of the run.
      dtype: of what is written.
      max_tokens: the longest text the model is meant for; needed without `like`.
      in_memory: whether memory is taken where there is room; no server can outlive the program then.
    """
    self._model = model
    self._like = like
    self._dtype = dtype
    self._max_tokens = max_tokens
    self._shared = shared_folder
    self._workdir = pathlib.Path(workdir)
    self._in_memory = in_memory
    self._root: pathlib.Path | None = None
    self._turn = 0
    self.temporary: pathlib.Path | None = None

  def write(self, params) -> pathlib.Path:
    """Writes parameters, adapters merged and the head apart from the embedding; gives the folder.

    Every process calls it; the path is of use in process 0 alone, which writes.
    """
    if self._model.lora is not None:
      params = lora.merge(params, self._model.lora)
    if self._root is None:
      self._root = self._choose(params)
    # In turn: a server may still read the last folder while the next one is written.
    folder = self._root / ("even", "odd")[self._turn % 2]
    self._turn += 1
    # A head that is shared keeps its old values in servers that pack it at the start.
    hf_export.save(folder, self._model, params, like=self._like, dtype=self._dtype, head="untied",
                   max_tokens=None if self._like else self._max_tokens, durable=False)  # Read, then replaced.
    return folder

  def remove(self) -> None:
    """Takes away what was written in memory."""
    if self.temporary is not None:
      shutil.rmtree(self.temporary, ignore_errors=True)

  def _choose(self, params) -> pathlib.Path:
    if self._shared is not None:
      return pathlib.Path(self._shared).expanduser().resolve()
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    needed = SPARE * numbers * jnp.dtype(self._dtype).itemsize
    wanted = self._in_memory and jax.process_index() == 0
    if wanted and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > needed:
      self.temporary = pathlib.Path(tempfile.mkdtemp(prefix="atlas_jax_", dir=MEMORY))
      # Also if the program ends by an error: memory that a folder holds is freed by nothing else.
      weakref.finalize(self, shutil.rmtree, self.temporary, ignore_errors=True)
      return self.temporary
    return (self._workdir / SERVED).resolve()


def has_tokenizer(folder: pathlib.Path) -> bool:
  """Returns whether a server finds a tokenizer in a folder."""
  return any((folder / name).is_file() for name in TOKENIZERS)


def fixed_prompt(vocab_size: int, tokens: int) -> list[int]:
  """Returns ids that look like no text, the same ones always."""
  return np.random.default_rng(20).integers(0, vocab_size, tokens).tolist()


def score(language: LanguageModel, params: Any, tokens: list[int], *, temperature: float = 1.0) -> np.ndarray:
  """Returns the log-probability of each id but the first, by our own model; every process calls it.

  Products are exact to float32 wherever the model's activations are, so that only the weights can differ.
  """
  sharding = jax.tree.leaves(params)[0].sharding
  # Parameters without a named sharding are on one device, and so is the result.
  mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
  # A model that reads whole chunks gets padding behind the text, which changes nothing before it.
  pad = -len(tokens) % language.align_tokens
  tokens_BT = np.pad(np.asarray([tokens], np.int32), ((0, 0), (0, pad)))
  doc_BT = np.pad(np.zeros((1, len(tokens)), np.int32), ((0, 0), (0, pad)), constant_values=-1)
  with jax.default_matmul_precision("highest"):
    scorer = _scorer(language.read, language.head, mesh)
    logprob_BT = scorer(params, tokens_BT, doc_BT, np.float32(temperature))
  return np.asarray(logprob_BT)[0, :len(tokens) - 1]


# Kept by the functions, as not every module has a hash: each hand-over scores, and only the first compiles.
@functools.lru_cache
def _scorer(read: Callable, head: Callable, mesh):
  def score_rows(params, tokens_BT, doc_BT, temperature):
    hidden_BTD, _ = read(params, tokens_BT, doc_BT)
    # The vector at t predicts id t + 1.
    return token_logprobs(hidden_BTD[:, :-1], head(params), tokens_BT[:, 1:],
                          temperature=temperature)

  # Whole on every device, so that every process can read it.
  return jax.jit(score_rows, out_shardings=None if mesh is None else NamedSharding(mesh, PartitionSpec()))
