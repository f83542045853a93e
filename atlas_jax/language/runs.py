"""Opens a run to use it: its config, its newest parameters, and text that goes on from a prompt.

The folder of a pretrained model, such as --mode=export writes, stands for a run of it that has made no update
where text is written: --mode=serve, chat and generate.
"""
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from atlas_jax import config as configs
from atlas_jax import state as states
from atlas_jax.data import chats
from atlas_jax.language import assets, handed_over
from atlas_jax.language.decoding import streams
from atlas_jax.language.initial_model import MODEL, InitialModel, load_initial_model
from atlas_jax.models import language as languages
from atlas_jax.models import lora, placement
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Init

WITHOUT_LANGUAGE = ("trm",)  # Recipes whose models are none that write on from a prompt.


class OpenedModel(NamedTuple):
  """The language model of a run."""

  start: InitialModel
  language: languages.LanguageModel  # without adapters
  params: Any  # of it
  step: int  # updates they have seen


def config_of(workdir, given=()):
  """Reads the config of a run, with its own copies of tokenizer, chat template and pretrained config.

  Args:
    workdir: of the run.
    given: names of fields that the user gives anew, as flags.

  Raises:
    ValueError: if the workdir holds no run, or one from elsewhere that names code to run.
  """
  config = configs.unfrozen(configs.load(workdir, given=given))
  assets.resolve(config, workdir)
  return config


def is_pretrained(folder) -> bool:
  """Returns whether a folder has the weights of a pretrained model, and is no run."""
  return any(pathlib.Path(folder).glob("model*.safetensors")) and not handed_over.is_run(folder)


def config_of_pretrained(folder):
  """Returns a config, to be resolved, that uses a pretrained model as it is, with its own tokenizer and
  template."""
  config = configs.default()
  config.recipe = "sft"
  config.model.update(kind="decoder", path=str(folder))
  config.data.update(tokenizer=MODEL, chat_template=MODEL if chats.has_template(folder) else None)
  return config


def mesh_here(config):
  """Makes the mesh of a run, or where the devices are others than the run's, one with other rows on each."""
  # -1 stands for all devices that the other axes leave; with one such axis any multiple fits.
  axes = {axis: config.mesh[axis] for axis in meshes.AXES}
  sizes = [size for size in axes.values() if size != -1]
  rest = len(sizes) < len(axes)
  needed = math.prod(sizes)
  # Slices are those that are here, not those of training: where devices lie changes no number.
  slices = meshes.n_slices(jax.devices())
  if rest:
    fits = jax.device_count() % (needed * slices) == 0
  else:
    fits = jax.device_count() == needed and axes["data"] % slices == 0
  return meshes.make(**(axes if fits else {}), dcn_data=slices)


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
    ValueError: if a run that was handed over is damaged, or its parameters are not of its config.
  """
  start = jax.eval_shape(init, jax.random.key(0))
  shapes = {"params": start.params, "tables": start.tables}
  abstract = placement.abstract(mesh, shapes)
  saver = handed_over.open_run(workdir, config.checkpoint)
  try:
    params, meta = saver.restore_params(abstract["params"], field=states.field_used(config))
    # () where the recipe has none, and then nothing is read.
    tables = start.tables and saver.restore_params(abstract["tables"], field="tables")[0]
  finally:
    saver.close()
  return params, tables, int(meta["step"])


def check_language(config, workdir, mode: str) -> None:
  """Refuses a run whose model is no language model, or scores tokens otherwise than by a softmax.

  Raises:
    ValueError: names the mode that was asked for, the run and its recipe.
  """
  if config.recipe in WITHOUT_LANGUAGE:
    raise ValueError(f"--mode={mode} uses a language model, and {workdir} holds a run of config.recipe="
                     f"{config.recipe!r}")
  if config.loss.kind != "softmax":
    raise ValueError(f"--mode={mode} takes a model's scores for those of a softmax, and {workdir} holds a "
                     f"run of config.loss.kind={config.loss.kind!r}; --mode=eval measures it as it is")


def restore_tuned(config, workdir, start: InitialModel, mesh) -> tuple[Any, Any, int]:
  """Reads (what was trained, the model beside its adapters or None, step) of a language run.

  Of a pretrained model's folder it reads the weights, at step 0.

  Raises:
    CheckpointError: see `restore`.
    ValueError: if the model that adapters belong to is no longer where it was.
  """
  if is_pretrained(workdir):
    return start.read(mesh, fresh=True)[0], None, 0
  params, _, step = restore(config, workdir, lambda rng: Init(start.init(rng)[0]), mesh)
  if not start.adapted:
    return params, None, step
  # The base of adapters is in no checkpoint: it is read from where training read it, or drawn from the seed.
  _, given = start.read(mesh, fresh=False)
  return params, given["base"] if given else _drawn_base(config, start, mesh), step


def _drawn_base(config, start: InitialModel, mesh):
  def draw():
    return states.first(start.init, config.seed)[1]["base"]

  # Compiled with shardings, so that each device draws its own part.
  return jax.jit(draw, out_shardings=placement.shardings(mesh, jax.eval_shape(draw)))()


def open_tuned(config, workdir, mesh) -> OpenedModel:
  """Opens the language model of a run, its adapters merged; arguments and errors as of `restore_tuned`."""
  start = load_initial_model(config)
  params, base, step = restore_tuned(config, workdir, start, mesh)
  if base is None:
    return OpenedModel(start, start.language, params, step)
  module = start.language.module
  # Merged, so that writing costs no more than without adapters.
  merged = lora.merge(lora.join(params, base), module.lora)
  return OpenedModel(start, languages.from_decoder(module.copy(lora=None)), merged, step)


def generate(config, workdir, prompt: str, **options) -> Iterator[str]:
  """Writes on from a prompt with a run's newest parameters; needs nothing of the data it was trained on.

  Args:
    config: of the run, see `config_of`; resolved.
    workdir: of the run.
    prompt: may be empty; where the run has a chat template, it is what the user says.
    **options: tokens, temperature, top_k and seed, as of `streams.generate`.

  Returns:
    An iterator over pieces of text as they come, the prompt not among them.

  Raises:
    ValueError: if the run's model writes no text, or for an option that cannot be.
  """
  check_language(config, workdir, "generate")
  mesh = mesh_here(config)
  tuned = open_tuned(config, workdir, mesh)
  return write(tuned.start, tuned.language, tuned.params, prompt, mesh=mesh, **options)


def write(start: InitialModel, language: languages.LanguageModel, params, prompt: str, *, mesh,
          **options) -> Iterator[str]:
  """Writes on from a prompt, or answers it where there is a chat template; see `generate`."""
  asked: str | Sequence[int] = prompt
  if start.template is not None:
    # With a template the model was tuned on chats, and a bare text would be none.
    asked = start.template.prompt([{"role": "user", "content": prompt}], start.tokenizer).tolist()
  return streams.generate(language, params, start.tokenizer, asked, mesh=mesh, end_tokens=start.end_tokens,
                          **options)
