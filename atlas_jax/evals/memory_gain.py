"""Memory gain: how much worse held-out text is predicted without what memory holds.

A gain is a mean over tokens; its interval, over documents drawn anew, says how far it can be trusted.
`swapped` is evidence that what was read in this document is used. `emptied` and `writes_off` say how much
the model leans on its memory, which is more: a model misses a table that is never written as well, though
it is hardly better than one without (experiments/memory_pays); compare its loss with a control's. `gate_zero`
takes away the layer's convolutions, too, and shows no more than that the layer does something.
"""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atlas_jax.evals import EvalOut, bootstrap, held_out, perplexity
from atlas_jax.losses.next_token import next_token_loss
from atlas_jax.memory.layer import NO_DOC
from atlas_jax.models import head, lm, memories

BY_POSITION = ("emptied", "swapped", "writes_off")
ABLATIONS = (*BY_POSITION, "gate_zero")


class Documents(NamedTuple):
  """Sums over documents, all [documents, buckets of positions], float64."""

  tokens: np.ndarray
  loss: np.ndarray  # nats of the model as it is
  gains: dict[str, np.ndarray]  # ablation -> nats under it, minus those of the model as it is


def make(model: lm.LM, source_factory, mesh: Mesh, *, max_tokens: int | None = None,
         block_tokens: int | None = None, kind: str = "softmax"):
  """Makes the evaluation.

  In every segment, the tokens of the document that began in an earlier one are scored five times: as the
  model is; "emptied": every memory holds nothing, see `MemoryRule.empty`, and nothing is written in this
  segment; "writes_off": every memory stands at its learned start, and nothing is written; "swapped": every
  memory is that of another row, and writes go on; "gate_zero": nothing of the memory layers enters.
  Attention's window, the memory's projections, short convolutions, gates and learned constants go on as they
  were in all five, and the next segment gets the state of the model as it is.

  Args:
    model: one with a memory.
    source_factory: gives a fresh source of held-out batches, see `held_out.batches`.
    mesh: over which rows are split.
    max_tokens: see `held_out.batches`; None reads all.
    block_tokens: tokens whose logits exist at the same time, see `vocab_loss`.
    kind: of the loss, see `next_token_loss`.

  Returns:
    run(trained, *, step) -> EvalOut with "eval/memory_gain_NAME_nats", the mean over tokens of the loss under
    the ablation minus that of the model as it is; its interval "eval/memory_gain_NAME_nats_low" and "_high",
    see `bootstrap.interval_of_mean`, over documents (the parts of one that is cut between two rows count as
    two); of BY_POSITION the same by position in the document, "eval/memory_gain_NAME_nats_by_position/
    FIRST-LAST" with "_low" and "_high", see `perplexity.bucket_names`. On what it is measured say
    "eval/memory_gain_tokens", "eval/memory_gain_documents", "eval/memory_gain_tokens_by_position/FIRST-LAST",
    and "eval/memory_gain_loss_nats", the loss as it is of these tokens, with "_by_position/FIRST-LAST"; for
    "swapped", where rows whose partner has read nothing are left out, "eval/memory_gain_swapped_tokens" and
    so on. A gain without tokens, or an interval of one document, is absent, and the text says so.

  Raises:
    ValueError: if the model has no memory; from `run`, if the batch has one row, and no other to swap with.
  """
  if not model.has_fast_weights:
    raise ValueError(f"config.model.memory_mix={model.memory_mix!r} leaves no memory to measure; take "
                     "memory_gain out of the evals")
  segment = functools.partial(_segment, model, {"block_tokens": block_tokens, "kind": kind})
  segment_step = held_out.make_step(segment, mesh)

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del step, workdir
    found = list(held_out.segments(segment_step, trained.params, model, source_factory(), mesh,
                                   max_tokens=max_tokens))
    return result(by_document(found, ("emptied", "writes_off", "gate_zero")),
                  by_document(found, ("swapped",), prefix="swapped_"))

  return run


class _Variant(NamedTuple):
  """One way to read a segment; with a leading axis all of them."""

  state: Any
  learned: Any  # what the memories have learned
  scale: Any  # factor on what memory adds
  writes: Any  # bool


def _variants(model: lm.LM, params, state: lm.LMState) -> _Variant:
  """Stacks the ways to read a segment: as it is, then ABLATIONS."""
  learned = memories.learned_memory(model, params)
  empty = memories.emptied(model, learned)
  # In the order of ABLATIONS, behind the model as it is; `_segment` zips them.
  ways = (_Variant(state, learned, 1.0, True),
          _Variant(memories.started(model, empty, state), empty, 1.0, False),
          _Variant(memories.swapped(model, state), learned, 1.0, True),
          _Variant(memories.started(model, learned, state), learned, 1.0, False),
          _Variant(state, learned, 0.0, True))
  return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *ways)


def _segment(model: lm.LM, how, params, state: lm.LMState, batch: dict):
  if state.doc_B.shape[0] < 2:
    raise ValueError("config.eval.batch_rows=1 leaves no other row whose memory could be swapped in; use 2 "
                     "or more")

  def read(variant):
    taught = memories.with_learned(model, params, variant.learned)
    out = model.apply({"params": taught}, batch["tokens_BT"], variant.state, doc_BT=batch["doc_BT"],
                      memory_scale=variant.scale, memory_writes=variant.writes, mode="packed")
    _, _, nll_BT = next_token_loss(out.hidden_BTD, head.head_weights(params), batch["targets_BT"],
                                   batch["weight_BT"], **how)
    return out.state, nll_BT

  # A loop compiles the model once, not five times.
  ends, nlls = jax.lax.map(read, _variants(model, params, state))
  # Of the document that was open when the segment began: others have nothing in memory that could be missed.
  weight_BT = jnp.where(batch["doc_BT"] == state.doc_B[:, None], batch["weight_BT"], 0).astype(nlls.dtype)
  # A partner that has read nothing brings in no other text, and is left out: that is another ablation.
  partner_B1 = (jnp.roll(state.doc_B, 1) != NO_DOC).astype(nlls.dtype)[:, None]
  inside_BTN = perplexity.in_buckets(batch["pos_BT"], perplexity.bucket_starts()).astype(nlls.dtype)

  def add(x_BT):
    return jnp.einsum("bt,btn->bn", x_BT, inside_BTN)

  sums = {"doc_B": state.doc_B}  # What counts of a row is of this one document.
  for prefix, counted_BT in (("", weight_BT), ("swapped_", weight_BT * partner_B1)):
    sums |= {f"{prefix}tokens_BN": add(counted_BT), f"{prefix}loss_BN": add(nlls[0] * counted_BT)}
    sums |= {f"{prefix}{name}_BN": add((nll_BT - nlls[0]) * counted_BT)
             for name, nll_BT in zip(ABLATIONS, nlls[1:]) if (name == "swapped") == bool(prefix)}
  # The state of the model as it is goes on; ablations leave no trace in later segments.
  return jax.tree.map(lambda leaf: leaf[0], ends), sums


def by_document(segments: list[dict], names: tuple[str, ...], prefix: str = "") -> Documents:
  """Adds up each document's part of all segments.

  Args:
    segments: what `_segment` gave of each.
    names: ablations.
    prefix: of the sums that count the tokens of these ablations.
  """
  buckets = len(perplexity.bucket_starts())
  keys = ("tokens", "loss", *names)
  found: dict[tuple[int, int], np.ndarray] = {}  # (row, document) -> [keys, buckets]
  for sums in segments:
    every = np.stack([np.asarray(sums[f"{prefix}{key}_BN"], np.float64) for key in keys])
    # Rows without counted tokens have no document that goes on; doc_B may be NO_DOC there.
    for row in np.flatnonzero(every[0].sum(-1)):
      at = int(row), int(sums["doc_B"][row])
      found[at] = found.get(at, 0.0) + every[:, row]
  stacked = np.reshape(list(found.values()), (-1, len(keys), buckets)).swapaxes(0, 1)
  return Documents(stacked[0], stacked[1], dict(zip(names, stacked[2:])))


def result(whole: Documents, swapped: Documents) -> EvalOut:
  """Turns what documents add up to into metrics and a line.

  Args:
    whole: of all ablations but "swapped".
    swapped: of that one.
  """
  scalars = {**_counts("memory_gain", whole), **_counts("memory_gain_swapped", swapped)}
  gains = {**whole.gains, **swapped.gains}
  tokens = {name: (swapped if name in swapped.gains else whole).tokens for name in gains}
  buckets = perplexity.bucket_names(perplexity.bucket_starts())
  for name in ABLATIONS:
    nats_NP = gains[name]
    tokens_NP = tokens[name]
    metric = f"eval/memory_gain_{name}_nats"
    scalars |= _mean(metric, nats_NP.sum(1), tokens_NP.sum(1))
    for i, bucket in enumerate(buckets if name in BY_POSITION else ()):
      scalars |= _mean(f"{metric}_by_position/{bucket}", nats_NP[:, i], tokens_NP[:, i])
  lines = [_line(scalars)] if len(whole.tokens) else []
  documents = {name: len(tokens[name]) for name in ABLATIONS}
  if absent := ", ".join(name for name in ABLATIONS if not documents[name]):
    lines.append(f"memory gain ({absent}) has no token to be measured on: no held-out document goes on into "
                 "a second segment; lower config.data.segment_len or give longer documents")
  if single := ", ".join(name for name in ABLATIONS if documents[name] == 1):
    lines.append(f"memory gain ({single}) is measured on one document alone and has no interval; hold out "
                 "more documents (config.data.held_out_frac), or raise config.eval.gain_max_tokens")
  return EvalOut(scalars, "\n".join(lines))


def _counts(kind: str, found: Documents) -> dict[str, float]:
  """Returns how much text gains are measured on, and the model's loss on it, in all and by position."""
  total = float(found.tokens.sum())
  scalars = {f"eval/{kind}_tokens": total, f"eval/{kind}_documents": float(len(found.tokens))}
  if total:
    scalars[f"eval/{kind}_loss_nats"] = float(found.loss.sum()) / total
  parts = zip(perplexity.bucket_names(perplexity.bucket_starts()), found.tokens.sum(0), found.loss.sum(0))
  for bucket, tokens, nats in parts:
    if tokens:
      scalars[f"eval/{kind}_tokens_by_position/{bucket}"] = float(tokens)
      scalars[f"eval/{kind}_loss_nats_by_position/{bucket}"] = float(nats / tokens)
  return scalars


def _mean(metric: str, nats_N: np.ndarray, tokens_N: np.ndarray) -> dict[str, float]:
  """Returns a mean over tokens and its interval over the documents that have any; {} without any."""
  some_N = tokens_N > 0
  if not some_N.any():
    return {}
  # Over all tokens, though the interval draws documents: both are ratios of the same sums.
  found = {metric: float(nats_N.sum() / tokens_N.sum())}
  if (interval := bootstrap.interval_of_mean(nats_N[some_N], tokens_N[some_N])) is not None:
    found[f"{metric}_low"], found[f"{metric}_high"] = interval
  return found


def _line(scalars: dict[str, float]) -> str:
  """Says the gains in words."""
  parts = []
  for name in ABLATIONS:
    metric = f"eval/memory_gain_{name}_nats"
    mean, low, high = (scalars.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if mean is not None:
      interval = "" if low is None else f" ({low:+.4f} to {high:+.4f})"
      parts.append(f"{name.replace('_', ' ')} {mean:+.4f}{interval}")
  tokens, documents = (int(scalars[f"eval/memory_gain_{what}"]) for what in ("tokens", "documents"))
  return (f"memory gain in nats per token, on {tokens:,} tokens of {documents:,} documents: "
          f"{', '.join(parts)}; swapped tells what reading this document is worth, the others also what the "
          "model leans on")
