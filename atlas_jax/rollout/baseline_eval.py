"""The gain of training over the model it began with: the same held-out problems, answered by both."""
import pathlib
from collections.abc import Callable

from atlas_jax.evals import EvalOut, teaching
from atlas_jax.files import json_file, write
from atlas_jax.parallel import hosts
from atlas_jax.state import Trained
from atlas_jax.workdir import BASELINE

SUCCESS = "val/accuracy"
TOKENS = "val/length_tokens"


def make(answered: Callable, first: Callable) -> Callable:
  """Makes an evaluation also compare with the model that training began with.

  That one is asked once, at the first evaluation of a run, and its numbers are kept in the workdir.

  Args:
    answered: (trained, *, step, workdir) -> EvalOut with val/accuracy and val/length_tokens.
    first: () -> what is trained, as training began with it.

  Returns:
    run(trained, *, step, workdir) -> EvalOut of `answered` with eval/baseline_* besides, see
    `evals.teaching.baseline_comparison`; what is met is 1, what is missed 0.
  """
  kept: dict[str, float] = {}

  def baseline(trained: Trained, workdir) -> dict[str, float]:
    if kept:
      return kept
    file = None if workdir is None else pathlib.Path(workdir) / BASELINE
    saved = hosts.json_of_main(json_file.read_sealed(file) if file is not None and file.is_file() else {})
    if not saved:
      found = answered(Trained(first(), trained.frozen), step=0, workdir=None).scalars
      saved = {"success": found[SUCCESS], "tokens": found[TOKENS]}
      if file is not None and hosts.is_main():
        write.json(file, json_file.sealed(saved))
    kept.update(saved)
    return kept

  def run(trained: Trained, *, step: int, workdir=None) -> EvalOut:
    before = baseline(trained, workdir)
    out = answered(trained, step=step, workdir=workdir)
    found = teaching.baseline_comparison(
        out.scalars[SUCCESS], out.scalars[TOKENS], baseline_success=before["success"],
        baseline_tokens=before["tokens"])
    compared = {**found, "success": before["success"], "tokens": before["tokens"]}
    return out._replace(scalars={**out.scalars, **{f"eval/baseline_{name}": float(value) for name, value in
                                                   compared.items() if value is not None}})

  return run
