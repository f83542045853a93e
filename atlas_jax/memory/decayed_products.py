"""Products of queries with keys that fade channel by channel on their way, for all pairs of a chunk.

  score[t, i] = sum_c row[t, c] key[i, c] prod_{i < j <= t} keep[j, c]      for i <= t, else 0

Sums of logs would have to be taken apart again, exp(G_t - G_i) as exp(G_t) exp(-G_i), which overflows where a
gate shuts. Here nothing is ever divided: a block of tokens knows its rows as they see what stood before it,
its keys as they stand at its end, and what of each channel it keeps. Two neighbours make one block, whose
corner is the product of the later one's rows with the earlier one's keys. All factors are at most 1, for any
gates; what underflows is nothing in truth, too. Blocks of four tokens are taken pair by pair, the rest are
products of matrices.
"""
import jax
import jax.numpy as jnp

BLOCK = 4  # tokens whose pairs are taken one by one; larger ones pass over more memory than they save


def decayed_products(row_2CK, key_CK, keep_CK):
  """Multiplies two kinds of rows with all keys before them.

  Args:
    row_2CK: rows of two kinds; of any size.
    key_CK: keys; one fades from the token after its own on, that one's channels included.
    keep_CK: what of each channel stays at each token, in [0, 1].

  Returns:
    (score_2CC, row_2CK, key_CK, keep_K): the products; rows as they meet what stood before the chunk; keys as
    they stand at its end; what of the channels it keeps.

  Source: the pairwise decay is of Yang et al. 2024, GLA, arXiv:2312.06635, section 4; joining blocks is ours.
  """
  size, width = key_CK.shape
  # Tokens that fill up keep all and have keys of zero: they change no product, nor what stands at the end.
  full = max(BLOCK, 1 << (size - 1).bit_length())
  more = (0, full - size), (0, 0)
  row_2NSK = jnp.pad(row_2CK, ((0, 0), *more)).reshape(2, full // BLOCK, BLOCK, width)
  key_NSK = jnp.pad(key_CK, more).reshape(full // BLOCK, BLOCK, width)
  keep_NSK = jnp.pad(keep_CK, more, constant_values=1).reshape(full // BLOCK, BLOCK, width)
  block = _one_by_one(row_2NSK, key_NSK, keep_NSK)
  while block[0].shape[-1] < full:
    block = _joined(*block)
  score_21CC, row_21CK, key_1CK, keep_1K = block
  return score_21CC[:, 0, :size, :size], row_21CK[:, 0, :size], key_1CK[0, :size], keep_1K[0]


def _one_by_one(row_2NSK, key_NSK, keep_NSK):
  """Makes blocks by walking along their tokens."""
  score_2NS = []
  rows = []
  keys: list[jax.Array] = []
  kept_NK = jnp.ones_like(keep_NSK[:, 0])
  for t in range(BLOCK):
    keep_NK = keep_NSK[:, t]
    kept_NK = kept_NK * keep_NK
    # All keys so far, as they stand at this token: the recurrence itself, so that nothing is a quotient.
    keys = [key_NK * keep_NK for key_NK in keys] + [key_NSK[:, t]]
    row_2NK = row_2NSK[:, :, t]
    seen = [jnp.sum(row_2NK * key_NK[None], axis=-1) for key_NK in keys]
    unseen = [jnp.zeros_like(seen[0])] * (BLOCK - 1 - t)
    score_2NS.append(jnp.stack(seen + unseen, axis=-1))
    rows.append(row_2NK * kept_NK[None])
  return jnp.stack(score_2NS, axis=2), jnp.stack(rows, axis=2), jnp.stack(keys, axis=1), kept_NK


def _joined(score_2NSS, row_2NSK, key_NSK, keep_NK):
  """Makes one block of every two neighbours."""
  first_2NSS = score_2NSS[:, 0::2]
  second_2NSS = score_2NSS[:, 1::2]
  late_row_2NSK = row_2NSK[:, 1::2]
  early_key_NSK = key_NSK[0::2]
  # Both have met at the border between the blocks: the rows since it, the keys up to it.
  corner_2NSS = jnp.einsum("anck,nik->anci", late_row_2NSK, early_key_NSK)
  upper = jnp.concatenate([first_2NSS, jnp.zeros_like(first_2NSS)], axis=-1)
  lower = jnp.concatenate([corner_2NSS, second_2NSS], axis=-1)
  row = jnp.concatenate([row_2NSK[:, 0::2], late_row_2NSK * keep_NK[None, 0::2, None]], axis=2)
  key = jnp.concatenate([early_key_NSK * keep_NK[1::2, None], key_NSK[1::2]], axis=1)
  return jnp.concatenate([upper, lower], axis=2), row, key, keep_NK[0::2] * keep_NK[1::2]
