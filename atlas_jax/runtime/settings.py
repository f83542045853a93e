"""The config of the runtime: read from a file and flags, checked, and handed to each part as its own
settings.

`atlas_jax/defaults/runtime.py` has every field. It is no config of a training: nothing is shared with those.
"""
import ast
import difflib
import json
import os
import pathlib
import runpy
from collections.abc import Mapping
from typing import Any

from atlas_jax.defaults import runtime as defaults
from atlas_jax.rollout import endpoint_settings, teaching
from atlas_jax.rollout.endpoint_settings import EndpointSettings
from atlas_jax.runtime.agents import load as agent_load
from atlas_jax.runtime.budget import BudgetSettings
from atlas_jax.runtime.lesson_states import LessonBookSettings
from atlas_jax.runtime.memory_streams import StreamSettings
from atlas_jax.runtime.pool import PoolSettings
from atlas_jax.runtime.proxy import ProxySettings
from atlas_jax.runtime.redaction import RedactionSettings
from atlas_jax.runtime.reflection import ReflectionSettings
from atlas_jax.runtime.route import RoutePolicy
from atlas_jax.runtime.session import SessionSettings
from atlas_jax.runtime.settings_groups import (
  ConfigError,
  DeploySettings,
  LoopSettings,
  ModelSettings,
  OptimiseSettings,
  RuntimeSettings,
)
from atlas_jax.runtime.store_settings import StoreSettings
from atlas_jax.runtime.task_eval import EvalSettings
from atlas_jax.runtime.watching import WatchSettings, read_token

default = defaults.default
TYPES = defaults.types()
BOUNDS = defaults.bounded()
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
SWITCH = {"true": True, "1": True, "false": False, "0": False}


def load(spec: str, overrides: Mapping[str, str] | None = None) -> RuntimeSettings:
  """Reads a config file, changes fields, and returns the settings.

  Args:
    spec: FILE.py or FILE.py:ARGUMENT.
    overrides: dotted field -> value as text.

  Raises:
    ConfigError: for a file, field or value that cannot be.
  """
  return of_config(read(spec, overrides))


def read(spec: str, overrides: Mapping[str, str] | None = None):
  """Returns the ConfigDict of a file with some fields changed; see `load`."""
  path, _, arg = spec.partition(":")
  if not pathlib.Path(path).is_file():
    known = [file.as_posix() for file in pathlib.Path("configs").glob("*.py")]
    raise ConfigError(f"--config={spec}: there is no file {path!r} in {pathlib.Path.cwd()}; "
                      f"{nearest(path, known)}")
  try:
    contents = runpy.run_path(path)  # Python of the user's own, as --config names it.
  except (SyntaxError, ImportError) as error:
    raise ConfigError(f"--config={spec}: {path} cannot be run: {error}") from error
  if not callable(contents.get("get_config")):
    raise ConfigError(f"--config={spec}: {path} defines no get_config; configs/runtime.py shows one")
  try:
    config = contents["get_config"](arg or None)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    words = str(error.args[0] if error.args else error).splitlines()[0]
    raise ConfigError(f"--config={spec}: {words}") from error
  if "recipe" in config:
    raise ConfigError(f"--config={spec} is a config of training; the runtime's begin with "
                      "atlas_jax.runtime.settings.default(), as configs/runtime.py does")
  return changed(config, overrides or {})


def changed(config, overrides: Mapping[str, str]):
  """Returns a config with some fields changed, checked; see `load`."""
  for name, text in overrides.items():
    _override(config, name, text)
  check(config)
  return config


def check(config) -> None:
  """Refuses fields that there are not, and values that cannot be.

  Raises:
    ConfigError: naming the field.
  """
  found = flat(config)
  for name in found:
    if name not in TYPES:
      raise ConfigError(unknown_field(name))
  for name, (kind, optional) in TYPES.items():
    if name not in found:
      raise ConfigError(f"config.{name} is missing; begin with atlas_jax.runtime.settings.default()")
    value = found[name]
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value,
                                                                                     bool) == (kind is bool)
    if not (fits or optional and value is None):
      raise ConfigError(f"config.{name}={value!r} must be {KINDS[kind]}{', or None' if optional else ''}")
    bound = BOUNDS.get(name)
    if bound is None or value is None:
      continue
    if bound.fits is not None and not bound.fits(value):
      raise ConfigError(f"config.{name}={value} must be {bound.need}")
    if bound.choices and value not in bound.choices:
      raise ConfigError(f"config.{name}={value!r} must be one of {', '.join(bound.choices)}; "
                        f"{nearest(value, bound.choices)}")


def of_config(config) -> RuntimeSettings:
  """Returns the settings of a config.

  Raises:
    ConfigError: for a value that cannot be, naming its field.
  """
  check(config)
  plain = config.to_dict()
  routing = plain["routing"]
  lane = routing.pop("lane")
  store = {**plain["store"], "url": store_url(plain["store"]["url"])}
  judges = plain["judges"]
  if judges["options"] and not judges["on"]:
    raise ConfigError("config.judges.options are given and config.judges.on=False; set it to True, or leave "
                      "the options out")
  asked = plain["agent"]["templates"]
  if plain["session"]["approach"] and not teaching.load(asked).probe:
    raise ConfigError(f"config.session.approach=True and config.agent.templates={asked!r}: that set has no "
                      "text that asks for an approach; name one that has, such as chat or plain")
  try:
    lessons = _lessons(plain["lessons"])
    agent_load.check({"kind": plain["agent"]["kind"], **plain["agent"]["options"]}, field="config.agent")
    return RuntimeSettings(
        tenant=plain["tenant"], metadata=plain["metadata"],
        agent={"kind": plain["agent"]["kind"], **plain["agent"]["options"]},
        agent_templates=_templates("agent", plain["agent"]["templates"]),
        tools=tuple({"name": name, **one} if one.get("kind") == "python" else one
                    for name, one in plain["tools"].items()),
        teacher=_model("teacher", plain["teacher"]), probe=_model("probe", plain["probe"]),
        grader=plain["grader"], judges=judges["options"] if judges["on"] else None,
        session=_made(SessionSettings, {**plain["session"], "budget": _made(BudgetSettings,
                                                                            plain["budget"])}),
        lane=lane, policy=_made(RoutePolicy, routing), pool=_made(PoolSettings, plain["pool"]),
        store=_made(StoreSettings, store), watch=_made(WatchSettings, plain["telemetry"]),
        redaction=_redaction(plain["redaction"]), proxy=_proxy(plain["proxy"], plain["tenant"]),
        lessons=lessons, learner=_learner(plain), triage=_triage(plain, lane),
        streams=_streams(plain), deploy=_made(DeploySettings, plain["deploy"]), loop=_loop(plain),
        evaluation=_made(EvalSettings, plain["eval"]), optimise=_optimise(plain["optimise"]))
  except ConfigError:
    raise
  except ValueError as error:
    words = str(error)
    raise ConfigError(words if words.startswith("config.") else f"config: {words}") from error


def _lessons(plain: Mapping[str, Any]) -> LessonBookSettings | None:
  given = {**plain, "written": tuple(plain["written"].values())}
  if given.pop("on"):
    return LessonBookSettings(**given)
  if given["written"]:
    raise ConfigError("config.lessons.written is given and config.lessons.on=False; set it to True, or leave "
                      "the lessons out")
  return None


def store_url(text: str) -> str:
  """Returns the address of a store; that of a variable where it is env:NAME.

  Raises:
    ConfigError: if the variable is not set.
  """
  if not text.startswith("env:"):
    return text
  name = text.removeprefix("env:")
  if not os.environ.get(name):
    raise ConfigError(f"config.store.url={text}: the environment has no {name}; set it to the address of "
                      f"a store")
  return os.environ[name]


def flat(config, prefix: str = "") -> dict[str, Any]:
  """Returns the fields by dotted name, without those of free groups."""
  found: dict[str, Any] = {}
  for name in config:
    full, value = prefix + name, config[name]
    if full in defaults.FREE:
      continue
    found.update(flat(value, f"{full}.") if hasattr(value, "to_dict") else {full: value})
  return found


def shown(config) -> str:
  """Returns a config as JSON, for people; secrets are in no field."""
  return json.dumps(config.to_dict(), indent=2, ensure_ascii=False)


def unknown_field(name: str) -> str:
  """Says that there is no such field, and which may be meant."""
  last = name.rpartition(".")[2]
  same = [one for one in TYPES if one.rpartition(".")[2] == last]
  near = same or difflib.get_close_matches(name, TYPES, n=1, cutoff=0.6)
  hint = f"did you mean {' or '.join(f'config.{one}' for one in near[:3])}?" if near else (
      "atlas_jax/defaults/runtime.py lists all fields")
  return f"there is no field config.{name}; {hint}"


def nearest(name: str, known) -> str:
  """Returns "did you mean ...?" for a misspelt name, or lists the known ones."""
  close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
  return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"


def _override(config, name: str, text: str) -> None:
  free = next((one for one in defaults.FREE if name.startswith(f"{one}.")), None)
  if free is not None:
    group, _, field = free.rpartition(".")
    owner = _at(config, group)
    owner[field] = {**owner[field].to_dict(), name.removeprefix(f"{free}."): _literal(text)}
    return
  if name not in TYPES:
    raise ConfigError(f"--config.{name}={text}: {unknown_field(name)}")
  kind, optional = TYPES[name]
  try:
    value = None if optional and text == "None" else SWITCH[text.lower()] if kind is bool else kind(text)
  except (KeyError, ValueError):
    need = f"{KINDS[kind]}{', or None' if optional else ''}"
    raise ConfigError(f"--config.{name}={text}: must be {need}") from None
  group, _, last = name.rpartition(".")
  _at(config, group)[last] = value


def _at(config, group: str):
  for part in filter(None, group.split(".")):
    config = config[part]
  return config


def _literal(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def _made(settings: type, given: Mapping[str, Any]) -> Any:
  return settings(**given)


def _redaction(given: Mapping[str, Any]) -> RedactionSettings:
  names = {name: tuple(one.strip() for one in value.split(",") if one.strip())
           for name, value in given.items()}
  for variable in names["environment"]:
    if not os.environ.get(variable):
      raise ConfigError(f"config.redaction.environment={given['environment']!r}: the environment has no "
                        f"{variable}, so that it cannot be looked for; set it, or leave it out")
  return RedactionSettings(**names)


def _proxy(given: Mapping[str, Any], tenant: str) -> ProxySettings:
  plain = {name: value for name, value in given.items() if not name.endswith("_variable")}
  return ProxySettings(**plain, tenant=tenant, token=read_token(given["token_variable"], "proxy"),
                       upstream_key=endpoint_settings.read_key(given["key_variable"]))


def _learner(plain: Mapping[str, Any]) -> ModelSettings:
  found = _model("learner", plain["learner"])
  if found.kind != "none" and not plain["lessons"]["on"]:
    raise ConfigError(f"config.learner.kind={found.kind!r} and config.lessons.on=False: a learner writes "
                      "lessons alone; set config.lessons.on=True, or leave it out")
  return found


def _triage(plain: Mapping[str, Any], lane: str | None) -> ModelSettings:
  found = _model("triage", plain["triage"])
  if found.kind != "none" and lane is not None:
    raise ConfigError(f"config.triage.kind={found.kind!r} and config.routing.lane={lane!r}: triage is asked "
                      "where lanes are chosen; set config.routing.lane=None, or leave triage out")
  return found


def _streams(plain: Mapping[str, Any]) -> StreamSettings:
  found = StreamSettings(**plain["memory_streams"])
  group, kind = ("agent", "openai") if found.role == "student" else ("teacher", "endpoint")
  if found.on and plain[group]["kind"] != kind:
    raise ConfigError(f"config.memory_streams.on=True with role={found.role!r} needs config.{group}.kind="
                      f"{kind!r}, and it is {plain[group]['kind']!r}: streams are kept by the server of a "
                      "memory model")
  return found


def _loop(plain: Mapping[str, Any]) -> LoopSettings:
  if plain["loop"]["learn"] and not plain["lessons"]["on"]:
    raise ConfigError("config.loop.learn=True and config.lessons.on=False: there is no memory of lessons; "
                      "set config.lessons.on=True, or leave learning out")
  return LoopSettings(**plain["loop"])


def _optimise(given: Mapping[str, Any]) -> OptimiseSettings:
  if given["templates"] is not None:
    _templates("optimise", given["templates"])
  fields = {name: given[name] for name in ("role", "templates", "tasks", "most_tasks", "folder", "out")}
  model = _model("optimise.model", given["model"])
  rest = {name: value for name, value in given.items() if name not in {*fields, "model"}}
  return OptimiseSettings(**fields, model=model, search=ReflectionSettings(**rest))


def _templates(group: str, name: str) -> str:
  try:
    teaching.load(name)
  except ValueError as error:
    raise ConfigError(str(error).replace("config.teacher.templates", f"config.{group}.templates")) from error
  return name


def _model(group: str, given: Mapping[str, Any]) -> ModelSettings:
  kind = given["kind"]
  endpoint = None
  if kind == "endpoint":
    if not given["url"] or not given["served_as"]:
      raise ConfigError(f"config.{group}.kind='endpoint' needs config.{group}.url and "
                        f"config.{group}.served_as, "
                        "such as http://127.0.0.1:8000/v1 and its name there")
    names = ("url", "key_variable", "form", "response_format", "timeout_s", "deadline_s", "tries",
             "parallel_requests")
    endpoint = EndpointSettings(model=given["served_as"], **{name: given[name] for name in names})
  elif given["url"] or given["served_as"]:
    raise ConfigError(f"config.{group}.url={given['url']} and "
                      f"config.{group}.served_as={given['served_as']} are "
                      f"read with config.{group}.kind='endpoint' alone; set it, or leave them out")
  if kind != "function" and given["function"]:
    raise ConfigError(f"config.{group}.function={given['function']} is read with "
                      f"config.{group}.kind='function' "
                      "alone; set it, or leave it out")
  return ModelSettings(kind, given["function"], endpoint, _templates(group, given["templates"]),
                       given["max_tokens"], given["temperature"], given["deadline_s"])
