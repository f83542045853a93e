"""A config of the Atlas SDK as one of the runtime: what has a field here, and what has none, by name."""
from collections.abc import Mapping
from typing import Any, NamedTuple

from atlas_jax.runtime import sdk_config, settings

MODEL = {"model": "served_as", "url": "url", "key_variable": "key_variable", "temperature": "temperature",
         "max_tokens": "max_tokens", "timeout_s": "timeout_s", "deadline_s": "deadline_s"}
JUDGE_ENDPOINT = ("url", "key_variable", "timeout_s", "deadline_s")
# Place in the SDK's file -> why what stands there has no effect here.
UNUSED = {
    "drift": ("runtime_safety.drift", "drift is looked for by config.telemetry's alerts here"),
    "review": ("runtime_safety.review", "sessions wait for a reviewer here unless a program graded them, and "
                                        "exports take --include-status")}


class SdkRead(NamedTuple):
  """The outcome of reading a file of the SDK."""

  config: Any                # of the runtime
  warnings: tuple[str, ...]  # keys that have no effect, each with the reason


def read(file: str, overrides: Mapping[str, str] | None = None) -> SdkRead:
  """Returns the runtime's config that a file of the SDK asks for.

  Args:
    file: YAML.
    overrides: dotted field of the runtime's config -> value as text, which count last.

  Raises:
    ValueError: for a file, key or value that cannot be, naming it.
  """
  try:
    found = sdk_config.load(file)
  except FileNotFoundError as error:
    raise settings.ConfigError(f"--sdk-config={file}: there is no such file; give the YAML of an SDK's agent"
                               ) from error
  reading = _Fields(found.settings)
  try:
    reading.fill()
    config = settings.changed(reading.config, overrides or {})
  except settings.ConfigError as error:
    raise settings.ConfigError(f"--sdk-config={file}: {error}") from error
  return SdkRead(config, (*found.warnings, *reading.warnings))


class _Fields:
  """A config that is being filled."""

  def __init__(self, given: Mapping[str, Mapping[str, Any]]):
    self.config = settings.default()
    self.warnings: list[str] = []
    self._given = given

  def fill(self) -> None:
    given = self._given
    agent = dict(given["agent"])
    self.put("agent.kind", agent.pop("kind"))
    self.put("agent.options", agent)
    self.model("teacher", given["teacher"], "teacher.llm")
    self.probe(given.get("probe", {}))
    self.rewards(given.get("judges", {}), given.get("grader", {}))
    self.learning(given.get("learner", {}))
    self.lanes(given.get("lanes", {}))
    store = given.get("store", {})
    if "database_url" in store:
      self.put("store.url", store["database_url"])
    self.unused(store, ("connections", "statement_s"), "storage", "the store has limits of its own here")
    if (function := given.get("triage", {}).get("function")) is not None:
      self.put("triage.kind", "function")
      self.put("triage.function", function)
    self.put("metadata", dict(given.get("metadata", {})))
    for group, (place, why) in UNUSED.items():
      if given.get(group):
        self.warnings.append(f"{place} ({', '.join(given[group])}) has no effect: {why}")

  def put(self, name: str, value: Any) -> None:
    """Sets a field of the runtime's config."""
    group, _, last = name.rpartition(".")
    owner = self.config
    for part in filter(None, group.split(".")):
      owner = owner[part]
    try:
      owner[last] = value
    except TypeError:
      kind, optional = settings.TYPES[name]
      raise settings.ConfigError(f"config.{name}={value!r} must be {settings.KINDS[kind]}"
                                 f"{', or None' if optional else ''}") from None

  def unused(self, given: Mapping[str, Any], names, place: str, why: str) -> None:
    """Names fields that are given and have no counterpart."""
    self.warnings += [f"{place}: {name}={given[name]!r} has no effect: {why}" for name in names
                      if name in given]

  def model(self, group: str, given: Mapping[str, Any], place: str) -> None:
    """Fills a model that is asked."""
    if "model" not in given:
      return
    self.put(f"{group}.kind", "endpoint")
    for name, here in MODEL.items():
      if name in given:
        self.put(f"{group}.{here}", given[name])
    self.unused(given, ("top_p", "extra", "review_tokens"), place,
                "requests of this model have no such field here")

  def probe(self, given: Mapping[str, Any]) -> None:
    """Fills the probe, and the thresholds of routing by its word."""
    self.model("probe", given, "adaptive_teaching.probe.llm")
    for name in ("auto", "paired", "coach"):
      if name in given:
        self.put(f"routing.{name}_from", given[name])
    if "fallback" in given:
      self.put("routing.fallback", given["fallback"])
    if "call_s" in given:
      self.put("probe.timeout_s", given["call_s"])
      self.put("probe.deadline_s", max(self.config.probe.timeout_s, self.config.probe.deadline_s))
    if given and "model" not in given:
      self.warnings.append("adaptive_teaching.probe has no llm: no probe is asked, where the SDK asks a "
                           "third party's model")

  def rewards(self, judges: Mapping[str, Any], grader: Mapping[str, Any]) -> None:
    """Fills the grader, else the judges."""
    if "function" in grader:
      self.put("grader", grader["function"])
      if judges:
        self.warnings.append("rim has no effect: the reward is the function of adaptive_teaching.reward")
    elif "small" in judges:
      small, large = judges["small"], judges.get("large", {})
      options: dict[str, Any] = {
          "mode": "session", "models": {"small_model": small["model"]},
          "endpoint": {name: small[name] for name in JUDGE_ENDPOINT if name in small}}
      if "max_tokens" in small:
        options["model_configs"] = {"default": {"max_tokens": small["max_tokens"]}}
      if large:
        options["models"]["large_model"] = large["model"]
        options["large_endpoint"] = {name: large[name] for name in JUDGE_ENDPOINT[:2] if name in large}
      options |= {name: judges[name] for name in ("variance_threshold", "uncertainty_threshold")
                  if name in judges}
      self.put("judges.on", True)
      self.put("judges.options", options)
      for name, one in (("small_model", small), ("large_model", large)):
        self.unused(one, ("temperature", "top_p", "extra"), f"rim.{name}",
                    "judges are asked at fixed temperatures here")
      self.unused(large, ("timeout_s", "max_tokens"), "rim.large_model", "it is that of the small model here")
    self.unused(judges, ("rubric", "focus"), "rim", "the texts of judges are fixed here")
    self.unused(grader, ("parameters",), "adaptive_teaching.reward", "a reward here takes none")

  def learning(self, given: Mapping[str, Any]) -> None:
    """Fills lessons and their learner."""
    self.unused(given, ("history",), "learning", "a learner is shown one session here")
    wanted = given.get("enabled", True) and given.get("updates", True)
    if "model" not in given:
      return
    if not (wanted and given.get("applied", True)):
      self.warnings.append("learning.llm has no effect: learning, its updates or its use in prompts is off")
      return
    self.put("lessons.on", True)
    self.model("learner", given, "learning.llm")

  def lanes(self, given: Mapping[str, Any]) -> None:
    """Fills attempts and a fixed lane."""
    if "max_attempts" in given:
      self.put("session.max_attempts", given["max_attempts"])
    fixed = given.get("forced") or ("paired" if given.get("adaptive") is False else given.get("override"))
    if fixed is not None:
      self.put("routing.lane", fixed)
      if self._given.get("triage", {}).get("function"):
        self.warnings.append("adaptive_teaching.triage_adapter has no effect: the lane is fixed")
    self.unused(given, ("history",), "adaptive_teaching", "the newest 200 sessions are looked at here")
