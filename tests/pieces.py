"""A tokenizer of given pieces, for tests about two that cut the same text at different places."""

import random

import numpy as np

from atlas_jax.data.tokenizer import TableTokenizer


class Pieces(TableTokenizer):
  """Takes the longest piece that fits; the ids behind the pieces are special, the first one ends texts."""

  def __init__(self, *texts, specials=1, shuffle=None):
    table = [bytes([byte]) for byte in range(256)] + [text.encode() for text in texts]
    if shuffle is not None:
      random.Random(shuffle).shuffle(table)
    self._bytes, self.doc_id = table + [b""] * specials, len(table)
    self.vocab_size, self.fingerprint = len(self._bytes), f"pieces:{texts}:{shuffle}"

  def encode(self, text):
    data, ids = text.encode() if isinstance(text, str) else text, []
    while data:
      ids.append(max((i for i, piece in enumerate(self._bytes) if piece and data.startswith(piece)),
                     key=lambda i: len(self._bytes[i])))  # fmt: skip
      data = data[len(self._bytes[ids[-1]]):]
    return np.array(ids, np.int32)
