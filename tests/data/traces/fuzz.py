"""Sessions damaged at random, and whether each must be refused: drawn from a seed."""

import json
import random

from atlas_jax.data.traces import record_fields
from tests.data.traces import sessions

# A value of each JSON type, to stand where another type must.
VALUES = {"object": {"a": 1}, "array": [1], "string": "x", "boolean": True, "integer": 3, "number": 2.5,
          "null": None}


def wrong_field(draw, row):
  """Gives a field of the record, a step or an attempt a type that it cannot have."""
  steps = list(row.get("steps") or [])
  tries = [one for step in steps for name in ("attempt_details", "attempt_history")
           for one in step.get(name) or []]
  table, target = draw.choice([("trace", row), *[("step", one) for one in steps],
                               *[("attempt", one) for one in tries]])
  fields = {name: field.types for name, field in record_fields.TABLES[table].items() if field.types}
  name = draw.choice(sorted(fields))
  allowed = {*fields[name], *(("integer",) if "number" in fields[name] else ())}
  target[name] = VALUES[draw.choice(sorted(set(VALUES) - allowed))]
  return json.dumps(row).encode(), "field"


def no_task(draw, row):
  """Takes the task away."""
  del draw, row["task"]
  return json.dumps(row).encode(), "field"


def cut(draw, row):
  """Ends the line in the middle."""
  text = json.dumps(row)
  return text[:draw.randrange(1, len(text))].encode(), "json"


def no_utf8(draw, row):
  """Puts a byte that begins no character somewhere."""
  text = json.dumps(row).encode()
  at = draw.randrange(len(text))
  return text[:at] + b"\xff" + text[at:], "encoding"


def no_object(draw, row):
  """Puts another value in place of the object."""
  del row
  return json.dumps(draw.choice([[1], "x", 3, None, True, []])).encode(), "object"


def twice(draw, row):
  """Names a field twice."""
  del draw
  return b'{"task": "other", ' + json.dumps(row).encode()[1:], "json"


def same_names(draw, row):
  """Has two names that are one when they are made storable."""
  place = draw.choice([row, *(row.get("steps") or [])])
  place |= {"n\x00": 1, "n\ud800": 2}
  return json.dumps(row).encode(), "field"


def endless(draw, row):
  """Nests brackets deeper than any stack."""
  del draw
  row["deep"] = 0
  return json.dumps(row).replace('"deep": 0', f'"deep": {"[" * 20_000}{"]" * 20_000}').encode(), "json"


def odd_texts(draw, row):
  """Has characters that no store takes, and new keys."""
  name = draw.choice(["task", "final_answer", "a\x00b", "neu\ud800"])
  row[name] = draw.choice(["\x00", "\ud800a", "a\udfff"])
  return json.dumps(row).encode(), None


def odd_numbers(draw, row):
  """Has scores that are no verdict, and numbers that JSON has not."""
  scores = [float("nan"), float("inf"), True, [1], "x", 7, 10**45, None]
  row["session_reward"] = {"score": draw.choice(scores)}
  return json.dumps(row).encode(), None


def deep(draw, row):
  """Nests deeper than is kept."""
  value = 1
  for _ in range(draw.randrange(10, 60)):
    value = [value] if draw.random() < 0.5 else {"a": value}
  row["extra"] = value
  return json.dumps(row).encode(), None


def nulls(draw, row):
  """Has null where it counts as absent."""
  for name in draw.sample(["final_answer", "plan", "steps", "session_reward", "reward_stats"], 2):
    row[name] = None
  return json.dumps(row).encode(), None


DAMAGES = (wrong_field, wrong_field, wrong_field, no_task, cut, cut, no_utf8, no_object, twice, same_names,
           endless, odd_texts, odd_numbers, deep, nulls)


def lines(count, seed):
  """Returns (line, kind of reject or None) of damaged sessions, each with an id of its own."""
  draw = random.Random(seed)
  # The small ones more often: the time goes into parsing.
  whole = [json.dumps(row) for row in sessions.exported()]
  made = json.dumps(sessions.session())
  found = []
  for number in range(count):
    large = whole[3] if number % 20 == 0 else made
    row = json.loads(draw.choice([whole[0], whole[0], whole[2], made, made, large]))
    row["session_metadata"]["session_id"] = number
    line, kind = draw.choice(DAMAGES)(draw, row)
    found.append((line, kind))
  return found
