"""Recall over long texts: pairs that return, some of them after a third of the text without them.

  = k3 v1 = k0 v7 = k3 v1 ...  | = k5 v2 = k8 v8 ...  | = k0 v7 = k5 v2 = k3 v1 ...

A text is a row of pairs, each a mark, a key and its value. Half of the keys fill its first third, the other
half the second one, all of them the last; which comes next is drawn, but none twice in a row. A pair asks for
its value where its key has been shown before; nothing else counts. Between that and the last time stand 5
tokens or more. How many keys there are is drawn for each text, and so is the value of each.

Source: after Arora et al. 2023, Zoology, arXiv:2312.04927; see also `experiments.mqar.task`.
"""
import numpy as np

from atlas_jax.data.stepped import rows_of
from experiments.mqar import task

MARK = 0  # Tokens: the mark, then keys, then values.
KEYS = VALUES = 32
VOCAB = 1 + KEYS + VALUES
PAIRS = (8, 16, 32)  # that a text tells apart, each as often as the others
WIDTH = 3  # tokens of a pair


class Recall(task.Recall):
  """Fresh texts for every step, drawn from the seed, the split and the step alone."""

  def sequences(self, draw: np.random.Generator) -> dict:
    """Draws a whole batch; see `texts`."""
    return texts(draw, rows=self.place["batch_rows"], length=self.place["segment_len"])


def texts(draw: np.random.Generator, *, rows: int, length: int) -> dict:
  """Draws texts.

  Returns:
    tokens_BT, targets_BT, pos_BT, bytes_BT (int32), weight_BT (float32, 1 at questions), and of questions
    distance_BT (int32), tokens since the pair was shown last, and pairs_BT (int32), how many pairs the text
    has; both are 0 elsewhere.
  """
  each = [_text(draw, length, int(count)) for count in draw.choice(PAIRS, size=rows)]
  batch = {name: np.stack([one[name] for one in each]) for name in each[0]}
  asked_BT = (batch["distance_BT"] > 0).astype(np.int32)
  pos_BT = np.broadcast_to(np.arange(length, dtype=np.int32), asked_BT.shape)
  return batch | {"weight_BT": asked_BT.astype(np.float32), "bytes_BT": asked_BT, "pos_BT": pos_BT}


def _text(draw: np.random.Generator, length: int, pairs: int) -> dict:
  places = length // WIDTH
  keys, values = draw.permutation(KEYS)[:pairs], draw.integers(VALUES, size=pairs)
  tokens_T, targets_T, distance_T, pairs_T = (np.zeros(length, np.int32) for _ in range(4))
  last: dict[int, int] = {}
  which = -1
  for place in range(places):
    third = 3 * place // places
    pool = [i for i in range(pairs) if i != which and third in (2, i % 2)]
    which = pool[draw.integers(len(pool))]
    at = WIDTH * place + 1
    tokens_T[at:at + 2] = 1 + keys[which], 1 + KEYS + values[which]
    if which in last:
      targets_T[at], distance_T[at], pairs_T[at] = tokens_T[at + 1], at - last[which], pairs
    last[which] = at
  return {"tokens_BT": tokens_T, "targets_BT": targets_T, "distance_BT": distance_T, "pairs_BT": pairs_T}


def make(*, seed: int, segment_len: int, batch_rows: int, split: str = "train", max_tokens: int | None = None,
         process_index: int = 0, process_count: int = 1, **others) -> Recall:
  """Builds the source; see `data.source.load`.

  Args:
    seed, split: what is drawn; "held_out" is apart from "train".
    segment_len: tokens of a text.
    batch_rows: texts per batch, over all processes.
    max_tokens: ends after so many tokens; None never ends.
    process_index, process_count: whose rows these are.
    **others: fields of config.data that are about other text.

  Raises:
    ValueError: if rows do not divide.
  """
  del others
  steps = None if max_tokens is None else max(1, max_tokens // (segment_len * batch_rows))
  return Recall(keys=KEYS, segment_len=segment_len, batch_rows=batch_rows, seed=seed, split=split,
                rows=rows_of(batch_rows, process_index, process_count), steps=steps)
