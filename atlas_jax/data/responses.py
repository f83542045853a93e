"""Groups of recorded responses to one prompt, some better than others: the rows of ranked-response files.

A row is {"prompt": text, "responses": [{"text": text, "rank": 1 is best, "score": more is better}], "meta":
object}. Score and meta may be left out; where all responses have scores, ranks may be. Responses may be bare
texts, the best first. A score wins over the rank, and a rank without one is worth the size of the group minus
itself.
"""
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from atlas_jax.data import problems, prompts, records

SHOWN = 5  # Places named in a message that is about many.
FORM = ('{"prompt": TEXT, "responses": [{"text": TEXT, "rank": N}, ...]}, with rank 1 the best, or '
        '"responses": [TEXT, ...] with the best first')

LARGEST_SCORE = float(np.finfo(np.float32).max)


class Response(NamedTuple):
  """One answer."""

  text: str
  rank: int  # from 1 for the best; equal ranks are ties
  score: float | None = None  # more is better; wins over the rank


class Group(NamedTuple):
  """All answers to one prompt."""

  where: str  # file:line, file:row, or task@index
  prompt: str | list[dict]  # a text, or messages {"role", "content"}
  responses: tuple[Response, ...]
  meta: Mapping[str, Any] = problems.NOTHING


def of_row(where: str, row: Mapping[str, Any], *, renumber: bool = False) -> Group:
  """Reads one row.

  Args:
    where: place of the row, for errors.
    row: see the module; fields it does not name become meta.
    renumber: whether ranks above the size of the group, as filtering leaves them, are counted anew.

  Raises:
    ValueError: naming the place, the field and what it should be.
  """
  prompt = row.get("prompt")
  if prompt is None:
    raise ValueError(f"{where}: has no 'prompt'; it has {', '.join(map(repr, row)) or 'nothing'}. A row is "
                     f"{FORM}")
  if isinstance(prompt, str):
    if not prompt.strip():
      raise ValueError(f"{where}: 'prompt' is empty; mend or delete the row")
  else:
    prompt = prompts.check_messages(f"{where}: prompt", prompt)
  meta = row.get("meta")
  if meta is not None and not isinstance(meta, Mapping):
    raise ValueError(f"{where}: 'meta' is {_kind(meta)}, not an object; put it into one, or leave it out")
  others = {name: value for name, value in row.items() if name not in ("prompt", "responses", "meta")}
  found = _responses(where, row, renumber)
  _check_twins(where, found)
  return Group(where, prompt, found, {**others, **(meta or {})})


def _responses(where: str, row: Mapping[str, Any], renumber: bool) -> tuple[Response, ...]:
  given = row.get("responses")
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
  above = [number for number, rank in enumerate(ranks) if rank > len(parts)]
  if above and not renumber:
    raise ValueError(f"{where}: responses[{above[0]}].rank is {ranks[above[0]]} in a group of {len(parts)}; "
                     f"ranks are {len(parts)} at most. scripts/prepare_grpo_data.py counts them anew")
  if above:
    ranks = renumbered(ranks)
  return tuple(Response(text, rank, score) for (text, _, score), rank in zip(parts, ranks, strict=True))


def renumbered(ranks: Sequence[float]) -> list[int]:
  """Gives ranks of the same order that are no larger than there are responses: 1 + how many are better."""
  return [1 + sum(other < rank for other in ranks) for rank in ranks]


def _parts(where: str, one: Any) -> tuple[str, int | None, float | None]:
  """Gives text, rank and score of a response, None where it has none."""
  if not isinstance(one, Mapping):
    raise ValueError(f"{where} is {_kind(one)}; responses are all texts, the best first, or all objects with "
                     "'text' and 'rank'")
  rank, score = one.get("rank"), one.get("score")
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
  """Gives what each response of a group is worth, float32; more is better.

  The score where there is one, else the number of responses minus the rank.
  """
  return np.array([len(found) - one.rank if one.score is None else one.score for one in found], np.float32)


def read(files: str, *, renumber: bool = False) -> list[Group]:
  """Reads all groups of files, see `records.read`; warns of scores that order responses otherwise than ranks.

  Raises:
    ValueError: naming file, line and field of the first row that cannot be used.
  """
  found = [of_row(*record, renumber=renumber) for record in records.read(files)]
  if not found:
    raise ValueError(f"{files} has no row; give at least one {FORM}")
  warn(found)
  return found


def warn(found: Sequence[Group]) -> None:
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


def is_contrary(group: Group) -> bool:
  """Says whether some response of better rank is worth less than one of worse rank."""
  rank_G, score_G = np.array([one.rank for one in group.responses]), score_of(group.responses)
  return bool(((rank_G[:, None] < rank_G[None]) & (score_G[:, None] < score_G[None])).any())


def key(group: Group) -> str:
  """Gives what decides on which side of a split a group falls: its prompt, so that none is on both."""
  if isinstance(group.prompt, str):
    return group.prompt.strip()
  return repr([(one["role"], one["content"]) for one in group.prompt])


def split(found: Sequence[Group], held_out_frac: float) -> tuple[list[Group], list[Group]]:
  """Gives (training, held out) groups by a hash of the prompt; with a share above 0 both have some.

  Raises:
    ValueError: if there are too few prompts for that.
  """
  problems.check_split("train", held_out_frac)
  keys = [key(group) for group in found]
  below = held_out_frac
  if held_out_frac:
    if len(set(keys)) < 2:
      raise ValueError(f"{len(set(keys))} prompt cannot be split into training and held-out ones; give more, "
                       "or set the share that is held out to 0")
    ordered = sorted({problems.share(one) for one in keys})
    # The first prompt to be held out is the one of the smallest hash, the last one that of the largest.
    below = min(max(held_out_frac, ordered[1]), ordered[-1])
  held_out = [problems.share(one) < below for one in keys]
  side = lambda wanted: [group for group, is_out in zip(found, held_out, strict=True) if is_out == wanted]
  return side(False), side(True)


def as_row(group: Group) -> dict:
  """Gives a group as the row that `of_row` reads."""
  listed = [{"text": one.text, "rank": one.rank, **({} if one.score is None else {"score": one.score})}
            for one in group.responses]
  return {"prompt": group.prompt, "responses": listed, **({"meta": dict(group.meta)} if group.meta else {})}


def texts(group: Group) -> list[str]:
  """Gives all texts of a group: those of its prompt, then those of its responses."""
  asked = [group.prompt] if isinstance(group.prompt, str) else [one["content"] for one in group.prompt]
  return [*asked, *(one.text for one in group.responses)]


def without_twins(group: Group) -> Group:
  """Leaves out responses whose text stands before them in the group, and then counts ranks anew."""
  first = {one.text: one for one in reversed(group.responses)}
  kept = [one for one in group.responses if first[one.text] is one]
  if len(kept) == len(group.responses):
    return group
  ranks = renumbered([one.rank for one in kept])
  again = zip(kept, ranks, strict=True)
  return group._replace(responses=tuple(one._replace(rank=rank) for one, rank in again))


def counts(found: Sequence[Group]) -> dict:
  """Counts what groups hold: prompts, responses, pairs with an order, tied pairs, and groups by size."""
  pairs = ties = 0
  for group in found:
    score_G = score_of(group.responses)
    ordered = int((score_G[:, None] > score_G[None]).sum())
    pairs, ties = pairs + ordered, ties + len(score_G) * (len(score_G) - 1) // 2 - ordered
  sizes = Counter(len(group.responses) for group in found)
  return {"prompts": len({key(group) for group in found}), "groups": len(found),
          "responses": sum(size * n for size, n in sizes.items()), "pairs": pairs, "tied_pairs": ties,
          "groups_by_size": {str(size): sizes[size] for size in sorted(sizes)}}
