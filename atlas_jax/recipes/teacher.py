"""A teacher learns to guide: its replies earn what they do to the answers of a student that stays as it is.

The student answers alone and says how it would begin, once per question; the teacher writes a group of
guidances; the student answers with each. See `teacher_source` and `policy_training`.
"""
from atlas_jax import evals
from atlas_jax.data import prompts, stepped
from atlas_jax.data.columns import Needs
from atlas_jax.files import json_file, write
from atlas_jax.language import assets, first_params, samplers
from atlas_jax.language.decoding.sampler import Sampler
from atlas_jax.language.initial_model import (
  InitialModel,
  check_step,
  load_initial_model,
  merge_frozen,
  note_step,
)
from atlas_jax.losses.policy import PolicySettings
from atlas_jax.recipes import Accounting, Assets, LossOut, Recipe, ReferenceUpdate, Update
from atlas_jax.rollout import (
  held_out,
  policy_training,
  reward_columns,
  rewards,
  students,
  teaching,
  teaching_eval,
)
from atlas_jax.rollout.lessons import Lessons, LessonSettings
from atlas_jax.rollout.teacher_rewards import TEACHING, LeakRule, TeacherRewards
from atlas_jax.rollout.teacher_source import TeacherSource
from atlas_jax.rollout.teaching_reward import TeachingReward
from atlas_jax.state import LoadedParams
from atlas_jax.workdir import PROTOCOL, STUDENT_STEP


def make(config, mesh, workdir=None) -> Recipe:
  """Makes the recipe; see `recipes.load`."""
  start = load_initial_model(config)
  settings = policy_training.settings_of(config)
  student = students.open_student(config, start)
  lessons = lessons_of(config, start, student, mesh)
  sampler = samplers.load(config, start, mesh, workdir)
  source = source_of(config, start, lessons, sampler, mesh, workdir)
  moves = policy_training.reference_moves(settings, config)
  return Recipe(
      init_of(config, start, student, settings), loss_of(config, start, settings), source,
      evals_of(config, start, lessons, sampler), load=load_of(config, start, student, settings),
      update=Update(reference=None if moves is None else ReferenceUpdate(*moves)),
      accounting=Accounting(policy_training.unit_of(settings), policy_training.finish,
                            backward_frac=policy_training.backward_frac(settings, start)),
      assets=Assets(*assets_of(config, start, student)))


def lessons_of(config, start: InitialModel, student: InitialModel | None, mesh) -> Lessons:
  """Makes what has questions answered with and without guidance.

  Raises:
    ValueError: for templates that cannot be, or that a model cannot be shown.
  """
  given = config.teacher
  templates = teaching.load(given.templates, given.formats.to_dict())
  shown = [(start, "teacher", templates.teacher)]
  if student is not None:
    probe = templates.probe if given.shown == "probe" and given.probe_tokens else ()
    shown += [(student, "student", turns) for turns in (templates.baseline, probe, templates.guided)]
  for model, who, turns in shown:
    if model.template is None and len(turns) > 1:
      raise ValueError(f"config.teacher.templates={given.templates!r} asks the {who} by {len(turns)} "
                       "messages, and its prompts are texts; set config.data.chat_template, config.teacher."
                       "templates=plain, or a text of one message in config.teacher.formats")
  settings = LessonSettings(templates, shown=given.shown, probe_tokens=given.probe_tokens,
                            max_tokens=given.max_tokens, temperature=given.temperature)
  return Lessons(students.load(config, student, mesh), grade_of(config), settings)


def grade_of(config):
  """Makes (problems, texts, *, step) -> score_B of config.teacher.grader; see `Lessons`.

  Raises:
    ValueError: if there is no such reward.
  """
  name = config.teacher.grader
  try:
    graders = rewards.Rewards({name: 1.0}, max_steps=config.optim.steps)
  except ValueError as error:
    raise ValueError(f"config.teacher.grader={name!r} is no reward: {error}") from error

  def grade(found, texts, *, step: int):
    return graders.score(found, texts, step=step).reward_B

  return grade


def rewards_of(config, start: InitialModel) -> TeacherRewards:
  """Finds the rewards of replies.

  Raises:
    ValueError: for a reward or a setting that cannot be.
  """
  given = config.teacher
  try:
    settings = TeachingReward(**given.reward)
  except ValueError as error:
    raise ValueError(f"config.teacher.reward: {error}") from error
  if given.verdict_weight and given.shown == "probe":
    raise ValueError(f"config.teacher.verdict_weight={given.verdict_weight} rewards verdicts on an attempt, "
                     "and config.teacher.shown='probe' shows none; set shown=attempt, or the weight to 0")
  if given.reliance_weight is not None and given.sampler != "native":
    raise ValueError(f"config.teacher.reliance_weight={given.reliance_weight} needs log-probabilities of the "
                     "student, which config.teacher.sampler='native' alone has; set it to None")
  return TeacherRewards(
      given.rewards, settings, LeakRule(given.leak, given.leak_penalty),
      count_tokens=lambda text: len(start.tokenizer.encode(text.encode("utf-8", "replace"))),
      verdict_weight=given.verdict_weight, reliance_weight=given.reliance_weight,
      max_steps=config.optim.steps, rim=config.rim)


def source_of(config, start: InitialModel, lessons: Lessons, sampler: Sampler, mesh, workdir=None
              ) -> TeacherSource:
  """Makes the source of rollouts.

  Raises:
    ValueError: for questions, rewards or settings that cannot be.
  """
  data = config.data
  wanted = rewards_of(config, start)
  named = [name for name in rewards.parse_weights(config.teacher.rewards) if name != TEACHING]
  needs = Needs(False, True, reward_columns.asked(*named, config.teacher.grader), start.template)
  # One question per step, and the same in all processes, for each makes the whole rollout.
  found = prompts.PromptSource(prompts.of_config(config, needs=needs), batch_rows=data.group_size,
                               group_size=data.group_size, seed=config.seed)
  wanted.check_columns([found.batch(step)["problems"][0] for step in range(found.steps_per_epoch or 1)])
  options = held_out.options_of(config, start, n=data.group_size, temperature=config.sampler.temperature)
  return TeacherSource(
      found, sampler, wanted, lessons=lessons,
      measure_reliance=config.teacher.reliance_weight is not None,
      encode=held_out.encoder_of(config, start), options=options,
      plan=policy_training.plan_of(config, start), scoring=policy_training.scoring_of(config),
      tokenizer=start.tokenizer, seed=config.seed, whole=merge_frozen,
      old_logprobs=policy_training.old_logprobs_of(config, start, mesh), workdir=workdir,
      **stepped.this_process())


def copies_of(start: InitialModel, student: InitialModel | None) -> tuple[str, ...]:
  """Names the copies of what is trained that lie frozen beside it: the student, where it is one."""
  return (students.FROZEN,) if student is start else ()


def init_of(config, start: InitialModel, student: InitialModel | None, settings: PolicySettings):
  """Makes the function from a key to what training starts from."""
  first = first_params.init_of(start, reference=policy_training.has_fixed_reference(settings, config),
                               copies=copies_of(start, student))
  if student is None or student is start:
    return first

  def init(rng):
    drawn = first(rng)
    # For its shapes alone: a student with a name of its own is read, and `load_of` puts it here.
    return drawn._replace(frozen={**(drawn.frozen or {}), students.FROZEN: student.language.init(rng)})

  return init


def load_of(config, start: InitialModel, student: InitialModel | None, settings: PolicySettings):
  """Makes the reader of the student, and of what the teacher starts from where that is read."""
  first = first_params.load_of(start, reference=policy_training.has_fixed_reference(settings, config),
                               copies=copies_of(start, student))
  if student is None or student is start:
    return first

  def load(mesh, fresh: bool) -> LoadedParams:
    given = LoadedParams(None, {}) if first is None else first(mesh, fresh)
    # Also where a run goes on: checkpoints hold what training changes, and that is not the student.
    return given._replace(frozen={**(given.frozen or {}), students.FROZEN: student.read(mesh, True)[0]})

  return load


def assets_of(config, start: InitialModel, student: InitialModel | None):
  """Makes what writes down a run's protocol and student, and what refuses to go on with others."""
  template = None if start.template is None else start.template.source
  theirs = None if student is None or student.template is None else student.template.source
  templates = teaching.load(config.teacher.templates, config.teacher.formats.to_dict())
  protocol = {**teaching.manifest(templates, teacher_template=template, student_template=theirs),
              "role": "teacher", "shown": config.teacher.shown,
              # Who deploys it must not ask for more than it was trained on.
              "max_prompt_tokens": config.data.max_prompt_tokens, "max_tokens": config.sampler.max_tokens}

  def save(workdir) -> None:
    assets.save(config, start, workdir)
    note_step(config.teacher.student, workdir / STUDENT_STEP)
    write.json(workdir / PROTOCOL, json_file.sealed(protocol))

  def check(workdir) -> None:
    check_step(config.teacher.student, workdir / STUDENT_STEP, "config.teacher.student")
    file = workdir / PROTOCOL
    then = json_file.read_sealed(file) if file.is_file() else protocol
    differ = [f"{name} was {then.get(name)!r}, is {now!r}" for name, now in protocol.items()
              if then.get(name) != now]
    if differ:
      raise ValueError(f"{file} was written by a run with another protocol: {'; '.join(differ)}; restore the "
                       "templates, or use another --workdir")

  return save, check


def loss_of(config, start: InitialModel, settings: PolicySettings):
  """Makes the loss of a batch as `TeacherSource` describes it; see `Recipe.loss`."""
  batch_loss = policy_training.loss_of(config, start, settings)

  def loss(params, batch, *, frozen, carry, rng):
    del carry, rng
    # The student lies in frozen, and no part of it is read here.
    out = batch_loss(params, batch, frozen)
    return LossOut(out.loss, out.weight, (), out.metrics, out.seen)

  return loss


def evals_of(config, start: InitialModel, lessons: Lessons, sampler: Sampler) -> dict:
  """The evaluation of a run: held-out questions with guidance and controls; none without any."""
  if not config.data.held_out_frac:
    return {}
  return {"teaching": evals.Eval(teaching_eval.make(config, start, lessons, sampler), "every")}
