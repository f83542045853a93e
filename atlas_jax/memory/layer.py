"""The layer around a memory rule: projections, convolutions, gates, heads, and the state between calls."""
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.kernels import platform as platforms
from atlas_jax.memory import norms, on_chip, projections, rules, scan, statistics, unwritten
from atlas_jax.memory.gates import TokenGates
from atlas_jax.memory.projections import ProjectionWeights, conv_mask, has_key, kept_tail, last_valid, project
from atlas_jax.memory.types import SAVED_NAMES, Learned, Running, by_steps

LARGE = 2**15  # fast weights of a head from which on a CPU reads memories in turn, not side by side
NO_DOC = -2  # the document of a state that has read nothing
FORMS = ("auto", "reference", "chunked", "pallas")
CHOICES = {"qkv_source": ("own", "attention"), "activation": ("silu", "none"),
           "value_source": ("input", "token"),
           "conv_init": ("identity", "ngram"), "initial": ("auto", "learned", "zero"),
           "read_norm": ("rms", "none")}


class MemoryLayerState(NamedTuple):
  """State of a memory layer from call to call; every leaf leads with B."""

  running: Running  # memory and base: leaves [B, H, ...]; position [B]
  tail: jax.Array  # [B, lags, H, channels] last inputs of the convolutions, see `projections.ProjectionForm`


class Memory(nn.Module):
  """A neural memory that reads and writes every token.

  Attributes:
    rule, options: the memory rule by name, and its own options.
    heads, key_dim, value_dim: number and widths of memory heads.
    chunk_size: tokens whose writes are computed from one base state.
    conv_taps: width of the causal convolutions on queries, keys and values.
    retention_init, momentum_init, write_rate_init, write_rate_max: see `GateStarts`; None: the rule's own.
    half_life_spread: see `TokenGates`.
    remat_chunks: chunks whose inner values the backward pass computes again together, all but their products
      with the fast weights; None keeps all.
    impl: how packed texts are read: "reference" (the rule's steps, token by token; streams too), "chunked"
      (its chunks), "pallas" (one kernel, for rules that have it), or "auto" (chunked, until a measurement
      shows the kernel ahead). It changes speed, not results; only surprise of the reference is another norm.
    shift, shared_qk, activation, value_source: see `projections.ProjectionForm`. With the shift a document's
      first token neither writes nor reads: there is no context before it.
    qkv_source: "own", or "attention": those of the attention beside it, whose queries, keys and values before
      rotation enter the convolutions; its heads are the memory's, and of the same width.
    conv_init: how the convolutions of queries and keys start: "identity" (near the token itself), or "ngram"
      (signatures of the last tokens, see `projections.ngram_taps`).
    initial: fast weights that a document starts with: "learned", or "zero", which rules of one matrix can be
      written from; "auto" is zero for them, and learned for all others and where nothing is written.
    read_norm: "rms" brings a head's reads to unit mean square, however little was recalled; "none" keeps
      their length, times the root of value_dim: a perfect recall has unit mean square, an empty memory adds
      nothing.
    writes: False writes nothing, ever: every token reads the learned start, behind the same keys, gates and
      convolutions, in every mode. Gates and values of the memory then have no gradient; that they are there
      keeps the number of parameters. See `unwritten`.
  """

  rule: str
  options: Mapping
  heads: int
  key_dim: int
  value_dim: int
  chunk_size: int
  conv_taps: int
  retention_init: float | None = None
  momentum_init: float | None = None
  write_rate_init: float | None = None
  write_rate_max: float | None = None
  half_life_spread: float = 1.0
  remat_chunks: int | None = None
  impl: str = "auto"
  shift: bool = False
  shared_qk: bool = False
  activation: str = "silu"
  value_source: str = "input"
  qkv_source: str = "own"
  conv_init: str = "identity"
  initial: str = "learned"
  read_norm: str = "rms"
  writes: bool = True

  def build_rule(self):
    """Returns the rule for one head.

    Raises:
      ValueError: if the rule does not take impl, initial or a gate's start, or a choice is unknown.
    """
    rule = rules.load(self.rule, key_dim=self.key_dim, value_dim=self.value_dim, chunk_size=self.chunk_size,
                      **self.options)
    rule = rule._replace(starts=rule.starts.replaced(
        self.rule, retention=self.retention_init, momentum=self.momentum_init,
        write_rate=self.write_rate_init, write_rate_max=self.write_rate_max))
    forms = FORMS if rule.kernel else FORMS[:-1]
    if self.impl not in forms:
      raise ValueError(f"config.model.memory.impl={self.impl!r} is not offered by config.model.memory.rule="
                       f"{self.rule!r} with its options; supported are {', '.join(forms)}")
    for name, known in CHOICES.items():
      if (value := getattr(self, name)) not in known:
        raise ValueError(f"config.model.memory.{name}={value!r} is unknown; known are {', '.join(known)}")
    if self.initial == "zero" and not _one_matrix(rule):
      raise ValueError("config.model.memory.initial='zero' starts a memory that cannot be written: config."
                       f"model.memory.rule={self.rule!r} with its options has more than one matrix, and "
                       "where all are zero none has a gradient; set initial='learned', or a depth of 1")
    if self.initial == "zero" and not self.writes:
      raise ValueError("config.model.memory.writes=False reads the start of the memory, and config.model."
                       "memory.initial='zero' leaves nothing in it; set initial='learned'")
    return by_steps(rule) if self.impl == "reference" and self.writes else rule

  @property
  def form(self) -> projections.ProjectionForm:
    """Returns how queries, keys and values are made."""
    return projections.ProjectionForm(self.key_dim, self.value_dim, self.conv_taps, self.shift,
                                      self.shared_qk, self.activation, self.value_source)

  def zero_state(self, rows: int, dtype=jnp.float32) -> MemoryLayerState:
    """Returns the state of a layer that has read nothing; the first token starts it from the learned one."""
    rule = self.build_rule()
    abstract = jax.eval_shape(lambda key: scan.start(rule, rule.init(key)), jax.random.key(0))

    def deep(x):
      return jnp.zeros((rows, self.heads, *x.shape), x.dtype)

    memory, base = jax.tree.map(deep, (abstract.memory, abstract.base))
    running = Running(memory, base, jnp.zeros((rows,), jnp.int32))
    tail = jnp.zeros((rows, self.form.lags, self.heads, self.form.channels), dtype)
    return MemoryLayerState(running, tail)

  @nn.compact
  def __call__(self, x_BTD, state: MemoryLayerState, doc_BT, last_doc_B, count_B, *, mode: str,
               n_chunks: int | None = None, token_BTD=None, writes=None, qkv_BTHE=None):
    """Reads T tokens.

    Args:
      x_BTD: the layer's input.
      state: what an earlier call returned, or `zero_state`.
      doc_BT: document of each token, -1 at padding. In mode "packed" a document starts a chunk, and padding
        only ends one: a document that goes on in the next call must not be padded in this one.
      last_doc_B: document of the last real token of the earlier call, NO_DOC if there was none.
      count_B: modes but "packed": how many of the T tokens are real, the first ones; None: all.
      mode: "packed" (T a multiple of chunk_size; the memory starts anew where the document changes at a
        chunk's start), "stream" (any T from any position; all tokens are of one document), "documents"
        (the same, but documents begin anywhere), or "recall" (as "stream", but nothing is written: tokens
        read with the base that the state has; padding may follow).
      n_chunks: mode "documents": see `scan.chunks_of_documents`.
      token_BTD: the tokens themselves, as their embeddings, where value_source is "token"; None: the input.
      writes: mode "packed": [] bool, whether tokens write; where they do not, the memory stands still, also
        in what a rule does at rate 0 or at a chunk's end. Traced. None: they do.
      qkv_BTHE: attention's queries, keys and values side by side, where qkv_source is "attention".

    Returns:
      out_BTHM (float32, see `read_norm`), the new state, and stats of scalars.
    """
    rule = self.build_rule()
    wide = tree.accumulation_dtype(x_BTD.dtype)
    weights = self._weights(rule, x_BTD.shape[-1], wide)
    state = state._replace(running=tree.cast(state.running, wide))  # A loop's carry keeps its dtype.
    source = (self._of_attention(x_BTD, qkv_BTHE), self._token(x_BTD, token_BTD))
    if mode == "recall":
      return self._unwritten(unwritten.recall, rule, weights, state, source, doc_BT, last_doc_B, count_B)
    # From the layer's input, before convolutions and shift: a gate is of the token that writes.
    gates_BTH = TokenGates(self.heads, rule.starts, self.half_life_spread, rule.uses, rule.gates,
                           name="gates")(x_BTD)
    gates = jax.tree.map(lambda g: g.astype(wide), gates_BTH)
    # Only here, behind all parameters: the control that never writes has the very same ones.
    if not self.writes:
      return self._unwritten(unwritten.read, rule, weights, state, source, doc_BT, last_doc_B, count_B)
    if mode == "packed":
      state, out, end = self._packed(rule, weights, state, source, gates, doc_BT, last_doc_B, writes)
      self.sow("intermediates", "tokens", statistics.of_tokens(gates, out))
      stats = statistics.of_chunks(rule, weights.learned.slow, gates, doc_BT, out, state.running, end)
      return self._read(out.out_CM), state, stats
    if writes is not None:
      raise ValueError(f"writes are shut off in mode='packed' alone, not in mode={mode!r}; leave writes None")
    read = self._read_stream
    if mode == "documents":
      read = functools.partial(self._read_documents, n_chunks)
    out_BTHM, state = self._stream(read, rule, weights, state, source, gates, doc_BT, last_doc_B, count_B)
    return self._read(out_BTHM), state, {}

  def _read(self, out_BTHM):
    return norms.rms_normalize(out_BTHM) if self.read_norm == "rms" else out_BTHM * self.value_dim**0.5

  def _token(self, x_BTD, token_BTD):
    """Returns the tokens themselves at unit mean square, where values are made of them; else None."""
    token_BTD = x_BTD if token_BTD is None else token_BTD
    return norms.rms_normalize(token_BTD) if self.value_source == "token" else None

  def _of_attention(self, x_BTD, qkv_BTHE):
    """Returns what enters the convolutions where attention has projected it; else the input."""
    if self.qkv_source == "own":
      return x_BTD
    if qkv_BTHE is None:
      raise ValueError("config.model.memory.qkv_source='attention' needs an attention beside the memory, and "
                       "there is none; set qkv_source='own'")
    return projections.of_attention(self.form, qkv_BTHE)

  def _weights(self, rule, width: int, wide) -> ProjectionWeights:
    """Returns the layer's parameters but the gates'; constants of the rule only where it has any."""
    shape = (self.heads, self.form.channels)
    init = nn.initializers.normal(width**-0.5)
    kernel: Any = ()
    if self.qkv_source == "own":
      kernel = self.param("qkv_kernel", init, (width, *shape), jnp.float32)
    start: Any = projections.identity_taps
    if self.conv_init == "ngram":
      start = functools.partial(projections.ngram_taps, self.form)
    taps = self.param("conv_kernel", start, (self.conv_taps, *shape), jnp.float32)
    values: Any = ()
    if self.value_source == "token":
      values = self.param("value_kernel", init, (width, self.heads, self.value_dim), jnp.float32)
    slow: Mapping = {}
    if jax.eval_shape(rule.init, jax.random.key(0)).slow:
      slow = self.param("slow", _per_head(lambda key: rule.init(key).slow, self.heads))
    learned = Learned(self._initial_fast(rule), slow)
    return ProjectionWeights(kernel, taps, values, jax.tree.map(lambda w: w.astype(wide), learned))

  def _initial_fast(self, rule):
    auto_learns = not (_one_matrix(rule) and self.writes)
    if self.initial == "learned" or self.initial == "auto" and auto_learns:
      return self.param("initial_fast", _per_head(lambda key: rule.init(key).fast, self.heads))
    return self.zero_fast()  # A constant, no parameter.

  def zero_fast(self):
    """Returns fast weights of zero, every leaf [H, ...]."""
    abstract = jax.eval_shape(lambda key: self.build_rule().init(key).fast, jax.random.key(0))
    return jax.tree.map(lambda w: jnp.zeros((self.heads, *w.shape), w.dtype), abstract)

  def _packed(self, rule, weights, state, source, gates, doc_BT, last_doc_B, writes):
    """Reads whole chunks, by stretches of `remat_chunks` if it is given.

    Returns:
      the state, ChunkOut with leaves [B, T, H, ...], and the tokens of the last chunk.
    """
    length = doc_BT.shape[1]
    stretch = length if self.remat_chunks is None else self.remat_chunks * self.chunk_size
    # A length that they do not divide is read as one: stretches change nothing but what training keeps.
    stretch = length if length % stretch else stretch

    def body(carry, xs):
      state, last_doc_B = carry
      source, gates, doc_BT = xs
      mask_BTS = conv_mask(doc_BT, last_doc_B, self.form.lags)
      tokens, x_BTHE = project(self.form, weights, rule.lift, *source, state.tail, mask_BTS)
      by_head = jax.tree.map(lambda g: jnp.moveaxis(g, 2, 1), gates)
      end_BN = _last_doc(doc_BT, last_doc_B, self.chunk_size)
      read_BT = (doc_BT >= 0) & has_key(self.form, mask_BTS)
      write_BT = read_BT if writes is None else read_BT & writes  # Unwritten tokens still read.
      running, out = self._read_packed(rule, state.running, weights.learned, tokens, by_head, doc_BT,
                                       write_BT, read_BT, last_doc_B, end_BN)
      out = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 2), out)  # [B, H, T, ...] to [B, T, H, ...]
      end = jax.tree.map(lambda x: x[:, :, -self.chunk_size:], tokens)  # For statistics alone.
      return (MemoryLayerState(running, last_valid(state.tail, x_BTHE, None)), end_BN[:, -1]), (out, end)

    xs = (source, gates, doc_BT)
    if stretch == length:
      (state, _), (out, end) = body((state, last_doc_B), xs)
      return state, out, end

    def split(x):
      return jnp.moveaxis(x.reshape(x.shape[0], -1, stretch, *x.shape[2:]), 1, 0)

    def join(x):
      return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], length, *x.shape[3:])

    saved = jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES)
    # Kept are products with fast weights and their gradients: what costs the most to find again.
    body = jax.checkpoint(body, policy=saved, prevent_cse=False)
    (state, _), (out, end) = jax.lax.scan(body, (state, last_doc_B), jax.tree.map(split, xs))
    return state, jax.tree.map(join, out), jax.tree.map(lambda x: x[-1], end)

  def _read_packed(self, rule, running, learned, tokens, gates, doc_BT, write_BT, read_BT, last_doc_B,
                   end_BN):
    doc_BN = doc_BT[:, ::self.chunk_size]
    before_BN = jnp.concatenate([last_doc_B[:, None], end_BN[:, :-1]], axis=1)
    reset_BN = (doc_BN != before_BN) & (doc_BN >= 0)  # A chunk that begins with padding resets nothing.

    def head(memory, learned, tokens, gates, write_T, reset_N, read_T):
      return scan.scan_packed(rule, memory, learned, tokens, gates, write_T, reset_N, read_T=read_T,
                              chunk_size=self.chunk_size, remat=self.remat_chunks is not None)

    read = jax.vmap(jax.vmap(head, in_axes=(0, 0, 0, 0, None, None, None)))  # Rows, then heads of a row.
    if self.impl == "pallas":
      read = functools.partial(on_chip.over_heads, rule.kernel, chunk_size=self.chunk_size)
    elif platforms.current() == "cpu" and _floats_per_head(learned.fast) >= LARGE:
      read = functools.partial(_in_turn, head)
    # Each row gets its own copy: the gradients of all rows then meet once, not once per chunk.
    per_row = jax.tree.map(lambda w: jnp.broadcast_to(w, (doc_BT.shape[0], *w.shape)), learned)
    memory, out = read(running.memory, per_row, tokens, gates, write_BT, reset_BN, read_BT)
    base = jax.vmap(jax.vmap(rule.base_of), in_axes=(None, 0))(learned.slow, memory)  # To read on from.
    return Running(memory, base, running.position), out

  def _stream(self, read, rule, weights, state, source, gates, doc_BT, last_doc_B, count_B):
    """Reads any number of tokens, from any position of a chunk, by `_read_stream` or `_read_documents`."""
    mask_BTS = conv_mask(doc_BT, last_doc_B, self.form.lags)
    tokens, x_BTHE = project(self.form, weights, rule.lift, *source, state.tail, mask_BTS)
    by_head = jax.tree.map(lambda g: jnp.moveaxis(g, 2, 1), gates)
    write_BT = jnp.broadcast_to(has_key(self.form, mask_BTS), doc_BT.shape)
    running, out_BHTM = read(rule, state.running, weights.learned, tokens, by_head, doc_BT, write_BT,
                             last_doc_B, count_B)
    tail = kept_tail(state.tail, x_BTHE, doc_BT, last_doc_B, count_B)
    return jnp.moveaxis(out_BHTM, 1, 2), MemoryLayerState(running, tail)

  def _read_stream(self, rule, running, learned, tokens, gates, doc_BT, write_BT, last_doc_B, count_B):
    rows, length = doc_BT.shape
    count_B = jnp.full((rows,), length, jnp.int32) if count_B is None else count_B

    def head(memory, base, learned, position, tokens, gates, new, write_T, count):
      fresh = scan.start(rule, learned)
      held = Running(memory, base, position)
      running = jax.tree.map(lambda a, b: jnp.where(new, a, b), fresh, held)
      return scan.scan_stream(rule, running, learned.slow, tokens, gates, count, write_T=write_T,
                              chunk_size=self.chunk_size)

    heads = jax.vmap(head, in_axes=(0, 0, 0, None, 0, 0, None, None, None),
                     out_axes=(Running(0, 0, None), 0))
    lifted = jax.vmap(heads, in_axes=(0, 0, None, 0, 0, 0, 0, 0, 0))
    new_B = (last_doc_B != doc_BT[:, 0]) & (count_B > 0)  # A row without tokens begins nothing.
    return lifted(running.memory, running.base, learned, running.position, tokens, gates, new_B, write_BT,
                  count_B)

  def _read_documents(self, n_chunks, rule, running, learned, tokens, gates, doc_BT, write_BT, last_doc_B,
                      count_B):
    if count_B is not None:
      at_T = jnp.arange(doc_BT.shape[1], dtype=jnp.int32)
      doc_BT = jnp.where(at_T[None] < count_B[:, None], doc_BT, -1)

    def head(memory, base, learned, position, tokens, gates, doc_T, write_T, last_doc):
      running = Running(memory, base, position)
      return scan.scan_documents(rule, running, learned, tokens, gates, doc_T, last_doc, write_T=write_T,
                                 chunk_size=self.chunk_size, n_chunks=n_chunks)

    heads = jax.vmap(head, in_axes=(0, 0, 0, None, 0, 0, None, None, None), out_axes=(Running(0, 0, None), 0))
    rows = jax.vmap(heads, in_axes=(0, 0, None, 0, 0, 0, 0, 0, 0))
    return rows(running.memory, running.base, learned, running.position, tokens, gates, doc_BT, write_BT,
                last_doc_B)

  def _unwritten(self, read, rule, weights, state, source, doc_BT, last_doc_B, count_B):
    """Reads any number of tokens and writes none of them; `read` is a function of `unwritten`."""
    if count_B is not None:
      at_T = jnp.arange(doc_BT.shape[1], dtype=jnp.int32)
      doc_BT = jnp.where(at_T[None] < count_B[:, None], doc_BT, -1)
    read = read if self.writes else unwritten.read
    mask_BTS = conv_mask(doc_BT, last_doc_B, self.form.lags)
    tokens, x_BTHE = project(self.form, weights, None, *source, state.tail, mask_BTS)
    running, out_BHTM = read(rule, weights.learned, state.running, tokens, doc_BT, last_doc_B,
                             chunk_size=self.chunk_size)
    real_BT = (doc_BT >= 0) & has_key(self.form, mask_BTS)
    out_BTHM = jnp.moveaxis(out_BHTM, 1, 2) * real_BT[..., None, None].astype(out_BHTM.dtype)
    tail = kept_tail(state.tail, x_BTHE, doc_BT, last_doc_B, count_B)
    stats = {"fast_norm_mean": jax.lax.stop_gradient(statistics.mean_norm(running.memory.fast))}
    return self._read(out_BTHM), MemoryLayerState(running, tail), stats


def _floats_per_head(fast) -> int:
  return sum(math.prod(w.shape[1:]) for w in jax.tree.leaves(fast))


def _in_turn(head, memory, learned, tokens, gates, write_BT, reset_BN, read_BT):
  """Reads one memory after the other, so that its weights stay in a core's cache from chunk to chunk."""
  rows, heads = tokens.q.shape[:2]

  def of_heads(x):
    return jnp.repeat(x[:, None], heads, axis=1)

  every = (memory, learned, tokens, gates, of_heads(write_BT), of_heads(reset_BN), of_heads(read_BT))
  flat = jax.tree.map(lambda x: x.reshape(rows * heads, *x.shape[2:]), every)
  read = jax.lax.map(lambda one: head(*one), flat)
  return jax.tree.map(lambda x: x.reshape(rows, heads, *x.shape[1:]), read)


def _per_head(init, heads: int):
  return lambda key: jax.vmap(init)(jax.random.split(key, heads))


def _one_matrix(rule) -> bool:
  """Tells whether a rule's fast weights are one matrix, which has a gradient also where it is zero."""
  fast = jax.eval_shape(rule.init, jax.random.key(0)).fast
  return isinstance(fast, Mapping) and set(fast) == {"w0"}  # A bias would be a weight of its own, "b0".


def _last_doc(doc_BT, last_doc_B, chunk_size):
  """Returns the document of the last real token up to the end of each chunk; [B, N]."""
  first_BN = doc_BT[:, ::chunk_size]
  # A document starts its chunk, so a chunk's first token names its document unless the chunk is all padding.
  def body(last_B, first_B):
    last_B = jnp.where(first_B >= 0, first_B, last_B)
    return last_B, last_B
  _, last_NB = jax.lax.scan(body, last_doc_B, first_BN.T)
  return last_NB.T
