"""A decoder with sliding-window attention and a neural memory that is trained while it reads."""
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax.fields import block_numbers, grid_of
from atlas_jax.kernels.vocab_loss import vocab_loss
from atlas_jax.memory import rules
from atlas_jax.memory.layer import NO_DOC, Memory
from atlas_jax.models import blocks, head, inner, mixing, ngrams, ring, stacks
from atlas_jax.models.inner import InnerReader
from atlas_jax.models.layers import RMSNorm, SwiGLU
from atlas_jax.models.memories import learned_memory, with_learned
from atlas_jax.models.mixing import BlockFields, BlockState, Call, Mix
from atlas_jax.models.pieces import last_document
from atlas_jax.models.stacks import Read, Stack
from atlas_jax.parallel import by_rows

__all__ = ["LM", "LMOut", "LMState", "build", "learned_memory", "with_learned"]

MODES = ("packed", "stream")
PLAIN = "none"  # The mix of blocks that config.model.memory_layers leaves out.
# Axes of its leaves that are split over `tensor`, see `models.placement`.
TENSOR_AXES = ((r"(ngram_)?embed", (-2, -1)),)  # V or rows of a table, D


class LMState(NamedTuple):
  """State of a decoder from call to call, of fixed size; every leaf leads with B, then depth."""

  attention: Any  # [B, blocks with attention, ...], see `BlockState`; () without attention; or `ring.Rings`
  memory: Any  # [B, blocks with a memory, ...], or an `inner.InnerState`; () without memory; see `with_rings`
  doc_B: jax.Array  # document of the last real token, NO_DOC if there was none
  ngram: Any = ()  # [B, max_n - 1] its last tokens, see `ngrams.lookups`; () without embeddings of n-grams


class LMOut(NamedTuple):
  """The outcome of reading."""

  hidden_BTD: jax.Array  # normalised vectors, to be scored by `head`
  state: LMState
  stats: dict  # NAME/layer_00 and so on -> [], of blocks with a memory; empty in mode "stream"
  # Means over real tokens and heads, [blocks with a memory], as far as the mix and the rule have them; with a
  # gradient. "read": the mix's gate before its floor; "write": gates of writing over their bounds, whether or
  # not memories are written. Empty in mode "stream".
  usage: dict


class Block(nn.Module):
  """A mix of attention and memory, then a feed-forward layer; each added to its input.

  Attributes:
    fields: of the block.
    memory_mix: how attention and memory are mixed, a file in models/blocks.
  """

  fields: BlockFields
  memory_mix: str

  @nn.compact
  def __call__(self, x_BTD, state: BlockState, call: Call):
    """Returns x_BTD, (state, stats)."""
    x_BTD = by_rows.keep(x_BTD)
    h_BTD = RMSNorm(name="norm_mix")(x_BTD)
    mixed_BTD, state, stats = blocks.load(self.memory_mix).mix(self.fields, x_BTD, h_BTD, state, call)
    h_BTD = RMSNorm(name="norm_mlp")(x_BTD + mixed_BTD)
    fed_BTD = SwiGLU(self.fields.ff_width, self.fields.out_scale, name="mlp")(h_BTD)
    return by_rows.keep(x_BTD + mixed_BTD + fed_BTD), (state, stats)


REMAT = {
    "none": None,
    # Products with a batch axis, attention's and memory's, grow with window and chunk: they are found again.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "block": jax.checkpoint_policies.nothing_saveable,
}


class LM(nn.Module):
  """A language model that reads text in segments and remembers what it read.

  Attributes:
    vocab_size, width, depth, heads, ff_width: the usual.
    window_tokens: how far attention sees, the token itself included.
    memory_mix: how memory is mixed into a block, a file in models/blocks.
    gate_floor: least fraction of the memory's output that enters a block, in [0, 1).
    dtype: of activations; parameters, fast weights and losses stay float32.
    remat: what the backward pass recomputes: "none", "dots" (all but products with parameters) or "block".
    scan_unroll: blocks unrolled per step of the scan over depth; changes speed only.
    memory: fields of `memory.layer.Memory`.
    memory_layers: blocks that have a memory, from 0; None: all.
    ngram_embed: embeddings of hashed n-grams, n from 2 to max_n, added to those of the tokens; None, or a
      max_n of None: none. The tokens that memories write are without them.
    persistent_tokens: learned tokens that attention sees before each segment, of mixes with segments.
    inner: fields of config.model.inner, of mixes with inner steps.
  """

  vocab_size: int
  width: int
  depth: int
  heads: int
  ff_width: int
  window_tokens: int
  memory_mix: str
  gate_floor: float
  dtype: str
  remat: str
  scan_unroll: int
  memory: Mapping
  memory_layers: tuple[int, ...] | None = None
  ngram_embed: Mapping | None = None
  persistent_tokens: int = 0
  inner: Any = None

  @property
  def max_n(self) -> int | None:
    """Returns the longest n-gram that has an embedding; None: none has."""
    return None if self.ngram_embed is None else self.ngram_embed["max_n"]

  @property
  def mix(self) -> Mix:
    """Returns how memory is mixed into the blocks that have one."""
    return blocks.load(self.memory_mix)

  @property
  def has_fast_weights(self) -> bool:
    """Returns whether the model has memories that are written while it reads."""
    return bool({"fast_weights", "inner_steps"} & self.mix.has) and bool(self.with_memory)

  @property
  def first_inner(self) -> int | None:
    """Returns the first block whose fast weights the model's own loss trains; None: there is none."""
    return self.with_memory[0] if "inner_steps" in self.mix.has else None

  @property
  def align_tokens(self) -> int:
    """Returns what the length of a packed text is a multiple of, and a document's start in it."""
    if "segments" in self.mix.has:
      return self.window_tokens
    if "inner_steps" in self.mix.has:
      return self.inner["batch_tokens"]
    return self.memory["chunk_size"] if "memory" in self.mix.has else 1

  @property
  def with_memory(self) -> tuple[int, ...]:
    """Returns the blocks that have a memory."""
    if not {"memory", "inner_steps"} & self.mix.has:
      return ()
    return tuple(range(self.depth)) if self.memory_layers is None else tuple(sorted(self.memory_layers))

  @property
  def with_attention(self) -> tuple[int, ...]:
    """Returns the blocks that have a state of attention."""
    chosen = self.with_memory
    return tuple(i for i in range(self.depth) if i not in chosen or "attention" in self.mix.has)

  @property
  def stacks(self) -> list[Stack]:
    """Returns the stacks of blocks, see `stacks.split`."""
    return stacks.split(self.depth, self.with_attention, self.with_memory)

  @nn.nowrap
  def block_fields(self, mode: str) -> BlockFields:
    """Returns the settings that all blocks share."""
    # The factor: two sums per block, so that 2 depth terms add up to the variance of one.
    return BlockFields(self.width, self.heads, self.window_tokens, self.ff_width, self.gate_floor,
                       (2 * self.depth) ** -0.5, self.memory, mode, self.persistent_tokens,
                       self.inner)

  @nn.nowrap
  def zero_state(self, rows: int) -> LMState:
    """Returns the state of a model that has read nothing."""
    fields = self.block_fields("stream")
    dtype = jnp.dtype(self.dtype)
    state = self.mix.zero_state(fields, rows, dtype)
    if "attention" not in self.mix.has:
      state = state._replace(attention=blocks.load(PLAIN).zero_state(fields, rows, dtype).attention)
    attention = stacks.repeat_layers(state.attention, len(self.with_attention))
    memory = stacks.repeat_layers(state.memory, len(self.with_memory))
    if self.first_inner is not None:
      above = len([block for block in self.with_attention if block >= self.first_inner])
      start = stacks.repeat_layers(state.attention, above)
      memory = inner.zero_state(memory, start, rows=rows, batch_tokens=self.inner["batch_tokens"],
                                width=self.width, dtype=dtype)
    ngram = () if self.max_n is None else ngrams.zero_tail(rows, self.max_n)
    return LMState(attention, memory, jnp.full((rows,), NO_DOC, jnp.int32), ngram)

  @property
  def keeps_rings(self) -> bool:
    """Returns whether texts are written on with `ring.Rings`: where attention sees a window that moves."""
    return bool(self.with_attention) and self.first_inner is None and "segments" not in self.mix.has

  @nn.nowrap
  def with_rings(self, state: LMState) -> LMState:
    """Returns a state, of `zero_state` or mode "stream", from which the model reads on one token at a time.

    States of attention are then rings, and those of memory a list with one for each stack, leaves [blocks, B,
    ...]. A state that is so already stays as it is; the result takes no other calls.
    """
    if not self.keeps_rings or isinstance(state.attention, ring.Rings):
      return state
    rings = ring.of_windows(state.attention, _going(state.doc_B), [stack.attentions for stack in self.stacks])
    return state._replace(attention=rings, memory=stacks.split_state(state.memory, self.stacks))

  @property
  def ring_row_axes(self):
    """Returns which axis counts rows in the leaves of `with_rings`, a prefix of it."""
    return LMState(ring.ROW_AXES, 1, 0, 0) if self.keeps_rings else 0

  @nn.compact
  def __call__(self, tokens_BT, state: LMState, *, doc_BT=None, count_B=None, memory_scale=1.0,
               memory_writes=None, seen_tokens=None, gate_floor=None, attention_keep_B=None,
               mode: str = "packed") -> LMOut:
    """Reads T tokens of each row.

    Args:
      tokens_BT: int32 in [0, vocab_size).
      state: what an earlier call returned, or `zero_state`.
      doc_BT: mode "packed": document of each token, -1 at padding, which stands behind a document; a document
        starts at a chunk's start, and one that goes on from the earlier call keeps its number.
      count_B: mode "stream": how many of the T tokens are real, the first ones; None: all.
      memory_scale: factor on what memory adds; 0 shuts it off. Traced.
      memory_writes: mode "packed": [] bool, whether memories are written, see `memory.layer.Memory`. Traced.
        None: they are.
      seen_tokens: [] int32, from 1 to window_tokens: how far attention sees in this call. The state keeps
        window_tokens. Traced. None: window_tokens.
      gate_floor: [] in [0, 1), in both modes: the floor of this call, for mixes with a gate. Traced. None, as
        in serving: that of the model.
      attention_keep_B: [B], 1 or 0: factor on what attention adds to a row. At 0 it learns of earlier tokens
        from memories, their convolutions and n-grams alone; states of attention go on. Traced. None: 1.
      mode: "packed" reads packed documents by whole chunks, T a multiple of chunk_size; "stream" reads on in
        one document per row, any T from any position.

    Raises:
      ValueError: if the mode or the mix is unknown, or lacks or refuses an argument.
    """
    mixing.check_given(self.mix, len(tokens_BT), bool(self.with_attention), gate_floor, attention_keep_B)
    doc_BT = self._documents(tokens_BT, state, doc_BT, count_B, mode)
    dtype = jnp.dtype(self.dtype)
    embedding = self.param("embed", nn.initializers.normal(0.02), (self.vocab_size, self.width), jnp.float32)
    # Scaled on the way in alone: the table is the head, too, where rows of .02 have logits start small.
    token_BTD = embedding.astype(dtype)[tokens_BT] * jnp.asarray(self.width**0.5, dtype)
    x_BTD, ngram = self._with_ngrams(token_BTD, tokens_BT, state, doc_BT, count_B)
    from_token = self.with_memory and Memory(**self.memory, parent=None).value_source == "token"
    call = Call(doc_BT, state.doc_B, count_B, jnp.asarray(memory_scale, jnp.float32),
                token_BTD if from_token else None, memory_writes, seen_tokens,
                self._ring_place(state, tokens_BT, count_B, seen_tokens, mode),
                None if gate_floor is None else jnp.asarray(gate_floor, jnp.float32), attention_keep_B)
    read = self._read(x_BTD, state, tokens_BT, call, mode)
    attention = read.attention
    if call.ring is not None:
      attention = ring.written(state.attention, attention, call.ring.own_BW)
    hidden_BTD = RMSNorm(name="final_norm")(read.x_BTD)
    last_doc_B = last_document(doc_BT, state.doc_B, count_B)
    return LMOut(hidden_BTD, LMState(attention, read.memory, last_doc_B, ngram), read.stats, read.usage)

  @nn.nowrap
  def _read(self, x_BTD, state: LMState, tokens_BT, call: Call, mode: str) -> Read:
    """Reads with all blocks; those from the first with inner steps on as functions of its fast weights."""

    ringed = call.ring is not None

    def bound(stack):
      return self._blocks(stack, mode, ringed)

    if self.first_inner is None:
      attention = state.attention.stacks if ringed else state.attention
      return stacks.read(self.stacks, bound, x_BTD, attention, state.memory, call)
    if self.is_initializing():  # It makes parameters, which need no step.
      read = stacks.read(self.stacks, bound, x_BTD, state.attention, state.memory.fast, call)
      return read._replace(memory=state.memory)
    below = [stack for stack in self.stacks if stack.end <= self.first_inner]
    border = below[-1].attentions.stop if below else 0
    attention = jax.tree.map(lambda x: x[:, :border], state.attention)
    read = stacks.read(below, bound, x_BTD, attention, (), call)
    text = inner.InnerInput(read.x_BTD, tokens_BT, call.doc_BT)
    attention = jax.tree.map(lambda x: x[:, border:], state.attention)
    reader = self._reader(self.stacks[len(below):], call, mode)
    stats: dict = {}
    if mode == "packed":
      x_BTD, memory, attention, stats = inner.read_packed(reader, state.memory, attention, text,
                                                          call.last_doc_B)
    else:
      count_B = call.count_B
      count_B = jnp.full(tokens_BT.shape[:1], tokens_BT.shape[1], jnp.int32) if count_B is None else count_B
      x_BTD, memory, attention = inner.read_stream(reader, state.memory, attention, text, call.last_doc_B,
                                                   count_B)
    stats = {f"{name}/layer_{self.first_inner:02d}": value for name, value in stats.items()}
    return Read(x_BTD, stacks.joined([read.attention, attention] if below else [attention]), memory,
                stats, {})

  @nn.nowrap
  def _reader(self, above: list[Stack], call: Call, mode: str) -> InnerReader:
    """Makes functions of the blocks from the first with inner steps on, and of the head."""
    params = self.variables["params"]

    def unbound(stack):
      return functools.partial(self._blocks(stack, mode, parent=None).apply, {"params": params[stack.name]})

    def read(fast, attention, x_BTD, doc_BT, last_doc_B, count_B):
      part = call._replace(doc_BT=doc_BT, last_doc_B=last_doc_B, count_B=count_B, token_BTD=None)
      out = stacks.read(above, unbound, x_BTD, attention, fast, part)
      return out.x_BTD, out.attention

    def nll(y_BTD, targets_BT):
      hidden_BTD: Any = RMSNorm(parent=None).apply({"params": params["final_norm"]}, y_BTD)
      flat = vocab_loss(hidden_BTD.reshape(-1, self.width), head.head_weights(params), targets_BT.reshape(-1))
      return flat.reshape(targets_BT.shape)

    initial = learned_memory(self, params).fast
    settings = {name: self.inner[name] for name in ("batch_tokens", "rate", "clip_norm")}
    return InnerReader(read, nll, initial, remat=self.remat != "none", writes=call.memory_writes, **settings)

  @nn.nowrap
  def _with_ngrams(self, token_BTD, tokens_BT, state, doc_BT, count_B):
    """Adds the embeddings of n-grams; returns also the tokens that the next call's n-grams begin with."""
    if self.max_n is None:
      return token_BTD, ()
    size = self.ngram_embed["table_rows"]
    tables = self.param("ngram_embed", nn.initializers.normal(0.02), (self.max_n - 1, size, self.width),
                        jnp.float32)
    row_BTS, tail_BS = ngrams.lookups(tokens_BT, state.ngram, doc_BT, state.doc_B, count_B, table_rows=size)
    added_BTD = ngrams.embedded(tables.astype(token_BTD.dtype), row_BTS)
    return token_BTD + added_BTD * jnp.asarray(self.width**0.5, token_BTD.dtype), tail_BS

  @nn.nowrap
  def _ring_place(self, state, tokens_BT, count_B, seen_tokens, mode):
    """Returns where a state with rings takes its token; None for other states."""
    if not isinstance(state.attention, ring.Rings):
      return None
    if mode != "stream" or tokens_BT.shape[1] != 1 or count_B is not None:
      raise ValueError(f"a state of with_rings reads one token of each row, in mode='stream' without count_B,"
                       f" not {tokens_BT.shape[1]} in mode={mode!r}; read with the state it was made of")
    return ring.place(state.attention, self.width // self.heads, jnp.dtype(self.dtype), seen_tokens)

  @nn.nowrap
  def _blocks(self, stack: Stack, mode: str, ringed: bool = False, **given):
    block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False) if self.remat != "none" else Block
    # States lead with B, which is split over devices, and have depth in axis 1; parameters lead with depth.
    # So do "intermediates", numbers per token that exist where a caller asks for them alone. Of `with_rings`
    # states lead with depth as well: a loop takes them as they lie. The check traces every block twice, for
    # outputs that are the same in all blocks, and there are none. It stays where parameters are drawn: the
    # second time draws with other keys.
    states = 0 if ringed else 1
    scanned = nn.scan(block, variable_axes={"params": 0, "intermediates": 0}, split_rngs={"params": True},
                      length=stack.end - stack.first, in_axes=(states, nn.broadcast), out_axes=(states, 0),
                      unroll=min(1 if ringed else self.scan_unroll, stack.end - stack.first),
                      check_constancy_invariants=self.is_initializing())
    fields = self.block_fields(mode)
    return scanned(fields, self.memory_mix if stack.memories else PLAIN, **given or {"name": stack.name})

  @nn.nowrap
  def _documents(self, tokens_BT, state, doc_BT, count_B, mode):
    if mode not in MODES:
      raise ValueError(f"mode={mode!r} is unknown; known are {', '.join(MODES)}")
    if mode == "stream":
      if doc_BT is not None:
        raise ValueError("mode='stream' reads one document per row and takes no doc_BT; use mode='packed'")
      # One number per row, that of the text so far: no token of a stream differs from its state's document.
      return jnp.broadcast_to(_going(state.doc_B)[:, None], tokens_BT.shape)
    if count_B is not None or doc_BT is None:
      raise ValueError("mode='packed' takes doc_BT, not count_B; padding has document -1")
    if tokens_BT.shape[1] % self.align_tokens:
      field = grid_of(self.memory_mix)
      raise ValueError(f"mode='packed' reads whole chunks: {tokens_BT.shape[1]} tokens are not a multiple of "
                       f"config.{field}={self.align_tokens}")
    return doc_BT


def _going(doc_B):
  """Returns the document of a stream: that of its last token, or the first one."""
  return jnp.where(doc_B == NO_DOC, 0, doc_B)


def build(fields: Mapping) -> LM:
  """Makes the network of the fields of config.model, of which `kind` and `path` are not its own.

  Raises:
    ValueError, TypeError: if the memory rule or one of its options does not fit, or a field does not fit the
      way memory is mixed into a block.
  """
  memory = fields["memory"]
  # For its errors alone, which come before anything is traced; the layer loads the rule again.
  rules.load(memory["rule"], key_dim=memory["key_dim"], value_dim=memory["value_dim"],
             chunk_size=memory["chunk_size"], **memory["options"])
  ours = {name: value for name, value in fields.items() if name not in ("kind", "path")}
  layers = block_numbers(fields["memory_layers"], fields["depth"])
  model = LM(**ours | {"memory_layers": layers, "ngram_embed": dict(fields["ngram_embed"]),
                     "inner": dict(fields["inner"])})
  model.mix.check(fields)
  return model
