"""The vocabulary loss from all logits at once: the definition."""
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.parallel import by_rows


def vocab_logits(hidden_ND, head_DV, *, temperature=1.0):
  """Returns logits over a temperature, float32 or wider, whatever the dtype of the hidden vectors."""
  wide = tree.accumulation_dtype(hidden_ND.dtype)
  # Factors of the product in the activations' dtype, its sums in float32: bfloat16 sums tie close ids.
  logits_NV = by_rows.keep(jnp.dot(hidden_ND, head_DV.astype(hidden_ND.dtype), preferred_element_type=wide))
  return logits_NV / jnp.asarray(temperature, wide)


def vocab_loss(hidden_ND, head_DV, target_N, *, temperature=1.0):
  """Scores targets from all logits at once; arguments as in the package."""
  logits_NV = vocab_logits(hidden_ND, head_DV, temperature=temperature)
  chosen_N = jnp.take_along_axis(logits_NV, target_N[:, None], axis=1)[:, 0]
  # logsumexp takes the largest off first: exp overflows float32 from 89 on.
  return jax.nn.logsumexp(logits_NV, axis=-1) - chosen_N
