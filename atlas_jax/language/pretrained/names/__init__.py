"""Tables of tensor names, one file per family of models, which import and export share.

A family's file has ARCHITECTURE and MODEL_TYPE, as `config.json` spells them; DEFAULTS, what its config means
where it is silent; `biases(config)`, the decoder's fields that say where biases and norms are; and TABLE, a
`Row` for every parameter that any of its models has. A family of hybrid models has `table(pattern)` in place
of TABLE, since its rows depend on how blocks repeat.
"""
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

LAYER = "{}"  # Stands in a tensor's name for the number of its layer; our leaves lead with depth instead.


class Row(NamedTuple):
  """One parameter and its tensor."""

  ours: str    # name of the leaf, as in `tree.named_leaves`
  theirs: str  # name of the tensor
  stored: str  # axes of the tensor; axes in brackets are one axis, "(h k) d"
  kept: str    # axes of the leaf after depth, "d h k"
  first: int = 0  # the layer of the leaf's first entry over depth
  every: int = 1  # layers from one entry to the next


def rows(family: ModuleType, fields: Mapping) -> tuple[Row, ...]:
  """Returns a family's rows for a model of these fields."""
  return family.table(fields["pattern"]) if is_hybrid(family) else family.TABLE


def is_hybrid(family: ModuleType) -> bool:
  """Tells whether a family's models are of `models.hybrid_decoder`, and not of `models.decoder`."""
  return hasattr(family, "table")


def known() -> list[str]:
  """Lists the families."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
  """Returns a family by name.

  Raises:
    ValueError: for an unknown name, listing the known ones.
  """
  if name not in known():
    raise ValueError(f"the family {name!r} is unknown; known are {', '.join(known())}")
  return importlib.import_module(f"{__name__}.{name}")


def find(architecture: str | None, model_type: str | None, where) -> ModuleType:
  """Returns the family of a config: by its architecture, or by its model_type where it names none.

  Args:
    architecture, model_type: as `config.json` has them.
    where: the file, for the message.

  Raises:
    ValueError: if no family has them, listing the known ones.
  """
  families = [load(name) for name in known()]
  for family in families:
    if architecture == family.ARCHITECTURE or (architecture is None and model_type == family.MODEL_TYPE):
      return family
  raise ValueError(f"{where}: the architecture {architecture or model_type!r} is unknown; known are "
                   f"{', '.join(family.ARCHITECTURE for family in families)}")
