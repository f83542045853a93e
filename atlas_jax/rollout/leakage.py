"""Guidance that contains the answer, and prompts that do.

An answer is looked for as it is compared: as a number by its value, as a text but for case, spacing and
marks of Markdown or TeX within it, and in a box or tag. Digits and letters that stand apart, such as 1 3 2 or
P-a-r-i-s, are read as one. What stands in the question too tells nothing and is no leak, unless the guidance
calls it the answer. An answer in words for digits, inside of a longer word, or in a code that teacher and
student agree on, is not found.
"""
import re
import unicodedata
from collections.abc import Iterator, Sequence
from fractions import Fraction

from atlas_jax.rollout import answers
from atlas_jax.rollout.answers import Value

KINDS = ("box", "number", "text")
FEW_CHARS = 4  # Texts below are not looked for with signs within them: "a n-th root" has no "an".
# Letters may stand before it: else a teacher that is rewarded for right answers would learn to write "x132".
_DIGITS = r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,3}(?![0-9a-z]))?"
_NUMBERS = re.compile(rf"(?<![0-9])(?<![0-9]\.)[+-]?{_DIGITS}(?:\s*/\s*[0-9]+)?", re.IGNORECASE)
_DECIMALS = re.compile(r"(?<![0-9])[+-]?\.[0-9]+")
_MIXED = re.compile(r"(?<![0-9.])[0-9]+\s+[0-9]+\s*/\s*[0-9]+")
_POWERS = re.compile(rf"(?<![0-9])(?:{_DIGITS}\s*[*x]\s*)?10\s*\^\s*[+-]?[0-9]{{1,3}}(?![0-9])")
_PERCENT = re.compile(r"\s*(?:%|per ?cent\b)", re.IGNORECASE)
# 1 3 2, 1-3-2 and 1|3|2 are read as 132, too; | 1 | 2 | is a row of a table.
_SPREAD = re.compile(r"(?<=[0-9])(?:(?:[\s\-_·'`~]|\*\*){1,4}|\|)(?=[0-9])")
# Letters of other alphabets that look like Latin ones.
_ALIKE = dict(zip("авеікмнорстухѕјԁһԛԝαβικνορτυχ", "abeikmhopctyxsjdhqwabikvoptux", strict=True))
_LISTED = re.compile(r"(?<![0-9.,])[0-9](?:(?:, ?|\*)[0-9](?![0-9.]))+")  # So is 1, 3, 2.
_WITHIN = r"[\s\-_.·*`~|']{0,3}"  # Between letters of a text.
_SEAMS = re.compile(r"(?<=[a-z])(?=[A-Z])|_|(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])")
_SENTENCES = re.compile(r"(?<=[.;!?])\s+|\n")
_HTML = re.compile(r"</?[a-zA-Z][^<>]{0,40}>")
_RAISED = re.compile("(?<![0-9A-Za-z)\\]}])[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_TEX = tuple((re.compile(pattern), new) for pattern, new in (
    (r"\{,\}", ","), (r"\\[,;:!() \[\]]", " "), (r"\\(?:times|cdot)(?![a-z])|×", "*"), (r"\\%", "%"),
    (r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r" \1/\2"),
    (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" \1/\2"),
    (r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 "), (r"\^\{([+-]?[0-9]+)\}", r"^\1")))


def leak(guidance: str, answer: str | None, question: str = "") -> str | None:
  """Returns how a guidance contains the answer, one of `KINDS`; None if it does not, or there is no answer.

  Args:
    guidance: what the student is told.
    answer: the truth, or a solution that states it in a box, a tag or behind "####".
    question: what the student knows anyway.
  """
  if answer is None or not answer.strip():
    return None
  truth = answers.extract(answer) if answers.is_marked(answer) else answer
  # Each sentence for itself too: the last one of several may say something else.
  if any(_states(part, truth) for part in (guidance, *_SENTENCES.split(guidance))):
    return "box"
  wanted = answers.value(truth)
  if wanted is not None:
    return "number" if _has_number(guidance, wanted) and not _has_number(question, wanted) else None
  if _chooses(guidance, truth):
    return "text"
  return "text" if contains_text(guidance, truth) and not contains_text(question, truth) else None


def _states(text: str, truth: str) -> bool:
  """Returns whether a text calls the truth its answer."""
  return (answers.is_marked(text) or answers.says_answer(text)) and answers.same(answers.extract(text), truth)


def _plain(text: str) -> str:
  """Returns a text without what only changes how it looks: tags, TeX, wide digits, invisible characters."""
  text = _RAISED.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
  if not text.isascii():
    text = "".join(char if char.isascii() else _plain_char(char) for char in text)
  text = _HTML.sub("", text)
  for pattern, new in _TEX:
    text = pattern.sub(new, text)
  return text


def _plain_char(char: str) -> str:
  if unicodedata.category(char) == "Cf":  # Of no width.
    return ""
  if char.isdecimal():
    return str(unicodedata.digit(char))
  if (alike := _ALIKE.get(char.lower())) is not None:
    return alike if char.islower() else alike.upper()
  return {"−": "-", "’": "'", "⁄": "/", "×": "*"}.get(char) or answers.spelled(char)


# Numbers.


def _has_number(text: str, wanted: Value) -> bool:
  """Returns whether a text has a number of that value, with either sign, or as the fraction of a percent."""
  targets = {wanted.number, -wanted.number}
  if wanted.unit == "%":
    targets |= {one / 100 for one in targets}
  return not targets.isdisjoint(_numbers(text))


def _numbers(text: str) -> Iterator[Fraction]:
  """Yields the numbers of a text in all its readings."""
  plain = _plain(text)
  listed = _LISTED.sub(lambda found: re.sub(r"[^0-9]", "", found[0]), plain)
  for reading in dict.fromkeys((plain, _SPREAD.sub("", plain), listed)):
    for pattern in (_NUMBERS, _DECIMALS, _MIXED, _POWERS):
      for found in pattern.finditer(reading):
        value = answers.value(found[0] if pattern is not _POWERS else _with_factor(found[0]))
        if value is None:
          continue
        yield value.number
        if _PERCENT.match(reading, found.end()):
          yield value.number / 100


def _with_factor(power: str) -> str:
  """Returns a power of ten as `answers.value` reads it."""
  tight = re.sub(r"\s", "", power)
  return tight if re.search("[*x]", tight) else f"1*{tight}"


# Texts.


def contains_text(text: str, wanted: str) -> bool:
  """Returns whether a text has another one in it as whole words, but for case, spacing and signs within.

  A single letter, the name of an option, counts only in brackets: "a" is a word of its own.
  """
  letters = "".join(_folded(wanted).split()).strip(" .,;:!?'\"")
  if not letters:
    return False
  if len(letters) == 1:
    return any(f"{opening}{letters}{closing}" in _folded(text) for opening, closing in ("()", "[]"))
  pattern = _pattern(letters)
  # Seams of words that are written as one, such as TheParisCity.
  return any(pattern.search(_folded(reading)) for reading in (text, _SEAMS.sub(" ", text)))


def _folded(text: str) -> str:
  return _plain(text).replace("$", "").casefold()


def _pattern(letters: str) -> re.Pattern:
  within = _WITHIN if len(letters) >= FEW_CHARS else "" if letters.isalnum() else r"\s*"
  start = r"(?<!\w)" if re.match(r"\w", letters) else ""
  end = r"(?!\w)" if re.match(r"\w", letters[-1]) else ""
  return re.compile(start + within.join(re.escape(char) for char in letters) + end)


def _chooses(text: str, truth: str) -> bool:
  """Returns whether a text tells to take an option; its letter stands in the question as well."""
  letter = truth.strip(" ().[]").upper()
  if len(letter) != 1 or not "A" <= letter <= "Z":
    return False
  words = (r"(?:choose|pick|select|mark|go with|(?:right|correct|best) (?:one|option|choice|letter|answer)"
           r"(?: is)?)(?: the)?(?: option| choice| letter| answer)?")
  # In upper case: "choose a method" names no option.
  return re.search(rf"\b(?i:{words})[\s:*_`'\"(\[]+{letter}(?![\w'])", _plain(text)) is not None


def contaminated(prompt: str, *, answer: str | None, solution: str | None = None,
                 question: str = "") -> str | None:
  """Returns how a prompt shows the truth: "solution" or one of `KINDS`; None if it does not.

  Args:
    prompt: as the student is shown it.
    answer, solution: of the problem.
    question: the problem's own text. An answer that stands in it is the problem's and no fault of the prompt.
  """
  if solution is not None and len(solution.strip()) > 1 and contains_text(prompt, solution) and \
      not contains_text(question, solution):
    return "solution"
  return leak(prompt.replace(question, "\n") if question else prompt, answer, question)


def count_contaminated(prompts: Sequence[tuple[str, str | None, str | None, str]]) -> int:
  """Returns how many of (prompt, answer, solution, question) show the truth."""
  return sum(contaminated(prompt, answer=answer, solution=solution, question=question) is not None
             for prompt, answer, solution, question in prompts)
