"""Runs that learn nothing: what is told and when, how they end, and what is saved."""
import jax.numpy as jnp
import pytest

from atlas_jax import recipes, train
from atlas_jax.monitor.idle import IdleError
from configs import grpo_arithmetic
from tests import program, runs, tuning
from tests.helpers import quick_compilation


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


STILL = 4  # Marks a batch whose loss is a constant.


class Still(runs.Watched):
  """A source some of whose batches teach nothing."""

  def __init__(self, source, steps):
    super().__init__(source, lambda step: None)
    self.steps = steps

  def next(self, trained):
    batch = super().next(trained)
    return {**batch, "bad_B": batch["bad_B"] * 0 + STILL} if self.source.step in self.steps else batch


def start(config, workdir, still=(), **source):
  """Runs the toy; batches of the steps in `still` teach nothing."""
  toy = runs.toy_recipe(config, **source)

  def loss(params, batch, **given):
    out = toy.loss(params, batch, **given)
    return out._replace(loss=jnp.where(batch["bad_B"][0] == STILL, 1.5, out.loss))

  recipe = toy._replace(loss=loss, source=Still(toy.source, still))
  return train.run(config, recipe, runs.one_device(), workdir)


def test_a_run_that_learns_nothing_ends_saved_and_goes_on_from_there(tmp_path, caplog):
  config = runs.toy_config(train__idle_limit=4, optim__steps=20, checkpoint__every_steps=100)
  with pytest.raises(IdleError) as error:
    start(config, tmp_path, range(3, 12))
  for part in ("step 6", "last 4 updates learnt nothing", "config.train.idle_limit=4", "the loss is 1.5",
               str(tmp_path / "checkpoints"), "the same command goes on"):
    assert part in str(error.value)
  assert "update 5: the last 3 updates learnt nothing" in caplog.text
  assert not (tmp_path / "summary.json").exists()
  ended = train.Checkpoints(tmp_path).latest_step()
  assert ended == 7  # The host reads step 6 when step 7 is under way.
  summary = start(config, tmp_path)
  assert (summary["resumed_from_step"], summary["steps"]) == (ended, 20)


def test_idle_updates_are_counted_over_starts(tmp_path):
  config = runs.toy_config(train__idle_limit=4, optim__steps=20)
  ask = lambda step: runs.ask_to_stop() if step == 2 else None
  assert start(config, tmp_path, range(2, 30), before=ask) == {}
  with pytest.raises(IdleError, match="step 5: the last 4 updates learnt nothing"):
    start(config, tmp_path, range(2, 30))


def test_a_few_idle_updates_are_not_worth_a_word_and_without_a_limit_the_run_goes_on(tmp_path, caplog):
  start(runs.toy_config(train__idle_limit=3, optim__steps=8), tmp_path / "few", (2, 3, 5, 6))
  assert "learnt nothing" not in caplog.text
  summary = start(runs.toy_config(train__idle_limit=None, optim__steps=8), tmp_path / "all", range(2, 30))
  assert summary["steps"] == 8 and "update 4: the last 3 updates learnt nothing" in caplog.text


def test_a_run_that_learns_until_its_rate_is_0_is_told_nothing_and_one_that_did_not_is(tmp_path, caplog):
  config = runs.toy_config(optim__final_lr_frac=0.0, optim__warmup_steps=2, optim__steps=8)
  assert start(config, tmp_path / "learns")["steps"] == 8
  assert runs.rows_of(tmp_path / "learns")[-1]["train/lr"] == 0 and "learnt nothing" not in caplog.text
  start(config, tmp_path / "still", range(7, 9))
  assert "update 8: the last 2 updates learnt nothing" in caplog.text


def test_a_run_of_a_checkpoint_from_before_such_counts_goes_on(tmp_path, monkeypatch):
  config = runs.toy_config()
  meta = train.Run.meta
  monkeypatch.setattr(train.Run, "meta", lambda self: {
      name: value for name, value in meta(self).items() if name != "idle_in_row"})
  assert start(config, tmp_path, before=lambda step: runs.ask_to_stop() if step == 2 else None) == {}
  monkeypatch.undo()
  assert start(config, tmp_path)["steps"] == 6


# --- the program ---


def write_prompts(file, **more):
  return tuning.write_rows(file, [{"prompt": f"{a}+1=", **{k: v(a) for k, v in more.items()}}
                                  for a in range(24)])


def flags_of(workdir, file, **changes):
  """The shipped settings, which mask what is cut off, with a tiny model."""
  fields = {"data.files": file, "data.tokenizer": "byte", "data.batch_rows": 8, "data.group_size": 2,
            "data.held_out_frac": 0.0, "eval.batch_rows": 8, "monitor.tensorboard": False,
            "monitor.report": False,
            "decoder.width": 16, "decoder.depth": 1, "decoder.heads": 2, "decoder.kv_heads": 1,
            "decoder.head_dim": 8, "decoder.ff_width": 24, "decoder.remat": "none",
            "train.accumulate_steps": 1, "train.idle_limit": 4, "optim.steps": 8, "sampler.max_tokens": 3,
            "rollout.pad_tokens": 8, "checkpoint.keep_best": 0, **changes}
  return ["--config=configs/grpo.py:texts", f"--workdir={workdir}",
          *(f"--config.{name}={value}" for name, value in fields.items())]


def test_a_policy_whose_completions_are_all_cut_off_and_masked_is_told_and_ended(tmp_path):
  """Their rewards differ, and nothing of them is trained."""
  file = write_prompts(tmp_path / "rows.jsonl", answer=lambda a: str(a + 1))
  done = program.run(*flags_of(tmp_path / "run", file, **{"rewards": "letters", "sampler.stop_end": False}))
  line = program.refused(done)
  for part in ("last 4 updates learnt nothing", "100% of completions were cut off", "is saved in",
               "config.rollout.truncated='mask'", "config.sampler.max_tokens=3", "config.train.idle_limit=4"):
    assert part in line, line
  assert "update 3: the last 3 updates learnt nothing: 100% of completions were cut off" in done.err
  rows = runs.rows_of(tmp_path / "run")
  assert all(row["train/counted_completion_tokens"] == 0 for row in rows)
  # Eight completions of three tokens per update were written, and this is what their name says.
  assert [row["train/completion_tokens_seen"] for row in rows] == [24 * row["step"] for row in rows]


def test_a_policy_whose_rows_have_no_answer_is_told_and_ended(tmp_path):
  done = program.run(*flags_of(tmp_path / "run", write_prompts(tmp_path / "rows.jsonl")))
  line = program.refused(done)
  for part in ("100% of completions got no reward", "config.rewards='correct'", "config.data.fields"):
    assert part in line, line
  assert any((tmp_path / "run" / "checkpoints").glob("[45]*"))


def test_a_policy_of_which_some_groups_learn_is_left_alone(tmp_path, caplog):
  config = grpo_arithmetic.get_config("smoke")
  config.data.update(held_out_frac=0.0, group_size=4, batch_rows=16)
  config = runs.changed(config, {"train__idle_limit": 3, "optim__steps": 5, "monitor__tensorboard": False,
                                 "monitor__report": False})
  train.run(config, recipes.load(config, runs.one_device()), runs.one_device(), tmp_path)
  assert "learnt nothing" not in caplog.text
  assert all(row["rollout/learnable_frac"] > 0 for row in runs.rows_of(tmp_path))


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_that_cannot_be_is_refused(limit):
  with pytest.raises(ValueError, match="config.train.idle_limit=.* must be at least 1"):
    runs.toy_config(train__idle_limit=limit)
