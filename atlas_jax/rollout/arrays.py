"""Completions as arrays that training reads, and arrays as text that a checkpoint's JSON holds."""
import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def of_completions(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], *,
                   pad_tokens: int = 1, align_tokens: int = 1) -> dict[str, np.ndarray]:
  """Puts prompts and what was written after them into arrays.

  Args:
    prompts: ids of each of B prompts, at least one.
    completions: ids of each of B completions.
    pad_tokens: S and T are multiples of it, so that there are few shapes to compile for.
    align_tokens: and of this.

  Returns:
    tokens_BS, int32: prompt and completion from the left, then 0; doc_BS, int32: 0, -1 at padding; start_B,
    int32: the place of the prompt's last id, which predicts the first of the completion; completion_BT,
    int32, then 0; completion_mask_BT, bool.
  """
  # align_tokens is what the model needs, pad_tokens what keeps shapes few; both widths heed both.
  multiple = math.lcm(pad_tokens, align_tokens)
  whole = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
  tokens_BS, doc_BS = _filled(whole, multiple)
  completion_BT, mask_BT = _filled(completions, multiple)
  # Padding is told by doc_BS and the mask, never by the id 0, which a tokenizer may use.
  return {"tokens_BS": tokens_BS, "doc_BS": doc_BS.astype(np.int32) - 1,
          "start_B": np.array([len(prompt) - 1 for prompt in prompts], np.int32),
          "completion_BT": completion_BT, "completion_mask_BT": mask_BT}


def padded(rows: Sequence[Sequence[float]], width: int) -> np.ndarray:
  """Puts rows of numbers into a float32 array, with 0 behind their ends."""
  array_BT = np.zeros((len(rows), width), np.float32)
  for row, values in enumerate(rows):
    array_BT[row, :len(values)] = values
  return array_BT


def _filled(rows: Sequence[Sequence[int]], multiple: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the ids, and where there are any."""
  # At least one place, also where all completions are empty: no axis of size 0 is compiled.
  longest = max([1, *map(len, rows)])
  ids_BT = np.zeros((len(rows), -(-longest // multiple) * multiple), np.int32)
  for row, ids in enumerate(rows):
    ids_BT[row, :len(ids)] = ids
  return ids_BT, np.arange(ids_BT.shape[1])[None] < np.array([len(ids) for ids in rows])[:, None]


def to_json(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns arrays as JSON, bit for bit; see `from_json`."""
  # zlib, because masks, padding and zeros are most of it; base64, because JSON holds texts alone.
  return {name: {"dtype": array.dtype.str, "shape": list(array.shape),
                 "zlib": base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes())).decode()}
          for name, array in arrays.items()}


def from_json(saved: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns the arrays of `to_json`."""
  return {name: np.frombuffer(zlib.decompress(base64.b64decode(one["zlib"])), one["dtype"])
                  .reshape(one["shape"]).copy() for name, one in saved.items()}  # frombuffer's is read-only.
