"""Log-probabilities of given tokens, and the entropies of the distributions they came from."""
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.losses.blocks import map_blocks


def token_logprobs(hidden_BTD, head_DV, tokens_BT, *, temperature=1.0, block_tokens: int | None = None):
  """Gives each token's log-probability under softmax(hidden @ head / temperature).

  Args:
    hidden_BTD: the hidden vector that predicts each token, so of the position before it.
    head_DV: output weights.
    tokens_BT: int32 in [0, V).
    temperature: that of sampling, positive; a number or a [] array.
    block_tokens: tokens whose logits exist at the same time; None: all of them.

  Returns:
    logprob_BT in nats, float32 or wider.

  Raises:
    ValueError: if temperature or block_tokens is not positive.
  """
  _check(temperature)

  def score(hidden_ND, token_N):
    logits_NV = scaled_logits(hidden_ND, head_DV, temperature)
    return _pick(logits_NV, token_N) - jax.nn.logsumexp(logits_NV, axis=-1)

  return _by_rows(score, hidden_BTD, tokens_BT, block_tokens)


def token_logprobs_and_entropies(hidden_BTD, head_DV, tokens_BT, *, temperature=1.0,
                                 block_tokens: int | None = None):
  """Gives log-probabilities as `token_logprobs` does, and entropies of the same distributions.

  Returns:
    (logprob_BT, entropy_BT) in nats, float32 or wider.

  Raises:
    ValueError: if temperature or block_tokens is not positive.
  """
  _check(temperature)

  def score(hidden_ND, token_N):
    logits_NV = scaled_logits(hidden_ND, head_DV, temperature)
    log_NV = jax.nn.log_softmax(logits_NV, axis=-1)
    return _pick(log_NV, token_N), -jnp.sum(jnp.exp(log_NV) * log_NV, axis=-1)

  return _by_rows(score, hidden_BTD, tokens_BT, block_tokens)


def scaled_logits(hidden_ND, head_DV, temperature):
  """Gives logits over a temperature, float32 or wider, whatever the dtype of the hidden vectors."""
  wide = tree.wide(hidden_ND.dtype)
  logits_NV = jnp.dot(hidden_ND, head_DV.astype(hidden_ND.dtype), preferred_element_type=wide)
  return logits_NV / jnp.asarray(temperature, wide)


def _pick(score_NV, token_N):
  return jnp.take_along_axis(score_NV, token_N[:, None], axis=1)[:, 0]


def _by_rows(score, hidden_BTD, tokens_BT, block_tokens):
  flat = (hidden_BTD.reshape(-1, hidden_BTD.shape[-1]), tokens_BT.reshape(-1))
  out = map_blocks(score, flat, block_tokens=block_tokens)
  return jax.tree.map(lambda x: x.reshape(tokens_BT.shape), out)


def _check(temperature) -> None:
  if isinstance(temperature, int | float) and temperature <= 0:
    raise ValueError(f"config.rollout.temperature={temperature} gives no log-probabilities; set it above 0, "
                     "also where completions are sampled greedily")
