"""Log-probabilities of given tokens, and the entropies of the distributions they came from."""
import jax
import jax.numpy as jnp

from atlas_jax.kernels.vocab_loss import map_blocks, vocab_logits, vocab_loss


def token_logprobs(hidden_BTD, head_DV, tokens_BT, *, temperature=1.0, block_tokens: int | None = None):
  """Returns each token's log-probability under softmax(hidden @ head / temperature).

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
  nll_N = vocab_loss(_flat(hidden_BTD), head_DV, tokens_BT.reshape(-1), temperature=temperature,
                     block_tokens=block_tokens)
  return -nll_N.reshape(tokens_BT.shape)


def token_logprobs_and_entropies(hidden_BTD, head_DV, tokens_BT, *, temperature=1.0,
                                 block_tokens: int | None = None):
  """Returns log-probabilities as `token_logprobs` does, and entropies of the same distributions.

  Returns:
    (logprob_BT, entropy_BT) in nats, float32 or wider.

  Raises:
    ValueError: if temperature or block_tokens is not positive.
  """
  _check(temperature)

  # Both from the same logits, whose matmul is the dearest of a loss. An entropy needs the whole distribution,
  # a log-probability only its normaliser, so `token_logprobs` keeps less and is a function of its own.
  def score(hidden_ND, token_N):
    log_NV = jax.nn.log_softmax(vocab_logits(hidden_ND, head_DV, temperature=temperature), axis=-1)
    logprob_N = jnp.take_along_axis(log_NV, token_N[:, None], axis=1)[:, 0]
    return logprob_N, -jnp.sum(jnp.exp(log_NV) * log_NV, axis=-1)

  out = map_blocks(score, (_flat(hidden_BTD), tokens_BT.reshape(-1)), block_tokens=block_tokens)
  return jax.tree.map(lambda x_N: x_N.reshape(tokens_BT.shape), out)


def _flat(hidden_BTD):
  return hidden_BTD.reshape(-1, hidden_BTD.shape[-1])


def _check(temperature) -> None:
  # An array may be traced, and its value is not known here; callers have checked the field of the config.
  if isinstance(temperature, int | float) and temperature <= 0:
    raise ValueError(f"config.sampler.temperature={temperature} gives no log-probabilities; set it above 0, "
                     "also where completions are sampled greedily")
