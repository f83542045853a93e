"""Traces as data of recipes: one gate for all of them, whole groups per side, and errors before training."""

import json
import sys
import types

import hypothesis
import pytest
from hypothesis import strategies

from atlas_jax import config as configs
from atlas_jax import readers
from atlas_jax.data import prompts
from atlas_jax.data.columns import Needs
from atlas_jax.data.traces import provenance, sources
from atlas_jax.data.traces.jsonl import FoundTrace
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.rejects import RejectedError
from atlas_jax.recipes import ranked
from tests.data.traces import sessions
from tests.test_readers import Read

REVIEWS = ["approved", "pending", "quarantined", None, " Approved", "APPROVED", "passed", "approved,", ""]
NO_TEMPLATE = types.SimpleNamespace(template=None)
STATUSES = ["succeeded", "succeeded", "failed", "running", None]
SOURCES = {"sft": {"target": "student"}, "sft teacher": {"target": "teacher"},
           "gkd": {"target": "none"}, "gkd student": {"target": "student", "prompt": "step"}, "grpo": {},
           "grpo steps": {"prompt": "step"}, "ranked": {}}


def ids_of(source, file, **fields):
  """The sessions that reach a recipe."""
  recipe = source.partition(" ")[0]
  config = sessions.config_of(recipe, file, **SOURCES[source], **fields)
  try:
    if recipe == "ranked":
      return {one.meta["session_id"] for one in ranked.groups_of(config, NO_TEMPLATE)["train"]}
    found = prompts.of_config(config, needs=Needs(solution=True))
  except ValueError as error:
    assert "no trace is left" in str(error), error
    return set()
  return {one.extra["session_id"] for one in found.first(found.count)}


@hypothesis.given(strategies.lists(strategies.tuples(
    strategies.sampled_from(REVIEWS), strategies.sampled_from(REVIEWS), strategies.sampled_from(STATUSES)),
    min_size=1, max_size=6), strategies.sampled_from(["approved", "approved,pending", "quarantined"]))
@hypothesis.settings(deadline=None, max_examples=25)
def test_what_review_did_not_let_pass_reaches_no_source(tmp_path_factory, drawn, asked):
  rows = []
  expected = set()
  for number, (review, copy, status) in enumerate(drawn):
    row = sessions.with_metadata(sessions.session(number), status=status, review_status=copy)
    rows.append({**row, "review_status": review})
    # The copy in the metadata, which whoever starts a session may write, lets nothing pass, and can keep out.
    is_shut = copy == "quarantined" and "quarantined" not in asked.split(",")
    if status == "succeeded" and (review or "").strip().lower() in asked.split(",") and not is_shut:
      expected.add(number)
  file = sessions.write(tmp_path_factory.mktemp("traces") / "a.jsonl", rows)
  for source in sorted(SOURCES):
    assert ids_of(source, file, review_status=asked) == expected, source


def test_a_session_with_an_approved_and_a_quarantined_copy_reaches_no_source(tmp_path):
  first = sessions.session(1)
  file = sessions.write(tmp_path / "a.jsonl", [
      first, sessions.session(2), {**first, "review_status": "quarantined"}])
  for source in sorted(SOURCES):
    assert ids_of(source, file, max_reject_frac=0.5) == {2}, source


def test_each_recipe_gets_what_it_learns(tmp_path):
  file = sessions.write(tmp_path / "a.jsonl", [sessions.session(1)])

  def one(recipe, **fields):
    return prompts.of_config(sessions.config_of(recipe, file, **fields)).problem(0)

  assert one("sft").solution == "31" and one("gkd").answer == "31"
  assert one("sft", target="teacher").solution == "Carry the one 1."
  # Policies answer themselves, whatever config.traces.target says.
  assert one("grpo").solution is None and one("grpo").answer == "31"
  assert one("grpo").where == f"{file}:1"


def test_sessions_of_one_question_are_on_one_side(tmp_path):
  rows = [sessions.session(number, task=f"question {number % 8}") for number in range(40)]
  config = sessions.config_of("grpo", sessions.write(tmp_path / "a.jsonl", rows))
  config.data.held_out_frac = 0.3
  sides = []
  for split in ("train", "held_out"):
    found = prompts.of_config(config, split)
    sides.append({one.prompt for one in found.first(found.count)})
  assert sides[0] and sides[1] and not sides[0] & sides[1] and len(sides[0] | sides[1]) == 8
  config.seed = 5  # Another run is evaluated on the same questions.
  assert {one.prompt for one in prompts.of_config(config, "held_out").first(40)} == sides[1]
  groups = ranked.groups_of(sessions.config_of("ranked", config.data.files), NO_TEMPLATE)
  assert len(groups["train"]) == 40 and groups["held_out"] == []


def test_rejected_lines_are_written_and_strict_reading_stops(tmp_path):
  file = sessions.write(tmp_path / "a.jsonl", [*map(sessions.session, range(30)), "{"])
  rejects = tmp_path / "rejects.jsonl"
  config = sessions.config_of("sft", file, rejects_file=str(rejects))
  assert prompts.of_config(config).count == 30 and '"line":31' in rejects.read_text()
  config.traces.strict = True
  with pytest.raises(RejectedError, match="a.jsonl:31: json"):
    prompts.of_config(config)


def test_an_error_says_why_nothing_is_left(tmp_path):
  file = str(sessions.FIXTURES / "export_all.jsonl")
  with pytest.raises(ValueError) as error:
    prompts.of_config(sessions.config_of("sft", file, min_reward=0.9))
  for words in ("3 review_status (review has not let it pass)", "1 min_reward", "config.traces"):
    assert words in str(error.value)
  with pytest.raises(ValueError, match="needs config.data.files"):
    prompts.of_config(sessions.config_of("sft", None))
  with pytest.raises(ValueError, match="'traces'"):
    prompts.load("traces", files=file)


def test_counts_for_a_manifest_name_what_was_used_and_what_not():
  file = str(sessions.FIXTURES / "export_all.jsonl")
  fields = sessions.config_of("sft", file).traces
  found, selection = sources.read(file, fields, lambda one, refused: [one.where])
  assert [where for _, where in found] == [f"{file}:4"]
  told = selection.to_json()
  assert told["dropped"] == {"review_status": 3} and told["lines"]["lines"] == 4
  assert told["data"]["records"] == 1 and told["filters"]["review_status"] == ["approved"]


@pytest.fixture
def store(monkeypatch):
  """A module in the place of the store's, and the URLs that were opened."""
  opened = []
  rows = [sessions.session(1), sessions.session(2, review_status="quarantined")]

  class Store:
    def __enter__(self):
      return self

    def __exit__(self, *_):
      opened.append("closed")

    def traces(self, filters, *, on_reject):
      on_reject("store#9", "task is null")
      return [FoundTrace(f"store#{number}", Trace.from_json(row)) for number, row in enumerate(rows)]

  module = types.ModuleType(sources.STORE)
  module.open_store = lambda url: (opened.append(url), Store())[1]
  monkeypatch.setitem(sys.modules, sources.STORE, module)
  return opened


def test_a_store_is_read_behind_the_same_gate(store, monkeypatch, tmp_path):
  monkeypatch.setenv("TRACES_URL", "postgresql://user:secret@host/db")
  rejects = tmp_path / "rejects.jsonl"
  for files in ("sqlite:///traces.db", "env:TRACES_URL"):
    config = sessions.config_of("grpo", files, max_reject_frac=0.5, rejects_file=str(rejects))
    found = prompts.of_config(config)
    assert [one.where for one in found.first(9)] == ["store#0"]
  assert store == ["sqlite:///traces.db", "closed", "postgresql://user:secret@host/db", "closed"]
  assert json.loads(rejects.read_text()) == {
      "file": "store#9", "line": None, "kind": "field", "reason": "task is null"}
  with pytest.raises(RejectedError, match="1 of 3 lines are no traces"):
    prompts.of_config(sessions.config_of("grpo", files))


@pytest.mark.parametrize("files, words", [
    ("postgresql://user:secret@host/db", "a URL with a password"),
    ("env:NO_SUCH_URL", "no variable NO_SUCH_URL")])
def test_a_password_does_not_reach_the_config(store, files, words):
  with pytest.raises(ValueError, match=words) as error:
    prompts.of_config(sessions.config_of("grpo", files))
  assert "secret" not in str(error.value) and not store


@pytest.mark.parametrize("recipe, field, is_read", [
    ("sft", "traces.target", True), ("grpo", "traces.target", False),
    ("ranked", "traces.review_status", True), ("sft", "traces.lesson", False), ("sft", "data.options", False),
    ("ranked", "data.fields", False)])
def test_settings_that_a_recipe_does_not_read_are_known(recipe, field, is_read):
  assert readers.is_read(sessions.config_of(recipe, "a.jsonl"), field) == is_read


@pytest.mark.parametrize("recipe", ["gkd", "grpo", "ranked", "sft"])
def test_the_table_says_what_of_traces_a_recipe_reads(recipe, tmp_path):
  file = sessions.write(tmp_path / "a.jsonl", [sessions.session(1)])
  found = set()
  for fields in ({"target": "student"}, {"target": "teacher"}):
    read = Read(sessions.config_of(recipe, file, **fields), found)
    if recipe == "ranked":
      ranked.groups_of(read, NO_TEMPLATE)
    else:
      prompts.of_config(read)
  known = {name for name in configs.FIELDS if name.startswith("traces.")}
  listed = {name for name in known if recipe in readers.recipes_of(name)}
  # How problems are made is one piece of settings, of which prompts alone use a part.
  unused = {"traces.shown", "traces.verified_reward", "traces.lesson"} if recipe == "grpo" else set()
  itself = {"traces.completions"} if recipe == "grpo" else set()  # Whether any problems are made.
  assert found & known - unused == listed - itself


def test_settings_of_traces_without_traces_are_refused():
  config = sessions.config_of("sft", "a.jsonl", min_reward=0.5)
  readers.check(config)
  config.data.name = "files"
  with pytest.raises(ValueError, match="set config.data.name=traces"):
    readers.check(config)


def test_a_lesson_of_a_module_of_ones_own_is_used(tmp_path, monkeypatch):
  module = types.ModuleType("my_lesson")
  module.lesson = lambda turn: ([{"role": "user", "content": turn.question}], turn.guidance.upper())
  monkeypatch.setitem(sys.modules, "my_lesson", module)
  file = sessions.write(tmp_path / "a.jsonl", [sessions.session(1)])
  found = prompts.of_config(sessions.config_of("sft", file, target="teacher", lesson="my_lesson"))
  assert found.problem(0).solution == "CARRY THE ONE 1."


def test_personal_data_are_taken_out_before_anything_else_reads_them(tmp_path, monkeypatch):
  def scrub(record):
    record["task"] = record["task"].replace("Add", "[NAME]")
    return record

  module = types.ModuleType("my_scrub")
  monkeypatch.setitem(sys.modules, "my_scrub", module)
  module.scrub = scrub
  file = sessions.write(tmp_path / "a.jsonl", [sessions.session(1)])
  config = sessions.config_of("sft", file, scrub="my_scrub")
  assert prompts.of_config(config).problem(0).prompt == "[NAME] 14 and 17 1"
  _, selection = sources.read(file, config.traces, lambda one, refused: [one])
  scrubbed = Trace.from_json(scrub(sessions.session(1)))
  assert selection.kept.sha256 == provenance.data_hash([scrubbed])
  for wrong, words in ((lambda record: None, "is no trace: it is null"),
                       (lambda record: {"task": "x"}, "changes the session's id")):
    module.scrub = wrong
    with pytest.raises(ValueError, match=words):
      prompts.of_config(config)


def test_held_out_files_of_ranked_are_refused_with_traces():
  config = sessions.config_of("ranked", "a.jsonl")
  config.ranked.eval_files = "b.jsonl"
  with pytest.raises(ValueError, match="config.ranked.eval_files='b.jsonl'"):
    ranked.groups_of(config, None)
