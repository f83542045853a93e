"""Distillation: a student learns a teacher's next-token distributions on texts that either has written.

With one tokenizer every token's distributions are compared, with different ones those of spans of text; the
weight of a loss counts completion tokens or spans, so that pieces of a batch add up to the whole.

Source: Agarwal et al. 2024, arXiv:2306.13649. Its lambda is our on_policy_frac; other than there the
temperature of the divergence is a setting of its own.
"""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from atlas_jax import evals, tree
from atlas_jax import state as states
from atlas_jax.data import prompts, spans, stepped
from atlas_jax.data.columns import Needs
from atlas_jax.evals import EvalOut, stopping
from atlas_jax.language import assets, other_model, samplers
from atlas_jax.language.decoding.native import NativeSampler
from atlas_jax.language.decoding.sampler import Sampler
from atlas_jax.language.initial_model import (
  MODEL,
  InitialModel,
  check_step,
  load_initial_model,
  merge_frozen,
  note_step,
)
from atlas_jax.losses.distill import distill_loss, soft_target_loss
from atlas_jax.losses.spans import Side, span_loss
from atlas_jax.models import placement
from atlas_jax.models.language import read_completions
from atlas_jax.models.layer_metrics import layer_metrics
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import Accounting, Assets, LossOut, Recipe
from atlas_jax.rollout import ask, baseline_eval, distill_rows, held_out, reward_columns
from atlas_jax.rollout.distill_rows import TEACHER, ModelView, Text
from atlas_jax.rollout.distill_source import RECORDED, DistillPlan, DistillSource, Writer
from atlas_jax.state import Init, LoadedParams, Trained
from atlas_jax.workdir import TEACHER_STEP

FROZEN = "teacher"  # The teacher's name among what is not trained.


class Pair(NamedTuple):
  """Student and teacher, and how they are compared."""

  student: InitialModel
  teacher: InitialModel
  classes: spans.VocabularyClasses | None  # None: they have one tokenizer

  @property
  def vocab_size(self) -> int:
    """Returns the number of ids of the student's tokenizer; rows of a head beyond it are padding."""
    return self.student.tokenizer.vocab_size


def make(config, mesh, workdir=None) -> Recipe:
  """Makes the recipe; see `recipes.load`."""
  pair = pair_of(config)
  sampler = samplers.load(config, pair.student, mesh, workdir)
  # Native whatever config.sampler.kind is: a server holds one model, and that is the student. Nothing is
  # compiled before it writes, so it is free where the teacher only scores.
  teacher_sampler = NativeSampler(pair.teacher.language, pair.teacher.tokenizer, mesh)
  source = source_of(config, pair, sampler, teacher_sampler)

  def save(workdir) -> None:
    assets.save(config, pair.student, workdir)
    # A teacher that is a run is read again at every start; were it trained further meanwhile, the two halves
    # of this run would have two teachers. `check` compares with what is noted here.
    note_step(config.distill.teacher, workdir / TEACHER_STEP)

  def check(workdir) -> None:
    check_step(config.distill.teacher, workdir / TEACHER_STEP, "config.distill.teacher")

  return Recipe(
      init_of(pair), loss_of(config, pair), source,
      evals_of(config, pair, mesh, source, sampler, teacher_sampler), load=load_of(pair),
      accounting=Accounting(unit_of(pair), backward_frac=student_frac(pair)), assets=Assets(save, check))


def pair_of(config) -> Pair:
  """Opens student and teacher, and says how they are compared.

  Raises:
    ValueError: if there is no teacher, or it cannot be compared as the config asks.
  """
  student = load_initial_model(config)
  teacher = open_teacher(config)
  asked = config.distill.alignment
  differ = spans.difference(student.tokenizer, teacher.tokenizer)
  # Equal ids are not enough: where ends differ, what ends a text for one model is text to the other.
  if differ is None and set(student.end_tokens) != set(teacher.end_tokens):
    differ = f"completions end with {student.end_tokens} and with {teacher.end_tokens}"
  if asked == "tokens" and differ:
    raise ValueError(f"config.distill.alignment='tokens' compares the same ids, but student and teacher read "
                     f"otherwise: {differ}; set it to 'spans' or 'auto'")
  if asked == "tokens" or asked == "auto" and differ is None:
    return Pair(student, teacher, None)
  if config.distill.alpha is not None:
    raise ValueError(f"config.distill.alpha={config.distill.alpha} mixes in the recorded tokens, which spans "
                     "of text do not have; set it to None, or take a teacher of the student's tokenizer")
  found = spans.classes(student.tokenizer, teacher.tokenizer, student.end_tokens, teacher.end_tokens)
  if hosts.is_main():
    logging.info("student and teacher are compared by spans of text (%s); %d classes of %d and %d ids",
                 differ or "as asked", found.size, student.tokenizer.vocab_size, teacher.tokenizer.vocab_size)
  return Pair(student, teacher, found)


def open_teacher(config) -> InitialModel:
  """Opens config.distill.teacher with its own tokenizer, and where chats are asked for, its own template.

  Raises:
    ValueError: names config.distill.teacher, and what is wrong with it.
  """
  path = config.distill.teacher
  if path is None:
    raise ValueError("config.distill.teacher=None: distillation needs a teacher; give a pretrained model's "
                     "folder, hf:NAME, or a run's workdir")
  return other_model.open_other(config, path, teacher_template(config), field="distill.teacher")


def teacher_template(config) -> str | None:
  """Names the teacher's chat template, as config.data.chat_template does; None: prompts are texts."""
  name = config.distill.teacher_template
  own = config.data.chat_template
  if own is None:
    return None
  if name == "own":
    return other_model.own_template(config.distill.teacher)
  if name == "student":
    # As "model" it would mean the teacher's own folder, since model.path is the teacher's here.
    return config.model.path if own == MODEL else own
  return name


def reader_of(config, start: InitialModel) -> ModelView:
  """Returns the functions that encode prompts and solutions for one of the two models."""
  data = config.data
  solution = distill_rows.recorded(start.tokenizer, start.template, max_tokens=config.sampler.max_tokens,
                                   overlong=data.overlong)
  solution = ask.in_vocabulary(solution, start.language.vocab_size, tokenizer=data.tokenizer,
                               chat_template=data.chat_template)
  # Ends what the other model wrote, in this model's ids: a turn where prompts are chats, else a document.
  turn_end = None if start.template is None else start.template.turn_end(start.tokenizer)
  end = start.tokenizer.doc_id if turn_end is None else turn_end
  return ModelView(start.tokenizer, held_out.encoder_of(config, start), solution, start.end_tokens, end)


def source_of(config, pair: Pair, sampler, teacher_sampler) -> DistillSource:
  """Makes the source of texts.

  Raises:
    ValueError: for problems or settings that cannot be.
  """
  data = config.data
  fields = config.distill
  needs = needs_of(config, pair.student)
  bounded = data.max_problems is not None
  found = (prompts.ProblemList(prompts.listed(config, "train", needs=needs)) if bounded
           else prompts.of_config(config, needs=needs))
  # One batch for both models: its lengths are multiples of what each of them needs.
  align = int(np.lcm(pair.student.language.align_tokens, pair.teacher.language.align_tokens))
  plan = DistillPlan(data.batch_rows, on_policy_frac=fields.on_policy_frac,
                     off_policy_source=fields.off_policy_source,
                     spans=pair.classes is not None, pad_tokens=config.rollout.pad_tokens, align_tokens=align)
  writers = [Writer(one, held_out.options_of(config, start, n=1, temperature=config.sampler.temperature))
             for one, start in ((sampler, pair.student), (teacher_sampler, pair.teacher))]
  return DistillSource(prompts.PromptSource(found, batch_rows=1, seed=config.seed),
                       reader_of(config, pair.student), reader_of(config, pair.teacher), plan,
                       student_writer=writers[0], teacher_writer=writers[1], seed=config.seed,
                       whole=merge_frozen, **stepped.this_process())


def needs_of(config, start: InitialModel | None) -> Needs:
  """Returns what is read of problems: recorded solutions, and what evaluations of held-out ones read."""
  held_out_ones = config.data.held_out_frac > 0
  recorded = config.distill.on_policy_frac < 1 and config.distill.off_policy_source == RECORDED
  return reward_columns.needs_of(config, start, solution=recorded or held_out_ones, answer=held_out_ones)


def init_of(pair: Pair):
  """Makes the function from a key to what training starts from."""
  def init(rng):
    params, frozen = pair.student.init(rng)
    # Drawn for its shapes alone: a teacher always comes from a path, and `load_of` puts it here.
    return Init(params, frozen={**frozen, FROZEN: pair.teacher.language.init(rng)})

  return init


def load_of(pair: Pair):
  """Makes the reader of the teacher, and of what the student starts from where that is read."""
  def load(mesh, fresh: bool) -> LoadedParams:
    params, frozen = pair.student.read(mesh, fresh)
    # Also where a run goes on, hence True: checkpoints hold what
    # training changes, and that is not the teacher.
    return LoadedParams(params, {**frozen, FROZEN: pair.teacher.read(mesh, True)[0]})

  return load


def student_frac(pair: Pair) -> float:
  """Returns the fraction of a forward pass that has a backward pass, the student's, by parameter counts."""
  student, teacher = (tree.count(jax.eval_shape(start.language.init, jax.random.key(0)))
                      for start in (pair.student, pair.teacher))
  return pair.student.backward_frac * student / (student + teacher)


def unit_of(pair: Pair) -> str:
  """Names what the weight of the loss counts; see the module."""
  return "completion_tokens" if pair.classes is None else "spans"


def loss_of(config, pair: Pair):
  """Makes the loss of a batch as `DistillSource` describes it; see `Recipe.loss`."""
  compare = compare_tokens(config, pair) if pair.classes is None else compare_spans(config, pair)

  def loss(params, batch, *, frozen, carry, rng):
    del carry, rng
    mean, weight, stats = compare(params, batch, frozen)
    metrics = {"distill/on_policy_frac": jnp.mean(batch["on_policy_B"]), **layer_metrics(stats)}
    # Of spans the source says only which ones count, so there the weight is all that is known.
    seen = jnp.sum(batch["completion_mask_BT"], dtype=jnp.float32) if pair.classes is None else None
    return LossOut(mean, weight, (), metrics, seen)

  return loss


def read_both(pair: Pair, params, batch, frozen):
  """Returns hidden vectors and output weights of student and teacher, and the student's statistics."""
  params = merge_frozen(params, frozen)
  # Without gradient nothing of the teacher's forward pass is kept for a backward pass.
  taught = jax.lax.stop_gradient(frozen[FROZEN])
  student_BTD, stats = read_completions(pair.student.language, params, batch)
  # Both read the same batch layout, each its own arrays: the prompts
  # may differ, as each has its own template.
  shown = {name.removeprefix(TEACHER): array for name, array in batch.items() if name.startswith(TEACHER)}
  teacher_BTD, _ = read_completions(pair.teacher.language, taught, shown)
  return (student_BTD, pair.student.language.head(params), teacher_BTD,
          pair.teacher.language.head(taught)), stats


def compare_tokens(config, pair: Pair):
  """Makes (params, batch, frozen) -> (loss, weight, statistics) for models of one tokenizer."""
  fields = config.distill
  # Padding rows of the two heads may differ in number, see `losses.distill`.
  how = {"vocab_size": pair.vocab_size, "block_tokens": config.loss.block_tokens}

  def compare(params, batch, frozen):
    arrays, stats = read_both(pair, params, batch, frozen)
    mask_BT = batch["completion_mask_BT"]
    if fields.alpha is None:
      out = distill_loss(*arrays, mask_BT, beta=fields.beta, temperature=fields.temperature, **how)
    else:
      out = soft_target_loss(*arrays, batch["completion_BT"], mask_BT, alpha=fields.alpha,
                             temperature=fields.temperature, **how)
    return *out[:2], stats

  return compare


def compare_spans(config, pair: Pair):
  """Makes (params, batch, frozen) -> (loss, weight, statistics) for models of different tokenizers."""
  fields = config.distill
  classes = pair.classes
  assert classes is not None  # Else `compare_tokens` compares.

  def compare(params, batch, frozen):
    (student_BTD, student_DV, teacher_BTD, teacher_DV), stats = read_both(pair, params, batch, frozen)
    student = Side(student_BTD, student_DV, batch["completion_BT"], batch["span_BT"], batch["first_BN"],
                   jnp.asarray(classes.student_V))
    teacher = Side(teacher_BTD, teacher_DV, batch[f"{TEACHER}completion_BT"], batch[f"{TEACHER}span_BT"],
                   batch[f"{TEACHER}first_BN"], jnp.asarray(classes.teacher_V))
    out = span_loss(student, teacher, batch["single_BN"], batch["span_mask_BN"], classes=classes.size,
                    beta=fields.beta, temperature=fields.temperature, block_tokens=config.loss.block_tokens)
    return *out[:2], stats

  return compare


def evals_of(config, pair: Pair, mesh, source: DistillSource, sampler: Sampler, teacher_sampler) -> dict:
  """The evaluations of a run: divergence on held-out solutions; problems answered, also by the teacher."""
  if not config.data.held_out_frac:
    return {}
  problems = prompts.listed(config, "held_out")
  found = {}
  solved = [problem for problem in problems if problem.solution is not None]
  if solved:
    found["divergence"] = evals.Eval(divergence_of(config, pair, mesh, source, solved), "every")
  if any(problem.answer is not None for problem in problems):
    answered = held_out.make(config, pair.student, sampler)
    if config.distill.baseline:
      answered = baseline_eval.make(answered, functools.partial(first_params_of, config, pair, mesh))
    found["problems"] = evals.Eval(answered, "every")
    taught = held_out.make(config, pair.teacher, teacher_sampler,
                           params_of=lambda trained: trained.frozen[FROZEN])
    found["teacher"] = evals.Eval(lambda trained, **given: _renamed(taught(trained, **given)), "end")
  return found


def first_params_of(config, pair: Pair, mesh):
  """Returns what is trained of the student, as training began with it; read or drawn anew."""
  if pair.student.reads_trained:
    return pair.student.read(mesh, True)[0]

  def draw():
    return states.first(lambda rng: Init(pair.student.init(rng)[0]), config.seed).params

  # Compiled with shardings, so that each device draws its own part.
  return jax.jit(draw, out_shardings=placement.shardings(mesh, jax.eval_shape(draw)))()


def _renamed(out: EvalOut) -> EvalOut:
  return EvalOut({name.replace("val/", "teacher/", 1): value for name, value in out.scalars.items()})


def divergence_of(config, pair: Pair, mesh, source: DistillSource, solved):
  """Makes the evaluation that gives val/divergence_nats, the mean over recorded solutions; see `evals.Eval`.

  Args:
    config, pair, mesh: of the run.
    source: puts texts into arrays.
    solved: held-out problems with solutions.
  """
  student = reader_of(config, pair.student)
  teacher = reader_of(config, pair.teacher)
  texts = [Text(student.prompt(one), teacher.prompt(one), student.solution(one), by_teacher=False)
           for one in solved]
  texts = [text for text in texts if not any(part is None for part in text)]
  if not texts:
    raise ValueError(f"none of the {len(solved)} held-out solutions fits into config.sampler.max_tokens="
                     f"{config.sampler.max_tokens} after a prompt within config.data.max_prompt_tokens="
                     f"{config.data.max_prompt_tokens}; raise them, or set config.data.held_out_frac=0 to "
                     "train without evaluation")
  compare = compare_tokens(config, pair) if pair.classes is None else compare_spans(config, pair)
  rows = config.eval.batch_rows

  def add_up(params, batch, frozen):
    mean, weight, _ = compare(params, batch, frozen)
    # Sums, not means: the last batch holds fewer texts, and the mean is taken once over all of them.
    return mean * weight, weight

  compiled: Any = jax.jit(add_up, out_shardings=meshes.replicated(mesh))
  mine = stepped.rows_of(rows, **stepped.this_process(), field="config.eval.batch_rows")

  def run(trained: Trained, *, step: int, workdir=None) -> EvalOut:
    del step, workdir
    nats = 0.0
    counted = 0.0
    for first in range(0, len(texts), rows):
      part = texts[first:first + rows]
      # The last rows are filled up with texts of no completion, which count for nothing.
      empty = [part[-1]._replace(ids=())] * (rows - len(part))
      stopping.check()
      batch = source.arrays([*part, *empty])
      # The batch was made whole in every process; each hands over its contiguous block of rows.
      local = {name: array[mine] for name, array in batch.items()}
      total, weight = compiled(trained.params, hosts.global_batch(mesh, local), trained.frozen)
      nats = nats + float(total)
      counted = counted + float(weight)
    return EvalOut({"val/divergence_nats": nats / max(counted, 1.0), f"val/{unit_of(pair)}": counted})

  return run
