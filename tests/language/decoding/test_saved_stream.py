"""Streams that are saved and gone on with, in this process and in another, to the last bit."""
import ast
import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from atlas_jax.files.damage import Damaged
from atlas_jax.language.decoding import programs as programs_module
from atlas_jax.language.decoding.requests import EndEvent
from tests.helpers import quick_compilation
from tests.language.decoding import serving
from tests.language.decoding.serving import events_of, expected, request

ASKED = dict(seed=11, max_tokens=30, temperature=0.9, top_p=0.95, presence_penalty=0.5, top_logprobs=2,
             stop_strings=("zzzz",), logit_bias={100: 1.0})
PROMPT = [256, *b"to be continued"]
CHILD = """
import dataclasses, sys
from tests.helpers import quick_compilation
from tests.language.decoding import serving
with quick_compilation(), serving.scheduler(sys.argv[1], slots=2) as server:
  tokens, ends = serving.events_of(server.resume(sys.argv[2]))
print(repr(([dataclasses.astuple(event) for event in tokens[0]], ends[0].reason)))
"""


@pytest.fixture(autouse=True, scope="module")
def _shared():
  with quick_compilation(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(programs_module, "make", serving.shared_programs)
    yield


def saved(kind, file, *, tokens=6, **fields):
  """Returns the ids that were written before the stream was saved."""
  with serving.scheduler(kind) as server:
    for n in range(2):  # Others write meanwhile.
      server.submit(request([256, n], max_tokens=60))
    stream = server.submit(request(PROMPT, **(ASKED | fields)))
    events = iter(stream)
    early = [next(events) for _ in range(tokens)]
    server.save(stream, file)
    rest = list(events)
  assert rest[-1].reason == "abort"
  return early + rest[:-1]


@pytest.mark.parametrize("kind", serving.KINDS)
def test_a_stream_goes_on_bit_for_bit(kind, tmp_path):
  early = saved(kind, tmp_path / "stream")
  with serving.scheduler(kind, slots=2) as server:
    (late,), (end,) = events_of(server.resume(tmp_path / "stream"))
  # Text that was held back by one side is given by the other; ids and numbers are the same.
  whole = expected(kind, request(PROMPT, **ASKED))[0]
  assert [dataclasses.replace(event, text="") for event in early + late] == [
      dataclasses.replace(event, text="") for event in whole]
  assert "".join(event.text for event in early + late) == "".join(event.text for event in whole)
  assert (end.reason, end.completion_tokens) == ("length", 30)


def test_another_process_goes_on(tmp_path):
  early = saved("memory", tmp_path / "stream")
  made = subprocess.run([sys.executable, "-c", CHILD, "memory", str(tmp_path / "stream")], text=True,
                        capture_output=True, cwd=pathlib.Path(__file__).parents[3])
  assert made.returncode == 0, made.stderr[-2000:]
  late, reason = ast.literal_eval(made.stdout)
  whole = expected("memory", request(PROMPT, **ASKED))[0]
  assert reason == "length" and len(early) + len(late) == 30
  # Numbers are written with all their digits.
  assert [(event[1], *event[3:]) for event in late] == [
      (one[1], *one[3:]) for one in map(dataclasses.astuple, whole[len(early):])]


def test_another_model_and_other_sizes_are_refused(tmp_path):
  saved("memory", tmp_path / "stream")
  language, params = serving.served("memory").language, serving.served("memory", scale=1.1).params
  with serving.scheduler("memory") as server:
    server.load("base", language, params, version=1)
    with pytest.raises(ValueError, match="belongs to other weights .* version 0, this is 1"):
      server.resume(tmp_path / "stream")
    server.load("base", language, serving.served("memory").params, version=2)
    assert events_of(server.resume(tmp_path / "stream"))[1][0].reason == "length"
  with serving.scheduler("memory", group_rows=2) as server:
    with pytest.raises(ValueError, match="group_rows=4.*this scheduler has.*group_rows=2"):
      server.resume(tmp_path / "stream")


def test_damage_is_seen_and_what_cannot_be_saved_is_refused(tmp_path):
  saved("memory", tmp_path / "stream")
  content = (tmp_path / "stream").read_bytes()
  (tmp_path / "broken").write_bytes(content[:-9] + b"123456789")
  with serving.scheduler("memory") as server:
    with pytest.raises(Damaged, match="holds other numbers than were written; .* ask again with its prompt"):
      server.resume(tmp_path / "broken")
    with pytest.raises(FileNotFoundError):
      server.resume(tmp_path / "none")
    ended = server.submit(request([256]))
    assert list(ended)[-1].reason == "length"
    with pytest.raises(ValueError, match="has ended, or is of another scheduler"):
      server.save(ended, tmp_path / "x")
    function = server.submit(request([256], max_tokens=10**6, allowed=lambda tokens: np.ones(270, bool)))
    next(iter(function))
    with pytest.raises(ValueError, match="`allowed` cannot be saved"):
      server.save(function, tmp_path / "x")
    server.cancel(function)
    assert isinstance(list(function)[-1], EndEvent)
  assert not (tmp_path / "x").exists()
