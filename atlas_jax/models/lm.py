"""A decoder with sliding-window attention and a neural memory that is trained while it reads."""
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax.fields import block_numbers
from atlas_jax.memory import rules
from atlas_jax.memory.layer import NO_DOC, Memory
from atlas_jax.memory.types import Learned
from atlas_jax.models import blocks, ngrams
from atlas_jax.models.layers import RMSNorm, SwiGLU
from atlas_jax.models.mixing import BlockFields, BlockState, Call, Mix

MODES = ("packed", "stream")
PLAIN = "none"  # The mix of blocks that config.model.memory_layers leaves out.
# Axes of its leaves that are split over `tensor`, see `models.placement`.
TENSOR_AXES = ((r"(ngram_)?embed", (-2, -1)),)  # V or rows of a table, D


class LMState(NamedTuple):
  """State of a decoder from call to call, of fixed size; every leaf leads with B, then depth."""

  attention: Any  # [B, blocks with attention, ...], see `BlockState`; () without attention
  memory: Any  # [B, blocks with a memory, ...]; () without memory
  doc_B: jax.Array  # document of the last real token, NO_DOC if there was none
  ngram: Any = ()  # [B, max_n - 1] its last tokens, see `ngrams.lookups`; () without embeddings of n-grams


class LMOut(NamedTuple):
  """The outcome of reading."""

  hidden_BTD: jax.Array  # normalised vectors, to be scored by `head`
  state: LMState
  stats: dict  # NAME/layer_00 and so on -> [], of blocks with a memory; empty in mode "stream"


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
    h_BTD = RMSNorm(name="norm_mix")(x_BTD)
    mixed_BTD, state, stats = blocks.load(self.memory_mix).mix(self.fields, h_BTD, state, call)
    h_BTD = RMSNorm(name="norm_mlp")(x_BTD + mixed_BTD)
    fed_BTD = SwiGLU(self.fields.ff_width, self.fields.out_scale, name="mlp")(h_BTD)
    return x_BTD + mixed_BTD + fed_BTD, (state, stats)


REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "block": jax.checkpoint_policies.nothing_saveable,
}


class Stack(NamedTuple):
  """Blocks one above the other that are alike."""

  name: str  # of their parameters, which lead with their number
  first: int
  end: int
  attentions: range  # places of their attention states among all such states; empty where they have none
  memories: range  # places of their memories among all memories; empty where they have none


class LM(nn.Module):
  """A language model that reads text in segments and remembers what it read.

  Attributes:
    vocab_size, width, depth, heads, ff_width: the usual.
    window_tokens: how far attention sees, the token itself included.
    memory_mix: how memory is mixed into a block, a file in models/blocks.
    gate_floor: least share of the memory's output that enters a block, in [0, 1).
    dtype: of activations; parameters, fast weights and losses stay float32.
    remat: what the backward pass recomputes: "none", "dots" (all but products with parameters) or "block".
    scan_unroll: blocks unrolled per step of the scan over depth; changes speed only.
    memory: fields of `memory.layer.Memory`.
    memory_layers: blocks that have a memory, from 0; None: all.
    ngram_embed: embeddings of hashed n-grams, n from 2 to max_n, added to those of the tokens; None, or a
      max_n of None: none. The tokens that memories write are without them.
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
    return "fast_weights" in self.mix.has and bool(self.with_memory)

  @property
  def align_tokens(self) -> int:
    """Returns what the length of a packed text is a multiple of, and a document's start in it."""
    return self.memory["chunk_size"] if "memory" in self.mix.has else 1

  @property
  def with_memory(self) -> tuple[int, ...]:
    """Returns the blocks that have a memory."""
    if "memory" not in self.mix.has:
      return ()
    return tuple(range(self.depth)) if self.memory_layers is None else tuple(sorted(self.memory_layers))

  @property
  def with_attention(self) -> tuple[int, ...]:
    """Returns the blocks that have a state of attention."""
    chosen = self.with_memory
    return tuple(i for i in range(self.depth) if i not in chosen or "attention" in self.mix.has)

  @property
  def stacks(self) -> list[Stack]:
    """Returns the stacks of blocks; all blocks are one, "blocks", if all or none have a memory."""
    chosen = self.with_memory
    if len(chosen) in (0, self.depth):
      return [self._stack("blocks", 0, self.depth)]
    borders = [i for i in range(1, self.depth) if (i in chosen) != (i - 1 in chosen)]
    return [self._stack(f"blocks_{first}", first, end)
            for first, end in zip([0, *borders], [*borders, self.depth])]

  @nn.nowrap
  def _stack(self, name: str, first: int, end: int) -> Stack:
    attentions = range(*(_below(self.with_attention, block) for block in (first, end)))
    memories = range(*(_below(self.with_memory, block) for block in (first, end)))
    return Stack(name, first, end, attentions, memories)

  @nn.nowrap
  def block_fields(self, mode: str) -> BlockFields:
    """Returns the settings that all blocks share."""
    return BlockFields(self.width, self.heads, self.window_tokens, self.ff_width, self.gate_floor,
                       (2 * self.depth) ** -0.5, self.memory, mode)

  @nn.nowrap
  def zero_state(self, rows: int) -> LMState:
    """Returns the state of a model that has read nothing."""
    fields = self.block_fields("stream")
    dtype = jnp.dtype(self.dtype)
    state = self.mix.zero_state(fields, rows, dtype)
    if "attention" not in self.mix.has:
      state = state._replace(attention=blocks.load(PLAIN).zero_state(fields, rows, dtype).attention)
    attention = _repeat_layers(state.attention, len(self.with_attention))
    memory = _repeat_layers(state.memory, len(self.with_memory))
    ngram = () if self.max_n is None else ngrams.zero_tail(rows, self.max_n)
    return LMState(attention, memory, jnp.full((rows,), NO_DOC, jnp.int32), ngram)

  @nn.compact
  def __call__(self, tokens_BT, state: LMState, *, doc_BT=None, count_B=None, memory_scale=1.0,
               memory_writes=None, seen_tokens=None, mode: str = "packed") -> LMOut:
    """Reads T tokens of each row.

    Args:
      tokens_BT: int32 in [0, vocab_size).
      state: what an earlier call returned, or `zero_state`.
      doc_BT: mode "packed": document of each token, -1 at padding; a document starts at a chunk's start and a
        document that goes on from the earlier call keeps its number.
      count_B: mode "stream": how many of the T tokens are real, the first ones; None: all.
      memory_scale: factor on what memory adds; 0 shuts it off. Traced.
      memory_writes: mode "packed": [] bool, whether memories are written, see `memory.layer.Memory`. Traced.
        None: they are.
      seen_tokens: [] int32, from 1 to window_tokens: how far attention sees in this call. The state keeps
        window_tokens. Traced. None: window_tokens.
      mode: "packed" reads packed documents by whole chunks, T a multiple of chunk_size; "stream" reads on in
        one document per row, any T from any position.

    Raises:
      ValueError: if the mode is unknown, or lacks or refuses an argument.
    """
    doc_BT = self._documents(tokens_BT, state, doc_BT, count_B, mode)
    dtype = jnp.dtype(self.dtype)
    embedding = self.param("embed", nn.initializers.normal(0.02), (self.vocab_size, self.width), jnp.float32)
    token_BTD = embedding.astype(dtype)[tokens_BT] * jnp.asarray(self.width**0.5, dtype)
    x_BTD, ngram = self._with_ngrams(token_BTD, tokens_BT, state, doc_BT, count_B)
    from_token = self.with_memory and Memory(**self.memory, parent=None).value_source == "token"
    call = Call(doc_BT, state.doc_B, count_B, jnp.asarray(memory_scale, jnp.float32),
                token_BTD if from_token else None, memory_writes, seen_tokens)
    attention = []
    memories = []
    stats = {}
    for stack in self.stacks:
      before = BlockState(_layers(state.attention, stack.attentions), _layers(state.memory, stack.memories))
      x_BTD, (after, found) = self._blocks(stack, mode)(x_BTD, before, call)
      attention += [after.attention] if stack.attentions else []
      memories += [after.memory] if stack.memories else []
      stats |= {f"{name}/layer_{stack.first + i:02d}": value_L[i]
                for name, value_L in found.items() for i in range(len(stack.memories))}
    hidden_BTD = RMSNorm(name="final_norm")(x_BTD)
    last_doc_B = last_document(doc_BT, state.doc_B, count_B)
    return LMOut(hidden_BTD, LMState(_joined(attention), _joined(memories), last_doc_B, ngram), stats)

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
  def _blocks(self, stack: Stack, mode: str):
    block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False) if self.remat != "none" else Block
    # "intermediates" are numbers per token, which exist where the caller asks for them alone.
    scanned = nn.scan(block, variable_axes={"params": 0, "intermediates": 0}, split_rngs={"params": True},
                      length=stack.end - stack.first, in_axes=(1, nn.broadcast), out_axes=(1, 0),
                      unroll=min(self.scan_unroll, stack.end - stack.first))
    fields = self.block_fields(mode)
    return scanned(fields, self.memory_mix if stack.memories else PLAIN, name=stack.name)

  @nn.nowrap
  def _documents(self, tokens_BT, state, doc_BT, count_B, mode):
    if mode not in MODES:
      raise ValueError(f"mode={mode!r} is unknown; known are {', '.join(MODES)}")
    if mode == "stream":
      if doc_BT is not None:
        raise ValueError("mode='stream' reads one document per row and takes no doc_BT; use mode='packed'")
      going_B = jnp.where(state.doc_B == NO_DOC, 0, state.doc_B)
      return jnp.broadcast_to(going_B[:, None], tokens_BT.shape)
    if count_B is not None or doc_BT is None:
      raise ValueError("mode='packed' takes doc_BT, not count_B; padding has document -1")
    if tokens_BT.shape[1] % self.align_tokens:
      raise ValueError(f"mode='packed' reads whole chunks: {tokens_BT.shape[1]} tokens are not a multiple of "
                       f"config.model.memory.chunk_size={self.align_tokens}")
    return doc_BT


def build(fields: Mapping) -> LM:
  """Makes the network of the fields of config.model, of which `kind` and `path` are not its own.

  Raises:
    ValueError, TypeError: if the memory rule or one of its options does not fit, or a field does not fit the
      way memory is mixed into a block.
  """
  memory = fields["memory"]
  rules.load(memory["rule"], key_dim=memory["key_dim"], value_dim=memory["value_dim"],
             chunk_size=memory["chunk_size"], **memory["options"])
  ours = {name: value for name, value in fields.items() if name not in ("kind", "path")}
  layers = block_numbers(fields["memory_layers"], fields["depth"])
  model = LM(**ours | {"memory_layers": layers, "ngram_embed": dict(fields["ngram_embed"])})
  model.mix.check(fields)
  return model


def learned_memory(model: LM, params) -> Learned:
  """Returns what the memories have learned, every leaf [blocks with a memory, H, ...]."""
  layers = [params[stack.name]["memory"] for stack in model.stacks if stack.memories]

  def join(*leaves):
    return jnp.concatenate(leaves) if len(leaves) > 1 else leaves[0]

  slow = [layer["slow"] if "slow" in layer else {} for layer in layers]
  if "initial_fast" in layers[0]:
    fast = jax.tree.map(join, *[layer["initial_fast"] for layer in layers])
  else:
    def repeat(w):
      return jnp.broadcast_to(w, (len(model.with_memory), *w.shape))

    fast = jax.tree.map(repeat, Memory(**model.memory, parent=None).zero_fast())
  return Learned(fast, jax.tree.map(join, *slow))


def with_learned(model: LM, params, learned: Learned):
  """Returns parameters whose memories have learned something else; `learned` as of `learned_memory`.

  Fast weights take effect where memories start from learned ones.
  """
  changed = dict(params)
  parts = {"initial_fast": learned.fast, "slow": learned.slow}
  for stack in (stack for stack in model.stacks if stack.memories):
    block = params[stack.name]
    place = slice(stack.memories.start, stack.memories.stop)
    own = {name: _at(part, place) for name, part in parts.items() if name in block["memory"]}
    changed[stack.name] = {**block, "memory": {**block["memory"], **own}}
  return changed


def _at(part, place: slice):
  return jax.tree.map(lambda x: x[place], part)


def _below(chosen: tuple[int, ...], block: int) -> int:
  """Returns how many of the chosen blocks come before one."""
  return sum(one < block for one in chosen)


def _repeat_layers(state, count: int):
  """Repeats the state of one block for `count` of them, in an axis behind B; () where there are none."""
  return jax.tree.map(lambda x: jnp.repeat(x[:, None], count, axis=1), state) if count else ()


def _layers(state, taken: range):
  """Takes some layers of a state whose leaves lead with B, then depth; () where none are taken."""
  return jax.tree.map(lambda x: x[:, taken.start:taken.stop], state) if taken else ()


def _joined(states: list):
  """Joins the states of stacks along depth."""
  if len(states) < 2:
    return states[0] if states else ()
  return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *states)


def last_document(doc_BT, last_doc_B, count_B):
  """Returns the document of the last real token, or the earlier one if no token is real."""
  if count_B is not None:
    return jnp.where(count_B > 0, doc_BT[:, 0], last_doc_B)
  place_BT = jnp.where(doc_BT >= 0, jnp.arange(doc_BT.shape[1])[None], -1)
  found_B = jnp.take_along_axis(doc_BT, jnp.argmax(place_BT, axis=1)[:, None], axis=1)[:, 0]
  return jnp.where(jnp.any(doc_BT >= 0, axis=1), found_B, last_doc_B)
