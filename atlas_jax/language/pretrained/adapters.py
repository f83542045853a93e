"""The adapters of a run: their options from config.lora or a folder in PEFT's format, and their numbers."""
import pathlib
from collections.abc import Callable

from absl import logging

from atlas_jax.defaults import default
from atlas_jax.language.pretrained import hf_import, peft
from atlas_jax.models import lora
from atlas_jax.parallel import hosts
from atlas_jax.workdir import CHECKPOINTS


def options_of(fields) -> dict | None:
  """Returns the options of `models.lora` from config.lora or the folder it names; None without adapters.

  Raises:
    ValueError: if they do not fit, or are others than those of the folder.
  """
  if fields.path is not None:
    return _options_of_folder(fields)
  if fields.rank is None:
    return None
  options = {"rank": fields.rank, "alpha": fields.alpha, "scaling": fields.scaling,
             "targets": _target_names(fields.targets)}
  try:
    lora.check(options)
  except ValueError as error:
    # `lora.check` names its fields lora.rank and so on, which here are config.lora.rank.
    raise ValueError(f"config.{error}") from error
  return options


def _options_of_folder(fields) -> dict:
  """Returns the options of the adapters that a run starts from.

  Fields of config.lora may only repeat them.
  """
  folder = _folder(fields.path)
  options = peft.options(folder)
  # A field with its default is taken for one that nobody set; only others can contradict the folder.
  unset = default().lora
  for name, found in options.items():
    given = fields[name]
    same = set(_target_names(given)) == set(found) if name == "targets" else given == found
    if not same and given != unset[name]:
      found = ",".join(found) if name == "targets" else found
      raise ValueError(f"config.lora.{name}={given!r}, and the adapters of config.lora.path={fields.path!r} "
                       f"have {found!r}; leave config.lora.{name} out, or set it to that")
  return options


def _folder(path: str) -> pathlib.Path:
  # A checkpoint is not in PEFT's format; said here, where it is known what to do instead.
  if (pathlib.Path(path) / CHECKPOINTS).is_dir():
    raise ValueError(f"config.lora.path={path!r} is the workdir of a run; to go on from its adapters export "
                     f"them with --mode=export --adapters --workdir={path} --to=FOLDER, or set "
                     "config.model.path to it for the model with its adapters merged")
  if not path.startswith(hf_import.HUB) and not (path and pathlib.Path(path).expanduser().is_dir()):
    raise ValueError(f"config.lora.path={path!r} is no folder; give one with {peft.CONFIG} and "
                     f"{peft.STEM}.safetensors, or hf:NAME")
  return hf_import.find(path)


def reader_of(config, module) -> Callable:
  """Makes the reader of the adapters that a run starts from; it logs what differs from how they were made.

  Args:
    config: with config.lora.path.
    module: the decoder with adapters.

  Returns:
    mesh -> adapters, float32.
  """
  path = config.lora.path
  folder = _folder(config.lora.path)

  def read(mesh):
    found = peft.describe(folder)
    lines = []
    if not is_same_model(found.base, config.model.path):
      lines.append(f"were made for {found.base or 'a model that is not named'}, and config.model.path="
                   f"{config.model.path!r} is used; only their shapes are compared")
    # Training goes on without it: no layer here drops anything.
    if found.dropout:
      lines.append(f"had lora_dropout={found.dropout}, which is not applied here")
    if found.is_half_frozen and config.optim.freeze is None:
      lines.append("were trained with B frozen (init_lora_weights='mica'), as config.optim.freeze='*/lora_b' "
                   "does")
    # Every process reads, one speaks.
    for line in lines if hosts.is_main() else ():
      logging.warning("the adapters of config.lora.path=%s %s", path, line)
    return peft.load(folder, module, mesh=mesh, dtype="float32")

  return read


def is_same_model(base: str | None, path: str) -> bool:
  """Returns whether two names may mean one model: by their folders, or by the ends of the names."""
  if base is None:
    return False
  names = [name.removeprefix(hf_import.HUB).rstrip("/") for name in (base, path)]
  folders = [pathlib.Path(name).expanduser() for name in names]
  if all(folder.is_dir() for folder in folders):
    return folders[0].samefile(folders[1])
  last = [name.rpartition("/")[2].lower() for name in names]
  # The hub's cache calls a folder models--ORG--NAME.
  return last[0] == last[1] or f"models--{names[0].replace('/', '--')}".lower() in names[1].lower()


def refuse_without_model(fields) -> None:
  """Refuses adapters from a folder for a model that is drawn.

  Raises:
    ValueError: says which field to set.
  """
  if fields.path is not None:
    raise ValueError(f"config.lora.path={fields.path!r} has adapters of a model, and config.model.path=None "
                     "draws a new one; set config.model.path to the model that they were made for")


def _target_names(targets: str) -> tuple[str, ...]:
  return tuple(name.strip() for name in targets.split(",") if name.strip())
