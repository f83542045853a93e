"""Files of a language run's workdir, so that the run is used without what it started from."""
import pathlib

from atlas_jax import config as configs
from atlas_jax.data import chats
from atlas_jax.files import inventory, json_file, write
from atlas_jax.language.initial_model import (
  MODEL,
  InitialModel,
  check_base,
  group_of,
  is_lost,
  is_run,
  note_step,
  template_folder,
  use_copies,
)
from atlas_jax.language.pretrained import hf_export, hf_import, peft, tokenizer_files
from atlas_jax.workdir import ADAPTER, BASE_STEP, CHECKPOINTS, PRETRAINED, SHAPE, TEMPLATE, TOKENIZER


def save(config, start: InitialModel, workdir) -> None:
  """Copies tokenizer, chat template and the pretrained model's config into a workdir; see `recipes.Assets`.

  Args:
    config: of the run.
    start: what it starts from.
    workdir: of the run.
  """
  workdir = pathlib.Path(workdir)
  data = config.data
  start.tokenizer.save(workdir / TOKENIZER)
  # What lies beside a tokenizer, such as a chat template, is needed by an export.
  beside = start.folder if data.tokenizer == MODEL else _local(data.tokenizer)
  if beside is not None:
    tokenizer_files.copy(beside, workdir / TOKENIZER)
  # Checksums of the copies, so that one that changes later is refused when it is read.
  inventory.seal(workdir / TOKENIZER)
  if start.template is not None:
    is_own = data.chat_template == MODEL
    template = template_folder(config, start.folder) if is_own else _local(data.chat_template)
    assert template is not None  # It was read from there.
    _copy(template, workdir / TEMPLATE, chats.FILES)
    inventory.seal(workdir / TEMPLATE)
  if config.lora.path is not None:
    # Their config alone: the numbers are in every checkpoint of this run.
    _copy(hf_import.find(config.lora.path), workdir / ADAPTER, (peft.CONFIG,))
    inventory.seal(workdir / ADAPTER)
  note_step(config.model.path, workdir / BASE_STEP)
  if start.folder is not None:
    _copy(start.folder, workdir / PRETRAINED, ("config.json", *hf_export.COPIED_FILES))
    inventory.seal(workdir / PRETRAINED)
  elif config.model.path is not None:
    # A run that started from a run has no config.json to copy, so the fields of its model are written down.
    write.json(workdir / SHAPE, json_file.sealed(shape_of(config.model.path)))


def shape_of(workdir: str) -> dict:
  """Returns the fields of a run's model: those of the first of the runs that it goes on from."""
  config = configs.unfrozen(configs.load(workdir))
  resolve(config, workdir)
  path = config.model.path
  return shape_of(path) if path is not None and is_run(path) else config[group_of(config)].to_dict()


def resolve(config, workdir) -> None:
  """Lets a run's config name the workdir's copies, not the originals; see `initial_model.use_copies`."""
  use_copies(config, workdir)


def with_copies_of_lost(config, workdir):
  """Returns the config to go on with a run: the workdir's copies replace model.path or lora.path if gone.

  Args:
    config: resolved.
    workdir: of the run.

  Raises:
    ValueError: see `initial_model.check_base`.
  """
  workdir = pathlib.Path(workdir)
  # Without a checkpoint there is nothing to go on with: the run starts anew, from the original.
  if not any((workdir / CHECKPOINTS).glob("[0-9]*")):
    return config
  if config.lora.rank is not None or config.lora.path is not None or _refers(config):
    check_base(config, workdir)
  changed = configs.unfrozen(config)
  if is_lost(config.model.path):
    resolve(changed, workdir)
  elif is_lost(config.lora.path):
    changed.lora.path = str(workdir / ADAPTER)
  else:
    return config
  return configs.resolve(changed)


def _refers(config) -> bool:
  """Returns whether the loss compares with the model at config.model.path, which is read at every start."""
  # Recipes stand above this package and are not imported; what they need is read off the config.
  if config.recipe in ("grpo", "teacher"):
    stays = bool(config.policy.kl_weight) and config.policy.reference_every_steps is None
    # A student that is a copy of what the teacher started from is read from there, too.
    copied = config.teacher.sampler == "native" and config.teacher.student is None
    return stays or config.recipe == "teacher" and copied
  return config.recipe == "ranked" and bool(config.ranked.anchored or config.ranked.kl_weight)


def _local(name: str) -> pathlib.Path | None:
  """Returns the folder of a tokenizer that was loaded by name; None for bytes, which have none."""
  if name.startswith(hf_import.HUB):
    return hf_import.find(name)
  path = pathlib.Path(name).expanduser()
  return path.parent if path.is_file() else path if path.is_dir() else None


def _copy(source: pathlib.Path, target: pathlib.Path, names) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for name in names:
    if (source / name).is_file():
      write.copy(source / name, target / name)
