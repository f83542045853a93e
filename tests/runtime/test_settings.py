"""The runtime's config: fields, flags, and errors that name what is wrong."""
import ast
import inspect
import pathlib
import re

import pytest

from atlas_jax.defaults import runtime as defaults
from atlas_jax.runtime import settings

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/runtime.py")


@pytest.mark.parametrize(("given", "words"), [
  ({"routng.lane": "auto"}, "no field config.routng.lane; did you mean config.routing.lane"),
  ({"pool.sessions": "0"}, "config.pool.sessions=0 must be at least 1"),
  ({"pool.sessions": "many"}, "config.pool.sessions=many: must be a whole number"),
  ({"routing.lane": "autoo"}, "did you mean 'auto'"),
  ({"routing.auto_from": "0.1"}, "must rise from 0 to 1"),
  ({"store.lease_s": "12"}, "store.heartbeat_s=10.0 must be at most half"),
  ({"store.url": "env:NOWHERE"}, "the environment has no NOWHERE"),
  ({"teacher.kind": "none"}, "config.teacher.url"),
  ({"teacher.function": "a:b"}, "read with config.teacher.kind='function' alone"),
  ({"teacher.templates": "chatt"}, "config.teacher.templates='chatt' is no set"),
  ({"judges.options.backend": "scripted"}, "config.judges.on=False"),
  ({"learner.kind": "function", "learner.function": "a:b"}, "config.lessons.on=False"),
  ({"lessons.rule": "fixed"}, "config.lessons.rule='fixed' must be one of looks, spec"),
])
def test_what_cannot_be_is_named(given, words):
  with pytest.raises(settings.ConfigError, match=re.escape(words)):
    settings.load(CONFIG, given)


def test_flags_change_fields_and_options():
  found = settings.load(f"{CONFIG}:arithmetic", {"routing.lane": "None", "agent.options.name": "mine",
                                                 "session.max_attempts": "3", "judges.on": "true"})
  assert found.lane is None and found.agent["name"] == "mine" and found.session.max_attempts == 3
  assert found.judges == {}


def test_other_files_are_refused_with_what_is_near(tmp_path):
  for name, words in ((str(ROOT / "configs/sft.py"), "is a config of training"), ("configs/runtim.py",
                                                                                  "no file")):
    with pytest.raises(settings.ConfigError, match=words):
      settings.read(name)
  with pytest.raises(settings.ConfigError, match="argument 'x' is unknown"):
    settings.read(f"{CONFIG}:x")


def test_every_field_has_a_comment_on_its_line_or_the_one_before():
  lines = inspect.getsource(defaults).splitlines()
  for node in ast.walk(ast.parse(inspect.getsource(defaults))):
    if isinstance(node, ast.Dict):
      for key, value in zip(node.keys, node.values):
        if isinstance(key, ast.Constant) and not isinstance(value, ast.Dict) and not isinstance(value,
                                                                                                ast.Call):
          assert "#" in lines[key.lineno - 1] or "#" in lines[key.lineno - 2], lines[key.lineno - 1]
