"""The neural memory as a layer of its own, for models that are built elsewhere."""
import numbers
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax import fields
from atlas_jax.memory import scan
from atlas_jax.memory.layer import NO_DOC, Memory, MemoryLayerState
from atlas_jax.models.layers import HeadsOut

SETTINGS = ("chunk_size", "conv_taps", "retention_init", "momentum_init", "write_rate_init", "write_rate_max",
            "half_life_spread", "remat_chunks", "impl", "shift", "shared_qk", "activation", "value_source",
            "conv_init", "initial", "read_norm", "writes")


class NeuralMemoryState(NamedTuple):
  """State of a layer from call to call, of fixed size; every leaf leads with B."""

  memory: MemoryLayerState
  doc_B: jax.Array  # int32, document of the last token read; below 0 if there was none


class NeuralMemory(nn.Module):
  """A layer whose fast weights are trained by the tokens it reads; output and input have the same shape.

  It has no residual connection and no norm: x + NeuralMemory(dim=384)(norm(x))[0] is a block. Attributes that
  are None have the defaults of `config.model.memory`, where each is described.

  Attributes:
    dim: width of input and output.
    heads: memory heads; keys and values of each have dim / heads features.
    rule: the memory rule, a file in memory/rules/ or a dotted module name.
    options: the rule's own options, by name.
    chunk_size, conv_taps, retention_init, momentum_init, write_rate_init: see `memory.layer.Memory`.
    write_rate_max, half_life_spread: the same.
    remat_chunks, impl: the same; they change speed and memory alone, in calls without a state.
    shift, shared_qk, activation, value_source, conv_init, initial, read_norm, writes: see `memory.layer.
      Memory`. The tokens themselves, of which value_source="token" makes values, are the input, at unit mean
      square.
    max_documents: the most documents that a row of one call may hold. It matters under `jit`, where documents
      cannot be counted: None then makes room for one at every token, which takes chunk_size times the memory.

  Raises:
    ValueError, TypeError: if attributes or inputs do not fit, before anything is compiled.
  """

  dim: int
  heads: int | None = None
  rule: str | None = None
  options: Mapping | None = None
  chunk_size: int | None = None
  conv_taps: int | None = None
  retention_init: float | None = None
  momentum_init: float | None = None
  write_rate_init: float | None = None
  write_rate_max: float | None = None
  half_life_spread: float | None = None
  remat_chunks: int | None = None
  impl: str | None = None
  shift: bool | None = None
  shared_qk: bool | None = None
  activation: str | None = None
  value_source: str | None = None
  conv_init: str | None = None
  initial: str | None = None
  read_norm: str | None = None
  writes: bool | None = None
  max_documents: int | None = None

  @nn.nowrap
  def memory_fields(self) -> dict:
    """Returns the fields of `memory.layer.Memory`: what is given, and the config's defaults.

    Raises:
      ValueError, TypeError: if they do not fit.
    """
    defaults = fields.with_defaults("model.memory", {})
    given = {name: getattr(self, name) for name in ("heads", "rule", "options", *SETTINGS)}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("rule", defaults["rule"]) != defaults["rule"]:
      given.setdefault("options", {})  # The default options are those of the default rule.
    heads = given.get("heads", defaults["heads"])
    for name, value in (("dim", self.dim), ("heads", heads), ("max_documents", self.max_documents)):
      if not _is_whole(value) and (name != "max_documents" or value is not None):
        raise TypeError(f"NeuralMemory: {name}={value!r} must be a whole number")
    if heads < 1 or self.dim < 1 or self.dim % heads:
      near = fields.near(self.dim, heads) if heads > 0 and self.dim > 0 else "above 0"
      raise ValueError(f"NeuralMemory: dim={self.dim} is not a multiple of heads={heads}; nearest are "
                       f"{near}, or choose other heads")
    if self.max_documents is not None and self.max_documents < 1:
      raise ValueError(f"NeuralMemory: max_documents={self.max_documents} must be at least 1, or None")
    width = self.dim // heads
    return fields.with_defaults("model.memory", {**given, "key_dim": width, "value_dim": width})

  @nn.nowrap
  def zero_state(self, rows: int, dtype=jnp.float32) -> NeuralMemoryState:
    """Returns the state of a layer that has read nothing, for inputs of a dtype."""
    memory = Memory(**self.memory_fields(), parent=None).zero_state(rows, dtype)
    return NeuralMemoryState(memory, jnp.full((rows,), NO_DOC, jnp.int32))

  @nn.compact
  def __call__(self, x_BTD, state: NeuralMemoryState | None = None, doc_BT=None):
    """Reads T tokens of each row, any number.

    Args:
      x_BTD: the layer's input, float.
      state: what an earlier call returned; the text goes on where that call ended. None: nothing was read.
      doc_BT: document of each token, 0 or above, -1 at padding. The memory starts anew where the number
        changes; a document that goes on from the earlier call keeps its number. None: one document per row,
        that of the state, or number 0.

    Returns:
      (y_BTD, state): y in x's shape and dtype, 0 at padding. Any cut of a text into calls gives the same.
    """
    layer = Memory(**self.memory_fields(), name="memory")
    zero = self._check(layer, x_BTD, state, doc_BT)
    if doc_BT is not None:
      out_BTHM, state = self._read_documents(layer, x_BTD, state or zero, doc_BT)
    else:
      # Whether a text begins here is known before tracing, while a state's position is not: only what begins
      # can be read by whole chunks.
      out_BTHM, state = _read_text(layer, x_BTD, zero if state is None else state, fresh=state is None)
    return HeadsOut(self.dim, 1.0, name="out")(out_BTHM.astype(x_BTD.dtype)), state

  @nn.nowrap
  def _check(self, layer: Memory, x_BTD, state, doc_BT) -> NeuralMemoryState:
    """Refuses inputs that do not fit; returns the state of a layer that has read nothing."""
    if not hasattr(x_BTD, "ndim") or not hasattr(x_BTD, "dtype"):
      raise TypeError(f"NeuralMemory: x is a {type(x_BTD).__name__}; give an array of [rows, tokens, dim="
                      f"{self.dim}]")
    if x_BTD.ndim != 3 or x_BTD.shape[2] != self.dim or not x_BTD.shape[1]:
      raise ValueError(f"NeuralMemory: x has shape {x_BTD.shape}; it must be [rows, tokens, dim={self.dim}], "
                       "with at least one token")
    if not jnp.issubdtype(x_BTD.dtype, jnp.floating):
      raise ValueError(f"NeuralMemory: x is of {x_BTD.dtype}; give floats, such as embeddings of tokens")
    rows = x_BTD.shape[0]
    zero = NeuralMemoryState(layer.zero_state(rows, x_BTD.dtype), jnp.full((rows,), NO_DOC, jnp.int32))
    if state is not None:
      # Shapes of the whole tree: another rule, width or number of rows shows here, in words.
      found, need = (jax.tree.map(jnp.shape, tree) for tree in (state, zero))
      if found != need:
        raise ValueError(f"NeuralMemory: the state is not one of this layer (rule={layer.rule!r}, dim="
                         f"{self.dim}, heads={layer.heads}) for {rows} rows; give what its own call "
                         "returned, or None")
    if doc_BT is not None and jnp.shape(doc_BT) != x_BTD.shape[:2]:
      raise ValueError(f"NeuralMemory: doc_BT has shape {jnp.shape(doc_BT)}; x has {x_BTD.shape[:2]} rows "
                       "and tokens, and each needs the number of its document")
    if doc_BT is not None:
      _check_numbers(doc_BT)
    return zero

  @nn.nowrap
  def _read_documents(self, layer: Memory, x_BTD, state: NeuralMemoryState, doc_BT):
    """Moves padding behind the tokens, reads, and moves what was recalled back to its position."""
    documents = self.max_documents
    # The number of chunks is a shape: outside jit it follows from the documents that are there.
    if not isinstance(doc_BT, jax.core.Tracer):
      documents = count_documents(doc_BT)
      if self.max_documents is not None and documents > self.max_documents:
        raise ValueError(f"NeuralMemory: a row of doc_BT has {documents} documents, more than max_documents="
                         f"{self.max_documents}; raise it, or leave it out")
    doc_BT = jnp.asarray(doc_BT, jnp.int32)
    # `stable` keeps tokens in order; the argsort of a permutation is its inverse.
    order_BT = jnp.argsort(doc_BT < 0, axis=1, stable=True)
    back_BT = jnp.argsort(order_BT, axis=1)
    count_B = jnp.sum(doc_BT >= 0, axis=1, dtype=jnp.int32)
    doc_BT = jnp.take_along_axis(doc_BT, order_BT, axis=1)
    x_BTD = jnp.take_along_axis(x_BTD, order_BT[..., None], axis=1)
    n_chunks = scan.chunks_of_documents(doc_BT.shape[1], layer.chunk_size, documents)
    out: Any = layer(x_BTD, state.memory, doc_BT, state.doc_B, count_B, mode="documents", n_chunks=n_chunks)
    last_B = jnp.take_along_axis(doc_BT, jnp.maximum(count_B - 1, 0)[:, None], axis=1)[:, 0]
    # A row of padding alone read nothing and stays in its document.
    after = NeuralMemoryState(out[1], jnp.where(count_B > 0, last_B, state.doc_B))
    return jnp.take_along_axis(out[0], back_BT[..., None, None], axis=1), after


def _is_whole(value) -> bool:
  return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_numbers(doc_BT) -> None:
  """Refuses what cannot number documents: it would be cut to whole numbers of 32 bits, and documents join."""
  known = not isinstance(doc_BT, jax.core.Tracer)
  doc_BT = np.asarray(doc_BT) if known else doc_BT
  if not jnp.issubdtype(doc_BT.dtype, jnp.integer):
    raise TypeError(f"NeuralMemory: doc_BT is of {doc_BT.dtype}; documents have whole numbers")
  if known and doc_BT.size and doc_BT.max() >= 2**31:
    raise ValueError(f"NeuralMemory: doc_BT has the number {doc_BT.max()}; it must be below 2**31")


def count_documents(doc_BT) -> int:
  """Counts the documents of each row, padding left out, and returns the largest number; at least 1."""
  most = 1
  for doc_T in np.asarray(doc_BT):
    # Padding inside a document does not end it.
    real = doc_T[doc_T >= 0]
    most = max(most, 1 + int(np.count_nonzero(real[1:] != real[:-1])))
  return most


def _read_text(layer: Memory, x_BTD, state: NeuralMemoryState, *, fresh: bool):
  """Reads one document per row: by whole chunks if it begins here, and what is left from any position."""
  rows, length, _ = x_BTD.shape
  whole = length // layer.chunk_size * layer.chunk_size if fresh else 0
  memory = state.memory
  last_doc_B = state.doc_B
  outs = []
  doc_B = jnp.where(last_doc_B == NO_DOC, 0, last_doc_B)
  doc_BT = jnp.broadcast_to(doc_B[:, None], (rows, length))
  # NO_DOC before the first part has the memory start; for the second the document goes on.
  for start, end, mode in ((0, whole, "packed"), (whole, length, "stream")):
    if start < end:
      out, memory, _ = layer(x_BTD[:, start:end], memory, doc_BT[:, start:end], last_doc_B, None, mode=mode)
      outs.append(out)
      last_doc_B = doc_B
  return jnp.concatenate(outs, axis=1), NeuralMemoryState(memory, doc_B)
