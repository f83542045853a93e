"""Runs of a server, read by turns."""

from atlas_jax.monitor.dashboard import store
from tests.monitor.dashboard import recorded

FLAGSHIP = "flagship_smoke"


def test_all_runs_are_read_in_turn_where_time_is_short(tmp_path, monkeypatch):
  recorded.copy(tmp_path)
  monkeypatch.setattr(store, "MOST_S", 0.0)
  shared = store.Store(tmp_path)
  for _ in recorded.NAMES:
    found = shared.look(FLAGSHIP)
    assert next(run for run in found if run.name == FLAGSHIP).metrics.count
  assert sum(run.metrics.count > 0 for run in found) < len(found), "the chosen run alone was read"
  for _ in recorded.NAMES:
    found = shared.look()
  assert shared.look(fresh_s=60) is found
  assert all(run.metrics.count for run in found)


def test_all_readers_of_a_folder_have_one_store(tmp_path):
  assert store.store(str(tmp_path)) is store.store(str(tmp_path))
