"""Puzzles: what a recursive model answers, evaluation by evaluation, and how long it thinks."""
import re

from atlas_jax.files.damage import Damaged
from atlas_jax.monitor.dashboard import boards, charts
from atlas_jax.monitor.dashboard.charts import Missing, Part, Picture, Tile, Tiles, Words
from atlas_jax.monitor.dashboard.views import View
from atlas_jax.monitor.run_folder import RunFolder

TITLE, ORDER = "Puzzles", 7
PASS = re.compile(r"ARC/pass@(\d+)$")


def parts(view: View) -> list[Part]:
  """Returns the page of a run, with the pictures of its newest evaluation."""
  run = view.run
  if run is None or not is_of_puzzles(run):
    return [_none()]
  newest = max(run.pictures(), default=None)
  record, problem = _record(run, newest)
  found = boards.parts(record, 0, boards.n_steps(record)) if record is not None else problem
  return [*found, *page(run, newest, view.axis)]


def show(view: View, draw) -> None:
  """Asks which evaluation's pictures are shown."""
  import streamlit as st
  run = view.run
  if run is None or not is_of_puzzles(run):
    draw([_none()])
    return
  steps = sorted(run.pictures())
  step = steps[-1] if steps else None
  if len(steps) > 1:
    follow = st.toggle("Follow the newest evaluation", value=True, key="puzzle_follow")
    if not follow:
      step = st.select_slider("Evaluation at step", steps, steps[-1], key=f"puzzle_step {run.name}")
  record, problem = _record(run, step)
  if record is None:
    draw([*page(run, step, view.axis), *problem])
    return
  chosen = st.selectbox("Puzzle", range(len(record["puzzles"])), key=f"puzzle {run.name}",
                        format_func=boards.names(record).__getitem__)
  made = st.slider("Supervision step", 1, boards.n_steps(record), boards.n_steps(record),
                   key=f"puzzle_supervision {run.name}") if boards.n_steps(record) > 1 else 1
  # Another evaluation may have traced fewer puzzles than the one that was chosen in.
  draw([*boards.parts(record, min(chosen or 0, len(record["puzzles"]) - 1), made),
        *page(run, step, view.axis)])


def _record(run: RunFolder, step: int | None) -> tuple[dict | None, list[Part]]:
  """Returns the answers step by step of an evaluation, or None and what is to be said of them."""
  if step is None:
    return None, []
  try:
    record = run.step_answers(step)
  except Damaged as error:
    return None, [Words(str(error), "warning")]
  missing = Missing("This evaluation kept no answers step by step.",
                    "Runs of this version keep those of the puzzles that config.puzzle_eval.pictures draws.")
  return record, [missing] if record is None else []


def is_of_puzzles(run: RunFolder) -> bool:
  """Returns whether a run is one on puzzles."""
  return "train/supervision_steps_seen" in run.metrics.names


def _none() -> Missing:
  return Missing("This is no run on puzzles.",
                 "config.recipe=trm makes one, such as configs/trm_sudoku.py:4x4.")


def page(run: RunFolder, step: int | None, axis: str) -> list[Part]:
  """Returns the page with the pictures of the evaluation at a step."""
  names = sorted((int(found[1]), name) for name in run.metrics.names if (found := PASS.match(name)))
  attempts = {name: (f"pass@{tries}", "points") for tries, name in names}

  def both(title: str, metric: str, label: str = ""):
    return charts.lines(run, title,
                        {f"recent/{metric}": "training", f"eval/all/{metric}": ("held out", "points")},
                        axis, y_label=label)

  shown = charts.present(
      _tiles(run), *_pictures(run, step),
      charts.lines(run, "ARC tasks solved within K attempts", attempts, axis) if attempts else None,
      both("Puzzles solved, every token right", "exact_accuracy", "fraction of puzzles"),
      both("Tokens right", "accuracy", "fraction of tokens"),
      both("Supervision steps on a puzzle", "steps", "steps, mean"),
      both("Halting decision right", "q_halt_accuracy", "fraction of puzzles"),
      charts.lines(run, "Loss of tokens",
                   {"train/lm_loss": "training", "eval/all/lm_loss": ("held out", "points")},
                   axis, y_label="nats"),
      charts.lines(run, "Loss of the halting decision", {
          "train/q_halt_loss": "training", "eval/all/q_halt_loss": ("held out", "points")}, axis,
          y_label="nats"))
  if step is None:
    shown.append(Missing("No pictures of answers yet.",
                         "config.puzzle_eval.pictures says how many each evaluation "
                         "draws, config.train.eval_every_steps when."))
  return shown


def _tiles(run: RunFolder) -> Tiles | None:
  tiles = []
  for name, label in (("eval/all/exact_accuracy", "Solved"), ("eval/all/accuracy", "Tokens right"),
                      ("ARC/pass@2", "ARC in two attempts")):
    value = run.metrics.last(name)
    if value is not None:
      tiles.append(Tile(label, f"{value:.1%}", "", "held out"))
  count = run.metrics.last("eval/all/count")
  if count is not None:
    tiles.append(Tile("Held-out puzzles", f"{count:,.0f}"))
  return Tiles(tiles) if tiles else None


def _pictures(run: RunFolder, step: int | None) -> list[Part]:
  return [Picture(f"{file.stem.capitalize()} at step {step:,}", file,
                  "Left solved, right unsolved: input, target and "
                  "prediction of each; wrong cells are red or crossed.")
          for file in run.pictures().get(step, ())] if step is not None else []
