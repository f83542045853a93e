"""Measures what an update of several configs costs in CPU-seconds, one update of each in turn.

  NPROC=1 python scripts/update_cost.py configs/memory_40m.py:cpu configs/memory_40m.py:cpu,control=wide

Behind a config may stand fields with values, after blanks, as in what watching costs:

  NPROC=1 python scripts/update_cost.py configs/memory_40m.py:cpu \
    "configs/memory_40m.py:cpu monitor.group_norms=false"

Prints one JSON object per config: CPU-seconds of an update (the median of --updates; the first, which
compiles, is left out), and their ratio to those of the last config. CPU-seconds
of this process, so that others running at the same time do little to the ratio.
"""
import json
import statistics
import sys
import time

import jax
from absl import app, flags

from atlas_jax import config as configs
from atlas_jax import main as program
from atlas_jax import recipes, train
from atlas_jax import state as states
from atlas_jax import step as stepping
from atlas_jax.files import closed_pipe
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes

flags.DEFINE_integer("updates", 10, "updates of each that are measured", lower_bound=1)


class Run:
  """A config's training, an update at a time."""

  def __init__(self, spec: str, mesh):
    """Takes a config as --config has it."""
    name, *changed = spec.split()
    config = program.read_config(name)
    for text in changed:
      field, _, value = text.partition("=")
      config.update_from_flattened_dict({field: json.loads(value)})
    self._mesh, config = mesh, configs.resolve(config)
    self._recipe = recipes.load(config, mesh)
    abstract, _ = train.abstract_state(config, self._recipe, mesh)
    self._state = states.build(abstract, *train.state_args(config, self._recipe))
    self._step = stepping.jit_step(config, self._recipe, mesh, self._state)

  def update(self, stop) -> float:
    """Takes one update; gives its CPU-seconds."""
    batch = hosts.global_batch(self._mesh, self._recipe.source.next(None))
    before = time.process_time()
    self._state, metrics = self._step(self._state, batch, (), stop.array())
    jax.block_until_ready(metrics)
    return time.process_time() - before


def _round(runs, stop, number: int) -> list[float]:
  """Takes an update of each; every other round backwards, since what ran before leaves its mark on caches."""
  order = range(len(runs))
  costs = {place: runs[place].update(stop) for place in (order if number % 2 else reversed(order))}
  return [costs[place] for place in order]


def main(argv) -> None:
  """Measures the configs that are named and prints what they cost."""
  if len(argv) < 2:
    raise app.UsageError("name one config or more, such as configs/memory_40m.py:cpu,pretrain")
  mesh = meshes.make(devices=jax.devices()[:1])
  try:
    runs = [Run(spec, mesh) for spec in argv[1:]]
  except ValueError as error:
    sys.exit(f"update_cost: {error}")
  with hosts.StopFlag(mesh) as stop:
    rounds = [_round(runs, stop, number) for number in range(flags.FLAGS.updates + 1)]
  costs = [statistics.median(times) for times in zip(*rounds[1:])]
  for spec, cost in zip(argv[1:], costs):
    ratio = round(cost / costs[-1], 3)
    print(json.dumps({"config": spec, "cpu_s_per_update": round(cost, 4), "ratio": ratio}))


if __name__ == "__main__":
  closed_pipe.quiet(app.run)(main)
