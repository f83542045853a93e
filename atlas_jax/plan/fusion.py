"""Memory traffic and kernels of a program, if a compiler fuses what can be fused; no compiler is asked.

What is assumed of it, which is what XLA does on GPUs and TPUs in the main:
- Elementwise operations, broadcasts, slices and the like are computed where their result is used. They cost
  memory traffic only where a result has to exist: as an operand of a matrix product, a loop or a kernel, or
  as a result of the program.
- A reduction reads what its operands are computed of, and writes its result.
- Results of the same size that need the same array are one kernel, which reads it once.
- Reshapes and transpositions are another way to read an array.
- A loop's body reads and writes its arrays anew in each turn, of stacked arrays one slice; whatever a cache
  would save is not saved here.
"""
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from atlas_jax.plan.walk import Array, Node, Program, Scope

VIEWS = {"reshape", "squeeze", "expand_dims", "transpose", "bitcast_convert_type", "stop_gradient", "copy_p",
         "name", "sharding_constraint", "optimization_barrier", "pvary", "pcast", "mesh_cast", "copy",
         "reduce_precision", "random_wrap", "random_unwrap", "device_put"}
SLICES = {"slice", "dynamic_slice"}
LAYOUT = {"broadcast_in_dim", "pad", "concatenate", "iota", "convert_element_type", "rev", "split", *SLICES}
REDUCTIONS = ("reduce_", "argmax", "argmin")
# Operations with a kernel of their own, which nothing is fused into.
PRODUCTS = {"dot_general", "conv_general_dilated"}
KERNELS = {*PRODUCTS, "gather", "dynamic_update_slice", "sort", "top_k", "approx_top_k", "cumsum", "cumprod",
           "cummax", "cummin", "cumlogsumexp", "scan", "while", "cond", "pallas_call", "shard_map",
           "random_bits", "random_seed", "random_fold_in", "random_split", "threefry2x32",
           "rng_bit_generator", "cholesky", "triangular_solve", "lu", "qr", "svd", "eigh", "fft", "psum",
           "psum_invariant", "all_gather", "all_to_all", "ppermute", "reduce_scatter", "pmax", "pmin",
           "custom_linear_solve", "ragged_dot_general"}
# Their programs say what they cost, turn by turn.
CONTROL = {"scan", "while", "cond", "shard_map", "custom_linear_solve"}


class Traffic(NamedTuple):
  """Bytes read and written, kernels launched, and those of the bytes that are of matrix products."""

  bytes: float = 0.0
  launches: float = 0.0
  product_bytes: float = 0.0

  def plus(self, other: "Traffic") -> "Traffic":
    """Returns the sum of both."""
    return Traffic(*(mine + its for mine, its in zip(self, other)))


def is_kernel(node: Node) -> bool:
  """Returns whether an operation stands alone: nothing is fused with it."""
  return node.name in KERNELS or node.name.startswith("scatter") or bool(node.programs)


def is_reduction(node: Node) -> bool:
  """Returns whether an operation sums or the like over axes."""
  return node.name.startswith(REDUCTIONS) and node.name != "reduce_precision"


def traffic(program: Program) -> dict[Scope, Traffic]:
  """Returns what a program moves by scope, without what its loops, conditions and shard_maps have inside."""
  return _Plan(program).traffic()


class _Plan:
  """A program's arrays that exist, and the kernels that write them."""

  def __init__(self, program: Program):
    self.program = program
    self.producer: dict[int, Node] = {}
    self.alias: dict[int, int] = {}
    self.level: dict[int, int] = {value.key: 0 for value in program.inputs if value.key is not None}
    self.values: dict[int, Array] = {value.key: value for value in program.inputs if value.key is not None}
    for node in program.nodes:
      self._read(node)
    self.exists = self._existing()

  def _read(self, node: Node) -> None:
    behind = is_kernel(node) or is_reduction(node)
    level = max((self.level[key] for key in map(self.source, node.inputs) if key is not None), default=0)
    for index, value in enumerate(node.outputs):
      assert value.key is not None
      self.values[value.key] = value
      self.producer[value.key] = node
      self.level[value.key] = level + behind
      if node.name in VIEWS and index < len(node.inputs):
        source = self.source(node.inputs[index])
        if source is not None:
          self.alias[value.key] = source

  def source(self, value: Array) -> int | None:
    """Returns the array that a value is a view of; None for a number."""
    return None if value.key is None else self.alias.get(value.key, value.key)

  def _existing(self) -> set[int]:
    """Lists the arrays that have to be in memory."""
    wanted = [*self.program.inputs, *self.program.outputs]
    for node in self.program.nodes:
      if is_kernel(node):
        wanted += [*node.inputs, *node.outputs]
      elif is_reduction(node):
        wanted += node.outputs
      elif node.name == "optimization_barrier":
        wanted += node.inputs
    return {key for key in map(self.source, wanted) if key is not None}

  def _leaves(self, values) -> dict[int, float]:
    """Returns the arrays that values are computed of, with the bytes of them that are read."""
    found: dict[int, float] = {}
    stack: list[tuple[int, int | None]] = [(key, None) for key in map(self.source, values) if key is not None]
    seen = set()
    while stack:
      key, taken = stack.pop()
      if (key, taken) in seen:
        continue
      seen.add((key, taken))
      if key in self.exists or key not in self.producer:
        read = self.values[key].bytes
        found[key] = max(found.get(key, 0), read if taken is None else min(read, taken))
        continue
      node = self.producer[key]
      part = node.outputs[0].bytes if node.name in SLICES else None
      stack += [(each, part) for each in map(self.source, node.inputs) if each is not None]
    return found

  def _roots(self) -> list[tuple[Node, Array, dict[int, float], int, int]]:
    """Lists what fused kernels write: node, result, arrays read, elements computed, level."""
    roots = []
    for node in self.program.nodes:
      if is_kernel(node) or node.name in VIEWS:
        continue
      for value in node.outputs:
        if value.key not in self.exists:
          continue
        reads = self._leaves(node.inputs)
        if node.name in SLICES:
          reads = {key: min(size, value.bytes) for key, size in reads.items()}
        elements = max((each.elements for each in (*node.inputs, value)) if is_reduction(node)
                       else (value.elements,))
        level = self.level[value.key] - is_reduction(node)
        roots.append((node, value, reads, elements, level))
    return roots

  def traffic(self) -> dict[Scope, Traffic]:
    total: defaultdict[Scope, Traffic] = defaultdict(Traffic)
    roots = self._roots()
    for group in _groups(roots):
      written = {roots[index][1].key for index in group}
      reads: dict[int, float] = {}
      for index in group:
        node, value, leaves, _, _ = roots[index]
        total[node.scope] = total[node.scope].plus(Traffic(value.bytes))
        for key, size in leaves.items():
          if key not in written:
            reads[key] = max(reads.get(key, 0), size)
      scope = roots[group[0]][0].scope
      total[scope] = total[scope].plus(Traffic(sum(reads.values()), 1))
    for node in self.program.nodes:
      if is_kernel(node):
        total[node.scope] = total[node.scope].plus(self._of_kernel(node))
    return dict(total)

  def _of_kernel(self, node: Node) -> Traffic:
    sources = {self.source(value) for value in node.inputs}
    given = sum(self.values[key].bytes for key in sources if key is not None)
    made = sum(value.bytes for value in node.outputs)
    if node.name == "scan":
      # Memory for stacked results is cleared before the first turn; a turn has a step of its own.
      stacked = node.outputs[node.params["num_carry"]:]
      return Traffic(sum(value.bytes for value in stacked), len(stacked) + node.params["length"])
    if node.name in CONTROL:
      return Traffic(0, 1)
    if node.name == "gather":
      return Traffic(2 * made + node.inputs[1].bytes, 1)
    if node.name == "dynamic_update_slice":
      return Traffic(2 * node.inputs[1].bytes, 1)
    if node.name.startswith("scatter"):  # In place: rows are read, changed and written.
      return Traffic(3 * node.inputs[2].bytes + node.inputs[1].bytes, 1)
    return Traffic(given + made, 1, given + made if node.name in PRODUCTS else 0)


def _groups(roots) -> list[list[int]]:
  """Groups results that one kernel can write: same size, no kernel between them, an array in common."""
  owner = list(range(len(roots)))

  def find(index: int) -> int:
    while owner[index] != index:
      owner[index] = owner[owner[index]]
      index = owner[index]
    return index

  by_use: dict[tuple[int, int, int], int] = {}
  by_key = {root[1].key: index for index, root in enumerate(roots)}
  for index, (_, value, reads, elements, level) in enumerate(roots):
    for key, size in reads.items():
      other = by_key.get(key)
      if other is not None and roots[other][3:] == (elements, level):
        owner[find(index)] = find(other)
      if 2 * size >= min(value.bytes, elements):  # A scalar in common is no reason.
        first = by_use.setdefault((key, elements, level), index)
        owner[find(index)] = find(first)
  groups: Mapping[int, list[int]] = defaultdict(list)
  for index in range(len(roots)):
    groups[find(index)].append(index)
  return list(groups.values())
