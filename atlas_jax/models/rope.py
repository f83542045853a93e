"""Rotary position embedding: inverse frequencies of a base and a scaling, cosine and sine, and the rotation.

Source: Su et al. 2021, arXiv:2104.09864.
"""
import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from atlas_jax import tree

# Keys of a scaling, spelled as checkpoints spell them: those it must have, and those it may have.
NEEDED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
ALLOWED: dict[str, tuple[str, ...]] = {"yarn": ("attention_factor", "beta_fast", "beta_slow")}


def check(scaling: Mapping | None) -> None:
  """Refuses a scaling that `inverse_frequencies` cannot compute.

  Raises:
    ValueError: for an unknown rope_type, and for a key that is missing or not known.
  """
  if scaling is None:
    return
  keys = dict(scaling)
  kind = keys.pop("rope_type", None)
  if kind not in NEEDED:
    raise ValueError(f"rope_scaling.rope_type={kind!r} is not supported; known are {', '.join(NEEDED)}, and "
                     "None for no scaling")
  for key in NEEDED[kind]:
    if key not in keys:
      raise ValueError(f"rope_scaling of type {kind!r} has no {key!r}; it needs {', '.join(NEEDED[kind])}")
  unknown = set(keys) - set(NEEDED[kind]) - set(ALLOWED.get(kind, ()))
  if unknown:
    raise ValueError(f"rope_scaling of type {kind!r} has {', '.join(sorted(unknown))}, which is not "
                     f"supported; known are {', '.join((*NEEDED[kind], *ALLOWED.get(kind, ())))}")


def inverse_frequencies(head_dim: int, base: float, scaling: Mapping | None = None,
                        dtype=np.float32) -> tuple[np.ndarray, float]:
  """Returns how far each pair of features is rotated per token.

  Args:
    head_dim: features per head, even.
    base: the slowest pair is rotated by 1 / base radians per token, nearly.
    scaling: None, or a mapping with rope_type and the keys in NEEDED.
    dtype: of the result; pretrained models are read with float32.

  Returns:
    ([head_dim / 2] radians per token, factor on cosine and sine).

  Raises:
    ValueError: see `check`.

  Source: linear: Chen et al. 2023, arXiv:2306.15595; llama3: Llama team 2024, arXiv:2407.21783 and its
    published code; yarn: Peng et al. 2023, arXiv:2309.00071.
  """
  check(scaling)
  dtype = np.dtype(dtype).type
  steps = np.arange(0, head_dim, 2, dtype=dtype) / dtype(head_dim)
  inverse_K = dtype(1) / np.power(dtype(base), steps)
  if scaling is None:
    return inverse_K, 1.0
  factor = scaling["factor"]
  if scaling["rope_type"] == "linear":
    return (inverse_K / factor).astype(dtype), 1.0
  # Full turns of each pair within the length of pretraining: pairs that turn often tell neighbours apart and
  # are kept; those that turn less than once are slowed by `factor`, so that longer texts stay in their range.
  turns = scaling["original_max_position_embeddings"] * inverse_K.astype(np.float64) / (2 * math.pi)
  if scaling["rope_type"] == "llama3":
    low = scaling["low_freq_factor"]
    high = scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (inverse_K * (kept + (1 - kept) / factor)).astype(dtype), 1.0
  kept = _yarn_kept(head_dim, base, scaling)
  # YaRN's temperature: on cosine and sine of queries and keys, hence squared in their products.
  keys = {"attention_factor": 0.1 * math.log(factor) + 1 if factor > 1 else 1.0, **scaling}
  return (inverse_K * (kept + (1 - kept) / factor)).astype(dtype), keys["attention_factor"]


def _yarn_kept(head_dim: int, base: float, scaling: Mapping):
  """Returns the fraction of each pair's frequency that stays: 1 for fast pairs, 0 for slow, a ramp else."""
  keys = {"beta_fast": 32, "beta_slow": 1, **scaling}
  length = scaling["original_max_position_embeddings"]

  # The pair that makes so many turns within that length: the inverse of frequency over pairs. The ramp runs
  # over pairs, that of llama3 over turns.
  def pair_of(turns):
    return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

  first = max(math.floor(pair_of(keys["beta_fast"])), 0)
  last = min(math.ceil(pair_of(keys["beta_slow"])), head_dim - 1)
  # Where both ends are one pair the ramp is a step.
  ramp = (np.arange(head_dim // 2) - first) / max(last - first, 1e-3)
  return 1 - np.clip(ramp, 0, 1)


def cos_sin(positions, inverse_frequencies, factor: float, dtype):
  """Returns cosine and sine of every position and pair of features, times `factor`.

  Args:
    positions: whole numbers, [...].
    inverse_frequencies: [K/2], see the function of that name.
    factor: on both.
    dtype: of what is rotated; the result is float32 or wider.

  Returns:
    (cosine, sine), each [..., K/2].
  """
  wide = tree.accumulation_dtype(dtype)
  # Angles in float32: bfloat16 has no whole numbers between 256 and 258, and positions would collide.
  lifted = jnp.asarray(inverse_frequencies, wide).reshape(*(1,) * positions.ndim, -1)
  angle = positions.astype(wide)[..., None] * lifted
  return jnp.cos(angle) * jnp.asarray(factor, wide), jnp.sin(angle) * jnp.asarray(factor, wide)


def apply_rope(x, cos, sin):
  """Rotates pairs of features, i and i + K/2, so that products of two heads depend on their distance alone.

  Args:
    x: heads, [..., K].
    cos, sin: see `cos_sin`; of x's rank, broadcast over it.

  Returns:
    The rotated heads, in x's dtype. A negative sine rotates back.
  """
  half = x.shape[-1] // 2
  # The halves are exchanged before they are rotated, not after: whole rows are quicker than their halves.
  full = x.astype(cos.dtype)
  exchanged = jnp.concatenate([full[..., half:], full[..., :half]], axis=-1)
  # (a, b) becomes (a cos - b sin, b cos + a sin).
  rotated = full * jnp.concatenate([cos, cos], -1) + exchanged * jnp.concatenate([-sin, sin], -1)
  return rotated.astype(x.dtype)
