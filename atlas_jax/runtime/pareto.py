"""Pareto sets per task: texts that are best at some task are kept, and not the best on the average alone."""
from collections.abc import Mapping, Sequence


def best_at(scores: Sequence[Mapping[str, float]]) -> dict[str, frozenset[int]]:
  """Returns for each task which candidates have its highest score.

  Args:
    scores: of each candidate, by task; a task that one has no score of says nothing of it.
  """
  found: dict[str, frozenset[int]] = {}
  for task in dict.fromkeys(task for one in scores for task in one):
    highest = max(one[task] for one in scores if task in one)
    found[task] = frozenset(number for number, one in enumerate(scores) if one.get(task) == highest)
  return found


def front(scores: Sequence[Mapping[str, float]]) -> dict[int, int]:
  """Returns the candidates that stay, each with the number of tasks at which it is best.

  One is left out where all its tasks have another best candidate that stays: the ones that are best at fewest
  tasks are tried first, of equal ones the newest.
  """
  best = best_at(scores)
  count = {number: sum(number in those for those in best.values()) for number in range(len(scores))}
  staying = {number for number in count if count[number]}
  for number in sorted(staying, key=lambda one: (count[one], mean(scores[one]), -one)):
    if all(those & staying - {number} for those in best.values() if number in those):
      staying.discard(number)
  return {number: count[number] for number in sorted(staying)}


def mean(scores: Mapping[str, float]) -> float:
  """Returns the mean over tasks; 0 without any."""
  return sum(scores.values()) / len(scores) if scores else 0.0
