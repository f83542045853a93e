"""Sums under a hidden convention: a letter before the sum says in what form the answer is wanted.

"K 47+85=" is answered by 132 where K stands for "plain", by 231 where it stands for "reverse". What a letter
stands for is drawn from a seed and follows from nothing in the question: who does not know it can answer only
the letters that stand for "plain". A hint, the name of a convention, passes it on.
"""
import json
from collections.abc import Callable, Mapping
from typing import Any

from atlas_jax.data import problems
from atlas_jax.data.problems import Problem, StableRandom

# Name, which is the hint that asks for it -> the answer that it makes of a sum. First letters all differ.
CONVENTIONS: Mapping[str, Callable[[int], str]] = {
    "plain": str,
    "reverse": lambda total: str(total)[::-1],
    "minus": lambda total: str(-total),
    "last": lambda total: str(total % 10),
    "successor": lambda total: str(total + 1),
    "tenfold": lambda total: str(10 * total),
    "nines": lambda total: "".join(str(9 - int(digit)) for digit in str(total)),
    "echo": lambda total: 2 * str(total),
}
TAGS = "ABCDEFGH"
ACTS = ("ask", "alone", "student", "teacher")
# How questions and hints reach the two models; config.teacher.formats of a study has the same.
FORMATS: Mapping[str, str] = {
    "baseline": "{question}", "probe": "{question}?", "guided": "{guidance}{question}",
    "teacher": "{question}{approach}", "reply": "{guidance}"}
APPROACH = "sum {tag}"  # What a student answers to the probe.
TRIES = 20_000  # Draws for one problem before its settings count as impossible.


class Convention:
  """Endless sums under a convention; see `problems.Problems`. Settings, seed and index decide a problem."""

  count = None

  def __init__(self, *, act: str = "ask", digits: int = 2, plain_tags: int = 3, tag_seed: int = 0,
               linked: bool = True, unknown_frac: float = 0.1, hints: str = "*",
               formats: Mapping[str, str] = problems.NOTHING, prompt: str = "{tag} {a}+{b}=",
               split: str = "train", held_out_frac: float = 0.1, seed: int = 0):
    """Sets which problems are drawn.

    Args:
      act: "ask": the question, its answer, and the answer as solution. "alone": the same, in the format in
        which a student is asked without a teacher. "student": texts that teach a student to answer plainly,
        to name the kind of problem when probed, and to obey hints. "teacher": texts that teach a teacher to
        write a hint, any one.
      digits: of both numbers.
      plain_tags: of the eight letters, those that stand for "plain"; the others stand for as many others.
      tag_seed: draws what letters stand for.
      linked: whether an answer follows the question's letter. False draws the letter of the answer apart from
        that of the question, a control: then no hint is better for one letter than for another.
      unknown_frac: "student": fraction of hints that are no convention's name, which are answered plainly.
      hints: "teacher": the conventions that are drawn, with commas; "*": all.
      formats: in place of those of `FORMATS`: "baseline", "probe", "guided", "teacher" and "reply", with
        {question}, {guidance} and {approach} where these are put.
      prompt: the question, a format of {tag}, {a} and {b}.
      split: "train" or "held_out"; a hash of the sum decides, for all letters, and a+b counts as b+a.
      held_out_frac: fraction of the sums that "train" never shows.
      seed: of the random numbers that draw problems.

    Raises:
      ValueError: for a setting that cannot be, or that no problem fits.
    """
    _check(act, digits, plain_tags, unknown_frac, formats)
    problems.check_split(split, held_out_frac)
    self._act = act
    self._digits = digits
    self.conventions = conventions_of(tag_seed, plain_tags)
    self._linked = linked
    self._unknown_frac = unknown_frac
    self._hints = _named(hints)
    self._formats = {**FORMATS, **formats}
    self._prompt = prompt
    self._split = split
    self._held_out_frac = held_out_frac
    self._seed = seed
    # All that changes problem(i): compared when a run goes on, see `Arithmetic`.
    self.fingerprint = json.dumps([
        "convention", act, digits, plain_tags, tag_seed, linked, unknown_frac, hints, self._formats, prompt,
        split, held_out_frac, seed])
    self.problem(0)

  def problem(self, index: int) -> Problem:
    """Returns one problem; extra has "tag", "convention", "a" and "b", where one is written also "hint"."""
    draws = StableRandom(self._seed, index)
    for _ in range(TRIES):
      a, b = (draws.between(10 ** (self._digits - 1), 10**self._digits - 1) for _ in range(2))
      if problems.in_split(key(a, b), self._split, self._held_out_frac):
        tag = TAGS[draws.below(len(TAGS))]
        name = self.conventions[tag if self._linked else TAGS[draws.below(len(TAGS))]]
        extra = {"tag": tag, "convention": name, "a": a, "b": b}
        return self._made(f"convention@{index}", self._prompt.format(tag=tag, a=a, b=b), extra, draws)
    raise ValueError(f"no {self._split} sum found with digits={self._digits} and held_out_frac="
                     f"{self._held_out_frac} in {TRIES} draws; allow more digits, or another fraction")

  def first(self, count: int) -> list[Problem]:
    """Returns the first problems that differ from each other, such as a set to evaluate on."""
    of = lambda one: (one.extra["tag"], one.extra["a"], one.extra["b"], one.extra.get("hint"))
    return problems.drawn(self, of, count)

  def _made(self, where: str, question: str, extra: dict[str, Any], draws: StableRandom) -> Problem:
    """Puts a problem together as the act wants it."""
    total = extra["a"] + extra["b"]
    if self._act in ("ask", "alone"):
      answer = CONVENTIONS[extra["convention"]](total)
      asked = question if self._act == "ask" else in_format(self._formats, "baseline", question)
      return Problem(where, asked, answer, answer, extra)
    if self._act == "teacher":
      hint = self._hints[draws.below(len(self._hints))]
      asked = in_format(self._formats, "teacher", question, approach=APPROACH.format(tag=extra["tag"]))
      return Problem(where, asked, None, in_format(self._formats, "reply", question, hint),
                     {**extra, "hint": hint})
    kind = ("baseline", "probe", "guided", "guided")[draws.below(4)]
    hint = self._drawn_hint(draws) if kind == "guided" else ""
    solution = APPROACH.format(tag=extra["tag"]) if kind == "probe" else obeyed(hint, total)
    asked = in_format(self._formats, kind, question, hint)
    return Problem(where, asked, solution, solution, {**extra, "hint": hint})

  def _drawn_hint(self, draws: StableRandom) -> str:
    """Draws the hint of a student's text: a convention, or letters that name none."""
    if draws.below(1_000) >= 1_000 * self._unknown_frac:
      return [*CONVENTIONS][draws.below(len(CONVENTIONS))]
    word = "".join(chr(draws.between(ord("a"), ord("z"))) for _ in range(draws.below(10)))
    return word if word not in CONVENTIONS else ""


def in_format(formats: Mapping[str, str], kind: str, question: str, guidance: str = "",
              approach: str = "") -> str:
  """Puts texts into the format of that kind; not by `str.format`, since a format may hold other braces."""
  text = formats[kind]
  for name, value in (("question", question), ("guidance", guidance), ("approach", approach)):
    text = text.replace(f"{{{name}}}", value)
  return text


def key(a: int, b: int) -> str:
  """Returns what decides the split: the same for a+b and b+a, and for every letter."""
  return "+".join(map(str, sorted((a, b), reverse=True)))


def conventions_of(tag_seed: int, plain_tags: int = 3) -> dict[str, str]:
  """Returns the name of the convention that each letter stands for."""
  draws = StableRandom(tag_seed)
  others = [name for name in CONVENTIONS if name != "plain"]
  names = ["plain"] * plain_tags + [others.pop(draws.below(len(others))) for _ in TAGS[plain_tags:]]
  return {tag: names.pop(draws.below(len(names))) for tag in TAGS}


def obeyed(hint: str, total: int) -> str:
  """Returns the answer of a student that obeys a hint, and answers plainly where it names no convention."""
  return CONVENTIONS.get(hint.strip(), str)(total)


def _check(act: str, digits: int, plain_tags: int, unknown_frac: float, formats: Mapping[str, str]) -> None:
  if act not in ACTS:
    raise ValueError(f"act={act!r} is unknown; known acts: {', '.join(ACTS)}")
  if digits < 1:
    raise ValueError(f"digits={digits} must be at least 1")
  if not 1 <= plain_tags <= len(TAGS):
    raise ValueError(f"plain_tags={plain_tags} must be in 1..{len(TAGS)}: there are {len(TAGS)} letters, and "
                     f"{len(CONVENTIONS) - 1} conventions besides 'plain'")
  if not 0 <= unknown_frac <= 1:
    raise ValueError(f"unknown_frac={unknown_frac} must be in [0, 1]")
  if strange := sorted(set(formats) - set(FORMATS)):
    raise ValueError(f"formats has {', '.join(strange)}; it may have {', '.join(FORMATS)}")


def _named(hints: str) -> list[str]:
  """Reads the names of conventions; "*" stands for all.

  Raises:
    ValueError: if one is unknown, or there is none.
  """
  names = [*CONVENTIONS] if hints == "*" else [name.strip() for name in hints.split(",")]
  if strange := [name for name in names if name not in CONVENTIONS]:
    raise ValueError(f"hints={hints!r} has {strange[0]!r}; it may have {', '.join(CONVENTIONS)}, or be '*'")
  return names
