"""Problems as token ids: by a chat template, or as plain text; which ids are learnt."""
import pathlib

import numpy as np

from atlas_jax.data import messages as chat_messages
from atlas_jax.data.chat_template import FILES, REMEDY, Encoded, Template, load
from atlas_jax.data.problems import Problem
from atlas_jax.data.tokenizer import Tokenizer
from atlas_jax.files import json_file

__all__ = ["FILES", "Encoded", "Template", "encode", "has_template", "load", "messages_of", "prompt_ids",
           "reply_of", "rows", "split_turns"]


def has_template(folder) -> bool:
  """Returns whether a tokenizer's folder has a chat template, as `load` finds it."""
  *own, settings = (pathlib.Path(folder) / name for name in FILES[:3])
  return (any(one.is_file() for one in own)
          or settings.is_file() and bool(json_file.read(settings, remedy=REMEDY).get("chat_template")))


def encode(problem: Problem, tokenizer: Tokenizer, template: Template | None = None, *, learn: str = "all",
           **values) -> Encoded:
  """Returns the ids of a problem with its solution, the row that SFT learns from.

  Args:
    problem: its prompt and solution; a prompt that is a text is the user's message where there is a template.
    tokenizer: of the ids.
    template: None takes the text as it is: DOC, prompt, solution, DOC; the solution and its DOC are learnt.
    learn: with a template, "all" of the assistant's turns or the "last".
    **values: what the template may use besides.

  Raises:
    ValueError: naming the place of the problem, if it has no solution or does not fit the template.
  """
  # Before the template is rendered: a row without a solution, or with one marked as bad, must not be
  # learnt, however well it renders.
  text = _solution(problem)
  if template is None:
    _check_plain(problem)
    prompt = prompt_ids(problem, tokenizer)
    solution = tokenizer.encode(text.encode("utf-8", "replace"))
    # The form of a document in packed text: DOC opens it and DOC closes it. The closing one is learnt, or the
    # model would never end an answer. Prompt and solution are encoded apart, as sampling has them.
    ids = np.concatenate([prompt, solution, [tokenizer.doc_id]]).astype(np.int32)
    return Encoded(ids, np.arange(len(ids)) >= len(prompt))
  try:
    # Values of the call precede those of the row: what a user asks for now wins over what a file says.
    return template.chat([*messages_of(problem), *reply_of(problem)], tokenizer, learn=learn,
                         **{**problem.values, **values})
  except ValueError as error:
    raise ValueError(f"{problem.where}: {error}") from error


def rows(problem: Problem, tokenizer: Tokenizer, template: Template | None = None, *, turns: str = "all",
         **values) -> list[tuple[str, Encoded]]:
  """Returns (place, ids) of the rows that teach a problem's solution.

  Args:
    problem, tokenizer, template, values: as in `encode`.
    turns: of a chat: "all" of the assistant's are learnt, in one row where the template allows that, see
      `Template.rows`; only the "last"; or "split" gives each a row of its own.

  Raises:
    ValueError: as `encode` does.
  """
  if turns == "split" and template is not None:
    _solution(problem)
    parts = split_turns(problem)
    return [(part.where, encode(part, tokenizer, template, learn="last", **values)) for part in parts]
  if turns == "last" or template is None:
    return [(problem.where, encode(problem, tokenizer, template, learn="last", **values))]
  _solution(problem)
  messages = [*messages_of(problem), *reply_of(problem)]
  try:
    found = template.rows(messages, tokenizer, **{**problem.values, **values})
  except ValueError as error:
    raise ValueError(f"{problem.where}: {error}") from error
  last = chat_messages.turns(messages)[-1]
  return [(problem.where if number == last else f"{problem.where}#{number}", coded)
          for number, coded in found]


def _solution(problem: Problem) -> str:
  """Returns the text to learn; where there is none, ValueError says what the row has in its place."""
  if problem.solution is not None:
    # In TRL's unpaired preferences `label` says whether a completion is wanted. SFT
    # would teach the unwanted ones.
    label = problem.extra.get("label")  # Tables of text have it as a text.
    if label is False or isinstance(label, str) and label.strip().lower() == "false":
      raise ValueError(f"{problem.where}: its 'label' is false, which marks a completion that is not to be "
                       "learnt; leave the row out, or the column if it means something else")
    return problem.solution
  if "chosen" in problem.extra or "rejected" in problem.extra:
    more = ("; 'chosen' and 'rejected' are ranked responses, which config.recipe='ranked' learns from, or "
            "learn the better one alone with config.data.fields.solution='chosen'")
  else:
    more = (": give 'messages' that end with the assistant's, or a field 'completion', or name the field "
            "with config.data.fields, such as config.data.fields.solution='answer'")
  raise ValueError(f"{problem.where}: has no solution to learn{more}")


def _check_plain(problem: Problem) -> None:
  """Refuses a solution whose messages hold more than its text."""
  unsaid = None
  # `solution` is the text of the last message alone: several messages, or a call of a tool, would be
  # cut down to it without a word.
  if len(problem.reply) > 1:
    unsaid = f"is {len(problem.reply)} messages"
  elif any("tool_calls" in message for message in problem.reply):
    unsaid = "calls a tool"
  elif not all(map(chat_messages.weighs, problem.reply)):
    raise ValueError(f"{problem.where}: its solution has weight 0, so that nothing of it is learnt; "
                     "leave the row out")
  if unsaid is not None:
    raise ValueError(f"{problem.where}: its solution {unsaid}, which needs a chat template; set "
                     "config.data.chat_template to a tokenizer's folder, or give the solution as one text")


def prompt_ids(problem: Problem, tokenizer: Tokenizer, template: Template | None = None,
               **values) -> np.ndarray:
  """Returns the ids of a prompt, int32, up to where the completion begins; arguments as in `encode`."""
  if template is None:
    if not isinstance(problem.prompt, str):
      read = " and ".join(map(repr, problem.read.get("prompt", ())))
      raise ValueError(f"{problem.where}: its prompt is a chat, which needs a chat template; set "
                       "config.data.chat_template to a tokenizer's folder, or give prompts as texts"
                       f"{f'; it was read from {read}' if read else ''}")
    text = tokenizer.encode(problem.prompt.encode("utf-8", "replace"))
    return np.concatenate([[tokenizer.doc_id], text]).astype(np.int32)
  try:
    return template.prompt(messages_of(problem), tokenizer, **{**problem.values, **values})
  except ValueError as error:
    raise ValueError(f"{problem.where}: {error}") from error


def messages_of(problem: Problem) -> list[dict]:
  """Returns a problem's prompt as messages."""
  if isinstance(problem.prompt, str):
    return [{"role": "user", "content": problem.prompt}]
  return list(problem.prompt)


def reply_of(problem: Problem) -> list[dict]:
  """Returns a problem's solution as messages, the last one the assistant's; none if it has no solution."""
  if problem.reply or problem.solution is None:
    return list(problem.reply)
  return [{"role": "assistant", "content": problem.solution}]


def split_turns(problem: Problem) -> list[Problem]:
  """Returns one problem for each of the assistant's turns to learn, what came before it as the prompt."""
  if isinstance(problem.prompt, str) and len(problem.reply) < 2:
    return [problem]
  messages = [*messages_of(problem), *reply_of(problem)]
  turns = chat_messages.turns(messages)
  learnt = [number for number in turns if chat_messages.weighs(messages[number])]
  # Where no turn is learnt, the last one says so when it is encoded.
  # The last turn keeps the row's own place, so that places of rows with one turn do not depend on `turns`.
  return [problem._replace(where=problem.where if number == turns[-1] else f"{problem.where}#{number}",
                           prompt=messages[:number], solution=messages[number]["content"],
                           reply=(messages[number],))
          for number in learnt or turns[-1:]]
