"""Perplexity and bits per byte of held-out text, and the loss by position in the document."""
import math

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atlas_jax.evals import EvalOut, held_out
from atlas_jax.losses.next_token import next_token_loss
from atlas_jax.models import head, lm

FIRST_BUCKET_TOKENS = 64
BUCKETS = 13  # Up to 2**18 tokens into a document; the last one holds all that is deeper.


def bucket_starts(first: int = FIRST_BUCKET_TOKENS, buckets: int = BUCKETS) -> list[int]:
  """Returns the first position of each bucket: 0, then `first` and its doublings."""
  return [0] + [first * 2**n for n in range(buckets - 1)]


def bucket_names(starts: list[int]) -> list[str]:
  """Names buckets by first and last position, such that names sort like positions."""
  # Padded with zeros, so that tables sorted by name are sorted by position.
  digits = len(str(starts[-1]))
  ends = [f"{start - 1:0{digits}}" for start in starts[1:]] + ["up"]
  return [f"{start:0{digits}}-{end}" for start, end in zip(starts, ends)]


def make(model: lm.LM, source_factory, mesh: Mesh, *, max_tokens: int | None = None,
         block_tokens: int | None = None, kind: str = "softmax"):
  """Makes the evaluation.

  Args:
    model: reads packed segments, its state carried from segment to segment.
    source_factory: gives a fresh source of held-out batches, see `held_out.batches`.
    mesh: over which rows are split.
    max_tokens: see `held_out.batches`; None reads all.
    block_tokens: tokens whose logits exist at the same time, see `vocab_loss`.
    kind: of the loss, see `next_token_loss`.

  Returns:
    run(trained, *, step) -> EvalOut with, over counted targets, "val/loss_nats", "val/perplexity",
    "val/tokens", "val/bits_per_byte" (absent if targets stand for no bytes), and for each bucket of positions
    that has any "val/loss_nats_by_position/FIRST-LAST" and "val/tokens_by_position/FIRST-LAST".
  """
  starts = bucket_starts()

  def segment(params, state, batch):
    out = model.apply({"params": params}, batch["tokens_BT"], state, doc_BT=batch["doc_BT"], mode="packed")
    _, _, nll_BT = next_token_loss(out.hidden_BTD, head.head_weights(params), batch["targets_BT"],
                                   batch["weight_BT"], block_tokens=block_tokens, kind=kind)
    return out.state, segment_sums(nll_BT, batch, starts)

  segment_step = held_out.make_step(segment, mesh)

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del step, workdir
    totals = held_out.add_up(segment_step, trained.params, model, source_factory(), mesh,
                             max_tokens=max_tokens)
    return EvalOut(scalars(totals, bucket_names(starts)))

  return run


def in_buckets(pos_BT, starts: list[int]):
  """Says in which bucket of positions each token stands; bool, [B, T, buckets]."""
  first = jnp.asarray(starts[1:])[None, None]
  # The number of starts at or below a position is the number of its bucket.
  bucket_BT = jnp.sum(pos_BT[..., None] >= first, axis=-1)
  return bucket_BT[..., None] == jnp.arange(len(starts))[None, None]


def segment_sums(nll_BT, batch: dict, starts: list[int]) -> dict:
  """Adds up one segment: nats and counted tokens per bucket of positions, and bytes."""
  weight_BT = batch["weight_BT"].astype(nll_BT.dtype)
  inside = in_buckets(batch["pos_BT"], starts).astype(nll_BT.dtype)
  # Along rows last: partial sums stay small, and float32 loses less.

  def add(x_BT):
    return jnp.sum(jnp.sum(inside * x_BT[..., None], axis=1), axis=0)

  bytes_ = jnp.sum(jnp.where(weight_BT > 0, batch["bytes_BT"], 0))
  return {"nats": add(nll_BT * weight_BT), "tokens": add(weight_BT), "bytes": bytes_}


def scalars(totals: dict, names: list[str]) -> dict[str, float]:
  """Turns sums over all segments into metrics.

  Raises:
    ValueError: if no target counts.
  """
  tokens = float(np.sum(totals["tokens"])) if totals else 0.0
  if not tokens:
    raise ValueError("the held-out text has no token that counts; raise config.data.held_out_frac or give "
                     "more documents")
  nats = float(np.sum(totals["nats"]))
  loss = nats / tokens
  # exp overflows float64 at 709.8, and Python raises where NumPy gives inf.
  perplexity = math.exp(loss) if loss < 700 else math.inf
  found = {"val/loss_nats": loss, "val/perplexity": perplexity, "val/tokens": tokens}
  if totals["bytes"]:
    found["val/bits_per_byte"] = nats / math.log(2) / float(totals["bytes"])
  for name, bucket_nats, bucket_tokens in zip(names, totals["nats"], totals["tokens"]):
    if bucket_tokens:
      found[f"val/loss_nats_by_position/{name}"] = float(bucket_nats / bucket_tokens)
      found[f"val/tokens_by_position/{name}"] = float(bucket_tokens)
  return found
