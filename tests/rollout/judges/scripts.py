"""Judges by script: replies by judge and temperature, and what was asked of them."""
from atlas_jax.rollout.endpoint import EndpointError
from atlas_jax.rollout.judges.rim import RIMReward

ONE = {"active_judges": {name: name == "accuracy" for name in
                         ("accuracy", "helpfulness", "process", "diagnostic")}}
SCRIPTED = {"backend": "scripted"}
NO_CANARY = {"canary": {"on": False}}


def reply(score, uncertainty=0.1, rationale="why", **more):
  """A reply of a judge."""
  return {"score": score, "uncertainty": uncertainty, "rationale": rationale, **more}


class Script:
  """A script of judgements that notes its calls.

  Attributes:
    calls: that were asked.
  """

  def __init__(self, small, large=None):
    """Takes replies: by temperature, by judge and temperature, or a function of the call; "raise" raises."""
    self.calls = []
    self._small = small
    self._large = large

  def __call__(self, call):
    self.calls.append(call)
    given = self._large if call.is_arbiter else self._small
    if callable(given):
      given = given(call)
    if isinstance(given, dict) and call.judge in given:
      given = given[call.judge]
    if isinstance(given, dict) and (not given or "score" not in given):
      given = given.get(str(call.temperature), given.get(call.temperature, given))
    if given == "raise":
      raise EndpointError("connect", None, 1, "boom")
    return given

  def count(self, stage):
    """Counts the calls of a stage."""
    return sum(call.stage == stage for call in self.calls)


def judged(small, large=None, *, config=None, **case):
  """(evaluation, script) of one case."""
  script = Script(small, large)
  rim = RIMReward({**SCRIPTED, **NO_CANARY, **ONE, **(config or {})}, backend=script)
  return rim.evaluate(**{"prompt": "6 * 7?", "response": "42", **case}), script
