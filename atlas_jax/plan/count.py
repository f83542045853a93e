"""FLOPs, bytes and kernels of a traced program by part of the model; nothing is compiled or computed.

A compiler's own count takes a loop's body once; here it counts as often as it runs.
"""
import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jax.interpreters import partial_eval

from atlas_jax.plan import fusion, walk
from atlas_jax.plan.walk import Node, Program, Scope

TRANSCENDENTAL = {"exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "sin", "cos", "tan", "erf",
                  "erfc", "erf_inv", "pow", "sqrt", "rsqrt", "cbrt", "atan2", "acos", "asin", "atan", "sinh",
                  "cosh", "digamma", "lgamma"}
# A word of threefry: 20 rounds of an addition, a rotation (three operations) and an exclusive or make two.
RANDOM_WORD = 50
RANDOM = ("random_bits", "threefry2x32", "rng_bit_generator")
_FREE = {*fusion.VIEWS, *fusion.LAYOUT, "gather", "dynamic_update_slice", "scatter", "get", "swap", "empty2",
         "empty", "program_id", "axis_index", "random_seed", "random_fold_in", "random_split", "all_gather",
         "all_to_all", "ppermute", "debug_callback", "multiple_of"}
_NUMBERED = re.compile(r"_?\d+$")


class Product(NamedTuple):
  """Sizes of a matrix product: `batch` times m x k by k x n; see `targets.PRECISIONS`."""

  precision: str
  batch: int
  m: int
  n: int
  k: int

  @property
  def flops(self) -> int:
    """Returns 2 m n k for each of the batch."""
    return 2 * self.batch * self.m * self.n * self.k


@dataclasses.dataclass
class PartCost:
  """Costs of a part in one pass.

  Attributes:
    products: how often each matrix product (or convolution, as one) is made.
    elementwise: operations on single numbers: one for each number of a result, or of what is reduced.
    transcendentals: how many of them are exponentials and the like.
    unfused_bytes: operands and results of every equation: an upper bound.
    fused_bytes: as `plan.fusion` estimates them.
    product_bytes: those of them that matrix products and convolutions read and write.
    launches: kernels, by the same estimate.
  """

  products: Counter[Product] = dataclasses.field(default_factory=Counter)
  elementwise: float = 0.0
  transcendentals: float = 0.0
  unfused_bytes: float = 0.0
  fused_bytes: float = 0.0
  product_bytes: float = 0.0
  launches: float = 0.0

  @property
  def product_flops(self) -> float:
    """Returns the FLOPs of matrix products."""
    return sum(product.flops * times for product, times in self.products.items())

  @property
  def flops(self) -> float:
    """Returns all FLOPs."""
    return self.product_flops + self.elementwise

  def add(self, other: "PartCost", times: int = 1) -> None:
    """Adds the costs of something that happens so often."""
    for product, made in other.products.items():
      self.products[product] += made * times
    for name in ("elementwise", "transcendentals", "unfused_bytes", "fused_bytes", "product_bytes",
                 "launches"):
      setattr(self, name, getattr(self, name) + times * getattr(other, name))


@dataclasses.dataclass
class Counts:
  """Costs of a program, over all its devices.

  Attributes:
    costs: (names of scopes from the outside in, pass) -> what it costs.
    open_loops: loops of unknown length, counted as one turn each: (path, FLOPs of products in a turn).
    branches: conditions, of which the branch with most FLOPs is counted: (path, FLOPs of each branch).
  """

  costs: defaultdict = dataclasses.field(default_factory=lambda: defaultdict(PartCost))
  open_loops: list[tuple[str, float]] = dataclasses.field(default_factory=list)
  branches: list[tuple[str, tuple[float, ...]]] = dataclasses.field(default_factory=list)

  def add(self, other: "Counts", times: int = 1) -> None:
    """Adds the costs of something that happens so often."""
    for key, cost in other.costs.items():
      self.costs[key].add(cost, times)
    self.open_loops += other.open_loops
    self.branches += other.branches

  def total(self) -> PartCost:
    """Returns the sum over all parts and passes."""
    return _sum(self.costs.values())

  def by_part(self, depth: int = 3, *, skip: int = 0) -> dict[str, dict[str, PartCost]]:
    """Returns part -> pass -> costs; numbered parts that differ in the number alone are one.

    Args:
      depth: how many names tell parts apart.
      skip: how many names to leave out at the beginning, such as that of the whole model.
    """
    found: dict[str, defaultdict[str, PartCost]] = {}
    for (names, pass_), cost in self.costs.items():
      part = "/".join(_NUMBERED.sub("", name) for name in names[skip:skip + depth]) or "other"
      found.setdefault(part, defaultdict(PartCost))[pass_].add(cost)
    return {part: dict(passes) for part, passes in found.items()}

  def _each(self, name: str) -> dict[str, float]:
    return {part: sum(getattr(cost, name) for cost in passes.values())
            for part, passes in self.by_part().items()}

  @property
  def flops(self) -> dict[str, float]:
    """Returns the FLOPs of each part."""
    return self._each("flops")

  @property
  def bytes(self) -> dict[str, float]:
    """Returns the bytes that each part moves, fused."""
    return self._each("fused_bytes")

  @property
  def transcendentals(self) -> float:
    """Returns how many exponentials and the like there are."""
    return self.total().transcendentals

  @property
  def launches(self) -> float:
    """Returns how many kernels there are, by the estimate of `plan.fusion`."""
    return self.total().launches


def _sum(costs: Iterable[PartCost]) -> PartCost:
  total = PartCost()
  for cost in costs:
    total.add(cost)
  return total


def count(jaxpr, path: str = "", *, turns: Mapping[str, int] | None = None, unused: bool = False,
          traffic: bool = True) -> Counts:
  """Counts what one call of a traced program costs, over all its devices.

  A scan counts times its length, a condition by its branch with most FLOPs, a kernel by its grid, shard_map
  by its devices; recomputation that remat asks for counts where it is traced. A product of m x k by k x n is
  2 m n k; an elementwise operation is one for each number of its result, a reduction one for each it reads.

  Args:
    jaxpr: of `jax.make_jaxpr(function)(*args)`, or `jitted.trace(*args).jaxpr`.
    path: names put before those of the program's scopes, with slashes.
    turns: path of a loop of unknown length -> how often it runs.
    unused: counts also what the results do not need, which a compiler drops.
    traffic: False leaves fused bytes and launches at 0: they take most of the time.
  """
  scope = Scope(tuple(filter(None, path.split("/"))))
  if not unused:
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    jaxpr, _ = partial_eval.dce_jaxpr(inner, [True] * len(inner.outvars), instantiate=True)
  return _count(walk.program(jaxpr, scope), turns or {}, traffic)


def _count(program: Program, turns: Mapping[str, int], traffic: bool) -> Counts:
  counts = Counts()
  for scope, moved in fusion.traffic(program).items() if traffic else ():
    cost = counts.costs[scope.names, scope.pass_]
    cost.fused_bytes += moved.bytes
    cost.product_bytes += moved.product_bytes
    cost.launches += moved.launches
  for node in program.nodes:
    _add_node(counts, node, turns, traffic)
  return counts


def _add_node(counts: Counts, node: Node, turns: Mapping[str, int], traffic: bool) -> None:
  cost = counts.costs[node.scope.names, node.scope.pass_]
  if node.programs:
    inside = [_count(program, turns, traffic) for program in node.programs]
    if node.name == "pallas_call":
      cost.unfused_bytes += _bytes(node)
      for each in inside:  # Inside, arrays are in fast memory, and all is one kernel.
        for moved in each.costs.values():
          moved.unfused_bytes = moved.fused_bytes = moved.product_bytes = moved.launches = 0.0
    _add_inside(counts, node, inside, turns)
    return
  cost.unfused_bytes += _bytes(node)
  product = _product(node)
  if product is not None:
    cost.products[product] += 1
    return
  operations = _operations(node)
  cost.elementwise += operations
  if node.name in TRANSCENDENTAL:
    cost.transcendentals += operations


def _add_inside(counts: Counts, node: Node, inside: list[Counts], turns: Mapping[str, int]) -> None:
  path = "/".join(node.scope.names) or "program"
  flops = tuple(each.total().flops for each in inside)
  if node.name == "cond":
    # One branch runs, and which is not known: the dearest bounds it.
    counts.branches.append((path, flops))
    inside = [inside[flops.index(max(flops))]]
  times = _times(node)
  if node.name == "while":
    known = turns.get(path)
    if known is None:
      counts.open_loops.append((path, sum(each.total().product_flops for each in inside)))
    times = known or 1
  for each in inside:
    counts.add(each, times)


def _times(node: Node) -> int:
  if node.name == "scan":
    return node.params["length"]
  if node.name == "pallas_call":
    grid = node.params["grid_mapping"].grid
    # A size that is known only at run time counts as one.
    return math.prod(size if isinstance(size, int) else 1 for size in grid)
  if node.name == "shard_map":
    # Inside, shapes are those of one device; axes that were manual before are counted further out.
    return math.prod(node.params["mesh"].shape[axis] for axis in node.params["newly_manual_axes"])
  return 1


def _bytes(node: Node) -> float:
  return sum(value.bytes for value in (*node.inputs, *node.outputs))


def _operations(node: Node) -> float:
  if node.name in RANDOM:
    return RANDOM_WORD * sum(value.elements for value in node.outputs)
  if node.name in _FREE:
    return 0
  if node.name.startswith(("scatter", "addupdate")):
    return node.inputs[-1].elements
  if fusion.is_reduction(node) or node.name.startswith("cum") or node.name in ("psum", "pmax", "pmin"):
    return sum(value.elements for value in node.inputs)
  return max((value.elements for value in node.outputs), default=0)


def _product(node: Node) -> Product | None:
  if node.name == "dot_general":
    (left, right), (batch, right_batch) = node.params["dimension_numbers"]
    a, b = node.inputs[0].shape, node.inputs[1].shape
    m = math.prod(size for axis, size in enumerate(a) if axis not in (*left, *batch))
    n = math.prod(size for axis, size in enumerate(b) if axis not in (*right, *right_batch))
    return Product(_precision(node), math.prod(a[axis] for axis in batch), m, n,
                   math.prod(a[axis] for axis in left))
  if node.name == "conv_general_dilated":
    dimensions = node.params["dimension_numbers"]
    kernel, out = node.inputs[1].shape, node.outputs[0].elements
    features = kernel[dimensions.rhs_spec[0]]
    return Product(_precision(node), 1, out // features, features, math.prod(kernel) // features)
  return None


def _precision(node: Node) -> str:
  """Returns one of `targets.PRECISIONS`; what has no rate of its own there counts as the next slower one."""
  asked: Any = node.params.get("precision")
  if max(value.item_bytes for value in node.inputs[:2]) <= 2:
    return "bfloat16"
  names = {str(each).rpartition(".")[2] for each in (asked if isinstance(asked, tuple) else (asked,))}
  return "float32" if names <= {"None", "DEFAULT", "TF32_TF32_F32"} else "float32_highest"
