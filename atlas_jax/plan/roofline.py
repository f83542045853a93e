"""An estimate of a step's time from its counts and a machine's peaks: a lower bound, but for the launches."""
import bisect
import math
from collections.abc import Iterable
from typing import NamedTuple

from atlas_jax.plan.count import Counts, PartCost, Product
from atlas_jax.plan.targets import Target

# What of an array of n devices one of them sends, by the kind of collective, on a ring.
RING = {"all-reduce": 2.0, "all-gather": 1.0, "reduce-scatter": 1.0, "all-to-all": 1.0}
PERMUTE = "collective-permute"


class Collective(NamedTuple):
  """Exchange of an array between devices.

  Attributes:
    kind: as XLA calls it: a key of RING, or PERMUTE.
    bytes: of the array in one device: before an all-reduce or reduce-scatter, after an all-gather.
    devices: how many exchange it with one another.
    between_hosts: whether it crosses the network between machines or slices.
    times: how often in a step.
  """

  kind: str
  bytes: float
  devices: int
  between_hosts: bool = False
  times: float = 1.0


class PartTime(NamedTuple):
  """Times of a part in one pass, on one device, in seconds."""

  part: str
  pass_: str
  arithmetic_s: float
  memory_s: float
  seconds: float  # see `estimate`

  @property
  def bound(self) -> str:
    """Returns which of both is longer."""
    return "arithmetic" if self.arithmetic_s >= self.memory_s else "memory"


class Estimate(NamedTuple):
  """Time of a step.

  Attributes:
    step_s: of a step.
    terms: arithmetic, memory, launches, interconnect -> seconds, each as if it were alone.
    largest: the three largest summands of `step_s`: (name, seconds).
    parts: times of each part and pass, the longest first.
    launches: kernels of a step, as given or counted.
    flops, bytes: of a step, on one device.
  """

  step_s: float
  terms: dict[str, float]
  largest: list[tuple[str, float]]
  parts: list[PartTime]
  launches: float
  flops: float
  bytes: float


def estimate(counts: Counts, target: Target, *, dtype: str | None = None, launches: float | None = None,
             collectives: Iterable[Collective] = (), devices: int = 1, depth: int = 3) -> Estimate:
  """Estimates a step's time: parts and passes one after another, launches, interconnect.

  step_s = sum over parts and passes of [max(arithmetic, memory) of matrix products + max(arithmetic, memory)
  of all else] + launches + interconnect, since kernels run one after another and each has one bound.
  arithmetic = products at the target's rate, their sizes rounded up to its tile; elementwise FLOPs at the
  vector rate. memory = fused bytes over bandwidth. launches = kernels times the time of a launch.
  interconnect = bytes of each collective on a ring over the link. Work is taken to be spread evenly over the
  devices, launches happen on each of them at once, and nothing overlaps with launches or interconnect.
  Left out: a matrix unit that small products do not fill, and parameters that each device reads as a whole.

  Args:
    counts: of the whole program, over all devices.
    target: of each device.
    dtype: precision that all products count at (see `targets.PRECISIONS`); None: each at its own.
    launches: kernels of a step where the compiled program says so; None: as counted.
    collectives: of a step.
    devices: of the program.
    depth: how many names tell parts apart.

  Raises:
    ValueError: if the kind of a collective is unknown.
  """
  parts = sorted((_part_time(part, pass_, cost, target, dtype, devices)
                  for part, passes in counts.by_part(depth).items() for pass_, cost in passes.items()),
                 key=lambda each: -each.seconds)
  total = counts.total()
  kernels = total.launches if launches is None else launches
  terms = {"arithmetic": sum(part.arithmetic_s for part in parts),
           "memory": sum(part.memory_s for part in parts),
           "launches": kernels * target.launch_s,
           "interconnect": sum(collective_s(each, target) for each in collectives)}
  summands = [*((f"{part.part}, {part.pass_}: {part.bound}", part.seconds) for part in parts),
              *((name, terms[name]) for name in ("launches", "interconnect"))]
  largest = sorted(summands, key=lambda each: -each[1])[:3]
  return Estimate(sum(seconds for _, seconds in summands), terms, largest, parts, kernels,
                  total.flops / devices, total.fused_bytes / devices)


def collective_s(collective: Collective, target: Target) -> float:
  """Returns the seconds of an exchange, as often as it happens: on a ring, without latency.

  Raises:
    ValueError: if its kind is unknown.
  """
  if collective.kind != PERMUTE and collective.kind not in RING:
    raise ValueError(f"the collective {collective.kind!r} is unknown; it must be one of "
                     f"{', '.join([*RING, PERMUTE])}")
  sent = collective.bytes
  if collective.kind in RING:
    sent *= RING[collective.kind] * (collective.devices - 1) / collective.devices
  rate = target.dcn_bytes_s if collective.between_hosts else target.ici_bytes_s
  return collective.times * sent / rate if sent else 0.0


def _part_time(part: str, pass_: str, cost: PartCost, target: Target, dtype, devices: int) -> PartTime:
  products_s = sum(times * product_s(product, target, dtype) for product, times in cost.products.items())
  vectors_s = cost.elementwise / target.vector_flops_s + cost.transcendentals * target.transcendental_s
  of_products_s = cost.product_bytes / target.memory_bandwidth_bytes_s
  of_vectors_s = cost.fused_bytes / target.memory_bandwidth_bytes_s - of_products_s
  seconds = max(products_s, of_products_s) + max(vectors_s, of_vectors_s)
  return PartTime(part, pass_, (products_s + vectors_s) / devices, (of_products_s + of_vectors_s) / devices,
                  seconds / devices)


def product_s(product: Product, target: Target, dtype: str | None = None) -> float:
  """Returns the seconds of a matrix product, or of a batch of them, at the target's rate."""
  sizes = (product.m, product.n, product.k)
  if target.rates:  # Measured; the shortest side decides how well a product fills the machine.
    return product.flops / _rate(min(sizes), target.rates)
  padded = math.prod(math.ceil(size / target.tile) * target.tile for size in sizes)
  return 2 * product.batch * padded / target.flops_s[dtype or product.precision]


def _rate(side: int, rates: tuple[tuple[float, float], ...]) -> float:
  """Returns FLOP/s of a product by its shortest side, between those measured, on logarithmic scales."""
  sides = [size for size, _ in rates]
  place = min(max(bisect.bisect(sides, side), 1), len(sides) - 1)
  (low, slow), (high, fast) = rates[place - 1], rates[place]
  position = min(max(math.log(max(side, 1) / low) / math.log(high / low), 0.0), 1.0)
  return math.exp(math.log(slow) + position * (math.log(fast) - math.log(slow)))
