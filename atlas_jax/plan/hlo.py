"""Reading of a compiled program's text: kernels that run, bytes that move through memory, collectives.

The text is that of `jax.stages.Compiled.as_text`, scheduled, one program for all devices. Loops count by
their length. What the compiler keeps on the chip (memory space S(1) of a TPU) is no traffic of the memory.
"""
import collections
import re
from collections.abc import Mapping
from typing import NamedTuple

from atlas_jax.plan.device_groups import axes_of, group_size

BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0, "opaque": 0}
# Instructions that start no work on the device of their own.
SILENT = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
          "replica-id", "opt-barrier", "add-dependency", "domain", "iota"}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
               "collective-broadcast", "ragged-all-to-all")
# Calls that mark something for the compiler and run nothing.
MARKS = ("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "AllocateBuffer",
         "annotate_device_placement")
SLICES = ("dynamic-slice", "slice", "gather")


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  type: str  # of the result, with its layout
  opcode: str
  operands: tuple[str, ...]
  rest: str  # attributes behind the operands
  is_root: bool


class Transfer(NamedTuple):
  """One kind of exchange, all of a program's that are alike added up."""

  kind: str  # such as "all-reduce"
  axes: tuple[str, ...]  # of the mesh, over which it goes
  part: str  # of the model
  times: int  # in one run of the program
  bytes: int  # on one device, over all of them


class Schedule(NamedTuple):
  """Sums over one run of a compiled program, on one device."""

  kernels: int  # operations that the device is handed one by one
  bytes: int  # read and written in the device's memory by them
  kernels_by_part: Mapping[str, int]
  bytes_by_part: Mapping[str, int]
  collectives: tuple[Transfer, ...]
  open_loops: int  # loops of unknown length, which count as one turn


def read(text: str, axes: Mapping[str, int]) -> Schedule:
  """Reads a program.

  Args:
    text: of the compiled program.
    axes: name -> size of the mesh's axes, the last one running fastest through the devices.
  """
  computations, entry = _computations(text)
  sums = _Sums(computations, dict(axes))
  sums.add(entry, 1)
  found = tuple(Transfer(kind, over, part, count, size)
                for (kind, over, part), (count, size) in sorted(sums.collectives.items()))
  return Schedule(sum(sums.kernels.values()), sum(sums.bytes.values()), _sorted(sums.kernels),
                 _sorted(sums.bytes), found, sums.open_loops)


def _sorted(counter: Mapping[str, int]) -> dict[str, int]:
  return dict(sorted(counter.items(), key=lambda one: -one[1]))


class _Sums:
  """Sums while a program is walked through."""

  def __init__(self, computations: dict[str, list[Instruction]], axes: dict[str, int]):
    self.computations, self.axes = computations, axes
    self.kernels: collections.Counter[str] = collections.Counter()
    self.bytes: collections.Counter[str] = collections.Counter()
    self.collectives: dict[tuple[str, tuple[str, ...], str], tuple[int, int]] = {}
    self.open_loops = 0

  def add(self, name: str, times: int) -> None:
    """Adds a computation that runs so many times."""
    by_name = {one.name: one for one in self.computations[name]}
    for one in by_name.values():
      self._add(one, by_name, times)

  def _add(self, one: Instruction, by_name: Mapping[str, Instruction], times: int) -> None:
    opcode = one.opcode
    if opcode == "while":
      length = _trip_count(one.rest) or self._length(one, by_name)
      self.open_loops += length is None
      self.add(_named(one.rest, "body"), times * (length or 1))
    elif opcode == "conditional":
      # Only one branch runs, and which is not known: the one of most kernels bounds it.
      self._add_dearest(_branches(one.rest), times)
    elif opcode in ("call", "async-start"):
      self.add(_named(one.rest, "to_apply") or _named(one.rest, "calls"), times)
    elif opcode in SILENT or opcode.endswith(("-done", "-update")):
      return
    elif opcode == "custom-call" and any(f'custom_call_target="{mark}"' in one.rest for mark in MARKS):
      return
    else:
      part = part_of(one.rest)
      self.kernels[part] += times
      self.bytes[part] += times * self._traffic(one, by_name)
      self._transfer(one, by_name, part, times)
      if opcode == "fusion":  # A TPU's sum that each device keeps its part of is a fusion of both.
        inside = {each.name: each for each in self.computations[_named(one.rest, "calls")]}
        for each in inside.values():
          self._transfer(each, inside, part, times)

  def _length(self, one: Instruction, by_name: Mapping[str, Instruction]) -> int | None:
    """Returns how often a loop turns that counts from a constant by one up to another, None for others."""
    inside = {each.name: each for each in self.computations[_named(one.rest, "condition")]}
    root = next(each for each in inside.values() if each.is_root)
    if root.opcode != "compare" or "direction=LT" not in root.rest:
      return None
    counter, end = (inside[name] for name in root.operands)
    start = by_name[one.operands[0]]
    if counter.opcode != "get-tuple-element" or end.opcode != "constant" or start.opcode != "tuple":
      return None
    [place] = re.findall(r"\bindex=(\d+)", counter.rest)
    first = by_name[start.operands[int(place)]]
    while first.opcode in ("copy", "bitcast"):
      first = by_name[first.operands[0]]
    return _number(end) - _number(first) if first.opcode == "constant" else None

  def _add_dearest(self, branches: list[str], times: int) -> None:
    costs = []
    for branch in branches:
      trial = _Sums(self.computations, self.axes)
      trial.add(branch, 1)
      costs.append((sum(trial.kernels.values()), branch))
    self.add(max(costs)[1], times)

  def _traffic(self, one: Instruction, by_name: Mapping[str, Instruction]) -> int:
    if one.opcode == "fusion":
      return self._traffic_of_fusion(one, by_name)
    if one.opcode in SLICES:
      return 2 * size_of(one.type)
    if one.opcode == "dynamic-update-slice":
      return 2 * size_of(by_name[one.operands[1]].type)
    return size_of(one.type) + sum(size_of(by_name[name].type) for name in one.operands if name in by_name)

  def _traffic_of_fusion(self, one: Instruction, by_name: Mapping[str, Instruction]) -> int:
    """Adds up what a fusion reads of its operands, of which it may take slices alone, and what it writes."""
    inner = self.computations[_named(one.rest, "calls")]
    inside = {each.name: each for each in inner}
    users = collections.defaultdict(list)
    for each in inner:
      for name in each.operands:
        users[name].append(each)
    total = 0
    for each in inner:
      if each.opcode == "parameter":
        outer = by_name.get(one.operands[_number(each)])
        if outer is not None:
          total += min(size_of(outer.type), _read(each, users, inside))
    root = next(each for each in inner if each.is_root)
    # The layout of the fusion's own type says where its result lies.
    return total + min(size_of(one.type), _written(root, inside))

  def _transfer(self, one: Instruction, by_name, part: str, times: int) -> None:
    kind, over = one.opcode.removesuffix("-start"), None
    if one.opcode == "send":
      # Between slices of TPUs, over which data runs first, the host exchanges what the device hands it.
      between = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest)
      kind, over = (between[1].lower().replace("_", "-"), ("data",)) if between else ("", None)
    if kind not in COLLECTIVES:
      return
    # On the wire: what a device hands in, or, of a gathering, what it gets.
    size = sum(whole_size_of(by_name[name].type) for name in one.operands if name in by_name)
    if kind == "all-gather" and over is None:
      size *= max(1, group_size(one.rest, self.axes))
    key = (kind, over or axes_of(one.rest, self.axes), part)
    count, seen = self.collectives.get(key, (0, 0))
    self.collectives[key] = (count + times, seen + times * size)


def _read(parameter: Instruction, users, inside: Mapping[str, Instruction]) -> int:
  total = 0
  pending = list(users[parameter.name])
  sources = {parameter.name}
  while pending:
    user = pending.pop()
    if user.opcode == "bitcast":
      sources.add(user.name)
      pending += users[user.name]
    elif user.opcode in SLICES and user.operands[0] in sources:
      total += whole_size_of(user.type)
    elif user.opcode == "dynamic-update-slice" and user.operands[0] in sources:
      continue  # Written in place: what is not updated is not read.
    else:
      return whole_size_of(parameter.type)
  return total


def _written(root: Instruction, inside: Mapping[str, Instruction]) -> int:
  if root.opcode == "tuple":
    return sum(_written(inside[name], inside) for name in root.operands)
  while root.opcode == "bitcast":
    root = inside[root.operands[0]]
  if root.opcode == "dynamic-update-slice":
    return whole_size_of(inside[root.operands[1]].type)
  return whole_size_of(root.type)


# ------------------------------------------------------------------------------------------------- the text


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
  found: dict[str, list[Instruction]] = {}
  current, entry = None, ""
  for line in text.splitlines():
    if current is None:
      head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
      if head:
        current = found.setdefault(head[2], [])
        entry = head[2] if head[1] else entry
    elif line == "}":
      current = None
    else:
      one = _instruction(line)
      if one is not None:
        current.append(one)
  if not entry:
    raise ValueError("the text of the compiled program has no ENTRY computation")
  return found, entry


def _instruction(line: str) -> Instruction | None:
  head = re.match(r"\s*(ROOT )?%?([\w.\-]+) = ", line)
  if head is None:
    return None
  rest = line[head.end():]
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  kind, rest = rest[:end], rest[end:].lstrip()
  start = rest.index("(")
  close = _closing(rest, start)
  operands = tuple(re.findall(r"%([\w.\-]+)", rest[start:close]))
  return Instruction(head[2], kind, rest[:start], operands, _with_number(rest, start, close), bool(head[1]))


def _with_number(rest: str, start: int, close: int) -> str:
  # A parameter's number stands where others have operands.
  has_number = rest.startswith("parameter(") or re.match(r"constant\(-?\d+\)", rest)
  number = f"number={rest[start + 1:close]}" if has_number else ""
  return number + rest[close + 1:]


def _number(one: Instruction) -> int:
  return int(one.rest.split(",")[0].removeprefix("number="))


def _closing(text: str, start: int) -> int:
  depth = 0
  for place in range(start, len(text)):
    depth += (text[place] == "(") - (text[place] == ")")
    if not depth:
      return place
  raise ValueError(f"a bracket is not closed: {text[start:start + 80]!r}")


def _named(rest: str, name: str) -> str:
  found = re.search(rf"\b{name}=%?([\w.\-]+)", rest)
  return found[1] if found else ""


def _branches(rest: str) -> list[str]:
  listed = re.search(r"branch_computations=\{([^}]*)\}", rest)
  if listed:
    return [name.strip().lstrip("%") for name in listed[1].split(",")]
  return [_named(rest, "true_computation"), _named(rest, "false_computation")]


def _trip_count(rest: str) -> int | None:
  found = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
  return int(found[1]) if found else None


def size_of(kind: str) -> int:
  """Returns the bytes of a type that lie in the device's memory, 0 for those kept on the chip."""
  return _size(kind, on_chip=False)


def whole_size_of(kind: str) -> int:
  """Returns the bytes of a type, wherever they lie."""
  return _size(kind, on_chip=True)


def _size(kind: str, *, on_chip: bool) -> int:
  total = 0
  for name, sizes, layout in re.findall(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", kind):
    if "S(1)" in layout and not on_chip:
      continue
    bits = BITS[name] if name in BITS else int((re.findall(r"\d+", name) or ["32"])[0])
    count = 1
    for size in filter(None, sizes.split(",")):
      count *= int(size)
    total += count * bits // 8
  return total


def part_of(rest: str) -> str:
  """Returns the part of the model that an instruction is of, by the names of modules it was traced in."""
  found = re.search(r'op_name="([^"]*)"', rest)
  return name_of(found[1]) if found else "unnamed"


# Words of tracing that are no part of a model.
TRACING = {"while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "branch_0_fun",
           "branch_1_fun", "pjit", "jit", "scan", "custom_vjp_call", "custom_jvp_call", "core_call", "remat",
           "shard_map", "vmap", "jvp", "transpose", ""}


def name_of(path: str, depth: int = 2) -> str:
  """Returns the first names of modules in a path such as "jit(step)/jvp(LM)/blocks_0/attention/mul"."""
  words = re.split(r"[/()]", path)
  if "step" in words[:2]:
    words = words[words.index("step") + 1:]
  is_model = any(word in ("jvp", "transpose") for word in words)
  kept = [word.split(".")[0] for word in words[:-1] if word not in TRACING and not word.startswith("jit")]
  kept = [re.sub(r"(?<=[a-z])_\d+$", "", word) for word in dict.fromkeys(kept)]
  if kept:
    return "/".join(kept[:depth + 1])
  return "loss" if is_model else "update"
