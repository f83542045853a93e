"""Answers: finding one in a completion, reading it as an exact value, and comparing two of them.

Numbers are compared exactly, as fractions: 3.504 is not 3.50, and 1/3 is not 0.333. Nothing here evaluates
text as a program, and what a model writes, however long or odd, costs time linear in its length.
"""
import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

MAX_CHARS = 400      # An answer longer than this is a text, not a number.
MAX_EXPONENT = 300   # So is one with a larger power of ten.
MAX_PARTS = 50       # Members of a tuple that are compared one by one.

_TAG = re.compile(r"<(/?)(solution|answer)>", re.IGNORECASE)
# "####" is how GSM8K ends its solutions.
_MARKER = re.compile(
    r"####[ \t]*|\b(?:final[ \t]+answer|answer|result)\b[ \t]*(?:\bis\b[ \t]*:?|[:=])[ \t]*", re.IGNORECASE)
# Commas only between groups of three digits: "1,2" is a list of two numbers.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]{{1,4}}(?![0-9a-z]))?"
_PLAIN = re.compile(rf"[+-]?{_NUMBER}", re.IGNORECASE)
_QUOTIENT = re.compile(rf"([+-]?{_NUMBER})\s*/\s*([+-]?{_NUMBER})", re.IGNORECASE)
_MIXED = re.compile(r"([+-]?)([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)")
_POWER = re.compile(rf"([+-]?{_NUMBER})\s*[*x]\s*10\^([+-]?[0-9]{{1,4}})", re.IGNORECASE)
_MEASURED = re.compile(r"(.*?[0-9.])\s*(%|°|[$€£¥]|[a-z][^0-9^]*(?:\^?[0-9])?)", re.IGNORECASE | re.DOTALL)
# Not inside of a word, a longer number or a fraction, and not the minutes of 12:30.
_LOOSE = re.compile(rf"(?<![\w.,/^])(?<![0-9]:)[$€£¥]?[+-]?[$€£¥]?{_NUMBER}(?:\s*/\s*[0-9]+)?", re.IGNORECASE)
# Signs of a formula: the last number in one is not its value.
_FORMULA = re.compile(r"[\\^_*/+(){}\[\]<>|√]|[0-9][a-z]*\s+-\s|-[a-z0-9]", re.IGNORECASE)
_COMMANDS = re.compile(r"\\(?:left|right|displaystyle|mathrm|textbf|text|mathbf|mbox|big|,|;|!|:| )(?![a-z])")
_UNITS = {  # Spellings of units that count as one.
  name: unit for unit, names in {
    "m": "meter meters metre metres", "km": "kilometer kilometers kilometre kilometres", "g": "gram grams",
    "cm": "centimeter centimeters centimetre centimetres", "kg": "kilogram kilograms", "%": "percent",
    "mm": "millimeter millimeters millimetre millimetres", "s": "second seconds sec secs",
    "min": "minute minutes mins", "h": "hour hours hr hrs", "l": "liter liters litre litres",
    "$": "dollar dollars usd", "€": "euro euros", "£": "pound pounds", "°": "degree degrees",
    "ft": "foot feet", "in": "inch inches"}.items()
  for name in (*names.split(), unit)}


class Value(NamedTuple):
  """A number as it was written."""

  number: Fraction
  unit: str  # "" if there is none; "%" for percent


def extract(text: str) -> str:
  """Returns the answer that a text states, "" if there is none.

  The first of these that is there: the last complete box (braces may be nested), the last <solution> or
  <answer>, what follows "####", the last line with a number, the last line. In what is found, the part behind
  "answer is" and the like counts; so does the part behind "answer:" in a text with neither box nor tag.
  """
  # From the most explicit form to the least; an answer in a box may be followed by any amount of text.
  box = boxed(text)
  if box is not None:
    return box.strip()
  body = tagged(text)
  found = body if body is not None else text
  marked = _after_marker(found)
  if marked:
    return marked
  if body is not None:
    return _without_period(body)
  lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
  return _without_period(next((line for line in reversed(lines) if _LOOSE.search(line)), lines[-1]))


def is_marked(text: str) -> bool:
  """Returns whether a text states its answer in a box, a tag, or behind "####"."""
  return boxed(text) is not None or tagged(text) is not None or "####" in text


def says_answer(text: str) -> bool:
  """Returns whether a text says "answer is", "answer:", "result =" and the like with something behind it."""
  return bool(_after_marker(text))


def boxed(text: str) -> str | None:
  r"""Returns what stands in the last \boxed{...} or \fbox{...} whose braces close, or None."""
  # All braces are matched in one pass. A search from each box to its end would take quadratic time on a text
  # of many unclosed boxes, which a model may well write.
  closes: dict[int, int] = {}  # Place of "{" -> place of its "}".
  opened = []
  at = 0
  for found in re.finditer(r"\\[\\{}]|[{}]", text):  # Escapes match first, so \{ opens nothing.
    at = found.start()
    if found[0] == "{":
      opened.append(at)
    elif found[0] == "}" and opened:
      closes[opened.pop()] = at
  for found in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*(?:(\{)|([0-9]+))", text))):
    if found[2]:
      return found[2]
    if found.start(1) in closes:
      return text[found.start(1) + 1:closes[found.start(1)]]
  return None


def tagged(text: str, names: tuple[str, ...] = ("solution", "answer")) -> str | None:
  """Returns what stands in the last tag of these names that closes, in upper or lower case, or None."""
  body = None
  opened = {}
  for found in _TAG.finditer(text):
    name = found[2].lower()
    if name in names:
      if not found[1]:
        opened[name] = found.end()
      elif name in opened:
        body = text[opened.pop(name):found.start()]
  return body


def teaching(text: str) -> str:
  """Returns what stands in the first <teaching> tag that closes, without outer white space; else the text."""
  start = text.find("<teaching>")
  end = text.find("</teaching>", start + 1)
  inside = text[start + len("<teaching>"):end] if start >= 0 and end >= 0 else text
  return inside.strip()


def same(candidate: str, truth: str) -> bool:
  """Returns whether two answers are equal.

  Numbers are equal by value: fractions, decimals, thousands separators and powers of ten as they may be
  written. A unit counts only if both have one. 50% equals 50 percent, 1/2, and 50 without a sign. Texts are
  equal but for case, spacing, quotes and a period. Lists of the same length in the same brackets are equal
  member by member. Nothing equals an empty answer, an infinity, or "nan".
  """
  if _nothing(candidate) or _nothing(truth):
    return False
  # The truth says what kind of answer is wanted; only the candidate may be a number inside of a sentence.
  wanted = value(truth)
  if wanted is not None:
    got = value(candidate) or loose_value(candidate)
    return got is not None and _same_value(got, wanted)
  left = _members(candidate)
  right = _members(truth)
  if left and right and left[0] == right[0] and len(left) == len(right):
    return all(same(*pair) for pair in zip(left[1:], right[1:]))
  return _plain_text(candidate) == _plain_text(truth)


def value(text: str) -> Value | None:
  """Reads a text that is a number, perhaps with a unit or currency, and nothing else; None if it is not."""
  plain = _without_latex(text)
  if not plain or len(plain) > MAX_CHARS:
    return None
  number = _number(plain)
  if number is not None:
    return Value(number, "")
  currency = re.fullmatch(r"([+-]?)\s*([$€£¥])\s*([+-]?.+)", plain, re.DOTALL)
  if currency:
    number = _number(currency[1] + currency[3].strip())
    return None if number is None else Value(number, currency[2])
  measured = _MEASURED.fullmatch(plain)
  # A slash or power within a unit, as in km/h or m^2, makes no formula.
  if not measured or _FORMULA.search(measured[2].replace("/", " ").replace("^", " ")):
    return None
  number = _number(measured[1].strip())
  return None if number is None else Value(number, _unit(measured[2]))


def loose_value(text: str) -> Value | None:
  """Reads the last number of a sentence, such as "the total: 15 apples"; None in a formula or without one."""
  plain = _without_latex(text)
  found = next(iter(reversed(list(_LOOSE.finditer(plain)))), None)
  if found is None or _FORMULA.search(plain[:found.start()] + " " + plain[found.end():]):
    return None
  before = plain[:found.start()].rstrip()
  behind = plain[found.end():]
  # Part of an expression, such as "2 * 3" or "3x2", and not its value.
  if before.endswith(("+", "-", "*", "/", "^")) or re.match("[a-z]+[0-9]", behind, re.IGNORECASE):
    return None
  tail = re.match(r"\s*(%|°|[a-z]+)", behind, re.IGNORECASE)
  number = value(found[0])
  if number is None or not tail:
    return number
  unit = _unit(tail[1])
  return number._replace(unit=unit) if unit in _UNITS and not number.unit else number


def _same_value(got: Value, wanted: Value) -> bool:
  # 50% equals 1/2 by value and 50 as people write it; a unit on the other side makes it another quantity.
  if (got.unit == "%") != (wanted.unit == "%") and not (got.unit and wanted.unit):
    percent, other = (got, wanted) if got.unit == "%" else (wanted, got)
    return other.number in (percent.number, percent.number / 100)
  if got.unit and wanted.unit and got.unit != wanted.unit:
    return False
  return got.number == wanted.number


def _number(text: str) -> Fraction | None:
  """Reads a number, quotient, mixed number or power of ten, exactly."""
  text = text.strip()
  text = text[1:-1].strip() if re.fullmatch(r"\([^()]*\)", text) else text  # (5) is 5, not -5.
  text = text[:-1] if text.endswith(".") else text
  if _PLAIN.fullmatch(text):
    return _exact(text)
  if found := _QUOTIENT.fullmatch(text):
    above = _exact(found[1])
    below = _exact(found[2])
    return above / below if above is not None and below else None
  if found := _MIXED.fullmatch(text):
    part = Fraction(int(found[3]), int(found[4])) if int(found[4]) else None
    whole = None if part is None else int(found[2]) + part
    return -whole if whole is not None and found[1] == "-" else whole
  if found := _POWER.fullmatch(text):
    head = _exact(found[1])
    power = int(found[2])
    # Four digits of exponent would make numbers of 10,000 digits, which no answer is.
    return head * Fraction(10) ** power if head is not None and abs(power) <= MAX_EXPONENT else None
  return None


def _exact(text: str) -> Fraction | None:
  text = text.replace(",", "").lower()
  power = text.partition("e")[2]
  return Fraction(text) if not power or abs(int(power)) <= MAX_EXPONENT else None


def _unit(text: str) -> str:
  name = re.sub(r"\s+", " ", text.strip().strip(".,;:!").lower())
  return _UNITS.get(name, name[:-1] if len(name) > 3 and name.endswith("s") else name)


def _without_latex(text: str) -> str:
  """Returns the text with TeX around numbers written plainly: fractions, spaces, percent, degrees."""
  # An answer this long is a text. It keeps the substitutions below, some of them repeated searches, cheap.
  if len(text) > 4 * MAX_CHARS:
    return text.strip()
  text = "".join(char if char.isascii() else spelled(char) for char in text)
  text = text.replace("−", "-").replace("×", "*").replace("{,}", ",")
  # TeX reads \frac12 as one half.
  text = re.sub(r"\\(?:[dtc])?frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
  # Mixed numbers before plain fractions, or 2\frac{1}{2} would become 21/2.
  text = re.sub(r"([0-9])\s*\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1 \2/\3", text)
  text = re.sub(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
  text = re.sub(r"\\(?:times|cdot)", "*", text)
  text = re.sub(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree", "°", text)
  text = re.sub(r"10\^\{([+-]?[0-9]+)\}", r"10^\1", text).replace("\\%", "%").replace("\\$", "$")
  text = re.sub(r"(?<=[0-9])\\[,;! ](?=[0-9]{3})", "", text)
  text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 ", text)
  text = _COMMANDS.sub(" ", text)
  text = re.sub(r"\\[()\[\]]|\*\*|`", " ", text).strip()
  text = text[1:-1] if len(text) > 2 and text[0] == text[-1] == "$" else text
  text = text.strip().strip("'\"").strip()
  text = re.sub(r"^[A-Za-z]\w?\s*=\s*(?=\S)", "", text)
  return re.sub(r"\s+", " ", text[:-1] if re.search(r"[^.]\.$|;$|,$", text) else text).strip()


def spelled(char: str) -> str:
  """Returns a character in ASCII where it has such a form: ½ as 1/2, ² as ^2, wide digits as digits."""
  # NFKC alone reads 2½ as 21/2 and 10² as 102, so these have a sign put before them.
  kind, _, rest = unicodedata.decomposition(char).partition("> ")
  sign = {"<super": "^", "<sub": "_", "<fraction": " "}.get(kind, "")
  if not sign:
    return unicodedata.normalize("NFKC", char)
  return sign + "".join(chr(int(code, 16)) for code in rest.split()).replace("\u2044", "/")


def _plain_text(text: str) -> str:
  text = _without_latex(text).casefold()
  # An option, "(b)", equals its letter alone.
  text = text[1:-1] if re.fullmatch(r"\([a-z]\)", text) else text
  # Spaces mean nothing in a formula, and a period or comma may; in a sentence it is the other way round.
  if re.search(r"[\\^_{}()\[\]=+*/]", text):
    return re.sub(r"\s+", "", text)
  return text.strip(" .,;:!?'\"")


def _members(text: str) -> list[str]:
  """Returns the brackets and the members of a list such as "(1, 2)" or "1, 2", or [] for one thing alone."""
  plain = _without_latex(text)
  brackets = ""
  if len(plain) > 1 and plain[0] in "([{" and plain[-1] in ")]}":
    brackets = plain[0] + plain[-1]
    plain = plain[1:-1]
  members = [part.strip() for part in plain.split(",")]
  nested = any(sign in plain for sign in "()[]{}")
  if not 1 < len(members) <= MAX_PARTS or nested or not all(members):
    return []
  return [brackets, *members]


def _nothing(text: str) -> bool:
  return re.fullmatch(r"\s*|\s*[+-]?(?:nan|inf|infinity)\s*\.?\s*", text, re.IGNORECASE) is not None


def _after_marker(text: str) -> str:
  """Returns the rest of the line behind the last marker with something behind it, or ""."""
  for found in reversed(list(_MARKER.finditer(text))):
    rest = text[found.end():].partition("\n")[0].strip()
    if rest:
      return _without_period(rest)
  return ""


def _without_period(text: str) -> str:
  text = text.strip()
  return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text
