"""Reading a prompt and writing on, token by token, each compiled once.

A memory model's state is of fixed size however long the text; a decoder's has room for a given length.
"""
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atlas_jax import tree
from atlas_jax.data.tokenizer import StreamDecoder
from atlas_jax.language.decoding.sampler import check_prompt
from atlas_jax.models import lm
from atlas_jax.models.decoder import Decoder
from atlas_jax.models.language import Language
from atlas_jax.parallel import mesh as meshes

# A prompt is read by pieces of this size, the last one padded: one compilation for all. A decoder reads it
# whole, padded to a multiple.
PIECE_TOKENS = 256


class Engine(NamedTuple):
  """Compiled functions of one model; each row is one document.

  The state they take is used up: it is donated, so copy what is to be kept.
  """

  init: Callable  # (rows=1) -> state of a model that has read nothing
  prefill: Callable  # (params, state, tokens_BT, count_B=None) -> (state, logits_BV after the last token)
  decode: Callable  # (params, state, token_B) -> (state, logits_BV)
  choose: Callable  # (key, logits_BV, temperature, *, top_k=None) -> token_B


def make(language: Language, *, mesh: Mesh | None = None, piece_tokens: int = PIECE_TOKENS,
         room_tokens: int | None = None) -> Engine:
  """Compiles, at first use, what generating needs: one reading of a piece and one of a token.

  Args:
    language: the model.
    mesh: where the parameters live, if on several devices; states and logits are then whole on each.
    piece_tokens: tokens of a prompt read at once.
    room_tokens: of a decoder: the longest text, prompt included.
  """
  if isinstance(language.module, Decoder):
    assert room_tokens is not None  # A decoder keeps all that it read.
    return _cached(language, mesh, piece_tokens, room_tokens)
  return _streaming(language.module, mesh, piece_tokens)


def _streaming(model: lm.LM, mesh: Mesh | None, piece_tokens: int) -> Engine:
  """Makes the engine of a memory model, which reads on and on."""
  def read_piece(params, state, tokens_BT, count_B, logits_BV):
    out = model.apply({"params": params}, tokens_BT, state, count_B=count_B, mode="stream")
    last_BTD = jnp.take_along_axis(out.hidden_BTD, jnp.maximum(count_B - 1, 0)[:, None, None], axis=1)
    scored_BV = lm.logits(params, last_BTD)[:, 0]
    return out.state, jnp.where((count_B > 0)[:, None], scored_BV, logits_BV)

  def read_token(params, state, token_B):
    out = model.apply({"params": params}, token_B[:, None], state, mode="stream")
    return out.state, lm.logits(params, out.hidden_BTD)[:, 0]

  whole = None if mesh is None else meshes.replicated(mesh)
  piece = jax.jit(read_piece, donate_argnums=1, out_shardings=whole)
  zero_state = jax.jit(model.zero_state, static_argnums=0, out_shardings=whole)
  zeros = lambda rows: jnp.zeros((rows, model.vocab_size), jnp.float32)
  blank = jax.jit(zeros, static_argnums=0, out_shardings=whole)

  def prefill(params, state: lm.LMState, tokens_BT, count_B=None):
    tokens_BT, count_B = _prompt(tokens_BT, count_B)
    rows, length = tokens_BT.shape
    logits_BV = blank(rows)
    for start in range(0, length, piece_tokens):
      part_BT = tokens_BT[:, start:start + piece_tokens]
      part_BT = np.pad(part_BT, ((0, 0), (0, piece_tokens - part_BT.shape[1])))
      state, logits_BV = piece(params, state, part_BT, np.clip(count_B - start, 0, piece_tokens), logits_BV)
    return state, logits_BV

  return Engine(
      init=lambda rows=1: zero_state(rows), prefill=prefill,
      decode=jax.jit(read_token, donate_argnums=1, out_shardings=whole),
      choose=jax.jit(choose, static_argnames="top_k", out_shardings=whole))


def _cached(language: Language, mesh: Mesh | None, piece_tokens: int, room_tokens: int) -> Engine:
  """Makes the engine of a decoder; its state is () before the prompt, which is read whole."""
  def score(params, hidden_BD):
    head_DV = language.head(params).astype(hidden_BD.dtype)
    return jnp.dot(hidden_BD, head_DV, preferred_element_type=tree.wide(hidden_BD.dtype))

  def read_prompt(params, tokens_BT, count_B):
    state, hidden_BD = language.start(params, tokens_BT, count_B, room_tokens=room_tokens)
    return state, score(params, hidden_BD)

  def read_token(params, state, token_B):
    state, hidden_BD = language.step(params, state, token_B)
    return state, score(params, hidden_BD)

  whole = None if mesh is None else meshes.replicated(mesh)
  read = jax.jit(read_prompt, out_shardings=whole)

  def prefill(params, state, tokens_BT, count_B=None):
    del state
    tokens_BT, count_B = _prompt(tokens_BT, count_B)
    padded = min(-(-tokens_BT.shape[1] // piece_tokens) * piece_tokens, room_tokens)
    return read(params, np.pad(tokens_BT, ((0, 0), (0, padded - tokens_BT.shape[1]))), count_B)

  return Engine(
      init=lambda rows=1: (), prefill=prefill,
      decode=jax.jit(read_token, donate_argnums=1, out_shardings=whole),
      choose=jax.jit(choose, static_argnames="top_k", out_shardings=whole))


def _prompt(tokens_BT, count_B):
  """Gives the tokens of prompts and how many of each row are real."""
  tokens_BT = np.asarray(tokens_BT, np.int32)
  rows, length = tokens_BT.shape
  count_B = np.full(rows, length, np.int32) if count_B is None else np.asarray(count_B, np.int32)
  if length < 1 or count_B.min() < 1 or count_B.max() > length:
    raise ValueError(f"every row of a prompt needs 1 to {length} tokens, got {count_B.tolist()}; an empty "
                     "prompt is DOC alone")
  return tokens_BT, count_B


def choose(key, logits_BV, temperature, *, top_k: int | None = None):
  """Draws the next token of each row.

  Args:
    key: used once.
    logits_BV: scores.
    temperature: scores are divided by it; 0 takes the best one. Traced.
    top_k: draw among this many best; None: all.

  Returns:
    token_B, int32.
  """
  best_B = jnp.argmax(logits_BV, axis=-1)
  if top_k is not None:
    least_BV = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV >= least_BV, logits_BV, -jnp.inf)
  temperature = jnp.asarray(temperature, logits_BV.dtype)
  drawn_B = jax.random.categorical(key, logits_BV / jnp.maximum(temperature, 1e-6))
  return jnp.where(temperature > 0, drawn_B, best_B).astype(jnp.int32)


def generate(language: Language, params, tokenizer, prompt: str | Sequence[int], *, tokens: int,
             temperature: float = 1.0, top_k: int | None = None, seed: int = 0, mesh: Mesh | None = None,
             end_tokens: Sequence[int] = (), engine: Engine | None = None) -> Iterator[str]:
  """Writes on from a prompt.

  Args:
    language: the model, as it was trained.
    params: of the model, whole.
    tokenizer: as it was trained with: encode, decode_bytes, vocab_size, doc_id.
    prompt: the start of a document, which may be empty; or the ids that stand before what is written.
    tokens: how many to write at most; it ends earlier where the model ends the document.
    temperature: 0 takes the likeliest token, 1 draws as the model predicts.
    top_k: draw among this many likeliest tokens; None: all.
    seed: of the draws; the same seed gives the same text.
    mesh: where the parameters live, if on several devices; every process then calls and gets the same.
    end_tokens: ids that end the text, besides the mark of documents.
    engine: what `make(language, mesh=mesh)` gave, to compile once for many calls.

  Returns:
    An iterator over pieces of text as they come; no piece ends inside a character.

  Raises:
    ValueError: at once, if an argument is out of its range or the tokenizer is not the model's.
  """
  _check(language, tokenizer, tokens, temperature, top_k)
  ids = np.r_[tokenizer.doc_id, tokenizer.encode(prompt)] if isinstance(prompt, str) else prompt
  prompt_T = check_prompt(ids, language.vocab_size, name="prompt")
  _check_room(language, len(prompt_T), tokens)
  if engine is None:
    engine = make(language, mesh=mesh, room_tokens=len(prompt_T) + tokens)
  chosen = _tokens(engine, params, prompt_T, tokens, temperature, top_k, seed)
  return _texts(chosen, tokenizer, {tokenizer.doc_id, *end_tokens})


def _check(language: Language, tokenizer, tokens: int, temperature: float, top_k: int | None) -> None:
  most = language.vocab_size
  if tokens < 1:
    raise ValueError(f"tokens={tokens} must be at least 1")
  if not 0 <= temperature < float("inf"):
    raise ValueError(f"temperature={temperature} must be 0 (the likeliest token) or a positive number")
  if top_k is not None and not 1 <= top_k <= most:
    raise ValueError(f"top_k={top_k} must be in 1..{most}, the vocabulary, or None for all of it")
  # Published models have embeddings to spare.
  if tokenizer.vocab_size > most or tokenizer.vocab_size < most and not isinstance(language.module, Decoder):
    raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens and the model "
                     f"config.model.vocab_size={most}; use the tokenizer saved with the run")


def _check_room(language: Language, prompt_tokens: int, tokens: int) -> None:
  places = language.module.learned_positions if isinstance(language.module, Decoder) else None
  if places is not None and prompt_tokens + tokens > places:
    raise ValueError(f"a prompt of {prompt_tokens} tokens and tokens={tokens} are more than the model's "
                     f"{places} learned positions; ask for fewer")


def _tokens(engine: Engine, params, prompt_T, tokens: int, temperature: float, top_k: int | None, seed: int):
  """Yields one token after another, whatever they are."""
  key = jax.random.key(seed)
  state, logits_BV = engine.prefill(params, engine.init(), prompt_T[None])
  for n in range(tokens):
    token_B = engine.choose(jax.random.fold_in(key, n), logits_BV, np.float32(temperature), top_k=top_k)
    if n + 1 < tokens:
      state, logits_BV = engine.decode(params, state, token_B)  # Runs while the caller has the token.
    yield int(np.asarray(token_B)[0])


def _texts(tokens, tokenizer, ends) -> Iterator[str]:
  """Yields the text of tokens up to one that ends it, never cutting a character in two."""
  decoder = StreamDecoder(tokenizer)
  for token in tokens:
    if token in ends:
      break
    piece = decoder.push([token] if token < tokenizer.vocab_size else [])  # Others stand for no text.
    if piece:
      yield piece
  rest = decoder.flush()
  if rest:
    yield rest
