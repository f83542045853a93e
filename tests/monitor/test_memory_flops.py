"""FLOPs by formula: the totals written for small families, from each rule's own file or a copy of it."""

import pathlib

import pytest

from atlas_jax.memory import rules
from atlas_jax.monitor import memory_flops

WIDTH, HEADS, SIZE, CHUNK = 48, 2, 24, 8
PROJECTIONS = HEADS * 2 * WIDTH * 4 * SIZE
LINEAR = 4 * CHUNK * SIZE


def count(rule, **options):
  sizes = dict(width=WIDTH, heads=HEADS, key_dim=SIZE, value_dim=SIZE, chunk_size=CHUNK)
  return memory_flops.layer_flops(rule, **sizes, options=options)


CASES = [
  ("titans", {"depth": 1}, 10 * SIZE**2 + LINEAR),
  ("titans", {"depth": 2, "expansion": 4}, 22 * 4 * SIZE**2 + 5 * LINEAR),
  ("titans", {"depth": 3, "expansion": 2}, (22 * 2 + 12 * 4) * SIZE**2 + (1 + 2 + 2) * LINEAR),
  ("delta", {}, 10 * SIZE**2 + LINEAR + 3 * CHUNK * SIZE),
  ("delta", {"momentum": False}, 6 * SIZE**2 + LINEAR + 3 * CHUNK * SIZE),
  ("linear_attention", {}, 4 * SIZE**2 + LINEAR),
  ("yaad", {}, 14 * 4 * SIZE**2 + 5 * LINEAR),
  ("memora", {}, 14 * 4 * SIZE**2),
  ("omega", {"window_size": 5}, (6 * (1 + 4 / CHUNK) + 8) * SIZE**2 + 2 * LINEAR),
  ("atlas", {"window_size": 1}, 14 * SIZE**2 + 2 * 30 * SIZE**3 / CHUNK),
  ("deep_transformer", {"depth": 1, "reach_tokens": 7},
   2 * SIZE * 7 + 2 * 2 * SIZE * 7 + 4 * CHUNK * SIZE + 2 * SIZE**2),
  ("tnt", {"depth": 1, "local_chunks": (4,)},
   10 * SIZE**2 + 4 * 4 * SIZE + 6 * SIZE**2 + 4 * CHUNK * SIZE),
]


@pytest.mark.parametrize("rule, options, expected", CASES)
def test_a_head_costs_what_the_formula_of_its_family_says(rule, options, expected):
  assert count(rule, **options) == pytest.approx(HEADS * expected + PROJECTIONS)


@pytest.mark.parametrize("rule", rules.names())
def test_every_rule_has_a_formula(rule):
  found = count(rule)
  assert found is not None, f"rules/{rule}.py gives no MemoryRule.flops; see memory/flops.py"
  assert found > PROJECTIONS


def test_a_copied_rule_has_the_formula_of_the_one_it_was_copied_from(tmp_path, monkeypatch):
  (tmp_path / "copies").mkdir()
  for name in ("titans", "delta", "lact"):
    text = pathlib.Path(rules.__path__[0], f"{name}.py").read_text()
    (tmp_path / f"copies/{name}_copy.py").write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  for name in ("titans", "delta", "lact"):
    assert count(f"copies.{name}_copy") == count(name)


def test_features_enlarge_the_first_matrix_alone():
  lifted = count("omega", feature_map="poly", degree=2, window_size=1)
  plain = count("omega", window_size=1)
  entries = 1 + SIZE + SIZE * (SIZE + 1) // 2
  more = (2 + 2 + 2) * SIZE * (entries - SIZE) + 2 * CHUNK * (entries - SIZE)
  assert lifted - plain == pytest.approx(HEADS * more)
