"""The figures of the lane for a real server, from runs made up here."""
import json

import pytest

from scripts import vllm_cpu_lane

LOG = ("INFO:absl:version 0 of the weights handed over in 9.50 s; largest gap 2.4e-05 nats\n"
       "INFO:absl:version 1 of the weights handed over in 0.20 s; largest gap 8e-06 nats\n")


def write_run(out, name, rewards):
  """Writes what a run leaves."""
  (out / name).mkdir()
  rows = [{"step": step, "rollout/reward_mean": reward, "policy/sampler_gap_nats_max": 1e-5,
           "perf/step_s": 1.5}
          for step, reward in enumerate(rewards, 1)]
  (out / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (out / f"{name}.log").write_text(LOG)


@pytest.mark.parametrize("last, code", [(0.5, 0), (0.6, 0), (0.9, 1), (0.2, 1)])
def test_the_curves_must_agree_within_noise(tmp_path, last, code):
  (tmp_path / "sampler.json").write_text('{"tokens_per_s": 700.0}')
  write_run(tmp_path, "arithmetic", [0.1] * 10)
  write_run(tmp_path, "letters_vllm", [0.2] * 10 + [last] * 10)
  write_run(tmp_path, "letters_native", [0.21] * 10 + [0.48] * 10)
  write_run(tmp_path, "letters_native_other_seed", [0.22] * 10 + [0.58] * 10)
  assert vllm_cpu_lane.main(tmp_path, "Version: 0.32.0") == code
  figures = json.loads((tmp_path / "figures.json").read_text())
  assert figures["letters"]["every_ten"]["vllm"] == [0.2, last]
  assert figures["arithmetic"]["versions"] == [0, 1] and figures["arithmetic"]["gap_nats_max"] == 2.4e-5
