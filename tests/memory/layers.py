"""A small memory layer, its calls compiled once for all tests, and its loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.memory.layer import NO_DOC
from tests import oracles
from tests.helpers import assert_close, tiny_memory

FIELDS = (
  *("rule", "heads", "key_dim", "value_dim", "chunk_size", "write_rate_max", "options"),
  *("shift", "shared_qk", "activation", "value_source", "initial", "read_norm"),
)


@functools.lru_cache
def layer_of(dtype="float32", **fields):
  return tiny_memory(dtype=dtype, **fields)


@functools.partial(jax.jit, static_argnums=0, static_argnames="mode")
def run(layer, params, x_BTD, state, doc_BT, last_doc_B, count_B=None, *, mode):
  out_BTHM, state, _ = layer.apply({"params": params}, x_BTD, state, doc_BT, last_doc_B, count_B, mode=mode)
  return out_BTHM, state


def packed(layer, params, x_BTD, doc_BT=None, state=None, last_doc=NO_DOC):
  """Reads whole chunks, of one document unless told."""
  rows, length, _ = x_BTD.shape
  doc_BT = jnp.zeros((rows, length), jnp.int32) if doc_BT is None else doc_BT
  state = layer.zero_state(rows, x_BTD.dtype) if state is None else state
  return run(layer, params, x_BTD, state, doc_BT, jnp.full(rows, last_doc, jnp.int32), mode="packed")


def stream(layer, params, x_BTD, state=None, count_B=None):
  """Reads on in one document per row; a state of None begins it."""
  rows, length, _ = x_BTD.shape
  last_doc_B = jnp.full(rows, NO_DOC if state is None else 0, jnp.int32)
  state = layer.zero_state(rows, x_BTD.dtype) if state is None else state
  return run(
    layer, params, x_BTD, state, jnp.zeros((rows, length), jnp.int32), last_doc_B, count_B, mode="stream"
  )


def oracle(layer, params, x_BTD, doc_BT):
  """The loop of every row: out_BTHM, and fast weights and momentum with leading B, H."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  rule = layer.build_rule()
  fields = {name: getattr(layer, name) for name in FIELDS} | dict(options=dict(layer.options))
  fields |= dict(uses=rule.uses, own=rule.gates)
  rows = [
    oracles.memory_layer(params, np.asarray(x, np.float64), np.asarray(doc), **fields)
    for x, doc in zip(x_BTD, doc_BT)
  ]
  join = lambda field: jax.tree.map(
    lambda *xs: np.stack(xs),
    *[jax.tree.map(lambda *xs: np.stack(xs), *[getattr(head, field) for head in heads]) for _, heads in rows],
  )
  return np.stack([out for out, _ in rows]), join("fast"), join("momentum") or ()


DOCUMENTS = np.array(
  [[4, 4, 4, 4, 4, 4, -1, -1, 9, 9, 9, -1], [2, 2, -1, -1, 5, 5, 5, 5, 5, 5, 5, 5]], np.int32
)


def assert_equals_loop(layer, params, x_BTD, doc_BT):
  out_BTHM, state = packed(layer, params, x_BTD, jnp.asarray(doc_BT))
  memory = state.running.memory
  assert_close(
    (out_BTHM, memory.fast, memory.momentum),
    oracle(layer, params, x_BTD, doc_BT),
    why="(output, fast, momentum)",
  )
