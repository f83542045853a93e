"""The evaluation of a language run that answers held-out problems."""
from collections.abc import Callable

from atlas_jax.data import prompts
from atlas_jax.data.problems import Problem
from atlas_jax.evals import problems
from atlas_jax.language.decoding.sampler import Sampler, SamplingOptions
from atlas_jax.language.initial_model import InitialModel, merge_frozen
from atlas_jax.rollout import ask, rewards
from atlas_jax.rollout.rewards import Rewards
from atlas_jax.state import Trained

NEED_ANSWERS = ("correct", "countdown", "verbatim", "places")  # Rewards that say nothing without an answer.


def options_of(config, start: InitialModel, *, n: int, temperature: float) -> SamplingOptions:
  """Returns how completions are drawn, as config.sampler says."""
  given = config.sampler
  strings = () if given.stop_strings is None else tuple(filter(None, given.stop_strings.split("|")))
  return SamplingOptions(
      n=n, temperature=temperature, max_tokens=given.max_tokens, top_k=given.top_k, top_p=given.top_p,
      min_p=given.min_p, repetition_penalty=given.repetition_penalty, stop_strings=strings,
      stop_tokens=start.end_tokens if given.stop_end else ())


def encoder_of(config, start: InitialModel) -> Callable:
  """Makes the function from a problem to the ids of its prompt; see `ask.encoder`."""
  data = config.data
  encode = ask.encoder(start.tokenizer, start.template, max_tokens=data.max_prompt_tokens,
                       overlong=data.overlong)
  return ask.in_vocabulary(encode, start.language.vocab_size, tokenizer=data.tokenizer,
                           chat_template=data.chat_template)


def problems_of(config) -> list[Problem]:
  """Returns the held-out problems of a config, at most config.eval.max_problems.

  Raises:
    ValueError: if there are none, or a row is no problem; see `prompts.load`.
  """
  data = config.data
  found = prompts.load(data.name, files=data.files, split="held_out", held_out_frac=data.held_out_frac,
                       seed=config.seed, options=data.options.to_dict(), fields=data.fields.to_dict(),
                       download=data.download)
  count = found.count if config.eval.max_problems is None else config.eval.max_problems
  if count is None:
    raise ValueError(f"config.data.name={data.name!r} has no end; set config.eval.max_problems")
  return found.first(count)


def whole_model(trained: Trained):
  """Returns the parameters of the whole model, joined with what lies beside adapters."""
  return merge_frozen(trained.params, trained.frozen)


def make(config, start: InitialModel, sampler: Sampler, *, params_of: Callable = whole_model,
         checked: bool = False) -> Callable:
  """Makes the evaluation; see `evals.problems.make`.

  Args:
    config: with the groups data, eval, sampler and rewards.
    start: the model's tokenizer and template.
    sampler: answers.
    params_of: (trained) -> what the sampler loads, of `state.Trained`.
    checked: whether rows to train on have the columns that rewards ask for; those held out may lack some.

  Raises:
    ValueError: if no held-out problem can be asked, or the grader can say nothing of them.
  """
  right = config.eval.grader
  found = problems_of(config)
  encode = encoder_of(config, start)
  options = options_of(config, start, n=1, temperature=config.eval.temperature)
  write = ask.batch_generate(sampler, encode, options, rows=config.eval.batch_rows, seed=config.seed)
  try:
    judges = Rewards({right: 1.0}, max_steps=config.optim.steps)
    judges.check_columns(found)
  except ValueError as error:
    raise ValueError(f"config.eval.grader={right!r} is no reward: {error}") from error
  if all(encode(problem) is None for problem in found):
    raise ValueError(f"none of the {len(found)} held-out problems can be asked: their prompts are longer "
                     f"than config.data.max_prompt_tokens={config.data.max_prompt_tokens}")
  if right in NEED_ANSWERS and all(problem.answer is None for problem in found):
    raise ValueError(f"config.eval.grader={right!r} compares with answers, and none of the {len(found)} "
                     "held-out problems has one; name another grader, give answers, or set "
                     "config.data.held_out_frac=0 to train without evaluation")
  wanted = rewards.of_config(config)
  if not checked:
    wanted.check_columns(found)
  grade = ask.grader(wanted)
  judge = ask.grader(judges)

  def grade_all(asked, written, *, step: int):
    reward_B, each = grade(asked, written, step=step)
    return reward_B, each if right in each else {**each, **judge(asked, written, step=step)[1]}

  def answer(trained: Trained, asked, *, step: int):
    return write(params_of(trained), asked, step=step)

  return problems.make(answer, grade_all, found, grader=right, shown=config.eval.shown)
