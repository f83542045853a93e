"""Reading a prompt and writing on, token by token, with a state of fixed size however long the text."""
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atlas_jax.data.tokenizer import StreamDecoder
from atlas_jax.models import lm
from atlas_jax.parallel import mesh as meshes

PIECE_TOKENS = 256  # A prompt is read by pieces of this size, the last one padded: one compilation for all.


class Engine(NamedTuple):
  """Compiled functions of one model; each row is one document.

  The state they take is used up: it is donated, so copy what is to be kept.
  """

  init: Callable  # (rows=1) -> state of a model that has read nothing
  prefill: Callable  # (params, state, tokens_BT, count_B=None) -> (state, logits_BV after the last token)
  decode: Callable  # (params, state, token_B) -> (state, logits_BV)
  choose: Callable  # (key, logits_BV, temperature, *, top_k=None) -> token_B


def make(model: lm.LM, *, mesh: Mesh | None = None, piece_tokens: int = PIECE_TOKENS) -> Engine:
  """Compiles, at first use, what generating needs: one reading of a piece and one of a token.

  Args:
    model: any that `lm.LM` builds.
    mesh: where the parameters live, if on several devices; states and logits are then whole on each.
    piece_tokens: tokens of a prompt read at once.
  """

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
    tokens_BT = np.asarray(tokens_BT, np.int32)
    rows, length = tokens_BT.shape
    count_B = np.full(rows, length, np.int32) if count_B is None else np.asarray(count_B, np.int32)
    if length < 1 or count_B.min() < 1 or count_B.max() > length:
      raise ValueError(f"every row of a prompt needs 1 to {length} tokens, got {count_B.tolist()}; an empty "
                       "prompt is DOC alone")
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


def generate(model: lm.LM, params, tokenizer, prompt: str, *, tokens: int, temperature: float = 1.0,
             top_k: int | None = None, seed: int = 0, mesh: Mesh | None = None,
             engine: Engine | None = None) -> Iterator[str]:
  """Writes on from a prompt, as the start of a document.

  Args:
    model: as it was trained.
    params: of the model.
    tokenizer: as it was trained with: encode, decode_bytes, vocab_size, doc_id.
    prompt: may be empty.
    tokens: how many to write at most; it ends earlier where the model ends the document.
    temperature: 0 takes the likeliest token, 1 draws as the model predicts.
    top_k: draw among this many likeliest tokens; None: all.
    seed: of the draws; the same seed gives the same text.
    mesh: where the parameters live, if on several devices; every process then calls and gets the same.
    engine: what `make(model, mesh=mesh)` gave, to compile once for many calls.

  Returns:
    An iterator over pieces of text as they come; no piece ends inside a character.

  Raises:
    ValueError: at once, if an argument is out of its range or the tokenizer is not the model's.
  """
  _check(model, tokenizer, tokens, temperature, top_k)
  prompt_T = np.r_[tokenizer.doc_id, tokenizer.encode(prompt)].astype(np.int32)
  engine = make(model, mesh=mesh) if engine is None else engine
  chosen = _tokens(engine, params, prompt_T, tokens, temperature, top_k, seed)
  return _texts(chosen, tokenizer)


def _check(model: lm.LM, tokenizer, tokens: int, temperature: float, top_k: int | None) -> None:
  if tokens < 1:
    raise ValueError(f"tokens={tokens} must be at least 1")
  if not 0 <= temperature < float("inf"):
    raise ValueError(f"temperature={temperature} must be 0 (the likeliest token) or a positive number")
  if top_k is not None and not 1 <= top_k <= model.vocab_size:
    raise ValueError(f"top_k={top_k} must be in 1..{model.vocab_size}, the vocabulary, or None for all of it")
  if tokenizer.vocab_size != model.vocab_size:
    raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens and the model "
                     f"config.model.vocab_size={model.vocab_size}; use the tokenizer saved with the run")


def _tokens(engine: Engine, params, prompt_T, tokens: int, temperature: float, top_k: int | None, seed: int):
  """Yields one token after another, whatever they are."""
  key = jax.random.key(seed)
  state, logits_BV = engine.prefill(params, engine.init(), prompt_T[None])
  for n in range(tokens):
    token_B = engine.choose(jax.random.fold_in(key, n), logits_BV, np.float32(temperature), top_k=top_k)
    if n + 1 < tokens:
      state, logits_BV = engine.decode(params, state, token_B)  # Runs while the caller has the token.
    yield int(np.asarray(token_B)[0])


def _texts(tokens, tokenizer) -> Iterator[str]:
  """Yields the text of tokens up to DOC, never cutting a character in two."""
  decoder = StreamDecoder(tokenizer)
  for token in tokens:
    if token == tokenizer.doc_id:
      break
    piece = decoder.push([token])
    if piece:
      yield piece
  rest = decoder.flush()
  if rest:
    yield rest
