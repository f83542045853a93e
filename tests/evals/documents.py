"""Small things for the evals: a source of packed documents in memory, and a model to read them."""
import functools

import numpy as np

from atlas_jax.data import packing
from atlas_jax.data.tokenizer import ByteTokenizer
from tests.helpers import tiny_lm


@functools.lru_cache
def lm_and_params():
  """One model for all evals, and its parameters."""
  return tiny_lm()[:2]


class Documents:
  """Held-out batches of a few documents, every row read here."""

  def __init__(self, documents, *, rows, segment_len, align_tokens=4, doc_id=31, seed=None, max_tokens=None):
    self.tokenizer, self.step, self.closed = ByteTokenizer(), 0, False
    lengths = np.array([len(ids) for ids in documents])
    self._plan = packing.PackingPlan(lengths, batch_rows=rows, segment_len=segment_len,
                                     align_tokens=align_tokens, seed=seed, max_tokens=max_tokens)
    bytes_of = np.r_[np.ones(doc_id, np.int32), np.zeros(1, np.int32)]
    starts = np.cumsum(lengths) - lengths
    self._tokens = packing.Tokens(np.concatenate(documents), starts, lengths, bytes_of, doc_id)
    self._rows, self._endless = rows, seed is not None

  def next(self, trained):
    del trained
    if self.step == self._plan.steps_per_epoch and not self._endless:
      raise StopIteration
    rows = [packing.read_row(self._plan, self._tokens, self.step, row) for row in range(self._rows)]
    self.step += 1
    return {f"{name[:-1]}BT": np.stack([row[name] for row in rows]) for name in rows[0]}

  def close(self):
    self.closed = True


def random_documents(lengths, *, vocab_size=31, seed=0):
  """Documents of the given lengths, uniform over ids below vocab_size."""
  draw = np.random.default_rng(seed)
  return [draw.integers(0, vocab_size, n).astype(np.uint16) for n in lengths]


def joined(source):
  """All batches of a source side by side, as one long segment."""
  batches = []
  try:
    while True:
      batches.append(source.next(None))
  except StopIteration:
    return {name: np.concatenate([batch[name] for batch in batches], axis=1) for name in batches[0]}


def nats(logits_BTV, targets_BT):
  """Negative log-likelihood of each target, float64."""
  logits_BTV = np.asarray(logits_BTV, np.float64)
  top_BT = logits_BTV.max(-1)
  total_BT = np.log(np.exp(logits_BTV - top_BT[..., None]).sum(-1)) + top_BT
  return total_BT - np.take_along_axis(logits_BTV, np.asarray(targets_BT)[..., None], -1)[..., 0]
