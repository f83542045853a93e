"""The YAML of the original SDK read into settings of the runtime, as a plain dict by groups.

Source: fields of Arc-Computer/atlas-sdk (atlas/config/models.py, 0.1.15 and 0.1.3). Keys that it never read
are warnings; so are those that have no counterpart here, with the reason. Unknown keys are errors.
"""
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

from atlas_jax.fields import nearest
from atlas_jax.files.damage import Damaged
from atlas_jax.runtime.agents import load as agents

DEAD = "the SDK accepts this key and reads it nowhere"
GROUPS = ("agent", "tools", "teacher", "probe", "judges", "learner", "lanes", "store", "drift", "review",
          "metadata", "triage", "grader")
_OWN_PROMPTS = "prompts belong to the protocol of teachers here (rollout/teaching.py)"
_NO_SCHEMA = "a connect never changes the schema here; atlas init does"
_TRIES = "the SDK never read it; the runtime's own tries hold (tries, backoff_s)"
_BUDGET = "there is no digest of metadata in prompts here"


class SdkSettings(NamedTuple):
  """Settings that a file of the SDK asks for."""

  settings: dict[str, Any]   # group of `GROUPS` -> fields; groups that it does not name are missing
  warnings: tuple[str, ...]  # keys that have no effect, each with the reason


# A field's place here ("group.field"), a table of fields inside, or in brackets why it has no effect.
_LLM = {"provider": "{provider}", "model": "model", "api_key_env": "key_variable", "api_base": "url",
        "organization": f"[{DEAD}]", "temperature": "temperature", "top_p": "top_p",
        "max_output_tokens": "max_tokens", "timeout_seconds": "timeout_s", "retry": f"[{_TRIES}]",
        "additional_headers": "[put headers into a proxy; an endpoint here sends its key alone]",
        "reasoning_effort": "reasoning_effort"}
_FIELDS: dict[str, Any] = {
  "agent": "{agent}",
  "student": {
    "prompts": f"[{_OWN_PROMPTS}]", "prompt_guidance": f"[{DEAD}]", "max_plan_tokens": f"[{DEAD}]",
    "max_step_tokens": f"[{DEAD}]", "max_synthesis_tokens": f"[{DEAD}]", "tool_choice": "agent.tool_choice"},
  "teacher": {
    "llm": "{llm:teacher}", "max_review_tokens": "teacher.review_tokens",
    "plan_cache_seconds": "[plans are not cached: each session is reviewed]",
    "guidance_max_tokens": f"[{DEAD}]", "validation_max_tokens": "teacher.max_tokens",
    "prompts": f"[{_OWN_PROMPTS}]", "prompt_guidance": f"[{DEAD}]"},
  "orchestration": {
    "max_retries": "{retries}", "step_timeout_seconds": f"[{DEAD}]", "rim_guidance_tag": f"[{DEAD}]",
    "emit_intermediate_steps": f"[{DEAD}]", "forced_mode": "lanes.forced"},
  "rim": {
    "small_model": "{llm:judges.small}", "large_model": "{llm:judges.large}", "active_judges": f"[{DEAD}]",
    "variance_threshold": "judges.variance_threshold",
    "uncertainty_threshold": "judges.uncertainty_threshold",
    "parallel_workers": f"[{DEAD}]", "judge_prompt": "judges.rubric"},
  "learning": {
    "enabled": "learner.enabled", "update_enabled": "learner.updates", "llm": "{llm:learner}",
    "prompts": f"[{_OWN_PROMPTS}]", "history_limit": "learner.history",
    "provisional_acceptance": f"[{DEAD}]", "session_note_enabled": "[lessons are the only notes here]",
    "apply_to_prompts": "learner.applied", "schema": "[a learner's reply has one form here]",
    "rubric_weights": "[lessons are proven by randomised trials, not by a rubric]",
    "gates": {"allowed_proper_nouns": f"[{DEAD}]", **dict.fromkeys(
      ("enforce_actionability", "enforce_cue", "enforce_generality", "max_text_length",
       "banned_incident_tokens", "allow_length_overflow_margin"),
      "[gates of lessons are fixed here; see runtime/lessons.py]")},
    "usage_tracking": "[uses of lessons are always counted, from the trace]"},
  "storage": {
    "database_url": "store.database_url", "min_connections": "[the pool opens connections at need]",
    "max_connections": "store.connections", "statement_timeout_seconds": "store.statement_s",
    "apply_schema_on_connect": f"[{_NO_SCHEMA}]"},
  "prompt_rewrite": "[the SDK itself refuses or ignores it since 0.1.4]",
  "metadata": "metadata.",
  "adaptive_teaching": {
    "enabled": "lanes.adaptive", "certify_first_run": f"[{DEAD}]", "mode_override": "lanes.override",
    "triage_adapter": "triage.function", "default_tags": f"[{DEAD}]",
    "probe": {"llm": "{llm:probe}", "thresholds": {name: f"probe.{name}" for name in
                                                    ("auto", "paired", "coach")},
              "fallback_mode": "probe.fallback", "evidence_limit": f"[{DEAD}]",
              "timeout_seconds": "probe.call_s"},
    "reward": {"type": "{reward}", "import_path": "{reward}", "attribute": "{reward}",
               "parameters": "grader.parameters", "timeout_seconds": f"[{DEAD}]",
               "focus_prompt": "judges.focus"},
    "learning_history_limit": "lanes.history"},
  "runtime_safety": {
    "drift": {"enabled": "drift.enabled", "window": "drift.window", "z_threshold": "drift.z_threshold",
              "min_baseline": "drift.min_baseline"},
    "review": {"require_approval": "review.require_approval",
               "default_export_statuses": "review.export_statuses"}},
}
_AGENT = {
  "type": "{agent}", "name": "agent.name", "system_prompt": "agent.system", "tools": "{tools}",
  "llm": "{llm:agent}", "response_format": "agent.response_format", "metadata_digest": f"[{_BUDGET}]",
  "import_path": "{agent}", "attribute": "{agent}", "working_directory": "agent.folder",
  "allow_generator": "[generators are always joined]",
  "transport": {"base_url": "agent.url", "headers": "agent.headers", "timeout_seconds": "agent.timeout_s",
                "retry": f"[{_TRIES}]"},
  "payload_template": "{agent}", "result_path": "agent.result_path"}
_OF_TYPE = {"python": ("import_path", "attribute", "working_directory", "allow_generator", "llm"),
            "openai": ("llm", "response_format", "metadata_digest"),
            "litellm": ("llm", "response_format", "metadata_digest"),
            "http_api": ("transport", "payload_template", "result_path")}
_OF_ALL = ("type", "name", "system_prompt", "tools")
_KINDS = {"python": "python", "openai": "openai", "litellm": "openai", "http_api": "http"}
# Addresses of providers whose own interface is OpenAI's; others need api_base.
_PROVIDERS = {"openai": "https://api.openai.com/v1", "xai": "https://api.x.ai/v1",
              "gemini": "https://generativelanguage.googleapis.com/v1beta/openai"}
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load(file) -> SdkSettings:
  """Returns the settings of a file.

  Raises:
    FileNotFoundError: if it is not there.
    Damaged: if it is not YAML.
    ValueError: for an unknown key, or one that is missing, with its place.
  """
  path = pathlib.Path(file)
  try:
    given = yaml.safe_load(path.read_text())
  except (yaml.YAMLError, UnicodeDecodeError) as error:
    raise Damaged(path, error, "mend it") from error
  try:
    return read(given)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def read(given: Any) -> SdkSettings:
  """Returns the settings of a config that was read, see `load`."""
  if not isinstance(given, Mapping):
    raise ValueError(f"the config is {type(given).__name__}, not an object with agent, teacher and rim")
  reading = _Reading()
  for name in ("agent", "teacher"):
    if given.get(name) is None:
      raise ValueError(f"{name} is missing; the SDK needs it too")
  reading.table(given, _FIELDS, "")
  agent = reading.settings["agent"]
  if agent["kind"] != "openai" and agent.pop("tool_choice", "auto") != "auto":
    reading.warnings.append("student.tool_choice has no effect: the agent chooses its tools itself")
  agents.check(agent)
  return SdkSettings(reading.settings, tuple(reading.warnings))


class _Reading:
  """Settings that are being gathered."""

  def __init__(self):
    self.settings: dict[str, Any] = {}
    self.warnings: list[str] = []

  def table(self, given: Any, fields: Mapping[str, Any], at: str) -> None:
    """Reads an object by a table of its fields."""
    if given is None:
      return
    if not isinstance(given, Mapping):
      raise ValueError(f"{at or 'the config'} is {type(given).__name__}, not an object")
    for name, value in given.items():
      place = f"{at}.{name}" if at else str(name)
      if name not in fields:
        raise ValueError(f"{place} is no key of the SDK's config; {nearest(str(name), fields)}")
      self.field(value, fields[name], place, given)

  def field(self, value: Any, target: Any, place: str, around: Mapping[str, Any]) -> None:
    """Reads one field."""
    if isinstance(target, Mapping):
      self.table(value, target, place)
    elif target.startswith("["):
      self.warnings.append(f"{place} has no effect: {target[1:-1]}")
    elif target.startswith("{llm:"):
      if value is not None:
        self.put(target[5:-1], self.llm(value, place))
    elif target == "{retries}":
      if type(value) is not int or value < 0:
        raise ValueError(f"{place}={value!r} must be a whole number from 0 on")
      self.put("lanes.max_attempts", value + 1)
    elif target == "{reward}":
      self.reward(value, place, around)
    elif target == "{agent}" and place == "agent":
      self.agent(value)
    elif target == "metadata.":
      self.settings["metadata"] = dict(value or {})
    elif target == "{tools}":
      self.tools(value, place)
    elif not target.startswith("{") and value is not None:
      self.put(target, value)

  def put(self, target: str, value: Any) -> None:
    """Sets a field of a group; objects are merged."""
    group, _, name = target.partition(".")
    if not name:
      self.settings.setdefault(group, {}).update(value)
    else:
      self.settings.setdefault(group, {})[name] = value

  def llm(self, given: Any, at: str) -> dict[str, Any]:
    """Returns the settings of an endpoint."""
    inner = _Reading()
    inner.table(given, {name: target if target.startswith(("[", "{")) else f"x.{target}"
                        for name, target in _LLM.items()}, at)
    self.warnings += inner.warnings
    found = inner.settings.get("x", {})
    if "model" not in found:
      raise ValueError(f"{at}.model is missing")
    provider = given.get("provider", "openai")
    if "url" not in found:
      if provider not in _PROVIDERS:
        raise ValueError(f"{at}.provider={provider!r} has no address in OpenAI's form that is known here; "
                         f"set {at}.api_base to one, such as that of a gateway")
      found["url"] = _PROVIDERS[provider]
      found.setdefault("key_variable", "OPENAI_API_KEY")
      prefix = f"{provider}/"  # Of names that a gateway would take.
      found["model"] = found["model"].removeprefix(prefix)
    if "timeout_s" in found:
      found["deadline_s"] = 3 * found["timeout_s"]  # Of as many tries.
    effort = found.pop("reasoning_effort", None)
    if effort is not None:
      found["extra"] = {"reasoning_effort": effort}
    return found

  def agent(self, given: Any) -> None:
    """Reads the agent."""
    if not isinstance(given, Mapping):
      raise ValueError(f"agent is {type(given).__name__}, not an object")
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in _KINDS:
      raise ValueError(f"agent.type={kind!r} is no adapter of the SDK; {nearest(str(kind), _KINDS)}")
    allowed = (*_OF_ALL, *_OF_TYPE[kind])
    self.table(given, {name: _AGENT[name] for name in allowed}, "agent")
    found = self.settings.setdefault("agent", {})
    found["kind"] = _KINDS[kind]
    if kind == "python":
      if not given.get("import_path"):
        raise ValueError("agent.import_path is missing; it names the module of the agent")
      module, _, name = str(given["import_path"]).partition(":")
      name = given.get("attribute") or name
      if not name:
        raise ValueError("agent.attribute is missing; it names the function of the agent")
      self.settings["agent"] = {"kind": "python", "function": f"{module}:{name}",
                                **{field: found[field] for field in ("name", "folder") if field in found}}
      self.warnings += [f"agent.{field} has no effect: the function asks its own models with its own prompts"
                        for field in ("system_prompt", "llm") if given.get(field)]
    elif kind == "http_api":
      self._http(given, found)
    elif "model" not in found:
      raise ValueError("agent.llm is missing; it names the model")
    elif found.pop("response_format", None) is not None:
      found.setdefault("extra", {})["response_format"] = given["response_format"]

  def _http(self, given: Mapping[str, Any], found: dict[str, Any]) -> None:
    if "url" not in found:
      raise ValueError("agent.transport.base_url is missing")
    template = dict(given.get("payload_template") or {})
    if "prompt" in template:
      raise ValueError("agent.payload_template.prompt takes the place of the task, which is then never sent; "
                       "remove it, or name it otherwise")
    found["template"] = {"prompt": "{task}", "metadata": "{metadata}", **_literal(template)}
    if found.pop("system", None) is not None:
      self.warnings.append("agent.system_prompt has no effect: the service behind the address has its own")
    headers = found.get("headers") or {}
    for name, value in list(headers.items()):
      variable = _VARIABLE.fullmatch(str(value))
      if variable:
        found.setdefault("header_variables", {})[name] = variable[1]
        del headers[name]
      elif name.lower() in ("authorization", "x-api-key", "api-key"):
        raise ValueError(f"agent.transport.headers.{name} holds a key in the file; put it into a variable of "
                         f"the environment, and write {name}: ${{THAT_VARIABLE}}")

  def tools(self, given: Any, at: str) -> None:
    """Reads declarations of tools: the SDK has no code for them, so that each needs a function here."""
    if not isinstance(given, list):
      raise ValueError(f"{at} is {type(given).__name__}, not a list")
    for number, one in enumerate(given):
      place = f"{at}[{number}]"
      inner = _Reading()
      inner.table(one, dict.fromkeys(("name", "description", "parameters", "output_schema", "outputSchema"),
                                     "x.y"), place)
      if not one.get("name"):
        raise ValueError(f"{place}.name is missing")
      self.settings.setdefault("tools", []).append({
        "name": one["name"], "description": one.get("description", ""),
        "schema": one.get("parameters") or {}})
      self.warnings.append(f"{place} ({one['name']}) declares a tool without code, which crashes the SDK "
                           "when it is called; name a function for it (kind python) or its server (kind mcp)")

  def reward(self, value: Any, place: str, around: Mapping[str, Any]) -> None:
    """Reads a reward that is a Python function; "rim" is the default."""
    name = place.rpartition(".")[2]
    if name == "type":
      if value not in ("rim", "python"):
        raise ValueError(f"{place}={value!r} must be rim or python")
      if value == "python" and not around.get("import_path"):
        raise ValueError(f"{place.removesuffix('type')}import_path is missing; it names the reward")
    elif around.get("type") != "python":
      if value is not None:
        self.warnings.append(f"{place} has no effect: the reward's type is rim")
    elif name == "import_path":
      attribute = around.get("attribute")
      self.put("grader.function", f"{value}:{attribute}" if attribute else str(value))


def _literal(value: Any) -> Any:
  """Returns a value of a template whose braces stand for themselves."""
  if isinstance(value, str):
    return value.replace("{", "{{").replace("}", "}}")
  if isinstance(value, Mapping):
    return {name: _literal(one) for name, one in value.items()}
  return [_literal(one) for one in value] if isinstance(value, list) else value


def variables(settings: Mapping[str, Any]) -> list[str]:
  """Returns the environment's variables that settings name and that are not set now."""
  found = []
  for name, value in settings.items():
    if isinstance(value, Mapping):
      if name == "header_variables":
        found += [str(one) for one in value.values() if one not in os.environ]
      else:
        found += variables(value)
    elif name == "key_variable" and value is not None and value not in os.environ:
      found.append(str(value))
  return sorted(set(found))
