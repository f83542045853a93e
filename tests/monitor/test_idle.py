"""Updates that teach nothing: what they are, why, when it is told, and when a run should end."""
import pytest

from atlas_jax.monitor import idle
from atlas_jax.monitor.idle import IDLE, LEARNT, SKIPPED, UNMOVED, UNTAUGHT, WARMING, Idle
from configs import atlas_ranked, gkd, grpo, grpo_arithmetic, sft
from tests import runs

GOOD = {"train/skipped_in_row": 0, "grad/norm": 0.5, "grad/norm/mlp": 0.5, "train/lr": 1e-3,
        "update/changed_frac": 1.0, "update/largest_change": 1e-3, "train/loss_nats": 2.0,
        "train/counted_tokens": 40.0}
NONE = {**GOOD, "grad/norm": 0.0, "grad/norm/mlp": 0.0}
ROLLOUT = {"rollout/truncated_frac": 0.0, "rollout/unrewarded_frac": 0.0, "rollout/flat_groups_frac": 0.0,
           "rollout/reward_mean": 0.25, "rollout/learnable_frac": 0.0}


def config_of(module=grpo_arithmetic, arg="cpu", **changes):
  config = module.get_config(arg)
  config.optim.update(steps=1_000, warmup_steps=10)
  return runs.changed(config, changes)


def said(row, step=50, **config):
  return "; ".join(idle.reasons(step, row, config_of(**config)))


@pytest.mark.parametrize("row, kind", [
    (GOOD, LEARNT), (NONE, IDLE), ({**GOOD, "train/lr": 0.0}, IDLE),
    ({**GOOD, "update/changed_frac": 0.0}, IDLE),
    ({**NONE, "grad/norm_tables": 0.1, "update/changed_frac": 0.0}, LEARNT),
    ({**NONE, "grad/norm_tables": 0.0}, IDLE),
    ({**NONE, "train/skipped_in_row": 1}, SKIPPED),
    ({**GOOD, "rollout/learnable_frac": 0.0}, UNTAUGHT), ({**GOOD, "rollout/learnable_frac": 0.01}, LEARNT),
    ({**NONE, "rollout/learnable_frac": 0.5}, IDLE)])
def test_an_update_is_idle_if_no_gradient_flows_or_nothing_changes(row, kind):
  """Weight decay changes parameters without a gradient, and tables learn though the network does not."""
  assert idle.kind_of(50, row, config_of()) == kind


def test_a_rate_of_zero_in_the_warm_up_is_no_idle_update():
  resting = {**GOOD, "train/lr": 0.0, "update/changed_frac": 0.0}
  assert idle.kind_of(10, resting, config_of()) == WARMING and idle.kind_of(11, resting, config_of()) == IDLE
  assert idle.kind_of(10, NONE, config_of()) == IDLE


# Of a rate of 1e-12: the rounding of float32 keeps all numbers as they are but for those near 0.
LOST = {**GOOD, "train/lr": 1e-12, "update/changed_frac": 0.02, "update/largest_change": 1e-12}


def test_a_rate_whose_updates_are_lost_is_told_at_the_third_update_also_in_the_warm_up(caplog):
  counted = Idle(config_of(optim__lr=1e-12, optim__warmup_steps=1_000))
  kinds = [counted.observe(step, {**LOST, "train/lr": 1e-15 * step, "update/largest_change": 1e-15 * step})
           for step in range(1, 6)]
  assert kinds == [UNMOVED] * 5 and counted.ending is None
  (line,) = caplog.messages
  assert "update 3: the last 3 updates learnt nothing" in line and "raise config.optim.lr=1e-12" in line


@pytest.mark.parametrize("lr, row", [
    (1e-6, {**GOOD, "train/lr": 1e-10, "update/largest_change": 1e-10}),  # The first of a long warm-up.
    (1e-4, {**GOOD, "train/lr": 1e-13, "update/largest_change": 1e-13}),  # The end of a schedule.
    (1e-3, {**GOOD, "update/largest_change": 1e-10}),  # The gradient is small, not the rate.
    (1e-9, {**GOOD, "train/lr": 1e-9, "update/largest_change": 2e-9}),
    (1e-12, {**LOST, "grad/norm_tables": 0.1})])
def test_small_updates_of_a_sound_rate_are_no_lost_ones(lr, row):
  assert idle.kind_of(50, row, config_of(optim__lr=lr)) == LEARNT


@pytest.mark.parametrize("more, fields, parts", [
    ({"rollout/unrewarded_frac": 1.0, "rollout/judge_no_verdict_frac": 1.0}, {},
     ["100% of completions", "judges had no verdict", "config.rim"]),
    ({"rollout/truncated_frac": 1.0}, {"rollout__truncated": "mask", "sampler__max_tokens": 7},
     ["100% of completions were cut off", "config.rollout.truncated='mask'", "config.sampler.max_tokens=7"]),
    ({"rollout/unrewarded_frac": 1.0, "rollout/flat_groups_frac": 1.0}, {"rewards": "correct"},
     ["100% of completions got no reward", "config.rewards='correct'", "config.data.fields"]),
    ({"rollout/flat_groups_frac": 0.75}, {}, ["in 75% of groups all rewards are equal (mean 0.25)",
                                              "config.data.group_size=16", "config.rollout.zero_std_groups"]),
    ({"rollout/flat_groups_frac": 1.0, "rollout/truncated_frac": 0.9}, {},
     ["in 100% of groups", "90% of completions were cut off at config.sampler.max_tokens=3"]),
    ({"policy/stale_frac": 1.0}, {"policy__stale_nats": 0.5}, ["config.policy.stale_nats=0.5"]),
    ({"policy/clip_frac": 1.0}, {}, ["all ratios are clipped", "config.policy.clip_low"]),
    ({"policy/sampler_ratio_mean": 0.0, "policy/sampler_gap_nats": 4.5}, {},
     ["4.5 nats off", "config.policy.sampler_high"])])
def test_a_policy_without_gradient_is_told_why_and_what_to_change(more, fields, parts):
  text = said({**NONE, **ROLLOUT, **more}, **fields)
  assert all(part in text for part in parts), text


def test_several_causes_are_all_told():
  row = {**NONE, **ROLLOUT, "rollout/truncated_frac": 0.5, "rollout/unrewarded_frac": 0.25,
         "rollout/flat_groups_frac": 0.5}
  text = said(row, rollout__truncated="drop")
  assert "50% of completions were cut off" in text and "25% of completions got no reward" in text
  assert "in 50% of groups" in text


def test_bounds_are_no_cause_where_nothing_was_left_to_bound():
  row = {**NONE, **ROLLOUT, "rollout/truncated_frac": 1.0, "train/counted_tokens": 0.0,
         "policy/sampler_ratio_mean": 0.0, "policy/sampler_gap_nats": 0.0}
  text = said(row, rollout__truncated="mask")
  assert "cut off" in text and "sampler_correction" not in text


def test_what_moves_a_policy_without_rewards_is_named():
  row = {**GOOD, **ROLLOUT, "rollout/flat_groups_frac": 1.0}
  assert "only config.policy.entropy_weight=0.03 and config.policy.kl_weight=0.1 move" in said(
      row, policy__kl_weight=0.1)


@pytest.mark.parametrize("module, arg, row, parts", [
    (sft, "cpu", {**NONE, "train/counted_tokens": 0.0, "sft/counted_frac": 0.0, "sft/filled_frac": 0.5,
                  "sft/probability_mean": 0.0, "train/loss_nats": 0.0},
     ["no token of these rows is supervised", "config.data.turns='all'", "config.data.segment_len=128"]),
    (atlas_ranked, "cpu", {**NONE, "ranked/pairs": 0.0}, ["no two responses", "config.data.files="]),
    (gkd, "cpu", {**NONE, "distill/on_policy_frac": 1.0, "train/loss_nats": 0.0},
     ["divergence between student and teacher is 0", "config.distill.teacher='runs/sft_cpu'"]),
    (sft, "cpu", {**NONE, "train/counted_tokens": 0.0}, ["the loss counts 0 tokens"])])
def test_other_kinds_of_training_have_reasons_of_their_own(module, arg, row, parts):
  text = said(row, module=module, arg=arg)
  assert all(part in text for part in parts), text


def test_a_loss_weighed_by_tiny_probabilities_is_told():
  row = {**NONE, "sft/probability_mean": 0.0, "sft/counted_frac": 0.5}
  assert "config.sft.loss=nll" in said(row, module=sft, sft__loss="dft")


@pytest.mark.parametrize("step, more, part", [
    (3, {"train/lr": 0.0}, "the learning rate is 0 in the warm-up, which ends at update 10 (config.optim."),
    (500, {"train/lr": 0.0}, "the learning rate is 0; raise config.optim.lr=0.0015"),
    (500, {"train/lr": 1e-12, "update/changed_frac": 0.0}, "1e-12, too low for any parameter to change"),
    (3, {"train/lr": 1e-12, "update/changed_frac": 0.0}, "1e-12 in the warm-up")])
def test_a_learning_rate_that_changes_nothing_is_told(step, more, part):
  assert part in said({**GOOD, **more}, step=step)


def test_a_rate_that_ends_at_zero_is_told_so():
  assert "end of the run (config.optim.final_lr_frac=0)" in said(
      {**GOOD, "train/lr": 0.0}, step=1_000, optim__final_lr_frac=0.0)


def test_without_a_known_cause_the_numbers_are_told():
  text = said({**NONE, "train/loss_nats": 1.25})
  assert "the loss is 1.25" in text and "norm 0" in text and "config.data" in text
  assert "there is no parameter to train" in said({name: value for name, value in NONE.items()
                                                   if name != "grad/norm/mlp"})


def test_it_is_told_at_the_third_and_less_and_less_often(caplog):
  counted = Idle(config_of(train__idle_limit=None))
  for step in range(1, 121):
    counted.observe(step, NONE)
  told = [line.split(": ")[0] for line in caplog.messages]
  assert told == ["update 3", "update 10", "update 30", "update 100"]
  assert counted.in_row == 120 and counted.ending is None


def test_an_update_that_learns_starts_the_count_anew_and_nothing_is_told(caplog):
  counted = Idle(config_of(train__idle_limit=3))
  for step, row in enumerate((NONE, NONE, GOOD, NONE, {**NONE, "train/skipped_in_row": 1}, NONE, GOOD), 1):
    counted.observe(step, row)
  counted.close()
  assert not caplog.messages and counted.ending is None


def test_the_run_should_end_at_the_limit_with_all_that_is_known(caplog):
  row = {**NONE, **ROLLOUT, "rollout/truncated_frac": 1.0}
  counted = Idle(runs.changed(grpo.get_config("texts"), {"train__idle_limit": 4}))
  for step in (1, 2, 3):
    counted.observe(step, row)
    assert counted.ending is None
  counted.observe(4, row)
  for part in ("step 4", "last 4 updates learnt nothing", "config.train.idle_limit=4", "100% of completions",
               "config.sampler.max_tokens=1024"):
    assert part in counted.ending
  assert "the run ends after 4 such updates in a row (config.train.idle_limit)" in caplog.text


def test_an_entropy_bonus_alone_is_told_of_and_does_not_end_a_run(caplog):
  counted = Idle(config_of(train__idle_limit=3))
  for step in range(1, 6):
    counted.observe(step, {**GOOD, **ROLLOUT, "rollout/flat_groups_frac": 1.0})
  assert counted.ending is None and "the last 3 updates learnt nothing from rewards" in caplog.text
  assert "the run ends" not in caplog.text


def test_the_warm_up_is_told_once_and_ends_nothing(caplog):
  counted = Idle(config_of(train__idle_limit=4))
  for step in range(1, 10):
    counted.observe(step, {**GOOD, "train/lr": 0.0, "update/changed_frac": 0.0})
  assert counted.ending is None and len(caplog.messages) == 1
  assert "changed nothing yet: the learning rate is 0 in the warm-up" in caplog.text


def test_a_count_goes_on_at_the_next_start_but_for_a_run_that_was_ended():
  config = config_of(train__idle_limit=4)
  counted = Idle(config, in_row=3)
  counted.observe(9, NONE)
  assert counted.ending is not None and counted.in_row == 4
  counted.observe(10, NONE)  # The step that was under way.
  again = Idle(config, in_row=counted.in_row)
  again.observe(10, NONE)
  assert again.ending is None and again.in_row == 1


@pytest.mark.parametrize("updates, what", [(1, "this update"), (2, "the last 2 updates")])
def test_a_run_too_short_for_a_warning_is_told_at_its_end(updates, what, caplog):
  counted = Idle(config_of())
  for step in range(1, updates + 1):
    counted.observe(step, NONE)
  assert not caplog.messages
  counted.close()
  assert f"{what} learnt nothing" in caplog.text
