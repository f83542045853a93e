"""The vocabulary loss by blocks of tokens: logits of one block at a time, recomputed in the backward pass."""
import jax
import jax.numpy as jnp

from atlas_jax.kernels.vocab_loss import reference


def vocab_loss(hidden_ND, head_DV, target_N, *, block_tokens: int):
  """Arguments as in the package; a last block that is not full is padded."""
  count = hidden_ND.shape[0]
  blocks = -(-count // block_tokens)
  pad = blocks * block_tokens - count
  hidden = jnp.pad(hidden_ND, ((0, pad), (0, 0))).reshape(blocks, block_tokens, -1)
  target = jnp.pad(target_N, (0, pad)).reshape(blocks, block_tokens)
  score = jax.checkpoint(lambda xs: reference.vocab_loss(xs[0], head_DV, xs[1]))
  return jax.lax.map(score, (hidden, target)).reshape(-1)[:count]
