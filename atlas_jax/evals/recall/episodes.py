"""Held-out episodes: every task of episodes asked under controls, and one figure over all of them.

The tasks are drawn by config.eval.episode_items and config.eval.episode_distances, from documents and a split
that training does not see.
"""
from collections.abc import Callable, Iterable, Mapping, Sequence

from atlas_jax import evals
from atlas_jax.data import recall
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.evals import EvalOut
from atlas_jax.evals import recall as evaluations
from atlas_jax.evals.recall import asking, reading
from atlas_jax.models import lm

METRIC = "eval/recall_accuracy"


def eval_of(config, model: lm.LM, mesh, names: Sequence[str]) -> evals.Eval:
  """Makes the evaluation; texts are drawn here, so that what is wrong is said before anything compiles.

  Args:
    config: resolved.
    model: of the run.
    mesh: over which rows are split.
    names: tasks of data/recall that have items and distances.

  Returns:
    one that gives what the evaluations of its tasks give, see `asking.make`, and over all of them `figures`.

  Raises:
    ValueError: if no text asks beyond the reach of attention, or texts cannot be drawn.
  """
  tasks = [recall.load(name) for name in names]
  tokenizer = tokenizers.load(config.data.tokenizer)
  setting = evaluations.setting_of(config, model, tasks, tokenizer)
  reader = reading.make(model, mesh, rows=config.eval.batch_rows,
                        segment_len=evaluations.segment_len(config, model))
  runs = []
  for task in tasks:
    cells = asking.drawn(task, setting, samples=config.eval.task_samples, seed=evaluations.SEED)
    runs.append(asking.make(task, setting, cells, reader))
  longest = max(setting.options["episode_distances"])
  if longest <= reader.reach_tokens:
    raise ValueError(f"config.eval.episode_distances has {longest} tokens at most, and attention reaches "
                     f"{reader.reach_tokens} back through all blocks: no answer would need the memory; ask "
                     "further back")
  return evals.Eval(joined(runs), "every")


def joined(runs: Iterable[Callable]) -> Callable:
  """Makes one evaluation of those of several tasks."""
  runs = list(runs)

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    out = evals.join(one(trained, step=step, workdir=workdir) for one in runs)
    found = figures(out.rows)
    return out._replace(scalars={**out.scalars, **found}, text=f"{out.text}\n{line_of(found)}")

  return run


def figures(rows: Iterable[Mapping]) -> dict[str, float]:
  """Returns how many answers are right whose things stand beyond the reach of attention.

  Args:
    rows: of `asking.rows_of`, of all cells of all tasks.

  Returns:
    "eval/recall_accuracy_past_window", of the model as it is, and under controls
    "eval/recall_accuracy_emptied" and so on, of the same answers: means over tasks, in which every answer
    counts alike; "eval/recall_chance"; and as it is, by distance and number of items,
    "eval/recall_accuracy_by_distance/D", "_by_items/N".
  """
  past = [row for row in rows if row["distance_tokens_least"] > row["reach_tokens"]]
  found = {}
  for condition in dict.fromkeys(row["condition"] for row in past):
    here = [row for row in past if row["condition"] == condition]
    name = "past_window" if condition == reading.AS_IT_IS else condition
    found[f"{METRIC}_{name}"] = _mean_over_tasks(here, "accuracy")
  as_it_is = [row for row in past if row["condition"] == reading.AS_IT_IS]
  found["eval/recall_chance"] = _mean_over_tasks(as_it_is, "chance")
  for axis in ("distance", "items"):
    for value in sorted({row[axis] for row in as_it_is}):
      here = [row for row in as_it_is if row[axis] == value]
      found[f"{METRIC}_by_{axis}/{value}"] = _mean_over_tasks(here, "accuracy")
  return found


def _mean_over_tasks(rows: Sequence[Mapping], field: str) -> float:
  names = list(dict.fromkeys(row["eval"] for row in rows))
  total = 0.0
  for name in names:
    here = [row for row in rows if row["eval"] == name]
    total += sum(row[field] * row["answers"] for row in here) / sum(row["answers"] for row in here)
  return total / len(names)


def line_of(found: Mapping[str, float]) -> str:
  """Says the figures in words."""
  named = {name.removeprefix(f"{METRIC}_"): value for name, value in found.items() if name.startswith(METRIC)}
  parts = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in named.items() if "/" not in name]
  return (f"episodes: right answers beyond the reach of attention, mean over tasks: {', '.join(parts)}; "
          f"chance {found['eval/recall_chance']:.3g}")
