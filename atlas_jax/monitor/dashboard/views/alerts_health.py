"""Alerts & Health: which rules stand, what was told, who has seen it, and the signs of a collapsed memory."""
import datetime
import getpass
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from atlas_jax.monitor.dashboard.charts import Grid, Missing, Part, Tile, Tiles, Words
from atlas_jax.monitor.dashboard.views import View
from atlas_jax.monitor.run_folder import RunFolder
from atlas_jax.workdir import ACKNOWLEDGED, ALERTS

TITLE, ORDER = "Alerts & Health", 3
SEVERITIES = ("critical", "warning", "info")
RULES = "atlas_jax.monitor.alerts.rules"  # Imported by name, and only by this page, once there is a run.
QUIET = "quiet"  # The state of a rule that has told nothing.
HISTORY = 500  # Newest events that are listed.
HEALTH = ("eval/memory_health_tokens", "eval/memory_gain_tokens")  # As of `collapse_signs`.


class RuleState(NamedTuple):
  """The newest event of a rule."""

  rule: str
  state: str  # "firing", "recovered" or "told"
  severity: str
  step: int | None
  text: str
  times: int  # that it has fired
  acknowledged: bool  # whether someone has seen its newest event

  @property
  def is_open(self) -> bool:
    """Returns whether it fires and nobody has said so."""
    return self.state == "firing" and not self.acknowledged


def parts(view: View) -> list[Part]:
  """Returns the page of a run, without what acknowledges."""
  run = view.run
  if run is None:
    return [Missing("There is no run yet.", "The page follows.")]
  rules = rule_states(run.alerts.rows, run.acknowledged.rows)
  found: list[Part] = [_tiles(run, rules)]
  quiet = [one for one in known_rules(run) if one.rule not in {rule.rule for rule in rules}]
  if rules or quiet:
    found.append(rules_table([*rules, *quiet]))
  if rules:
    found.append(history(run.alerts.rows, run.acknowledged.rows))
  else:
    found.append(Missing(f"Nothing was told in this run: there is no {ALERTS}, or nothing in it.",
                         "Rules write there as they fire; a healthy run has an empty list."))
  if run.alerts.damaged:
    found.append(Words(f"{run.alerts.damaged} lines of {ALERTS} are no JSON objects and are left out.",
                       "warning"))
  return found + _signs(run)


def show(view: View, draw) -> None:
  """Draws the page, with a button for each rule that fires and that nobody has acknowledged."""
  import streamlit as st
  if view.run is None:
    draw(parts(view))
    return
  unseen = [rule for rule in rule_states(view.run.alerts.rows, view.run.acknowledged.rows) if rule.is_open]
  if unseen:
    by = st.text_input("Acknowledged by", _user(), key="acknowledged_by", max_chars=80)
  for rule in unseen:
    kind = st.error if rule.severity == "critical" else st.warning
    kind(f"**{rule.rule}** at step {rule.step}: {rule.text}")
    if st.button(f"Acknowledge {rule.rule}", key=f"acknowledge {view.run.name} {rule.rule} {rule.step}"):
      acknowledge(view.run, rule, by=by)
      view.run.look()
      st.rerun()
  draw(parts(view))


def _user() -> str:
  try:
    return getpass.getuser()
  except (KeyError, OSError):  # A user without a name, as in some containers.
    return "someone"


def rule_states(events: Sequence[Mapping[str, Any]],
                acknowledged: Sequence[Mapping[str, Any]]) -> list[RuleState]:
  """Returns the newest state of each rule that ever told anything: those that fire first, worst first.

  Args:
    events: rows of alerts.jsonl, oldest first; rows without a rule are left out.
    acknowledged: rows of alerts_acknowledged.jsonl.
  """
  newest: dict[str, Mapping[str, Any]] = {}
  times: dict[str, int] = {}
  for event in events:
    rule = event.get("rule")
    if isinstance(rule, str):
      newest[rule] = event
      times[rule] = times.get(rule, 0) + (event.get("state") == "firing")
  found = [RuleState(rule, str(event.get("state", "")), str(event.get("severity", "")), event.get("step"),
                     str(event.get("text", "")), times[rule], is_acknowledged(event, acknowledged))
           for rule, event in newest.items()]

  def rank(one: RuleState):
    severity = SEVERITIES.index(one.severity) if one.severity in SEVERITIES else len(SEVERITIES)
    return one.state != "firing", one.acknowledged, severity, one.rule

  return sorted(found, key=rank)


def known_rules(run: RunFolder, module: str = RULES) -> list[RuleState]:
  """Returns the rules that a run's config has it judged by, as rules that have told nothing.

  Args:
    run: whose config; one without a group `alerts` has none.
    module: with `judged(alerts, recipe)`, which gives them.
  """
  alerts = run.setting("alerts")
  if not isinstance(alerts, dict):
    return []
  try:
    judged = importlib.import_module(module).judged(alerts, run.setting("recipe", ""))
  except (KeyError, TypeError, ValueError) as error:  # Of another version.
    logging.warning("%s: its rules of config.alerts are not those of this version, so quiet ones "
                    "are not listed: %s", run.path, error)
    return []
  return [RuleState(rule.name, QUIET, rule.severity, None, f"watches {rule.metric}", 0, False)
          for rule in judged]


def is_acknowledged(event: Mapping[str, Any], acknowledged: Sequence[Mapping[str, Any]]) -> bool:
  """Returns whether someone has acknowledged an event: its rule, at its step or a later one."""
  step = event.get("step")
  return any(one.get("rule") == event.get("rule") and isinstance(one.get("step"), int)
             and isinstance(step, int) and one["step"] >= step for one in acknowledged)


def acknowledge(run: RunFolder, rule: RuleState, *, by: str, now: float | None = None) -> None:
  """Adds a row to alerts_acknowledged.jsonl of a run."""
  row = {"time": time.time() if now is None else now, "rule": rule.rule, "step": rule.step, "by": by}
  # One write of one line: several readers may press a button at the same time.
  with (run.path / ACKNOWLEDGED).open("a", encoding="utf-8") as file:
    file.write(json.dumps(row) + "\n")


def rules_table(rules: Sequence[RuleState]) -> Grid:
  """Returns the rules with their newest states."""
  return Grid("Rules", {
      "rule": [one.rule for one in rules], "state": [one.state for one in rules],
      "severity": [one.severity for one in rules], "since step": [one.step for one in rules],
      "fired": [one.times for one in rules], "seen": ["yes" if one.acknowledged else "" for one in rules],
      "says": [one.text for one in rules]},
      "The newest state of each rule; one that is quiet has told nothing in this run.")


def history(events: Sequence[Mapping[str, Any]], acknowledged: Sequence[Mapping[str, Any]]) -> Grid:
  """Returns the newest events, newest first."""
  shown = list(reversed(events[-HISTORY:]))
  return Grid("History", {
      "time": [_clock(event.get("time")) for event in shown], "step": [event.get("step") for event in shown],
      "rule": [str(event.get("rule", "")) for event in shown],
      "state": [str(event.get("state", "")) for event in shown],
      "severity": [str(event.get("severity", "")) for event in shown],
      "metric": [str(event.get("metric") or "") for event in shown],
      "value": [event.get("value") if isinstance(event.get("value"), int | float) else None
                for event in shown],
      "seen": ["yes" if is_acknowledged(event, acknowledged) else "" for event in shown],
      "says": [str(event.get("text", "")) for event in shown]})


def _clock(seconds) -> str:
  if not isinstance(seconds, int | float):
    return ""
  return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _tiles(run: RunFolder, rules: Sequence[RuleState]) -> Tiles:
  firing = [one for one in rules if one.state == "firing"]
  skipped = run.metrics.last("train/skipped_updates")
  return Tiles([
      Tile("State", run.state().kind, "", run.state().words),
      Tile("Rules that fire", str(len(firing)), "", ", ".join(one.rule for one in firing)),
      Tile("Not acknowledged", str(sum(one.is_open for one in rules))),
      Tile("Events", str(len(run.alerts.rows))),
      *([] if skipped is None else [Tile("Skipped updates", f"{skipped:,.0f}", "", "in all, not finite")])])


def _signs(run: RunFolder) -> list[Part]:
  """Returns the signs of a collapsed memory at the newest evaluation, with their bounds."""
  if not any(name in run.metrics.names for name in HEALTH):
    return [Missing("No health of a memory.", "Models with a memory write it at each evaluation, "
                    "config.train.eval_every_steps.")]
  from atlas_jax.evals import collapse_signs  # Imports JAX: only this page pays for it.
  row = {name: run.metrics.last(name) for name in run.metrics.names if name.startswith("eval/")}
  signs = collapse_signs.checks(row, run.setting("model.memory.chunk_size", 64))
  words = {True: "stands", False: "healthy", None: "unknown"}
  return [Grid("Memory health at the newest evaluation", {
      "sign": [sign.title for sign in signs], "state": [words[sign.stands] for sign in signs],
      "value": [sign.value for sign in signs], "bound": [sign.bound for sign in signs],
      "what to do": [collapse_signs.KINDS[sign.name].remedy if sign.stands else "" for sign in signs]})]
