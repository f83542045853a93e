"""Which columns of rows the rewards of a config ask for, and so what a recipe needs of its data."""
import inspect
from collections.abc import Callable, Sequence

from atlas_jax.data.columns import Needs
from atlas_jax.rollout import rewards
from atlas_jax.rollout.start import Start

# Parameters that are no columns: what the run itself gives to a reward, and TRL's trainer to one of its own.
GIVEN = ("prompt", "completion", "answer", "tokens", "length", "prompts", "completions", "completion_ids",
         "trainer_state", "log_extra", "log_metric", "environments", "step")
STARS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def needs_of(config, start: Start | None, *, solution: bool, answer: bool) -> Needs:
  """Gives what a recipe reads of problems.

  Args:
    config: with its rewards and the grader of its evaluations.
    start: of the model, whose template chats are put in; None: prompts are texts.
    solution: whether solutions are read.
    answer: whether completions are scored, which reads answers and what rewards ask for.

  Raises:
    ValueError: if a reward is not found.
  """
  names = [*rewards.parse_weights(config.rewards), config.eval.grader] if answer else []
  columns = asked([rewards.load(name) for name in names])
  return Needs(solution, answer, columns, None if start is None else start.template)


def asked(functions: Sequence[Callable]) -> frozenset[str] | None:
  """Gives the columns that rewards ask for by name, or None if one takes all there are, as `extra`.

  What stands in **kwargs is handed over, but not asked for.
  """
  parameters = {name: parameter.kind for one in functions
                for name, parameter in inspect.signature(one).parameters.items()}
  if "extra" in parameters:
    return None
  return frozenset(name for name, kind in parameters.items() if kind not in STARS and name not in GIVEN)
