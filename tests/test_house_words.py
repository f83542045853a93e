"""The package speaks the field's words, and each checker finds a breach of its rule."""

import pathlib

import pytest

from atlas_jax import config
from tests import house_words

ROOT = pathlib.Path(__file__).parents[1]
FIELDS = house_words.fields_of(config.default())
CHECKERS = {
  "words": house_words.word_violations,
  "openings": house_words.opening_violations,
  "classes": house_words.class_violations,
  "fields": lambda root: house_words.field_violations(root, FIELDS),
}
FILE = "atlas_jax/losses/mine.py"
BREACHES = [
  ("words", "def f(slope_BT):\n  return slope_BT\n", "slope is gradient"),
  ("words", "# Knobs of all rows.\n", "knobs is settings"),
  ("words", "def f(share_BT):\n  return share_BT\n", "share_BT is a fraction"),
  ("words", "told = 1\n", "told is what it is"),
  ("words", "def f(place_BT):\n  return place_BT\n", "place_BT is position_BT"),
  ("words", "# The share of tokens that count.\n", "The share is fraction"),
  ("words", "TEXT = 'give a published model'\n", "published model is pretrained"),
  ("words", "class Knobs:\n  pass\n", "Knobs is SamplingParams"),
  ("words", "def open_start(config):\n  pass\n", "open_start is load_initial_model"),
  ("openings", 'def f(x):\n  """Gives x."""\n  return x\n', "begins with 'Gives x.'"),
  ("openings", '"""What a loss needs."""\n', "begins with 'What a loss needs.'"),
  ("classes", "class Plan:\n  pass\n", "all are called Plan"),
  ("fields", "TEXT = 'config.optim.rate=0; set config.optim.lr'\n", "no config.optim.rate"),
]


@pytest.mark.parametrize("rule", CHECKERS)
def test_the_package_keeps_the_rule(rule):
  violations = CHECKERS[rule](ROOT)
  assert not violations, "\n".join(violations)


@pytest.mark.parametrize("rule, text, message", BREACHES)
def test_a_breach_is_found(rule, text, message, tmp_path):
  for name in (FILE, "atlas_jax/data/other.py"):
    (tmp_path / name).parent.mkdir(parents=True)
  (tmp_path / "atlas_jax/data/other.py").write_text("class Plan:\n  pass\n")
  (tmp_path / FILE).write_text(text)
  found = CHECKERS[rule](tmp_path)
  assert any(message in one for one in found), found


def test_words_that_are_well_in_a_sentence_stay(tmp_path):
  (tmp_path / "atlas_jax").mkdir()
  (tmp_path / "atlas_jax/x.py").write_text("# Heads share keys, as told. Published sets.\nshared = 1\n")
  assert house_words.word_violations(tmp_path) == []


def test_names_of_the_users_own_are_left_alone(tmp_path):
  (tmp_path / "atlas_jax").mkdir()
  (tmp_path / "atlas_jax/x.py").write_text("A = 'config.data.fields.answer, config.json, config.optim.lr'\n")
  assert house_words.field_violations(tmp_path, FIELDS) == []
