"""Runs the arms of the study, one row of results per arm and seed; what the file holds is not run again.

  python -m experiments.adaptive_teacher.run --workdir=runs/adaptive_teacher \
    --out=experiments/adaptive_teacher/results.json --arms=teacher --seeds=3

See the README for what the arms are.
"""
import argparse
import functools
import json
import pathlib
import subprocess
from collections.abc import Callable

from atlas_jax.data.convention import Convention, in_format
from atlas_jax.monitor import report
from experiments import arms
from experiments.adaptive_teacher import config as settings
from experiments.adaptive_teacher import measure
from experiments.adaptive_teacher.models import Execute, Spent, Writer, program, spawn

TAUGHT_QUESTIONS = 4_096  # Answered with hints, for the student that learns from them.
# Metrics whose values over the updates are kept; the first of those that a run has is drawn.
CURVES = ("eval/teaching_accuracy", "val/accuracy", "eval/teaching_placebo_accuracy", "eval/teaching_ndr",
          "rollout/reward_mean")


class Study:
  """The models and questions of one seed, made where they are wanted first."""

  def __init__(self, workdir: pathlib.Path, seed: int, *, smoke: bool = False, execute: Execute = spawn):
    """Takes a folder for runs, which has one of each seed and all seeds' student, and how these are run."""
    self._all = workdir
    self._workdir = workdir / str(seed)
    self._seed = seed
    self._smoke = smoke
    self._execute = execute
    self.spent = Spent(0.0, 0.0)  # by the last run

  def trained(self, name: str, stage: str, *flags: str) -> pathlib.Path:
    """Returns the workdir of a run, which is made if it is not there."""
    return self._run(self._workdir / name, f"stage={stage},seed={self._seed}", *flags)

  def _run(self, workdir: pathlib.Path, spec: str, *flags: str) -> pathlib.Path:
    self.spent = program(spec + ",smoke" * self._smoke, workdir, *flags, execute=self._execute)
    return workdir

  @functools.cached_property
  def questions(self) -> list:
    """Returns the held-out questions."""
    return measure.questions(self._seed)[:16 if self._smoke else None]

  @functools.cached_property
  def student_run(self) -> pathlib.Path:
    """Returns the workdir of the student, the same for all seeds."""
    return self._run(self._all / "student", "stage=student")

  @functools.cached_property
  def student(self) -> Writer:
    """Returns the student."""
    return Writer(self.student_run)

  @functools.cached_property
  def before(self) -> measure.Asked:
    """Returns what the student answers without hints."""
    return measure.alone(self.student, self.questions)

  def hinted(self, hints: list[str]) -> dict:
    """Returns the row of these hints."""
    return measure.row(self.before, measure.guided(self.student, self.questions, hints))

  def without_hints(self, student: pathlib.Path) -> dict:
    """Returns the row of another student, asked without hints."""
    return measure.row(self.before, measure.alone(Writer(student), self.questions))

  def hints(self, teacher: pathlib.Path) -> list[str]:
    """Returns the hints of a teacher."""
    return measure.hints_of(Writer(teacher), self.student, self.questions)

  # The arms: each returns its rows by name.

  def right(self) -> dict[str, dict]:
    """Hints that name the right convention, which nobody but this row knows."""
    return {"right": self.hinted(measure.right_hints(self.questions))}

  def fixed(self) -> dict[str, dict]:
    """Returns a row of each hint, given to all questions."""
    return {f"fixed_{hint}": self.hinted([hint] * len(self.questions)) for hint in measure.fixed_hints()}

  def start(self) -> dict[str, dict]:
    """Returns the row of the teacher before it learns."""
    run = self.trained("teacher_start", "teacher_start")
    spent = self.spent
    return {"start": {**self.hinted(self.hints(run)), **_costs(spent)}}

  def teacher_run(self, name: str, stage: str, *flags: str) -> pathlib.Path:
    """Returns the workdir of a teacher that learns from its student, as "teacher" or "unlinked"."""
    start = self.trained("teacher_start", "teacher_start")
    return self.trained(name, stage, f"--config.model.path={start}",
                        f"--config.teacher.student={self.student_run}", *flags)

  def teacher(self) -> dict[str, dict]:
    """Returns the row of the teacher that has learnt, and of its hints of other questions."""
    run = self.teacher_run("teacher", "teacher")
    spent = self.spent
    hints = self.hints(run)
    return {"teacher": {**self.hinted(hints), **_costs(spent), "curve": curve(run)},
            "placebo": self.hinted(measure.of_others(hints, self._seed))}

  def teacher_200(self) -> dict[str, dict]:
    """Returns the row of a teacher that has learnt for 200 updates."""
    run = self.teacher_run("teacher_200", "teacher", "--config.optim.steps=200",
                           "--config.train.eval_every_steps=40")
    spent = self.spent
    hints = self.hints(run)
    return {"teacher_200": {**self.hinted(hints), **_costs(spent), "curve": curve(run)},
            "placebo_200": self.hinted(measure.of_others(hints, self._seed))}

  def unlinked(self) -> dict[str, dict]:
    """Returns the row of a teacher whose rewards no letter had to do with."""
    run = self.teacher_run("unlinked", "unlinked")
    spent = self.spent
    return {"unlinked": {**self.hinted(self.hints(run)), **_costs(spent), "curve": curve(run)}}

  def taught(self) -> dict[str, dict]:
    """Returns the row of a student that has learnt its own guided answers, asked without hints."""
    teacher = self.teacher_run("teacher", "teacher")
    found = Convention(seed=self._seed, tag_seed=self._seed)
    asked = [found.problem(index) for index in range(64 if self._smoke else TAUGHT_QUESTIONS)]
    hints = measure.hints_of(Writer(teacher), self.student, asked)
    file = self._workdir / "taught.jsonl"
    rows = [{"prompt": in_format(settings.FORMATS, "baseline", one.prompt), "completion": answer}
            for one, answer in zip(asked, measure.answers(self.student, asked, hints), strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = self.trained("taught", "taught", f"--config.model.path={self.student_run}",
                       f"--config.data.files={file}")
    spent = self.spent
    return {"taught": {**self.without_hints(run), **_costs(spent)}}

  def alone(self, name: str = "alone", *flags: str) -> dict[str, dict]:
    """Returns the row of policy optimisation on the student itself."""
    run = self.trained(name, "alone", f"--config.model.path={self.student_run}", *flags)
    spent = self.spent
    return {name: {**self.without_hints(run), **_costs(spent), "curve": curve(run)}}

  def alone_400(self) -> dict[str, dict]:
    """Returns the row of 400 updates of it."""
    return self.alone("alone_400", "--config.optim.steps=400", "--config.train.eval_every_steps=80")


ARMS: dict[str, Callable[[Study], dict[str, dict]]] = {
    name: getattr(Study, name) for name in
    ("right", "fixed", "start", "teacher_200", "teacher", "unlinked", "alone_400", "alone",
     "taught")}


def _costs(spent: Spent) -> dict:
  return spent._asdict() if spent.cpu_s else {}


def curve(run: pathlib.Path) -> dict[str, dict[str, float]]:
  """Returns numbers of a run over its updates: metric -> update -> value."""
  rows = report.read_metrics(run)
  return {name: found for name in CURVES
          if (found := {str(row["step"]): round(float(row[name]), 4) for row in rows if name in row})}


def commit() -> str:
  """Returns the commit that is checked out."""
  folder = pathlib.Path(__file__).parent
  return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, text=True, capture_output=True,
                        check=True).stdout.strip()


def main(argv: list[str] | None = None, execute: Execute = spawn) -> None:
  """Runs what is missing.

  Args:
    argv: the command line; None: the program's.
    execute: see `models.program`.
  """
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--arms", default=",".join(ARMS))
  parser.add_argument("--seeds", default="3,4,5")
  parser.add_argument("--smoke", action="store_true", help="tiny models, which learn nothing")
  asked = parser.parse_args(argv)
  if unknown := [name for name in asked.arms.split(",") if name not in ARMS]:
    parser.error(f"--arms has {', '.join(unknown)}; known are {', '.join(ARMS)}")
  for seed in map(int, asked.seeds.split(",")):
    study = Study(asked.workdir, seed, smoke=asked.smoke, execute=execute)
    for arm in asked.arms.split(","):
      found = arms.read(asked.out)
      if any(row["arm"] == arm for name, row in found.items() if name.endswith(f"/{seed}")):
        continue
      rows = {f"{name}/{seed}": {**row, "arm": arm, "commit": commit(), **arms.machine()}
              for name, row in ARMS[arm](study).items()}
      asked.out.write_text(json.dumps({**found, **rows}, indent=1) + "\n")
      for name, row in rows.items():
        change = f"{row['accuracy_before']:.3f} -> {row['accuracy']:.3f}"
        print(name, f"{change}, NDR {row['ndr']:.3f}, {row.get('cpu_s', 0):.0f} CPU-s", flush=True)


if __name__ == "__main__":
  main()
