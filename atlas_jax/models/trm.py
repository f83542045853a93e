"""Tiny recursive models: a small stack of blocks, called again and again on the answer it has so far."""
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax import fields, tree
from atlas_jax.losses import recursion
from atlas_jax.models import rope, trm_baselines, trm_blocks

POSITIONS = ("rope", "learned", "none")
HALT_BIAS = -5.0  # Of both halting logits at the start: nothing halts early before it has learned to.
CHECKED = ("variant", "mixer", "positions", "width", "heads", "n_outer", "n_inner", "n_prefix", "row_width")
LEARNED_SCALE = 0.707106781  # Keeps the variance of tokens plus learned positions that of tokens.


class TRMOut(NamedTuple):
  """The outcome of one supervision step."""

  logits_BTV: jax.Array  # of the tokens, without the prefix
  halt_logit_B: jax.Array  # float32; above 0 where the answer is taken to be right
  continue_logit_B: jax.Array  # float32
  latents: tuple  # where the next step starts, without gradient


class TRM(nn.Module):
  """A model that improves its answer to a puzzle step by step.

  Every forward call is one supervision step on the latents of an earlier one. The puzzle's row of the table
  is cut into `n_prefix` vectors in front of the tokens, the rest of them zero.

  Attributes:
    variant: "trm", "single" (one latent), "hrm" (two stacks) or "transformer" (one call of one stack).
    mixer: over positions, "attention" or "mlp".
    vocab_size, width: the usual.
    seq_len: tokens of a puzzle.
    heads: of attention; each has width // heads features.
    depth: blocks of a stack.
    expansion: sets hidden widths, see `trm_blocks.hidden_width`.
    n_outer: how often the answer is improved per step; the last time with gradient.
    n_inner: how often the latent is improved before the answer is.
    n_prefix: positions in front of the tokens.
    row_width: width of a row of the puzzle table, at most n_prefix * width; 0 for no table.
    positions: "rope", "learned" or "none".
    norm_eps: of the norms.
    rope_base: of the slowest rotary position.
    dtype: of activations and latents; parameters stay float32.

  Raises:
    ValueError: if fields do not fit together.

  Source: Jolicoeur-Martineau 2025, arXiv:2510.04871; HRM: Wang et al. 2025, arXiv:2506.21734.
  """

  variant: str
  mixer: str
  vocab_size: int
  seq_len: int
  width: int
  heads: int
  depth: int
  expansion: float
  n_outer: int
  n_inner: int
  n_prefix: int
  row_width: int
  positions: str
  norm_eps: float
  rope_base: float
  dtype: str

  def __post_init__(self):
    check(**{name: getattr(self, name) for name in CHECKED})
    super().__post_init__()

  @nn.compact
  def __call__(self, inputs_BT, rows_BE=None, latents: tuple | None = None) -> TRMOut:
    """Makes one supervision step.

    Args:
      inputs_BT: int32 in [0, vocab_size).
      rows_BE: each puzzle's row of the table, float32, [B, row_width]; None: zeros, as of a new puzzle.
      latents: what an earlier step returned, or reset vectors at every position; each [B, T + n_prefix, D].
        None: the reset vectors of key 0.
    """
    if inputs_BT.ndim != 2 or inputs_BT.shape[1] != self.seq_len:
      raise ValueError(f"the puzzles have shape {inputs_BT.shape}; they must be [rows, seq_len="
                       f"{self.seq_len}]")
    if rows_BE is None:
      rows_BE = jnp.zeros((inputs_BT.shape[0], self.row_width), jnp.float32)
    if latents is None:
      latents = self.first_latents(jax.random.key(0), inputs_BT.shape[0])
    embedded = self._embedded(inputs_BT, rows_BE)
    levels = tuple(self.param(name, self._init_level) for name in trm_baselines.LEVELS[self.variant])
    cos_sin = None
    if self.positions == "rope":
      # The prefix has positions of its own, the first ones; tokens count on behind it.
      frequencies = rope.inverse_frequencies(self.width // self.heads, self.rope_base)
      cos_sin = rope.cos_sin(jnp.arange(self.n_prefix + self.seq_len), *frequencies, jnp.float32)

    def call(level, x):
      for i in range(self.depth):
        x = trm_blocks.block(level[f"block_{i}"], x, heads=self.heads, eps=self.norm_eps, cos_sin=cos_sin)
      return x

    # Once here and back below, not in every block: the token MLP wants positions first.
    swap = (lambda x: jnp.swapaxes(x, 0, 1)) if self.mixer == "mlp" else (lambda x: x)
    recursion = trm_baselines.VARIANTS[self.variant]
    latents = recursion(call, levels, tuple(map(swap, latents)), swap(embedded), self.n_outer, self.n_inner)
    return self._read(tuple(map(swap, latents)))

  def _embedded(self, inputs_BT, rows_BE):
    """Returns what is injected: prefix and tokens, scaled by sqrt(width), [B, n_prefix + T, D]."""
    dtype = jnp.dtype(self.dtype)
    width = self.width
    prefix = self.n_prefix
    total = prefix + self.seq_len

    def draw(key, rows):
      return trm_blocks.truncated_normal(key, (rows, width), width**-0.5)

    x_BTD = self.param("embed", draw, self.vocab_size).astype(dtype)[inputs_BT]
    if prefix:
      # Rows are an input, not a parameter: their table lies outside the optimizer, see recipes/trm.py.
      padded = jnp.pad(rows_BE.astype(dtype), ((0, 0), (0, prefix * width - self.row_width)))
      x_BTD = jnp.concatenate([padded.reshape(-1, prefix, width), x_BTD], axis=1)
    if self.positions == "learned":
      x_BTD = x_BTD + self.param("positions", draw, total).astype(dtype)[None]
      x_BTD = x_BTD * jnp.asarray(LEARNED_SCALE, dtype)
    # Embeddings of deviation 1 / sqrt(width) get the unit variance that norms give latents.
    return x_BTD * jnp.asarray(width**0.5, dtype)

  def _init_level(self, key) -> dict:
    init = functools.partial(trm_blocks.init_block, mixer=self.mixer, width=self.width, heads=self.heads,
                             positions=self.n_prefix + self.seq_len, expansion=self.expansion)
    return {f"block_{i}": init(each) for i, each in enumerate(jax.random.split(key, self.depth))}

  def _read(self, latents: tuple) -> TRMOut:
    """Scores tokens and halting from the answer."""
    answer_BTD = latents[0]
    width = self.width
    dtype = answer_BTD.dtype
    wide = tree.accumulation_dtype(answer_BTD.dtype)

    def draw(key):
      return trm_blocks.truncated_normal(key, (width, self.vocab_size), width**-0.5)

    logits_BTV = answer_BTD[:, self.n_prefix:] @ self.param("head", draw).astype(dtype)
    kernel = self.param("halt_kernel", nn.initializers.zeros, (width, 2), jnp.float32)
    bias = self.param("halt_bias", nn.initializers.constant(HALT_BIAS), (2,), jnp.float32)
    # Halting is read at the first position, one of the prefix where there is any, not at a token.
    halting = (answer_BTD[:, 0] @ kernel.astype(dtype) + bias.astype(dtype)[None]).astype(wide)
    # Deep supervision: every step has a loss of its own, and none has a gradient into the step before.
    return TRMOut(logits_BTV, halting[:, 0], halting[:, 1], jax.lax.stop_gradient(latents))

  @nn.nowrap
  def reset(self, rng) -> tuple:
    """Draws the vectors that latents start from at every position; they are not trained; each [D]."""
    count = trm_baselines.LATENTS[self.variant]
    return tuple(trm_blocks.truncated_normal(key, (self.width,), 1.0, jnp.dtype(self.dtype))
                 for key in jax.random.split(rng, count))

  @nn.nowrap
  def first_latents(self, rng, batch_rows: int) -> tuple:
    """Returns the latents of puzzles that no step was made on: the reset vectors of a key, everywhere."""
    start = zip(self.reset(rng), self.zero_latents(batch_rows), strict=True)
    return tuple(jnp.broadcast_to(reset_D[None, None], zero_BTD.shape) for reset_D, zero_BTD in start)

  @nn.nowrap
  def zero_latents(self, batch_rows: int) -> tuple:
    """Returns latents of zeros, to be reset before use."""
    shape = (batch_rows, self.n_prefix + self.seq_len, self.width)
    return tuple(jnp.zeros(shape, self.dtype) for _ in range(trm_baselines.LATENTS[self.variant]))


def recursive_model(*, vocab_size: int, seq_len: int, **given) -> TRM:
  """Makes a recursive model without a config.

  Args:
    vocab_size, seq_len: ids and length of a puzzle.
    given: fields of config.trm that differ from its defaults, which are the published ones; but `path`, which
      names weights.

  Raises:
    ValueError, TypeError: if a field does not exist or does not fit.
  """
  if "path" in given:
    raise ValueError(f"recursive_model: path={given['path']!r} names the weights of a run, and here "
                     "model.init gives the parameters; leave it out")
  sizes = {name: value for name, value in fields.with_defaults("trm", given).items() if name != "path"}
  return TRM(**sizes, vocab_size=vocab_size, seq_len=seq_len)


def supervision_step(params, inputs_BT, labels_BT, latents: tuple | None = None, *, model: TRM, rows_BE=None,
                     token_loss: str = "stablemax"):
  """Makes one supervision step and scores it; `jax.value_and_grad(..., has_aux=True)` gives its gradient.

  Args:
    params: what `model.init` returned.
    inputs_BT, latents, rows_BE: see `TRM.__call__`.
    labels_BT: int32, the right answers, -100 where nothing is scored.
    model: the network.
    token_loss: "stablemax" or "softmax".

  Returns:
    (loss, out): the mean over puzzles of `losses.recursion`, and the step's `TRMOut`, whose latents are where
    the next step starts.
  """
  out: Any = model.apply(params, inputs_BT, rows_BE, latents)
  rows = inputs_BT.shape[0]
  loss, _ = recursion.recursion_loss(
      out.logits_BTV, out.halt_logit_B, labels_BT, halted_B=jnp.ones((rows,), bool),
      steps_B=jnp.ones((rows,), jnp.int32), token_loss=token_loss)
  return loss / rows, out


def check(*, variant: str, mixer: str, positions: str, width: int, heads: int, n_outer: int, n_inner: int,
          n_prefix: int, row_width: int) -> None:
  """Refuses fields that do not fit together, by their config names; works without a device."""
  for name, value, known in (("variant", variant, tuple(trm_baselines.VARIANTS)),
                             ("mixer", mixer, trm_blocks.MIXERS), ("positions", positions, POSITIONS)):
    if value not in known:
      raise ValueError(f"config.trm.{name}={value!r} is not known; choose one of {', '.join(known)}")
  if mixer == "attention" and positions == "rope" and (width // heads) % 2:
    raise ValueError(f"config.trm.width={width} over config.trm.heads={heads} gives heads of "
                     f"{width // heads} features; rotary positions need an even number")
  if mixer == "attention" and heads > width:
    raise ValueError(f"config.trm.heads={heads} must be at most config.trm.width={width}")
  if row_width > n_prefix * width:
    raise ValueError(f"config.trm.row_width={row_width} does not fit config.trm.n_prefix={n_prefix} "
                     f"positions of width {width}; n_prefix must be at least {-(-row_width // width)}")
  if min(n_outer, n_inner) < 1:
    raise ValueError(f"config.trm.n_outer={n_outer} and config.trm.n_inner={n_inner} must be at least 1")
