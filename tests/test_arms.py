"""Arms of a study: equal parameters, one command each, and what is said of their seeds."""

import json
import math

import pytest

from experiments import arms
from experiments.memory_pays import hour
from experiments.memory_pays import run as memory_pays
from experiments.what_makes_memory_pay import run as choices
from experiments.window import analysis as windows
from experiments.window import run as window

TINY = {"model.width": 32, "model.depth": 2, "model.heads": 2}


def test_an_arm_gets_the_width_that_comes_nearest_to_the_parameters_asked_for():
  arm = arms.Arm("one", "", "configs/memory_40m.py:cpu,pretrain", TINY)
  params = arms.parameters(arm.config, {**TINY, "model.ff_width": 96})
  fields = arms.fitted(arm, params)
  assert fields == {**TINY, "model.ff_width": 96}
  assert arms.flags_of(arm, fields, 3)[-2:] == ["--config.model.ff_width=96", "--config.seed=3"]
  with pytest.raises(ValueError, match="arm 'one' has .* parameters at config.model.ff_width=8, not 1000"):
    arms.fitted(arm, 1_000)


@pytest.mark.parametrize("arm", [*memory_pays.ARMS, *hour.ARMS], ids=lambda arm: f"{arm.name} {arm.config}")
def test_arms_of_the_quickstart_and_the_hour_have_as_many_parameters_as_the_memory(arm):
  memory = memory_pays.ARMS[0]
  share = arms.parameters(arm.config, arm.fields) / arms.parameters(memory.config, memory.fields)
  assert abs(share - 1) < 0.011


@pytest.mark.parametrize("arm", [*choices.ARMS, *window.ARMS], ids=lambda arm: arm.name)
def test_arms_of_choices_can_be_built_at_the_size_of_the_study(arm):
  assert arms.fitted(arm, choices.PARAMS)["model.ff_width"] >= 8


def test_a_table_has_means_and_intervals_over_the_seeds_that_there_are():
  rows = {"a/0": {"x": 1.0}, "a/1": {"x": 3.0}, "b/0": {"x": 2.0, "y": None}}
  assert arms.over_seeds(rows, "a", "x") == [1.0, 3.0] and arms.over_seeds(rows, "b", "y") == []
  mean, low, high = arms.interval([1.0, 3.0])
  assert (mean, high - mean) == (2.0, mean - low) and math.isclose(high - mean, 12.706, rel_tol=1e-4)
  told = arms.table(rows, [arms.Arm(name, f"arm {name}", "") for name in "abc"], {"x": "loss", "y": "gain"})
  assert told.splitlines() == [
    "| arm | what | seeds | loss | gain |", "| --- | --- | --- | --- | --- |",
    "| a | arm a | 2 | 2.000 (-10.706 to 14.706) |  |", "| b | arm b | 1 | 2.000 |  |"]


def test_windows_are_compared_in_pairs_of_one_seed(tmp_path):
  rows = {"memory_64/0": (2.0, 0.2), "memory_64/1": (2.2, 0.3), "none_64/0": (2.5, None),
          "memory_random/1": (2.1, 0.35), "memory_random/2": (9.0, 9.0)}
  rows = {name: {windows.BITS: bits, windows.SWAPPED: gain} for name, (bits, gain) in rows.items()}
  assert windows.told(windows.differences(rows, "memory_random", "memory_64", windows.BITS)) == "-0.100"
  assert windows.table(rows).splitlines()[2:] == [
    "| 64 tokens | 2 |  |  | +0.500 |  |",
    "| random from 4 to 64 in training, then 64 | 2 | -0.100 |  |  | +0.050 |"]
  windows.draw(rows, tmp_path / "x.png")


def test_what_the_file_holds_is_not_run_again_and_what_fails_says_why(tmp_path, monkeypatch):
  out, calls = tmp_path / "rows.json", []
  out.write_text(json.dumps({"one/0": {"val_bits_per_byte": 1.0}}))
  arm = arms.Arm("one", "", "configs/memory_40m.py:nowhere")
  asked = [f"--out={out}", f"--workdir={tmp_path}", "--seeds=0"]
  arms.run([arm], params=None, argv=asked, says="", then=lambda *given: calls.append(given[1]) or {})
  assert calls == [0] and set(arms.read(out)) == {"one/0"}
  with pytest.raises(RuntimeError, match="nowhere.* failed: .*argument 'nowhere' is unknown"):
    arms.run([arm], params=None, argv=[*asked[:2], "--seeds=1"], says="")
