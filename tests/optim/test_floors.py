"""Floors of read gates by phase."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.optim import floors

ORIGINAL = dict(phase_fracs="0.3,0.7", gate_floors="0.30,0.10,0.05", steps=5_000)


def test_the_phases_are_those_of_the_original_run():
  at = jax.jit(jax.vmap(floors.schedule(**ORIGINAL)))
  phase, floor = at(jnp.array([0, 1_499, 1_500, 3_499, 3_500, 4_999, 99_999]))
  assert phase.tolist() == [0, 0, 1, 1, 2, 2, 2]
  assert np.allclose(floor, [0.3, 0.3, 0.1, 0.1, 0.05, 0.05, 0.05])
  assert floor.dtype == jnp.float32


def test_a_run_without_phases_has_one_floor():
  phase, floor = floors.schedule(phase_fracs=None, gate_floors="0.2", steps=10)(jnp.int32(7))
  assert (int(phase), float(floor)) == (0, pytest.approx(0.2))


REFUSED = [
  (dict(gate_floors="0.3,0.1"), r"config.episode.gate_floors='0.3,0.1' has 2 floors, .*makes 3 phases"),
  (dict(phase_fracs=None), r"has 3 floors, and config.episode.phase_fracs=None makes 1 phases"),
  (dict(phase_fracs="0.7,0.3"), r"config.episode.phase_fracs='0.7,0.3' must rise"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_phases_that_cannot_be_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    floors.schedule(**{**ORIGINAL, **fields})


def test_the_model_is_used_with_the_last_floor():
  floors.check_last("0.30,0.10,0.05", 0.05)
  with pytest.raises(ValueError, match=r"config.model.gate_floor=0.0 is what the model is used .*is 0.05"):
    floors.check_last("0.30,0.10,0.05", 0.0)
