"""This machine as a target: it is measured, once a process, and its numbers are of this world."""

from atlas_jax.plan import machine, targets


def test_this_machine_is_measured_once(monkeypatch):
  monkeypatch.setattr(machine, "SIZES", (8, 32))
  monkeypatch.setattr(machine, "VECTOR", 2**16)
  monkeypatch.setattr(machine, "REPEATS", 2)
  target = targets.load("cpu")
  assert targets.load("cpu") is target
  assert target.kind == "cpu" and "cores" in target.description
  assert all(rate > 0 for _, rate in target.rates) and len(target.rates) == 2
  assert target.memory_bandwidth_bytes_s > 0
  assert target.launch_s > 0 and target.transcendental_s >= 0
  assert target.memory_bytes > 2**28 and target.sources[""]["title"] == "measured on this machine"
