"""Text as a source of batches: a tokenised corpus in the order of a plan, served by Grain."""
import hashlib
import json
from typing import Any

import numpy as np
from absl import logging

from atlas_jax.data import corpus as corpora
from atlas_jax.data import packing, problems, transforms
from atlas_jax.data import store as stores
from atlas_jax.data import tokenizer as tokenizers

BATCH = ("tokens_BT", "targets_BT", "weight_BT", "doc_BT", "pos_BT", "bytes_BT")
ENDLESS = 2**40  # Records of a split that never ends.
AHEAD = 8        # Batches prepared ahead of the loop.


class SegmentRows:
  """Random access to the rows of one process: record i is row i % rows of step first_step + i // rows."""

  def __init__(self, plan: packing.PackingPlan, tokens: packing.Tokens, rows: range, first_step: int):
    self._plan = plan
    self._tokens = tokens
    self._rows = rows
    self._first_step = first_step

  def __len__(self) -> int:
    left = ENDLESS if self._plan.seed is not None else max(0, self._plan.steps_per_epoch - self._first_step)
    return left * len(self._rows)

  def __getitem__(self, index) -> dict:
    step, row = divmod(int(index), len(self._rows))
    arrays = packing.read_row(self._plan, self._tokens, self._first_step + step, self._rows[row])
    return {name[:-1] + "BT": array for name, array in arrays.items()}  # Grain stacks rows into batches.

  def __repr__(self) -> str:
    return f"Rows(rows={self._rows}, first_step={self._first_step})"


class TextSource:
  """Batches of packed text; its place is one integer, the step.

  Attributes:
    tokenizer: the tokenizer of the ids.
    manifest: identity of the corpus: files, bytes, sha256, Python version where that decides the text.
    fingerprint: of the manifest, the split and the held-out share.
    steps_per_epoch: steps until every document was read once; the number of steps of a held-out split.
    step: the step that `next` gives.
  """

  def __init__(self, store: stores.TokenStore, chosen, plan: packing.PackingPlan, *,
               tokenizer: tokenizers.Tokenizer, split: dict, rows: range, threads: int):
    """Serves some documents of a store.

    Args:
      store: the tokenised corpus.
      chosen: indices of this split's documents in the store, those that `plan` was laid out for.
      plan: their order.
      tokenizer: what the store was made with.
      split: name of the split and share held out, part of the fingerprint; also the bound that decides, where
        the documents are few.
      rows: this process's rows of the whole batch.
      threads: threads that prepare batches; 0 prepares each when asked.
    """
    self.tokenizer = tokenizer
    self.manifest = store.manifest
    self.step = 0
    self.steps_per_epoch = plan.steps_per_epoch
    identity = json.dumps([self.manifest, split], sort_keys=True)
    self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    self._store = store
    self._chosen = chosen
    self._plan = plan
    self._split = split
    self._tokens = packing.Tokens(store.ids, store.starts[chosen], store.lengths[chosen],
                                  tokenizer.byte_lengths(), tokenizer.doc_id)
    self._rows = rows
    self._threads = threads
    self._batches: Any = None

  def next(self, trained=None) -> dict:
    """Returns the batch of `step` (this process's rows) and goes on to the next step.

    Returns:
      tokens_BT, targets_BT, weight_BT, doc_BT, pos_BT, bytes_BT as `packing.read_row` describes them.

    Raises:
      StopIteration: at the end of a held-out split.
    """
    del trained
    self._batches = self._batches or self._open()
    batch = next(self._batches)
    self.step += 1
    return batch

  def batch(self, step: int) -> dict:
    """Returns this process's rows of any step, as `next` did or will; the place stays.

    Raises:
      IndexError: if the split ends before that step.
    """
    rows = SegmentRows(self._plan, self._tokens, self._rows, step)
    records = [rows[i] for i in range(len(self._rows))]
    return {name: np.stack([record[name] for record in records]) for name in records[0]}

  def _open(self):
    import grain  # Takes seconds to import; a program that only reads plans needs none of it.
    records = grain.MapDataset.source(SegmentRows(self._plan, self._tokens, self._rows, self.step))
    batches = records.batch(len(self._rows), drop_remainder=True)
    ahead = AHEAD if self._threads else 0
    options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
    return iter(batches.to_iter_dataset(options))

  def close(self) -> None:
    """Stops the threads that prepare batches; `next` would start them again."""
    if self._batches is not None:
      self._batches.close()
      self._batches = None

  def state(self) -> dict:
    """Returns the place and what it is valid for; independent of the number of processes and threads."""
    plan = self._plan
    return {
        "step": self.step, "fingerprint": self.fingerprint, "seed": plan.seed, "batch_rows": plan.batch_rows,
        "segment_len": plan.segment_len, "align_tokens": plan.align_tokens, **self._split,
        "manifest": dict(self.manifest)}

  def restore(self, state: dict) -> None:
    """Goes to the saved place.

    Raises:
      ValueError: if it was saved with another corpus or other settings; says which.
    """
    here = self.state()
    saved, now = ({**s, **s.get("manifest", {})} for s in (state, here))
    differ = [f"{name}={saved.get(name)!r} then, {now[name]!r} now" for name in now
              if name not in ("step", "fingerprint", "manifest") and saved.get(name) != now[name]]
    if differ or state.get("fingerprint") != self.fingerprint:
      raise ValueError("the saved place in the data belongs to other data or settings: "
                       + ("; ".join(differ) or "fingerprints differ")
                       + "; resume with what it was saved with, or start in another workdir")
    self.close()
    self.step = int(state["step"])

  def __len__(self) -> int:
    return self.steps_per_epoch

  def provenance(self, step: int) -> list[str]:
    """Names the file and byte at which each of this process's rows starts in the batch of that step."""
    return [self._provenance(step, row) for row in self._rows]

  def _provenance(self, step: int, row: int) -> str:
    at = self._plan.places(step, row)
    document = int(at.document_T[0])
    tokens = self._tokens
    if document < 0:
      return "past the end@0"
    start = int(tokens.starts[document])
    before = tokens.ids[start:start + max(0, int(at.offset_T[0]) - 1)]
    name = stores.document_name(self._store, self._chosen[document])
    return f"{name}@{int(tokens.byte_lengths[before].sum())}"

  def text(self, limit_bytes: int | None = None) -> bytes:
    """Returns the first bytes of the split's documents, put together in the corpus's order; None is all."""
    parts = []
    size = 0
    for start, length in zip(self._tokens.starts, self._tokens.lengths):
      parts.append(self.tokenizer.decode_bytes(self._tokens.ids[start:start + length]))
      size += len(parts[-1])
      if limit_bytes is not None and size >= limit_bytes:
        break
    return b"".join(parts)[:limit_bytes]


def make(*, seed: int, name: str, segment_len: int, batch_rows: int, held_out_frac: float,
         tokenizer: str = "byte", path=None, align_tokens: int | None = None, carry: bool = True,
         threads: int = 2, cache_dir: str | None = None, download: bool = False, text_field: str = "text",
         limit_bytes: int | None = None, bad_input_frac: float = 0.01, transform: str | None = None,
         split: str = "train",
         max_tokens: int | None = None, process_index: int = 0, process_count: int = 1) -> TextSource:
  """Builds the source of one split of a corpus.

  Args:
    seed: draws the order of the documents in every epoch of "train".
    name: corpus, see `corpus.load`; also `path`, `text_field`, `limit_bytes`, `download`.
    segment_len: tokens per row and step, a multiple of `align_tokens`.
    batch_rows: rows of the batch over all processes; this one takes a block of batch_rows / process_count.
    held_out_frac: share of the documents, by a hash of their names, that is kept out of "train". Above 0
      each split has at least one document, see `problems.threshold`; 0 holds nothing out.
    tokenizer: see `tokenizer.load`.
    align_tokens: documents start at multiples of it; None is 1.
    carry: the recipe's business, whether memory passes from segment to segment; the data are the same.
    threads: threads that prepare batches; 0 prepares each when asked.
    cache_dir: folder of tokenised corpora; None is the user's cache folder.
    bad_input_frac: share of documents or of files that may be unreadable before it is an error.
    transform: what is made of the documents, see `transforms`; `seed` draws it too. None: they stay.
    split: "train" (endless, shuffled) or "held_out" (once, in the corpus's order, every token counted).
    max_tokens: ends an epoch after so many tokens, padding included, but not before one step.
    process_index: which process this is; rows are contiguous blocks in the order of processes.
    process_count: how many there are.

  Raises:
    ValueError: for a field that cannot be, naming it and what to do.
  """
  del carry
  if batch_rows % process_count:
    group = "data" if split == "train" else "eval"
    raise ValueError(f"config.{group}.batch_rows={batch_rows} does not divide by the {process_count} "
                     "processes")
  coder = tokenizers.load(tokenizer)
  found = corpora.load(name, path=path, text_field=text_field, limit_bytes=limit_bytes, download=download)
  found = transforms.transformed(found, transform, seed, tokenizer=coder.fingerprint)
  store = stores.load(found, coder, cache_dir=cache_dir, bad_input_frac=bad_input_frac)
  chosen, identity = _choose(store, split, held_out_frac)
  plan = packing.PackingPlan(store.lengths[chosen], batch_rows=batch_rows, segment_len=segment_len,
                             align_tokens=align_tokens or 1, seed=seed if split == "train" else None,
                             max_tokens=max_tokens)
  logging.info("%s of %s: %d documents, %d tokens, %d steps per epoch", split, name, len(chosen),
               store.lengths[chosen].sum(), plan.steps_per_epoch)
  share = batch_rows // process_count
  return TextSource(
      store, chosen, plan, tokenizer=coder, split=identity,
      rows=range(process_index * share, (process_index + 1) * share), threads=threads)


def _choose(store: stores.TokenStore, split: str, held_out_frac: float):
  """Returns the indices of the documents of a split, and what the split is known by."""
  if split not in ("train", "held_out"):
    raise ValueError(f"split={split!r} must be 'train' or 'held_out'")
  if not 0 <= held_out_frac < 1:
    raise ValueError(f"config.data.held_out_frac={held_out_frac} must be in [0, 1)")
  if split == "held_out" and not held_out_frac:
    raise ValueError(f"config.data.held_out_frac=0 leaves no held_out document of the {len(store.split)} of "
                     f"config.data.name={store.manifest['corpus']!r}; set it above 0")
  noun = f"document of config.data.name={store.manifest['corpus']!r}"
  below = problems.threshold(store.split, held_out_frac, noun)
  held_out = store.split < below
  identity = {"split": split, "held_out_frac": held_out_frac}
  if not np.array_equal(held_out, store.split < held_out_frac):
    identity["held_out_below"] = below  # So few documents that the fraction would leave a split empty.
  return np.flatnonzero(held_out == (split == "held_out")), identity
