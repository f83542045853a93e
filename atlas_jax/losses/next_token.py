"""The language-model loss: how surprised the model is by each next token."""
import jax.numpy as jnp

from atlas_jax.kernels.vocab_loss import vocab_loss


def next_token_loss(hidden_BTD, head_DV, targets_BT, weight_BT, *, block_tokens: int | None = None):
  """Averages the negative log-likelihood over counted tokens.

  Args:
    hidden_BTD: the model's last hidden vectors.
    head_DV: output weights.
    targets_BT: the next token of each position.
    weight_BT: 1 where it counts, else 0.
    block_tokens: see `vocab_loss`.

  Returns:
    (loss, weight, nll_BT): mean nats per counted token (0 if none counts), how many count, and each token's
    nats.
  """
  rows, length, width = hidden_BTD.shape
  # Rows do not matter to the loss of single tokens; flat, they can be cut into blocks of any size.
  flat = vocab_loss(hidden_BTD.reshape(-1, width), head_DV, targets_BT.reshape(-1), block_tokens=block_tokens)
  nll_BT = flat.reshape(rows, length)
  weight_BT = weight_BT.astype(nll_BT.dtype)
  weight = jnp.sum(weight_BT)
  # At least 1: a batch of padding alone has loss 0 and finite gradients.
  return jnp.sum(nll_BT * weight_BT) / jnp.maximum(weight, 1), weight, nll_BT
