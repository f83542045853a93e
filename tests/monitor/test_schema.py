"""The schema and its page are one; what runs write is in it (see `runs.check_names`, where runs are made)."""
import re

import pytest

from atlas_jax.monitor import schema, schema_page


def example(metric):
  """A name that a pattern stands for."""
  given = {"layer": "layer_03", "unit": "tokens", "group": "memory", "range": "000000-000063", "n": "01",
           "name": "letters", "ablation": "emptied", "task": "key_value", "axis": "distance_256",
           "kind": "step", "bound": "low", "split": "all", "arc": "ARC/unseen",
           "reward": "mine/rewards.py:short", "own": "level", "view": "t3", "role": "teacher"}
  assert given.keys() == schema.PLACEHOLDERS.keys()
  return re.sub(r"\{(\w+)\}", lambda found: given[found[1]], metric.pattern)


def test_the_page_is_written_from_the_schema():
  text = schema_page.PAGE.read_text(encoding="utf-8")
  assert schema_page.page(text) == text, "run python -m atlas_jax.monitor.schema_page"


def test_every_pattern_is_found_by_its_own_names_alone():
  patterns = [metric.pattern for metric in schema.metrics()]
  assert len(set(patterns)) == len(patterns)
  for metric in schema.metrics():
    assert schema.find(example(metric)) == metric, example(metric)
    assert metric.meaning and 1 <= metric.since <= schema.VERSION


@pytest.mark.parametrize("name", ["train/los_nats", "memory/fast_norm_mean/layer_", "perf/time_nap_s",
                                  "eval/effective_rank", "toy/first", "eval/recall/mqar/accuracy/x"])
def test_other_names_are_unknown(name):
  assert schema.unknown([name, "train/loss_nats"]) == [name]


def test_a_page_without_its_mark_is_refused():
  with pytest.raises(ValueError, match="no line"):
    schema_page.page("# Metrics\n")
