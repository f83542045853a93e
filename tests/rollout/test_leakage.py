"""Guidance that contains the answer is found, and what the question says anyway is none."""
import pytest

from atlas_jax.rollout import leakage

FOUND = [
    ("it is 132, of course", "132", "47+85=", "number"), ("write 1 3 2", "132", "", "number"),
    ("1-3-2", "132", "", "number"), ("1,320 / 10", "132", "", "number"),
    ("about 0.5", "1/2", "", "number"), (r"\boxed{7}", "7", "7 + 0 = ?", "box"),
    ("The answer is 7.", "7", "7 + 0 = ?", "box"), ("#### 7", "7", "", "box"),
    ("Look up  PARIS first", "Paris", "Capital of France?", "text"), ("choose (B)", "b", "", "text"),
    ("x132y", "132", "", "number"), ("it.132", "132", "", "number"),
    ("the total is 42", r"so \boxed{42}", "", "number"), ("1\u202f000", "1,000", "", "number"),
    (r"1{,}000", "1000", "", "number"), (r"1\,000", "1000", "", "number"), ("1.0e3", "1000", "", "number"),
    ("10^3", "1000", "", "number"), ("1 × 10^{3}", "1000", "", "number"), ("1'000", "1000", "", "number"),
    ("**13**2", "132", "", "number"), ("1\n3\n2", "132", "", "number"), ("1, 3, 2", "132", "", "number"),
    ("1<b>3</b>2", "132", "", "number"), ("1\u200b32", "132", "", "number"), ("１３２", "132", "", "number"),
    ("¹³²", "132", "", "number"), ("about .5", "1/2", "", "number"), ("50 percent", "0.5", "", "number"),
    ("0.5", "50%", "", "number"), ("½", "1/2", "", "number"), (r"\frac{1}{2}", "0.5", "", "number"),
    ("2 1/2", "2.5", "", "number"), (r"2\tfrac12", "2.5", "", "number"),
    ("The answer is 7. The result is yours", "7", "7 + 0", "box"), ("P-a-r-i-s", "Paris", "", "text"),
    ("Pa\nris", "Paris", "", "text"), ("**Par**is", "Paris", "", "text"),
    ("TheParisCity", "Paris", "", "text"), ("paris_2024", "Paris", "", "text"),
    ("Pari\u00ads", "Paris", "", "text"), ("(1,2)", "(1, 2)", "", "text"),
    ("$x^2 + 1$", "x^2+1", "", "text"), ("x/2", r"\frac{x}{2}", "", "text"), ("[B]", "b", "", "text"),
    ("NewYork", "New York", "", "text"), ("pick option **B**", "B", "(A) or (B)?", "text"),
    ("it is 4|2", "42", "", "number"), ("think of \u0420\u0430ris", "Paris", "", "text"),  # Cyrillic letters.
    ("x" * 30_000 + " 7", "7", "", "number")]
MISSED = [
    ("add 47 and 85", "132", "47+85="), ("mind the 7", "7", "7 + 0 = ?"), ("a hint", "a", ""),
    ("parisian", "Paris", ""), ("work from the right", "132", ""), ("see 1320", "132", ""),
    ("0.132", "132", ""), ("choose a method", "A", ""), ("a n-th root", "an", ""), ("note that", "no", ""),
    ("1. Add.\n2. Carry.", "12", ""), ("1 + 2", "12", ""), ("10^2", "102", ""), ("| 1 | 2 |", "12", ""),
    ("Paris is in the question", "Paris", "Is Paris a city?"), ("132", None, ""), ("132", " ", "")]


@pytest.mark.parametrize(("guidance", "answer", "question", "kind"), FOUND)
def test_an_answer_is_found_in_guidance(guidance, answer, question, kind):
  assert leakage.leak(guidance, answer, question) == kind


@pytest.mark.parametrize(("guidance", "answer", "question"), MISSED)
def test_guidance_without_the_answer_is_no_leak(guidance, answer, question):
  assert leakage.leak(guidance, answer, question) is None


@pytest.mark.parametrize("part", ["1 ", "1,", "answer is ", "\\frac{", "<a", "P-a-", "1/", "10^", "\\boxed{",
                                  "."])
def test_a_long_text_is_searched_to_its_end(part):
  assert leakage.leak(part * 10_000 + " 132 ", "132") in ("box", "number")
  assert leakage.leak(part * 10_000 + " Paris ", "Paris") in ("box", "text")


def test_a_prompt_that_shows_the_solution_is_contaminated():
  asked = "2+2="
  assert leakage.contaminated(f"{asked}\nSolve it.", answer="4", question=asked) is None
  assert leakage.contaminated(f"{asked}\nsolution: 4", answer="4", question=asked) == "number"
  told = dict(answer="4", solution="Two and two make four.", question=asked)
  assert leakage.contaminated(f"two and two make four. {asked}", **told) == "solution"
  rows = [("2+2= 4", "4", None, "2+2="), ("2+2=", "4", None, "2+2=")]
  assert leakage.count_contaminated(rows) == 1
