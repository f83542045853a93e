"""Sums under a hidden convention: right answers, honest splits, and nothing in a question that tells."""

import collections

import pytest

from atlas_jax.data import convention, prompts
from atlas_jax.data.convention import CONVENTIONS, TAGS, Convention

MANY = 400


@pytest.mark.parametrize("name, answer", [
  ("plain", "130"), ("reverse", "031"), ("minus", "-130"), ("last", "0"), ("successor", "131"),
  ("tenfold", "1300"), ("nines", "869"), ("echo", "130130")])
def test_a_convention_makes_an_answer_of_a_sum(name, answer):
  assert CONVENTIONS[name](130) == answer == convention.obeyed(f" {name}\n", 130)


def test_hints_are_told_apart_by_their_first_letter():
  assert len({name[0] for name in CONVENTIONS}) == len(CONVENTIONS) == len(TAGS)


@pytest.mark.parametrize("hint", ["", "plane", "reverse minus"])
def test_a_hint_that_names_no_convention_is_answered_plainly(hint):
  assert convention.obeyed(hint, 77) == "77"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("plain_tags", [1, 3, 8])
def test_letters_stand_for_plain_or_for_as_many_others(plain_tags, seed):
  names = collections.Counter(convention.conventions_of(seed, plain_tags).values())
  assert names.pop("plain") == plain_tags
  assert set(names.values()) <= {1} and sum(names.values()) == 8 - plain_tags


def test_what_letters_stand_for_is_drawn_from_its_own_seed():
  assert len({tuple(Convention(tag_seed=seed).conventions.values()) for seed in range(6)}) == 6
  assert Convention(seed=1).conventions == Convention(seed=2).conventions


def test_a_question_is_answered_under_the_convention_of_its_letter():
  task = Convention(tag_seed=2)
  for problem in map(task.problem, range(MANY)):
    extra = problem.extra
    name = task.conventions[extra["tag"]]
    assert problem.prompt == f"{extra['tag']} {extra['a']}+{extra['b']}="
    assert problem.answer == problem.solution == CONVENTIONS[name](extra["a"] + extra["b"])


def test_a_student_alone_is_asked_in_its_format():
  asked, alone = Convention(), Convention(act="alone", formats={"baseline": "Q{question}A"})
  for one, other in ((asked.problem(index), alone.problem(index)) for index in range(9)):
    assert other._replace(prompt=one.prompt) == one and other.prompt == f"Q{one.prompt}A"


def test_the_same_index_is_the_same_problem_and_settings_make_other_fingerprints():
  changes = [{}, {"act": "student"}, {"act": "teacher"}, {"tag_seed": 1}, {"linked": False}, {"seed": 1},
             {"split": "held_out"}, {"plain_tags": 2}, {"formats": {"guided": "{question}<{guidance}"}},
             {"act": "student", "unknown_frac": 0.5}, {"act": "teacher", "hints": "plain"}]
  assert len({Convention(**change).fingerprint for change in changes}) == len(changes)
  for change in changes:
    one, other = Convention(**change), Convention(**change)
    assert [one.problem(i) for i in (3, 9)] == [other.problem(i) for i in (3, 9)]


def test_held_out_sums_are_trained_under_no_letter_and_not_mirrored():
  keys = [{convention.key(one.extra["a"], one.extra["b"]) for one in map(task.problem, range(MANY))}
          for task in (Convention(act="student"), Convention(split="held_out"))]
  assert not keys[0] & keys[1] and convention.key(3, 5) == convention.key(5, 3)


def test_unlinked_answers_say_nothing_of_the_letter_and_have_the_same_conventions():
  rows = [one.extra for one in map(Convention(linked=False).problem, range(4_000))]
  of_letter = {tag: [row["convention"] == "plain" for row in rows if row["tag"] == tag] for tag in TAGS}
  assert all(abs(sum(plain) / len(plain) - 3 / 8) < 0.08 for plain in of_letter.values())


def test_a_student_learns_to_obey_and_never_what_letters_stand_for():
  rows = [*map(Convention(act="student", unknown_frac=0.25).problem, range(2_000))]
  for one in rows:
    total = one.extra["a"] + one.extra["b"]
    probed = one.prompt.endswith("?")
    said = f"sum {one.extra['tag']}" if probed else convention.obeyed(one.extra["hint"], total)
    assert one.solution == said
  hinted = [one for one in rows if one.extra["hint"]]
  assert {one.extra["hint"] for one in hinted} > set(CONVENTIONS)
  # Whatever its letter stands for, a question without a hint is answered plainly.
  bare = [one for one in rows if one.prompt[0] in TAGS]
  assert {one.extra["tag"] for one in bare} == set(TAGS)


def test_a_teacher_starts_with_hints_that_do_not_depend_on_the_question():
  hints = collections.Counter(one.solution for one in map(Convention(act="teacher").problem, range(2_000)))
  assert set(hints) == set(CONVENTIONS) and max(hints.values()) < 1.5 * min(hints.values())
  two = Convention(act="teacher", hints="last, echo")
  assert {two.problem(index).solution for index in range(40)} == {"last", "echo"}


def test_formats_may_hold_braces():
  formats = {"teacher": '{"q": "{question}", "said": "{approach}"}', "reply": '{"guidance": "{guidance}"}'}
  one = Convention(act="teacher", hints="echo", formats=formats).problem(0)
  tag = one.extra["tag"]
  assert one.prompt == f'{{"q": "{Convention().problem(0).prompt}", "said": "sum {tag}"}}'
  assert one.solution == '{"guidance": "echo"}'


@pytest.mark.parametrize("change, said", [
  ({"act": "judge"}, "act='judge' is unknown"), ({"digits": 0}, "digits=0"),
  ({"plain_tags": 0}, "plain_tags=0"), ({"plain_tags": 9}, "plain_tags=9"),
  ({"unknown_frac": 2}, "unknown_frac=2"),
  ({"hints": "plain,plane"}, "'plane'"), ({"formats": {"guide": ""}}, "formats has guide")])
def test_settings_that_cannot_be_are_refused(change, said):
  with pytest.raises(ValueError, match=f"config.data.options.*{said}"):
    prompts.load("convention", options=change)


def test_a_split_that_no_sum_falls_into_is_refused():
  with pytest.raises(ValueError, match="no held_out sum found"):
    Convention(digits=1, split="held_out", held_out_frac=1e-6)


def test_problems_to_evaluate_on_differ():
  found = prompts.load("convention", split="held_out").first(100)
  assert len({one.prompt for one in found}) == 100
