"""Text as a source of batches: a tokenised corpus in the order of a plan, served by Grain."""
import hashlib
import json
from collections.abc import Sequence

import numpy as np
from absl import logging

from atlas_jax.data import corpus as corpora
from atlas_jax.data import packing, problems, transforms
from atlas_jax.data import store as stores
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.data.stepped import IndexedSource, rows_of

BATCH = ("tokens_BT", "targets_BT", "weight_BT", "doc_BT", "pos_BT", "bytes_BT")


class TextSource(IndexedSource):
  """Batches of packed text: rows as `packing.read_row` describes them.

  Attributes:
    tokenizer: the tokenizer of the ids.
    manifest: identity of the corpus: files, bytes, sha256, Python version where that decides the text.
    fingerprint: of the manifest, the split and the fraction held out.
    steps_per_epoch: steps until every document was read once; the number of steps of a held-out split.
    step: the step that `next` gives.
  """

  NESTED = {"manifest": ""}

  def __init__(self, store: stores.TokenStore, chosen, plan: packing.PackingPlan, *,
               tokenizer: tokenizers.Tokenizer, split: dict, rows: range, threads: int):
    """Serves some documents of a store.

    Args:
      store: the tokenised corpus.
      chosen: indices of this split's documents in the store, those that `plan` was laid out for.
      plan: their order.
      tokenizer: what the store was made with.
      split: name of the split and fraction held out, part of the fingerprint; also the bound that decides,
        where the documents are few.
      rows: this process's rows of the whole batch.
      threads: threads that prepare batches; 0 prepares each when asked.
    """
    # Of the text and not of its files' places: a folder that was moved, or copied to a host, is the same.
    identity = json.dumps([store.manifest, split], sort_keys=True)
    self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
    # A held-out split ends, so that each of its tokens counts once; to train goes on from epoch to epoch.
    super().__init__(
        {"fingerprint": self.fingerprint, "seed": plan.seed, "batch_rows": plan.batch_rows,
         "segment_len": plan.segment_len, "align_tokens": plan.align_tokens, **split,
         "manifest": store.manifest},
        rows, steps=plan.steps_per_epoch if plan.seed is None else None, threads=threads)
    self.tokenizer = tokenizer
    self.manifest = store.manifest
    self.steps_per_epoch = plan.steps_per_epoch
    self._store = store
    self._chosen = chosen
    self._plan = plan
    # The ids of all documents stay one file, memory-mapped: a split is nothing but where its own begin.
    self._tokens = packing.Tokens(store.ids, store.starts[chosen], store.lengths[chosen],
                                  tokenizer.byte_lengths(), tokenizer.doc_id)

  def read_row(self, step: int, row: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a row; see `packing.read_row`.

    Raises:
      IndexError: if the split ends before that step.
    """
    return packing.read_row(self._plan, self._tokens, step, row)

  def __len__(self) -> int:
    return self.steps_per_epoch

  def origin(self, step: int, row: int) -> str:
    """Names the file and byte at which a row starts."""
    at = self._plan.places(step, row)
    document = int(at.document_T[0])
    if document < 0:  # The last step of a held-out split has rows that only fill up.
      return "past the end@0"
    name = stores.document_name(self._store, self._chosen[document])
    return f"{name}@{self._byte(document, _first_token(int(at.offset_T[0])))}"

  def _byte(self, document: int, token: int) -> int:
    """Returns the byte of a document at which a token of it begins."""
    start = int(self._tokens.starts[document])
    # A row may start within a document; tokens say how many bytes they stand for, so none is decoded.
    return int(self._tokens.byte_lengths[self._tokens.ids[start:start + token]].sum())

  def passages(self, step: int, rows: Sequence[int] | None = None) -> list[dict]:
    """Returns the documents in rows of the whole batch.

    Args:
      step: of the batch.
      rows: None: this process's.

    Returns:
      For each row "origin", as of `provenance`, and "documents", in the row's order: "document" (a file, or
      file:line), the "byte" and "token" of it at which the row reads on, and how many "tokens" it reads,
      without the mark before a document.
    """
    found = [self._parts(step, row) for row in (self._mine if rows is None else rows)]
    chosen = [self._chosen[document] for parts in found for document, _, _ in parts]
    names = iter(stores.document_names(self._store, chosen))
    listed = [[{"document": next(names), "byte": self._byte(document, token), "token": token, "tokens": count}
               for document, token, count in parts] for parts in found]
    return [{"origin": f"{parts[0]['document']}@{parts[0]['byte']}" if parts else "past the end@0",
             "documents": parts} for parts in listed]

  def _parts(self, step: int, row: int) -> list[tuple[int, int, int]]:
    """Returns (document of the split, its first token in the row, tokens read) of each document in a row."""
    at = self._plan.places(step, row)
    edges = np.flatnonzero(np.diff(at.document_T)) + 1
    bounds = [0, *edges.tolist(), len(at.document_T)]
    read_T = at.real_T & (at.offset_T > 0)
    return [(int(at.document_T[low]), _first_token(int(at.offset_T[low])), int(read_T[low:high].sum()))
            for low, high in zip(bounds[:-1], bounds[1:]) if at.real_T[low:high].any()]

  def text(self, limit_bytes: int | None = None) -> bytes:
    """Returns the first bytes of the split's documents, put together in the corpus's order; None is all."""
    parts = []
    size = 0
    for start, length in zip(self._tokens.starts, self._tokens.lengths):
      parts.append(self.tokenizer.decode_bytes(self._tokens.ids[start:start + length]))
      size += len(parts[-1])
      if limit_bytes is not None and size >= limit_bytes:  # A corpus may have more than memory holds.
        break
    return b"".join(parts)[:limit_bytes]


def _first_token(offset: int) -> int:
  """Returns the token that is read at a place of a document; place 0 reads the mark before the first."""
  return max(0, offset - 1)


def make(*, seed: int, name: str, segment_len: int, batch_rows: int, held_out_frac: float,
         tokenizer: str = "byte", path=None, align_tokens: int | None = None, carry: bool = True,
         threads: int = 2, cache_dir: str | None = None, download: bool = False, text_field: str = "text",
         limit_bytes: int | None = None, bad_input_frac: float = 0.01, transform: str | None = None,
         split: str = "train", max_tokens: int | None = None, process_index: int = 0,
         process_count: int = 1) -> TextSource:
  """Builds the source of one split of a corpus.

  Args:
    seed: draws the order of the documents in every epoch of "train".
    name: corpus, see `corpus.load`; also `path`, `text_field`, `limit_bytes`, `download`.
    segment_len: tokens per row and step, a multiple of `align_tokens`.
    batch_rows: rows of the batch over all processes.
    held_out_frac: fraction of the documents, by a hash of their names, that is kept out of "train". Above 0
      each split has at least one document, see `problems.threshold`; 0 holds nothing out.
    tokenizer: see `tokenizer.load`.
    align_tokens: documents start at multiples of it; None is 1.
    carry: the recipe's business, whether memory passes from segment to segment; the data are the same.
    threads: threads that prepare batches; 0 prepares each when asked.
    cache_dir: folder of tokenised corpora; None is the user's cache folder.
    bad_input_frac: fraction of the documents, or files, that may be unreadable before it is an error.
    transform: what is made of the documents, see `transforms`; `seed` draws it too. None: they stay.
    split: "train" (endless, shuffled) or "held_out" (once, in the corpus's order, every token counted).
    max_tokens: ends an epoch after so many tokens, padding included, but not before one step.
    process_index, process_count: whose rows these are, see `stepped.rows_of`.

  Raises:
    ValueError: for a field that cannot be, naming it and what to do.
  """
  del carry
  # First what costs nothing: to tokenise a corpus may take an hour.
  rows = rows_of(batch_rows, process_index, process_count,
                 field="config.data.batch_rows" if split == "train" else "config.eval.batch_rows")
  loaded = tokenizers.load(tokenizer)
  found = corpora.load(name, path=path, text_field=text_field, limit_bytes=limit_bytes, download=download)
  # Before it is tokenised, so that a transformed corpus has a cache of its own.
  found = transforms.transformed(found, transform, seed, tokenizer=loaded.fingerprint)
  store = stores.load(found, loaded, cache_dir=cache_dir, bad_input_frac=bad_input_frac)
  chosen, identity = _choose(store, split, held_out_frac)
  plan = packing.PackingPlan(store.lengths[chosen], batch_rows=batch_rows, segment_len=segment_len,
                             align_tokens=align_tokens or 1, seed=seed if split == "train" else None,
                             max_tokens=max_tokens)
  logging.info("%s of %s: %d documents, %d tokens, %d steps per epoch", split, name, len(chosen),
               store.lengths[chosen].sum(), plan.steps_per_epoch)
  return TextSource(store, chosen, plan, tokenizer=loaded, split=identity, rows=rows, threads=threads)


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
  # By a hash of each document's name: texts that are added later move none from one split to the other.
  held_out = store.split < below
  identity = {"split": split, "held_out_frac": held_out_frac}
  if not np.array_equal(held_out, store.split < held_out_frac):
    # So few documents that the fraction would leave a split empty. Elsewhere the fraction says it all, and
    # places that were saved without this name hold.
    identity["held_out_below"] = below
  return np.flatnonzero(held_out == (split == "held_out")), identity
