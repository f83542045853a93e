"""Numbers of a memory model at each token of a text: how far its gate opens, its write rate, its surprise.

The text is read once more for it, by segments of one size in the packed form, whose numbers are those of
training; decoding does not keep them. Each number is the mean over heads and blocks with a memory.
"""
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.memory.layer import Memory
from atlas_jax.models.language import LanguageModel

SEGMENT_TOKENS = 256  # Read at once, rounded up to whole chunks.
NAMES = {"gate": "gate_BT", "write_rate": "write_rate_BT", "surprise": "surprise_BT"}


class MemoryTrace(NamedTuple):
  """Numbers per token of a text, float32."""

  gate_T: np.ndarray  # fraction of what is recalled that enters the block, 0 to 1
  write_rate_T: np.ndarray  # inner learning rate
  surprise_T: np.ndarray  # norm of the recall loss's gradient at the base state


def has_memory(language: LanguageModel) -> bool:
  """Returns whether a model has a gated memory that is written while it reads."""
  module = language.module
  if language.has_hf_form or not module.has_fast_weights:
    return False
  # Blocks that read by segments of their own keep no numbers per token.
  if "gate" not in module.mix.has or "segments" in module.mix.has:
    return False
  return Memory(**module.memory, parent=None).writes


class MemoryTracer:
  """Reads texts with one model; one at a time, in the caller's thread."""

  def __init__(self, language: LanguageModel, params: Any, *, segment_tokens: int = SEGMENT_TOKENS):
    """Takes a model; nothing is compiled before the first text.

    Raises:
      ValueError: if the model has no memory to look at.
    """
    if not has_memory(language):
      raise ValueError("the model has no gated memory that is written; there is nothing to trace")
    model = language.module
    self._params = params
    self._vocab_size = language.vocab_size
    self._size = -(-segment_tokens // model.align_tokens) * model.align_tokens
    self._start = model.zero_state(1)
    self._lock = threading.Lock()

    @jax.jit
    def read(params, state, tokens_BT, doc_BT):
      out, kept = model.apply({"params": params}, tokens_BT, state, doc_BT=doc_BT, mode="packed",
                              mutable=["intermediates"])
      return out.state, {name: _mean(kept["intermediates"], leaf)[0] for name, leaf in NAMES.items()}

    self._read = read

  def load(self, params: Any) -> None:
    """Takes newer weights of the model."""
    self._params = params

  def __call__(self, tokens: Sequence[int]) -> MemoryTrace:
    """Returns the numbers of a text.

    Raises:
      ValueError: if it has no ids, or one is none of the model's.
    """
    tokens_T = np.asarray(tokens, np.int32)
    if not tokens_T.size or tokens_T.min() < 0 or tokens_T.max() >= self._vocab_size:
      raise ValueError(f"tokens must be ids in 0..{self._vocab_size - 1}, at least one")
    pad = -len(tokens_T) % self._size
    padded_BT = np.pad(tokens_T, (0, pad))[None]
    # Only the last segment is padded: a document that goes on must not be.
    doc_BT = np.pad(np.zeros(len(tokens_T), np.int32), (0, pad), constant_values=-1)[None]
    state = self._start
    found: dict[str, list] = {name: [] for name in NAMES}
    params = self._params  # The same for all segments, whatever is loaded meanwhile.
    with self._lock:
      for at in range(0, padded_BT.shape[1], self._size):
        here = slice(at, at + self._size)
        state, numbers = self._read(params, state, padded_BT[:, here], doc_BT[:, here])
        for name, value_T in numbers.items():
          found[name].append(np.asarray(value_T))
    whole = {name: np.concatenate(parts)[:len(tokens_T)] for name, parts in found.items()}
    return MemoryTrace(whole["gate"], whole["write_rate"], whole["surprise"])


def _mean(kept, leaf: str):
  """Returns the mean over blocks of a number that blocks keep under a name, [B, T]."""
  found = [value for path, value in jax.tree_util.tree_leaves_with_path(kept)
           if any(getattr(key, "key", None) == leaf for key in path)]
  assert found  # Blocks with a memory keep it, and there is one at least.
  return jnp.mean(jnp.concatenate([value.reshape(-1, *value.shape[-2:]) for value in found]), axis=0)
