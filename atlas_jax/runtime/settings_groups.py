"""Settings of the runtime by groups, as `settings.of_config` fills them from a config."""
import dataclasses
from collections.abc import Mapping
from typing import Any

from atlas_jax.rollout.endpoint_settings import EndpointSettings
from atlas_jax.runtime.lesson_states import LessonBookSettings
from atlas_jax.runtime.memory_streams import StreamSettings
from atlas_jax.runtime.pool import PoolSettings
from atlas_jax.runtime.proxy import ProxySettings
from atlas_jax.runtime.redaction import RedactionSettings
from atlas_jax.runtime.reflection import ReflectionSettings
from atlas_jax.runtime.route import RoutePolicy
from atlas_jax.runtime.session import SessionSettings
from atlas_jax.runtime.store_settings import StoreSettings
from atlas_jax.runtime.task_eval import EvalSettings
from atlas_jax.runtime.watching import WatchSettings


class ConfigError(ValueError):
  """A config that cannot be: it names the field or file, and what to do."""


@dataclasses.dataclass(frozen=True)
class ModelSettings:
  """A model that is asked: teacher, probe and others.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  kind: str  # "none", "function" or "endpoint"
  function: str | None = None
  endpoint: EndpointSettings | None = None
  templates: str = "agent"
  max_tokens: int = 1_024
  temperature: float = 0.0
  deadline_s: float = 180.0  # of a reply; of an endpoint, of all its tries

  def __post_init__(self):
    if self.kind == "function" and not self.function:
      raise ValueError("function=None with kind='function'; name it as FILE.py:NAME or package.module:NAME")


@dataclasses.dataclass(frozen=True)
class DeploySettings:
  """Trials of new versions; see the fields of config.deploy."""

  canary: float = 0.1
  pairs: int = 40
  delta_lower: float = -0.02
  ndr: float = 0.97
  probes: int = 20
  parse_fraction: float = 0.95
  port: int = 0
  start_s: float = 300.0
  folder: str = ".atlas/servers"


@dataclasses.dataclass(frozen=True)
class LoopSettings:
  """Rounds of a loop do; see the fields of config.loop."""

  tasks: str | None = None
  held_out: str | None = None
  folder: str = ".atlas/loop"
  review: str = "graded"
  reviewer: str = "atlas loop"
  train: str = ""
  trainer: str | None = None
  url: str | None = None
  concurrency: int = 16
  learn: bool = False


@dataclasses.dataclass(frozen=True)
class OptimiseSettings:
  """A search for a better system message; see the fields of config.optimise."""

  role: str = "agent"           # whose it is: "agent" or "teacher"
  templates: str | None = None  # to begin with; None: the role's own
  tasks: str | None = None      # FILE.jsonl; None: tasks of reviewed sessions
  most_tasks: int = 64
  folder: str = ".atlas/optimise"
  out: str = ".atlas/optimise/templates.json"
  model: ModelSettings = ModelSettings("none")
  search: ReflectionSettings = ReflectionSettings(200)


@dataclasses.dataclass(frozen=True)
class RuntimeSettings:
  """All settings of a runtime, each part's own; `of_config` makes them."""

  tenant: str
  metadata: Mapping[str, Any]
  agent: Mapping[str, Any]           # {"kind": ..., and its options}
  agent_templates: str
  tools: tuple[Mapping[str, Any], ...]
  teacher: ModelSettings
  probe: ModelSettings
  grader: str | None
  judges: Mapping[str, Any] | None   # changes of config.rim; None: no judges
  session: SessionSettings
  lane: str | None
  policy: RoutePolicy
  pool: PoolSettings
  store: StoreSettings
  watch: WatchSettings
  redaction: RedactionSettings
  proxy: ProxySettings
  lessons: LessonBookSettings | None  # None: there is no memory of lessons
  learner: ModelSettings
  triage: ModelSettings
  streams: StreamSettings
  deploy: DeploySettings
  loop: LoopSettings
  evaluation: EvalSettings
  optimise: OptimiseSettings
