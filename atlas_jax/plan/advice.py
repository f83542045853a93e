"""The smallest change of a config that fits a machine, found by search and proven by compiling."""
import dataclasses
from collections.abc import Iterator
from typing import Any

from atlas_jax import config as configs
from atlas_jax.plan import compiled, update
from atlas_jax.plan.compiled import Compiled
from atlas_jax.plan.targets import Target
from atlas_jax.plan.update import Planned

COMPILATIONS = 4  # Of a search at most: each may take minutes.


@dataclasses.dataclass(frozen=True)
class Change:
  """Fields that differ from the config.

  Attributes:
    fields: dotted name -> value.
    same_update: whether the update is the one that was asked for, up to rounding.
    rows_frac: rows that are at work at once, over those before; temporaries follow it.
    arguments_frac: state held by a device, over that before.
  """

  fields: dict[str, Any]
  same_update: bool
  rows_frac: float = 1.0
  arguments_frac: float = 1.0


def smallest_change(planned: Planned, target: Target, mesh, found: Compiled) -> dict:
  """Looks for the smallest change that fits: first those that leave the update as it is, then fewer rows.

  Returns:
    JSON: fields (None if no change was found), same_update, peak in bytes, compiled (how many programs), and
    lines that say it.
  """
  tried = 0
  best = found.memory.peak
  for change in changes(planned.config, mesh):
    guess = found.memory.arguments * change.arguments_frac + found.memory.temporaries * change.rows_frac
    # Compiling what has no chance would take minutes; a guess may be wrong by a quarter.
    if tried == COMPILATIONS or guess > 1.25 * target.limit_bytes:
      continue
    tried += 1
    after = _compiled(planned, change, target, mesh)
    best = min(best, after.memory.peak)
    if after.memory.peak <= target.limit_bytes:
      words = " ".join(f"--config.{name}={value}" for name, value in change.fields.items())
      how = "the same update" if change.same_update else "another update: fewer rows"
      line = (f"{words} fits ({how}): {after.memory.peak / 2**30:.2f} of "
              f"{target.limit_bytes / 2**30:.2f} GiB, compiled")
      return {"fields": change.fields, "same_update": change.same_update, "peak": after.memory.peak,
              "compiled": tried, "lines": [line]}
  state = found.memory.arguments
  line = (f"no change of remat, accumulation, mesh or rows was found in {tried} compilations, the least "
          f"{best / 2**30:.2f} GiB; parameters, optimizer and batch alone take {state / 2**30:.2f} of "
          f"{target.limit_bytes / 2**30:.2f} GiB")
  return {"fields": None, "same_update": None, "peak": best, "compiled": tried, "lines": [line]}


def _compiled(planned: Planned, change: Change, target: Target, mesh) -> Compiled:
  config = configs.unfrozen(planned.config)
  for name, value in change.fields.items():
    group, _, field = name.rpartition(".")
    configs.at(config, group)[field] = value
  again = update.prepare(configs.resolve(config))
  return compiled.compile_for(again, target, compiled.mesh_of(again.config, target, mesh.size))


def changes(config, mesh) -> Iterator[Change]:
  """Yields changes from the smallest on."""
  remat = {}
  model = "decoder" if config.model.kind == "decoder" else "model"
  if config.recipe != "trm" and configs.at(config, model).remat == "none":
    remat = {f"{model}.remat": "block"}
    yield Change(remat, True, rows_frac=0.5)
  shards = mesh.shape["data"] * mesh.shape["fsdp"]
  if mesh.size > 1 and mesh.shape["fsdp"] < shards:
    split = {"mesh.fsdp": shards, "mesh.data": -1}
    yield Change({**remat, **split}, True, arguments_frac=mesh.shape["fsdp"] / shards)
  else:
    split = {}
  rows, parts = config.data.batch_rows, config.train.accumulate_steps
  more = parts * 2
  while rows % (more * shards) == 0:
    yield Change({**remat, **split, "train.accumulate_steps": more}, True, rows_frac=parts / more,
                 arguments_frac=mesh.shape["fsdp"] / shards if split else 1.0)
    more *= 2
  fewer = rows // 2
  while fewer and fewer % shards == 0:
    kept = min(parts, fewer // shards)
    while fewer % (kept * shards):
      kept -= 1
    yield Change({**remat, **split, "data.batch_rows": fewer, "train.accumulate_steps": kept}, False,
                 rows_frac=fewer * parts / (rows * kept),
                 arguments_frac=mesh.shape["fsdp"] / shards if split else 1.0)
    fewer //= 2
