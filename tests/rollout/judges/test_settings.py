"""Settings of judges: every field changes what is made, and what cannot be is refused with its name."""
import pytest

from atlas_jax import fields
from atlas_jax.rollout.judges import settings
from atlas_jax.rollout.judges.rim import RIMReward

BASE = {"endpoint": {"url": "http://127.0.0.1:1/v1"}, "models": {"small_model": "s"}}
OTHER = {
  "backend": "scripted", "script": "atlas_jax.rollout.judges.backends.answer_grader", "mode": "session",
  "temperatures": "0.1", "models.small_model": "t", "models.large_model": "l",
  "model_configs.default.response_format": "none", "model_configs.large.response_format": "json_object",
  "model_configs.large.max_tokens": 7, "endpoint.url": "http://127.0.0.1:2/v1",
  "endpoint.key_variable": "KEY_A", "large_endpoint.url": "http://127.0.0.1:3/v1",
  "large_endpoint.key_variable": "KEY_A", "cache_dir": "replies",
  "budget.calls": 3, "budget.tokens": 4, "out_of_range": "clamp", "arbiter_failure": "keep",
  "missing_judge": "skip", "audit": "full"}


def described(changes) -> str:
  """Says what a config of judges makes."""
  rim = settings.group_of({"endpoint.url": "http://127.0.0.1:1/v1", "models.small_model": "s", **changes})
  made = settings.settings_of(rim)
  panel = settings.panel_of(rim, made)
  backend = panel.backend
  parts = [made, panel.settings, panel.budget._most, type(backend).__name__]
  if rim.backend == "endpoint":
    parts += [[one.settings for one in backend._endpoints], backend._max_tokens]
  else:
    parts.append(backend._script)
  return repr(parts)


def changed(name, value):
  """Another value of a field."""
  short = name.removeprefix("rim.")
  if short in OTHER:
    return OTHER[short]
  if isinstance(value, bool):
    return not value
  return value + 1 if isinstance(value, int) else value / 2


RIM = {name: value for name, value in fields.flat(fields.default()).items() if name.startswith("rim.")}


@pytest.mark.parametrize("name", sorted(RIM))
def test_every_field_changes_what_is_made(name, monkeypatch, tmp_path):
  monkeypatch.setenv("KEY_A", "x")
  monkeypatch.chdir(tmp_path)
  more = {"backend": "scripted"} if name == "rim.script" else {}
  change = {name.removeprefix("rim."): changed(name, RIM[name])}
  before = described({**more, **({"script": "tests.rollout.judges.scripts.reply"} if more else {})})
  assert described({**more, **change}) != before


def test_the_arbiter_is_the_small_model_unless_another_is_named():
  rim = settings.group_of(BASE)
  backend = settings.panel_of(rim, settings.settings_of(rim)).backend
  assert backend._endpoints[0] is backend._endpoints[1]


@pytest.mark.parametrize("changes, named", [
  ({}, "rim.endpoint.url"), ({"endpoint": {"url": "http://127.0.0.1:1/v1"}}, "rim.models.small_model"),
  ({"temperature": "0.2"}, "temperature"), ({"temperatures": "warm"}, "temperatures"),
  ({"temperatures": "0.2,-1"}, "temperatures"), ({"temperatures": "0.2,0.2"}, "temperatures"),
  ({"variance_threshold": -1.0}, "variance_threshold"), ({"mode": "both"}, "mode"),
  ({"active_judges": dict.fromkeys(("accuracy", "helpfulness", "process", "diagnostic"), False)}, "active"),
  ({"backend": "scripted", "script": "no_such.jsonl"}, "no_such.jsonl"),
  ({"backend": "scripted", "script": "tests.rollout.judges.nothing"}, "nothing"),
  ({**BASE, "endpoint": {"url": "localhost"}}, "url"), ({"budget": {"calls": 0}}, "budget.calls"),
  ({"model_configs": {"default": {"max_tokens": "many"}}}, "max_tokens"),
  ({**BASE, "model_configs": {"large": {"response_format": "xml"}}}, "response_format")])
def test_what_cannot_be_is_refused_with_its_name(changes, named):
  with pytest.raises(ValueError, match=named):
    RIMReward(changes)
