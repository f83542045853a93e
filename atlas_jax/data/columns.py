"""Columns of rows that nothing reads, and the one warning of a data set that names them."""
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from atlas_jax.data import chats, row_formats
from atlas_jax.data import messages as chat_messages
from atlas_jax.data.problems import Problem

CALLS = "tool_calls"


class Needs(NamedTuple):
  """Columns of problems that a recipe reads besides their prompts."""

  solution: bool = True
  answer: bool = True
  columns: frozenset[str] | None = frozenset()  # those that a function asks for by name; None: all others
  template: chats.Template | None = None  # that chats are put in; None: prompts are texts


EVERYTHING = Needs()  # but for columns that a function asks for


def unused(problem: Problem, needs: Needs) -> list[str]:
  """Names the columns of a problem's row that nothing reads, and fields of its chat that are not shown.

  Raises:
    ValueError: if the template refuses the chat, or does not show calls of tools, which would be learnt as
      empty turns.
  """
  reads = {"solution": needs.solution, "answer": needs.answer}
  used = {column for role, columns in problem.read.items() if reads.get(role, True) for column in columns}
  there = [column for columns in problem.read.values() for column in columns]
  # `read` has what the format took, `extra` all other columns of the row. A null there is no column: tables
  # have all columns in every row.
  if needs.columns is not None:
    there += [column for column, value in problem.extra.items() if not row_formats.is_empty(value)]
  asked = needs.columns or frozenset()
  left = [column for column in dict.fromkeys(there) if column not in used | asked]
  try:
    return [*left, *(name for name in _not_shown(problem, needs) if name not in asked)]
  except ValueError as error:
    raise ValueError(f"{problem.where}: {error}") from error


def warn(place: str, found: Sequence[Problem], needs: Needs) -> None:
  """Logs once, for all rows of a data set, what of them nothing reads and how many rows have it."""
  log(place, [unused(one, needs) for one in found])


def log(place: str, unused_of_rows: Sequence[Sequence[str]]) -> None:
  """Logs the names that stand in the lists of rows, each with how many rows have it; nothing if none does."""
  # One line for a data set, however many rows: a line per row would bury the one column that matters.
  counts = Counter(name for names in unused_of_rows for name in names)
  if counts:
    listed = ", ".join(f"{name!r} ({count} of {len(unused_of_rows)} rows{_meant(name)})"
                       for name, count in counts.items())
    logging.warning("%s: nothing asks for %s, and what is learnt does not depend on them; where one should "
                    "count, name it with config.data.fields, or as a parameter of a reward", place, listed)


def _meant(name: str) -> str:
  known = row_formats.nearly(name) if name.isidentifier() or name.strip() != name else None
  return "" if known is None else f"; is {known!r} meant?"


def _not_shown(problem: Problem, needs: Needs) -> list[str]:
  """Names what a template is given of a chat and does not show."""
  parts = [(chats.messages_of(problem), [*problem.read.get("prompt", ()), "messages"][0])]
  if needs.solution:
    column = [*problem.read.get("solution", ()), "completion"][0]
    parts.append((chats.reply_of(problem), column.removesuffix("[-1]")))
  fields: dict[str, str] = {}
  for messages, column in parts:
    for key in (key for message in messages for key in message if key not in ("role", "content")):
      fields.setdefault(key, f"{column}[].{key}")
  # A weight is never shown by a template: it decides what is learnt, so it counts where solutions are.
  weight = fields.pop(chat_messages.WEIGHT, None)
  names = [] if weight is None or needs.solution else [weight]
  # The usual row, messages of role and content: nothing is rendered for it.
  if not fields and not problem.values:
    return names
  views = _views([message for messages, _ in parts for message in messages], needs)
  # Whether a template uses a field is found by leaving it out and comparing the two texts. Reading the
  # template's source could not tell: a field may be used in one kind of message, or once a flag is set.
  for key, name in fields.items():
    def without(messages, key=key):
      return [{one: x for one, x in message.items() if one != key}
              for message in messages]

    if needs.template is None or not _differs(needs.template, views, problem.values, key, without):
      # The one field whose loss is an error and no warning: a turn that only calls
      # a tool has no other content.
      if key == CALLS and needs.template is not None:
        raise ValueError(f"{name} are calls of tools, which the chat template does not show; leave the row "
                         "out, or give a template that does")
      names.append(name)
  for key in problem.values:
    others = {name: value for name, value in problem.values.items() if name != key}
    if needs.template is None or not _differs(needs.template, views, problem.values, key, list, others):
      names.append(_column_of(key, problem))
  return names


def _views(messages: list[dict], needs: Needs) -> list[tuple[list[dict], bool]]:
  """Returns the chats that a template is shown, each with whether it ends where the assistant would write."""
  if not needs.solution:
    return [(messages, True)]
  # A chat up to each of the assistant's turns, as `Template.rows` learns them: in the whole chat a template
  # may leave out what it shows of the last turn, such as a thought.
  return [(messages[:number + 1], False) for number in chat_messages.turns(messages)]


def _differs(template: chats.Template, views, values: Mapping[str, Any], key: str, without: Callable,
             values_without: Mapping[str, Any] | None = None) -> bool:
  """Returns whether leaving a field out changes the text of some view of a chat."""
  # Saves two renderings of every view, for a name that the template never spells.
  if key not in template.source:
    return False
  for messages, asks in views:
    shown = template.render(messages, add_generation_prompt=asks, **values)
    try:
      other = template.render(without(messages), add_generation_prompt=asks,
                              **(values if values_without is None else values_without))
    except ValueError:  # The template needs the field, so it reads it.
      return True
    if shown != other:
      return True
  return False


def _column_of(key: str, problem: Problem) -> str:
  columns = problem.read.get("template", {})
  if key == row_formats.TOOLS:
    return row_formats.FUNCTIONS if row_formats.FUNCTIONS in columns else key
  return key if key in columns else f"{row_formats.VALUES}.{key}"
