"""Traced programs as plain lists: calls are put in place, and every equation knows its part of the model.

Calls (jit, remat, custom derivatives) are no borders to a compiler, which fuses across them. Loops,
conditions and kernels stay as they are, with the programs inside them.
"""
import functools
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

FORWARD, BACKWARD, RECOMPUTED = "forward", "backward", "recomputed"
# Names that jax gives to steps of its own, beside those of scopes and modules.
_MARKS = {"rematted_computation", "checkpoint", "remat", "pjit", "jit", "while", "body", "cond", ""}
_WRAPPED = re.compile(r"(\w+)\((.*)\)$")
# Their programs run once for an element, or several times, or not at all: they are no calls.
_NO_CALLS = ("scan", "while", "cond", "pallas_call", "shard_map", "custom_linear_solve")
_ELEMENT_PROGRAMS = ("reduce", "scatter", "sort", "argmax", "argmin", "select_and", "cum")


class Scope(NamedTuple):
  """The place of an equation in a model, and the pass over it that it belongs to."""

  names: tuple[str, ...] = ()
  direction: str | None = None  # None: outside of any gradient
  recomputed: bool = False

  @property
  def pass_(self) -> str:
    """Returns FORWARD (also outside of gradients), BACKWARD or RECOMPUTED."""
    if self.direction != BACKWARD:
      return FORWARD
    return RECOMPUTED if self.recomputed else BACKWARD


class Array(NamedTuple):
  """An array of a program: `key` is the same wherever it is used; None for a number in the program's text."""

  key: int | None
  shape: tuple[int, ...]
  bytes: int
  item_bytes: float
  dtype: str

  @property
  def elements(self) -> int:
    """Returns how many numbers it has."""
    return math.prod(self.shape)


class Node(NamedTuple):
  """An equation."""

  name: str
  params: dict[str, Any]
  inputs: tuple[Array, ...]
  outputs: tuple[Array, ...]
  scope: Scope
  programs: tuple["Program", ...]  # inside: a loop's body, a condition's branches, a kernel


class Program(NamedTuple):
  """Equations in their order, without calls."""

  inputs: tuple[Array, ...]
  outputs: tuple[Array, ...]
  nodes: tuple[Node, ...]


def program(jaxpr, scope: Scope) -> Program:
  """Returns a traced program (a Jaxpr, closed or not) as a list, its equations in the given scope."""
  return _ProgramReader(itertools.count()).read(jaxpr, scope)


@functools.lru_cache(maxsize=100_000)
def inner_scope(scope: Scope, stack: str) -> Scope:
  """Returns the scope of an equation: that of the program it stands in, and its own names.

  The first gradient on the way decides the pass: in a rule that takes gradients of its own to write a memory,
  those are a part of the model's forward pass.
  """
  names: list[str] = []
  direction, recomputed, first = scope.direction, scope.recomputed, None
  for part in stack.split("/"):
    wrappers = []
    while wrapped := _WRAPPED.match(part):
      wrappers.append(wrapped[1])
      part = wrapped[2]
    recomputed = recomputed or part == "rematted_computation"
    if "jvp" in wrappers or "transpose" in wrappers:
      if direction is None:
        direction = BACKWARD if "transpose" in wrappers else FORWARD
      # A backward pass names the way to it, and then the same way anew from its beginning.
      if first == part:
        names = []
      elif first is None:
        first = part
    if part not in _MARKS:
      names.append(part)
  return Scope((*scope.names, *names), direction, recomputed)


def programs_in(value) -> Iterator:
  """Lists the programs in a parameter of an equation: alone or in tuples."""
  if hasattr(value, "eqns"):
    yield value
  elif isinstance(value, tuple | list):
    for item in value:
      yield from programs_in(item)


class _ProgramReader:
  """Numbers the arrays of a program while it reads it; a program that is called twice gets new numbers."""

  def __init__(self, keys):
    self._keys = keys

  def read(self, jaxpr, scope: Scope) -> Program:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    known: dict[Any, Array] = {}
    inputs = tuple(self._new(known, var) for var in [*jaxpr.constvars, *jaxpr.invars])
    nodes: list[Node] = []
    self._append(jaxpr, known, scope, nodes)
    return Program(inputs, tuple(_value(known, var) for var in jaxpr.outvars), tuple(nodes))

  def _new(self, known: dict[Any, Array], var) -> Array:
    known[var] = _described(next(self._keys), var.aval)
    return known[var]

  def _append(self, jaxpr, known: dict[Any, Array], scope: Scope, nodes: list[Node]) -> None:
    for equation in jaxpr.eqns:
      name = equation.primitive.name
      here = inner_scope(scope, str(equation.source_info.name_stack))
      inside = [] if name.startswith(_ELEMENT_PROGRAMS) else [
          found for value in equation.params.values() for found in programs_in(value)]
      inputs = tuple(_value(known, var) for var in equation.invars)
      if name not in _NO_CALLS and len(inside) == 1 and self._call(inside[0], equation, known, here, nodes):
        continue
      outputs = tuple(self._new(known, var) for var in equation.outvars)
      nodes.append(Node(name, equation.params, inputs, outputs, here,
                        tuple(self.read(each, here) for each in inside)))

  def _call(self, inside, equation, known, scope: Scope, nodes: list[Node]) -> bool:
    """Puts a called program in its place; returns whether it was a call, all of whose arrays correspond."""
    inside = getattr(inside, "jaxpr", inside)
    variables = [*inside.constvars, *inside.invars]
    if len(inside.invars) != len(equation.invars) or len(inside.outvars) != len(equation.outvars):
      return False
    inner = {var: _value(known, given) for var, given in zip(inside.invars, equation.invars)}
    for var in variables[: len(inside.constvars)]:
      self._new(inner, var)
    self._append(inside, inner, scope, nodes)
    for var, result in zip(equation.outvars, inside.outvars):
      known[var] = _value(inner, result)
    return True


def _value(known: dict[Any, Array], var) -> Array:
  # A number in the program's text is no variable.
  return _described(None, var.aval) if hasattr(var, "val") else known[var]


def _described(key: int | None, aval) -> Array:
  aval = getattr(aval, "inner_aval", aval)  # A kernel's references name the arrays behind them.
  shape = tuple(size if isinstance(size, int) else 1 for size in getattr(aval, "shape", ()))
  dtype = getattr(aval, "dtype", None)
  item = _item_bytes(dtype)
  return Array(key, shape, math.ceil(math.prod(shape) * item), item, str(dtype))


def _item_bytes(dtype) -> float:
  if dtype is None:  # a token
    return 0
  name = str(dtype)
  if name.startswith("key<"):
    return 8  # Two words of 32 bits.
  if name.startswith(("int4", "uint4", "float4")):
    return 0.5
  return dtype.itemsize
