"""The weights that a scheduler serves, by name and version, with low-rank adapters beside them."""
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from atlas_jax.language.decoding.programs import Shapes
from atlas_jax.models import language as languages
from atlas_jax.models import lora
from atlas_jax.models.language import LanguageModel

CPU_INFO = pathlib.Path("/proc/cpuinfo")  # Of Linux; elsewhere the kind of machine has to do.


@dataclasses.dataclass(frozen=True, eq=False)
class ServedModel:
  """Weights under a name; each version is an object of its own.

  Attributes:
    name: in requests.
    version: grows with every update.
    language: the model.
    params: of it, whole, adapters among them.
  """

  name: str
  version: int
  language: LanguageModel
  params: Any

  @functools.cached_property
  def fingerprint(self) -> str:
    """Returns a checksum of the model's fields and of every number; it takes a second per gigabyte or so."""
    digest = hashlib.sha256(repr(self.language.module).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
      array = np.ascontiguousarray(leaf)
      digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
      digest.update(array.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()

  def state_key(self, shapes: Shapes, tenant: str) -> str:
    """Returns a checksum of all that a state of a prompt depends on beside its ids, and of its tenant.

    Compilers round differently, so their version, flags and processor belong to it.
    """
    return _sum(["prefix", self.fingerprint, shapes.piece_tokens, shapes.room_tokens, *_machine(), tenant])

  def stream_key(self, shapes: Shapes) -> str:
    """Returns a checksum of all that the state of a stream depends on, wherever it was saved."""
    return _sum(["stream", self.fingerprint, list(shapes), *_machine()])


def _sum(parts: list) -> str:
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def _machine() -> list[str]:
  """Returns what decides how a program rounds: the compiler, its flags, and what it compiles for.

  "cpu" is the name of every processor, and XLA adds in another order where one has wider registers.
  """
  extensions = ""
  if CPU_INFO.is_file():
    lines = CPU_INFO.read_text().splitlines()
    extensions = next((line for line in lines if line.startswith(("flags", "Features"))), "")
  return [jax.__version__, os.environ.get("XLA_FLAGS", ""), jax.devices()[0].device_kind, platform.machine(),
          extensions]


class _Adapter(NamedTuple):
  base: str
  options: Mapping
  adapters: Any


class ModelTable:
  """Newest weights by name."""

  def __init__(self):
    self._models: dict[str, ServedModel] = {}
    self._adapters: dict[str, _Adapter] = {}

  def load(self, name: str, language: LanguageModel, params, version: int) -> None:
    """Takes weights; adapters upon this name are from now on beside them.

    Raises:
      ValueError: if the name is that of adapters, or the version does not grow.
    """
    old = self._models.get(name)
    if name in self._adapters:
      raise ValueError(f"the model {name!r} is one of adapters of {self._adapters[name].base!r}; unload it, "
                       "or load these weights under another name")
    if old is not None and version <= old.version:
      raise ValueError(f"version={version} of the model {name!r} must be above {old.version}, which it has")
    self._put(ServedModel(name, version, language, params))

  def replace(self, name: str, params, version: int) -> None:
    """Takes other weights of a model that is there, under any version; its adapters are now beside these.

    Raises:
      ValueError: if the model is not there, or is one of adapters.
    """
    old = self.get(name)
    if name in self._adapters:
      raise ValueError(f"the model {name!r} is one of adapters; replace the weights of "
                       f"{self._adapters[name].base!r}, which they are upon")
    self._put(ServedModel(name, version, old.language, params))

  def _put(self, model: ServedModel) -> None:
    made = {one: _with_adapters(one, kept, model) for one, kept in self._adapters.items()
            if kept.base == model.name}
    # All or none: adapters that do not fit the new weights must not leave the table half changed.
    self._models.update({model.name: model} | made)

  def load_adapter(self, name: str, base: str, options: Mapping, adapters) -> None:
    """Takes adapters upon a decoder that is loaded; the name may be one of adapters already.

    Args:
      name: of the model with them.
      base: name of the model beside them, which has no adapters.
      options: as of `lora.check`.
      adapters: as `lora.split` gives them.

    Raises:
      ValueError: if the base is not there, is none that takes adapters, or they do not fit it.
    """
    if name in self._models and name not in self._adapters:
      raise ValueError(f"the model {name!r} has weights of its own; load the adapters under another name")
    if base in self._adapters:
      raise ValueError(f"base={base!r} is one of adapters; give the model beside them, "
                       f"{self._adapters[base].base!r}")
    kept = _Adapter(base, dict(options), adapters)
    self._models[name] = _with_adapters(name, kept, self.get(base))
    self._adapters[name] = kept

  def unload(self, name: str) -> None:
    """Forgets a name.

    Raises:
      ValueError: if it is not there, or adapters stand upon it.
    """
    self.get(name)
    above = [one for one, kept in self._adapters.items() if kept.base == name]
    if above:
      raise ValueError(f"the model {name!r} has adapters loaded upon it; unload them first: "
                       f"{', '.join(above)}")
    del self._models[name]
    self._adapters.pop(name, None)

  def get(self, name: str | None) -> ServedModel:
    """Returns the newest weights of a name; None: of the first one.

    Raises:
      ValueError: if there is none; names those there are.
    """
    if name is None and self._models:
      return next(iter(self._models.values()))
    if name not in self._models:
      known = ", ".join(self._models) or "none yet; call load(name, language, params, version) first"
      raise ValueError(f"the model {name!r} is not loaded; loaded are {known}")
    return self._models[name]

  def versions(self) -> dict[str, int]:
    """Returns the version of every name."""
    return {name: model.version for name, model in self._models.items()}


def _with_adapters(name: str, kept: _Adapter, base: ServedModel) -> ServedModel:
  """Joins adapters with their base, whose arrays are shared and not copied."""
  if not base.language.has_hf_form:
    raise ValueError(f"base={base.name!r} is a memory model, and adapters are for decoders")
  lora.check(kept.options)
  module = base.language.module.copy(lora=dict(kept.options))
  language = languages.from_decoder(module)
  params = lora.join(kept.adapters, base.params)
  wanted = jax.tree.map(lambda x: x.shape, jax.eval_shape(language.init, jax.random.key(0)))
  found = jax.tree.map(np.shape, params)
  if wanted != found:
    raise ValueError(f"adapters {name!r} with {dict(kept.options)} do not fit the model {base.name!r}: their "
                     "arrays have other names or shapes; load them upon the model they were made for")
  return ServedModel(name, base.version, language, params)
