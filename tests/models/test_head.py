"""Scores come from the head's own weights, or from the embedding where it is shared."""
import jax.numpy as jnp
import numpy as np

from atlas_jax.models import head

V, D = 7, 5


def test_a_head_of_its_own_is_taken_before_the_embedding():
  draw = np.random.default_rng(0)
  shapes = (V, D), (D, V), (2, 3, D)
  embed, kernel, hidden_BTD = (draw.normal(size=shape).astype(np.float32) for shape in shapes)
  np.testing.assert_allclose(head.logits({"embed": embed}, hidden_BTD), hidden_BTD @ embed.T, rtol=1e-5)
  params = {"embed": embed, "head": {"kernel": kernel}}
  np.testing.assert_allclose(head.logits(params, hidden_BTD[0]), hidden_BTD[0] @ kernel, rtol=1e-5)


def test_scores_are_wider_than_the_vectors():
  hidden_BD = jnp.ones((2, D), jnp.bfloat16)
  assert head.logits({"embed": jnp.ones((V, D))}, hidden_BD).dtype == jnp.float32
