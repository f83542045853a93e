"""A random-access plan that packs documents into segments: (step, row) -> arrays, with nothing remembered.

A document of n tokens takes n + 1 places (its inputs are DOC, t1 .. tn; its targets t1 .. tn, DOC), rounded
up to `align_tokens`. The documents of an epoch, in an order drawn from (seed, epoch), stand one after another
in a virtual sequence that is cut into one equal piece per row; step s reads places [s*T, (s+1)*T) of every
piece. Rows are streams that go on from step to step, and the number of hosts or workers changes nothing.

Arrays over documents have no axis letter of their own and carry no suffix.
"""
import threading
from typing import NamedTuple

import numpy as np

LAST_INT32 = 2**31 - 1


class Tokens(NamedTuple):
  """Documents as token ids: document d is ids[starts[d] : starts[d] + lengths[d]]."""
  ids: np.ndarray            # unsigned integers of any width, possibly memory-mapped
  starts: np.ndarray         # int64
  lengths: np.ndarray        # int64
  byte_lengths: np.ndarray   # int32 per token id, 0 for specials
  doc_id: int                # the separator DOC


class Places(NamedTuple):
  """The content of the T positions of one segment."""
  document_T: np.ndarray     # index of the document, -1 past the end of all text
  offset_T: np.ndarray       # place within the document; 0 is DOC
  real_T: np.ndarray         # False at padding
  stream_T: np.ndarray       # id of the document within the run, -1 at padding
  position_T: np.ndarray     # place within the part of the document that this row reads


def aligned_lengths(lengths, align_tokens: int):
  """Returns how many places each document takes: its tokens and DOC, rounded up to `align_tokens`."""
  return -(-(np.asarray(lengths, np.int64) + 1) // align_tokens) * align_tokens


def permutation(n: int, *, seed: int, epoch: int):
  """Draws an order of n documents from (seed, epoch) alone, the same under every NumPy."""
  # NumPy may change what its generators make of random bits, such as `permutation`, from version to version;
  # the raw bits of PCG64 it does not. A run that goes on under another NumPy must find the same order.
  # Sorting by random 64-bit numbers costs n log n once an epoch; "stable" settles equal ones.
  draws = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(n)
  return np.argsort(draws, kind="stable")


class PackingPlan:
  """The order of a corpus: where the tokens of any (step, row) stand.

  Attributes:
    steps_per_epoch: steps after which every piece is read; the same for every epoch.
    tokens_per_epoch: batch_rows * segment_len * steps_per_epoch, padding included.
  """

  def __init__(self, lengths, *, batch_rows: int, segment_len: int, align_tokens: int = 1,
               seed: int | None = None, max_tokens: int | None = None):
    """Lays out the documents.

    Args:
      lengths: tokens per document.
      batch_rows: rows of the whole batch, over all processes.
      segment_len: T, a multiple of `align_tokens`.
      align_tokens: documents start at multiples of it.
      seed: draws the order of every epoch and drops what does not fill a step; None keeps the order given,
        pads the end and ends after one epoch.
      max_tokens: places of the virtual sequence to use at most, rounded down to whole steps but at least one.

    Raises:
      ValueError: if sizes do not divide, or the text does not fill one step.
    """
    if batch_rows < 1 or segment_len < 1:
      raise ValueError(f"config.data.batch_rows={batch_rows} and config.data.segment_len={segment_len} "
                       f"must be positive")
    if align_tokens < 1 or segment_len % align_tokens:
      raise ValueError(f"config.data.segment_len={segment_len} is not a multiple of "
                       f"config.data.align_tokens={align_tokens} (the chunk size of the memory)")
    self.batch_rows = batch_rows
    self.segment_len = segment_len
    self.align_tokens = align_tokens
    self.seed = seed
    self.lengths = np.append(np.asarray(lengths, np.int64), -1)  # The last one stands for "no document".
    self._aligned = aligned_lengths(self.lengths[:-1], align_tokens)
    self.steps_per_epoch = self._count_steps(int(self._aligned.sum()), max_tokens)
    self.tokens_per_epoch = self.steps_per_epoch * batch_rows * segment_len
    self._lock = threading.Lock()
    self._epochs = {}

  def _count_steps(self, total: int, max_tokens: int | None) -> int:
    step_tokens = self.batch_rows * self.segment_len
    # Training drops what does not fill a step, so all epochs have as many steps and step -> epoch is a
    # division. A held-out split is padded instead: every token of it must be counted.
    steps = total // step_tokens if self.seed is not None else -(-total // step_tokens)
    if max_tokens is not None:
      steps = min(steps, max(1, max_tokens // step_tokens))
    if steps < 1:
      raise ValueError(
          f"the text has {len(self._aligned)} documents in {total} tokens (padding included), less than one "
          f"step of config.data.batch_rows={self.batch_rows} x config.data.segment_len={self.segment_len} = "
          f"{step_tokens}; lower either, or give more text")
    return steps

  def _epoch(self, epoch: int):
    """Returns (document at each slot, start of each slot) for that epoch; the two last used are kept."""
    with self._lock:
      if epoch not in self._epochs:
        n = len(self._aligned)
        order = np.arange(n) if self.seed is None else permutation(n, seed=self.seed, epoch=epoch)
        # One slot more than there are documents, which reaches from the end of all text to infinity: places
        # past the end fall into it by the same search, and its length of -1 makes them padding.
        starts = np.concatenate([[0], np.cumsum(self._aligned[order]), [np.iinfo(np.int64).max]])
        # Two epochs: rows are prepared ahead by several threads, some of them across the end of an epoch.
        while len(self._epochs) > 1:
          self._epochs.pop(next(iter(self._epochs)))
        self._epochs[epoch] = np.append(order, n), starts
      return self._epochs[epoch]

  def places(self, step: int, row: int) -> Places:
    """Returns what stands at each place of row `row` of the whole batch at step `step`.

    Raises:
      IndexError: if the plan has one epoch (no seed) and the step lies past it.
    """
    epoch, inner = divmod(step, self.steps_per_epoch)
    if step < 0 or (self.seed is None and epoch):
      raise IndexError(f"step {step} is outside the {self.steps_per_epoch} steps of this split")
    order, starts = self._epoch(epoch)
    # All in places of the virtual sequence. The slots low .. high - 1 are those that reach into the segment;
    # their starts, clipped to it, are the edges between documents in the row. `cut` is the slot in which the
    # row's piece begins: its front stands at the end of the row before, maybe.
    piece = row * self.steps_per_epoch * self.segment_len
    first = piece + inner * self.segment_len
    cut, low = np.searchsorted(starts, [piece, first], "right") - 1
    high = np.searchsorted(starts, first + self.segment_len, "left")
    edges = np.clip(starts[low:high + 1], first, first + self.segment_len)
    slot_T = np.repeat(np.arange(low, high), np.diff(edges))
    offset_T = first + np.arange(self.segment_len) - starts[slot_T]
    real_T = offset_T <= self.lengths[order[slot_T]]
    n = len(self._aligned)
    # A row's first document may be the rest of one that the row before began: its own id, its own positions.
    stream_T = (epoch * (n + self.batch_rows) + slot_T + row) % LAST_INT32
    return Places(
        document_T=np.where(slot_T < n, order[slot_T], -1),
        offset_T=offset_T, real_T=real_T, stream_T=np.where(real_T, stream_T, -1),
        position_T=np.where(real_T, offset_T - (slot_T == cut) * (piece - starts[cut]), 0))


def read_row(plan: PackingPlan, tokens: Tokens, step: int, row: int) -> dict:
  """Returns the arrays of one row: tokens_T, targets_T, weight_T, doc_T, pos_T, bytes_T.

  Args:
    plan: the order.
    tokens: the documents that the plan was laid out for, in the same order.
    step: any step; the plan is random access.
    row: row of the whole batch.

  Returns:
    int32 arrays, weight_T float32. Padding reads DOC with weight 0, doc -1, position 0, no bytes.
  """
  at = plan.places(step, row)
  length_T = plan.lengths[at.document_T]
  first_T = tokens.starts[np.maximum(at.document_T, 0)]
  inputs_here_T = at.real_T & (at.offset_T > 0)
  targets_here_T = at.real_T & (at.offset_T < length_T)
  # At place o of a document of n tokens the input is token o - 1 and the target token o: DOC -> t1 at 0, and
  # tn -> DOC at n. Both arrays come from one store, so no shifted copy of the corpus exists.
  tokens_T = _gather(tokens, first_T + at.offset_T - 1, inputs_here_T)
  targets_T = _gather(tokens, first_T + at.offset_T, targets_here_T)
  return {
      "tokens_T": tokens_T, "targets_T": targets_T,
      "weight_T": at.real_T.astype(np.float32), "doc_T": at.stream_T.astype(np.int32),
      "pos_T": at.position_T.astype(np.int32),
      "bytes_T": np.where(at.real_T, tokens.byte_lengths[targets_T], 0).astype(np.int32)}


def _gather(tokens: Tokens, at_T, inside_T):
  """Returns the ids at places in `tokens.ids`, DOC where not inside."""
  return np.where(inside_T, tokens.ids[np.where(inside_T, at_T, 0)].astype(np.int32), np.int32(tokens.doc_id))


class Orders:
  """The order of items, drawn anew in every epoch; any place is found without those before it."""

  def __init__(self, count: int, seed: int):
    """Takes how many items there are, and the seed of all orders."""
    self._count = count
    self._seed = seed
    # No lock, unlike `PackingPlan`: the sources that use it read in the loop's own thread.
    self._known: dict[int, np.ndarray] = {}

  def item(self, place: int) -> int:
    """Returns which item stands at a place of all epochs, one after another."""
    epoch, inner = divmod(place, self._count)
    if epoch not in self._known:
      while len(self._known) > 1:  # A step may lie across two epochs.
        self._known.pop(next(iter(self._known)))
      self._known[epoch] = permutation(self._count, seed=self._seed, epoch=epoch)
    return int(self._known[epoch][inner])
