"""Batches to distil with: who writes them, in whose ids they stand, and that a resumed run makes the same."""

import json

import numpy as np
import pytest

from atlas_jax.data import chats
from atlas_jax.data.problems import Problem
from atlas_jax.data.prompts import ProblemList, PromptSource
from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.language.decoding.sampler import SamplingOptions, ScriptedSampler
from atlas_jax.rollout import ask, distill_rows
from atlas_jax.rollout.distill_rows import ModelView, Text
from atlas_jax.rollout.distill_source import DistillPlan, DistillSource, Writer
from atlas_jax.state import Trained
from tests.pieces import Pieces

PROBLEMS = [Problem(f"row@{a}", f"{a}+3=", str(a + 3), f"it is {a + 3}") for a in range(5, 12)]
BYTES, PIECES = ByteTokenizer(), Pieces("it is", " 1", "+3", "12", shuffle=4)


def reader(tokenizer, max_tokens=16, **more):
  """How a model of a tokenizer reads plain texts."""
  solution = distill_rows.recorded(tokenizer, max_tokens=max_tokens, **more)
  return ModelView(tokenizer, ask.encoder(tokenizer, **more), solution, (tokenizer.doc_id,), tokenizer.doc_id)


def script(text, params):
  """Offers answers that tell the prompt and the weights apart."""
  return [f"{text} is {params} {i}" for i in range(5)]


def make(teacher=None, *, readers=None, problems=PROBLEMS, script=script, seed=0, process=(0, 1), **plan):
  """A source of 3 texts per batch, its student writing from the script."""
  student, taught = readers or (reader(BYTES), reader(teacher or BYTES))
  options = lambda one: SamplingOptions(max_tokens=24, stop_tokens=one.ends)
  writers = [Writer(ScriptedSampler(one.tokenizer, script), options(one))
             for one in (student, taught)]  # fmt: skip
  prompts = PromptSource(ProblemList(problems), batch_rows=1, seed=seed)
  plan = DistillPlan(**({"batch_rows": 3, "spans": teacher is not None} | plan))
  source = DistillSource(prompts, student, taught, plan, student_writer=writers[0], teacher_writer=writers[1],
                         seed=seed, process_index=process[0], process_count=process[1])  # fmt: skip
  return source


def given(params):
  """What the loop hands to a source."""
  return Trained(params, {"teacher": "taught"})


def texts(batch, tokenizer=BYTES, prefix=""):
  """The texts of a batch, prompts and completions, from the ids of one of the models."""
  rows = []
  for row, doc in zip(batch[f"{prefix}tokens_BS"], batch[f"{prefix}doc_BS"]):
    rows.append(tokenizer.decode(row[doc == 0]))
  return rows


def assert_same(actual, expected):
  assert actual.keys() == expected.keys()
  for name, array in actual.items():
    np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_recorded_solutions_follow_their_prompts_and_end():
  source = make(on_policy_frac=0.0)
  batch = source.next(given(None))
  where = source.provenance(0)
  by_place = {problem.where: problem for problem in PROBLEMS}
  assert texts(batch) == [by_place[one].prompt + by_place[one].solution for one in where]
  for row, start in enumerate(batch["start_B"]):
    ids = batch["completion_BT"][row][batch["completion_mask_BT"][row]]
    assert BYTES.decode(ids) == by_place[where[row]].solution and ids[-1] == BYTES.doc_id
    np.testing.assert_array_equal(batch["tokens_BS"][row, start + 1:][:len(ids)], ids)
  assert_same({name: batch[f"teacher_{name}"] for name in ("tokens_BS", "completion_BT", "start_B")},
              {name: batch[name] for name in ("tokens_BS", "completion_BT", "start_B")})  # fmt: skip
  assert not batch["on_policy_B"].any()


def test_the_student_writes_its_share_of_the_batches_with_its_weights_of_now():
  source = make(on_policy_frac=0.4)
  who = [source.who(step) for step in range(1000)]
  assert 0.35 < who.count("student") / 1000 < 0.45
  assert set(who) == {"student", "recorded"}
  assert who == [make(on_policy_frac=0.4).who(step) for step in range(1000)]
  assert who != [make(on_policy_frac=0.4, seed=1).who(step) for step in range(1000)]
  for step in range(6):
    batch = source.next(given(f"w{step}"))
    assert batch["on_policy_B"].tolist() == [float(who[step] == "student")] * 3
    assert all((f"w{step}" in text) == (who[step] == "student") for text in texts(batch))


@pytest.mark.parametrize("plan, writers", (
  (dict(on_policy_frac=1.0), {"student"}), (dict(on_policy_frac=0.0), {"recorded"}),
  (dict(on_policy_frac=0.0, off_policy_source="teacher"), {"teacher"}),
))  # fmt: skip
def test_a_share_of_all_or_nothing_is_just_that(plan, writers):
  source = make(**plan)
  assert {source.who(step) for step in range(100)} == writers
  if writers == {"teacher"}:
    assert all("taught" in text for text in texts(source.next(given("w"))))


@pytest.mark.parametrize("teacher", (None, PIECES))
def test_a_source_goes_on_from_its_state_with_the_batches_it_would_have_made(teacher):
  plan = dict(on_policy_frac=0.5, off_policy_source="teacher")
  source = make(teacher, **plan)
  for step in range(4):
    source.next(given(f"w{step}"))
  state = json.loads(json.dumps(source.state()))
  again = make(teacher, **plan)
  again.restore(state)
  assert {source.who(step) for step in range(4, 10)} == {"student", "teacher"}
  for step in range(4, 10):
    assert_same(again.next(given(f"w{step}")), source.next(given(f"w{step}")))
  with pytest.raises(ValueError, match="on_policy_frac=0.5 then, 0.25 now"):
    make(teacher, on_policy_frac=0.25, off_policy_source="teacher").restore(state)


def test_processes_have_the_rows_of_the_whole_batch():
  plan = dict(on_policy_frac=0.5, batch_rows=4)
  whole, parts = make(**plan), [make(process=(index, 2), **plan) for index in range(2)]
  for step in range(4):
    expected, found = whole.next(given(f"w{step}")), [part.next(given(f"w{step}")) for part in parts]
    assert_same({name: np.concatenate([one[name] for one in found]) for name in expected}, expected)
    assert sum((part.provenance(step) for part in parts), []) == whole.provenance(step)


@pytest.mark.parametrize("rest", ("recorded", "teacher"))
def test_spans_have_the_same_text_on_either_side(rest):
  source = make(PIECES, on_policy_frac=0.4, off_policy_source=rest)
  for step in range(6):
    batch = source.next(given(f"w{step}"))
    assert texts(batch) == texts(batch, PIECES, "teacher_")
    for row in range(3):
      numbers = np.flatnonzero(batch["span_mask_BN"][row])
      np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
      said = []
      for number in numbers:
        parts = []
        for prefix in ("", "teacher_"):
          at = np.flatnonzero(batch[f"{prefix}span_BT"][row] == number)
          assert at[0] == batch[f"{prefix}first_BN"][row, number]
          parts.append(batch[f"{prefix}completion_BT"][row][at])
        assert BYTES.decode_bytes(parts[0]) == PIECES.decode_bytes(parts[1])
        assert batch["single_BN"][row, number] == (len(parts[0]) == len(parts[1]) == 1)
        said.append(parts)
      assert [part[-1] for part in said[-1]] == [BYTES.doc_id, PIECES.doc_id]
      assert sum(len(part) for part, _ in said) == batch["completion_mask_BT"][row].sum()


def test_a_text_that_cannot_be_read_whole_is_compared_up_to_there_and_has_no_end():
  cut = Text([1], [1], [*b"it is ", 0xE6, 0x97, 256], by_teacher=False)
  batch = distill_rows.by_spans([cut], reader(BYTES), reader(PIECES), pad_tokens=1, align_tokens=1)
  assert PIECES.decode(batch["teacher_completion_BT"][0]) == "it is "
  assert batch["span_BT"][0].tolist() == [0] * 5 + [1, -1, -1]
  assert batch["span_mask_BN"].sum() == 2


def test_ids_that_the_tokenizer_does_not_know_have_no_text():
  odd = Text([1], [1], [*b"it", 300, *b"is"], by_teacher=False)
  batch = distill_rows.by_spans([odd], reader(BYTES), reader(Pieces("tis")), pad_tokens=4, align_tokens=1)
  assert batch["span_BT"][0].tolist() == [0, 1, 1, 1, 1, -1, -1, -1]
  assert batch["span_mask_BN"][0].tolist() == [True, False] + [False] * 6


def test_each_model_sees_its_own_chat_template():
  student = chats.Template("{% for m in messages %}Q{{ m.content }}E{% endfor %}"
                           "{% if add_generation_prompt %}A{% endif %}", specials={})  # fmt: skip
  teacher = chats.Template("{% for m in messages %}<{{ m.content }}>{% endfor %}"
                           "{% if add_generation_prompt %}<{% endif %}", specials={})  # fmt: skip
  readers = [reader(BYTES)._replace(prompt=ask.encoder(BYTES, template)) for template in (student, teacher)]
  batch = make(readers=readers, on_policy_frac=0.0).next(given(None))
  for own, taught in zip(texts(batch), texts(batch, prefix="teacher_")):
    assert own.startswith("Q") and "EAit is" in own
    assert taught.startswith("<") and "><it is" in taught


def test_a_solution_in_a_template_ends_as_its_turns_end():
  template = chats.Template("{% for m in messages %}{{ m.role }}:{{ m.content }}<end>{% endfor %}"
                            "{% if add_generation_prompt %}assistant:{% endif %}",
                            specials={"<end>": 256})  # fmt: skip
  ids = distill_rows.recorded(BYTES, template, max_tokens=16)(PROBLEMS[0])
  assert bytes(ids[:-1].tolist()) == b"it is 8" and ids[-1] == 256


def test_an_id_of_a_template_that_the_model_has_not_is_refused():
  template = chats.Template("{% for m in messages %}{{ m.role }}:{{ m.content }}<end>{% endfor %}"
                            "{% if add_generation_prompt %}assistant:{% endif %}",
                            specials={"<end>": 300})  # fmt: skip
  fields = dict(tokenizer="byte", chat_template="mine")
  for encode in (ask.encoder(BYTES, template), distill_rows.recorded(BYTES, template, max_tokens=16)):
    assert ask.in_vocabulary(encode, 301, **fields)(PROBLEMS[0]).max() == 300
    with pytest.raises(ValueError, match="id 300, the model only 257; .*chat_template='mine' must be"):
      ask.in_vocabulary(encode, 257, **fields)(PROBLEMS[0])


def test_what_is_too_long_is_refused_cut_or_passed_over():
  problems = [PROBLEMS[0], Problem("row@99", "why?", "9", "because it is nine"), *PROBLEMS[1:3]]
  long = lambda **more: make(readers=[reader(BYTES, **more)] * 2, problems=problems, on_policy_frac=0.0)
  with pytest.raises(ValueError, match="row@99: its solution has 19 tokens, more than config.sampler"):
    [long().next(given(None)) for _ in range(3)]
  cut = [text for _ in range(2) for text in texts(long(overlong="truncate").next(given(None)))]
  assert set(cut) <= {one.prompt + one.solution[:16] for one in problems}
  source = long(overlong="skip")
  places = [place for step in range(4) for place in (source.next(given(None)), source.provenance(step))[1]]
  assert set(places) == {"row@5", "row@6", "row@7"}


def test_a_problem_without_a_solution_is_named():
  problems = [Problem("file.jsonl:7", "2+2=", "4", None)]
  with pytest.raises(ValueError, match="file.jsonl:7: has no solution to learn"):
    make(problems=problems, on_policy_frac=0.0).next(given(None))
  assert "w" in texts(make(problems=problems, on_policy_frac=1.0).next(given("w")))[0]


def test_a_batch_that_fails_leaves_the_place_as_it_was():
  def offers(text, params):
    if params == "bad":
      raise RuntimeError("the sampler died")
    return script(text, params)

  source, other = make(script=offers, on_policy_frac=1.0), make(script=offers, on_policy_frac=1.0)
  source.next(given("w"))
  state = source.state()
  with pytest.raises(RuntimeError):
    source.next(given("bad"))
  assert source.state() == state
  other.next(given("w"))
  assert_same(source.next(given("w")), other.next(given("w")))


def test_what_is_told_is_of_the_batch_given_last():
  source = make(on_policy_frac=1.0)
  source.next(given("w"))
  told = source.metrics()
  assert told.scalars["rollout/on_policy"] == 1 and told.scalars["rollout/ended_frac"] == 1
  assert told.text.startswith("student: ") and " is w " in told.text


@pytest.mark.parametrize("plan, says", (
  (dict(on_policy_frac=1.5), "config.distill.on_policy_frac=1.5 must be from 0 to 1"),
  (dict(off_policy_source="students"), "config.distill.off_policy_source='students' must be"),
  (dict(process=(0, 2)), "config.data.batch_rows=3 does not divide by the 2 processes"),
))  # fmt: skip
def test_a_wrong_setting_is_named(plan, says):
  with pytest.raises(ValueError, match=says):
    make(**plan)


def test_a_recorded_solution_of_several_messages_is_refused():
  said = {"role": "assistant", "content": "b"}
  problem = Problem("f:1", "a?", solution="b", reply=(said, {"role": "tool", "content": "c"}, said))
  with pytest.raises(ValueError, match="f:1: its solution has 3 messages"):
    distill_rows.recorded(ByteTokenizer(), max_tokens=9)(problem)
