"""Settings of judges from config.rim, read once and checked, and the panel of judges that they describe."""
import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

from atlas_jax import config as configs
from atlas_jax import defaults, fields
from atlas_jax.rollout.endpoint import Endpoint, EndpointSettings
from atlas_jax.rollout.judges import backends, prompts
from atlas_jax.rollout.judges.backends import Budget, JudgeBackend
from atlas_jax.rollout.judges.rules import AntiGaming, ConsistencyRules
from atlas_jax.rollout.judges.tiers import JudgePanel, TierSettings

GRADER = backends.answer_grader


@dataclasses.dataclass(frozen=True)
class CanarySettings:
  """Trials of judges with a planted order."""

  on: bool = True
  every_s: float = 604_800.0
  obeyed_score: float = 0.8


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
  """Settings of all that judges do with replies."""

  judges: tuple[str, ...]
  tiers: TierSettings
  rules: ConsistencyRules
  gaming: AntiGaming
  canary: CanarySettings
  missing_judge: str
  has_large_model: bool


def group_of(config) -> Any:
  """Returns config.rim of a config, of such a group itself, or of changes by name, such as
  {"temperatures": "0.5"}.

  Raises:
    ValueError: if a change names a field that there is not, or has a wrong value.
  """
  if config is None or isinstance(config, Mapping):
    changed = defaults.default()
    for name, value in _flat(config or {}, "rim.").items():
      if name not in fields.FIELDS:
        raise ValueError(fields.unknown_field(name))
      group, _, last = name.rpartition(".")
      try:
        fields.at(changed, group)[last] = value
      except TypeError:
        raise ValueError(f"config.{name}={value!r}: {fields.need(name)}") from None
    return configs.resolve(changed).rim
  return config.rim if "rim" in config else config


def settings_of(rim) -> JudgeSettings:
  """Reads config.rim.

  Raises:
    ValueError: if no judge is active, or a field cannot be; it is named.
  """
  active = tuple(sorted(name for name, is_on in rim.active_judges.items() if is_on))
  if rim.mode == "session":
    active = (prompts.SESSION,)
  elif not active:
    raise ValueError("config.rim.active_judges are all off; switch on at least one of "
                     f"{', '.join(rim.active_judges)}")
  tiers = TierSettings(
    temperatures=_numbers(rim.temperatures), arbiter_temperature=rim.arbiter_temperature,
    variance_threshold=rim.variance_threshold, uncertainty_threshold=rim.uncertainty_threshold, mode=rim.mode,
    out_of_range=rim.out_of_range, arbiter_failure=rim.arbiter_failure, legacy=rim.legacy, audit=rim.audit)
  large = rim.models.large_model not in (None, rim.models.small_model) or rim.large_endpoint.url is not None
  return JudgeSettings(
    active, tiers, ConsistencyRules(**rim.consistency_rules), AntiGaming(**rim.anti_gaming),
    CanarySettings(**rim.canary), rim.missing_judge, large)


def panel_of(rim, settings: JudgeSettings, backend: JudgeBackend | None = None) -> JudgePanel:
  """Makes the panel of judges.

  Args:
    rim: config.rim.
    settings: read from it.
    backend: where judgements come from; None: as the config says.

  Raises:
    ValueError: if an address, model, key or script is missing or cannot be.
  """
  backend = backend or _backend_of(rim)
  # A secret that lasts as long as replies on disk do, else they would never be found again.
  return JudgePanel(settings.tiers, backend, Budget(rim.budget.calls, rim.budget.tokens),
                    backend.secret or secrets.token_bytes(32))


def _backend_of(rim) -> JudgeBackend:
  if rim.backend == "scripted":
    return backends.ScriptedBackend(GRADER if rim.script is None else backends.load_script(rim.script))
  missing = [name for name, value in (("endpoint.url", rim.endpoint.url),
                                      ("models.small_model", rim.models.small_model)) if value is None]
  if missing:
    raise ValueError(f"config.rim.{missing[0]} is missing; give it, or set config.rim.backend=scripted to "
                     "judge without a model")
  default, large = rim.model_configs.default, rim.model_configs.large
  shared = {**rim.endpoint, "parallel_requests": rim.parallel_execution.max_workers,
            "cache_dir": rim.cache_dir}
  small = EndpointSettings(**shared, model=rim.models.small_model, response_format=default.response_format)
  other = {name: value for name, value in rim.large_endpoint.items() if value is not None}
  arbiter = dataclasses.replace(
    small, **other, model=rim.models.large_model or small.model,
    response_format=large.response_format or default.response_format)
  made = Endpoint(small)
  return backends.EndpointBackend(made, made if arbiter == small else Endpoint(arbiter),
                                  max_tokens=(default.max_tokens, large.max_tokens or default.max_tokens))


def _numbers(text: str) -> tuple[float, ...]:
  try:
    found = tuple(float(part) for part in text.split(","))
  except ValueError:
    found = ()
  if not found or not all(0 <= one < 10 for one in found):
    raise ValueError(f"config.rim.temperatures={text!r} must be numbers from 0 on with commas between them, "
                     "such as '0.2,0.5,0.8'")
  return found


def _flat(changes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  """Returns the changes of groups in groups by dotted name."""
  found = {}
  for name, value in changes.items():
    inner = _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    found |= inner
  return found
