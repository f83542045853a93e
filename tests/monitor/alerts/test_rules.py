"""Rules of the config: what cannot be is refused with its name, its value and what is needed."""

import pytest

from atlas_jax import command, recipes
from atlas_jax import config as configs
from atlas_jax.defaults import alerts as defaults
from atlas_jax.monitor.alerts import live, rules
from tests import program

pytestmark = pytest.mark.core


def alerts(changes=None, **fields):
  """config.alerts with some changes."""
  config = configs.default()
  config.alerts.rules = changes or {}
  config.alerts.update(**fields)
  return configs.resolve(config).alerts


def test_the_defaults_are_rules():
  found = rules.read(alerts())
  assert set(found) == set(defaults.RULES)
  assert {rule.severity for rule in found.values() if not rule.is_event} <= set(rules.ALARMS)
  assert all(rule.message and rule.recovery for rule in found.values())


def test_rules_for_recipes_name_recipes_that_exist():
  named = {recipe for rule in rules.read(alerts()).values() for recipe in rule.recipes.split()}
  assert named <= {*recipes.names(), "runtime"}  # Sessions of agents are watched by the same rules.


def test_fields_of_a_rule_are_changed_and_rules_are_added():
  found = rules.read(alerts({"loss_spike": {"bound": 3.0},
                             "cold": {"metric": "train/lr", "direction": "below", "bound": 1e-6}}))
  assert found["loss_spike"].bound == 3.0 and found["loss_spike"].least_change == 0.5
  assert found["cold"].direction == "below" and found["cold"].message == "cold"


def test_the_command_line_changes_a_rule():
  config = configs.default()
  command.override(config, "alerts.rules.loss_spike", "{'bound': 3.0}")
  command.override(config, "alerts.rules.idle", "{'for_n': 9}")
  found = rules.read(configs.resolve(config).alerts)
  assert found["loss_spike"].bound == 3.0 and found["idle"].for_n == 9


def test_rules_are_switched_off():
  names = {rule.name for rule in rules.judged(alerts(off="idle, disk"), "memory_lm")}
  assert not names & {"idle", "disk", "length_explosion", "finished"} and "nan" in names


REFUSED = [
  ({"loss_spik": {"bound": 3.0}}, "loss_spik has no metric, and is none of the rules that exist .did you "
   "mean 'loss_spike'"),
  ({"loss_spike": {"bond": 3.0}}, "loss_spike.bond=3.0: a rule has no such field; did you mean 'bound'"),
  ({"loss_spike": {"bound": "high"}}, "loss_spike.bound='high' must be a finite number"),
  ({"loss_spike": {"bound": float("nan")}}, "bound=nan must be a finite number"),
  ({"loss_spike": {"severity": "high"}}, "severity='high' is unknown; known are critical, info, warning"),
  ({"loss_spike": {"for_n": 0}}, "for_n=0 must be a whole number of at least 1"),
  ({"loss_spike": {"for_n": 1.5}}, "for_n=1.5 must be a whole number"),
  ({"loss_spike": {"quiet": 1}}, "quiet=1 must be True or False"),
  ({"loss_spike": {"cooldown_s": -1.0}}, "cooldown_s=-1.0 must be at least 0"),
  ({"loss_spike": {"bound": 0.5}}, "bound=0.5 is a factor on the typical value: with direction="),
  ({"loss_spike": {"recover": 4.0}}, "recover=4.0 lies on the side of alarms of bound=2.0"),
  ({"idle": {"metric": "measure:idel"}}, "names the measure 'idel', which is unknown; did you mean 'idle'"),
  ({"reward_hacking": {"against": ""}}, "against='' and relative_to='against' belong together"),
  ({"frozen_memory": {"window": 1}}, "window=1 must be at least 2"),
  ({"idle": 3}, "idle=3 must be fields by name"),
]


@pytest.mark.parametrize("changes, said", REFUSED)
def test_what_cannot_be_is_refused(changes, said):
  with pytest.raises(ValueError, match=said):
    rules.read(alerts(changes))


def test_a_rule_to_switch_off_must_exist():
  with pytest.raises(ValueError, match="off names 'idel', which is no rule; did you mean 'idle'"):
    rules.read(alerts(off="idel"))


@pytest.mark.parametrize("fields, said", (
  ({"sinks": "telegram"}, "lacks TELEGRAM_BOT_TOKEN and TELEGRAM_CHAT_ID; export them"),
  ({"sinks": "log,pager"}, "there is no 'pager'"),
  ({"quiet_hours": "22"}, "quiet_hours='22' must be two hours of the day"),
  ({"quiet_hours": "8-8"}, "must be two hours of the day"),
  ({"off": "idel"}, "is no rule"),
))
def test_settings_are_refused_at_the_start(fields, said):
  config = configs.default()
  config.alerts.update(**fields)
  with pytest.raises(ValueError, match=said) as caught:
    live.check(config, {})
  assert "\n" not in str(caught.value)


def test_the_program_refuses_a_sink_without_its_secrets_before_anything_is_trained(tmp_path, monkeypatch):
  monkeypatch.delenv("ATLAS_WEBHOOK_URL", raising=False)
  flags = ["--config=configs/memory_40m.py:smoke,pretrain", f"--workdir={tmp_path}/run",
           "--config.data.batch_rows=8", "--config.eval.batch_rows=8"]
  said = program.refused(program.run(*flags, "--config.alerts.sinks=webhook"))
  assert "lacks ATLAS_WEBHOOK_URL; export it" in said and not (tmp_path / "run").exists()
  said = program.refused(program.run(*flags, "--config.alerts.rules.nan={'bound': 'x'}"))
  assert "config.alerts.rules.nan.bound='x' must be a finite number" in said
