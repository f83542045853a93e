"""The floor of read gates in training, as a function of the number of updates made so far.

A floor keeps memory in the model's output while it is not of use yet; see `models.blocks.gate`, where the
gate keeps its gradient at any floor. The last phase has the floor with which the model is used.
"""
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from atlas_jax.defaults import bounds


def schedule(*, phase_fracs: str | None, gate_floors: str, steps: int) -> Callable:
  """Makes the phases of a run.

  Args:
    phase_fracs: fractions of the run after which the next phase begins, rising, such as "0.3,0.7".
    gate_floors: the floor of each phase, such as "0.30,0.10,0.05".
    steps: updates of the run.

  Returns:
    A function of the count of finished updates, int32 [], that gives (phase, floor): int32 [], from 0, and
    float32 [].

  Raises:
    ValueError: if there is not one floor per phase, or fractions do not rise.
  """
  ends = () if phase_fracs is None else bounds.numbers_of(phase_fracs, whole=False)
  floors = floors_of(gate_floors)
  if len(floors) != len(ends) + 1:
    raise ValueError(f"config.episode.gate_floors={gate_floors!r} has {len(floors)} floors, and "
                     f"config.episode.phase_fracs={phase_fracs!r} makes {len(ends) + 1} phases; give each "
                     "phase one floor")
  if sorted(ends) != list(ends):
    raise ValueError(f"config.episode.phase_fracs={phase_fracs!r} must rise")
  first_steps = np.round(np.array(ends) * steps).astype(np.int32)

  def at(step):
    phase = jnp.sum(step >= jnp.asarray(first_steps, jnp.int32)).astype(jnp.int32)
    return phase, jnp.asarray(floors, jnp.float32)[phase]

  return at


def floors_of(gate_floors: str) -> tuple[float, ...]:
  """Returns the floors that config.episode.gate_floors names."""
  return bounds.numbers_of(gate_floors, whole=False)


def check_last(gate_floors: str, gate_floor: float) -> None:
  """Refuses a model that would be used with another floor than it was last trained with.

  Raises:
    ValueError: names both.
  """
  last = floors_of(gate_floors)[-1]
  if last != gate_floor:
    raise ValueError(f"config.model.gate_floor={gate_floor} is what the model is used with, and the last of "
                     f"config.episode.gate_floors={gate_floors!r} is {last}; set them alike")
