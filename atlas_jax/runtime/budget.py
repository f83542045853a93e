"""Budgets of sessions: tokens, calls and money, and what is left out first where they run short."""
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from atlas_jax.runtime.agents.agent import CallTokens

# What is done without when a budget runs short, in this order; the number is the fraction of the budget
# behind which it is. Students and the validation of what is shown are never left out.
SAVED: Mapping[str, float] = {"learner": 0.6, "judge": 0.8, "audit": 0.9, "probe": 0.95}


@dataclasses.dataclass(frozen=True)
class BudgetSettings:
  """Limits of one session; None: none.

  Raises:
    ValueError: for a limit that cannot be.
  """

  tokens: int | None = None  # of all roles, prompts and completions
  calls: int | None = None   # of models
  money: float | None = None  # by `prices`
  # role -> money for 1,000 tokens of prompts and completions: {"student": (0.1, 0.3)}
  prices: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name in ("tokens", "calls", "money"):
      value = getattr(self, name)
      if value is not None and not 0 < value < math.inf:
        raise ValueError(f"budget.{name}={value} must be above 0, or None for no limit")
    if self.money is not None and not self.prices:
      raise ValueError(f"budget.money={self.money} needs budget.prices, without which nothing costs anything")


class SessionBudget:
  """Tokens, calls and money of one session.

  Attributes:
    tokens: role -> {prompt, completion, calls}.
    unmetered: calls whose tokens nobody said.
  """

  def __init__(self, settings: BudgetSettings):
    """Starts with nothing spent."""
    self._settings = settings
    self.tokens: dict[str, dict[str, int]] = {}
    self.unmetered = 0

  def spend(self, role: str, spent: CallTokens | None) -> dict[str, int]:
    """Counts calls of a role; returns what was counted, as records have it."""
    given = spent or CallTokens(calls=0)
    self.unmetered += given.calls if given.prompt is None or given.completion is None else 0
    counted = {"prompt": given.prompt or 0, "completion": given.completion or 0, "calls": given.calls}
    total = self.tokens.setdefault(role, dict.fromkeys(counted, 0))
    for name, value in counted.items():
      total[name] += value
    return counted

  @property
  def used(self) -> float:
    """Fraction of the tightest limit that is spent; 0 without limits."""
    limits = self._settings
    counts = self.tokens.values()
    fractions = [0.0]
    if limits.tokens:
      fractions.append(sum(one["prompt"] + one["completion"] for one in counts) / limits.tokens)
    if limits.calls:
      fractions.append(sum(one["calls"] for one in counts) / limits.calls)
    if limits.money:
      fractions.append(self.money / limits.money)
    return max(fractions)

  @property
  def money(self) -> float:
    """Cost of the tokens."""
    prices = self._settings.prices
    return sum((one["prompt"] * prices[role][0] + one["completion"] * prices[role][1]) / 1_000
               for role, one in self.tokens.items() if role in prices)

  def allows(self, what: str) -> bool:
    """Returns whether there is enough left for something of `SAVED`; for anything else, for one call more."""
    return self.used < SAVED.get(what, 1.0)

  def to_json(self) -> dict[str, Any]:
    """Returns what was spent, for records."""
    return {"used": round(self.used, 4), "unmetered": self.unmetered,
            **({"money": round(self.money, 6)} if self._settings.prices else {})}
