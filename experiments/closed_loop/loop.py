"""The loop of one seed: sessions, review, export, a pipeline's training, the new teacher, evaluation."""
import functools
import json
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from atlas_jax.pipeline import checkpoint, places
from atlas_jax.runtime import canary
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.settings import DeploySettings
from atlas_jax.workdir import SUMMARY
from experiments.adaptive_teacher.models import Writer, _clock
from experiments.closed_loop import config as settings
from experiments.closed_loop import models, sessions
from experiments.closed_loop.sessions import Given, Team

ROOT = pathlib.Path(__file__).parents[2]
Execute = Callable[[list[str]], None]


class Rules(NamedTuple):
  """What an arm does otherwise than the loop."""

  trains: bool = True
  shuffles: bool = False
  has_gate: bool = True
  poison_share: float = sessions.POISON_SHARE  # of the sessions that are submitted
  aimed_at: int = 3       # plain letters that the poison is of


RULES = {"loop": Rules(), "none": Rules(trains=False), "shuffled": Rules(shuffles=True),
         "poison": Rules(has_gate=False), "poison_fifth": Rules(has_gate=False, poison_share=0.2),
         "poison_half": Rules(has_gate=False, poison_share=0.5),
         "poison_letter": Rules(has_gate=False, poison_share=0.2, aimed_at=1)}


class Round(NamedTuple):
  """A teacher that is at work."""

  number: int
  workdir: pathlib.Path  # of its training
  version: str


class Seed:
  """Models, tasks and folders of one seed."""

  def __init__(self, workdir: pathlib.Path, seed: int, *, execute: Execute, smoke: bool = False,
               steps: int | None = None):
    """Takes how the seed is run.

    Args:
      workdir: for runs of all seeds.
      seed: of letters, tasks, the first teacher and samples.
      execute: runs a program of this project, given "-m" and a module, or a script, and flags.
      smoke: whether models are tiny and tasks few.
      steps: updates of a round; None: those of the study.
    """
    self.seed = seed
    self.all = workdir.absolute()
    self.folder = self.all / str(seed)
    self._steps = [] if steps is None else ["--override", f"optim.steps={steps}"]
    self.smoke = smoke
    self.count = 16 if smoke else sessions.TASKS
    self._execute = execute

  @functools.cached_property
  def student_run(self) -> pathlib.Path:
    """Returns the workdir of the student, the same for all seeds."""
    return self._tuned(self.all / "student", "student", 0)

  @functools.cached_property
  def student(self) -> Writer:
    """Returns the student."""
    return Writer(self.student_run)

  @functools.cached_property
  def first(self) -> Round:
    """Returns the teacher that nothing has trained but its start."""
    run = self.tuned("start", "start")
    return Round(0, run, models.version(run))

  def team(self, at: Round) -> Team:
    """Returns student and teacher of a round."""
    return Team(self.student, models.version(self.student_run), _writer(at.workdir), at.version)

  @functools.cached_property
  def held_out(self) -> list[Given]:
    """Returns the tasks of all evaluations."""
    return sessions.held_out(self.seed, self.count)

  def tuned(self, name: str, stage: str, *flags: str) -> pathlib.Path:
    """Returns the workdir of a run of this seed, which is made if it is not there."""
    return self._tuned(self.folder / name, stage, self.seed, *flags)

  # Stages of a round.

  def collected(self, arm: str, at: Round, rules: Rules) -> dict:
    """Runs a round's tasks with its teacher, and has the sessions reviewed; returns counts."""
    url = self.url(arm)
    given = sessions.tasks(self.seed, at.number, self.count)
    planted = round(self.count * rules.poison_share / (1 - rules.poison_share))
    given += sessions.poison(self.seed, at.number, planted, aimed_at=rules.aimed_at)
    began = time.monotonic()
    found = sessions.run(given, self.team(at), url=url, prefix=f"{arm}-{at.number}")
    moved = sessions.reviewed(url, self.seed)
    return {"sessions": len(found), "planted": planted, "quarantined": moved["quarantined"],
            "succeeded": sum(one.status == "succeeded" for one in found),
            "session_s": round(time.monotonic() - began, 1)}

  def trained(self, arm: str, at: Round, rules: Rules) -> tuple[Round, dict]:
    """Trains the next teacher by a pipeline on what the gate lets through; returns it, and the costs."""
    output = self.folder / arm / f"round_{at.number + 1}"
    file = self.folder / arm / f"sessions_{at.number}.jsonl"
    began = _clock()
    if not (output / places.CHECKPOINT / places.MANIFEST).exists():
      exported = sessions.exported(self.url(arm), file, gate=rules.has_gate)
      if rules.shuffles:
        sessions.shuffle_truths(file, self.seed)
      flags = ["scripts/run_offline_pipeline.py", f"--export-path={file}", f"--output-dir={output}",
               f"--config={settings.__file__}:stage=round,seed={self.seed}{',smoke' * self.smoke}",
               "--override", f"model.path={at.workdir}", "--override", f"teacher.student={self.student_run}",
               *self._steps]
      if not rules.has_gate:
        flags += ["--override", "traces.review_status=approved,pending,quarantined"]
      self._execute(flags)
      (output / "exported").write_text(str(exported))
    spent = [round(now - then, 1) for now, then in zip(_clock(), began, strict=True)]
    run = output / places.RUNS["train"]
    made = Round(at.number + 1, run, checkpoint.version(output / places.CHECKPOINT)[:12])
    costs = dict(zip(("cpu_s", "wall_s"), spent, strict=True)) if spent[0] else {}
    return made, {**costs, "let_in": int((output / "exported").read_text())}

  def evaluated(self, arm: str, at: Round) -> list[SessionResult]:
    """Runs the held-out tasks with a round's teacher; they are stored apart, and train nobody."""
    store = self.folder / arm / f"held_out_{at.number}.db"
    removed(store)
    return sessions.run(self.held_out, self.team(at), url=f"sqlite:///{store}", prefix=f"held-{at.number}")

  def url(self, arm: str) -> str:
    """Returns the store of an arm's sessions."""
    return f"sqlite:///{self.folder / arm / 'atlas.db'}"

  def _tuned(self, workdir: pathlib.Path, stage: str, seed: int, *flags: str) -> pathlib.Path:
    if not (workdir / SUMMARY).exists():
      spec = f"{settings.__file__}:stage={stage},seed={seed}{',smoke' * self.smoke}"
      self._execute(["-m", "atlas_jax.main", f"--workdir={workdir}", f"--config={spec}", *flags])
    return workdir


def rows(seed: Seed, arm: str, rounds: int) -> dict[str, dict]:
  """Runs an arm and returns its rows, one of each round."""
  rules = RULES[arm]
  at = seed.first
  done = seed.folder / arm / "rows.json"
  found: dict[str, dict] = json.loads(done.read_text()) if done.exists() else {}
  costs: dict = {}
  for number in range(rounds + 1):
    if number:
      name = f"{arm}/{seed.seed}/{number - 1}"
      if "collected" not in found[name]:
        if number == 1:
          removed(seed.folder / arm / "atlas.db")
        found[name]["collected"] = seed.collected(arm, at, rules)
        done.write_text(json.dumps(found, indent=1))
      made, costs = seed.trained(arm, at, rules) if rules.trains else (at._replace(number=number), {})
      at = made
    name = f"{arm}/{seed.seed}/{number}"
    if name not in found:
      found[name] = {"arm": arm, "seed": seed.seed, "round": number, "teacher": at.version, **costs,
                     **measured(seed.held_out, seed.evaluated(arm, at))}
      done.parent.mkdir(parents=True, exist_ok=True)
      done.write_text(json.dumps(found, indent=1))
      print(name, {key: found[name][key] for key in ("accuracy", "alone", "ndr")}, costs,
            flush=True)
  return found


def broken_row(seed: Seed, rounds: int) -> dict[str, dict]:
  """Returns the row of a broken checkpoint beside the last teacher: after how many pairs it is taken back.

  The checkpoint is that of a teacher after one update from random parameters.
  """
  run = seed.tuned("broken", "start", "--config.optim.steps=1", "--config.optim.warmup_steps=1")
  last = trained_rounds(seed, rounds)[-1]
  given = sessions.tasks(seed.seed, 900, seed.count)
  answers = {}
  for name, at in (("new", Round(0, run, "broken")), ("old", last)):
    store = seed.folder / "broken" / f"{name}.db"
    removed(store)
    answers[name] = sessions.run(given, seed.team(at), url=f"sqlite:///{store}", prefix=name)
  both = zip(answers["new"], answers["old"], strict=True)
  pairs = [canary.CanaryPair(new.reward, old.reward) for new, old in both]
  found = canary.CanaryDecision("wait", "", 0)
  for count in range(1, len(pairs) + 1):
    found = canary.decide(pairs[:count], DeploySettings())
    if found.what != "wait":
      break
  return {f"broken/{seed.seed}/{last.number}": {
      "arm": "broken", "seed": seed.seed, "round": last.number, "decision": found.what, "why": found.why,
      "sessions": found.pairs, "delta": found.delta,
      **{name: sum(one.reward or 0 for one in answers[name]) / len(given) for name in answers}}}


def trained_rounds(seed: Seed, rounds: int) -> list[Round]:
  """Returns the teachers of the loop that are there."""
  outputs = [seed.folder / "loop" / f"round_{number}" for number in range(1, rounds + 1)]
  return [seed.first, *(Round(number, output / places.RUNS["train"],
                              checkpoint.version(output / places.CHECKPOINT)[:12])
                        for number, output in enumerate(outputs, start=1))]


def measured(given: Sequence[Given], found: Sequence[SessionResult]) -> dict:
  """Returns what sessions of one lane came to: right answers, with the teacher and before it said anything.

  Returns:
    accuracies, `ndr` (fraction that the teacher did not make worse), tokens by role, tokens per right answer,
    and which answers were right, a digit for each task.
  """
  right = [int(one.answer == task.problem.answer) for task, one in zip(given, found, strict=True)]
  alone = [int(bool(one.attempts) and one.attempts[0].answer == task.problem.answer)
           for task, one in zip(given, found, strict=True)]
  tokens = {role: tokens_of(found, role) for role in ("student", "teacher")}
  bits = lambda values: "".join(map(str, values))
  return {"accuracy": sum(right) / len(right), "alone": sum(alone) / len(alone),
          "ndr": sum(after >= before for after, before in zip(right, alone, strict=True)) / len(right),
          "tokens": tokens, "teacher_tokens_per_right": round(tokens["teacher"] / max(1, sum(right)), 2),
          "tokens_per_right": round(sum(tokens.values()) / max(1, sum(right)), 2),
          "right": bits(right), "right_alone": bits(alone),
          "statuses": {status: sum(one.status == status for one in found)
                       for status in sorted({one.status for one in found})}}


def tokens_of(found: Sequence[SessionResult], role: str) -> int:
  """Returns the tokens of a role in sessions."""
  counts = [one.tokens.get(role, {}) for one in found]
  return sum((one.get("prompt") or 0) + (one.get("completion") or 0) for one in counts)


@functools.lru_cache(maxsize=4)
def _writer(workdir: pathlib.Path) -> Writer:
  return Writer(workdir)


def removed(store: pathlib.Path) -> None:
  """Deletes a store and the files beside it."""
  for file in store.parent.glob(f"{store.name}*"):
    shutil.rmtree(file) if file.is_dir() else file.unlink()


def spawn(flags: list[str]) -> None:
  """Runs a program of this project in a process of its own.

  Raises:
    RuntimeError: if it fails, with the end of what it said.
  """
  done = subprocess.run([sys.executable, *flags], text=True, capture_output=True, check=False, cwd=ROOT)
  if done.returncode:
    raise RuntimeError(f"{' '.join(flags)} failed: {done.stderr[-3_000:]}")
