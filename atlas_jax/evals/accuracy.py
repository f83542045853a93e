"""Accuracy of the likeliest next token, on held-out rows and on as many rows that are trained on."""
import functools

import jax.numpy as jnp
from jax.sharding import Mesh

from atlas_jax.evals import EvalOut, held_out
from atlas_jax.kernels.vocab_loss import map_blocks, vocab_logits
from atlas_jax.losses.next_token import next_token_loss
from atlas_jax.models import head, lm

TRAIN, HELD_OUT = "eval/train_accuracy", "eval/held_out_accuracy"


def make(model: lm.LM, train_factory, held_out_factory, mesh: Mesh, *, block_tokens: int | None = None,
         kind: str = "softmax"):
  """Makes the evaluation.

  Args:
    model: reads packed segments, its state carried from segment to segment.
    train_factory: gives a fresh training source, which is read from its first step on for as many places as
      the held-out source has, and for one batch at least.
    held_out_factory: gives a fresh source of held-out batches, see `held_out.batches`.
    mesh: over which rows are split.
    block_tokens: tokens whose logits exist at the same time, see `vocab_loss`.
    kind: of the loss, see `next_token_loss`.

  Returns:
    run(trained, *, step) -> EvalOut with, over targets that count, "eval/train_accuracy",
    "eval/held_out_accuracy", "eval/train_loss_nats" and "eval/held_out_loss_nats".
  """

  def segment(params, state, batch):
    out = model.apply({"params": params}, batch["tokens_BT"], state, doc_BT=batch["doc_BT"], mode="packed")
    weights = head.head_weights(params)
    _, _, nll_BT = next_token_loss(out.hidden_BTD, weights, batch["targets_BT"], batch["weight_BT"],
                                   block_tokens=block_tokens, kind=kind)
    weight_BT = batch["weight_BT"]
    hit_BT = hits(out.hidden_BTD, weights, batch["targets_BT"], block_tokens=block_tokens)
    return out.state, {"hits": jnp.sum(hit_BT * weight_BT), "nats": jnp.sum(nll_BT * weight_BT),
                       "tokens": jnp.sum(weight_BT), "places": jnp.asarray(weight_BT.size)}

  add_up = functools.partial(held_out.add_up, held_out.make_step(segment, mesh))

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del step, workdir
    unseen = add_up(trained.params, model, held_out_factory(), mesh)
    # As many places of rows trained on: a training source may be without end.
    seen = add_up(trained.params, model, train_factory(), mesh, max_tokens=int(unseen.get("places", 0)))
    return EvalOut({**scalars(seen, "train"), **scalars(unseen, "held_out")})

  return run


def hits(hidden_BTD, head_DV, targets_BT, *, block_tokens: int | None = None):
  """Returns 1 where the likeliest next token is the target, else 0; float32."""

  def score(hidden_ND, target_N):
    return (jnp.argmax(vocab_logits(hidden_ND, head_DV), axis=-1) == target_N).astype(jnp.float32)

  flat = hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), targets_BT.reshape(-1)
  return map_blocks(score, flat, block_tokens=block_tokens).reshape(targets_BT.shape)


def scalars(totals: dict, split: str) -> dict[str, float]:
  """Turns sums over all segments of a split into metrics.

  Raises:
    ValueError: if no target counts.
  """
  tokens = float(totals["tokens"]) if totals else 0.0
  if not tokens:
    raise ValueError(f"config.eval.accuracy=True: the {split.replace('_', '-')} rows have no token that "
                     "counts; raise config.eval.max_tokens or config.data.held_out_frac, or set it to False")
  return {f"eval/{split}_accuracy": float(totals["hits"]) / tokens,
          f"eval/{split}_loss_nats": float(totals["nats"]) / tokens}
