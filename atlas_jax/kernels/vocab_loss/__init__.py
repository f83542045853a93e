"""Negative log-likelihood over a vocabulary, without all logits at once where that matters."""
from atlas_jax.kernels.vocab_loss import chunked, reference
from atlas_jax.kernels.vocab_loss.chunked import map_blocks
from atlas_jax.kernels.vocab_loss.reference import vocab_logits

__all__ = ["map_blocks", "vocab_logits", "vocab_loss"]


def vocab_loss(hidden_ND, head_DV, target_N, *, temperature=1.0, block_tokens: int | None = None,
               impl: str = "auto"):
  """Scores targets under softmax(hidden @ head / temperature).

  Args:
    hidden_ND: one vector per token (N here counts tokens).
    head_DV: output weights.
    target_N: int32 in [0, V).
    temperature: positive; a number or a [] array.
    block_tokens: tokens whose logits exist at the same time; None: all of them.
    impl: "reference" (all logits), "chunked" (by block_tokens, recomputed in the backward pass) or "auto".

  Returns:
    nll_N in nats, float32 or wider.

  Raises:
    ValueError: if impl is unknown, "chunked" without block_tokens, or block_tokens is not positive.
  """
  # block_tokens is the choice: 2,048 tokens by 8,192 ids are 64 MiB of float32 logits, blocks of 256 are 8.
  if impl == "auto":
    impl = "reference" if block_tokens is None else "chunked"
  if impl == "reference":
    return reference.vocab_loss(hidden_ND, head_DV, target_N, temperature=temperature)
  if impl != "chunked":
    raise ValueError(f"impl={impl!r} is unknown for vocab_loss; known are auto, reference, chunked")
  if block_tokens is None:
    raise ValueError("vocab_loss with impl='chunked' needs block_tokens, the tokens of one block")
  return chunked.vocab_loss(hidden_ND, head_DV, target_N, temperature=temperature, block_tokens=block_tokens)
