"""Columns of rows that the rewards of a config ask for, and so what a recipe needs of its data."""
from atlas_jax.data.columns import Needs
from atlas_jax.language.initial_model import InitialModel
from atlas_jax.rollout import rewards
from atlas_jax.rollout.reward_calls import RewardCall


def needs_of(config, start: InitialModel | None, *, solution: bool, answer: bool) -> Needs:
  """Returns what a recipe reads of problems.

  Args:
    config: with its rewards and the grader of its evaluations.
    start: of the model, whose template chats are put in; None: prompts are texts.
    solution: whether solutions are read.
    answer: whether completions are scored, which reads answers and what rewards ask for.

  Raises:
    ValueError: if a reward is not found.
  """
  columns = asked(*rewards.parse_weights(config.rewards), config.eval.grader) if answer else frozenset()
  return Needs(solution, answer, columns, None if start is None else start.template)


def asked(*names: str) -> frozenset[str] | None:
  """Returns the columns that rewards ask for by name, or None if one takes all there are, as `extra`.

  What stands in **kwargs is handed over, but not asked for.
  """
  # From the functions' signatures: what a reward will read is known before any row is.
  calls = [RewardCall(name, rewards.load(name)) for name in names]
  if any(call.takes_extra for call in calls):
    return None
  return frozenset().union(*(call.asked.required | call.asked.optional for call in calls))
