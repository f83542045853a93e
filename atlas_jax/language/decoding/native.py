"""Our own sampler: prompts are read once, and their completions drawn in one loop on the device."""
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atlas_jax.data.tokenizer import Tokenizer
from atlas_jax.evals import stopping
from atlas_jax.language.decoding import engine as engines
from atlas_jax.language.decoding import sampling, stops
from atlas_jax.language.decoding.sampler import Rollout, SamplingOptions, assemble, check_prompt
from atlas_jax.language.decoding.sampling import SamplingParams
from atlas_jax.models.language import LanguageModel
from atlas_jax.parallel import mesh as meshes

BUCKET_TOKENS = 32  # Small enough that short prompts waste little, large enough that there are few sizes.
PIECE_TOKENS = 16  # With stop strings the host looks after so many ids.
STOPS = 4  # Stop tokens are padded to a multiple of this.


class GenerationRequest(NamedTuple):
  """A request for completions, as traced arrays."""

  settings: SamplingParams
  stop_E: Any  # int32, ids that end a completion, -1 where there is none
  max_tokens: Any  # int32


class GenerationOutput(NamedTuple):
  """Completions as the host reads them; T is the room for them."""

  at: jax.Array  # int32, how many ids are drawn in each row
  done_B: jax.Array  # bool
  length_B: jax.Array  # int32, ids of the completion
  tokens_TB: jax.Array  # int32, of no meaning behind the completion's end
  sampler_logprob_TB: jax.Array  # float32
  full_logprob_TB: jax.Array  # float32


class GenerationState(NamedTuple):
  """Completions half written."""

  state: Any  # of the engine, which has read all but the last id drawn
  key: Any  # [B], see `sampling.row_keys`
  token_B: Any  # int32, drawn last
  seen_BV: jax.Array | None  # bool, ids in prompt and completion; None without a repetition penalty
  written: GenerationOutput


class NativeSampler:
  """Writes with a `LanguageModel`; see `sampler.Sampler`.

  At temperature 0 every `sampler_logprob` is 0, since nothing else could be drawn, and `full_logprob` is that
  of temperature 1.

  Attributes:
    version: of the weights loaded last; None before the first.
    compilations: how many programs were built so far: one that reads prompts and one that writes for each
      size of prompts, of room for completions (both rounded up to few sizes) and of rows, and for filters and
      a penalty being on or off. Nothing else builds one.
  """

  def __init__(self, language: LanguageModel, tokenizer: Tokenizer, mesh: Mesh | None = None, *,
               bucket_tokens: int = BUCKET_TOKENS, piece_tokens: int = PIECE_TOKENS):
    """Takes a model; nothing is compiled before the first `generate`.

    Args:
      language: the model.
      tokenizer: decodes completions; it may have fewer ids than the model, the others have no text.
      mesh: where the parameters live, if on several devices. Rows are split over it where they divide.
        Several processes call alike, and each gets the whole rollout.
      bucket_tokens: lengths of prompts and completions are rounded up to multiples of it; large ones more.
      piece_tokens: ids drawn before stop strings are looked for, if there are any.
    """
    if bucket_tokens < 1 or piece_tokens < 1:
      raise ValueError(f"bucket_tokens={bucket_tokens} and piece_tokens={piece_tokens} must be at least 1")
    self._language = language
    self._tokenizer = tokenizer
    self._mesh = mesh
    self._bucket_tokens = bucket_tokens
    self._piece_tokens = piece_tokens
    self._params: Any = None
    self.version: int | None = None
    self.compilations = 0
    # Only what the host reads is made whole on every device; None leaves the model's state split by its rows.
    whole: Any = None if mesh is None else meshes.replicated(mesh)
    shardings: Any = GenerationState(None, None, None, None, whole)
    self._start = jax.jit(self._read_prompts, static_argnames=("n", "room_tokens", "filtered", "penalised"),
                          out_shardings=shardings)
    self._run = jax.jit(self._write_on, static_argnames="filtered", donate_argnames="writing",
                        out_shardings=shardings)

  def load(self, params: Any, version: int) -> None:
    """Takes weights, which are not copied; see `sampler.Sampler.load`."""
    self._params = params
    self.version = version

  def generate(self, prompts: Sequence[Sequence[int]], options: SamplingOptions, seed: int) -> Rollout:
    """Writes completions; see `sampler.Sampler.generate`.

    Raises:
      ValueError: before the first `load`, for an empty prompt, ids outside the vocabulary, a prompt that
        leaves no room for max_tokens in the model's table of positions, top_k above the vocabulary, or a
        seed that is negative or takes more than 64 bits.
    """
    if self.version is None:
      raise ValueError("the sampler has no weights yet; call load(params, version) first")
    rows = [np.asarray(prompt) for prompt in prompts]
    self._check(rows, options)
    settings = SamplingParams.of(options, self._language.vocab_size)
    words = sampling.root_words(seed)
    if not rows:
      return assemble([], pad_id=self._tokenizer.doc_id)
    # -1 is no id. Padded, so that few numbers of stop tokens, and so few programs, exist.
    stop_E = np.full(round_up(len(options.stop_tokens), least=STOPS), -1, np.int32)
    stop_E[:len(options.stop_tokens)] = options.stop_tokens
    asked = self._put(GenerationRequest(settings, stop_E, np.int32(options.max_tokens)))
    return self._finish(self._write(rows, words, asked, options), len(rows) * options.n, options)

  def _check(self, rows: list[np.ndarray], options: SamplingOptions) -> None:
    vocab_size = self._language.vocab_size
    most = self._language.max_positions
    for at, row in enumerate(rows):
      check_prompt(row, vocab_size, name=f"prompt {at}")
      if most is not None and row.size + options.max_tokens > most:
        raise ValueError(f"prompt {at} has {row.size} ids, which with config.sampler.max_tokens="
                         f"{options.max_tokens} are more than the model's learned_positions={most}; lower "
                         f"max_tokens to {max(most - row.size, 0)}, or leave out long prompts")

  def _put(self, host_tree):
    """Puts what every process has alike on every device."""
    if self._mesh is None:
      return host_tree
    whole = meshes.replicated(self._mesh)

    def place(x):
      # Every process fills its own devices from its own equal copy; nothing is sent.
      return jax.make_array_from_callback(np.shape(x), whole, lambda index: np.asarray(x)[index])

    return jax.tree.map(place, host_tree)

  def _width(self, longest: int) -> int:
    """Returns how many tokens of prompts are read, padding included."""
    width = round_up(longest, least=self._bucket_tokens, steps=2)
    block = self._language.attention_block_tokens
    return width if block is None or width <= block else -(-width // block) * block

  def _write(self, rows: list[np.ndarray], words, asked: GenerationRequest,
             options: SamplingOptions) -> GenerationOutput:
    """Reads prompts and draws until every row is done."""
    width = self._width(max(row.size for row in rows))
    count_N = np.zeros(round_up(len(rows), least=1, steps=4), np.int32)
    tokens_NS = np.zeros((len(count_N), width), np.int32)
    for at, row in enumerate(rows):
      tokens_NS[at, :row.size], count_N[at] = row, row.size
    room_tokens = round_up(options.max_tokens, least=self._bucket_tokens, steps=2)
    writing = self._start(
        self._params, *self._put((tokens_NS, count_N, words)), asked, n=options.n, room_tokens=room_tokens,
        filtered=options.filters, penalised=options.repetition_penalty != 1)
    # Reading the prompts has drawn the first id already.
    if options.max_tokens == 1:
      return writing.written

    def run(writing, end):
      return self._run(self._params, writing, asked, self._put(np.int32(end)),
                       filtered=options.filters)

    # Without strings to look for, the host waits once, for the whole loop; an evaluation looks up in between.
    if not options.stop_strings:
      return _in_pieces(run, writing, options.max_tokens) if stopping.active() else run(
          writing, options.max_tokens).written
    looked = stops.StringStops(self._tokenizer, options.stop_strings, len(rows) * options.n)
    at = 0
    # Texts are made on the host: the device draws a few ids, the host looks for strings in them, in turn.
    # What is drawn behind a string is cut off by `_finish`.
    while True:
      written = writing.written
      upto = int(written.at)
      tokens_TB = np.asarray(written.tokens_TB)
      done_B = looked.push(tokens_TB[at:upto], np.array(written.done_B))
      if done_B.all() or upto == options.max_tokens:
        return written
      at = upto
      writing = writing._replace(written=written._replace(done_B=self._put(done_B)))
      writing = run(writing, min(upto + self._piece_tokens, options.max_tokens))

  def _finish(self, written: GenerationOutput, rows: int, options: SamplingOptions) -> Rollout:
    """Cuts completions at stop strings and puts them together."""
    length_B, tokens_TB, sampler_TB, full_TB = (np.array(x)[..., :rows] for x in written[-4:])
    reasons = []
    texts = []
    for row in range(rows):
      tokens = tokens_TB[:length_B[row], row]
      # The id drawn last decides: one that ends a completion is never drawn before its end.
      stopped = int(tokens[-1]) in options.stop_tokens
      shown = tokens[:-1] if stopped else tokens
      cut = stops.cut(shown, options.stop_strings, self._tokenizer)
      if cut is not None:
        length_B[row], text = cut
      else:
        text = self._tokenizer.decode(stops.known(shown, self._tokenizer))
      reasons.append("stop_string" if cut is not None else "stop_token" if stopped else "length")
      texts.append(text)
    longest = length_B.max()
    real_BT = np.arange(longest)[None, :] < length_B[:, None]

    def trim(x, fill):
      return np.where(real_BT, x[:longest].T, fill)

    return Rollout(
        trim(tokens_TB, np.int32(self._tokenizer.doc_id)), length_B, trim(sampler_TB, np.float32(0)),
        trim(full_TB, np.float32(0)), tuple(reasons), np.full(rows, self.version, np.int32), tuple(texts))

  def _read_prompts(self, params, tokens_NS, count_N, words, asked: GenerationRequest, *, n: int,
                    room_tokens: int, filtered: bool, penalised: bool) -> GenerationState:
    """Reads N prompts, 0 tokens for one that only fills up, and draws the first id of n completions each."""
    # Python runs this when the function is traced, which is when a program is built.
    self.compilations += 1
    prompts, width = tokens_NS.shape
    engine = engines.of(self._language, room_tokens=width + room_tokens)
    # A row that only fills up reads one token, as prefill demands, and is done before it could draw.
    state, logits_NV = engine.prefill(params, None, tokens_NS, jnp.maximum(count_N, 1))
    # Prompts are read once; only then are their rows repeated for the n completions.
    row_B = jnp.repeat(jnp.arange(prompts, dtype=jnp.int32), n)
    number_B = jnp.tile(jnp.arange(n, dtype=jnp.int32), prompts)
    seen_BV = None
    if penalised:
      seen_BV = sampling.seen_ids(tokens_NS, count_N, self._language.vocab_size)[row_B]
    nothing_TB = jnp.zeros((room_tokens, len(row_B)), jnp.float32)
    written = GenerationOutput(
        at=jnp.zeros((), jnp.int32), done_B=count_N[row_B] == 0, length_B=jnp.zeros_like(row_B),
        tokens_TB=nothing_TB.astype(jnp.int32), sampler_logprob_TB=nothing_TB, full_logprob_TB=nothing_TB)
    state = self._split(engine.take_rows(state, row_B), len(row_B))
    keys_B = sampling.row_keys(words, row_B, number_B)
    writing = GenerationState(state, keys_B, jnp.zeros_like(row_B), seen_BV, written)
    return self._draw(writing, logits_NV[row_B], asked, filtered)

  def _write_on(self, params, writing: GenerationState, asked: GenerationRequest, end, *,
                filtered: bool) -> GenerationState:
    """Draws until `end` ids are drawn or all rows are done."""
    self.compilations += 1
    engine = engines.of(self._language)

    def going(writing):
      return (writing.written.at < end) & ~jnp.all(writing.written.done_B)

    def one(writing):
      state, logits_BV = engine.decode(params, writing.state, writing.token_B)
      return self._draw(writing._replace(state=state), logits_BV, asked, filtered)

    return jax.lax.while_loop(going, one, writing)

  def _draw(self, writing: GenerationState, logits_BV, asked: GenerationRequest,
            filtered: bool) -> GenerationState:
    """Draws the next id of every row; those that are done keep what they have."""
    # Rows that are done draw on with the others, since all are computed at once; their length does not grow,
    # so what they write is never read.
    at, done_B, length_B, tokens_TB, sampler_TB, full_TB = writing.written
    drawn, seen_BV = sampling.draw_at(logits_BV, writing.key, at, asked.settings, writing.seen_BV,
                                      filtered=filtered)

    def put(old_TB, new_B):
      return jax.lax.dynamic_update_slice_in_dim(
old_TB, new_B.astype(old_TB.dtype)[None], at, axis=0)

    ends_B = sampling.is_stop(drawn.token_B, asked.stop_E) | (at + 1 >= asked.max_tokens)
    written = GenerationOutput(
        at + 1, done_B | ends_B, length_B + ~done_B, put(tokens_TB, drawn.token_B),
        put(sampler_TB, drawn.sampler_logprob_B), put(full_TB, drawn.full_logprob_B))
    return GenerationState(writing.state, writing.key, drawn.token_B, seen_BV, written)

  def _split(self, state, rows: int):
    """Splits rows of the model's state over the mesh where they divide."""
    if self._mesh is None:
      return state
    spread = meshes.ROW_AXES if rows % meshes.n_row_shards(self._mesh) == 0 else None

    def constrain(axis, leaf):
      # Of the other axes nothing is said: the compiler has placed them.
      axes = [PartitionSpec.UNCONSTRAINED] * leaf.ndim
      axes[axis] = spread
      return jax.lax.with_sharding_constraint(leaf, NamedSharding(self._mesh, PartitionSpec(*axes)))

    return engines.by_rows(constrain, self._language.row_axes, state)


def _in_pieces(run, writing: GenerationState, max_tokens: int) -> GenerationOutput:
  """Writes like one call to the end, and checks now and then whether to stop."""
  for end in range(stopping.PIECE_TOKENS, max_tokens + stopping.PIECE_TOKENS, stopping.PIECE_TOKENS):
    stopping.check()
    writing = run(writing, min(end, max_tokens))
    if np.asarray(writing.written.done_B).all():
      break
  return writing.written


def round_up(size: int, *, least: int, steps: int = 1) -> int:
  """Rounds up to a multiple of `least`, and larger sizes further, so that each doubling has `steps` sizes."""
  unit = least
  while size > 2 * steps * unit:
    unit *= 2
  return max(-(-size // unit), 1) * unit
