"""Held-out problems, answered and graded."""
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from atlas_jax.evals import EvalOut
from atlas_jax.files.damage import clipped

SHOWN_CHARS = 400  # Of a prompt or an answer in the text.


def make(write: Callable, grade: Callable, found: Sequence[Any], *, grader: str = "correct",
         shown: int = 4):
  """Makes the evaluation.

  Args:
    write: (trained, problems, *, step) -> for each problem None, if it is not asked, or what was written,
      with `text`, `tokens` and `reason`.
    grade: (problems, what was written, *, step) -> (reward_B, name -> reward_B), NaN where there is nothing
      to say.
    found: the problems, each with `where`, `prompt` and `answer`.
    grader: the one of these names that says whether an answer is right.
    shown: problems in the text.

  Returns:
    run(trained, *, step) -> EvalOut with val/accuracy (fraction of graded answers that are right),
    val/reward, val/length_tokens, val/ended_frac (fraction that ended by a stop token or string) and
    val/graded_count.

  Raises:
    ValueError: from run, if no problem can be graded.
  """
  def run(trained, *, step: int, workdir=None) -> EvalOut:
    del workdir
    given = write(trained, found, step=step)
    pairs = [(problem, one) for problem, one in zip(found, given, strict=True) if one is not None]
    if not pairs:
      raise ValueError(f"none of the {len(found)} held-out problems can be asked: their prompts are longer "
                       "than config.data.max_prompt_tokens")
    asked = [problem for problem, _ in pairs]
    written = [one for _, one in pairs]
    reward_B, each = grade(asked, written, step=step)
    # Accuracy is of one reward, named by config.eval.grader; the others are measured beside it.
    right_B = each[grader]
    graded_B = ~np.isnan(right_B)
    if not graded_B.any():
      raise ValueError(f"{asked[0].where}: config.eval.grader={grader!r} grades none of the "
                       f"{len(asked)} held-out answers; do the problems have answers? Name another reward")
    ended_B = [one.reason in ("stop_token", "stop_string") for one in written]
    known_B = reward_B[~np.isnan(reward_B)]
    # At least 1, so that partial credit is not right; answers that cannot be graded count neither way.
    scalars = {"val/accuracy": float(np.mean(right_B[graded_B] >= 1)),
               **({"val/reward": float(np.mean(known_B))} if len(known_B) else {}),
               "val/length_tokens": float(np.mean([len(one.tokens) for one in written])),
               "val/ended_frac": float(np.mean(ended_B)), "val/graded_count": float(np.sum(graded_B))}
    lines = [_shown(*pairs[at], float(right_B[at])) for at in range(min(shown, len(pairs)))]
    return EvalOut(scalars, "\n".join(lines))

  return run


def _shown(problem, written, right: float) -> str:
  mark = "not graded" if math.isnan(right) else "right" if right >= 1 else f"wrong, answer {problem.answer!r}"
  prompt = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]
  asked, said = (clipped(text, SHOWN_CHARS, f" ({len(text)} characters)") for text in (prompt, written.text))
  return f"{asked} -> {said} ({mark})"
