"""Builds the tiny language models that tests of samplers write with."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import freeze

from atlas_jax.models import decoder, language, lm
from tests.helpers import LM, MEMORY, quick_compilation, tiny_lm

DECODER = dict(vocab_size=270, width=12, depth=2, heads=4, kv_heads=2, head_dim=6, ff_width=10, qkv_bias=True)


@functools.lru_cache
def tiny(kind: str, *, scale: float = 0.3, **fields):
  """Returns a language of more ids than there are bytes, and random parameters that predict unevenly.

  Args:
    kind: "decoder" or "memory".
    scale: of the parameters; the larger, the surer the model.
    fields: replace those of the model.
  """
  if kind == "memory":
    model = lm.LM(**(LM | dict(vocab_size=270) | fields), memory=freeze(MEMORY))
    with quick_compilation():  # The same bits in every test and process, whichever asks first.
      params = tiny_lm(vocab_size=270, noise=scale, **fields)[1]
    return language.of_memory(model), params
  model = decoder.Decoder(**(DECODER | fields))
  draw = np.random.default_rng(3)
  shapes = jax.eval_shape(language.from_decoder(model).init, jax.random.key(0))
  params = jax.tree.map(lambda x: jnp.asarray(draw.normal(0, scale, x.shape), jnp.float32), shapes)
  return language.from_decoder(model), params
