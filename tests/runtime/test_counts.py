"""Sums over sessions."""
from atlas_jax.data.traces.record import Trace
from atlas_jax.runtime import counts


def trace(teacher, score=None, verified=None, lane="paired", source="grader"):
  record = {"task": "t", "final_answer": "a", "steps": [], "execution_mode": lane, "verified": verified,
            "versions": {"teacher": teacher}, "session_metadata": {"status": "succeeded"},
            "tokens": {"teacher": {"prompt": 3, "completion": 1, "calls": 1}}}
  if score is not None:
    record |= {"session_reward": {"score": score, "source": source}, "reward_stats": {"score": score,
                                                                                      "source": source}}
  return Trace.from_json(record)


def test_accuracy_is_of_graded_sessions_alone_and_what_is_unknown_is_none():
  found = counts.of_traces([trace("a", 1.0), trace("a", 0.0), trace("a", 1.0, source="judge"), trace("b",
                                                                                                     verified=True)])
  assert found["by_teacher"]["a"]["accuracy"] == 0.5 and found["by_teacher"]["a"]["graded"] == 2
  assert found["by_teacher"]["b"]["accuracy"] is None and found["by_teacher"]["b"]["verified"] == 1.0
  assert found["all"]["sessions"] == 4 and found["all"]["tokens"] == {"teacher": 16}
  shown = "\n".join(counts.lines(found))
  assert "teacher a" in shown and "50.0%" in shown and "–" in shown
