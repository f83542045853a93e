"""The update of a config, as the training loop would compile it, with shapes in place of all arrays."""
import dataclasses
import tempfile
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atlas_jax import opening, recipes, step
from atlas_jax.parallel import mesh as meshes
from atlas_jax.plan import stand_in
from atlas_jax.state import Trained


@dataclasses.dataclass(frozen=True)
class Planned:
  """A config whose recipe is built, and one batch of it.

  Attributes:
    config: with the number of updates known.
    recipe: built for one device of this machine; its loss and its start know of no device.
    batch: one batch on the host.
    made_up: what of the data and models was made up for the plan, in words.
  """

  config: Any
  recipe: recipes.Recipe
  batch: Any
  made_up: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StepOnMesh:
  """An update that can be lowered.

  Attributes:
    function: jitted, with its donation and the shardings of its results.
    state: train state, in shapes with shardings.
    args: all arguments, the state first.
    mesh: of the target.
  """

  function: Any
  state: Any
  args: tuple
  mesh: Mesh


def prepare(config) -> Planned:
  """Builds the recipe of a config and takes its first batch.

  What a plan need not have, such as a corpus, is made up with the sizes that the config allows at most.

  Args:
    config: resolved.

  Raises:
    ValueError: see `recipes.load`.
  """
  here = meshes.make(1, 1, 1, devices=jax.local_devices(backend="cpu")[:1])
  with tempfile.TemporaryDirectory() as folder:
    changed, made_up = stand_in.completed(config, folder)
    recipe = recipes.load(changed, here)
    changed = opening.with_steps(changed, recipe)
    if hasattr(recipe.source, "score_with"):
      recipe.source.score_with(stand_in.zero_logprobs)
    batch = jax.tree.map(np.asarray, recipe.source.next(Trained(None)))
  return Planned(changed, recipe, batch, made_up)


def on_mesh(planned: Planned, mesh: Mesh) -> StepOnMesh:
  """Returns the update of a plan on the devices of a mesh, which need not exist.

  Raises:
    ValueError: if the mesh cannot split the batch's rows or what is carried from update to update.
  """
  config, recipe = planned.config, planned.recipe
  meshes.check_rows(mesh, config.data.batch_rows)
  state, frozen = opening.abstract_state(config, recipe, mesh)
  rows = meshes.batch_sharding(mesh)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), planned.batch)
  each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  stop = jax.ShapeDtypeStruct((mesh.size,), np.int32, sharding=each)
  return StepOnMesh(step.jit_step(config, recipe, mesh, state), state, (state, batch, frozen, stop), mesh)
