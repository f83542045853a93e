"""Embeddings of hashed n-grams: what the last tokens say, looked up in tables, without a memory.

Source: Clark et al. 2022, CANINE, arXiv:2103.06874, and Pagnoni et al. 2024, arXiv:2412.09871 (hashed n-grams
of bytes); here n starts at 2, tables are of the model's width, and n-grams do not cross documents.
"""
import jax.numpy as jnp

from atlas_jax.memory.projections import conv_mask, last_valid

NONE = -1  # Stands for no token, and for no n-gram.
SPREAD = 0x9E3779B1  # Odd, near 2**32 over the golden ratio: multiplying spreads small numbers over 32 bits.


def zero_tail(rows: int, max_n: int):
  """Returns the tokens before a text, [B, max_n - 1] of none."""
  return jnp.full((rows, max_n - 1), NONE, jnp.int32)


def lookups(tokens_BT, tail_BS, doc_BT, last_doc_B, count_B, *, table_rows: int):
  """Finds the row of each token's n-grams, n from 2 to S + 1, in tables of their own.

  Args:
    tokens_BT: int32, 0 or above.
    tail_BS: the S tokens before them, -1 where there are none of the document of `last_doc_B`.
    doc_BT: the document of each token.
    last_doc_B: the document of the last token read before.
    count_B: how many of the T tokens are real, the first ones; None: all.
    table_rows: rows of each table.

  Returns:
    (row_BTS, tail_BS): int32 rows by n, -1 where the document has fewer than n tokens so far; the new tail.
  """
  length = tokens_BT.shape[1]
  lags = tail_BS.shape[1]
  both = jnp.concatenate([tail_BS, tokens_BT], axis=1)
  mask_BTS = conv_mask(doc_BT, last_doc_B, lags)
  # 32 bits that wrap: overflow is part of the hash. The n-gram grows backwards from the token, so that each
  # longer one takes the hash of the shorter on by one token.
  hash_BT = tokens_BT.astype(jnp.uint32)
  full_BT = jnp.ones(tokens_BT.shape, bool)
  found = []
  for lag in range(1, lags + 1):
    earlier_BT = both[:, lags - lag:lags - lag + length]
    full_BT = full_BT & mask_BTS[:, :, lags - lag] & (earlier_BT != NONE)
    # Multiplied before the next token is added: else a pair and its reverse would have one hash.
    hash_BT = mixed(hash_BT * jnp.uint32(SPREAD) + earlier_BT.astype(jnp.uint32) + jnp.uint32(lag))
    row_BT = (hash_BT % jnp.uint32(table_rows)).astype(jnp.int32)
    found.append(jnp.where(full_BT, row_BT, NONE))
  doc_BS = last_valid(jnp.repeat(last_doc_B[:, None], lags, 1), doc_BT, count_B)
  tail_BS = jnp.where(doc_BS == doc_BS[:, -1:], last_valid(tail_BS, tokens_BT, count_B), NONE)
  return jnp.stack(found, axis=-1), tail_BS


def mixed(hash_BT):
  """Mixes the bits of whole numbers of 32 bits, one to one, so that low bits depend on all.

  Source: the end of MurmurHash3 (A. Appleby, public domain).
  """
  hash_BT = (hash_BT ^ (hash_BT >> 16)) * jnp.uint32(0x85EBCA6B)
  hash_BT = (hash_BT ^ (hash_BT >> 13)) * jnp.uint32(0xC2B2AE35)
  return hash_BT ^ (hash_BT >> 16)


def embedded(tables, row_BTS):
  """Adds up the embeddings of each token's n-grams.

  Args:
    tables: [S, table_rows, D].
    row_BTS: see `lookups`.

  Returns:
    [B, T, D] in the tables' dtype.
  """
  # Row 0 stands in for none and is masked: a gather needs an index.
  every = tables[jnp.arange(tables.shape[0])[None, None], jnp.maximum(row_BTS, 0)]
  return jnp.sum(jnp.where((row_BTS != NONE)[..., None], every, 0), axis=2)
