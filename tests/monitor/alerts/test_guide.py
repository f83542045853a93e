"""The guide names all rules and variables, and no others."""

import pathlib
import re

import pytest

from atlas_jax.defaults import alerts
from atlas_jax.monitor.alerts import sinks

pytestmark = pytest.mark.core
GUIDE = (pathlib.Path(__file__).parents[3] / "docs/guides/alerts.md").read_text()


def test_the_table_has_every_rule_with_its_severity():
  rows = [line.split("|")[1:-1] for line in GUIDE.splitlines() if line.startswith("| `")]
  named = {name: row[-1].strip() for row in rows if len(row) == 5 for name in re.findall(r"`(\w+)`", row[0])}
  assert set(named) == set(alerts.RULES)
  for name, severity in named.items():
    assert {**alerts.RULE, **alerts.RULES[name]}["severity"] in severity, name


def test_the_variables_are_those_that_are_read():
  for needed, others in sinks.VARIABLES.values():
    assert all(f"`{variable}`" in GUIDE for variable in (*needed, *others))


def test_every_field_of_a_rule_is_explained():
  assert all(f"`{field}`" in GUIDE or field in ("metric", "over", "against", "direction", "bound", "window",
                                                "least_change") for field in alerts.RULE)
