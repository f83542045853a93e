"""Sources of judgements: chat endpoints, or a script that needs neither network nor key.

vLLM and this project's own server (--mode=serve) have the same routes as OpenAI: their address is all that
an endpoint needs.
"""
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from atlas_jax.files import json_lines
from atlas_jax.rollout import answers, reply_schema, user_functions
from atlas_jax.rollout.endpoint import Endpoint, EndpointError
from atlas_jax.rollout.judges import group_prompts, prompts
from atlas_jax.rollout.judges.case import Case

SMALL, ARBITER, CANARY = "small", "arbiter", "canary"
SCRIPT_FIELDS = {"judge": str, "stage": str, "temperature": (int, float), "contains": str, "reply": object,
                 "error": str}


class JudgeCall(NamedTuple):
  """A judgement that is asked for."""

  judge: str
  stage: str  # SMALL, ARBITER or CANARY
  temperature: float
  case: Case
  messages: Sequence[Mapping[str, Any]]
  is_arbiter: bool = False  # whether the large model is asked
  raw: bool = False  # whether the text is wanted as it is, for the quirks of `verdicts.read_legacy`
  schema: Mapping[str, Any] = prompts.SCHEMA  # of the reply


class JudgeReply(NamedTuple):
  """A judgement as it came."""

  data: Any  # a value that fits the call's schema; with `raw` whatever it is
  tokens: int | None = 0  # of the prompt and the reply; None: not known
  is_cached: bool = False


class JudgeBackend(Protocol):
  """Answers judgements that are asked for."""

  secret: bytes | None  # of boundaries; None: any

  async def ask(self, call: JudgeCall) -> JudgeReply:
    """Returns a reply; raises EndpointError if there is none."""


class BudgetError(Exception):
  """A judgement that was not asked for, since the budget is spent."""


class Budget:
  """Calls and tokens that may be spent.

  Attributes:
    calls, tokens: spent so far, cached replies apart.
  """

  def __init__(self, calls: int | None, tokens: int | None):
    """Takes the most of both; None: any number."""
    self.calls = 0
    self.tokens = 0
    self._most = calls, tokens
    self._lock = threading.Lock()

  def take_call(self) -> None:
    """Counts a call before it is made.

    Raises:
      BudgetError: if none is left.
    """
    calls, tokens = self._most
    with self._lock:
      if calls is not None and self.calls >= calls:
        raise BudgetError(f"all {calls} calls are spent")
      if tokens is not None and self.tokens >= tokens:
        raise BudgetError(f"{self.tokens} tokens of {tokens} are spent")
      self.calls += 1

  def give_back(self) -> None:
    """Takes a call back that was never sent."""
    with self._lock:
      self.calls -= 1

  def settle(self, reply: JudgeReply) -> None:
    """Counts a call's tokens, or gives it back if the reply was on disk."""
    with self._lock:
      if reply.is_cached:
        self.calls -= 1
      else:
        self.tokens += reply.tokens or 0


class EndpointBackend:
  """Judgements of a small and a large model behind endpoints."""

  def __init__(self, small: Endpoint, large: Endpoint, *, max_tokens: tuple[int, int]):
    """Takes both endpoints, which may be one, and the tokens of their replies at most."""
    self._endpoints = small, large
    self._max_tokens = max_tokens
    self.secret: bytes | None = None if small.cache is None else small.cache.secret

  async def ask(self, call: JudgeCall) -> JudgeReply:
    """Returns a reply; raises EndpointError if there is none."""
    which = int(call.is_arbiter)
    reply = await self._endpoints[which].ask(call.messages, options={
      "temperature": call.temperature, "max_tokens": self._max_tokens[which],
      "schema": None if call.raw else call.schema, "schema_name": "judgement",
      # A canary looks at the model as it is now, not as it was when it was last asked.
      "cached": call.stage != CANARY})
    known = None not in reply.usage
    tokens = sum(count or 0 for count in reply.usage) if known else None
    return JudgeReply(reply.text if call.raw else reply.data, tokens, reply.is_cached)


class ScriptedBackend:
  """Judgements of a function."""

  def __init__(self, script: Callable[[JudgeCall], Any]):
    """Takes (call) -> a reply's object or text, or an awaitable of it; it may raise EndpointError."""
    self._script = script
    self.secret: bytes | None = None

  async def ask(self, call: JudgeCall) -> JudgeReply:
    """Returns what the script says, brought into the form of a reply."""
    given = self._script(call)
    if inspect.isawaitable(given):
      given = await given
    if call.raw:
      return JudgeReply(given)
    try:
      if isinstance(given, str):
        return JudgeReply(reply_schema.read(given, call.schema))
      empty = {"rationale": "", "principles": [], "flags": []}
      found = {**{name: value for name, value in empty.items() if name in call.schema["properties"]}, **given}
      problem = reply_schema.mismatch(found, call.schema)
    except (TypeError, ValueError) as error:
      raise EndpointError("schema", None, 1, str(error)) from error
    if problem is not None:
      raise EndpointError("schema", None, 1, f"the scripted reply does not fit its schema: {problem}")
    return JudgeReply(found)


def answer_grader(call: JudgeCall) -> dict[str, Any]:
  """Judges as a program can, by comparing answers: a stand-in for models, to try things out without one.

  All judges score the response, that of groups each trajectory by its last text.

  Raises:
    EndpointError: without a reference answer, for then it has no verdict.
  """
  case = call.case
  if case.ground_truth is None:
    raise EndpointError("reply", None, 1, "there is no reference answer to compare with")

  def is_right(text: Any) -> bool:
    return isinstance(text, str) and answers.same(answers.extract(text), str(case.ground_truth))

  if call.judge == group_prompts.JUDGE:
    texts = [one if isinstance(one, str) else one[-1].get("content") for one in case.attempts]
    found = [float(is_right(one)) for one in texts]
    return {"rationale": "right answers score 1", "scores": [
      {"trajectory": name, "score": score}
      for name, score in zip(group_prompts.names(len(found)), found, strict=True)]}
  score = float(is_right(case.response))
  said = "the answer is right" if score else "the answer is wrong"
  if call.judge == "helpfulness" and case.baseline is not None:
    said += ", and was right before" if is_right(case.baseline) else ", and was wrong before"
  return {"score": score, "uncertainty": 0.05, "rationale": said,
          "principles": [{"name": "right", "weight": 1.0, "description": "the reference answer is met"}]}


def load_script(name: str) -> Callable[[JudgeCall], Any]:
  """Finds a script: FILE.jsonl of rules, FILE.py:FUNCTION, or a dotted name such as that of `answer_grader`.

  A rule is an object of `reply` (an object or text) or `error` (a kind of `EndpointError`), and of what a
  call must be for it to count: `judge`, `stage`, `temperature`, `contains` (a text in the messages). The
  first one that fits counts.

  Raises:
    ValueError: if there is none, or a rule is none.
  """
  if not name.endswith(".jsonl"):
    return user_functions.find(name)
  try:
    rules = list(json_lines.read(name))
  except FileNotFoundError as error:
    raise ValueError(f"config.rim.script={name!r}: there is no such file") from error
  for number, rule in enumerate(rules, start=1):
    for field, value in rule.items():
      if field not in SCRIPT_FIELDS or not isinstance(value, SCRIPT_FIELDS[field]):  # type: ignore[arg-type]
        raise ValueError(f"{name}: rule {number} has {field}={value!r}; fields are "
                         f"{', '.join(SCRIPT_FIELDS)}")
    if ("reply" in rule) == ("error" in rule):
      raise ValueError(f"{name}: rule {number} must have a reply or an error, one of them")

  def script(call: JudgeCall):
    text = "\n".join(str(message["content"]) for message in call.messages)
    fits = {"judge": call.judge, "stage": call.stage, "temperature": call.temperature}
    for rule in rules:
      if all(rule.get(field, value) == value for field, value in fits.items()) and \
          rule.get("contains", "") in text:
        if "error" in rule:
          raise EndpointError(rule["error"], None, 1, "as the script says")
        return rule["reply"]
    raise EndpointError("reply", None, 0, "no rule of the script fits")

  return script
