"""The original's conversations, as they were recorded."""

import json

import pytest

from atlas_jax.data.traces import legacy_conversations
from tests.data.traces import sessions

CASES = json.loads((sessions.FIXTURES / "conversation_cases.json").read_text())
# There steps were objects of another class, which the original overlooks; here steps are objects of JSON.
SESSIONS = [case for case in CASES["sessions"] if case["name"] != "dict steps are ignored"]


@pytest.mark.parametrize("actor, role", CASES["actor_to_role"])
def test_an_actor_has_a_role(actor, role):
  assert legacy_conversations.role_of(actor) == role


@pytest.mark.parametrize("case", CASES["search_text"], ids=str)
def test_a_text_is_found_where_the_original_finds_it(case):
  assert legacy_conversations.search_text(case["in"]) == case["out"]


def test_events_become_messages():
  found = legacy_conversations.messages_of_events(CASES["events"]["in"])
  assert list(found) == CASES["events"]["messages"]


@pytest.mark.parametrize("case", SESSIONS, ids=lambda case: case["name"])
def test_a_session_becomes_the_recorded_conversation(case):
  build = legacy_conversations.build
  assert build(case["input"]) == case["record"]
  assert build(case["input"], system=False) == case["record_no_system"]
  assert build(case["input"], keep_empty=True) == case["record_keep_empty"]
