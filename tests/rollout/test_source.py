"""Rollouts as batches: what is in them, and going on in the middle of one."""
import json
import math

import numpy as np
import pytest

from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.rollout import ask, prompted
from atlas_jax.rollout.groups import Scoring
from atlas_jax.state import Trained
from tests.helpers import assert_close
from tests.rollout.rollouts import BYTES, WORDS, listed, made, old_logprobs, same, written


def test_a_batch_has_prompts_completions_and_advantages():
  rollouts, _ = made(pad_tokens=4, table_rows=4)
  batch = rollouts.next(Trained(None))
  assert batch["tokens_BS"].shape[1] % 4 == batch["completion_BT"].shape[1] % 4 == 0
  texts = written(batch)
  assert [prompt for prompt, _ in texts] == [texts[0][0]] * 3 + [texts[3][0]] * 3
  for row, (prompt, completion) in enumerate(texts):
    whole = BYTES.decode(batch["tokens_BS"][row][batch["doc_BS"][row] == 0])
    assert whole == prompt + completion and completion in WORDS
    assert batch["completion_mask_BT"][row].sum() == min(4, len(completion) + 1)
    assert batch["truncated_B"][row] == (len(completion) == 4)
  reward_BG = np.array([len(completion) for _, completion in texts], np.float32).reshape(2, 3)
  centred = reward_BG - reward_BG.mean(1, keepdims=True)
  assert_close(batch["advantage_B"], (centred / (reward_BG.std(1, ddof=1, keepdims=True) + 1e-4)).reshape(-1),
               tolerance=1e-5)
  assert batch["sampler_logprob_BT"].sum() == pytest.approx(6 * -math.log(5), rel=1e-5)
  assert set(batch["row_mask_B"]) == {1.0}
  assert_close(batch["tokens_per_row_B"], np.full(6, batch["completion_mask_BT"].sum() / 6, np.float32))


def test_all_prompts_are_asked_in_every_epoch_and_none_is_dropped():
  rollouts, _ = made(batch_rows=6)
  asked = [prompt for _ in range(5) for prompt, _ in written(rollouts.next(Trained(None)))[::3]]
  assert sorted(asked[:5]) == sorted(asked[5:]) == ["p", "qq", "rrr", "ssss", "t"]


def test_order_differs_from_the_originals_only_in_its_draws_and_what_it_drops():
  """Of grpo_sampler.json n10_mini2_batch3_repeat1_art1: 10 prompts, groups of 2, 3 prompts a batch.

  The original draws its order by torch's generator, which nothing else repeats, and drops the prompt that
  fills no batch, though it counts it.
  """
  theirs = [2, 2, 6, 6, 1, 1, 8, 8, 4, 4, 5, 5, 0, 0, 9, 9, 3, 3]
  rollouts, _ = made(listed(*map(str, range(10))), options=SamplingOptions(n=2, max_tokens=4,
                                                                           stop_tokens=(256,)))
  ours = [int(prompt) for _ in range(10) for prompt, _ in written(rollouts.next(Trained(None)))]
  assert ours[::2] == ours[1::2] and theirs[::2] == theirs[1::2]
  assert [sorted(ours[first:first + 20:2]) for first in (0, 20, 40)] == [list(range(10))] * 3
  assert set(range(10)) - set(theirs) == {7}


def test_rollouts_differ_and_do_not_depend_on_what_was_drawn_before():
  rollouts, _ = made(listed("p", "p", "p", "p"))
  first, second = rollouts.next(Trained(None)), rollouts.next(Trained(None))
  assert written(first) != written(second)
  again, _ = made(listed("p", "p", "p", "p"))
  again.restore({**again.state(), "step": 1, "prompts": {**again.state()["prompts"], "step": 2}})
  same(again.next(Trained(None)), second)


def test_the_sampler_gets_the_weights_of_every_update():
  rollouts, writer = made()
  for step in range(3):
    rollouts.next(Trained(f"weights {step}"))
    assert (writer.params, writer.version) == (f"weights {step}", step)


def test_what_is_not_trained_reaches_the_sampler():
  rollouts, writer = made()
  rollouts._whole = lambda params, frozen: (params, frozen["base"])
  rollouts.next(Trained(1, {"base": 7}))
  assert writer.params == (1, 7)


@pytest.mark.parametrize("batches, passes", [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_a_run_restored_anywhere_goes_on_bit_for_bit(batches, passes):
  fields = dict(batches_per_rollout=batches, updates_per_batch=passes, old=old_logprobs,
                zero_std_groups="resample", table_rows=3)
  whole, _ = made(**fields)
  batches_of_all, told = [], []
  for step in range(8):
    batches_of_all.append(whole.next(Trained(0.5 * step)))
    told.append(whole.metrics())
  part, _ = made(**fields)
  for step in range(8):
    part = made(**fields)[0] if step == 0 else restored(part, fields)
    same(part.next(Trained(0.5 * step)), batches_of_all[step])
    scalars = {name: value for name, value in part.metrics().scalars.items() if not name.endswith("_s")}
    assert scalars == {name: told[step].scalars[name] for name in scalars}
    assert part.metrics().text == told[step].text


def restored(part, fields):
  """A new source at the place of another."""
  other, _ = made(**fields)
  other.restore(json.loads(json.dumps(part.state())))
  return other


def test_a_rollout_is_used_as_often_as_asked_and_groups_stay_whole():
  rollouts, writer = made(batches_per_rollout=3, updates_per_batch=2, old=old_logprobs)
  batches = [rollouts.next(Trained(2.0)) for _ in range(6)]
  assert writer.calls == 1
  first = sorted(text for batch in batches[:3] for text in written(batch))
  assert first == sorted(text for batch in batches[3:] for text in written(batch))
  assert [written(batch) for batch in batches[:3]] != [written(batch) for batch in batches[3:]]
  for batch in batches:
    prompt = [prompt for prompt, _ in written(batch)]
    assert len(set(prompt[:3])) == len(set(prompt[3:])) == 1
    assert_close(batch["old_logprob_BT"], (batch["completion_BT"] * 0.125 + 2.0).astype(np.float32))
  rollouts.next(Trained(None or 0.0))
  assert writer.calls == 2


def test_processes_together_have_the_batch_of_one():
  fields = dict(batch_rows=12, batches_per_rollout=2, updates_per_batch=2,
                old=lambda params, frozen, batch: np.zeros((12, 4)))
  alone, _ = made(**fields)
  left, right = (made(place=(index, 2), **fields)[0] for index in (0, 1))
  for _ in range(5):
    whole, parts = alone.next(Trained(0.0)), (left.next(Trained(0.0)), right.next(Trained(0.0)))
    same({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)
    step = alone.step - 1
    assert alone.provenance(step) == [*left.provenance(step), *right.provenance(step)]
  assert alone.state()["prompts"] == right.state()["prompts"]


def test_numbers_of_a_rollout_are_told():
  rollouts, _ = made(batch_rows=15, batches_per_rollout=2, table_rows=5)
  for age in range(2):
    batch = rollouts.next(Trained(None))
    told = rollouts.metrics()
    assert told.scalars["rollout/age_updates"] == age
  assert told.text == "" and batch["completion_mask_BT"].any()
  expected = {"reward_mean", "reward_std", "reward/tests.rollout.rollouts.size_mean", "length_mean_tokens",
              "length_min_tokens", "length_max_tokens", "truncated_frac", "terminated_frac", "generate_s",
              "terminated_length_mean_tokens", "flat_groups_frac", "resampled_groups", "masked_groups",
              "skipped_prompts", "reward_s"}
  assert {f"rollout/{name}" for name in expected} <= told.scalars.keys()
  assert told.scalars["rollout/truncated_frac"] + told.scalars["rollout/terminated_frac"] == 1


def test_numbers_of_the_sampler_are_told():
  rollouts, writer = made()
  writer.stats = {"hand_over_s": 0.5}
  rollouts.next(Trained(None))
  assert rollouts.metrics().scalars["rollout/hand_over_s"] == 0.5


def test_completions_are_written_down(tmp_path):
  rollouts, _ = made(batch_rows=15, table_rows=4, workdir=tmp_path)
  for _ in range(2):
    rollouts.next(Trained(None))
  rows = table_rows(tmp_path)
  assert [row["step"] for row in rows] == [1] * 4 + [2] * 4
  assert len({row["prompt"] for row in rows[:4]}) == 4
  for row in rows:
    assert row["completion"] in WORDS and row["reward"] == len(row["completion"])
    assert row["rewards"] == {"tests.rollout.rollouts.size": row["reward"]}
    assert row["reason"] in ("stop_token", "length") and row["version"] == row["step"] - 1
    assert repr(row["completion"]) in rollouts.metrics().text or row["step"] == 1


def test_a_start_drops_what_an_earlier_one_wrote_beyond_it(tmp_path):
  rollouts, _ = made(table_rows=2, workdir=tmp_path)
  rollouts.next(Trained(None))
  state = rollouts.state()
  rollouts.next(Trained(None))
  before = table_rows(tmp_path)
  rollouts.next(Trained(None))
  again, _ = made(table_rows=2, workdir=tmp_path)
  again.restore(state)
  again.next(Trained(None))
  assert table_rows(tmp_path) == before and len(before) == 4


def table_rows(workdir):
  """All rows of a run's tables."""
  files = sorted((workdir / "completions").glob("*.jsonl"))
  return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize("prompt, words, message", [
    ("boo", ["1"], "reward 'tests.rollout.rollouts.breaks' raised KeyError: 'oh'; for prompt 'boo', "
     "completion '1'"),
    ("nan", ["2"], "reward 'tests.rollout.rollouts.breaks' gave nan, .* for prompt 'nan'"),
])
def test_a_reward_that_fails_is_named_and_the_place_stays(prompt, words, message):
  rollouts, _ = made(listed(prompt), script=lambda text, params: words,
                     rewards={"tests.rollout.rollouts.breaks": 1.0})
  before = rollouts.state()
  with pytest.raises(ValueError, match=message):
    rollouts.next(Trained(None))
  assert rollouts.state() == before


def test_weights_that_are_too_old_are_refused():
  rollouts, writer = made(max_staleness=1)
  load = writer.load
  writer.load = lambda params, version: load(params, 0)
  rollouts.next(Trained(None))
  rollouts.next(Trained(None))
  with pytest.raises(ValueError, match="written by weights of version 0, training has 2; max_staleness=1"):
    rollouts.next(Trained(None))


def test_prompts_that_are_too_long_are_refused_cut_or_passed_over():
  found = listed("p", "qq", "rrr", "ssss", "t")
  with pytest.raises(ValueError, match=r"f.jsonl:\d: its prompt has \d tokens, more than config.da"):
    made(found, encode=ask.encoder(BYTES, max_tokens=3), batch_rows=15)[0].next(Trained(None))
  cut, _ = made(found, encode=ask.encoder(BYTES, max_tokens=3, overlong="truncate"), batch_rows=15)
  assert sorted({prompt for prompt, _ in written(cut.next(Trained(None)))}) == ["p", "qq", "rrr", "sss", "t"]
  skipping = ask.encoder(BYTES, max_tokens=3, overlong="skip")
  rollouts, _ = made(found, encode=skipping, batch_rows=15)
  assert {prompt for prompt, _ in written(rollouts.next(Trained(None)))} == {"p", "qq", "t"}
  assert rollouts.metrics().scalars["rollout/skipped_prompts"] >= 2


def test_prompts_that_are_all_too_long_are_an_error(monkeypatch):
  monkeypatch.setattr(prompted, "MOST_SKIPPED", 20)
  with pytest.raises(ValueError, match="20 prompts in a row are longer than config.data.max_prompt_tokens"):
    made(encode=lambda problem: None)[0].next(Trained(None))


def test_rows_say_where_they_come_from():
  rollouts, _ = made(batches_per_rollout=2)
  ahead = [rollouts.provenance(step) for step in range(4)]
  for step in range(4):
    rollouts.next(Trained(None))
    assert rollouts.provenance(step) == ahead[step]
    assert len(set(ahead[step])) == 2 and ahead[step][0].startswith("f.jsonl:")


@pytest.mark.parametrize("fields, message", [
    (dict(batch_rows=7), "config.data.batch_rows=7 must be a multiple of config.data.group_size=3"),
    (dict(place=(0, 4)), "times the 4 processes"),
    (dict(options=SamplingOptions(n=1)),
     "config.data.group_size=1 leaves a completion nothing to be compared with"),
    (dict(options=SamplingOptions(n=3, temperature=0.0)), "config.sampler.temperature=0 draws nothing"),
    (dict(updates_per_batch=2, old=None), "2 updates per rollout need old_logprobs"),
    (dict(updates_per_batch=0), "config.rollout.updates_per_batch=0 must be at least 1"),
    (dict(zero_std_groups="no"), "config.rollout.zero_std_groups='no' must be one of keep, skip, resample"),
])
def test_settings_that_cannot_be_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    made(**fields)


def test_a_place_of_other_problems_or_settings_is_refused():
  state = made()[0].state()
  with pytest.raises(ValueError, match="fingerprint"):
    made(listed("other"))[0].restore(state)
  with pytest.raises(ValueError, match="batches=1 then, 2 now"):
    made(batches_per_rollout=2)[0].restore(state)


@pytest.mark.parametrize("truncated, words", [
    ("keep", ["a", "bb", "dddd"]), ("mask", ["a", "bb", "dddd"]), ("mask", ["dddd"]), ("keep", ["a"])])
def test_the_share_of_completions_that_teach_something_is_told(truncated, words):
  rollouts, _ = made(script=lambda text, params: words, scoring=Scoring(truncated=truncated), batch_rows=12)
  texts = [completion for _, completion in written(rollouts.next(Trained(None)))]
  groups = [texts[at:at + 3] for at in range(0, 12, 3)]
  taught = [len({*map(len, group)}) > 1 and not (truncated == "mask" and len(text) == 4)
            for group in groups for text in group]
  # No length is the mean of its group here, so that every completion is better or worse.
  assert not any(sum(map(len, group)) == 3 * len(text) and len({*map(len, group)}) > 1
                 for group in groups for text in group)
  assert rollouts.metrics().scalars["rollout/learnable_frac"] == pytest.approx(np.mean(taught))
  assert any(taught) == (len(words) > 1)


def test_the_number_of_tokens_written_is_told():
  rollouts, _ = made(table_rows=0)
  batch = rollouts.next(Trained(None))
  assert rollouts.metrics().scalars["rollout/completion_tokens"] == batch["completion_mask_BT"].sum()
