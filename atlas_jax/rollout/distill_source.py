"""Texts that a student is taught with, as a source of batches: recorded, or written anew for every batch.

Who writes a batch depends on the seed and the step alone, and what is written on these and the parameters:
a run that goes on from a checkpoint makes the very batch that it would have made.
"""
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.data.problems import Problem, StableRandom
from atlas_jax.data.prompts import PromptSource
from atlas_jax.data.stepped import rows_of
from atlas_jax.evals import EvalOut
from atlas_jax.files.damage import clipped
from atlas_jax.language.decoding import sampler as samplers
from atlas_jax.rollout import distill_rows
from atlas_jax.rollout.distill_rows import ModelView, Text
from atlas_jax.rollout.prompted import PromptedSource
from atlas_jax.state import Trained

STUDENT = "student"
TEACHER = "teacher"
RECORDED = "recorded"
TOO_LONG = ("problems in a row are longer than config.data.max_prompt_tokens or config.sampler.max_tokens; "
            "raise them")
SHOWN_CHARS = 200  # Of a completion in the text.
WHO, WHAT = 1, 2  # Apart, or who writes would depend on what is written.


@dataclasses.dataclass(frozen=True)
class DistillPlan:
  """Settings of distillation batches.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  batch_rows: int                # texts per update, over all processes
  on_policy_frac: float = 0.5    # fraction of batches that the student writes
  off_policy_source: str = RECORDED  # the others: "recorded" solutions, or what the "teacher" writes
  spans: bool = False            # whether the tokenizers differ
  pad_tokens: int = 1            # lengths are multiples of it
  align_tokens: int = 1          # and of this

  def __post_init__(self):
    if not 0 <= self.on_policy_frac <= 1:
      raise ValueError(f"config.distill.on_policy_frac={self.on_policy_frac} must be from 0 to 1; it is the "
                       "fraction of batches that the student writes")
    if self.off_policy_source not in (RECORDED, TEACHER):
      raise ValueError(f"config.distill.off_policy_source={self.off_policy_source!r} must be '{RECORDED}' or "
                       f"'{TEACHER}'")


class Writer(NamedTuple):
  """A sampler and its options; options.n is 1."""

  sampler: samplers.Sampler
  options: samplers.SamplingOptions


class DistillSource(PromptedSource):
  """Batches of texts.

  A batch has what `distill_rows.same_ids` gives, or with different tokenizers `distill_rows.by_spans`, and
  on_policy_B: 1 where the student wrote the text, float32.

  Attributes:
    step: batches given so far.
    tokenizer: the student's, for who uses the run.
  """

  def __init__(self, prompts: PromptSource, student: ModelView, teacher: ModelView, plan: DistillPlan, *,
               student_writer: Writer, teacher_writer: Writer | None = None, seed: int = 0,
               whole: Callable = lambda params, frozen: params, process_index: int = 0,
               process_count: int = 1):
    """Takes all parts.

    Args:
      prompts: one problem per step, of batch_rows = group_size = 1; the same in every process.
      student, teacher: how they read.
      plan: what batches are made of.
      student_writer, teacher_writer: how they write; the teacher's only where it is the off_policy_source.
      seed: draws.
      whole: (what is trained, frozen) -> what the student's sampler loads; the teacher's loads
        frozen["teacher"].
      process_index, process_count: whose rows these are, see `stepped.rows_of`. Every process has the whole
        batch written, so that all know it.

    Raises:
      ValueError: if sizes do not divide, or a setting cannot be.
    """
    if plan.off_policy_source == TEACHER and teacher_writer is None:
      raise ValueError("config.distill.off_policy_source='teacher' needs a sampler for the teacher")
    # "rest" is the name in checkpoints, older than the setting's own.
    super().__init__(prompts, {"batch_rows": plan.batch_rows, "seed": seed,
                               "on_policy_frac": plan.on_policy_frac, "rest": plan.off_policy_source},
                     rows_of(plan.batch_rows, process_index, process_count), tokenizer=student.tokenizer)
    self._student = student
    self._teacher = teacher
    self._plan = plan
    self._writers = {STUDENT: student_writer}
    if teacher_writer is not None:
      self._writers[TEACHER] = teacher_writer
    self._seed = seed
    self._whole = whole
    self._teacher_loaded = False  # Its weights stay as they are, so they are handed over once.

  def who(self, step: int) -> str:
    """Says who writes the batch of a step: "student", "teacher" or "recorded"."""
    # From the seed and the step alone: all processes, and a resumed run, must ask the same model.
    drawn = StableRandom(self._seed, WHO, step).below(2**32) / 2**32
    return STUDENT if drawn < self._plan.on_policy_frac else self._plan.off_policy_source

  def _make(self, trained: Trained) -> tuple[dict[str, np.ndarray], list[str], EvalOut]:
    """Returns this process's rows of the next batch, where they come from, and its metrics."""
    who = self.who(self.step)
    place = self._prompts.step
    found = self._ask(who)
    began = time.perf_counter()
    seconds = 0.0
    ended = [True]
    if who == RECORDED:
      ids = [solution for *_, solution in found]
    else:
      rollout = self._write(trained, who, found, place)
      seconds = time.perf_counter() - began
      ids = [rollout.tokens_BT[row, :size] for row, size in enumerate(rollout.length_B)]
      ended = [reason in ("stop_token", "stop_string") for reason in rollout.reason_B]
    # All rows, before this process takes its own: the longest decides the width, alike in all processes.
    texts = [Text(asked, taught, one, who == TEACHER) for (_, asked, taught, _), one in zip(found, ids)]
    batch = self.arrays(texts)
    batch["on_policy_B"] = np.full(len(texts), who == STUDENT, np.float32)
    metrics = {"rollout/on_policy": float(who == STUDENT), "rollout/generate_s": seconds,
               "rollout/length_tokens": float(np.mean([len(one) for one in ids])),
               "rollout/ended_frac": float(np.mean(ended)),
               "rollout/skipped_prompts": float(self._prompts.step - place - len(found))}
    of = self._teacher if who == TEACHER else self._student
    # A head may have rows beyond the tokenizer's ids, which have no text.
    said = of.tokenizer.decode([one for one in ids[0] if one < of.tokenizer.vocab_size])
    return ({name: array[self._mine] for name, array in batch.items()},
            [found[row][0].where for row in self._mine],
            EvalOut(metrics, f"{who}: {clipped(said, SHOWN_CHARS)}"))

  def arrays(self, texts: Sequence[Text]) -> dict[str, np.ndarray]:
    """Puts texts into the arrays of a batch."""
    sizes = {"pad_tokens": self._plan.pad_tokens, "align_tokens": self._plan.align_tokens}
    if self._plan.spans:
      return distill_rows.by_spans(texts, self._student, self._teacher, **sizes)
    return distill_rows.same_ids(texts, **sizes)

  def _ask(self, who: str) -> list[tuple[Problem, Any, Any, Any]]:
    """Returns the next problems: each with its prompt for student and teacher, and its solution if wanted."""
    def parts(problem: Problem) -> tuple | None:
      found = (self._student.prompt(problem), self._teacher.prompt(problem),
               self._student.solution(problem) if who == RECORDED else ())
      return None if any(part is None for part in found) else found

    return [(problem, *found) for problem, found in self._take(self._plan.batch_rows, parts, TOO_LONG)]

  def _write(self, trained: Trained, who: str, found, place: int) -> samplers.Rollout:
    sampler, options = self._writers[who]
    if who == STUDENT:
      sampler.load(self._whole(trained.params, trained.frozen), self.step)
    elif not self._teacher_loaded:
      sampler.load(trained.frozen["teacher"], 0)
      self._teacher_loaded = True
    prompts = [np.asarray(taught if who == TEACHER else asked).tolist() for _, asked, taught, _ in found]
    rollout = sampler.generate(prompts, options, seed=StableRandom(self._seed, WHAT, place).below(2**31))
    samplers.check(rollout, prompts, options, version=self.step if who == STUDENT else None)
    return rollout

  def _places(self, step: int) -> list[int]:
    """Returns the prompt of each of this process's rows of a step."""
    return [step * self._plan.batch_rows + row for row in self._mine]

  def close(self) -> None:
    """Ends what samplers have started, such as a server."""
    for writer in self._writers.values():
      if hasattr(writer.sampler, "close"):
        writer.sampler.close()
