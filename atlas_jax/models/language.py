"""A language model as tuning sees it, whether a published decoder or one with memory."""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax import fields
from atlas_jax.models import decoder as decoders
from atlas_jax.models import lm


class Language(NamedTuple):
  """What tuning and sampling ask of a model; `params` are whole, adapters among them."""

  module: Any  # the Decoder or LM itself
  vocab_size: int
  align_tokens: int  # documents of a packed row start at its multiples, and T is one
  init: Callable  # rng -> params
  read: Callable  # (params, tokens_BT, doc_BT) -> (hidden_BTD, stats: name -> [L]), see `of_decoder`
  head: Callable  # params -> [D, V]
  start: Callable  # (params, tokens_BT, count_B, *, room_tokens) -> (state, hidden_BD)
  step: Callable  # (params, state, token_B) -> (state, hidden_BD)
  take_rows: Callable  # (state, row_B) -> state of the chosen rows, in their order


def language_model(kind: str = "memory", **given) -> Language:
  """Makes a language model without a config.

  Args:
    kind: "memory", with the fields of config.model, or "decoder", with those of config.decoder.
    given: fields that differ from the config's defaults; `memory` takes a mapping of those of its group.

  Raises:
    ValueError, TypeError: if the kind is unknown, or a field does not fit.
  """
  if kind == "memory":
    return of_memory(lm.build(fields.with_defaults("model", given)))
  if kind == "decoder":
    return of_decoder(decoders.Decoder(**fields.with_defaults("decoder", given)))
  raise ValueError(f"language_model: kind={kind!r} is unknown; choose memory or decoder")


def of_decoder(model: decoders.Decoder) -> Language:
  """Gives the functions of a decoder.

  `read` reads packed rows from nothing: doc_BT is the document of each token, -1 at padding. `start` reads
  prompts that stand at the left of their rows, count_B tokens each, at least one; its hidden vector is the
  last one's, which predicts the next token; room_tokens bounds all that a row will ever hold. `step` reads
  one more token per row.
  """
  def init(rng):
    return model.init(rng, jnp.zeros((1, 1), jnp.int32))["params"]

  def read(params, tokens_BT, doc_BT):
    out: Any = model.apply({"params": params}, tokens_BT, doc_BT=doc_BT)
    return out.hidden_BTD, {}

  def start(params, tokens_BT, count_B, *, room_tokens: int):
    ends_BT = jnp.arange(tokens_BT.shape[1])[None] == count_B[:, None]
    # Summed, not compared: of a comparison a compiler unrolls the mask of attention, which takes seconds.
    doc_BT = -jnp.cumsum(ends_BT.astype(jnp.int32), axis=1)
    out: Any = model.apply({"params": params}, tokens_BT, doc_BT=doc_BT, room_tokens=room_tokens)
    return out.cache, _at(out.hidden_BTD, count_B - 1)

  def step(params, state, token_B):
    out: Any = model.apply({"params": params}, token_B[:, None], state)
    return out.cache, out.hidden_BTD[:, 0]

  return Language(model, model.vocab_size, 1, init, read, decoders.head_weights, start, step,
                  decoders.take_rows)


def of_memory(model: lm.LM) -> Language:
  """Gives the functions of a memory model, as `of_decoder` describes them; its state is of fixed size."""
  chunk = model.align_tokens

  def init(rng):
    dummy_BT = jnp.zeros((1, chunk), jnp.int32)
    return model.init(rng, dummy_BT, model.zero_state(1), doc_BT=dummy_BT)["params"]

  def read(params, tokens_BT, doc_BT):
    state = model.zero_state(tokens_BT.shape[0])
    out: Any = model.apply({"params": params}, tokens_BT, state, doc_BT=doc_BT)
    return out.hidden_BTD, out.stats

  def start(params, tokens_BT, count_B, *, room_tokens: int):
    del room_tokens
    state = model.zero_state(tokens_BT.shape[0])
    out: Any = model.apply({"params": params}, tokens_BT, state, count_B=count_B, mode="stream")
    return out.state, _at(out.hidden_BTD, count_B - 1)

  def step(params, state, token_B):
    out: Any = model.apply({"params": params}, token_B[:, None], state, mode="stream")
    return out.state, out.hidden_BTD[:, 0]

  def take_rows(state, row_B):
    return jax.tree.map(lambda x: x[row_B], state)

  return Language(model, model.vocab_size, chunk, init, read, lm.head_weights, start, step, take_rows)


def read_completions(language: Language, params, batch):
  """Gives the hidden vectors that predict the completions of a batch.

  Args:
    language: the model.
    params: its parameters, whole.
    batch: tokens_BS (prompt and completion, from the left), doc_BS (0, -1 at padding), start_B (the place of
      a prompt's last token) and completion_BT.

  Returns:
    (hidden_BTD, stats): the vector at [b, t] predicts completion_BT[b, t], and is of no meaning behind the
    completion's end.
  """
  hidden_BSD, stats = language.read(params, batch["tokens_BS"], batch["doc_BS"])
  width = batch["completion_BT"].shape[1]
  place_BT = batch["start_B"][:, None] + jnp.arange(width)[None]
  place_BT = jnp.minimum(place_BT, hidden_BSD.shape[1] - 1)
  return jnp.take_along_axis(hidden_BSD, place_BT[..., None], axis=1), stats


def _at(hidden_BTD, place_B):
  return jnp.take_along_axis(hidden_BTD, place_B[:, None, None], axis=1)[:, 0]
