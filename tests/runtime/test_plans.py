"""Plans: levels of steps that can be done side by side, and plans that cannot be."""
import pytest

from atlas_jax.runtime import plans


def made(*steps):
  return {"steps": [{"id": number, "description": "do", "depends_on": list(after)}
                    for number, *after in steps]}


def test_levels_hold_what_can_be_done_side_by_side():
  steps = plans.read(made((3, 1, 2), (1,), (2,), (4, 3)))
  assert [[one.id for one in level] for level in plans.levels(steps)] == [[1, 2], [3], [4]]
  assert plans.read(plans.to_json(steps)) == steps


@pytest.mark.parametrize("value, said", [
    (made((1, 2), (2, 1)), "wait for one another"), (made((1, 1)), "wait for one another"),
    (made((1, 7)), "depends on"), (made((1,), (1,)), "not all different"),
    (made(*((number,) for number in range(13))), "has 13 steps; it may have 12")])
def test_a_plan_that_cannot_be_is_refused(value, said):
  with pytest.raises(ValueError, match=said):
    plans.read(value)
