"""Adapters and newer weights for a server that runs; requests in flight end with the weights they began with.

Three ways lead here:

- `--config.serve.adapters=NAME=FOLDER,OTHER=FOLDER` loads adapters in PEFT's format when the server starts.
  They are models of their own in requests: `"model": "NAME"`.
- A signal SIGHUP reads the run's newest checkpoint, where training has left one since: `kill -HUP PID`.
- Requests do both where config.serve.load_folder names a folder; without one they are refused. Adapters are
  read from that folder alone, so that a request can name no other file of the machine. Where trainers have
  tokens of their own (see `access`), only they may ask for these; else whoever may ask for completions.

      curl $URL/v1/load_lora_adapter -d '{"lora_name": "sums", "lora_path": "sums_v2"}' ...
      curl $URL/v1/unload_lora_adapter -d '{"lora_name": "sums"}' ...
      curl $URL/v1/load_weights -d '{}' ...

The first two have the names, fields and answers of vLLM's routes. The last one answers with the version of
the weights, the number of updates that they have seen, which completions tell as `weights_version`.
"""
import pathlib
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import logging

from atlas_jax.language import runs
from atlas_jax.language.pretrained import peft
from atlas_jax.language.serve.api_error import ApiError, invalid
from atlas_jax.language.serve.json_fields import JsonFields
from atlas_jax.models.language import LanguageModel
from atlas_jax.workdir import CHECKPOINTS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
START_FIELD = "config.serve.adapters"
CLOSED = ("this server loads nothing that a request names; start it with --config.serve.load_folder=FOLDER, "
          "the folder that adapters lie in")


class LoadedModel(NamedTuple):
  """The model that a server was started with."""

  name: str
  language: LanguageModel  # without adapters
  mesh: Any


def start_adapters(text: str | None) -> dict[str, pathlib.Path]:
  """Returns folders by name, of config.serve.adapters; each is looked at before weights are read.

  Raises:
    ValueError: naming what is no NAME=FOLDER, twice there, or no folder of adapters.
  """
  found: dict[str, pathlib.Path] = {}
  for part in filter(None, (one.strip() for one in (text or "").split(","))):
    name, equals, folder = part.partition("=")
    if not equals or not NAME.fullmatch(name) or not folder:
      raise ValueError(f"{START_FIELD} has {part!r}; it must be NAME=FOLDER, with commas between several, "
                       "and a name has letters, digits and ._:/-")
    if name in found:
      raise ValueError(f"{START_FIELD} has the name {name!r} twice; give each adapter its own")
    found[name] = pathlib.Path(folder).expanduser()
    try:
      _described(found[name])
    except ValueError as error:
      raise ValueError(f"{START_FIELD}: {error}") from error
  return found


def _described(folder: pathlib.Path) -> dict:
  """Returns the options of adapters; ValueError for a folder that has none."""
  if (folder / CHECKPOINTS).is_dir():
    raise ValueError(f"{folder} is the workdir of a run; write its adapters with --mode=export --adapters "
                     f"--workdir={folder} --to=FOLDER, and load that")
  return peft.options(folder)


class Loader:
  """Loads into the scheduler of a server; safe in any thread, one at a time.

  Attributes:
    parents: name of every adapter -> that of the model it stands upon.
  """

  def __init__(self, scheduler: Any, model: LoadedModel, newest: Callable[[], tuple[Any, int]],
               load_folder: str | None, on_weights: Callable[[Any], None], warm: Callable[[str], None]):
    """Takes what it loads into.

    Args:
      scheduler: see `decoding.scheduler`.
      model: that serves.
      newest: () -> (params, version), read from the run's newest checkpoint.
      load_folder: config.serve.load_folder.
      on_weights: called with newer weights, for what looks at them besides the scheduler.
      warm: called with the name of an adapter that was loaded, so that its programs are compiled before the
        load is answered.
    """
    self._scheduler = scheduler
    self._model = model
    self._newest = newest
    self._folder = None if load_folder is None else pathlib.Path(load_folder).expanduser().resolve()
    self._on_weights = on_weights
    self._warm = warm
    self._lock = threading.Lock()
    self.parents: dict[str, str] = {}

  def load_adapter(self, name: str, folder: pathlib.Path, *, in_place: bool = False) -> None:
    """Loads adapters under a name.

    Args:
      name: of the model with them.
      folder: in PEFT's format.
      in_place: whether they may take the place of others of this name.

    Raises:
      ApiError: if the name is taken.
      ValueError: if the model takes no adapters, or these do not fit it.
    """
    with self._lock:
      known = self._scheduler.models()
      if name in known and name not in self.parents:
        raise invalid(f"the model {name!r} has weights of its own; load the adapter under another name",
                      "lora_name")
      if name in known and not in_place:
        raise invalid(f"the adapter {name!r} is loaded already; set load_inplace=true to replace it, or give "
                      "another name", "lora_name")
      language = self._model.language
      if not language.has_hf_form:
        raise ValueError(f"the model {self._model.name!r} is a memory model, and adapters are for decoders")
      options = _described(folder)
      module = language.module.copy(lora=dict(options))
      adapters = peft.load(folder, module, mesh=self._model.mesh, dtype="float32")
      self._scheduler.load_adapter(name, self._model.name, options, adapters)
      self.parents[name] = self._model.name
    self._warm(name)
    logging.info("adapter %r loaded from %s", name, folder)

  def unload_adapter(self, name: str) -> None:
    """Forgets adapters; requests in flight end with them.

    Raises:
      ApiError: status 404 if there are none of this name.
    """
    with self._lock:
      if name not in self.parents:
        known = ", ".join(self.parents) or "none"
        raise ApiError(404, f"there is no adapter {name[:100]!r}; loaded are {known}", param="lora_name",
                       code="model_not_found")
      self._scheduler.unload(name)
      del self.parents[name]
    logging.info("adapter %r unloaded", name)

  def load_newest(self) -> tuple[int, bool]:
    """Takes the run's newest checkpoint, if it is newer than what serves.

    Returns:
      The version that serves now, and whether it is another than before.

    Raises:
      ValueError, CheckpointError: if the checkpoint is damaged, or adapters do not fit the new weights; what
        served goes on.
    """
    with self._lock:
      before = self._scheduler.models()[self._model.name]
      params, version = self._newest()
      if version <= before:
        logging.info("the weights stay at version %d: the newest checkpoint is at %d", before, version)
        return before, False
      self._scheduler.load(self._model.name, self._model.language, params, version)
      self._on_weights(params)
    logging.info("weights of version %d serve in place of %d", version, before)
    return version, True

  def try_newest(self) -> None:
    """Does `load_newest` for a signal, which has nobody to tell an error: the log tells it."""
    try:
      self.load_newest()
    except Exception as error:
      logging.error("the weights stay as they are: %s", error)

  def answer_load(self, fields: JsonFields) -> str:
    """Answers /v1/load_lora_adapter, and says what was done; ApiError for what cannot be."""
    name = fields.need("lora_name", str)
    path = fields.need("lora_path", str)
    in_place = fields.take("load_inplace", bool, False)
    fields.done()
    if not NAME.fullmatch(name):
      raise invalid("lora_name must have 1 to 128 letters, digits and ._:/-, and begin with one of the first "
                    "two", "lora_name")
    folder = self._inside(path)
    try:
      self.load_adapter(name, folder, in_place=in_place)
    except ValueError as error:
      raise invalid(str(error), "lora_path") from error
    return f"Success: LoRA adapter '{name}' added successfully."

  def answer_unload(self, fields: JsonFields) -> str:
    """Answers /v1/unload_lora_adapter; see `answer_load`."""
    name = fields.need("lora_name", str)
    fields.refuse("lora_int_id", "adapters have names alone; leave it out")
    fields.done()
    self._need_folder()
    self.unload_adapter(name)
    return f"Success: LoRA adapter '{name}' removed successfully."

  def answer_weights(self, fields: JsonFields) -> Mapping[str, Any]:
    """Answers /v1/load_weights; ApiError 409 where the newest checkpoint cannot be taken."""
    fields.done()
    self._need_folder()
    try:
      version, changed = self.load_newest()
    except (ValueError, RuntimeError) as error:  # CheckpointError is a RuntimeError.
      raise ApiError(409, f"the weights stay as they are: {error}") from error
    return {"model": self._model.name, "version": version, "changed": changed}

  def _need_folder(self) -> pathlib.Path:
    if self._folder is None:
      raise ApiError(403, CLOSED)
    return self._folder

  def _inside(self, path: str) -> pathlib.Path:
    """Returns a folder in the folder that requests may load from."""
    root = self._need_folder()
    try:
      # Resolved: neither ".." nor a link leads out of the folder.
      folder = (root / path).resolve()
      is_inside = folder != root and folder.is_relative_to(root)
      found = is_inside and folder.is_dir()
    except (OSError, ValueError):  # A name that no file can have.
      found = False
    if not found:
      raise ApiError(404, f"lora_path={path[:100]!r} is no folder in config.serve.load_folder",
                     param="lora_path")
    return folder


def make(config, workdir, name: str, scheduler: Any, language: LanguageModel, mesh: Any,
         on_weights: Callable[[Any], None], warm: Callable[[str], None]) -> Loader:
  """Makes the loader of a run that is served, and loads the adapters of config.serve.adapters.

  Args:
    config, workdir: of the run.
    name: of its model in requests.
    scheduler: that has it.
    language, mesh: of it.
    on_weights, warm: see `Loader`.

  Raises:
    ValueError: if an adapter cannot be loaded; names it.
  """
  def newest():
    tuned = runs.open_tuned(config, workdir, mesh)
    return tuned.params, tuned.step

  loader = Loader(scheduler, LoadedModel(name, language, mesh), newest, config.serve.load_folder, on_weights,
                  warm)
  for adapter, folder in start_adapters(config.serve.adapters).items():
    try:
      loader.load_adapter(adapter, folder)
    except (ValueError, ApiError) as error:
      raise ValueError(f"{START_FIELD}={adapter}={folder}: {error}") from error
  return loader
