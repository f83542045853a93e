"""Text that goes on from a prompt, piece by piece as it is drawn."""
from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from atlas_jax.data.tokenizer import StreamDecoder
from atlas_jax.evals import stopping
from atlas_jax.language.decoding import engine as engines
from atlas_jax.language.decoding import sampling
from atlas_jax.language.decoding.engine import Engine
from atlas_jax.language.decoding.sampler import SamplingOptions, check_prompt
from atlas_jax.models.language import LanguageModel


def generate(language: LanguageModel, params, tokenizer, prompt: str | Sequence[int], *, tokens: int,
             temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
             min_p: float | None = None, repetition_penalty: float = 1.0, seed: int = 0,
             mesh: Mesh | None = None, end_tokens: Sequence[int] = (),
             engine: Engine | None = None) -> Iterator[str]:
  """Writes on from a prompt.

  Ids are drawn as the sampler draws them for the first completion of the first prompt, see `sampling`.

  Args:
    language: the model, as it was trained.
    params: of the model, whole.
    tokenizer: as it was trained with: encode, decode_bytes, vocab_size, doc_id.
    prompt: the start of a document, which may be empty; or the ids that stand before what is written.
    tokens: how many to write at most; it ends earlier where the model ends the document.
    temperature: 0 takes the likeliest token, 1 draws as the model predicts.
    top_k: draw among this many likeliest tokens; None: all.
    top_p, min_p, repetition_penalty: see `sampler.SamplingOptions`.
    seed: of the draws; the same seed gives the same text.
    mesh: where the parameters live, if on several devices; every process then calls and gets the same.
    end_tokens: ids that end the text, besides the mark of documents.
    engine: what `engine.make(language, mesh=mesh)` gave, to compile once for many calls.

  Returns:
    An iterator over pieces of text as they come; no piece ends inside a character.

  Raises:
    ValueError: at once, if an argument is out of its range or the tokenizer is not the model's.
  """
  _check(language, tokenizer, tokens, temperature, top_k)
  options = SamplingOptions(max_tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
                            repetition_penalty=repetition_penalty)
  key_B = sampling.text_key(seed)
  # A text begins a document, as every text did in training.
  ids = np.r_[tokenizer.doc_id, tokenizer.encode(prompt)] if isinstance(prompt, str) else prompt
  prompt_T = check_prompt(ids, language.vocab_size, name="prompt")
  _check_room(language, len(prompt_T), tokens)
  if engine is None:
    # No more room than this text needs; an engine that is handed over has been given its own.
    engine = engines.make(language, mesh=mesh, room_tokens=len(prompt_T) + tokens)
  chosen = _tokens(engine, params, prompt_T, options, key_B, language.vocab_size)
  return _texts(chosen, tokenizer, {tokenizer.doc_id, *end_tokens})


def _check(language: LanguageModel, tokenizer, tokens: int, temperature: float, top_k: int | None) -> None:
  most = language.vocab_size
  if tokens < 1:
    raise ValueError(f"tokens={tokens} must be at least 1")
  if not 0 <= temperature < float("inf"):
    raise ValueError(f"temperature={temperature} must be 0 (the likeliest token) or a positive number")
  if top_k is not None and not 1 <= top_k <= most:
    raise ValueError(f"top_k={top_k} must be in 1..{most}, the vocabulary, or None for all of it")
  # Pretrained models have ids to spare; a model trained here has those of its tokenizer.
  if tokenizer.vocab_size > most or tokenizer.vocab_size < most and not language.has_hf_form:
    raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens and the model "
                     f"config.model.vocab_size={most}; use the tokenizer saved with the run")


def _check_room(language: LanguageModel, length: int, tokens: int) -> None:
  most = language.max_positions
  if most is not None and length + tokens > most:
    raise ValueError(f"a prompt of {length} tokens and tokens={tokens} are more than the model's "
                     f"{most} learned positions; ask for fewer")


def _tokens(engine: Engine, params, prompt_T, options: SamplingOptions, key_B,
            vocab_size: int) -> Iterator[int]:
  """Yields one token after another, whatever they are."""
  settings = sampling.SamplingParams.of(options, vocab_size)
  # The penalty is for ids of the prompt as well.
  seen_BV = None
  if options.repetition_penalty != 1:
    seen_BV = np.zeros((1, vocab_size), bool)
    seen_BV[0, prompt_T] = True
  state, logits_BV = engine.prefill(params, engine.init(), prompt_T[None])
  for n in range(options.max_tokens):
    stopping.check()
    drawn, seen_BV = engine.draw(logits_BV, key_B, np.int32(n), settings, seen_BV, filtered=options.filters)
    # The last id needs no state behind it.
    if n + 1 < options.max_tokens:
      state, logits_BV = engine.decode(params, state, drawn.token_B)  # Runs while the caller has the token.
    yield int(np.asarray(drawn.token_B)[0])


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
