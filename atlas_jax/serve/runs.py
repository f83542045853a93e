"""Opens a run to use it: its config, its newest parameters, and text that goes on from a prompt."""
import math
import pathlib
from collections.abc import Iterator

import jax

from atlas_jax import config as configs
from atlas_jax.checkpoint import Checkpoints
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.parallel import mesh as meshes
from atlas_jax.parallel import place
from atlas_jax.recipes import Init, memory_lm
from atlas_jax.serve import engine


def config_of(workdir):
  """Reads the config of a run, with the run's own copy of the tokenizer.

  Raises:
    ValueError: if the workdir holds no run.
  """
  config = configs.load(workdir).as_configdict()
  copy = pathlib.Path(workdir) / memory_lm.TOKENIZER
  if copy.is_dir():
    config.data.tokenizer = str(copy)
  return config


def mesh_here(config):
  """Makes the mesh of a run, or where the devices are others than the run's, one with other rows on each."""
  sizes = [size for size in config.mesh.values() if size != -1]
  rest, needed = len(sizes) < len(config.mesh), math.prod(sizes)
  fits = jax.device_count() % needed == 0 if rest else jax.device_count() == needed
  return meshes.make(**config.mesh) if fits else meshes.make()


def restore(config, workdir, init, mesh):
  """Reads the parameters and tables of a run's newest checkpoint, the moving average if the run keeps one.

  Args:
    config: of the run.
    workdir: of the run.
    init: of its recipe, rng -> Init; only shapes are used.
    mesh: where they are put.

  Returns:
    (params, tables, step); tables are () where the recipe has none.

  Raises:
    CheckpointError: if there is no good checkpoint, or the newest is damaged; names the newest good one.
  """
  start = jax.eval_shape(init, jax.random.key(0))
  shapes = {"params": start.params, "tables": start.tables}
  abstract = place.abstract(shapes, place.shardings(mesh, shapes))
  saver = Checkpoints(workdir, **config.checkpoint, read_only=True)
  try:
    field = "params" if config.optim.ema_decay is None else "ema"
    params, meta = saver.restore_params(abstract["params"], field=field)
    tables = start.tables and saver.restore_params(abstract["tables"], field="tables")[0]
  finally:
    saver.close()
  return params, tables, int(meta["step"])


def generate(config, workdir, prompt: str, **options) -> Iterator[str]:
  """Writes on from a prompt with a run's newest parameters; needs nothing of the data it was trained on.

  Args:
    config: of the run, see `config_of`; resolved.
    workdir: of the run.
    prompt: may be empty.
    **options: tokens, temperature, top_k and seed, as of `engine.generate`.

  Returns:
    An iterator over pieces of text as they come, the prompt not among them.
  """
  mesh, model = mesh_here(config), memory_lm.model_of(config)
  tokenizer = tokenizers.load(config.data.tokenizer)
  memory_lm.check_vocabulary(config, tokenizer)
  init = lambda rng: Init(memory_lm.init_params(config, model, rng))
  params, _, _ = restore(config, workdir, init, mesh)
  return engine.generate(model, params, tokenizer, prompt, mesh=mesh, **options)
