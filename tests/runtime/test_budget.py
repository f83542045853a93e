"""Budgets: what is counted, and what is done without first."""
import pytest

from atlas_jax.runtime.agents.agent import CallTokens
from atlas_jax.runtime.budget import SAVED, BudgetSettings, SessionBudget


def test_what_is_saved_first_goes_first_and_the_rest_only_at_the_end():
  budget = SessionBudget(BudgetSettings(tokens=100))
  gone = []
  for _ in range(20):
    gone += [name for name in SAVED if name not in gone and not budget.allows(name)]
    assert budget.allows("student")
    budget.spend("student", CallTokens(4, 1))
  assert gone == ["learner", "judge", "audit", "probe"]
  assert not budget.allows("student")


def test_money_is_by_role_and_calls_that_do_not_say_are_counted():
  budget = SessionBudget(BudgetSettings(money=1.0, prices={"teacher": (0.1, 0.3)}))
  budget.spend("teacher", CallTokens(1_000, 1_000))
  budget.spend("student", CallTokens())
  assert budget.used == pytest.approx(0.4) and budget.unmetered == 1
  assert budget.to_json() == {"used": 0.4, "unmetered": 1, "money": 0.4}


@pytest.mark.parametrize("changed, said", [({"tokens": 0}, "budget.tokens=0"),
                                           ({"money": 1.0}, "budget.prices")])
def test_limits_that_cannot_be_are_refused(changed, said):
  with pytest.raises(ValueError, match=said):
    BudgetSettings(**changed)
