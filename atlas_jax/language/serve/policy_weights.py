"""Weights that a training run gives to a server: taken whole, version by version, while requests go on.

Only a server that was started with config.serve.weights_folder takes any, from files in that folder, and only
from those with a token of their own, see `access`. Requests that are being written end with the weights they
began with; later ones use the new ones, and every completion tells its version on request.

    POST /v1/weights {"model": NAME, "file": "a.safetensors", "version": 7, "label": "r:7", "after": "r:6"}

`label` is the trainer's own name of these weights, and `after` the one that it believes to be there. If
others are, nothing is taken: two runs that give weights to one model would else train on each other's
completions. Without `after` a run begins, and takes the place of whatever is served.
"""
import pathlib
import re
import threading
from collections.abc import Callable
from typing import Any

from absl import logging

from atlas_jax.language import weights_file
from atlas_jax.language.decoding.served_model import ServedModel
from atlas_jax.language.serve.api_error import ApiError, invalid
from atlas_jax.language.serve.json_fields import JsonFields, shown
from atlas_jax.language.serve.memory_trace import MemoryTracer
from atlas_jax.language.serve.served_text import ServedText

CLOSED = ("this server lets nobody change its weights; start it with --config.serve.weights_folder=FOLDER, "
          "where the training run puts them")
FILE = re.compile(r"[A-Za-z0-9_-]{1,150}\.safetensors")
LABEL_CHARS = 200
MOST_VERSION = 2**31 - 1


class PolicyWeights:
  """Takes weights into a scheduler; safe in any thread, one at a time."""

  def __init__(self, scheduler: Any, folder: pathlib.Path, taken: Callable[[str, Any], None]):
    """Takes what it changes.

    Args:
      scheduler: see `decoding.scheduler`.
      folder: where files of weights lie.
      taken: called with a model's name and new parameters, for what looks at them besides the scheduler.

    Raises:
      ValueError: if there is no such folder.
    """
    if not folder.is_dir():
      raise ValueError(f"config.serve.weights_folder={str(folder)!r} is no folder; make it, where the "
                       "training run can write as well")
    self._scheduler = scheduler
    self._folder = folder.resolve()
    self._taken = taken
    self._lock = threading.Lock()
    self._labelled: dict[str, tuple[ServedModel, str]] = {}

  def label(self, name: str) -> str | None:
    """Returns a trainer's name of the weights that a model has now; None: they came from elsewhere."""
    model, label = self._labelled.get(name, (None, None))
    # Compared with what is served: weights may also be changed by other ways than this one.
    return label if model is not None and model is self._scheduler.model(name) else None

  def described(self, text: ServedText) -> list[dict[str, Any]]:
    """Returns what is served, for trainers: name, version, label and limits of every model."""
    return [{"model": name, "version": version, "label": self.label(name), "vocab_size": text.vocab_size,
             "max_model_len": text.longest_tokens} for name, version in self._scheduler.models().items()]

  def take(self, name: str, fields: JsonFields) -> dict[str, Any]:
    """Answers a request that gives a model new weights.

    Args:
      name: of the model, one that is there.
      fields: of the request; the model's name was taken.

    Returns:
      The answer, when the new weights serve.

    Raises:
      ApiError: 400 for weights that do not fit, 404 without the file, 409 if other weights are there.
    """
    file = fields.need("file", str)
    version = fields.need("version", int, least=0, most=MOST_VERSION)
    label = fields.need("label", str)
    after = fields.take("after", str)
    fields.done()
    if not 0 < len(label) <= LABEL_CHARS:
      raise invalid(f"label has {len(label)} characters; it may have 1 to {LABEL_CHARS}", "label")
    path = self._path(file)
    with self._lock:
      now = self.label(name)
      # Asked again, because the first answer was lost on its way.
      if now != label:
        self._check_order(name, now, after)
        self._load(name, path, version, label)
    return {"object": "weights", "model": name, "version": version, "label": label}

  def _check_order(self, name: str, now: str | None, after: str | None) -> None:
    if after is not None and now != after:
      theirs = "those that it was started with or loaded itself" if now is None else shown(now)
      raise ApiError(409, f"after={shown(after)}, and the model {name!r} has other weights, {theirs}: "
                     "another run gives weights to it, or the server was restarted. Start the run again with "
                     "the same command: it begins without `after` and takes the place of what is there",
                     param="after")

  def _load(self, name: str, path: pathlib.Path, version: int, label: str) -> None:
    model = self._scheduler.model(name)
    try:
      params = weights_file.read(path, model.language, model.params)
      taken = self._scheduler.replace(name, params, version)
    except ValueError as error:
      raise invalid(str(error), "file") from error
    self._labelled[name] = (taken, label)
    self._taken(name, params)
    logging.info("the model %r has the weights %r, version %d", name, label, version)

  def _path(self, file: str) -> pathlib.Path:
    if not FILE.fullmatch(file):
      raise invalid(f"file={shown(file)} must be the name of a file in config.serve.weights_folder, of "
                    "letters, digits, _ and -, that ends in .safetensors", "file")
    path = self._folder / file
    # A link could lead to any file of the machine.
    if path.is_symlink() or not path.is_file():
      raise ApiError(404, f"file={shown(file)} is not in the server's config.serve.weights_folder; see that "
                     "config.server.weights_folder of the run is the same folder", param="file")
    return path


def of(config, scheduler: Any, name: str, trace: Any) -> PolicyWeights | None:
  """Returns what takes weights for a server; None without config.serve.weights_folder: nobody may change any.

  Args:
    config: of the run that is served.
    scheduler: that has its model.
    name: of that model in requests.
    trace: what looks at its memory, see `memory_trace`; None: nothing does.

  Raises:
    ValueError: if there is no such folder.
  """
  folder = config.serve.weights_folder
  if folder is None:
    return None

  def taken(model: str, params: Any) -> None:
    if model == name and isinstance(trace, MemoryTracer):
      trace.load(params)

  return PolicyWeights(scheduler, pathlib.Path(folder).expanduser(), taken)
