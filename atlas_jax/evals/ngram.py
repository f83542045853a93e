"""Plain models of text to compare with: a smoothed trigram, and gzip.

Source: Witten and Bell 1991, "The zero-frequency problem", method C, backing off from trigram to bigram to
unigram to the uniform distribution. Tables over contexts or targets are 1-D arrays without an axis letter.
"""
import gzip
from collections.abc import Iterable

import numpy as np

BUFFERED = 2**21  # Keys counted at once: 16 MiB.


def gzip_bits_per_byte(text: bytes) -> float:
  """Returns the size of `gzip -9` of the text in bits per byte of text."""
  return 8 * len(gzip.compress(text, 9, mtime=0)) / len(text)


def fit(batches: Iterable[dict], *, vocab_size: int, doc_id: int) -> "Trigram":
  """Counts all batches, consecutive ones of one source, into a new model."""
  model = Trigram(vocab_size=vocab_size, doc_id=doc_id)
  for batch in batches:
    model.add(batch)
  return model


class Trigram:
  """Witten-Bell trigram over token ids, counted from batches; memory grows with distinct trigrams only.

  Attributes:
    n_tokens: targets counted so far.
  """

  def __init__(self, *, vocab_size: int, doc_id: int):
    """Starts without counts: every token is equally likely.

    Args:
      vocab_size: V; ids are below it.
      doc_id: stands before the first tokens of a document.
    """
    if vocab_size > 2_000_000:
      raise ValueError(f"vocab_size={vocab_size} must be at most 2000000, or three ids do not fit in 63 bits")
    self.vocab_size = vocab_size
    self.doc_id = doc_id
    self.n_tokens = 0
    self._keys = np.zeros(0, np.int64)
    self._counts = np.zeros(0, np.int64)
    self._waiting: list[np.ndarray] = []
    self._ahead: dict | None = None      # Last column of the batch before, for contexts that cross batches.
    self._orders: list | None = None     # Tables made from the counts, dropped when counts change.

  def add(self, batch: dict) -> None:
    """Counts the targets of the batch that follows the one added before.

    Args:
      batch: tokens_BT, targets_BT, weight_BT, doc_BT of one step; targets of positive weight count.
    """
    keys, self._ahead = _trigrams(batch, self._ahead, self.vocab_size, self.doc_id)
    self.n_tokens += len(keys)
    self._waiting.append(keys)
    self._orders = None  # Made anew when asked for.
    if sum(map(len, self._waiting)) > BUFFERED:
      self._merge()

  def _merge(self) -> None:
    waiting = np.concatenate([*self._waiting, np.zeros(0, np.int64)])  # It refuses an empty list.
    keys, counts = np.unique(waiting, return_counts=True)
    self._keys, self._counts = _sum_by_key(np.r_[self._keys, keys], np.r_[self._counts, counts])
    self._waiting = []

  def _tables(self) -> list:
    """Returns, from unigram to trigram, (keys, counts, contexts, count of each, distinct targets of each)."""
    if self._orders is None:
      self._merge()
      self._orders = []
      for order in (1, 2, 3):
        # Keys are digits in base V, the target last: the remainder drops
        # the tokens that a shorter context forgets.
        keys, counts = _sum_by_key(self._keys % self.vocab_size**order, self._counts)
        # Keys are distinct here, so a context stands once for each target that ever followed it.
        contexts, kinds = np.unique(keys // self.vocab_size, return_counts=True)
        _, totals = _sum_by_key(keys // self.vocab_size, counts)
        self._orders.append((keys, counts, contexts, totals, kinds))
    return self._orders

  def probability(self, keys):
    """Returns P(target | two tokens before) for keys (before_last * V + last) * V + target, float64."""
    probability = np.full(len(keys), 1 / self.vocab_size)
    for order, (seen, counts, contexts, totals, kinds) in enumerate(self._tables(), start=1):
      part = keys % self.vocab_size**order
      count = _look_up(part, seen, counts)
      total, kind = (_look_up(part // self.vocab_size, contexts, values) for values in (totals, kinds))
      # Method C: the lower order has weight kind / (total + kind); more kinds of targets make it heavier.
      smoothed = (count + kind * probability) / np.maximum(total + kind, 1)
      # A context never seen says nothing, and the lower order stands.
      probability = np.where(total > 0, smoothed, probability)
    return probability

  def bits_per_byte(self, batches: Iterable[dict]) -> float:
    """Returns the bits of all counted targets over the bytes they stand for; batches are consecutive steps.

    Raises:
      ValueError: if the batches hold no byte.
    """
    bits = 0.0
    n_bytes = 0
    ahead = None
    for batch in batches:
      keys, ahead = _trigrams(batch, ahead, self.vocab_size, self.doc_id)
      bits -= float(np.log2(self.probability(keys)).sum())
      n_bytes += int(batch["bytes_BT"][batch["weight_BT"] > 0].sum())
    if not n_bytes:
      raise ValueError("bits_per_byte got no bytes: the batches are empty or padding; give a larger split")
    return bits / n_bytes


def _trigrams(batch: dict, ahead: dict | None, vocab_size: int, doc_id: int):
  """Returns the keys of counted targets and the last column, which the next batch continues."""
  tokens_BT, doc_BT = (np.asarray(batch[name], np.int64) for name in ("tokens_BT", "doc_BT"))
  if ahead is None:
    ahead = {"tokens_B": np.full(len(tokens_BT), doc_id), "doc_B": np.full(len(tokens_BT), -1)}
  before_BT = np.concatenate([ahead["tokens_B"][:, None], tokens_BT[:, :-1]], axis=1)
  before_doc_BT = np.concatenate([ahead["doc_B"][:, None], doc_BT[:, :-1]], axis=1)
  # Across a document's start the token before is doc_id, whatever text the row held there.
  before_BT = np.where(before_doc_BT == doc_BT, before_BT, doc_id)
  keys_BT = (before_BT * vocab_size + tokens_BT) * vocab_size + np.asarray(batch["targets_BT"], np.int64)
  last = {"tokens_B": tokens_BT[:, -1], "doc_B": doc_BT[:, -1]}
  return keys_BT[np.asarray(batch["weight_BT"]) > 0], last


def _sum_by_key(keys, counts):
  """Returns the distinct keys in order and the sum of the counts of each."""
  # bincount adds in float64, exact up to 2^53.
  unique, where = np.unique(keys, return_inverse=True)
  return unique, np.bincount(where, weights=counts, minlength=len(unique)).astype(np.int64)


def _look_up(wanted, keys, values):
  """Returns the value of each wanted key, 0 where it is not among the sorted keys."""
  if not len(keys):
    return np.zeros(len(wanted), np.int64)
  at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
  return np.where(keys[at] == wanted, values[at], 0)
