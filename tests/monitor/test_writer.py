"""The metrics file and its event files."""
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.monitor import writer


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_row_is_one_json_object_and_is_on_disk_at_once(tmp_path):
  metrics = writer.MetricsWriter(tmp_path, tensorboard=False)
  numbers = {"train/loss_nats": jnp.float32(0.5), "train/tokens_seen": np.int64(2**40), "a/flag": True}
  metrics.write(10, numbers)
  assert rows(tmp_path) == [{"step": 10, "train/loss_nats": 0.5, "train/tokens_seen": 2**40, "a/flag": 1}]
  metrics.close()
  metrics.close()


def test_what_is_not_finite_stays_valid_json(tmp_path):
  with writer.MetricsWriter(tmp_path, tensorboard=True) as metrics:
    metrics.write(1, {"a": math.nan, "b": jnp.float32(jnp.inf), "c": jnp.bfloat16(2.0)})
  line = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "a": None, "b": None, "c": 2.0}


def test_a_resumed_run_writes_every_step_once(tmp_path):
  with writer.MetricsWriter(tmp_path, tensorboard=False) as metrics:
    for step in (10, 20, 30):
      metrics.write(step, {"loss": step})
  with (tmp_path / "metrics.jsonl").open("a") as stream:
    stream.write('{"step": 40, "lo')  # What a crash leaves.
  with writer.MetricsWriter(tmp_path, tensorboard=False, resume_step=20) as metrics:
    assert [row["step"] for row in rows(tmp_path)] == [10, 20]
    metrics.write(30, {"loss": -30})
  assert rows(tmp_path)[2] == {"step": 30, "loss": -30}
  assert not list(tmp_path.glob("*.new"))


def test_a_new_run_leaves_no_row_of_an_earlier_attempt(tmp_path):
  for value in (1.0, 2.0):
    with writer.MetricsWriter(tmp_path, tensorboard=False) as metrics:
      metrics.write(5, {"loss": value})
  assert rows(tmp_path) == [{"step": 5, "loss": 2.0}]


def test_numbers_of_the_same_step_join_its_row(tmp_path):
  with writer.MetricsWriter(tmp_path, tensorboard=False) as metrics:
    metrics.write(2, {"loss": 2.0})
    metrics.write(3, {"loss": 1.0, "long/name": 1.23456789})
    metrics.write(3, {"val": 5.0, "loss": 1.5})
    metrics.write(4, {"loss": 0.5})
  assert rows(tmp_path) == [
      {"step": 2, "loss": 2.0}, {"step": 3, "loss": 1.5, "long/name": 1.23456789, "val": 5.0},
      {"step": 4, "loss": 0.5}]
  with writer.MetricsWriter(tmp_path, tensorboard=False, resume_step=4) as metrics:
    metrics.write(4, {"val": 6.0})  # A finished run that is started again.
    metrics.write(5, {"loss": 0.25})
  assert rows(tmp_path)[2:] == [{"step": 4, "loss": 0.5, "val": 6.0}, {"step": 5, "loss": 0.25}]


def test_steps_rise_and_values_are_single_numbers(tmp_path):
  with writer.MetricsWriter(tmp_path, tensorboard=False) as metrics:
    metrics.write(3, {"loss": 1.0})
    with pytest.raises(ValueError, match="step 2 come after those of step 3"):
      metrics.write(2, {"loss": 1.0})
    with pytest.raises(TypeError, match=r"shape \(2,\)"):
      metrics.write(4, {"loss": np.ones(2)})


def test_a_broken_line_in_the_middle_is_named(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
  with pytest.raises(ValueError, match="metrics.jsonl:2: not JSON"):
    list(writer.read_rows(tmp_path / "metrics.jsonl"))


def test_tensorboard_reads_the_same_numbers(tmp_path):
  accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
  with writer.MetricsWriter(tmp_path) as metrics:
    metrics.write(1, {"train/loss_nats": 2.0})
    metrics.write(2, {"train/loss_nats": 9.0})
  with writer.MetricsWriter(tmp_path, resume_step=1) as metrics:
    metrics.write(2, {"train/loss_nats": 1.5})
    metrics.write_text(2, "sample", "def <name>():")
    metrics.write_image(2, "report", np.zeros((4, 6, 3), np.uint8))
  events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
  events.Reload()
  assert [(event.step, event.value) for event in events.Scalars("train/loss_nats")] == [(1, 2.0), (2, 1.5)]
  assert any("sample" in name for name in events.Tags()["tensors"])
  assert events.Tags()["images"] == ["report"]
