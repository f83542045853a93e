"""A language model as tuning sees it, whether a pretrained decoder or one with memory."""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from atlas_jax import fields
from atlas_jax.models import decoder as decoders
from atlas_jax.models import head as heads
from atlas_jax.models import lm
from atlas_jax.models.hybrid_decoder import AnyDecoder


class LanguageModel(NamedTuple):
  """A language model as tuning and sampling use it; `params` are whole, adapters among them.

  What a decoder and a memory model do not have in common stands here, so that nobody asks which one it is.
  """

  module: Any  # the Decoder or LM itself
  vocab_size: int
  align_tokens: int  # documents of a packed row start at its multiples, and T is one
  init: Callable  # rng -> params
  read: Callable  # (params, tokens_BT, doc_BT) -> (hidden_BTD, stats: name -> [L]), see `from_decoder`
  zero_state: Callable  # (rows, room_tokens) -> state of rows that have read nothing
  prefill: Callable  # (params, tokens_BT, count_B, *, room_tokens) -> (state, hidden_BD)
  extend: Callable  # (params, state, tokens_BT, count_B) -> (state, hidden_BD)
  decode: Callable  # (params, state, token_B) -> (state, hidden_BD); of either form of state
  row_axes: Any  # which axis of the state's leaves counts rows: a prefix of the state, as `vmap` takes it
  writing: Callable  # state -> the form of it that `decode` goes on from fastest; that form stays as it is
  writing_axes: Any  # as row_axes, of that form
  token_axes: Any = None  # which axis of each leaf counts tokens read, -1: none; None: its size is fixed
  head: Callable = heads.head_weights  # params -> [D, V]
  logits: Callable = heads.logits  # (params, hidden vectors [..., D]) -> [..., V]
  max_positions: int | None = None  # the longest text, of a model that learned a vector for each position
  attention_block_tokens: int | None = None  # queries of a text that are attended at a time
  has_hf_form: bool = False  # whether Hugging Face has the format; its vocabularies may have ids to spare


def language_model(kind: str = "memory", **given) -> LanguageModel:
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
    return from_decoder(decoders.Decoder(**fields.with_defaults("decoder", given)))
  raise ValueError(f"language_model: kind={kind!r} is unknown; choose memory or decoder")


def from_decoder(model: AnyDecoder) -> LanguageModel:
  """Returns the functions of a decoder.

  `read` reads packed rows from nothing: doc_BT is the document of each token, -1 at padding. `prefill` reads
  prompts that stand at the left of their rows, count_B tokens each, at least one; its hidden vector is the
  last one's, which predicts the next token; room_tokens bounds all that a row will ever hold. `extend` reads
  on in the same form, where a row may also have no tokens: its state stays, and its hidden vector is of no
  meaning. `decode` reads one more token per row.
  """
  def init(rng):
    return model.init(rng, jnp.zeros((1, 1), jnp.int32))["params"]

  def read(params, tokens_BT, doc_BT):
    out: Any = model.apply({"params": params}, tokens_BT, doc_BT=doc_BT)
    return out.hidden_BTD, {}

  def zero_state(rows: int, room_tokens: int | None):
    if room_tokens is None:
      assert model.token_axes is None  # Attention keeps all that it read.
      room_tokens = 0
    return model.zero_cache(rows, room_tokens)

  def prefill(params, tokens_BT, count_B, *, room_tokens: int):
    doc_BT = _document(tokens_BT, count_B)
    out: Any = model.apply({"params": params}, tokens_BT, doc_BT=doc_BT, room_tokens=room_tokens)
    return out.cache, _last(out.hidden_BTD, count_B)

  def extend(params, state, tokens_BT, count_B):
    out: Any = model.apply({"params": params}, tokens_BT, state, doc_BT=_document(tokens_BT, count_B))
    return out.cache, _last(out.hidden_BTD, count_B)

  def decode(params, state, token_B):
    out: Any = model.apply({"params": params}, token_B[:, None], state)
    return out.cache, out.hidden_BTD[:, 0]

  return LanguageModel(model, model.vocab_size, 1, init, read, zero_state, prefill, extend, decode,
                       row_axes=model.row_axes, writing=lambda state: state, writing_axes=model.row_axes,
                       token_axes=model.token_axes,
                       max_positions=model.learned_positions,
                       attention_block_tokens=model.attention_block_tokens, has_hf_form=True)


def of_memory(model: lm.LM) -> LanguageModel:
  """Returns the functions of a memory model, as `from_decoder` describes them; its state is of fixed size."""
  chunk = model.align_tokens

  def init(rng):
    dummy_BT = jnp.zeros((1, chunk), jnp.int32)
    return model.init(rng, dummy_BT, model.zero_state(1), doc_BT=dummy_BT)["params"]

  def read(params, tokens_BT, doc_BT):
    state = model.zero_state(tokens_BT.shape[0])
    out: Any = model.apply({"params": params}, tokens_BT, state, doc_BT=doc_BT)
    return out.hidden_BTD, out.stats

  def zero_state(rows: int, room_tokens: int | None):
    del room_tokens
    return model.zero_state(rows)

  def prefill(params, tokens_BT, count_B, *, room_tokens: int):
    del room_tokens
    return extend(params, model.zero_state(tokens_BT.shape[0]), tokens_BT, count_B)

  def extend(params, state, tokens_BT, count_B):
    out: Any = model.apply({"params": params}, tokens_BT, state, count_B=count_B, mode="stream")
    return out.state, _last(out.hidden_BTD, count_B)

  def decode(params, state, token_B):
    out: Any = model.apply({"params": params}, token_B[:, None], state, mode="stream")
    return out.state, out.hidden_BTD[:, 0]

  return LanguageModel(model, model.vocab_size, chunk, init, read, zero_state, prefill, extend, decode,
                       row_axes=0, writing=model.with_rings, writing_axes=model.ring_row_axes)


def read_completions(language: LanguageModel, params, batch):
  """Returns the hidden vectors that predict the completions of a batch.

  Args:
    language: the model.
    params: its parameters, whole.
    batch: tokens_BS (prompt and completion, from the left), doc_BS (0, -1 at padding), start_B (position of
      a prompt's last token) and completion_BT.

  Returns:
    (hidden_BTD, stats): the vector at [b, t] predicts completion_BT[b, t], and is of no meaning behind the
    completion's end.
  """
  hidden_BSD, stats = language.read(params, batch["tokens_BS"], batch["doc_BS"])
  width = batch["completion_BT"].shape[1]
  position_BT = batch["start_B"][:, None] + jnp.arange(width)[None]
  position_BT = jnp.minimum(position_BT, hidden_BSD.shape[1] - 1)
  return jnp.take_along_axis(hidden_BSD, position_BT[..., None], axis=1), stats


def _document(tokens_BT, count_B):
  """Returns doc_BT of rows whose first count_B tokens are real: 0, and -1 behind them."""
  ends_BT = jnp.arange(tokens_BT.shape[1])[None] == count_B[:, None]
  # Summed, not compared: of a comparison a compiler unrolls the mask of attention, which takes seconds.
  return -jnp.cumsum(ends_BT.astype(jnp.int32), axis=1)


def _last(hidden_BTD, count_B):
  """Returns the hidden vector of each row's last real token."""
  position_B = jnp.maximum(count_B - 1, 0)
  return jnp.take_along_axis(hidden_BTD, position_B[:, None, None], axis=1)[:, 0]
