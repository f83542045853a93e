"""Supervised losses of recorded completions."""
import jax
import jax.numpy as jnp

KINDS = ("nll", "dft")


def sft_loss(logprob_BT, mask_BT, *, kind: str):
  """Averages a loss over counted tokens.

  Args:
    logprob_BT: log-probabilities of the recorded tokens.
    mask_BT: 1 or True where a token counts.
    kind: "nll" (the negative log-likelihood), or "dft" (times the token's own probability, held fixed: tokens
      the model finds absurd move it less).

  Returns:
    (loss, weight): mean nats per counted token (0 if none counts), and how many count.

  Raises:
    ValueError: if the kind is unknown.

  Source: "dft": Wu et al. 2025, arXiv:2508.05629.
  """
  if kind not in KINDS:
    raise ValueError(f"config.sft.loss={kind!r} is not known; choose one of {', '.join(KINDS)}")
  mask_BT = mask_BT.astype(logprob_BT.dtype)
  # What does not count may be anything, also minus infinity.
  logprob_BT = jnp.where(mask_BT > 0, logprob_BT, 0)
  nats_BT = -logprob_BT
  if kind == "dft":
    # The gradient of -log p grows as 1 / p; the factor p, held fixed, takes that off again.
    nats_BT = nats_BT * jax.lax.stop_gradient(jnp.exp(logprob_BT))
  weight = jnp.sum(mask_BT)
  return jnp.sum(nats_BT * mask_BT) / jnp.maximum(weight, 1), weight
