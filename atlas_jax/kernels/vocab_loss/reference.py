"""The vocabulary loss from all logits at once: the definition."""
import jax
import jax.numpy as jnp

from atlas_jax import tree


def vocab_loss(hidden_ND, head_DV, target_N):
  """Arguments as in the package."""
  wide = tree.wide(hidden_ND.dtype)
  logits_NV = jnp.dot(hidden_ND, head_DV.astype(hidden_ND.dtype), preferred_element_type=wide)
  chosen_N = jnp.take_along_axis(logits_NV, target_N[:, None], axis=1)[:, 0]
  return jax.nn.logsumexp(logits_NV, axis=-1) - chosen_N
