"""Rotary positions of published models: speeds from a base and a scaling, and the turn itself."""
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
  """Refuses a scaling that `speeds` cannot compute.

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


def speeds(head_dim: int, base: float, scaling: Mapping | None) -> tuple[np.ndarray, float]:
  """Gives how far each pair of features turns per token.

  Args:
    head_dim: features per head, even.
    base: the slowest pair turns by 1 / base radians per token, nearly.
    scaling: None, or a mapping with rope_type and the keys in NEEDED.

  Returns:
    (float32 [head_dim / 2] radians per token, factor on cosine and sine).

  Raises:
    ValueError: see `check`.

  Source: Su et al. 2021, arXiv:2104.09864; linear: Chen et al. 2023, arXiv:2306.15595; llama3: Llama team
    2024, arXiv:2407.21783 and its published code; yarn: Peng et al. 2023, arXiv:2309.00071.
  """
  check(scaling)
  steps = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  speed = np.float32(1) / np.power(np.float32(base), steps)
  if scaling is None:
    return speed, 1.0
  factor = scaling["factor"]
  if scaling["rope_type"] == "linear":
    return (speed / factor).astype(np.float32), 1.0
  turns = scaling["original_max_position_embeddings"] * speed.astype(np.float64) / (2 * math.pi)
  if scaling["rope_type"] == "llama3":
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (speed * (kept + (1 - kept) / factor)).astype(np.float32), 1.0
  kept = _yarn_kept(head_dim, base, scaling)
  keys = {"attention_factor": 0.1 * math.log(factor) + 1 if factor > 1 else 1.0, **scaling}
  return (speed * (kept + (1 - kept) / factor)).astype(np.float32), keys["attention_factor"]


def _yarn_kept(head_dim: int, base: float, scaling: Mapping):
  """Gives the share of each pair's speed that stays: 1 for fast pairs, 0 for slow ones, a ramp between."""
  keys = {"beta_fast": 32, "beta_slow": 1, **scaling}
  length = scaling["original_max_position_embeddings"]
  pair_of = lambda turns: head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))
  first = max(math.floor(pair_of(keys["beta_fast"])), 0)
  last = min(math.ceil(pair_of(keys["beta_slow"])), head_dim - 1)
  ramp = (np.arange(head_dim // 2) - first) / max(last - first, 1e-3)
  return 1 - np.clip(ramp, 0, 1)


def angles(position_BT, speed_K, factor: float, dtype):
  """Gives cosine and sine of every position and pair, [B, T, K/2], times `factor`, float32 or wider."""
  wide = tree.wide(dtype)
  angle_BTK = position_BT.astype(wide)[..., None] * jnp.asarray(speed_K, wide)[None, None]
  return jnp.cos(angle_BTK) * jnp.asarray(factor, wide), jnp.sin(angle_BTK) * jnp.asarray(factor, wide)


def turn(x_BTHK, cos_BTK, sin_BTK):
  """Turns pairs of features, i and i + K/2, by the angles of `angles`; gives x's shape and dtype."""
  cos, sin = cos_BTK[:, :, None], sin_BTK[:, :, None]
  left, right = jnp.split(x_BTHK.astype(cos.dtype), 2, axis=-1)
  return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1).astype(x_BTHK.dtype)
