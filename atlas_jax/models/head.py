"""The output weights of a language model, and the scores of the next token that they give."""
import jax.numpy as jnp

from atlas_jax import tree


def head_weights(params):
  """Returns the output weights, [D, V]: the head's own, or the embedding where it is shared."""
  return params["head"]["kernel"] if "head" in params else params["embed"].T


def logits(params, hidden_BTD):
  """Scores every token of the vocabulary as the next; float32 or wider, [..., V] of [..., D]."""
  wide = tree.wide(hidden_BTD.dtype)
  return jnp.dot(hidden_BTD, head_weights(params).astype(hidden_BTD.dtype), preferred_element_type=wide)
