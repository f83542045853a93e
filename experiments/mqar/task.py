"""Multi-query associative recall: pairs of a key and a value, then keys alone, whose values are asked for.

  k3 v1 k0 v7 ... k5 v2 | k0 k5 k3 ... | k5 k3 k0 ...

A sequence of T tokens holds T / 4 pairs and asks for each twice, in two random orders. Its keys differ, its
values are drawn one by one, and no token is both. Only answers count, and no answer is ever shown.

Source: Arora et al. 2023, Zoology, arXiv:2312.04927; they ask each key once, at distances of a power law.
"""
import numpy as np

from atlas_jax.data.recall import mqar
from atlas_jax.data.stepped import IndexedSource, rows_of

SPLITS = ("train", "held_out")


class Recall(IndexedSource):
  """Fresh sequences for every step, drawn from the seed, the split and the step alone."""

  def __init__(self, *, keys: int, segment_len: int, batch_rows: int, seed: int, split: str, rows: range,
               steps: int | None):
    self.place: dict = {"keys": keys, "segment_len": segment_len, "batch_rows": batch_rows, "seed": seed,
                        "split": split}
    super().__init__(self.place, rows, steps=steps)

  def batch(self, step: int) -> dict:
    """Returns a batch as `packing.read_row` describes its rows; each is a document of its own."""
    place = self.place
    # Of all processes, so that who has which row changes none of them.
    batch = self.sequences(np.random.default_rng([place["seed"], SPLITS.index(place["split"]), step]))
    batch["doc_BT"] = np.full_like(batch["tokens_BT"], step)
    return {name: value[self._mine] for name, value in batch.items()}

  def sequences(self, draw: np.random.Generator) -> dict:
    """Draws a whole batch; see `mqar.sequences`."""
    place = self.place
    return mqar.sequences(draw, rows=place["batch_rows"], pairs=place["segment_len"] // 4, keys=place["keys"],
                          times=2)

  def origin(self, step: int, row: int) -> str:
    """Names a row of the whole batch."""
    return f"step {step}, row {row}@0"


def make(*, name: str, seed: int, segment_len: int, batch_rows: int, split: str = "train",
         max_tokens: int | None = None, process_index: int = 0, process_count: int = 1, **others) -> Recall:
  """Builds the source; see `data.source.load`.

  Args:
    name: "keys:32" for 32 keys and as many values, a vocabulary of 64.
    segment_len: tokens of a sequence, 4 per pair.
    batch_rows: sequences per batch, over all processes.
    seed, split: what is drawn; "held_out" is apart from "train".
    max_tokens: ends after so many tokens; None never ends.
    process_index, process_count: whose rows these are.
    **others: fields of config.data that are about text.

  Raises:
    ValueError: if the sizes do not fit each other.
  """
  del others
  keys = int(name.removeprefix("keys:"))
  if segment_len % 4 or segment_len // 4 > keys:
    raise ValueError(f"config.data.segment_len={segment_len} must be a multiple of 4 and give at most {keys} "
                     f"pairs, as config.data.name={name!r} has so many keys")
  steps = None if max_tokens is None else max(1, max_tokens // (segment_len * batch_rows))
  return Recall(keys=keys, segment_len=segment_len, batch_rows=batch_rows, seed=seed, split=split,
                rows=rows_of(batch_rows, process_index, process_count), steps=steps)
