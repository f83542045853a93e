"""Batches of high loss are found and traced to their text, and found again by a run that goes on."""
import json
import math

import pytest

from atlas_jax import recipes, train
from atlas_jax.monitor.high_loss import KEEP_STEPS, WARM_STEPS, HighLoss
from tests import runs
from tests.helpers import quick_compilation

LOSSES = [2.0 + 0.1 * math.sin(7 * i) for i in range(WARM_STEPS + 30)]
EPISODIC = {"memory_lm": {}, "episodic": {**runs.EPISODES, "model__gate_floor": 0.05}}


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def lines(file):
  return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def follow(watch, losses, *, first=1):
  source = runs.ToySource(2)
  return [step for step, loss in enumerate(losses, start=first) if watch.observe(step, loss, source)]


def test_a_loss_far_above_its_mean_is_noted_with_its_batch(tmp_path):
  file = tmp_path / "high_loss.jsonl"
  losses = [*LOSSES, 3.0, 2.0, math.nan]
  assert follow(HighLoss(file, 6.0), losses) == [len(LOSSES) + 1, len(LOSSES) + 3]
  high, gone = lines(file)
  assert high["step"] == len(LOSSES) + 1 and high["loss_nats"] == 3.0
  assert high["mean_nats"] == pytest.approx(2.0, abs=0.05)
  assert high["deviation_nats"] == pytest.approx(0.1 / 2**0.5, rel=0.3)
  assert high["rows"] == [{"origin": f"numbers@{len(LOSSES)}"}]
  assert gone["loss_nats"] is None and gone["rows"] == [{"origin": f"numbers@{len(LOSSES) + 2}"}]


def test_the_first_losses_and_those_that_fall_are_none(tmp_path):
  watch = HighLoss(tmp_path / "high.jsonl", 6.0)
  assert follow(watch, [9.0 / (1 + i / 10) for i in range(200)]) == []
  assert follow(HighLoss(tmp_path / "high.jsonl", 6.0), [1.0] * (WARM_STEPS - 1) + [50.0]) == []
  assert follow(HighLoss(tmp_path / "high.jsonl", None), [*LOSSES, 99.0]) == []
  assert not (tmp_path / "high.jsonl").exists()


def test_a_level_that_stays_is_soon_no_longer_high(tmp_path):
  steps = follow(HighLoss(tmp_path / "high.jsonl", 6.0), [*LOSSES, *[5.0] * 3 * KEEP_STEPS])
  assert 1 <= len(steps) <= 5


def test_going_on_from_what_was_saved_finds_the_same(tmp_path):
  losses = [*LOSSES, 3.0, *LOSSES, 4.0]
  whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
  follow(HighLoss(whole, 6.0), losses)
  cut = len(LOSSES) - 3
  first = HighLoss(parts, 6.0)
  follow(first, losses[:cut])
  saved = json.loads(json.dumps(first.saved()))
  follow(first, losses[cut:-2], first=cut + 1)  # Lost with a kill: a line of it is in the file.
  assert len(lines(parts)) == 1
  with parts.open("a") as out:
    out.write('{"step": 9')
  again = HighLoss(parts, 6.0, saved)
  again.start(cut)
  assert lines(parts) == []
  follow(again, losses[cut:], first=cut + 1)
  assert lines(parts) == lines(whole) and len(lines(whole)) == 2


def test_a_run_that_goes_on_writes_what_one_without_a_stop_does(tmp_path):
  config = runs.toy_config(optim__steps=40, optim__lr=1e-4, checkpoint__every_steps=25,
                           monitor__high_loss_deviations=1.2)

  def start(name, stop_at=None):
    ask = lambda step: runs.ask_to_stop() if step == stop_at else None
    return train.run(config, runs.toy_recipe(config, before=ask), runs.one_device(), tmp_path / name)

  start("whole")
  assert start("cut", stop_at=30) == {}
  start("cut")
  assert lines(tmp_path / "cut" / "high_loss.jsonl") == lines(tmp_path / "whole" / "high_loss.jsonl") != []


@pytest.mark.parametrize("recipe", ["memory_lm", "episodic"])
def test_lines_name_documents_files_and_bytes(recipe, tmp_path):
  corpus = runs.write_corpus(tmp_path / "text")
  config = runs.lm_config(corpus, recipe=recipe, **EPISODIC[recipe])
  source = recipes.load(config, runs.one_device()).source
  watch = HighLoss(tmp_path / "high.jsonl", 6.0)
  batch = source.next(None)
  assert watch.observe(1, math.inf, source)
  rows = lines(tmp_path / "high.jsonl")[0]["rows"]
  assert [row["origin"] for row in rows] == source.provenance(0)
  of_text = [(row, number) for number, row in enumerate(rows) if "documents" in row]
  assert len(of_text) == (4 if recipe == "memory_lm" else 2)
  for row, number in of_text:
    read = b""
    for found in row["documents"]:
      text = (corpus / found["document"].rpartition("/")[2]).read_bytes()
      read += text[found["byte"]:found["byte"] + found["tokens"]]
    tokens = [token for token in batch["tokens_BT"][number].tolist() if token < 256]
    assert read == bytes(tokens)


def test_a_run_has_the_version_and_what_the_machine_does(tmp_path):
  config = runs.toy_config(optim__steps=30, monitor__system_every_s=0.001)
  train.run(config, runs.toy_recipe(config), runs.one_device(), tmp_path)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert rows[0]["metrics_version"] == 1 and not any("metrics_version" in row for row in rows[1:])
  assert rows[-1]["system/memory_gib"] > 0 and rows[-1]["system/disk_free_gib"] > 0
  assert json.loads((tmp_path / "summary.json").read_text())["metrics_version"] == 1
