"""Collapse of a memory, told at every evaluation: memory gain, the memories' health, and the signs in both.

The signs of earlier evaluations are read from the run's own metrics.jsonl, up to the step that is evaluated.
So nothing is remembered between calls, and a run that goes on from an earlier checkpoint counts no row of the
steps that it makes again. Nothing here stops a run.
"""
import collections
import functools
import math
import pathlib
from collections.abc import Callable, Sequence

from absl import logging

from atlas_jax import evals
from atlas_jax.evals import Eval, EvalOut, collapse_signs, memory_gain, memory_health
from atlas_jax.evals.collapse_signs import Collapse, Sign
from atlas_jax.files import json_file, json_lines
from atlas_jax.files.damage import Damaged
from atlas_jax.models import lm
from atlas_jax.parallel import hosts
from atlas_jax.workdir import METRICS


def evals_of(config, model: lm.LM, held_out: Callable, mesh) -> dict[str, Eval]:
  """Makes the evaluation of a config, "collapse"; none for a model without fast weights.

  Args:
    config: resolved.
    model: of the run.
    held_out: max_tokens -> a fresh source of held-out batches, of at most so many tokens.
    mesh: over which rows are split.

  Raises:
    ValueError: if there is no other row whose memory could be swapped in.
  """
  if not model.has_fast_weights:
    return {}
  if config.eval.batch_rows < 2:
    raise ValueError("config.eval.batch_rows=1 leaves no other row whose memory could be swapped in to "
                     "measure memory gain; use 2 or more")
  text = functools.partial(held_out, config.eval.gain_max_tokens)
  # One evaluation, not three: the signs need the numbers of this very step, which are in no file yet.
  parts = (memory_gain.make(model, text, mesh, kind=config.loss.kind), memory_health.make(model, text, mesh))
  run = make(parts, chunk_size=model.memory["chunk_size"], evaluations=config.eval.collapse_evals)
  return {"collapse": Eval(run, "every")}


def make(parts: Sequence[Callable], *, chunk_size: int, evaluations: int):
  """Makes an evaluation of several and of what their numbers say of collapse.

  Args:
    parts: (trained, *, step, workdir) -> EvalOut, those of `memory_gain` and `memory_health`.
    chunk_size: tokens of a chunk.
    evaluations: at so many in a row, this one included, a sign must stand.

  Returns:
    run(trained, *, step, workdir) -> EvalOut of the parts, with "eval/collapse_signs", how many signs stand
    now; "eval/collapse_unknown", of how many it cannot be said; "eval/collapsed", 1 where one stood at each
    of the last evaluations, 0 where none did, and NaN where none did and some cannot be said; the same in
    words, and as the note "collapse". Without a workdir this evaluation is judged alone.
  """

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    measured = evals.join(part(trained, step=step, workdir=workdir) for part in parts)
    rows = [*earlier(workdir, step, most=evaluations - 1), measured.scalars]
    found = collapse_signs.collapsed(rows, chunk_size=chunk_size, evaluations=evaluations)
    if found.now and hosts.is_main():
      # A sign may pass while training begins; what has stood for long is worth a warning, and no more.
      logging.log(logging.WARNING if found.signs else logging.INFO, "step %d: %s", step, words(found))
    stands = found.stands
    scalars = {"eval/collapse_signs": float(len(found.now)),
               "eval/collapse_unknown": float(len(found.unknown)),
               "eval/collapsed": math.nan if stands is None else float(stands)}
    quiet = not found.now and not found.unknown
    note = "none" if quiet else words(found)
    return evals.join([measured, EvalOut(scalars, words(found), notes={"collapse": note})])

  return run


def earlier(workdir, step: int, *, most: int) -> list[dict]:
  """Returns the rows of a run's last evaluations before a step, oldest first.

  Args:
    workdir: of the run; None: there are none.
    step: rows of this step and of later ones do not count, whatever start of the run wrote them.
    most: how many at most.
  """
  file = None if workdir is None else pathlib.Path(workdir) / METRICS
  if file is None or not file.exists():
    return []
  try:
    rows = (row for row in json_lines.read(file, torn="drop") if collapse_signs.is_evaluation(row)
            and json_file.is_int(row.get("step")) and row["step"] < step)
    return list(collections.deque(rows, maxlen=most))
  except Damaged as error:
    # The evaluation itself is sound, and a run is not to end over its history.
    logging.warning("signs of collapse at earlier evaluations are not counted: %s", error)
    return []


def words(found: Collapse) -> str:
  """Says what was found: first what has stood long enough, then what stands now, then what is unknown."""
  new = tuple(sign for sign in found.now if sign not in (*found.signs, *found.refuted))
  parts = []
  if found.signs:
    parts.append(f"the memory has collapsed, at each of the last {found.evaluations} evaluations "
                 f"(config.eval.collapse_evals): {_listed(found.signs)}")
  if found.refuted:
    parts.append("no collapse, since what was read of a document tells more of it than another document's "
                 f"memory does: {_listed(found.refuted)}")
  if new:
    parts.append(f"signs of collapse, not yet at {found.evaluations} evaluations in a row (config.eval."
                 f"collapse_evals; {found.seen} seen): {_listed(new)}")
  if found.unknown:
    parts.append(f"unknown, for want of a finite number: {', '.join(found.unknown)}")
  return "; ".join(parts) or "memory collapse: none; no sign stands"


def _listed(signs: Sequence[Sign]) -> str:
  return "; ".join(sign.words for sign in signs)
