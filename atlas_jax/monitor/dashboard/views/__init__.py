"""Pages of the dashboard, one per file, found by name.

A page has TITLE, ORDER (its place in the list), and `parts(view) -> list of charts.Part`, a function of what
the run directories hold. One with controls of its own has `show(view, draw)` as well, which asks for them and
hands their values on; `draw` puts parts on the page.
"""
import functools
import importlib
import pkgutil
from types import ModuleType
from typing import NamedTuple

from atlas_jax.monitor.run_folder import RunFolder


class View(NamedTuple):
  """The runs that a page looks at."""

  run: RunFolder | None  # the one that is chosen; None while there is none
  runs: tuple[RunFolder, ...]  # all
  axis: str  # of `run_folder.AXES`


@functools.cache
def pages() -> dict[str, ModuleType]:
  """Returns the pages by name, in their order."""
  found = [importlib.import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__)]
  return {page.__name__.rpartition(".")[2]: page for page in sorted(found, key=lambda page: page.ORDER)}
