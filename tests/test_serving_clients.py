"""The checks of clients in experiments/serving, against a scripted server, and the rows of its model."""
import itertools
import json

import pytest

from experiments.serving import prepare, target
from tests.language.serve import scripted
from tests.language.serve.test_http_server import serving

NEED_A_MODEL = {"completion_n", "rate_limit", "cancellation", "timeouts"}  # Of more than a script, or slower.


def test_rows_are_chats_whose_calls_follow_their_tools():
  for row in itertools.islice(prepare.rows(prepare.OWN, 60, seed=0), 60):
    calls = [call for message in row["messages"] for call in message.get("tool_calls", ())]
    assert len(calls) == ("tools" in row)
    for call in calls:
      function = row["tools"][0]["function"]
      assert call["function"]["name"] == function["name"]
      assert set(json.loads(call["function"]["arguments"])) == set(function["parameters"]["required"])
  schema = {"type": "array", "items": {"type": "array", "items": {"enum": ["a", "b"]}}}
  assert prepare.value_of(schema) == [["a"]]


def test_an_outcome_is_a_pass_a_reason_or_a_failure():
  def breaks(at):
    raise ValueError(f"of {at}")

  def cannot(at):
    raise target.DoesNotApply(f"not {at}")

  assert target.outcome(lambda at: "well", "x") == ("pass", "well")
  assert target.outcome(cannot, "x") == ("does not apply", "not x")
  assert target.outcome(breaks, "x")[0] == "FAIL"


def answer_of(text):
  shows_a_tool = "get_weather" in text.partition("<tool_call>")[0] and "\ntool\n" not in text
  call = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Oslo"}}\n</tool_call>'
  return call if shows_a_tool else "It rains."


@pytest.mark.parametrize("template", [None, scripted.TOOLS])
def test_the_checks_pass_with_a_server_that_does_it_right(template):
  pytest.importorskip("openai")
  from experiments.serving import curl_checks, openai_checks
  made = scripted.service(answer_of, template=template, max_tokens=2_000, body_bytes=2**21)
  with serving(made) as port:
    at = target.find(f"http://127.0.0.1:{port}", "", None)
    chosen = [check for check in openai_checks.CHECKS if check.__name__ not in NEED_A_MODEL]
    found = {check.__name__: target.outcome(check, at) for check in (*chosen, *curl_checks.CHECKS)}
  assert {name: told for name, (result, told) in found.items() if result == "FAIL"} == {}
  assert (found["tools_auto"][0] == "pass") == (template is not None)
