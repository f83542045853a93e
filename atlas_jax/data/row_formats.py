"""The formats that rows of prompts have: which columns are the prompt, the answer, the solution, the tools.

`prompts` says which formats there are. Every column of a row is accounted for: what was read of it stands in
`Parts.read`, and where two columns contradict one another, the row is refused with both names.
"""
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.data import messages as chat_messages
from atlas_jax.data import problems

# Columns that mean the same in public datasets; of those that a row has, the first that is not empty counts.
# "solution" stands among the answers: in datasets of mathematics it is what a grader compares with, while a
# text to learn is called completion, response or output.
FIELDS: Mapping[str, tuple[str, ...]] = {
  "messages": ("messages", "conversations", "conversation"),
  "prompt": ("prompt", "problem_text", "problem", "question", "query", "input"),
  "answer": ("ground_truth", "answer", "solution", "expected_answer"),
  "solution": ("completion", "response", "output"),
}
INSTRUCTION = "instruction"
INPUTS = ("input", "context")
HISTORY = "history"
SYSTEM = ("system", "system_prompt")
TOOLS = "tools"
FUNCTIONS = "functions"
PARALLEL = "parallel_tool_calls"
VALUES = "chat_template_kwargs"
RESERVED = ("messages", "add_generation_prompt")  # What `chats.Template.render` gives to a template itself.
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# A row of a teaching dataset: the student's approach, what is wrong with it, and what to teach.
TEACHING = {"student_approach": "Student's approach", "teacher_diagnosis": "Diagnosis",
            "teacher_teaching": "Teaching"}
TEACHER = ("You are a teacher. You read a problem, work out how a student would go about it, say what that "
           "approach gets right and wrong, and then teach what the student needs to solve the problem alone.")
KNOWN = (*FIELDS["messages"], *FIELDS["prompt"], *FIELDS["answer"], *FIELDS["solution"], INSTRUCTION, *INPUTS,
         HISTORY, *SYSTEM, TOOLS, FUNCTIONS, PARALLEL, VALUES, *TEACHING, "chosen", "rejected", "responses",
         "score_chosen", "score_rejected")
ALIKE = 0.75  # How alike two names are, of 1, for the one to be taken for the other misspelt.
CHOOSE = "keep one of them, or say which is read, such as config.data.fields.prompt='question'"


class ParsedPrompt(NamedTuple):
  """A prompt as one format has it."""

  prompt: str | list[dict]
  columns: tuple[str, ...]  # that it was read from


class Parts(NamedTuple):
  """A row taken apart."""

  prompt: str | list[dict]  # ends before the answer
  reply: tuple[dict, ...]  # messages that answer it, the last one the assistant's; () if there are none
  answer: Any  # what graders compare with; None: nothing
  values: Mapping[str, Any]  # what a chat template may use besides messages, such as tools
  read: Mapping[str, Mapping[str, Any]]  # "prompt", "solution", "answer" or "template" -> column -> its value


def read(where: str, row: Mapping[str, Any], fields: Mapping[str, str] | None = None) -> Parts:
  """Takes a row apart.

  Args:
    where: place of the row, for errors.
    row: column -> value; one that is None, NaN, blank or of length 0 is as good as absent.
    fields: columns of this dataset for "messages", "prompt", "answer" or "solution"; where one of the first
      two is named, no other column is a prompt.

  Raises:
    ValueError: naming the place and the columns that are missing, contradict one another, or are not what
      they should be.
  """
  names = names_of(fields)
  fields = fields or {}
  given = {column: value for column, value in row.items() if not is_empty(value)}
  check_media(where, given)
  asked = prompt_of(where, row, given, names, fields)
  prompt, reply, solved = _reply(where, given, asked, names["solution"])
  columns = asked.columns
  lesson = {name: given[name] for name in TEACHING if isinstance(given.get(name), str)}
  if isinstance(prompt, str) and not reply and len(lesson) == len(TEACHING):
    (prompt, text), solved = _lesson(prompt, lesson), lesson
    reply = ({"role": "assistant", "content": text},)
  prompt, system = with_system(where, prompt, given)
  if not prompt:
    raise ValueError(f"{where}: its messages have nothing before the assistant's; put the prompt there")
  answers = [column for column in names["answer"] if column in given and column not in columns][:1]
  values, shown = template_values(where, given)
  return Parts(
    prompt, reply, given[answers[0]] if answers else None, values,
    {"prompt": {column: given[column] for column in (*columns, *system)}, "solution": solved,
     "answer": {column: given[column] for column in answers}, "template": shown})


def names_of(fields: Mapping[str, str] | None) -> Mapping[str, tuple[str, ...]]:
  """Returns which columns may be what, those that `fields` names in place of the usual ones."""
  strange = set(fields or ()) - set(FIELDS)
  if strange:
    raise ValueError(f"config.data.fields has {sorted(strange)}; its keys are {', '.join(FIELDS)}")
  return {**FIELDS, **{field: (name,) for field, name in (fields or {}).items()}}


def is_empty(value: Any) -> bool:
  """Returns whether a value is as good as absent."""
  # NaN is how pandas writes an empty cell, also in columns of text.
  if value is None or isinstance(value, float) and math.isnan(value):
    return True
  return not value.strip() if isinstance(value, str) else hasattr(value, "__len__") and not len(value)


def check_media(where: str, given: Mapping[str, Any]) -> None:
  """Raises ValueError if a row, or a message, has pictures, films or sounds."""
  for column in MEDIA:
    if column in given:
      raise ValueError(f"{where}: has {column!r}, and models here read text alone; leave it out, or the "
                       "row if its text needs it")


def prompt_of(where: str, row: Mapping[str, Any], given: Mapping[str, Any],
              names: Mapping[str, Sequence[str]], fields: Mapping[str, str]) -> ParsedPrompt:
  """Returns the prompt of a row: the first of the columns that have one.

  Raises:
    ValueError: if there is none, if it is neither a text nor messages, or if another column asks otherwise.
  """
  # Where the user names the column, no other is looked at: not even one that asks something else.
  own = [field for field in ("messages", "prompt") if field in fields]
  wanted = own or ["messages", "instruction", "prompt"]
  found: list[ParsedPrompt] = []
  if "messages" in wanted:
    found += [ParsedPrompt(chat(where, column, given[column]), (column,)) for column in names["messages"]
              if column in given]
  taken: tuple[str, ...] = ()
  if "instruction" in wanted and INSTRUCTION in given:
    found.append(_instruction(where, given))
    taken = found[-1].columns
  # `input` is a prompt in some datasets and Alpaca's second part in others: what the instruction
  # has taken is not read again.
  for column in names["prompt"] if "prompt" in wanted else ():
    value = given.get(column)
    # Only the first must be a prompt: a number in a later one is a column like any other.
    if column in taken or value is None or found and not isinstance(value, str | list | tuple):
      continue
    text = isinstance(value, str) and not chat_messages.is_chat(value)
    found.append(ParsedPrompt(value if text else chat(where, column, value), (column,)))
  if not found:
    listed = ", ".join(repr(name) for name in (
      names["messages"][0], *names["prompt"], *names["messages"][1:], *(() if own else (INSTRUCTION,))))
    raise ValueError(f"{where}: has no prompt: one of {listed} must be there and not empty; it has "
                     f"{', '.join(map(repr, row)) or 'nothing'}{misspelt(row)}. {_advice(given)}")
  if not own:
    _check_others(where, found[0], found[1:])
  return found[0]


def _advice(given: Mapping[str, Any]) -> str:
  if "chosen" in given and "rejected" in given:
    return ("'chosen' and 'rejected' are ranked responses, which config.recipe='ranked' learns from; else "
            "name the field with config.data.fields")
  if "text" in given:
    return ("Plain texts, of a column 'text', are what config.recipe='memory_lm' learns; else name the field "
            "with config.data.fields")
  return "Name the field with config.data.fields"


def chat(where: str, column: str, value: Any) -> list[dict]:
  """Returns the messages of a column; see `messages.check`. Those with media are refused."""
  place = where if column == "messages" else f"{where}: {column}"
  found = chat_messages.check(place, value)
  for number, message in enumerate(found):
    check_media(f"{place}: messages[{number}]", {name: one for name, one in message.items()
                                                 if not is_empty(one)})
  return found


def _instruction(where: str, given: Mapping[str, Any]) -> ParsedPrompt:
  """Returns Alpaca's prompt: the instruction, a blank line, the input; earlier turns before it."""
  columns = [INSTRUCTION, *[column for column in INPUTS if column in given][:1]]
  # Alpaca's own template wraps both parts in English headings. They are left out: a chat template frames the
  # prompt here, and headings would stand inside it.
  prompt = "\n\n".join(text_of(where, column, given[column]) for column in columns)
  if HISTORY not in given:
    return ParsedPrompt(prompt, tuple(columns))
  turns = given[HISTORY]
  if not (chat_messages.is_list(turns) and all(
      chat_messages.is_list(turn) and len(turn) == 2 and all(isinstance(text, str) for text in turn)
      for turn in turns)):
    raise ValueError(f"{where}: {HISTORY!r} must be a list of [what the user said, what the assistant said]")
  said = [{"role": role, "content": text} for turn in turns
          for role, text in zip(("user", "assistant"), turn, strict=True)]
  return ParsedPrompt([*said, {"role": "user", "content": prompt}], (*columns, HISTORY))


def text_of(where: str, column: str, value: Any) -> str:
  """Returns a column that must be a text; ValueError if it is none."""
  if not isinstance(value, str):
    raise ValueError(f"{where}: {column!r} is {type(value).__name__}, not a text")
  return value


def _check_others(where: str, asked: ParsedPrompt, others: Sequence[ParsedPrompt]) -> None:
  """Refuses a second prompt that asks what the first does not say."""
  # The same question often stands in a row twice, as messages and as text. Equal up to blanks, or a part of
  # the first one: that is no contradiction.
  said = "\n\n".join(_texts(asked.prompt))
  for other in others:
    if not all(text.strip() in said for text in _texts(other.prompt)):
      names = " and ".join(repr(one.columns[0]) for one in (asked, other))
      raise ValueError(f"{where}: {names} are both prompts and ask different things; {CHOOSE}")


def _texts(prompt: str | Sequence[Mapping]) -> list[str]:
  return [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]


def _reply(where: str, given: Mapping[str, Any], asked: ParsedPrompt, names: Sequence[str]):
  """Returns (prompt, reply, column -> value that it was read from)."""
  prompt = asked.prompt
  columns = [column for column in names if column in given and column not in asked.columns]
  found = _solution(where, columns[0], given[columns[0]], prompt) if columns else ()
  if isinstance(prompt, str) or prompt[-1]["role"] != "assistant":
    return prompt, found, {column: given[column] for column in columns[:1]}
  prompt, last, name = prompt[:-1], prompt[-1], asked.columns[0]
  if found and [message["content"].strip() for message in found] != [last["content"].strip()]:
    raise ValueError(f"{where}: {columns[0]!r} and the last message of {name!r} are different answers; keep "
                     "one of them")
  return prompt, (last,), {f"{name}[-1]": last["content"]}


def _solution(where: str, column: str, value: Any, prompt: str | list[dict]) -> tuple[dict, ...]:
  """Returns a solution as messages of the assistant's; the prompt may stand before it once more."""
  if isinstance(value, str) and not chat_messages.is_chat(value):
    return ({"role": "assistant", "content": value},)
  if not chat_messages.is_list(value) and not isinstance(value, str):
    if isinstance(value, bool) or not isinstance(value, int | float):
      raise ValueError(f"{where}: its solution {column!r} is {type(value).__name__}, not a text, a number or "
                       "messages")
    return ({"role": "assistant", "content": str(value)},)
  said = after(prompt, chat(where, column, value))
  if not said or said[0]["role"] != "assistant" or said[-1]["role"] != "assistant":
    raise ValueError(f"{where}: {column!r} must be the assistant's messages, from its first to its last")
  return tuple(said)


def after(prompt: str | list[dict], said: list[dict]) -> list[dict]:
  """Returns messages without the prompt, if they begin with it."""
  asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt

  def key(message):
    return (message["role"], message["content"].strip())

  repeated = [key(one) for one in said[:len(asked)]] == [key(one) for one in asked]
  return said[len(asked):] if repeated else said


def _lesson(prompt: str, lesson: Mapping[str, str]) -> tuple[list[dict], str]:
  sections = [f"{title}:\n{lesson[name].strip()}" for name, title in TEACHING.items()]
  messages = [{"role": "system", "content": TEACHER}, {"role": "user", "content": prompt}]
  return messages, "\n\n".join(sections)


def with_system(where: str, prompt: str | list[dict], given: Mapping[str, Any]):
  """Returns prompt with the row's column of a system's message as its first, and the columns that were."""
  columns = [column for column in SYSTEM if column in given][:1]
  if not columns:
    return prompt, ()
  text = text_of(where, columns[0], given[columns[0]])
  asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
  # Templates take one system's message, as the first; two would be refused by many.
  if not asked or asked[0]["role"] not in ("system", "developer"):
    return [{"role": "system", "content": text}, *asked], tuple(columns)
  if asked[0]["content"].strip() != text.strip():
    raise ValueError(f"{where}: {columns[0]!r} and the system's message of its chat are different; keep one")
  return prompt, ()


def template_values(where: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns what a template may use besides messages, and the columns it was read from."""
  values: dict[str, Any] = {}
  columns = [column for column in (TOOLS, FUNCTIONS, PARALLEL, VALUES) if column in given]
  if TOOLS in given and FUNCTIONS in given:
    raise ValueError(f"{where}: has {TOOLS!r} and {FUNCTIONS!r}, its older name; keep one of them")
  for column in columns:
    value = given[column]
    if isinstance(value, str) and column != PARALLEL:
      value = chat_messages.parsed(where, column, value)
    if column in (TOOLS, FUNCTIONS):
      values[TOOLS] = _tools(where, column, value)
    elif column == PARALLEL:
      values[column] = value
    elif not isinstance(value, Mapping) or set(value) & {*RESERVED, *values}:
      taken = ", ".join((*RESERVED, *values))
      raise ValueError(f"{where}: {VALUES!r} must be an object of what the chat template may use besides "
                       f"{taken}")
    else:
      values.update({name: one for name, one in value.items() if one is not None})
  return values, {column: given[column] for column in columns}


def _tools(where: str, column: str, value: Any) -> list[dict]:
  if not chat_messages.is_list(value) or not all(isinstance(tool, Mapping) for tool in value):
    raise ValueError(f"{where}: {column!r} must be a list of tools, each an object with its function's name, "
                     "or such a list as JSON text")
  return [dict(tool) if column == TOOLS else {"type": "function", "function": dict(tool)} for tool in value]


def nearly(name: str) -> str | None:
  """Returns the known column whose name was likely meant, None if there is none or the name is known."""
  if name in KNOWN:
    return None
  # Only a hint in a message: nothing is read under a name that is not exactly known.
  found = difflib.get_close_matches(name.strip().lower(), KNOWN, 1, ALIKE)
  return found[0] if found else None


def misspelt(row: Mapping[str, Any]) -> str:
  """Returns a hint to columns of a row whose names are nearly known ones, for errors.

  "" if there are none.
  """
  found = [f"{name!r} for {known!r}" for name in row if (known := nearly(name)) is not None]
  return f" (is {', '.join(found)}?)" if found else ""


def named_in_no_row(fields: Mapping[str, str] | None, rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Returns which of config.data.fields name a column that no row has."""
  return [field for field, name in (fields or {}).items() if not any(name in row for row in rows)]


def as_problem(where: str, row: Mapping[str, Any], parts: Parts) -> problems.Problem:
  """Returns the problem of a row taken apart; columns that were not read become extra."""
  answer, (column,) = parts.answer, (*parts.read["answer"], None)[:1]
  if answer is not None and not isinstance(answer, str):
    if not isinstance(answer, int | float):
      raise ValueError(f"{where}: its answer is {type(answer).__name__}, not a text or a number, in "
                       f"{column!r}")
    answer = str(answer)
  read_columns = {one for columns in parts.read.values() for one in columns} - set(TEACHING)
  extra = {name: value for name, value in row.items() if name not in read_columns}
  solution = parts.reply[-1]["content"] if parts.reply else None
  # `reply` is for what a text cannot say. Left empty for plain answers, problems of files and those made here
  # are alike, and a fingerprint over them too.
  plain = parts.reply == ({"role": "assistant", "content": solution},)
  return problems.Problem(where, parts.prompt, answer, solution, extra, () if plain else parts.reply,
                          parts.values, parts.read)
