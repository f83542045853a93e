"""Metrics of sessions, and the rules over them: quiet while all is well, and loud when it is not."""
import pytest

from atlas_jax.defaults import alerts
from atlas_jax.monitor import schema
from atlas_jax.monitor.writer import MetricsWriter, read_rows
from atlas_jax.runtime import measures
from atlas_jax.runtime.measures import Gauges, Measures
from atlas_jax.runtime.result import AttemptRecord, SessionResult


def result(*, verified=True, lane="paired", reward_status="ok", score=1.0, answer="4", **attempt):
  attempts = (AttemptRecord(1, 1, answer, "passed", validation={"valid": True}, score=score,
                            score_source="grader")._replace(**attempt),)
  return SessionResult("k", 1, answer, verified, lane, "succeeded", attempts, reward=score,
                       reward_status=reward_status,
                       tokens={"student": {"prompt": 3, "completion": 2, "calls": 1},
                               "teacher": {"calls": 1}})


def test_a_row_counts_what_ended_since_the_row_before():
  found = Measures(lambda: Gauges(queue=7, spooled=1))
  found.add(result(lane="auto", score=0.0, verified=None))
  found.add(result())
  undecided = result(reward_status="no_verdict", score=None, score_source=None, verified=False)
  found.add(undecided, drift_alert=True)
  found.add(result(answer=None, status="unverified", validation=None, problem="down", score=None,
                   score_source=None, reward_status="skipped", verified=None))
  row = found.row()
  assert row == pytest.approx({
    "runtime/sessions": 4, "runtime/lane_auto_share": 1 / 4, "runtime/verified_share": 1 / 3,
    "runtime/accuracy": 0.5, "runtime/teacher_error_share": 1 / 4, "runtime/no_verdict_share": 1 / 3,
    "runtime/drift_alerts": 1, "runtime/queue": 7, "runtime/late_threads": 0, "runtime/spooled": 1,
    "runtime/leases_expired": 0, "runtime/events_dropped": 0, "runtime/sinks_detached": 0,
    "runtime/tokens_by_role/student": 20, "runtime/tokens_by_role/teacher": 0})
  assert schema.unknown(row) == []
  again = found.row()
  # Of none there is no fraction.
  assert again["runtime/sessions"] == 4 and "runtime/verified_share" not in again


def rows(tmp_path, faulty):
  """Writes twelve rows of 20 sessions; returns the rules that told of them."""
  state = {"gauges": Gauges()}
  found = Measures(lambda: state["gauges"])
  rules = measures.engine(alerts.group())
  told = []
  with MetricsWriter(tmp_path, tensorboard=False) as writer:
    for number in range(12):
      is_faulty = faulty is not None and number >= 8
      for place in range(20):
        one, drift = result(verified=place % 10 > 0, reward_status="ok" if place else "no_verdict"), False
        if is_faulty:
          one, drift = one._replace(**faulty.get("result", {})), faulty.get("drift", False)
        found.add(one, drift_alert=drift)
      if is_faulty and "gauge" in faulty:
        state["gauges"] = state["gauges"]._replace(**{faulty["gauge"]: number})
      told += measures.write(writer, found, rules)
  assert len(list(read_rows(tmp_path / "metrics.jsonl"))) == 12
  return {one.rule for one in told if one.state == "firing"}


def test_healthy_sessions_raise_no_alarm(tmp_path):
  assert rows(tmp_path, None) == set()


@pytest.mark.parametrize("rule, fault", [
  ("verified_falls", {"result": {"verified": False}}),
  ("no_verdict", {"result": {"reward_status": "no_verdict"}}), ("reward_drift", {"drift": True}),
  ("store_down", {"gauge": "spooled"}), ("leases_expired", {"gauge": "leases_expired"})])
def test_each_fault_raises_its_own_alarm(tmp_path, rule, fault):
  assert rows(tmp_path, fault) == {rule}
