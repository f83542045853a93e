"""Reading long texts with a state of fixed size, and scoring the answers to a question under controls."""
import functools
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atlas_jax.data.recall import sample as samples
from atlas_jax.evals import stopping
from atlas_jax.models import head, lm, memories
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes

AS_IT_IS = "as_it_is"
CONDITIONS = (AS_IT_IS, "emptied", "swapped", "writes_off")
STATM = pathlib.Path("/proc/self/statm")


class Scores(NamedTuple):
  """The answers of some texts; the first axis W goes over the ways to read the question."""

  right_WBN: np.ndarray  # bool: greedy decoding writes answer n; False where a text has fewer
  nats_WBN: np.ndarray  # of all tokens of the right answer together; 0 where a text has fewer
  choice_WB: np.ndarray  # the likeliest candidate, all of its tokens together; 0 where there are none


class Reader(NamedTuple):
  """The means to have texts answered: those of a model, or of a program that stands in for one."""

  rows: int  # texts that are read side by side
  conditions: tuple[str, ...]  # ways to read a question, of CONDITIONS
  score: Callable  # (trained, `rows` texts, QuestionShape) -> Scores
  reach_tokens: int  # how far back attention and n-grams see through all blocks; 0: not at all
  growth_bytes: Callable  # () -> growth of the process in the second half of the last texts; None: unknown
  state_bytes: int  # of one row's state; 0: unknown


class QuestionShape(NamedTuple):
  """The sizes that fit every question of an evaluation, so that one program reads them all."""

  tokens: int
  candidates: int
  answer_tokens: int  # of all answers of a text together
  answers: int


def shape_of(texts: Sequence[samples.RecallSample], align_tokens: int) -> QuestionShape:
  """Returns the sizes that fit the questions of all texts."""
  tokens = candidates = targets = answers = 1
  for text in texts:
    found = text.alternatives()
    candidates = max(candidates, len(found))
    answers = max(answers, len(text.distance_N))
    for input_T, _, answer_T in found:
      tokens = max(tokens, len(input_T))
      targets = max(targets, int(np.sum(answer_T >= 0)))
  return QuestionShape(samples.round_up(tokens, align_tokens), candidates, targets, answers)


def common_multiple(*sizes: int) -> int:
  """Returns the smallest number that all sizes divide."""
  return math.lcm(*sizes)


def make(model: lm.LM, mesh: Mesh, *, rows: int, segment_len: int) -> Reader:
  """Makes the reader of a model.

  The context is read in mode "packed", segment by segment, as it is; the state has one size however long the
  text. Then the question is read: as it is; "emptied": every memory holds nothing, and nothing is written;
  "swapped": every memory is that of the row before, and writes go on; "writes_off": every memory stands at
  its learned start, and nothing is written. Attention's window and convolutions go on as they were in all
  four: what memories recalled into the window before the question stays there, so that with several blocks
  an emptied memory may still be right, and what the memory gains is rather more than these show.

  Args:
    model: its memories are written while it reads, or it has none and is read as it is alone.
    mesh: over which rows are split.
    rows: texts side by side, over all processes; two or more where there is a memory to swap.
    segment_len: tokens read at once, whole chunks.

  Raises:
    ValueError: if the model has a memory and there is one row alone.
  """
  conditions = CONDITIONS if model.has_fast_weights else CONDITIONS[:1]
  if len(conditions) > 1 and rows < 2:
    raise ValueError("config.eval.batch_rows=1 leaves no other row whose memory could be swapped in; use 2 "
                     "or more")
  by_row = meshes.batch_sharding(mesh)
  read = jax.jit(functools.partial(_read, model), donate_argnums=1, out_shardings=by_row)
  ask = jax.jit(functools.partial(_ask, model), out_shardings=meshes.replicated(mesh))
  zero = jax.jit(lambda: model.zero_state(rows), out_shardings=by_row)
  grown: list[int | None] = [None]

  def score(trained, texts, shape: QuestionShape) -> Scores:
    mine = texts[slice(*_rows_here(rows))]
    state = zero()
    longest = max(text.context_len for text in texts)
    watched = Growth(max(1, samples.round_up(longest, segment_len) // segment_len))
    for batch in segments(mine, segment_len, longest):
      stopping.check()
      state = read(trained.params, state, hosts.global_batch(mesh, batch))
      jax.block_until_ready(state.doc_B)  # Else the host would run ahead, and hold all segments at once.
      watched.look()
    grown[0] = watched.bytes
    found = ask(trained.params, state, hosts.global_batch(mesh, _questions(mine, shape)))
    ok_WBGS, nats_WBGS = map(np.asarray, found)
    return scores(texts, ok_WBGS, nats_WBGS, shape)

  state = jax.eval_shape(lambda: model.zero_state(1))
  state_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  # An embedding of n-grams sees n - 1 tokens further back than its own.
  reach = len(model.with_attention) * (model.window_tokens - 1) + (model.max_n or 1) - 1
  return Reader(rows, conditions, score, reach, lambda: grown[0], state_bytes)


def _rows_here(rows: int) -> tuple[int, int]:
  local_rows = rows // jax.process_count()
  return jax.process_index() * local_rows, (jax.process_index() + 1) * local_rows


class Growth:
  """The memory that the process takes while it reads: whether a longer text would need more."""

  def __init__(self, looks: int):
    """Takes how often it will look, at equal steps of the text."""
    self._looks = looks
    self._peaks = [0, 0]  # Of the halves of the text: programs warm up in the first.
    self._seen = 0

  def look(self) -> None:
    """Notes how much the process takes now."""
    half = 2 * self._seen // self._looks
    self._seen += 1
    if STATM.exists():
      pages = int(STATM.read_text().split()[1])
      self._peaks[half] = max(self._peaks[half], pages * os.sysconf("SC_PAGE_SIZE"))

  @property
  def bytes(self) -> int | None:
    """Returns by how much the peak of the second half exceeds that of the first; None if that is unknown."""
    return max(0, self._peaks[1] - self._peaks[0]) if all(self._peaks) else None


def segments(texts: Sequence[samples.RecallSample], segment_len: int, longest: int):
  """Yields the contexts of texts side by side, segment by segment; shorter ones begin later.

  No more than a segment of them is ever held as an array.

  Args:
    texts: one per row.
    segment_len: T.
    longest: tokens of the longest context of all rows, also of those of other processes.

  Returns:
    An iterator over tokens_BT and doc_BT: -1 before the text, 0 in it.
  """
  total = samples.round_up(longest, segment_len)
  for first in range(0, total, segment_len):
    tokens_BT = np.zeros((len(texts), segment_len), np.int32)
    doc_BT = np.full((len(texts), segment_len), -1, np.int32)
    for row, text in enumerate(texts):
      start = first - (total - text.context_len)
      part_T = samples.joined(text.context, max(0, start), max(0, start + segment_len))
      if len(part_T):
        tokens_BT[row, segment_len - len(part_T):] = part_T
        doc_BT[row, segment_len - len(part_T):] = 0
    yield {"tokens_BT": tokens_BT, "doc_BT": doc_BT}


def _questions(texts: Sequence[samples.RecallSample], shape: QuestionShape) -> dict:
  """Returns the questions of texts as arrays; candidates that a text has not repeat its last one."""
  rows, count = len(texts), shape.candidates
  tokens_BGT = np.zeros((rows, count, shape.tokens), np.int32)
  doc_BGT = np.full((rows, count, shape.tokens), -1, np.int32)
  position_BGS, target_BGS = np.zeros((2, rows, count, shape.answer_tokens), np.int32)
  for row, text in enumerate(texts):
    found = text.alternatives()
    for at in range(count):
      input_T, target_T, answer_T = found[min(at, len(found) - 1)]
      tokens_BGT[row, at, :len(input_T)] = input_T
      doc_BGT[row, at, :len(input_T)] = 0
      position_S = np.flatnonzero(answer_T >= 0)
      position_BGS[row, at, :len(position_S)] = position_S
      target_BGS[row, at, :len(position_S)] = target_T[position_S]
  return {"tokens_BGT": tokens_BGT, "doc_BGT": doc_BGT, "position_BGS": position_BGS,
          "target_BGS": target_BGS}


def _read(model: lm.LM, params, state: lm.LMState, batch: dict) -> lm.LMState:
  out: Any = model.apply({"params": params}, batch["tokens_BT"], state, doc_BT=batch["doc_BT"], mode="packed")
  return out.state


def _ask(model: lm.LM, params, state: lm.LMState, batch: dict):
  """Reads the questions in all ways; returns, for each target, whether it is the likeliest, and its nats."""
  rows, count, _ = batch["tokens_BGT"].shape

  def flat(x):
    return x.reshape(rows * count, *x.shape[2:])

  target_BS = flat(batch["target_BGS"])[..., None]

  def read(way):
    state, learned, writes = way
    taught = memories.with_learned(model, params, learned) if model.has_fast_weights else params
    each = jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), state)  # One for every candidate.
    out = model.apply({"params": taught}, flat(batch["tokens_BGT"]), each, doc_BT=flat(batch["doc_BGT"]),
                      memory_writes=writes if model.has_fast_weights else None, mode="packed")
    hidden_BSD = jnp.take_along_axis(out.hidden_BTD, flat(batch["position_BGS"])[..., None], axis=1)
    logits_BSV = head.logits(params, hidden_BSD)
    nats_BS = -jnp.take_along_axis(jax.nn.log_softmax(logits_BSV), target_BS, axis=-1)[..., 0]
    ok_BS = jnp.argmax(logits_BSV, axis=-1) == target_BS[..., 0]
    return tuple(x_BS.reshape(rows, count, -1) for x_BS in (ok_BS, nats_BS))

  return jax.lax.map(read, _ways(model, params, state))  # A loop compiles the model once, not four times.


def _ways(model: lm.LM, params, state: lm.LMState):
  """Stacks what each way starts from: the state, what memories have learned, whether they write."""
  if not model.has_fast_weights:
    return jax.tree.map(lambda leaf: leaf[None], (state, (), jnp.asarray(True)))
  learned = memories.learned_memory(model, params)
  empty = memories.emptied(model, learned)
  ways = [(state, learned, True), (memories.started(model, empty, state), empty, False),
          (memories.swapped(model, state), learned, True),
          (memories.started(model, learned, state), learned, False)]
  return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *ways)


def scores(texts: Sequence[samples.RecallSample], ok_WBGS, nats_WBGS, shape: QuestionShape) -> Scores:
  """Puts the tokens of answers together.

  Args:
    texts: B of them.
    ok_WBGS: whether the likeliest id is that of the answer, in the order of a question's places.
    nats_WBGS: of that id.
    shape: of the questions.
  """
  ways, rows = ok_WBGS.shape[:2]
  right_WBN = np.zeros((ways, rows, shape.answers), bool)
  nats_WBN = np.zeros((ways, rows, shape.answers))
  choice_WB = np.zeros((ways, rows), int)
  for row, text in enumerate(texts):
    found = text.alternatives()
    sizes = [int(np.sum(answer_T >= 0)) for _, _, answer_T in found]
    correct = text.correct if text.candidates else 0
    answer_T = found[correct][2]
    number_S = answer_T[answer_T >= 0]
    for answer in range(len(text.distance_N)):
      at = np.flatnonzero(number_S == answer)
      right_WBN[:, row, answer] = np.take(ok_WBGS[:, row, correct], at, axis=-1).all(axis=-1)
      nats_WBN[:, row, answer] = np.take(nats_WBGS[:, row, correct], at, axis=-1).sum(axis=-1)
    total_GW = [nats_WBGS[:, row, at, :size].sum(axis=-1) for at, size in enumerate(sizes)]
    choice_WB[:, row] = np.argmin(np.stack(total_GW), axis=0)
  return Scores(right_WBN, nats_WBN, choice_WB)
