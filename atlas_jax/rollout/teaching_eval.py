"""The evaluation of a teacher: held-out questions answered with its guidance, without, and with controls.

Controls are a placebo, the guidance of another question, and one fixed hint for all questions. All answers to
a question are drawn with the same seed, so that they differ by what the student was told alone.
"""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import logging

from atlas_jax.data import packing, prompts
from atlas_jax.data.problems import Problem
from atlas_jax.evals import EvalOut, stopping, teaching
from atlas_jax.files.damage import clipped
from atlas_jax.language.decoding.sampler import Sampler
from atlas_jax.language.initial_model import InitialModel
from atlas_jax.rollout import ask, held_out, leakage, reward_calls
from atlas_jax.rollout.ask import ProblemCompletions
from atlas_jax.rollout.lessons import Lesson, Lessons, Taught
from atlas_jax.rollout.students import StudentReply
from atlas_jax.rollout.teaching import Teaching, baseline_messages
from atlas_jax.state import Trained

WORST = 8  # Degradations that are listed.
SHOWN_CHARS = 240


def make(config, start: InitialModel, lessons: Lessons, sampler: Sampler) -> Callable:
  """Makes the evaluation.

  Args:
    config: with the groups data, eval, sampler and teacher.
    start: the teacher's tokenizer and template.
    lessons: has questions answered.
    sampler: writes the teacher's replies.

  Returns:
    run(trained, *, step) -> EvalOut, metrics by the names of eval/teaching_*, see `monitor.schema`.

  Raises:
    ValueError: if no held-out question can be graded.
  """
  found = prompts.listed(config, "held_out")
  encode = held_out.encoder_of(config, start)
  _check(config, found, lessons, encode)
  contaminated = contamination(found, lessons)
  options = held_out.options_of(config, start, n=1, temperature=config.eval.temperature)
  write = ask.batch_generate(sampler, encode, options, rows=config.eval.batch_rows, seed=config.seed)
  count = lambda text: len(start.tokenizer.encode(text.encode("utf-8", "replace")))
  hint = config.teacher.fixed_hint
  shown = config.eval.shown
  rows = config.eval.batch_rows

  def run(trained: Trained, *, step: int, workdir=None) -> EvalOut:
    del workdir
    lessons.load(trained)
    begun = _by_parts(lambda part, seed: lessons.begin(part, seed=seed, step=step), found, rows, config.seed)
    asked = [lessons.teacher_problem(lesson) for lesson in begun]
    written = write(held_out.whole_model(trained), asked, step=step)
    kept = [at for at, one in enumerate(written)
            if one is not None and not np.isnan(begun[at].baseline_score)]
    if not kept:
      raise ValueError(f"none of the {len(found)} held-out questions is asked and graded: do they have "
                       "answers, and do the teacher's prompts fit into config.data.max_prompt_tokens?")
    begun = [begun[at] for at in kept]
    replies: list[ProblemCompletions] = [one for at in kept if (one := written[at]) is not None]
    taught = _finish(lessons, begun, [lessons.parse(one.text) for one in replies], rows, config.seed, step)
    controls = {"placebo": _finish(lessons, begun, placebos(taught, config.seed), rows, config.seed, step)}
    if hint is not None:
      controls["fixed"] = _finish(lessons, begun, [Teaching(hint)] * len(begun), rows, config.seed, step)
    scalars = metrics(taught, controls, count_tokens=count, seed=config.seed)
    scalars["eval/teaching_contaminated_frac"] = len(contaminated) / len(found)
    graded = [one for one in taught if not np.isnan(one.guided_score)]
    bad = teaching.worst([one.columns for one in graded], *_scores(graded), WORST)
    return EvalOut(scalars, _text(taught[:shown]), rows=tuple(bad))

  return run


def _check(config, found: Sequence[Problem], lessons: Lessons, encode: Callable) -> None:
  """Refuses held-out questions that cannot be asked or graded, before anything is compiled."""
  if all(problem.answer is None for problem in found) and config.teacher.grader in held_out.NEED_ANSWERS:
    raise ValueError(f"config.teacher.grader={config.teacher.grader!r} compares with answers, and none of "
                     f"the {len(found)} held-out questions has one; give answers, or set "
                     "config.data.held_out_frac=0 to train without evaluation")
  # Without a word of the student, which can only make them longer.
  bare = [Lesson(problem, StudentReply(""), 0.0) for problem in found]
  if all(encode(lessons.teacher_problem(one)) is None for one in bare):
    raise ValueError(f"none of the {len(found)} held-out questions can be shown to the teacher: its prompts "
                     f"are longer than config.data.max_prompt_tokens={config.data.max_prompt_tokens}")


def _by_parts(work: Callable, found: Sequence[Any], rows: int, seed: int) -> list:
  """Returns what (part, seed) -> results gives for all; the last part is filled up, for one shape."""
  results: list = []
  for first in range(0, len(found), rows):
    stopping.check()
    part = found[first:first + rows]
    filled = [*part, *[part[-1]] * (rows - len(part))]
    # Draws depend on the row and the seed, so every part has a seed of its own.
    results += work(filled, seed + first)[:len(part)]
  return results


def _finish(lessons: Lessons, begun: Sequence[Lesson], given: Sequence[Teaching], rows: int, seed: int,
            step: int) -> list[Taught]:
  """Has all questions answered with guidance, with the seeds of the answers without."""
  def work(part, seed):
    return lessons.finish_with([lesson for lesson, _ in part], [given for _, given in part], seed=seed,
                               step=step)

  return _by_parts(work, list(zip(begun, given, strict=True)), rows, seed)


def placebos(taught: Sequence[Taught], seed: int) -> list[Teaching]:
  """Returns for each question the guidance of another one, if there is any of one with another answer."""
  order = packing.permutation(len(taught), seed=seed, epoch=0)
  found = {}
  for place, at in enumerate(order):
    others = [order[(place + ahead) % len(order)] for ahead in range(1, len(order))] or [at]
    mine = taught[at].lesson.problem.answer
    chosen = next((one for one in others if taught[one].lesson.problem.answer != mine), others[0])
    found[at] = taught[chosen].teaching
  return [found[at] for at in range(len(taught))]


def contamination(found: Sequence[Problem], lessons: Lessons) -> list[str]:
  """Returns places of problems whose baseline prompt shows the answer, each with how, and warns of them."""
  places = []
  for problem in found:
    messages = baseline_messages(problem.prompt, lessons.settings.templates)
    # The whole prompt but the question: of a chat the question is its last message, and earlier ones, which
    # might hold the solution, are looked at.
    asked = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]
    kind = leakage.contaminated(reward_calls.text_of(messages), answer=problem.answer,
                                solution=problem.solution, question=asked)
    if kind is not None:
      places.append(f"{problem.where} ({kind})")
  if places:
    logging.warning("%d of %d held-out prompts show the answer: %s", len(places), len(found),
                    "; ".join(places[:3]))
  return places


def metrics(taught: Sequence[Taught], controls: dict[str, list[Taught]], *, count_tokens: Callable,
            seed: int) -> dict[str, float]:
  """Returns metrics by name; those without a value are left out."""
  pairs = [one for one in taught if not np.isnan(one.guided_score)]
  without_B, with_B = _scores(pairs)
  tokens_B = [count_tokens(one.teaching.guidance or "") for one in pairs]
  ended_B = [one.guided.reason in ("stop_token", "stop_string") for one in pairs]
  found: dict[str, float | None] = {
      "baseline_accuracy": _mean(without_B), "accuracy": _mean(with_B), "graded_count": float(len(pairs)),
      **teaching.measures(without_B, with_B, tokens_B, ended_B, **_lengths(pairs)),
      **teaching.paired_tests(without_B, with_B),
      "guidance_tokens": _mean(tokens_B), "leaked_frac": _mean([one.leak is not None for one in taught]),
      "malformed_frac": _mean([one.teaching.problem is not None for one in taught]),
      "silent_frac": _mean([not (one.teaching.guidance or "").strip() for one in pairs])}
  for name, interval in teaching.intervals(without_B, with_B, seed=seed).items():
    if interval is not None:
      called = {"without": "baseline_accuracy", "with": "accuracy"}.get(name, name)
      found |= {f"{called}_low": interval[0], f"{called}_high": interval[1]}
  for name, rows in controls.items():
    score_B = np.array([one.guided_score for one in rows])
    known_B = ~np.isnan(score_B)
    found[f"{name}_accuracy"] = _mean(score_B[known_B])
    # Of guidance that helps by what it says, this is near the gain over no guidance.
    both = [(one.guided_score, score) for one, score in zip(taught, score_B, strict=True)
            if not np.isnan(one.guided_score + score)]
    found[f"over_{name}"] = _mean([mine - score for mine, score in both])
  return {f"eval/teaching_{name}": float(value) for name, value in found.items() if value is not None}


def _scores(taught: Sequence[Taught]) -> tuple[np.ndarray, np.ndarray]:
  return (np.array([one.lesson.baseline_score for one in taught]),
          np.array([one.guided_score for one in taught]))


def _lengths(pairs: Sequence[Taught]) -> dict[str, Any]:
  if any(one.guided.tokens is None or one.lesson.baseline.tokens is None for one in pairs):
    return {}
  return {"without_tokens_B": [one.lesson.baseline.tokens for one in pairs],
          "with_tokens_B": [one.guided.tokens for one in pairs]}


def _mean(column) -> float | None:
  return float(np.mean(column)) if len(column) else None


def _text(taught: Sequence[Taught]) -> str:
  def short(text: str | None) -> str:
    return clipped(repr(text), SHOWN_CHARS, f" ({len(str(text))} characters)")

  return "\n".join(
      f"{short(row['question'])}: alone {short(row['baseline'])} ({row['baseline_score']}), told "
      f"{short(row['guidance'])} {short(row['guided'])} ({row['guided_score']})"
      for row in (one.columns for one in taught))
