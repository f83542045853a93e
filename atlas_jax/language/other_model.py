"""A second model beside the one that a run tunes, such as a teacher, with a tokenizer of its own."""
import pathlib

from atlas_jax import config as configs
from atlas_jax.language.initial_model import MODEL, InitialModel, is_run, load_initial_model
from atlas_jax.workdir import TEMPLATE


def open_other(config, path: str, template: str | None, *, field: str) -> InitialModel:
  """Opens a model with its own tokenizer.

  Args:
    config: of the run.
    path: a pretrained model's folder, hf:NAME, or a run's workdir.
    template: its chat template, as config.data.chat_template names one; None: prompts are texts.
    field: of the config, that names the path; for errors.

  Raises:
    ValueError: names the field, and what is wrong with the model.
  """
  fields = configs.unfrozen(config)
  # The config as it is, with the other model in place of the run's: one reader serves both. The adapters are
  # those of the model that is trained, so there are none.
  fields.model.path = path
  fields.data.tokenizer = MODEL
  fields.lora.update(rank=None, path=None)
  try:
    fields.model.kind = kind_of(path)
    fields.data.chat_template = template
    return load_initial_model(fields)
  except ValueError as error:
    raise ValueError(f"config.{field}={path!r} cannot be opened: {error}") from error


def kind_of(path: str) -> str:
  """Returns the kind of model, as config.model.kind names it, that stands at a path."""
  return configs.load(path).model.kind if is_run(path) else "decoder"


def own_template(path: str) -> str:
  """Names the chat template of the model at a path."""
  kept_one = pathlib.Path(path) / TEMPLATE
  return str(kept_one) if kept_one.is_dir() else MODEL
