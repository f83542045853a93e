"""The evaluation of a language run that answers held-out problems."""
from collections.abc import Callable

from atlas_jax.data import prompts
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
  # A stop string may hold commas and spaces, so a bar stands between them.
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
  # A tokenizer that is not the model's would read rows of the table that mean something else.
  return ask.in_vocabulary(encode, start.language.vocab_size, tokenizer=data.tokenizer,
                           chat_template=data.chat_template)


def whole_model(trained: Trained):
  """Returns the parameters of the whole model, joined with what lies beside adapters."""
  return merge_frozen(trained.params, trained.frozen)


def _check_grader(name: str) -> None:
  if name in (rewards.JUDGES, rewards.GROUPS):
    raise ValueError(f"config.eval.grader={name!r} says how good an answer is, not whether it is right; name "
                     "a grader such as correct, and keep judges in config.rewards: their mean is val/reward")


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
  # All that can be wrong is looked for here: the evaluation itself may come hours later.
  right = config.eval.grader
  _check_grader(right)
  found = prompts.listed(config, "held_out")
  encode = encoder_of(config, start)
  options = options_of(config, start, n=1, temperature=config.eval.temperature)
  write = ask.batch_generate(sampler, encode, options, rows=config.eval.batch_rows, seed=config.seed)
  # The grader says what is right, and need not be among the rewards that are trained on.
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
  wanted = rewards.of_config(config)  # Their values are logged beside it.
  if not checked:
    wanted.check_columns(found)
  grade = ask.grader(wanted)
  judge = ask.grader(judges)

  def grade_all(asked, written, *, step: int):
    # Called once if it is a reward as well: it may be slow, or draw.
    reward_B, each = grade(asked, written, step=step)
    return reward_B, each if right in each else {**each, **judge(asked, written, step=step)[1]}

  def answer(trained: Trained, asked, *, step: int):
    return write(params_of(trained), asked, step=step)

  return problems.make(answer, grade_all, found, grader=right, shown=config.eval.shown)
