"""The sandbox that chat templates run in, with the blocks and filters that transformers gives them.

A template comes with a model and may be written by anybody. It can read no attribute that begins with an
underscore, change nothing that it is given, and include no other file. Its time is bounded, by a check in
every loop and call; so are the characters of each text and the values of each list, before they are made.
"""
import functools
import importlib
import json
import re
import threading
import time
from types import SimpleNamespace
from typing import Any

OPEN, CLOSE = "\ufdd0", "\ufdd1"  # Code points that stand for no character in any text.
SECONDS = 10.0         # For one chat; usual ones take a thousandth of it.
MOST_CHARS = 2**26     # In one text; a million tokens have about a sixteenth.
MOST_MADE = 2**28      # Characters made by all filters of a chat together.
MOST_VALUES = 10**6    # In one list, nested values included.
MOST_NUMBER = 10**5    # As a width or a count; ranges are no longer either.
MOST_BITS = 4096       # In a whole number that is computed.
SOURCE_CHARS = 2**20
# Filters that are slow on long texts, or give another result at each call.
# "random" would give other ids at every call; `lipsum` below is left out for the same reason.
LEFT_OUT = ("urlize", "striptags", "wordwrap", "random", "pprint", "xmlattr")

# The compiled environment is shared by all threads of a process, such as those of a server; each has its own
# deadline and its own count of characters made.
_now = threading.local()


class TemplateRefusal(ValueError):
  """An error that a template raised, or the bound that it passed."""


def compiled(source: str, name: str = "the chat template"):
  """Compiles a template, for `render`.

  Raises:
    ValueError: if it is no template, or too long.
    ModuleNotFoundError: if the extra `hf` is missing.
  """
  if len(source) > SOURCE_CHARS:
    raise ValueError(f"{name} has {len(source)} characters, more than {SOURCE_CHARS}; give "
                     "another")
  sandbox = environment()
  # Compiling evaluates constant expressions, such as 'a' | center(90000), by the very checks of rendering:
  # they need a deadline and a count already here.
  _now.until = time.monotonic() + SECONDS
  _now.made = 0
  try:
    return sandbox.from_string(source)
  except Exception as error:  # Of the parser, and of Python's where blocks lie too deep in one another.
    raise ValueError(f"{name} cannot be read: {_said(error)}; mend it or give another") from error


def render(template, /, **values) -> str:
  """Returns the text of a template.

  Raises:
    TemplateRefusal: for whatever it raises, and if it passes a bound.
  """
  _now.until = time.monotonic() + SECONDS
  _now.made = 0
  try:
    return template.render(**values)
  except Exception as error:  # A template may raise whatever Python does.
    raise TemplateRefusal(_said(error)) from error


def _said(error: Exception) -> str:
  text = " ".join(str(error).split())
  known = type(error).__module__.startswith("jinja2") or isinstance(error, (TypeError, TemplateRefusal))
  return text[:300] if known and text else f"{type(error).__name__}: {text[:300]}"


@functools.cache
def environment():
  """Returns the sandbox that chat templates run in.

  The date of today is not among what a template may use: the same data give the same ids on every day.
  """
  parts = _jinja()
  # trim_blocks, lstrip_blocks and loopcontrols are what transformers compiles templates with: without them
  # the line ends around {% ... %} would be part of the text, and ids would differ from those the model was
  # trained on. `finalize` sees every value that is printed.
  sandbox = _sandbox(parts)(trim_blocks=True, lstrip_blocks=True, finalize=kept,
                            extensions=[_generation(parts), parts.extensions.loopcontrols])

  def refuse(message):
    raise parts.jinja.TemplateError(message)

  def to_json(value, ensure_ascii=False, **options):
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)

  sandbox.globals["raise_exception"] = refuse
  del sandbox.globals["lipsum"]
  # Jinja's own filter writes <, >, & and ' as \u003c and so on, for pages of HTML;
  # models were trained on plain JSON.
  sandbox.filters["tojson"] = to_json
  for name in LEFT_OUT:
    del sandbox.filters[name]
  sandbox.filters.update({name: _bounded(name, one) for name, one in sandbox.filters.items()})
  return sandbox


def _jinja() -> SimpleNamespace:
  try:
    jinja, sandbox, visitor = map(importlib.import_module, ("jinja2", "jinja2.sandbox", "jinja2.visitor"))
    extensions = importlib.import_module("jinja2.ext")
    nodes = importlib.import_module("jinja2.nodes")
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError("chat templates need the package jinja2: pip install 'atlas_jax[hf]', or give "
                              "prompts as texts and set config.data.chat_template=None") from error
  return SimpleNamespace(jinja=jinja, sandbox=sandbox, extensions=extensions, nodes=nodes, visitor=visitor)


def _generation(parts):
  class Generation(parts.extensions.Extension):
    """Puts marks around what stands in a {% generation %} block."""

    tags = {"generation"}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      # To transformers this block changes no text; it notes where the assistant's text lies. Here two code
      # points around it carry the same through the rendered text; no message may have them, see
      # `_check_marks` of chat_template.
      return parts.nodes.CallBlock(self.call_method("mark"), [], [], body).set_lineno(line)

    def mark(self, caller):
      return OPEN + caller() + CLOSE

  return Generation


def _bounds(parts):
  nodes = parts.nodes

  # The sandbox intercepts calls and binary operators at run time, but not loops, assignments and "~". Those
  # are rewritten in the syntax tree before code is generated.
  class Bounds(parts.visitor.NodeTransformer):
    """Rewrites a template so that loops check the time, and assignments the size of their value."""

    def __init__(self, environment):
      self._environment = environment

    def _call(self, name, args, line):
      found = nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)
      return found.set_lineno(line, override=False).set_environment(self._environment)

    def _ticking(self, node):
      node = self.generic_visit(node)
      tick = nodes.ExprStmt(self._call("tick", [], node.lineno), lineno=node.lineno)
      node.body.insert(0, tick.set_environment(self._environment))
      return node

    visit_For = visit_Macro = visit_CallBlock = _ticking

    # A text doubles with each `set x = x ~ x`: weighed when assigned, sixty of them stop at the bound
    # in place of taking all memory.
    def visit_Assign(self, node):
      node = self.generic_visit(node)
      node.node = self._call("kept", [node.node], node.lineno)
      return node

    def visit_With(self, node):
      node = self.generic_visit(node)
      node.values = [self._call("kept", [value], node.lineno) for value in node.values]
      return node

    def visit_Concat(self, node):
      node = self.generic_visit(node)
      return self._call("joined", node.nodes, node.lineno)

  return Bounds


def _sandbox(parts):
  bounds = _bounds(parts)

  class Sandbox(parts.sandbox.ImmutableSandboxedEnvironment):
    """Checks sizes before values are made, and the clock."""

    # The operators whose result can be far larger than both sides; "%" formats, as in '%999999999d' % 1.
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    tick = staticmethod(lambda: _tick())
    kept = staticmethod(lambda value: kept(value))
    joined = staticmethod(lambda *values: _concat(map(str, values)))
    concat = staticmethod(lambda pieces: _concat(pieces))

    def _generate(self, source, *args, **options):
      return super()._generate(bounds(self).visit(source), *args, **options)

    def call_binop(self, context, operator, left, right):
      _check_operation(operator, left, right)
      return super().call_binop(context, operator, left, right)

    def call(self, context, called, *args, **options):
      _tick()
      _check_call(called, args, options)
      return super().call(context, called, *args, **options)

  return Sandbox


def _tick() -> None:
  if time.monotonic() > _now.until:
    raise TemplateRefusal(f"it takes more than {SECONDS:g} s")


def kept(value: Any) -> Any:
  """Returns a value; refuses one that, with its nested values, is larger than a template may make.

  A list that stands twice in another one counts twice, as it would be printed twice.
  """
  if isinstance(value, str):
    _check_chars(len(value))
  elif isinstance(value, list | tuple | dict | set | frozenset):
    # A stack of our own, not recursion: depth is up to the template. A list that stands in two
    # places is counted twice on purpose, since printing it writes it twice; the bound also ends a
    # walk of doubled lists early.
    left = [value]
    chars = 0
    number = 0
    while left:
      one = left.pop()
      number += 1
      if isinstance(one, str):
        chars += len(one)
      elif isinstance(one, dict):
        left += one
        left += one.values()
      elif isinstance(one, list | tuple | set | frozenset):
        left += one
      if number + len(left) > MOST_VALUES:
        raise TemplateRefusal(f"a list in it holds more than {MOST_VALUES} values")
    _check_chars(chars)
  return value


def _concat(pieces) -> str:
  found = []
  chars = 0
  for piece in pieces:
    chars += len(piece)
    _check_chars(chars)
    found.append(piece)
  return "".join(found)


def _check_chars(chars: int) -> None:
  if chars > MOST_CHARS:
    raise TemplateRefusal(f"a text in it has more than {MOST_CHARS} characters")


def _check_number(value: Any) -> None:
  if isinstance(value, int | float) and not -MOST_NUMBER <= value <= MOST_NUMBER:
    raise TemplateRefusal(f"it asks for a width or count of {value:.3g}, more than {MOST_NUMBER}")


def _check_operation(operator: str, left: Any, right: Any) -> None:
  sized = [one for one in (left, right) if isinstance(one, str | bytes | list | tuple)]
  if operator == "%" and isinstance(left, str):
    _check_format(left, right if isinstance(right, tuple) else (right,))
  elif operator == "+" and len(sized) == 2:
    _check_chars(len(left) + len(right))
  elif operator == "*" and sized:
    _check_chars(len(sized[0]) * max(right if sized[0] is left else left, 0) if len(sized) == 1 else 0)
  # `in "**"` holds for "*" and for "**": a product has the sum of the bits, a power a multiple of them.
  elif operator in "**" and isinstance(left, int) and isinstance(right, int):
    bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * abs(right)
    if bits > MOST_BITS:
      raise TemplateRefusal(f"it computes a number of more than {MOST_BITS} bits")


def _check_format(text: str, values) -> None:
  """Refuses widths in a text that values are put into; also those that stand among the values."""
  # Six digits in a row are a width of MOST_NUMBER or more; widths that come out of the values, as "*" and
  # {:{}} take them, can only be looked at there.
  if re.search(r"\d{6}", text):
    raise TemplateRefusal(f"it asks for a width of more than {MOST_NUMBER}")
  if "*" in text or re.search(r"\{[^{}]*:[^{}]*\{", text):
    for value in values:
      _check_number(value)


def _check_call(called: Any, args, options) -> None:
  for value in (*args, *options.values()):
    kept(value)
  # Methods of plain values are what makes large results of small arguments, such as 'a'.ljust(10**9); a macro
  # ticks, and what it writes is weighed by `_concat`.
  method = getattr(called, "__wrapped__", called)  # The sandbox wraps `format`.
  owner = getattr(method, "__self__", None)
  if isinstance(owner, str | bytes | int | float | list | tuple | dict):
    _check_use(getattr(method, "__name__", ""), owner, args, options)


def _check_use(name: str, value: Any, args, options) -> None:
  """Refuses a method or filter whose result would be too large; `args` are those besides the value."""
  if name in ("format", "format_map"):
    _check_format(str(value), (*args, *options.values()))
    return
  for one in (*args, *options.values()):
    _check_number(one)
  texts = [one for one in (*args, *options.values()) if isinstance(one, str | bytes)]
  if isinstance(value, str | bytes):
    _check_chars(len(value))
    if name == "replace" and len(texts) == 2:
      _check_chars(len(value) + (len(value) + 1) * len(texts[1]) // max(len(texts[0]), 1))
    elif name == "expandtabs":
      _check_chars(len(value) * max([one for one in args if isinstance(one, int)], default=8))
    elif name == "translate":
      longest = max([len(str(one)) for table in args[:1] for one in dict(table).values()], default=1)
      _check_chars(len(value) * longest)
    elif name == "indent":
      widths = [one for one in args if type(one) is int] + [len(one) for one in texts] + [4]
      _check_chars(len(value) * max(widths))
  if name == "join":
    parts = (args[0] if isinstance(value, str) else value) if args else value
    between = value if isinstance(value, str) else (texts or [""])[0]
    _check_chars(len(between) * (len(parts) if hasattr(parts, "__len__") else MOST_NUMBER))
  if name in ("tojson", "indent") and value is not None:
    wide = max([one for one in (*args, *options.values()) if type(one) is int], default=0)
    _check_chars(wide * (len(value) if hasattr(value, "__len__") else 1))


def _bounded(name: str, used):
  """Returns a filter that checks what it is given, and what it gives."""
  at = 1 if hasattr(used, "jinja_pass_arg") else 0  # The first argument is then the context.

  @functools.wraps(used)
  def bounded(*args, **options):
    for value in args[at:]:
      kept(value)
    _tick()  # A lazy filter calls others for each value, and no loop of the template counts them.
    if len(args) > at:
      _check_use(name, args[at], args[at + 1:], options)
    found = kept(used(*args, **options))
    _now.made += len(found) if isinstance(found, str) else 0
    if _now.made > MOST_MADE:
      raise TemplateRefusal(f"its filters make more than {MOST_MADE} characters")
    return found

  return bounded
