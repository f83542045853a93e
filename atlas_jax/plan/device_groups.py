"""Groups of devices that exchange with each other, as a compiled program's text writes them."""
import collections
import json
import re
from collections.abc import Iterator, Mapping


def axes_of(rest: str, axes: Mapping[str, int]) -> tuple[str, ...]:
  """Returns the axes of the mesh along which the members of a collective's group differ."""
  pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", rest)
  if pairs:
    groups = [[int(one) for one in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
  else:
    groups = _groups(rest, axes)
  differ = set()
  for group in groups:
    first = _coordinates(group[0], axes)
    for member in group[1:]:
      place = _coordinates(member, axes)
      differ |= {name for name in axes if place[name] != first[name]}
  return tuple(name for name in axes if name in differ)


def group_size(rest: str, axes: Mapping[str, int]) -> int:
  """Returns how many devices exchange with each other in a collective."""
  groups = _groups(rest, axes)
  return len(groups[0]) if groups else 1


def _groups(rest: str, axes: Mapping[str, int]) -> list[list[int]]:
  written = re.search(r"replica_groups=(\{\{.*?\}\}|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?|"
                      r"mesh\[.*?\] \{.*?\}|\{\})", rest)
  if written is None or written[1] == "{}":
    return [list(range(_product(axes.values())))]
  text = written[1]
  if text.startswith("{"):
    return [[int(one) for one in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]
  if text.startswith("mesh"):
    return _mesh_groups(text)
  shape, _, source = text.partition("<=")
  sizes = json.loads(shape)
  dims, _, order = source.partition("T")
  flat = _transposed(json.loads(dims), [int(one) for one in re.findall(r"\d+", order)])
  return [flat[start:start + sizes[-1]] for start in range(0, len(flat), sizes[-1])]


def _mesh_groups(text: str) -> list[list[int]]:
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", text)}
  over = re.findall(r"'([^']+)'", text[text.rindex("{"):])
  groups = collections.defaultdict(list)
  for device in range(_product(sizes.values())):
    place = _coordinates(device, sizes)
    groups[tuple(place[name] for name in sizes if name not in over)].append(device)
  return list(groups.values())


def _coordinates(device: int, axes: Mapping[str, int]) -> dict[str, int]:
  found = {}
  for name, size in reversed([*axes.items()]):
    device, found[name] = divmod(device, size)
  return found


def _transposed(dims: list[int], order: list[int]) -> list[int]:
  order = order or list(range(len(dims)))
  strides = [_product(dims[place + 1:]) for place in range(len(dims))]

  def walk(places: list[int]) -> Iterator[int]:
    if not places:
      yield 0
      return
    for index in range(dims[places[0]]):
      for rest in walk(places[1:]):
        yield index * strides[places[0]] + rest

  return list(walk(order))


def _product(sizes) -> int:
  total = 1
  for size in sizes:
    total *= size
  return total
