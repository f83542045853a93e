"""Every setting of the runtime, of configs/runtime.py and others like it; a config of their own, no
training's."""
import ml_collections
from ml_collections import config_dict

from atlas_jax.defaults import bounds
from atlas_jax.defaults.bounds import above_zero, at_least, at_most, fraction, one_of

OPTIONAL = config_dict.placeholder
# Groups whose fields are not listed here: who reads them checks them.
FREE = ("agent.options", "budget.prices", "judges.options", "lessons.written", "tools", "metadata")
LANES = "auto paired coach escalate"


def default() -> ml_collections.ConfigDict:
  """Returns every field of the runtime with a working value."""
  made = ml_collections.ConfigDict(bounds.plain(_fields())).lock()
  for name in FREE:
    group = made
    for part in name.split("."):
      group = group[part]
    group.unlock()
  return made


def bounded() -> dict[str, bounds.Bounded]:
  """Returns the bounds and choices of fields by dotted name."""
  return bounds.collect(_fields())


def types() -> dict[str, tuple[type, bool]]:
  """Returns the type of each field, and whether it may be None."""
  return _types(default(), "", bounded())


def _types(config, prefix: str, known: dict) -> dict[str, tuple[type, bool]]:
  found: dict[str, tuple[type, bool]] = {}
  for name in config:
    full, kind = prefix + name, config.get_type(name)
    if kind is ml_collections.ConfigDict:
      found.update({} if full in FREE else _types(config[name], f"{full}.", known))
    else:
      found[full] = kind, config[name] is None or full in known and known[full].may_be_none
  return found


def _fields() -> dict:
  return {
      "tenant": "default",  # Whose sessions and lessons these are.
      "metadata": {},  # What every session's record says besides, by name.
      "agent": {
          "kind": one_of("python", "python openai http graph"),  # How the student is called.
          "options": {},  # Of that kind by name, such as {"function": "my_agent.py:answer"}.
          "templates": "agent",  # Texts that it is asked with: a set of `rollout.teaching`, or a JSON file.
      },
      "tools": {},  # Name -> tool or MCP server of the agent, see runtime/agents/tool_box.py.
      "teacher": _model("none"),
      "probe": _model("none"),
      # Looks at a task before it is routed, and can only make supervision stricter: a function of task and
      # metadata that returns {"summary", "risks", "tags"}, or a model.
      "triage": _model("none"),
      "grader": bounds.or_none("correct"),  # A reward by name, as in config.rewards; None: nothing grades.
      "judges": {
          "on": False,  # Whether judges score what no grader does.
          "options": {},  # Fields of config.rim that differ, such as {"backend": "scripted"}.
      },
      "lessons": _lessons(),
      "memory_streams": _memory_streams(),
      "learner": _model("none"),  # Writes lessons; none: only those that are there are shown.
      "session": _session(),
      "budget": {  # Of one session; None: any.
          "tokens": at_least(1, OPTIONAL(int)),  # Of all roles, prompts and completions.
          "calls": at_least(1, OPTIONAL(int)),  # Of models.
          "money": above_zero(OPTIONAL(float)),  # By prices.
          "prices": {},  # Role -> money for 1,000 tokens of prompts and of completions, such as (0.1, 0.3).
      },
      "routing": _routing(),
      "pool": {
          "sessions": at_least(1, 256),  # At the same time.
          "tenant": at_least(1, 32),  # Of one tenant at the same time.
          "queue": at_least(1, 4_096),  # That wait; more are refused.
      },
      "store": _store(),
      "telemetry": _telemetry(),
      "redaction": {
          "keys": "",  # Names of more keys whose values are secrets, with commas.
          "environment": "",  # Variables of the environment whose values are secrets, with commas.
      },
      "proxy": _proxy(),
      "deploy": _deploy(),
      "loop": _loop(),
      "eval": _eval(),
      "optimise": _optimise(),
  }


def _model(kind: str) -> dict:
  return {
      # Who answers: nobody ("none"), a Python function of messages, or an endpoint with OpenAI's routes.
      "kind": one_of(kind, "none function endpoint"),
      "function": OPTIONAL(str),  # kind="function": FILE.py:NAME or package.module:NAME.
      "url": OPTIONAL(str),  # kind="endpoint": up to the version, such as http://127.0.0.1:8000/v1.
      "served_as": OPTIONAL(str),  # Its name there.
      "key_variable": OPTIONAL(str),  # Variable of the environment with the key; None: none is sent.
      "form": one_of("chat", "chat texts"),  # "texts": for a model without a chat template.
      "response_format": one_of("json_schema", "json_schema json_object none"),  # What carries a schema.
      "templates": "agent",  # Texts that it is asked with: a set of `rollout.teaching`, or a JSON file.
      "max_tokens": at_least(1, 1_024),  # Of a reply.
      "temperature": at_least(0, 0.0),  # 0: the likeliest reply.
      "timeout_s": above_zero(60.0),  # Of one try.
      "deadline_s": above_zero(180.0),  # Of all tries of one reply.
      "tries": at_least(1, 3),  # Requests for one reply, at most.
      "parallel_requests": at_least(1, 64),  # At the same time.
  }


def _session() -> dict:
  return {
      "session_s": above_zero(600.0),  # Seconds of a session until its answer,
      "step_s": above_zero(300.0),  # of a step in it,
      "call_s": above_zero(60.0),  # and of one call of agent or teacher.
      "max_attempts": at_least(1, 2),  # At a step.
      "max_steps": at_least(1, 12),  # Of a plan.
      "tool_rounds": at_least(1, 8),  # Calls of the agent for one answer.
      # Whether the student says first how it would begin: for a teacher trained with teacher.shown=probe.
      "approach": False,
      "on_failed": one_of("last", "last first raise"),  # Which answer counts where none passed.
      # Without a verdict: "open" gives the answer, "closed" asks a person.
      "on_teacher_error": one_of("open", "open closed"),
  }


def _routing() -> dict:
  return {
      "lane": one_of(OPTIONAL(str), LANES),  # Of all sessions; None: chosen for each.
      "auto_from": fraction(0.85),  # Confidence of the probe from which its word is auto,
      "paired_from": fraction(0.65),  # paired,
      "coach_from": fraction(0.35),  # coach; below, escalate.
      "fallback": one_of("paired", "paired coach escalate"),  # Lane without a confidence.
      "least": at_least(1, 5),  # Outcomes without which a session is paired at least.
      "auto_lower": fraction(0.7),  # Lower bound of the chance to be right that auto needs.
      "coach_below": fraction(0.4),  # Mean below which a session is coached,
      "escalate_below": fraction(0.2),  # and below which it is escalated.
      "certify": False,  # Whether auto needs a certification besides.
      "audit_fraction": fraction(0.05),  # Of auto sessions that are validated in the shadow.
  }


def _lessons() -> dict:
  return {
      "on": False,  # Whether sessions are shown lessons of earlier ones.
      "shown": at_least(1, 5),  # Lessons in a session, at most,
      "chars": at_least(1, 1_000),  # and characters of their text.
      "trials": at_least(1, 5),  # Lessons of a family of tasks that are tried at once; others wait.
      "waiting": at_least(1, 20),  # Lessons that wait, with which the learner is asked no more.
      "uses": at_least(1, 1_000),  # Sessions that a lesson fits, after which its trial ends in any case.
      "rule": one_of("looks", "looks spec"),  # Of trials, see runtime/lesson_trials.py.
      "read_s": above_zero(10.0),  # Seconds for which reviews of sessions, and trials, are not read again.
      "legacy": False,  # Whether lessons are kept by the rules of the Atlas SDK.
      "written": {},  # Name -> lesson of a person, {"audience", "cue", "action"}, which is shown at once.
  }


def _store() -> dict:
  return {
      "url": "sqlite:///.atlas/atlas.db",  # Or postgresql://..., or env:NAME for a variable that has it.
      "spool": ".atlas/spool",  # Folder of sessions that wait for a store that is down.
      "batch_rows": at_least(1, 200),  # Events that are written together, at most,
      "batch_s": above_zero(0.25),  # and the seconds that they wait, at most.
      "lease_s": above_zero(30.0),  # After which a session whose process is silent may be taken over.
      "heartbeat_s": above_zero(10.0),  # Between signs of life.
      "retry_s": above_zero(5.0),  # Between tries of a store that is down.
      # Between looks for sessions whose process is gone, which are taken up; None: at the start alone, and by
      # `atlas resume`.
      "reap_s": bounds.or_none(above_zero(60.0)),
  }


def _telemetry() -> dict:
  return {
      "events_file": OPTIONAL(str),  # Every event is appended to it as a JSON line; None: to no file.
      "folder": OPTIONAL(str),  # Whose metrics.jsonl gets rows of counts, which the dashboard shows.
      "every_s": above_zero(10.0),  # Seconds between two rows.
      "port": at_most(0, 65_535, OPTIONAL(int)),  # Of events over HTTP, as Server-Sent Events; None: of none.
      "host": "127.0.0.1",  # Who else may read needs a token.
      "token_variable": OPTIONAL(str),  # Variable of the environment with the token; None: none is asked for.
  }


def _proxy() -> dict:
  return {
      "upstream": "http://127.0.0.1:8000/v1",  # The endpoint that answers.
      "host": "127.0.0.1",  # Who else may ask needs a token.
      "port": at_most(1, 65_535, 8_091),
      "token_variable": OPTIONAL(str),  # Variable with the token that agents must send; None: none.
      "key_variable": OPTIONAL(str),  # Variable with the endpoint's key; None: that of the agent is sent on.
      # Whether ids and log-probabilities are asked for: of our own server ("auto"), of any, or of none.
      "token_ids": one_of("auto", "auto always never"),
      "idle_s": above_zero(300.0),  # Seconds without an exchange after which a session ends.
      "timeout_s": above_zero(600.0),  # Of an answer of the endpoint.
  }


def _deploy() -> dict:
  return {
      "canary": fraction(0.1),  # Fraction of the sessions that a new version gets until it is promoted.
      "pairs": at_least(1, 40),  # Tasks that both versions have done before they are compared.
      "delta_lower": at_most(-1, 1, -0.02),  # Least lower bound, of 90%, of the gain in accuracy.
      "ndr": fraction(0.97),  # Least fraction of tasks that do not become worse.
      "probes": at_least(1, 20),  # Prompts of the self-test,
      "parse_fraction": fraction(0.95),  # and the fraction of replies that must be readable.
      "port": at_most(0, 65_535, 0),  # That a server which is started listens at; 0: a free one.
      "start_s": above_zero(300.0),  # Seconds that it may take until it is healthy.
      "folder": ".atlas/servers",  # Of logs and process ids of servers.
  }


def _loop() -> dict:
  return {
      "tasks": OPTIONAL(str),  # FILE.jsonl of tasks that rounds run; needed by `atlas loop`.
      "held_out": OPTIONAL(str),  # FILE.jsonl of tasks that rounds are measured on; needed by `atlas loop`.
      "folder": ".atlas/loop",  # Of what the rounds have done.
      # Who reviews: "graded" approves sessions that a program found right or wrong, "none" waits for a
      # person.
      "review": one_of("graded", "graded none"),
      # Whether a round learns lessons from its sessions that were approved, a person's among them.
      "learn": False,
      "reviewer": "atlas loop",  # Name in the log of reviews.
      "train": "",  # What the training is told besides, such as "--config=configs/teacher_rcl.py:cpu".
      # Program that trains, given --export-path, --output-dir and loop.train; None: `atlas train`.
      "trainer": OPTIONAL(str),
      "url": OPTIONAL(str),  # Of a server that serves what was trained; None: one is started each round.
      "concurrency": at_least(1, 16),  # Sessions at the same time.
  }


def _memory_streams() -> dict:
  return {
      "on": False,  # Whether sessions of a family go on in one memory of a model behind our server.
      "role": one_of("student", "student teacher"),  # Whose model that is.
      "most_tokens": at_least(1, 16_384),  # Of a stream that is read; behind a longer one a new one begins.
      "most_streams": at_least(1, 64),  # Of a family of tasks that are kept; the oldest are deleted.
  }


def _eval() -> dict:
  return {
      "samples": at_least(1, 1),  # Of each task.
      "concurrency": at_least(1, 16),  # Samples at the same time.
      "retry_errors": False,  # Whether samples that ended without an answer are asked again.
      "right_from": fraction(1.0),  # Score from which a sample counts as right, for pass@k.
      "seed": bounds.seed(0),  # Of the draws of intervals.
  }


def _optimise() -> dict:
  return {
      "role": one_of("agent", "agent teacher"),  # Whose system message is rewritten.
      # A set of `rollout.teaching` or a JSON file to begin with; None: the role's own.
      "templates": OPTIONAL(str),
      "tasks": OPTIONAL(str),  # FILE.jsonl to try texts on; None: tasks of reviewed sessions of the store.
      "most_tasks": at_least(2, 64),  # Of those; where there are more, so many are drawn by the seed.
      "folder": ".atlas/optimise",  # Of the search's log, from which it goes on.
      "out": ".atlas/optimise/templates.json",  # Where the templates are written to.
      "model": _model("none"),  # Reflects; needed by `atlas optimise`.
      "metric_calls": at_least(1, 200),  # Budget: tries of a text on a task, those of held-out tasks too.
      "held_out_frac": bounds.open_fraction(0.5),  # Of the tasks, which decide what is reported.
      "minibatch": at_least(1, 3),  # Tasks that are reflected on, and that a new text must do better first.
      "most_reflections": at_least(1, 100),  # Asks of the reflecting model.
      "most_chars": at_least(1, 4_000),  # Of a text.
      "concurrency": at_least(1, 16),  # Tries at the same time.
      "seed": bounds.seed(0),  # Of what is drawn.
  }
