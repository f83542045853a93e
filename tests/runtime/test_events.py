"""Events: their numbers, what they may be called, and that they can be stored."""
import json

import pytest

from atlas_jax.runtime.events import EventLog


def test_events_are_numbered_and_storable():
  found = []
  log = EventLog("key", found.append, first_seq=4, first_span=2, clock=lambda: 1.5)
  span = log.span()
  log.emit("session", "START", span=span, data={"text": "a\x00b", "number": float("nan")})
  log.emit("session", "END", span=span, usage={"student": {"calls": 1}})
  assert [one.seq for one in found] == [4, 5] and span == 2
  assert found[0].to_json() == {"session_key": "key", "seq": 4, "at": 1.5, "name": "session", "kind": "START",
                                "actor": "runtime", "span": 2, "data": {"text": "a\ufffdb", "number": None}}
  json.dumps(found[1].to_json(), allow_nan=False)


@pytest.mark.parametrize("field, value", [("name", "sessions"), ("kind", "BEGIN"), ("actor", "user")])
def test_names_are_of_a_closed_list(field, value):
  given = {"name": "session", "kind": "POINT", "actor": "runtime", field: value}
  with pytest.raises(ValueError, match=f"'{value}' of an event must be one of"):
    EventLog("key", print).emit(given["name"], given["kind"], actor=given["actor"], span=0)
