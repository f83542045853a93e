"""Groups of recorded responses to one prompt, some better than others: the rows of ranked-response files.

A row is {"prompt": text, "responses": [{"text": text, "rank": 1 is best, "score": more is better}], "meta":
object}. Score and meta may be left out; where all responses have scores, ranks may be. Responses may be bare
texts, the best first. A score wins over the rank, and a rank without one is worth the size of the group minus
itself.

TRL's preferences are read too: `chosen` and `rejected`, texts or messages, are two responses, with their
scores in score_chosen and score_rejected; without a prompt, what both begin with is the prompt. A prompt may
stand in any column that `prompts` names, with `system` and `tools` beside it.
"""
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from atlas_jax.data import messages as chat_messages
from atlas_jax.data import problems, records, row_formats

SHOWN = 5  # Places named in a message that is about many.
FORM = ('{"prompt": TEXT, "responses": [{"text": TEXT, "rank": N}, ...]}, with rank 1 the best, or '
        '"responses": [TEXT, ...] with the best first; or {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}')
PARTS = ("text", "rank", "score")  # What is read of a response.
CHOICES = ("chosen", "rejected")  # The columns of a preference, the better first.

LARGEST_SCORE = float(np.finfo(np.float32).max)


class Response(NamedTuple):
  """One answer."""

  text: str
  rank: int  # from 1 for the best; equal ranks are ties
  score: float | None = None  # more is better; wins over the rank


class AnswerGroup(NamedTuple):
  """All answers to one prompt."""

  where: str  # file:line, file:row, or task@index
  prompt: str | list[dict]  # a text, or messages {"role", "content"}
  responses: tuple[Response, ...]
  meta: Mapping[str, Any] = problems.NOTHING
  values: Mapping[str, Any] = problems.NOTHING  # what a chat template may use besides messages, such as tools
  read: Mapping[str, Mapping[str, Any]] = problems.NOTHING  # of the prompt, see `Problem.read`
  unused: tuple[str, ...] = ()  # columns, and fields of responses, that nothing reads


def parse_row(where: str, row: Mapping[str, Any], *, renumber: bool = False,
              fields: Mapping[str, str] | None = None) -> AnswerGroup:
  """Reads one row.

  Args:
    where: place of the row, for errors.
    row: see the module; fields it does not name become meta.
    renumber: whether ranks above the size of the group, as filtering leaves them, are counted anew.
    fields: what this dataset calls its "prompt" or "messages".

  Raises:
    ValueError: naming the place, the field and what it should be.
  """
  given = {column: value for column, value in row.items() if not row_formats.is_empty(value)}
  row_formats.check_media(where, given)
  prompt, read, ignored = _prompt(where, row, given, fields or {})
  if "responses" not in given and any(column in given for column in CHOICES):
    prompt, found, own, unread = _preference(where, given, prompt)
    ignored += unread
  else:
    listed = row.get("responses")
    if isinstance(listed, str) and listed.lstrip().startswith("["):
      listed = chat_messages.parsed(where, "responses", listed)
    found = _responses(where, listed, renumber)
    own = ["responses"]
    ignored += dict.fromkeys(f"responses[].{name}" for one in listed or () if isinstance(one, Mapping)
                             for name, value in one.items() if name not in PARTS and value is not None)
  assert prompt is not None  # `_preference` finds one.
  # Its fields win over columns of the row with the same name: they were put there on purpose.
  meta = row.get("meta")
  if meta is not None and not isinstance(meta, Mapping):
    raise ValueError(f"{where}: 'meta' is {_kind(meta)}, not an object; put it into one, or leave it out")
  used = {*own, "meta", *(column for columns in read.values() for column in columns)}
  others = {name: value for name, value in row.items() if name not in used}
  _check_twins(where, found)
  unused = [*ignored, *(name for name in others if name in given), *(["meta"] if meta else [])]
  return AnswerGroup(where, prompt, found, {**others, **(meta or {})},
                     row_formats.template_values(where, given)[0], read, tuple(unused))


def _prompt(where: str, row: Mapping[str, Any], given: Mapping[str, Any], fields: Mapping[str, str]):
  """Returns the prompt, None where a preference has it, the columns it was read from, and what is ignored."""
  strange = set(fields) - {"prompt", "messages"}
  if strange:
    raise ValueError(f"config.data.fields has {sorted(strange)}; of ranked responses it says what 'prompt' "
                     "and 'messages' are")
  shown = row_formats.template_values(where, given)[1]
  names = row_formats.names_of(fields)
  known = (*names["messages"], *names["prompt"], row_formats.INSTRUCTION)
  there = [column for column in known if column in given]
  if not there and all(column in given for column in CHOICES):
    return None, {"prompt": {}, "template": shown}, []
  if not there and isinstance(row.get("prompt"), str):
    raise ValueError(f"{where}: 'prompt' is empty; mend or delete the row")
  if not there:
    raise ValueError(f"{where}: has no 'prompt'; it has {', '.join(map(repr, row)) or 'nothing'}"
                     f"{row_formats.misspelt(row)}. A row is {FORM}")
  asked = row_formats.prompt_of(where, row, given, names, fields)
  prompt = asked.prompt
  ignored = []
  # Such a chat ends with an answer of its own, which is none of the responses; it is named as ignored.
  if not isinstance(prompt, str) and prompt[-1]["role"] == "assistant":
    prompt = prompt[:-1]
    ignored = [f"{asked.columns[0]}[-1]"]
    if not prompt:
      raise ValueError(f"{where}: {asked.columns[0]!r} has nothing before the assistant's; put the prompt "
                       "there")
  prompt, system = row_formats.with_system(where, prompt, given)
  return prompt, {"prompt": {column: given[column] for column in (*asked.columns, *system)},
                  "template": shown}, ignored


def _preference(where: str, given: Mapping[str, Any], prompt: str | list[dict] | None):
  """Returns prompt, responses, columns and what is not read of a row with a better and a worse one."""
  missing = [column for column in CHOICES if column not in given]
  if missing:
    raise ValueError(f"{where}: has no {missing[0]!r} beside the other of {' and '.join(CHOICES)}; give both")
  if len({chat_messages.is_chat(given[column]) for column in CHOICES}) > 1:
    raise ValueError(f"{where}: of 'chosen' and 'rejected' one is a text and one a chat; give both alike")
  unread: list[str] = []
  if chat_messages.is_chat(given[CHOICES[0]]):
    said = [row_formats.chat(where, column, given[column]) for column in CHOICES]
    # TRL's implicit prompt: chats that both have their whole history are the prompt as far as they agree.
    if prompt is None:
      prompt = [one for one, other in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*said))]
    texts = [_last(where, column, row_formats.after(prompt, one))
             for column, one in zip(CHOICES, said, strict=True)]
    unread = [f"{column}[-1].{name}" for column, one in zip(CHOICES, said, strict=True)
              for name in one[-1] if name not in ("role", "content")]
  else:
    texts = [_text(f"{where}: {column!r}", given[column]) for column in CHOICES]
    if prompt is None:
      # Responses keep the white space that they begin with: prompt + response
      # must be the text that was given.
      prompt = _common(*texts)
      texts = [text[len(prompt):] for text in texts]
  if texts[0] == texts[1]:
    raise ValueError(f"{where}: 'chosen' and 'rejected' are the same; leave the row out")
  if not prompt:
    raise ValueError(f"{where}: has no 'prompt', and 'chosen' and 'rejected' do not begin alike; give one")
  if not all(text.strip() for text in texts):
    raise ValueError(f"{where}: 'chosen' or 'rejected' has nothing behind the prompt that they begin with")
  names = [name for name in (f"score_{column}" for column in CHOICES) if name in given]
  if len(names) == 1:
    raise ValueError(f"{where}: has {names[0]!r} without the score of the other response; give both or none")
  scores = [_number(f"{where}: {name!r}", given[name]) for name in names]
  found = tuple(Response(text, number + 1, scores[number] if scores else None)
                for number, text in enumerate(texts))
  return prompt, found, [*CHOICES, *names], unread


def _last(where: str, column: str, said: Sequence[Mapping]) -> str:
  """Returns the one message that follows the prompt."""
  if len(said) != 1 or said[0]["role"] != "assistant" or "tool_calls" in said[0]:
    raise ValueError(f"{where}: {column!r} must be the prompt's messages, if any, and one of the assistant's "
                     f"with a text; behind the prompt it has {len(said)}")
  return said[0]["content"]


def _common(one: str, other: str) -> str:
  """Returns what two texts begin with alike, up to the white space before the first word that differs."""
  common = os.path.commonprefix([one, other])
  # Not up to the first letter that differs: that would cut "better" and "best" inside a word, into
  # tokens that neither text has.
  words = re.match(r"(?s)(.*\S)\s", common)
  return words[1] if words else ""


def _number(where: str, value: Any) -> float:
  """Returns a finite number, which tables of text hold as a text."""
  try:
    # NaN fails every comparison, so one test below refuses what is no number, infinite, or beyond float32.
    found = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError):
    found = math.nan
  except OverflowError:
    found = math.inf
  if not abs(found) <= LARGEST_SCORE:
    raise ValueError(f"{where} is {repr(value)[:40]}; it must be a finite number that float32 holds, of "
                     "which more is better")
  return found


def _responses(where: str, given: Any, renumber: bool) -> tuple[Response, ...]:
  if not isinstance(given, Sequence) or isinstance(given, str) or not len(given):
    what = "is missing" if given is None else "is empty" if given in ([], ()) else f"is {_kind(given)}"
    raise ValueError(f"{where}: 'responses' {what}; it must be a list of at least one. A row is {FORM}")
  if all(isinstance(one, str) for one in given):
    return tuple(Response(_text(f"{where}: responses[{number}]", one), number + 1)
                 for number, one in enumerate(given))
  parts = [_parts(f"{where}: responses[{number}]", one) for number, one in enumerate(given)]
  scores = [part[2] for part in parts]
  given_ranks = [part[1] for part in parts]
  ranks = [rank for rank in given_ranks if rank is not None]
  if not ranks and None not in scores:
    ranks = renumbered([-score for score in scores if score is not None])
  if len(ranks) < len(parts):
    raise ValueError(f"{where}: responses[{given_ranks.index(None)}] has no 'rank'; give each response one, "
                     "or a 'score' to each")
  # A rank is worth the size minus itself: one above the size, as filtering a larger group leaves it, would be
  # worth less than 0, which is what the last of a whole group has.
  above = [number for number, rank in enumerate(ranks) if rank > len(parts)]
  if above and not renumber:
    raise ValueError(f"{where}: responses[{above[0]}].rank is {ranks[above[0]]} in a group of {len(parts)}; "
                     f"ranks are {len(parts)} at most. scripts/prepare_grpo_data.py counts them anew")
  if above:
    ranks = renumbered(ranks)
  return tuple(Response(text, rank, score) for (text, _, score), rank in zip(parts, ranks, strict=True))


def renumbered(ranks: Sequence[float]) -> list[int]:
  """Returns ranks of the same order that are no larger than there are responses: 1 + how many are better."""
  # Ties keep one rank, and the next better count is skipped after them (1, 2, 2, 4), so that ranks stay at
  # most the number of responses.
  return [1 + sum(other < rank for other in ranks) for rank in ranks]


def _parts(where: str, one: Any) -> tuple[str, int | None, float | None]:
  """Returns text, rank and score of a response, None where it has none."""
  if not isinstance(one, Mapping):
    raise ValueError(f"{where} is {_kind(one)}; responses are all texts, the best first, or all objects with "
                     "'text' and 'rank'")
  rank = one.get("rank")
  score = one.get("score")
  # Tables hold whole numbers as floats where some are missing.
  is_whole = isinstance(rank, int) or isinstance(rank, float) and rank.is_integer()
  if rank is not None and (isinstance(rank, bool) or not is_whole or rank < 1):
    raise ValueError(f"{where}.rank is {rank!r}; ranks are whole numbers from 1, the best, and equal "
                     "ones are ties")
  # What compares as not less, such as NaN, or a whole number of 400 digits, would be no float32.
  is_number = isinstance(score, int | float) and not isinstance(score, bool) and abs(score) <= LARGEST_SCORE
  if score is not None and not is_number:
    raise ValueError(f"{where}.score is {repr(score)[:40]}; it must be a finite number that float32 holds, "
                     "of which more is better, or be left out")
  text = _text(f"{where}.text", one.get("text"))
  return text, None if rank is None else int(rank), None if score is None else float(score)


def _text(where: str, text: Any) -> str:
  if not isinstance(text, str):
    raise ValueError(f"{where} is {'missing' if text is None else _kind(text)}; it must be a text")
  if not text.strip():
    raise ValueError(f"{where} is empty; mend it, or leave the response out")
  return text


def _kind(value: Any) -> str:
  kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number",
           float: "a number"}
  return kinds.get(type(value), "null" if value is None else type(value).__name__)


def _check_twins(where: str, found: Sequence[Response]) -> None:
  """Refuses a text that stands twice with different worth: pairs would push it away from itself."""
  first: dict[str, int] = {}
  score_G = score_of(found)
  for number, one in enumerate(found):
    twin = first.setdefault(one.text, number)
    if score_G[twin] != score_G[number]:
      raise ValueError(f"{where}: responses[{number}].text is that of responses[{twin}], which is ranked "
                       "otherwise; keep one of them")


def score_of(found: Sequence[Response]) -> np.ndarray:
  """Returns what each response of a group is worth, float32; more is better.

  The score where there is one, else the number of responses minus the rank.
  """
  # The rule of the format: the best of K responses is worth K - 1, the last 0. A score wins response by
  # response, so a group may mix both, of which `warn` speaks.
  return np.array([len(found) - one.rank if one.score is None else one.score for one in found], np.float32)


def read(files: str, *, renumber: bool = False, fields: Mapping[str, str] | None = None) -> list[AnswerGroup]:
  """Reads all groups of files, see `records.read`; warns of scores that order responses otherwise than ranks.

  Raises:
    ValueError: naming file, line and field of the first row that cannot be used.
  """
  found = [parse_row(*record, renumber=renumber, fields=fields) for record in records.read(files)]
  if not found:
    raise ValueError(f"{files} has no row; give at least one {FORM}")
  warn(found)
  return found


def warn(found: Sequence[AnswerGroup]) -> None:
  """Logs which groups have scores that order responses otherwise than ranks do, or for some of them only."""
  against = [group.where for group in found if is_contrary(group)]
  if against:
    logging.warning("scores order responses otherwise than ranks do in %d of %d groups, and scores win: %s; "
                    "is their score a rank, of which less is better?", len(against), len(found),
                    ", ".join(against[:SHOWN]))
  mixed = [group.where for group in found if len({one.score is None for one in group.responses}) > 1]
  if mixed:
    logging.warning("%d of %d groups have scores for some responses only; those are compared with what the "
                    "others' ranks are worth, 0 for the last, 1 for the one before: %s; give all or none one",
                    len(mixed), len(found), ", ".join(mixed[:SHOWN]))


def is_contrary(group: AnswerGroup) -> bool:
  """Returns whether some response of better rank is worth less than one of worse rank."""
  rank_G = np.array([one.rank for one in group.responses])
  score_G = score_of(group.responses)
  return bool(((rank_G[:, None] < rank_G[None]) & (score_G[:, None] < score_G[None])).any())


def key(group: AnswerGroup) -> str:
  """Returns what decides on which side of a split a group falls: its prompt, so that none is on both."""
  if isinstance(group.prompt, str):
    # Blanks at the ends must not put one prompt on both sides of the split.
    return group.prompt.strip()
  return repr([(one["role"], one["content"]) for one in group.prompt])


def split(found: Sequence[AnswerGroup], held_out_frac: float) -> tuple[list[AnswerGroup], list[AnswerGroup]]:
  """Returns (training, held out) groups by a hash of the prompt; with a fraction above 0 both have some.

  Raises:
    ValueError: if there are too few prompts for that.
  """
  problems.check_split("train", held_out_frac)
  keys = [key(group) for group in found]
  places = [problems.uniform_hash(one) for one in keys]
  below = problems.threshold(places, held_out_frac, "prompt")
  held_out = [place < below for place in places]

  def side(wanted):
    return [group for group, is_out in zip(found, held_out, strict=True) if is_out == wanted]

  return side(False), side(True)


def as_row(group: AnswerGroup) -> dict:
  """Returns a group as the row that `parse_row` reads."""
  listed = [{"text": one.text, "rank": one.rank, **({} if one.score is None else {"score": one.score})}
            for one in group.responses]
  tools = {name: value for name, value in group.values.items() if name == row_formats.TOOLS}
  others = {name: value for name, value in group.values.items() if name not in tools}
  return {"prompt": group.prompt, "responses": listed, **tools,
          **({row_formats.VALUES: others} if others else {}),
          **({"meta": dict(group.meta)} if group.meta else {})}


def texts(group: AnswerGroup) -> list[str]:
  """Returns all texts of a group: those of its prompt, then those of its responses."""
  asked = [group.prompt] if isinstance(group.prompt, str) else [one["content"] for one in group.prompt]
  return [*asked, *(one.text for one in group.responses)]


def without_twins(group: AnswerGroup) -> AnswerGroup:
  """Leaves out responses whose text stands before them in the group, and then counts ranks anew."""
  # Reversed, so that of equal texts the first one stays in the dict.
  first = {one.text: one for one in reversed(group.responses)}
  kept = [one for one in group.responses if first[one.text] is one]
  if len(kept) == len(group.responses):
    return group
  ranks = renumbered([one.rank for one in kept])
  again = zip(kept, ranks, strict=True)
  return group._replace(responses=tuple(one._replace(rank=rank) for one, rank in again))


def counts(found: Sequence[AnswerGroup]) -> dict:
  """Counts what groups hold: prompts, responses, pairs with an order, tied pairs, and groups by size."""
  pairs = ties = 0
  for group in found:
    score_G = score_of(group.responses)
    ordered = int((score_G[:, None] > score_G[None]).sum())
    pairs = pairs + ordered
    ties = ties + len(score_G) * (len(score_G) - 1) // 2 - ordered
  sizes = Counter(len(group.responses) for group in found)
  return {"prompts": len({key(group) for group in found}), "groups": len(found),
          "responses": sum(size * n for size, n in sizes.items()), "pairs": pairs, "tied_pairs": ties,
          "groups_by_size": {str(size): sizes[size] for size in sorted(sizes)}}
