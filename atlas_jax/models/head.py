"""The output weights of a language model, and the scores of the next token that they give."""
from atlas_jax.kernels.vocab_loss import vocab_logits


def head_weights(params):
  """Returns the output weights, [D, V]: the head's own, or the embedding where it is shared."""
  # By what is there, not by a flag: a tied model has no such parameter.
  return params["head"]["kernel"] if "head" in params else params["embed"].T


def logits(params, hidden_BTD):
  """Scores every token of the vocabulary as the next; float32 or wider, [..., V] of [..., D]."""
  return vocab_logits(hidden_BTD, head_weights(params))
