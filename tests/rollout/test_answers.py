"""Answers: every recorded case, with the mistakes of the earlier graders put right."""
import json
import pathlib

import pytest

from atlas_jax.rollout import answers

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "arc_atlas"
GRADING = json.loads((FIXTURES / "answer_grading.json").read_text())
EXACT = json.loads((FIXTURES / "math_exact_match.json").read_text())

# What is right where the recorded graders are wrong, or disagree with each other.
EXTRACTED = {
    r"\boxed{\frac{1}{2}}": r"\frac{1}{2}", "<solution>The answer is 12.</solution>": "12",
    "<solution>Therefore, the answer is 9 meters</solution>": "9 meters", "1e3 apples": "1e3 apples",
    "<solution>answer: 1,000</solution>": "1,000", "total = 99": "total = 99"}
VALUES = {
    r"\boxed{\frac{1}{2}}": "0.5", "<solution>The answer is 12.</solution>": "12",
    "<solution>Therefore, the answer is 9 meters</solution>": "9",
    "<solution>x = 3.5 grams</solution>": "3.5",
    "<solution>first 1</solution> <solution>second 2</solution>": "2",
    "<solution>multi\nline 3</solution>": "3", "total = 99": "99", "1e3 apples": "1000",
    "<solution>1/2</solution>": "0.5", "<solution>answer: 1,000</solution>": "1000",
    "<solution>-4.0</solution>": "-4", "<solution>Paris</solution>": "paris", "<SOLUTION>8</SOLUTION>": "8"}
UNEQUAL = {("3.504", "3.50"), ("3.506", "3.51"), ("nan", "nan"), ("inf", "inf")}
EQUAL = {("1/2", "0.5"), ("1,000", "1000")}
FINAL = {"so #### 1,200": "1,200", "nothing\nThe total: 15": "The total: 15", "Final answer: $18": "$18"}
REWARDED = {"Final Answer: 42.0", "#### 1,200"}


@pytest.mark.parametrize("case", GRADING["extract"], ids=lambda case: case["response"])
def test_the_answer_of_a_recorded_response_is_found(case):
  response = case["response"]
  found = answers.extract(response)
  assert found == EXTRACTED.get(response, case["utils"])
  assert answers.same(found, VALUES.get(response, case["utils"])) is bool(found)


@pytest.mark.parametrize("case", GRADING["grade"], ids=lambda case: f"{case['solution']}={case['truth']}")
def test_recorded_pairs_are_equal_by_exact_value(case):
  pair = case["solution"], case["truth"]
  expected = case["trainer"] and pair not in UNEQUAL or pair in EQUAL
  assert answers.same(*pair) is answers.same(*pair[::-1]) is expected


@pytest.mark.parametrize("case", GRADING["teaching"], ids=lambda case: case["text"])
def test_recorded_teaching_is_found(case):
  assert answers.teaching(case["text"]) == case["content"]


@pytest.mark.parametrize("case", EXACT["extract"], ids=lambda case: case["text"])
def test_recorded_final_answers_are_found(case):
  assert answers.extract(case["text"]) == FINAL.get(case["text"], case["answer"])


@pytest.mark.parametrize("case", EXACT["reward"], ids=lambda case: case["completion"])
def test_recorded_completions_are_graded(case):
  right = case["reward"] == 1 or case["completion"] in REWARDED
  assert answers.same(answers.extract(case["completion"]), case["truth"]) is right


@pytest.mark.parametrize("text, found", [
    (r"\boxed{a{b{c}}d} tail", "a{b{c}}d"), (r"\boxed{1} \boxed{2", "1"), (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed 7", "7"), (r"\fbox{x}", "x"), (r"{ stray \boxed{3}", "3"), (r"\boxed{}", ""), ("none", None),
    (r"\boxed", None), (r"} \boxed{4} }", "4"), (r"\boxed{\boxed{5}}", "5"),
])
def test_the_last_whole_box_counts(text, found):
  assert answers.boxed(text) == found


@pytest.mark.parametrize("text, found", [
    ("<answer>1</answer> <solution>2</solution>", "2"), ("<answer>open", "<answer>open"),
    ("**Answer:** 42", "** 42"), ("The answer is: Paris.", "Paris"), ("It is 41.\nSo 42.\nHope so!", "So 42"),
    ("answer:\n", "answer:"), ("6*7=42 #### 42", "42"), ("#### 1\n#### 2\n", "2"), ("the result is 5", "5"),
    ("</answer>1<answer>", "</answer>1<answer>"), ("Paris\n", "Paris"),
])
def test_an_answer_is_found_where_it_is_stated(text, found):
  assert answers.extract(text) == found


EQUALS = """
\\frac{1}{2} | 0.5
\\dfrac{3}{4} | 3/4
-\\frac{3}{4} | -0.75
\\frac12 | 1/2
1\\frac{1}{2} | 1.5
1 1/2 | 3/2
-1 1/2 | -1.5
½ | 0.5
1½ | 3/2
50\\% | 1/2
50% | 50
50 percent | 50%
5% | 0.05
1,000,000 | 1000000
1{,}000 | 1000
1\\,000 | 1000
$1,234.50 | 1234.5
\\$18 | 18
$18$ | 18
18 dollars | $18
-$5 | -5
9 m | 9 meters
9 meters | 9
12 apples and more | 12
90^\\circ | 90 degrees
3 cm^2 | 3
1.5\\times 10^{3} | 1500
2e-3 | 0.002
+7 | 7
.5 | 1/2
42! | 42
**42** | 42
(42) | 42
x=5 | 5
(1, 2) | (1,2)
(0.5, 3) | (1/2, 3.0)
A | (A)
\\text{Paris} | paris
"Paris" | Paris
New  York | new york
x^2 + 1 | x^2+1
\\infty | \\infty
"""
UNEQUALS = """
1,2 | 12
12,34 | 1234
2x+3 | 3
\\sqrt{2} | 2
10^3 | 3
10^3 | 103
3² | 32
1½ | 5.5
2:30 | 30
3-5 | 5
-5 | 5
1.2.3 | 3
1/0 | 0
0.333 | 1/3
9 km | 9 m
1e999999999 | 1
1e400 | 1
3+4i | 4
50% | 5
5 cm | 5%
(1, 2) | [1, 2]
(1, 2) | (2, 1)
(1, 2, 3) | (1, 2)
Paris | London
Paris, France | Paris
+inf | inf
NaN | nan
Infinity. | infinity
"""


@pytest.mark.parametrize("line", EQUALS.strip().splitlines())
def test_the_same_answer_may_be_written_in_many_ways(line):
  left, right = line.split(" | ")
  assert answers.same(left, right) and answers.same(right, left)


@pytest.mark.parametrize("line", UNEQUALS.strip().splitlines())
def test_answers_that_look_alike_are_not_equal(line):
  left, right = line.split(" | ")
  assert not answers.same(left, right) and not answers.same(right, left)


@pytest.mark.parametrize("sentence", ["the total: 15", "x = 15 grams", "12 apples and 15 pears", "about 15."])
def test_a_sentence_answers_with_its_last_number_but_never_asks_with_it(sentence):
  assert answers.same(sentence, "15") and not answers.same(sentence, "12")
  assert not answers.same("15", "the total: 15")


BABBLE = ["{", "\\boxed{", "<solution>", "9", "1,", "1 ", "answer ", "answer: ", "1/", "$", "\\frac{", "a1",
          "½", "####", "1e", "(", "1e9", "\\text{", "0.1.2", "%", " ", "\n", "[", "1e9999 ", "-", "1 1/"]


@pytest.mark.parametrize("word", BABBLE)
@pytest.mark.parametrize("times", [60, 20_000])
def test_what_a_model_babbles_is_read_without_trouble(word, times):
  text = word * times
  for truth in ("7", "seven, 8"):
    assert not answers.same(answers.extract(text), truth)
    assert not answers.same(text, truth)


LEGACY = json.loads((FIXTURES / "legacy_eval_utils.json").read_text())["extract"]


@pytest.mark.parametrize("case", LEGACY, ids=lambda case: case["t"])
def test_numbers_of_old_evaluations_are_found_with_thousands_put_right(case):
  found = answers.loose_value(answers.extract(case["t"]))
  expected = {"1,000": 1000.0}.get(case["t"], case["v"])
  assert found is None if expected is None else float(found.number) == expected
