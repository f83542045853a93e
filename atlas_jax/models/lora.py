"""Low-rank adapters: which projections have them, and parameters split, joined and merged.

Source: Hu et al. 2021, arXiv:2106.09685; scaling by the rank's root: Kalajdzievski 2023, arXiv:2312.03732.
"""
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

TARGETS = ("q", "k", "v", "out", "gate", "up", "down")
SCALINGS = ("rank", "sqrt_rank")
ADAPTER = ("lora_a", "lora_b")


class Lora(NamedTuple):
  """The adapter of one projection, which adds (x A) B times scale."""

  rank: int
  scale: float

  @classmethod
  def of(cls, options: Mapping | None, target: str) -> "Lora | None":
    """Returns the adapter of a projection, or None where it has none.

    Args:
      options: rank, alpha, targets (names out of TARGETS) and scaling ("rank": alpha / rank, "sqrt_rank":
        alpha / sqrt(rank)); None for no adapters.
      target: the projection's name.

    Raises:
      ValueError: see `check`.
    """
    if options is None:
      return None
    check(options)
    return cls(options["rank"], scale_of(options)) if target in options["targets"] else None


def scale_of(options: Mapping) -> float:
  """Returns the factor on an adapter's product."""
  rank = options["rank"]
  # As the rank grows alpha / sqrt(rank) keeps the size of updates, alpha / rank shrinks it.
  return options["alpha"] / (rank if options["scaling"] == "rank" else rank**0.5)


def check(options: Mapping) -> None:
  """Refuses options of adapters that cannot be made.

  Raises:
    ValueError: naming the option, its value and what it may be.
  """
  fields = {"rank", "alpha", "targets", "scaling"}
  # Exactly these: a missing one has no default here, and a further one would be ignored.
  if set(options) != fields:
    raise ValueError(f"lora has the fields {', '.join(sorted(options))}; it needs "
                     f"{', '.join(sorted(fields))}")
  if options["rank"] < 1:
    raise ValueError(f"lora.rank={options['rank']} must be at least 1; set lora to None for no adapters")
  if options["scaling"] not in SCALINGS:
    raise ValueError(f"lora.scaling={options['scaling']!r} is unknown; known are {', '.join(SCALINGS)}")
  unknown = [name for name in options["targets"] if name not in TARGETS]
  if unknown or not options["targets"]:
    raise ValueError(f"lora.targets={tuple(options['targets'])} must be some of {', '.join(TARGETS)}")


def split(params) -> tuple[dict, dict]:
  """Parts the parameters into (adapters, base): what is trained, and what goes to `frozen`."""
  return _pick(params, lambda name: name in ADAPTER), _pick(params, lambda name: name not in ADAPTER)


def join(adapters, base) -> dict:
  """Returns the model's parameters from the two parts of `split`."""
  joined = dict(base)
  for name, part in adapters.items():
    # `split` leaves out empty parts, so that `base` may lack a branch.
    joined[name] = join(part, base.get(name, {})) if isinstance(part, Mapping) else part
  return joined


def start(model, rng) -> dict:
  """Makes adapters that change nothing yet: A is random, B zero; float32.

  Args:
    model: a `Decoder` with `lora` set.
    rng: a key.
  """
  if model.lora is None:
    raise ValueError("the model has no adapters; give it lora=dict(rank=8, alpha=16, targets=('q', 'v'), "
                     "scaling='rank')")
  # Compiled, so that the base's own random weights, which nothing uses, are never made.
  return jax.jit(lambda key: split(model.init(key, jnp.zeros((1, 1), jnp.int32))["params"])[0])(rng)


def merge(params, options: Mapping) -> dict:
  """Adds each adapter's product to its kernel, in float32, and leaves the adapters out.

  Args:
    params: of a model with adapters.
    options: the model's `lora`.

  Returns:
    Parameters of the same model without adapters, each kernel in the dtype it had.
  """
  merged = {}
  for name, part in params.items():
    if not isinstance(part, Mapping):
      merged[name] = part
    elif ADAPTER[0] in part:
      merged[name] = _merged(part, scale_of(options))
    else:
      merged[name] = merge(part, options)
  return merged


def _merged(part, scale: float) -> dict:
  """Merges one projection of all layers: A is [L, inputs..., R], B is [L, R, outputs...]."""
  kernel = part["kernel"]
  down = part["lora_a"]
  up = part["lora_b"]
  added = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1))(down.astype(jnp.float32), up.astype(jnp.float32))
  rest = {name: leaf for name, leaf in part.items() if name not in ("kernel", *ADAPTER)}
  # One rounding, of the sum: rounded by itself the product would lose what is small beside the kernel.
  return {**rest, "kernel": (kernel.astype(jnp.float32) + scale * added).astype(kernel.dtype)}


def _pick(params, wanted) -> dict:
  picked = {}
  for name, part in params.items():
    inner = _pick(part, wanted) if isinstance(part, Mapping) else part
    # Parts that come out empty are left out: trees of adapters have the branches that hold some, no others.
    if inner if isinstance(part, Mapping) else wanted(name):
      picked[name] = inner
  return picked
