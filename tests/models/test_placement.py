"""Exceptions of placement are found in the files of the modules whose leaves they name."""

import pathlib
import re

from atlas_jax import tree
from atlas_jax.models import placement
from tests.helpers import tiny_lm
from tests.models.test_hybrid_decoder import drawn
from tests.parallel.test_place import decoder_params

PACKAGE = pathlib.Path(placement.__file__).parents[1]


def test_every_exception_names_a_leaf_of_the_model():
  _, params, _ = tiny_lm()
  _, shifted, _ = tiny_lm(memory=dict(value_source="token"))
  mixes = [tiny_lm(memory_mix=name, window_tokens=4)[1] for name in ("context", "e2e")]
  names = [name for name, _ in tree.named_leaves((params, shifted, *mixes, decoder_params(), drawn()[1]))]
  for pattern, _ in placement.exceptions().tensor_axes:
    assert any(re.search(f"(^|/){pattern}$", name) for name in names), pattern


def test_what_a_file_of_models_or_memory_declares_is_found_and_no_other_file_declares_any():
  declares = re.compile(r"^TENSOR_AXES\b", re.MULTILINE)
  files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if declares.search(path.read_text())}
  assert files and {path.parts[0] for path in files} <= {"models", "memory"}
  names = {f"atlas_jax.{'.'.join(path.with_suffix('').parts)}" for path in files}
  assert names <= set(placement._modules())


def test_a_file_beside_the_others_is_found_by_its_name(tmp_path, monkeypatch):
  text = 'TENSOR_AXES = (("newcomer/kernel", (-1,)),)\nWHOLE = ("table",)\n'
  (tmp_path / "newcomer_block.py").write_text(text)
  monkeypatch.setattr(placement.models, "__path__", [*placement.models.__path__, str(tmp_path)])
  placement.exceptions.cache_clear()
  try:
    found = placement.exceptions()
  finally:
    placement.exceptions.cache_clear()
  assert ("newcomer/kernel", (-1,)) in found.tensor_axes and "table" in found.whole
