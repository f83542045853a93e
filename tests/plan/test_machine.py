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


def test_of_two_measurements_the_faster_of_each_number_counts():
  names = ("memory_bandwidth_bytes_s", "vector_flops_s", "ici_bytes_s", "dcn_bytes_s", "launch_s",
           "transcendental_s")
  one = {**dict.fromkeys(names, 1.0), "rates": ((8.0, 1.0), (16.0, 4.0)), "flops_s": {"float32": 4.0}}
  other = {**dict.fromkeys(names, 2.0), "rates": ((8.0, 2.0), (16.0, 3.0)), "flops_s": {"float32": 3.0}}
  found = machine.better(one, other)
  assert found["rates"] == ((8.0, 2.0), (16.0, 4.0)) and found["flops_s"] == {"float32": 4.0}
  assert [found[name] for name in names] == [2.0, 2.0, 2.0, 2.0, 1.0, 1.0]
