"""Sessions are approved and quarantined by compare-and-set, and every move is logged."""
import concurrent.futures

import pytest

from atlas_jax.data.traces import review
from atlas_jax.data.traces.connections import StoreConflict
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.review import Decision, ReviewRefused
from atlas_jax.data.traces.store import open_store
from tests import stores


@pytest.fixture
def filled(store_url):
  with open_store(store_url, writable=True, create=True) as opened:
    opened.write_all(stores.exported())
    yield opened


def moves(store, number):
  return [(move["from"], move["to"], move["who"], move["note"]) for move in store.moves(number)]


def test_every_move_is_logged_with_who_and_why(filled):
  assert review.decide(filled, 2, "quarantined", who="ada", note="odd") == Decision(2, "pending", True)
  assert review.decide(filled, 2, "approved", who="bo") == Decision(2, "quarantined", True)
  assert moves(filled, 2) == [("pending", "quarantined", "ada", "odd"),
                              ("quarantined", "approved", "bo", None)]
  session = filled.session(2).rows.session
  assert (session["review_status"], session["review_notes"]) == ("approved", "odd")


def test_a_status_that_a_trace_brings_is_logged_too(filled):
  assert moves(filled, 1) == [(None, "approved", "writer", "looks right")]
  assert moves(filled, 4) == []


def test_deciding_again_moves_nothing(filled):
  assert review.decide(filled, 1, "approved", who="ada") == Decision(1, "approved", False)
  assert len(filled.moves(1)) == 1


def test_an_approval_is_withdrawn_with_a_note_alone(filled):
  with pytest.raises(ReviewRefused, match="session 1 is approved; say by --note"):
    review.decide(filled, 1, "quarantined", who="ada", note=" ")
  assert review.decide(filled, 1, "quarantined", who="ada", note="wrong log").moved


@pytest.mark.parametrize("number, status, said", [(99, "approved", "no session 99"), (1, "odd", "not to")])
def test_what_cannot_be_decided_is_refused(filled, number, status, said):
  with pytest.raises(ReviewRefused, match=said):
    review.decide(filled, number, status, who="ada")


def test_of_reviewers_at_once_one_moves_a_session(filled):
  def approve(who):
    try:
      return review.decide(filled, 2, "approved", who=who).moved
    except StoreConflict:
      return False
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    done = list(pool.map(approve, "abcd"))
  assert sum(done) == 1 == len(filled.moves(2))


def test_lines_count_the_audit_and_show_the_drift(filled):
  [stored] = [one for page in filled.pages(SessionQuery()) for one in page]
  text = "\n".join(review.lines(stored))
  assert "Reward audit entries: 3" in text and "reward=0.88±0.02 (n=3)" in text
  assert "| ok " in text and "reason=insufficient_baseline" in text and "Notes: looks right" in text


def test_no_text_of_a_session_moves_the_terminal(filled):
  number = filled.write(Trace.from_json({"task": "a\x1b[2Jb\nc", "review_notes": "\x9bm"}))
  text = "".join(review.lines(filled.session(number)))
  assert text.isprintable() and "a?[2Jb c" in text


def test_matching_yields_ids_of_a_query(filled):
  failed = SessionQuery(review_statuses=("pending",), statuses=("failed",))
  assert list(review.matching(filled, failed)) == [4]
