"""Writes small models that nobody has trained, for students to learn from."""

import jax

from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.language.pretrained import hf_export
from atlas_jax.models import language
from atlas_jax.models.decoder import Decoder

SMALL = dict(width=16, depth=2, heads=2, kv_heads=1, head_dim=8, ff_width=24)


def published(folder, *, vocab_size=260):
  """Writes a decoder of bytes as a pretrained model, with ids that its tokenizer has not; returns it."""
  if not (folder / "config.json").exists():
    model = Decoder(vocab_size=vocab_size, tied=True, **SMALL)
    params = language.from_decoder(model).init(jax.random.key(7))
    hf_export.save(folder, model, jax.tree.map(lambda x: 3 * x, params), max_tokens=64)
    ByteTokenizer().save(folder)
  return folder
