"""The language-model loss: how surprised the model is by each next token."""
import jax.numpy as jnp

from atlas_jax.kernels.vocab_loss import map_blocks, vocab_logits, vocab_loss
from atlas_jax.losses.stablemax import stablemax_loss

KINDS = ("softmax", "stablemax")


def next_token_loss(hidden_BTD, head_DV, targets_BT, weight_BT, *, block_tokens: int | None = None,
                    kind: str = "softmax"):
  """Averages the negative log-likelihood over counted tokens.

  Args:
    hidden_BTD: the model's last hidden vectors.
    head_DV: output weights.
    targets_BT: the next token of each position.
    weight_BT: 1 where it counts, else 0.
    block_tokens: see `vocab_loss`.
    kind: how logits become probabilities: "softmax" or "stablemax", see `stablemax_nll`.

  Returns:
    (loss, weight, nll_BT): mean nats per counted token (0 if none counts), how many count, and each token's
    nats.

  Raises:
    ValueError: if there is no such kind.
  """
  if kind not in KINDS:
    raise ValueError(f"config.loss.kind={kind!r} is unknown; known are {', '.join(KINDS)}")
  score = vocab_loss if kind == "softmax" else stablemax_nll
  rows, length, width = hidden_BTD.shape
  # Rows do not matter to the loss of single tokens; flat, they can be cut into blocks of any size.
  flat = score(hidden_BTD.reshape(-1, width), head_DV, targets_BT.reshape(-1), block_tokens=block_tokens)
  nll_BT = flat.reshape(rows, length)
  weight_BT = weight_BT.astype(nll_BT.dtype)
  weight = jnp.sum(weight_BT)
  # At least 1: a batch of padding alone has loss 0 and finite gradients.
  return jnp.sum(nll_BT * weight_BT) / jnp.maximum(weight, 1), weight, nll_BT


def stablemax_nll(hidden_ND, head_DV, target_N, *, block_tokens: int | None = None):
  """Scores targets under the stablemax of hidden @ head; the counterpart of `vocab_loss`.

  A probability grows with a logit and not with its exponential: of V tokens one gets half of it all from a
  logit near V. Where V is large, logits, and the gradients that lead there, become as large.

  Args:
    hidden_ND: one vector per token (N here counts tokens).
    head_DV: output weights.
    target_N: int32 in [0, V).
    block_tokens: tokens whose logits exist at the same time; None: all of them.

  Returns:
    nll_N in nats, float32 or wider.

  Source: Prieto et al. 2025, arXiv:2501.04697.
  """

  def score(hidden, target):
    logits_NV = vocab_logits(hidden, head_DV)
    return stablemax_loss(logits_NV, target, dtype=logits_NV.dtype)

  return map_blocks(score, (hidden_ND, target_N), block_tokens=block_tokens)
