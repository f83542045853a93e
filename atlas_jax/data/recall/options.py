"""Options of tasks: fields of config.eval that are named after them, the same in config.data.options."""
import math
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_jax.data.recall import sample
from atlas_jax.defaults import bounds, recall
from atlas_jax.fields import nearest

# How each is read; what is not named here is a number or a text as it stands.
LISTS = {"mqar_pairs": int, "mqar_distances": int, "mad_kinds": str, "mad_lengths": int, "niah_kinds": str,
         "niah_lengths": int, "niah_depths": float, "babilong_tasks": int, "babilong_lengths": int,
         "formal_kinds": str, "formal_lengths": int, "last_word_lengths": int, "episode_items": int,
         "episode_distances": int}
NOT_OF_TASKS = ("tasks", "task_samples", "lm_eval_tasks", "lm_eval_limit")


def parse(given: Mapping, *, where: str = "config.eval.") -> dict[str, Any]:
  """Returns all options by name, lists as tuples, those that are not given at their defaults.

  Args:
    given: name -> a number, a text with commas, or a tuple, as a command line may have made of it.
    where: they stand, for errors.

  Raises:
    ValueError: for an option that there is not, or a value that it cannot have.
  """
  known = {name: field for name, field in recall.fields().items() if name not in NOT_OF_TASKS}
  if unknown := [name for name in given if name not in known]:
    raise ValueError(f"{where}{unknown[0]} is no option of a task; {nearest(unknown[0], known)}")
  found = {}
  for name, field in known.items():
    bounded = isinstance(field, bounds.Bounded)
    default = field.default if bounded else field if isinstance(field, str) else None
    value = given[name] if name in given else default
    if name in LISTS:
      value = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    elif isinstance(default, int) and (not isinstance(value, int) or isinstance(value, bool)):
      raise ValueError(f"{where}{name}={value!r} must be a whole number, {field.need}")
    if bounded and value is not None and not field.fits(value):
      raise ValueError(f"{where}{name}={value} must be {field.need}")
    if name in LISTS:
      kind, value = LISTS[name], str(value)
      value = bounds.names_of(value) if kind is str else bounds.numbers_of(value, whole=kind is int)
    found[name] = value
  return found


def weights(text: Any, known: Sequence[str], *, field: str) -> dict[str, float]:
  """Reads names with weights behind colons, such as "mqar:2,niah"; where there is none it is 1.

  Args:
    text: the names, with commas between them.
    known: names that there are.
    field: that holds the text, for errors.

  Raises:
    ValueError: if it names nothing, what is unknown, or one twice, or a weight is no positive number.
  """
  need = ("tasks with commas between them and weights behind colons, such as "
          f"'{known[0]}:2,{known[-1]}', of {', '.join(known)}")
  found: dict[str, float] = {}
  for part in filter(None, (one.strip() for one in str(text or "").split(","))):
    name, _, weight = part.partition(":")
    if name not in known:
      raise ValueError(f"{field}={text!r} has {name!r}; {nearest(name, known)}")
    try:
      found[name], wrong = float(weight or 1), name in found
    except ValueError:
      wrong = True
    if wrong or not 0 < found[name] < math.inf:
      raise ValueError(f"{field}={text!r} must be {need}, each once")
  if not found:
    raise ValueError(f"{field}={text!r} names no task; it needs {need}")
  return found


def gap(options: Mapping, length: int, field: str) -> int:
  """Returns how many tokens of a text stay free before its question.

  Raises:
    ValueError: if they would be more than half of the text.
  """
  tokens = options["task_gap_tokens"]
  if 2 * tokens > length:
    raise ValueError(f"config.eval.{field} has a text of {length} tokens, and config.eval.task_gap_tokens="
                     f"{tokens} keeps more than half of it free; lower the gap, or take longer texts")
  return tokens


def room(setting: sample.TaskSetting, length: int, used: int, field: str) -> int:
  """Returns how many tokens of filler make a context as long as it shall be, the mark of documents included.

  Args:
    setting: of the task.
    length: of the context, which is rounded up to a multiple of align_tokens.
    used: tokens that it holds besides the filler.
    field: of config.eval that says the length, for errors.

  Raises:
    ValueError: if what it holds is longer.
  """
  left = sample.round_up(length, setting.align_tokens) - 1 - used
  if left < 0:
    raise ValueError(f"config.eval.{field} has a text of {length} tokens, and has to hold {used}; "
                     "take longer texts")
  return left
