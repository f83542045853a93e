"""The server makes ready for its first reader."""

from atlas_jax.monitor.dashboard import __main__ as main
from atlas_jax.monitor.dashboard import serve, store
from tests.monitor.dashboard import recorded


def test_the_folder_is_that_of_the_flags(tmp_path):
  command = main.command(main.parse([f"--runs={tmp_path}"]))
  assert serve.root_of(command[3:]) == str(tmp_path)


def test_runs_are_read_before_the_first_reader_comes(tmp_path):
  recorded.copy(tmp_path, "flagship_smoke")
  serve.warm(str(tmp_path))
  shared = store.store(str(tmp_path))
  (run,) = shared.look(fresh_s=1e9)
  assert run.metrics.count
