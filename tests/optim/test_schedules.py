"""Learning rates at the points that matter."""
import jax
import numpy as np
import pytest

from atlas_jax.optim import schedules
from tests import trm_fixture

FIELDS = dict(lr=0.1, warmup_steps=4, steps=20, schedule="cosine", decay_frac=0.25, final_lr_frac=0.1)


def rates(**changes):
  fields = {**FIELDS, **changes}
  rate = jax.jit(schedules.schedule(**fields))
  return np.array([rate(count) for count in range(fields["steps"])])


@pytest.mark.parametrize("kind", schedules.KINDS)
def test_warm_up_starts_with_the_first_update(kind):
  np.testing.assert_allclose(rates(schedule=kind)[:4], [0.025, 0.05, 0.075, 0.1], rtol=1e-6)


@pytest.mark.parametrize("kind", schedules.KINDS)
def test_the_last_update_has_the_final_rate(kind):
  np.testing.assert_allclose(rates(schedule=kind)[-1], 0.01, rtol=1e-5)
  rate = schedules.schedule(**{**FIELDS, "schedule": kind})
  np.testing.assert_allclose(rate(50), 0.01, rtol=1e-5)  # Past the end it stays.


def test_cosine_is_half_way_at_half_time():
  np.testing.assert_allclose(rates()[4 + 8 - 1], 0.055, rtol=1e-5)
  assert np.all(np.diff(rates()[3:]) < 0)


def test_wsd_is_stable_then_falls_in_a_line():
  values = rates(schedule="wsd")
  np.testing.assert_allclose(values[3:15], 0.1, rtol=1e-6)
  np.testing.assert_allclose(np.diff(values[14:]), -0.018, rtol=1e-4)


def test_no_warm_up_starts_at_the_top():
  np.testing.assert_allclose(rates(schedule="wsd", warmup_steps=0)[0], 0.1, rtol=1e-6)


def test_a_run_shorter_than_its_warm_up_ends_inside_it():
  np.testing.assert_allclose(rates(steps=3), [0.025, 0.05, 0.075], rtol=1e-6)


def test_a_warm_up_into_the_decay_stays_below_it():
  values = rates(schedule="wsd", warmup_steps=18)
  assert values.max() < 0.1
  np.testing.assert_allclose(values[-1], 0.01, rtol=1e-5)


@pytest.mark.parametrize("changes", [
    dict(lr=0.0), dict(warmup_steps=-1), dict(steps=0), dict(decay_frac=0.0), dict(decay_frac=1.5),
    dict(final_lr_frac=-0.1), dict(schedule="linear")])
def test_fields_out_of_range_are_named(changes):
  (name, value), = changes.items()
  with pytest.raises(ValueError, match=f"config.optim.{name}={value!r}"):
    schedules.schedule(**{**FIELDS, **changes})


@pytest.mark.parametrize("final_lr_frac", [1.0, 0.1])
def test_cosine_is_the_schedule_of_the_original_trm(final_lr_frac):
  misc = trm_fixture.arrays("misc")
  rate = schedules.schedule(**FIELDS | dict(lr=1e-4, warmup_steps=2_000, steps=65_104,
                                            final_lr_frac=final_lr_frac))
  ours = [rate(int(step) - 1) for step in misc["lr/steps"]]
  np.testing.assert_allclose(ours, misc[f"lr/min_ratio_{final_lr_frac}"], rtol=1e-5)
