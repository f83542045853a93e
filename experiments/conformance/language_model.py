"""Our language model with memory mixed into its blocks, as a `subject.Model` that reads ids and gives logits.

The model is that of configs/memory_40m.py:cpu with the mix's name, its sizes made small. A text that begins
is read by whole chunks (mode "packed"), one that goes on as a stream; behind both stands padding, to a few
lengths, for each of which there is one program.
"""
import functools
import pathlib

import numpy as np

from experiments.conformance import subject

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "memory_40m.py"
VOCAB, WIDTH, HEADS, DEPTH = 64, 32, 2, 2
WINDOW, CHUNK = 32, 16
LENGTHS = (1, WINDOW, 2 * WINDOW, 4 * WINDOW, 36 * WINDOW)
# Keys, values, queries and gates of memories. What e2e writes has none of them: of it, the start.
WRITES = ("qkv_kernel", "conv_kernel", "value_kernel", "gates", "fast_mlp")
GRID = "`LM` says that a document of packed ones begins at a chunk's start; sources of data see to it"
NO_PADDING = "`LM` takes padding behind a document alone; sources of data put it nowhere else"


def fields_of(mix: str) -> dict:
  """Returns config.model of the small model."""
  from atlas_jax import command

  model = command.read_config(f"{CONFIG}:cpu,pretrain,mix={mix}").model
  model.update(vocab_size=VOCAB, width=WIDTH, heads=HEADS, depth=DEPTH, ff_width=2 * WIDTH,
               window_tokens=WINDOW, dtype="float32")
  model.memory.update(heads=HEADS, key_dim=WIDTH // HEADS, value_dim=WIDTH // HEADS, chunk_size=CHUNK)
  model.inner.update(batch_tokens=WINDOW, ff_width=WIDTH)
  if model.memory_layers is not None:
    model.memory_layers = f"{DEPTH - 1}"
  return model


@functools.cache
def programs(mix: str, dtype: str, seed: int) -> dict:
  """Returns parameters, a zero state and compiled functions, which hold nothing of a text."""
  import jax
  import jax.numpy as jnp

  from atlas_jax.models import head, lm

  narrow = lm.build(fields_of(mix))
  model = narrow.clone(dtype=dtype)
  init = jax.jit(functools.partial(narrow.init, mode="stream"))
  params = init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32), narrow.zero_state(1))["params"]
  wide = functools.partial(jax.tree.map, lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating)
                           else x)

  def read(params, tokens_BT, state, doc_BT, count_B, mode):
    out = model.apply({"params": params}, tokens_BT, state, doc_BT=doc_BT, count_B=count_B, mode=mode)
    return head.logits(params, out.hidden_BTD), out.state

  def loss(params, tokens_BT, doc_BT, weight_BTV):
    logits_BTV, _ = read(params, tokens_BT, zero(1), doc_BT, None, "packed")
    return subject.mean_loss(logits_BTV, weight_BTV)

  def zero(rows: int):
    return wide(model.zero_state(rows))

  return {"params": wide(params), "zero": zero, "read": jax.jit(read, static_argnums=5),
          "loss": jax.jit(jax.value_and_grad(loss))}


class LanguageModel:
  """The model with one mix; `read` begins a text, `read_on` goes on in one."""

  def __init__(self, mix: str, dtype: str, seed: int):
    import jax

    self._wide = functools.partial(jax.enable_x64, dtype == "float64")
    self._dtype = dtype
    with self._wide():
      self._programs = programs(mix, dtype, seed)

  def read(self, x, *, keep_BT=None, doc_BT=None):
    doc_BT = np.zeros(x.shape, np.int32) if doc_BT is None else doc_BT
    doc_BT = doc_BT if keep_BT is None else np.where(keep_BT, doc_BT, -1)
    with self._wide():
      logits_BTV, _ = self._programs["read"](
          self._programs["params"], padded(x, 0), self._programs["zero"](len(x)),
          padded(doc_BT, -1), None, "packed")
      return np.asarray(logits_BTV)[:, :x.shape[1]]

  def read_on(self, x, state):
    with self._wide():
      state = self._programs["zero"](len(x)) if state is None else state
      count_B = np.full(len(x), x.shape[1], np.int32)
      logits_BTV, state = self._programs["read"](self._programs["params"], padded(x, 0), state, None, count_B,
                                                 "stream")
      return np.asarray(logits_BTV)[:, :x.shape[1]], state

  def write_parameters(self):
    return {name: np.asarray(leaf) for name, leaf in subject.leaves(self._programs["params"], WRITES).items()}

  def loss(self, x, start, nudge):
    import jax

    with self._wide():
      params = jax.tree_util.tree_map_with_path(
          lambda path, leaf: (leaf + nudge.get(jax.tree_util.keystr(path), 0)).astype(self._dtype),
          self._programs["params"])
      tokens_BT = padded(x, 0)
      weight_BTV = np.zeros((*tokens_BT.shape, VOCAB), self._dtype)
      weight_BTV[:, :x.shape[1]] = subject.loss_weights((*x.shape, VOCAB), start)
      doc_BT = padded(np.zeros(x.shape, np.int32), -1)
      loss, given = self._programs["loss"](params, tokens_BT, doc_BT, weight_BTV)
      return float(loss), {name: np.asarray(leaf) for name, leaf in subject.leaves(given, WRITES).items()}


def padded(x_BT, value: int) -> np.ndarray:
  """Puts a value behind rows, up to the next of LENGTHS."""
  size = min(length for length in LENGTHS if length >= x_BT.shape[1])
  return np.pad(np.asarray(x_BT, np.int32), ((0, 0), (0, size - x_BT.shape[1])), constant_values=value)
