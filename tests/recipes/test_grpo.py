"""Policy optimisation: what it samples is what it trains on, it learns, and runs go on where they were."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import recipes, train
from atlas_jax import state as states
from atlas_jax import step as stepping
from atlas_jax.language.initial_model import merge_frozen
from atlas_jax.models import lora
from atlas_jax.monitor import profile
from atlas_jax.optim import accumulate
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import grpo
from atlas_jax.state import Trained
from configs import grpo_arithmetic
from tests import runs
from tests.helpers import assert_close

HERE = "tests.recipes.test_grpo."
MEMORY = dict(model__kind="memory", data__max_prompt_tokens=12)
LORA = dict(lora__rank=2, lora__targets="q,v,down")
KL = dict(policy__kl_weight=0.1)


def sevens(prompt, completion, answer):
  """Earns the share of sevens."""
  return sum(char == "7" for char in completion) / max(1, len(completion))


def spread(prompt, completion, answer):
  """Earns something else for nearly every completion."""
  return sum(map(ord, completion)) % 7 / 7


BROKEN = {"from": None}


def fragile(prompt, completion, answer):
  """Is `spread` until it breaks."""
  if BROKEN["from"] is not None:
    BROKEN["from"] -= 1
    if BROKEN["from"] < 0:
      raise RuntimeError("the judge is gone")
  return spread(prompt, completion, answer)


def config_of(**changes):
  """A resolved config of a tiny decoder and sums, with a reward that differs."""
  config = grpo_arithmetic.get_config("smoke")
  config.data.update(batch_rows=8, group_size=4, held_out_frac=0.0)
  config.decoder.update(width=16, ff_width=24, head_dim=8)
  config.model.update(width=16, ff_width=24)
  config.model.memory.update(key_dim=8, value_dim=8, chunk_size=8)
  config.sampler.max_tokens = 6
  config.policy.entropy_weight = 0.0
  config.rewards = HERE + "spread"
  config.monitor.update(tensorboard=False, report=False)
  config.optim.update(lr=1e-2, warmup_steps=1, final_lr_frac=1.0)
  config.checkpoint.update(every_steps=100, keep_best=0)
  return runs.changed(config, changes)


def started(config, mesh=None):
  """The recipe, what it starts from and its source."""
  mesh = mesh or runs.one_device()
  recipe = recipes.load(config, mesh)
  params, frozen, *_ = jax.jit(recipe.init)(jax.random.key(0))
  wave = lambda x: 0.05 * np.sin(np.arange(x.size, dtype=x.dtype)).reshape(x.shape)
  params = jax.tree.map(lambda x: x + wave(x), params)  # So that adapters do something.
  return recipe, params, frozen


def outcome(recipe, params, frozen, batch, parts=1):
  """Gradients, and what the loss gives, of a batch in pieces."""
  rng = jax.random.key(0)
  (grads, _), out = gradients(recipe.loss, params, batch, (), frozen=frozen, rng=rng, parts=parts)
  return grads, out


gradients = jax.jit(accumulate.gradients, static_argnames=("loss", "parts"))


LAYOUTS = {"decoder": {}, "memory": MEMORY, "lora": LORA, "blocks": dict(loss__block_tokens=5)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recomputed_log_probabilities_are_the_samplers(layout):
  config = config_of(sampler__temperature=0.6, rollout__batches_per_rollout=2, **LAYOUTS[layout])
  recipe, params, frozen = started(config)
  batch = recipe.source.next(Trained(params, frozen))
  mask_BT = batch["completion_mask_BT"]
  assert mask_BT.any(axis=1).all() and np.ptp(batch["sampler_logprob_BT"][mask_BT]) > 0.1
  assert_close(np.where(mask_BT, batch["old_logprob_BT"], 0), batch["sampler_logprob_BT"], tolerance=1e-4)
  metrics = recipe.accounting.finish(outcome(recipe, params, frozen, batch)[1].metrics)
  assert metrics["policy/sampler_gap_nats_max"] < 1e-4
  assert abs(metrics["policy/ratio_max"] - 1) < 1e-5 > abs(metrics["policy/ratio_min"] - 1)


def slow_loss(config, params, batch):
  """The loss of preset grpo, row by row, each read by itself without padding."""
  language = grpo.load_initial_model(config).language
  total = 0.0
  for row in range(len(batch["start_B"])):
    start, mask_T = int(batch["start_B"][row]), batch["completion_mask_BT"][row]
    prompt, completion = batch["tokens_BS"][row, :start + 1], batch["completion_BT"][row][mask_T]
    ids = np.concatenate([prompt, completion])[None]
    hidden_BTD, _ = language.read(params, ids, np.zeros_like(ids))
    logits_TV = hidden_BTD[0] @ language.head(params) / config.sampler.temperature
    log_TV = jax.nn.log_softmax(logits_TV)[start:start + len(completion)]
    logprob_T = log_TV[np.arange(len(completion)), completion]
    ratio_T = jnp.exp(logprob_T - jax.lax.stop_gradient(logprob_T))
    total -= jnp.mean(ratio_T * batch["advantage_B"][row])
  return total / len(batch["start_B"])


def test_the_gradient_is_that_of_the_completions_after_the_very_prompts_sampled():
  config = config_of(policy__preset="grpo", sampler__temperature=0.8)
  recipe, params, frozen = started(config)
  batch = recipe.source.next(Trained(params, frozen))
  assert len(set(batch["completion_mask_BT"].sum(1))) > 1 or batch["truncated_B"].all()
  grads, out = outcome(recipe, params, frozen, batch)
  loss, expected = jax.value_and_grad(lambda params: slow_loss(config, params, batch))(params)
  assert_close(out.loss, loss, tolerance=1e-5)
  assert_close(grads, expected, tolerance=2e-5)
  assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) > 1e-3


def test_another_prompt_gives_another_gradient_and_padding_gives_none():
  recipe, params, frozen = started(config_of())
  batch = recipe.source.next(Trained(params, frozen))
  grads, _ = outcome(recipe, params, frozen, batch)
  padded = {**batch, "tokens_BS": np.where(batch["doc_BS"] < 0, 99, batch["tokens_BS"]),
            "completion_BT": np.where(batch["completion_mask_BT"], batch["completion_BT"], 99)}
  assert_close(outcome(recipe, params, frozen, padded)[0], grads, tolerance=1e-6)
  other = {**batch, "tokens_BS": np.where(np.arange(batch["tokens_BS"].shape[1])[None] == 1, ord("9"),
                                          batch["tokens_BS"])}
  apart = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), grads,
                       outcome(recipe, params, frozen, other)[0])
  assert max(jax.tree.leaves(apart)) > 1e-4


PRESETS = ("grpo", "dapo", "dr_grpo", "luspo")  # Each way to add up tokens.
MORE = dict(policy__entropy_weight=0.05, rollout__truncated="mask", rollout__zero_std_groups="skip")


@pytest.mark.parametrize("preset", PRESETS)
def test_pieces_of_a_batch_give_what_the_whole_gives(preset):
  more = MORE if preset in ("grpo", "dapo") else {}
  recipe, params, frozen = started(config_of(policy__preset=preset, **more))
  batch = ragged(recipe.source.next(Trained(params, frozen)))
  whole_grads, whole_out = outcome(recipe, params, frozen, batch)
  grads, out = outcome(recipe, params, frozen, batch, parts=4)
  assert_close((grads, out.loss, out.weight), (whole_grads, whole_out.loss, whole_out.weight), tolerance=1e-5)
  rows = recipe.accounting.unit == "completions"
  assert float(out.weight) == (8.0 if rows else batch["completion_mask_BT"].sum())


def ragged(batch):
  """A batch whose completions have other lengths, and advantages that are not zero."""
  size_B = 1 + np.arange(8) * 5 % 6
  mask_BT = batch["completion_mask_BT"]
  mask_BT = mask_BT & (np.arange(mask_BT.shape[1])[None] < size_B[:, None])
  return {**batch, "completion_mask_BT": mask_BT, "advantage_B": np.linspace(-1, 1, 8, dtype=np.float32),
          "truncated_B": np.zeros(8, bool), "row_mask_B": np.ones(8, np.float32),
          "tokens_per_row_B": np.full(8, mask_BT.sum() / 8, np.float32)}


@pytest.mark.parametrize("layout", ["decoder", pytest.param("memory", marks=pytest.mark.slow)])
def test_a_policy_rewarded_for_one_token_learns_it(tmp_path, layout):
  config = config_of(rewards=HERE + "sevens", data__batch_rows=32, data__group_size=16, optim__steps=40,
                     optim__lr=0.03, optim__weight_decay=0.0, sampler__max_tokens=3, **LAYOUTS[layout])
  train.run(config, recipes.load(config, runs.one_device()), runs.one_device(), tmp_path)
  reward = [row["rollout/reward_mean"] for row in runs.rows_of(tmp_path)]
  assert np.mean(reward[:3]) < 0.1 and np.mean(reward[-3:]) > 0.9


def run(config, workdir, **more):
  """Runs a config without evaluations; returns its last parameters and its rows."""
  runs.run_lm(config, workdir, **more)
  recipe = recipes.load(config, runs.one_device())
  rows = [{name: value for name, value in row.items() if not name.endswith("_s")}
          for row in runs.rows_of(workdir)]
  return runs.saved(config, recipe, workdir).params, rows


@pytest.mark.parametrize("stop_at", [3, 5])
def test_a_run_stopped_in_the_middle_of_a_rollout_goes_on_bit_for_bit(tmp_path, stop_at):
  config = config_of(rollout__batches_per_rollout=2, rollout__updates_per_batch=2, optim__steps=7,
                     policy__kl_weight=0.05,
                     policy__reference_every_steps=3, rollout__zero_std_groups="resample")
  expected, rows = run(config, tmp_path / "whole")
  runs.run_lm(config, tmp_path / "parts", stop_at=stop_at)
  assert not (tmp_path / "parts" / "summary.json").exists()
  params, again = run(config, tmp_path / "parts")
  for left, right in zip(jax.tree.leaves(params), jax.tree.leaves(expected)):
    np.testing.assert_array_equal(left, right)
  assert again == rows
  tables = [(path / "completions" / "00000000.jsonl").read_text()
            for path in (tmp_path / "whole", tmp_path / "parts")]
  assert tables[0] == tables[1]


def test_old_log_probabilities_stay_those_of_the_rollout(tmp_path):
  config = config_of(rollout__batches_per_rollout=2, rollout__updates_per_batch=2, optim__steps=4)
  _, rows = run(config, tmp_path)
  ratios = [row["policy/ratio_max"] for row in rows]
  assert abs(ratios[0] - 1) < 1e-5 and min(ratios[1:]) > 1 + 1e-4
  assert [row["rollout/age_updates"] for row in rows] == [0, 1, 2, 3]
  assert rows[0]["rollout/reward_mean"] == rows[3]["rollout/reward_mean"]


def test_eight_devices_learn_what_one_learns(tmp_path):
  config = config_of(optim__steps=3, rollout__batches_per_rollout=2, policy__kl_weight=0.1)
  expected, rows = run(config, tmp_path / "one")
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  runs.run_lm(config, tmp_path / "eight", mesh=mesh)
  params = runs.saved(config, recipes.load(config, mesh), tmp_path / "eight", mesh=mesh).params
  assert_close(jax.device_get(params), jax.device_get(expected), tolerance=2e-4)


def test_a_reward_that_fails_ends_the_run_and_leaves_it_whole(tmp_path):
  config = config_of(rewards=HERE + "fragile", optim__steps=6, checkpoint__every_steps=2)
  BROKEN["from"] = None
  expected, rows = run(config, tmp_path / "whole")
  BROKEN["from"] = 8 * 4 + 3
  with pytest.raises(ValueError, match=f"reward '{HERE}fragile' raised RuntimeError: the judge is gone"):
    runs.run_lm(config, tmp_path / "parts")
  recipe = recipes.load(config, runs.one_device())
  assert int(runs.saved(config, recipe, tmp_path / "parts").step) == 4
  BROKEN["from"] = None
  params, again = run(config, tmp_path / "parts")
  assert_close(params, expected, tolerance=1e-9)
  assert again == rows


def test_a_row_without_a_prompt_is_named_before_anything_is_compiled(tmp_path):
  file = tmp_path / "rows.jsonl"
  file.write_text('{"prompt": "1+1=", "answer": "2"}\n{"answer": "3"}\n')
  config = config_of(data__name="files", data__files=str(file), data__options={})
  with pytest.raises(ValueError, match=r"rows.jsonl:2: has no prompt"):
    recipes.load(config, runs.one_device())


def test_prompts_of_files_are_asked(tmp_path):
  file = tmp_path / "rows.jsonl"
  file.write_text("".join(json.dumps({"question": f"{n}?", "answer": str(n)}) + "\n" for n in range(8)))
  config = config_of(data__name="files", data__files=str(file), data__options={}, optim__steps=2,
                     rewards="correct=1,verbatim=0.5", data__held_out_frac=0.3)
  summary = runs.run_lm(config, tmp_path / "run", evals=True)
  assert summary["val_accuracy"] == 0 and summary["val_graded_count"] >= 1
  rows = [json.loads(line) for line in (tmp_path / "run/completions/00000000.jsonl").read_text().splitlines()]
  assert {row["rewards"].keys() == {"correct", "verbatim"} for row in rows} == {True}
  assert all(row["prompt"] == row["answer"] + "?" for row in rows)


REWARDS = """
async def short(prompts, completions, level, trainer_state, log_metric, log_extra, scale=0.1, **kwargs):
  log_metric("level", sum(level) / len(level))
  log_extra("steps", [trainer_state.global_step] * len(completions))
  return [None if one % 2 else -scale * len(text) for one, text in zip(level, completions)]
"""


def test_rewards_of_a_file_with_the_signature_of_trl_are_trained_on(tmp_path):
  rows, code = tmp_path / "rows.jsonl", tmp_path / "my_rewards.py"
  lines = [json.dumps({"prompt": f"{n}?", "answer": str(n), "level": n}) for n in range(12)]
  rows.write_text("\n".join(lines))
  code.write_text(REWARDS)
  files = dict(data__name="files", data__files=str(rows), data__options={}, data__held_out_frac=0.3)
  config = config_of(rewards=f"letters=1,{code}:short=0.5", optim__steps=2, eval__grader=f"{code}:short",
                     train__log_every_steps=1, **files)
  summary = runs.run_lm(config, tmp_path / "run", evals=True)
  assert np.isfinite(summary["val_reward"])
  table = [json.loads(line) for file in sorted((tmp_path / "run/completions").glob("*.jsonl"))
           for line in file.read_text().splitlines()]
  for row in table:
    level = int(row["answer"])
    expected = None if level % 2 else pytest.approx(-0.1 * len(row["completion"]))
    assert row["rewards"][f"{code}:short"] == expected and row["logged"]["steps"] == row["step"] - 1
  metrics = [row for row in runs.rows_of(tmp_path / "run") if "train/loss_nats" in row]
  assert all("rollout/logged/level" in row for row in metrics)


def test_a_reward_that_asks_for_a_column_of_no_row_is_refused_before_training(tmp_path):
  rows, code = tmp_path / "rows.jsonl", tmp_path / "my_rewards.py"
  lines = [json.dumps({"prompt": f"{n}?", "answer": "1", "levle": n}) for n in range(9)]
  rows.write_text("\n".join(lines))
  code.write_text(REWARDS)
  config = config_of(rewards=f"{code}:short", data__name="files", data__files=str(rows), data__options={})
  with pytest.raises(ValueError, match="the column 'level', and no row has it; did you mean 'levle'"):
    recipes.load(config, runs.one_device())


def test_without_a_change_the_reference_costs_nothing(tmp_path):
  follows = dict(policy__reference_every_steps=2, policy__reference_share=1.0)
  for name, more in (("fixed", {}), ("anchor", follows)):
    config = config_of(policy__kl_weight=0.5, optim__steps=5, **more)
    _, rows = run(config, tmp_path / name)
    kl = [row["policy/kl_nats"] for row in rows]
    assert abs(kl[0]) < 1e-6 and kl[1] > 1e-6
    assert (abs(kl[2]) < 1e-6) == (name == "anchor") == (abs(kl[4]) < 1e-6)


def test_adapters_alone_are_trained_and_the_reference_is_the_model_without_them(tmp_path):
  config = config_of(policy__kl_weight=0.5, optim__steps=3, **LORA)
  recipe, params, frozen = started(config)
  assert set(frozen) == {"base", "reference"} and lora.ADAPTER[0] in str(jax.tree.structure(params))
  joined = merge_frozen(frozen["reference"], frozen)
  model = jax.jit(grpo.load_initial_model(config).language.init)(jax.random.key(0))
  assert jax.tree.structure(joined) == jax.tree.structure(model)
  _, rows = run(config, tmp_path)
  assert abs(rows[0]["policy/kl_nats"]) < 1e-6 < rows[2]["policy/kl_nats"]


def test_tuning_goes_on_from_another_run_and_its_reference_is_where_it_began(tmp_path):
  first = config_of(optim__steps=2)
  params, _ = run(first, tmp_path / "first")
  configs.save(first, tmp_path / "first")
  config = config_of(optim__steps=3, model__path=str(tmp_path / "first"), policy__kl_weight=0.5)
  runs.run_lm(config, tmp_path / "second", stop_at=2)
  recipe = recipes.load(config, runs.one_device())
  for fresh in (True, False):
    given = recipe.load(runs.one_device(), fresh)
    assert_close(given.frozen["reference"], params, tolerance=1e-9)
    assert (given.params is not None) == fresh
  _, rows = run(config, tmp_path / "second")
  _, whole_rows = run(config, tmp_path / "third")
  assert rows == whole_rows and abs(rows[0]["policy/kl_nats"]) < 1e-6 < rows[2]["policy/kl_nats"]


def test_what_is_sampled_can_be_filtered_and_stopped_by_texts():
  config = config_of(sampler__top_k=20, sampler__stop_strings="7|8", rollout__truncated="mask")
  recipe, params, frozen = started(config)
  out = outcome(recipe, params, frozen, recipe.source.next(Trained(params, frozen)))[1]
  assert np.isfinite(out.loss)
  assert recipe.accounting.finish(out.metrics)["policy/sampler_gap_nats_max"] < 1e-4  # Both are over all ids.


@pytest.mark.parametrize("fields, message", [
    (dict(policy__preset="ppo"), "config.policy has no preset 'ppo'"),
    (dict(policy__preset="sapo", policy__clip_low=0.3), "clip_low=0.3 is not read: .*'sapo'"),
    (dict(policy__objective="cispo", policy__clip_low=0.3, policy__clip_high=5.0), "clip_low=0.3 is"),
    (dict(policy__top_entropy_frac=0.5, train__accumulate_steps=2), "compares the tokens of a whole batch"),
    (dict(policy__reference_every_steps=2), "moves a reference that config.policy.kl_weight=0 does not use"),
    (dict(data__batch_rows=6), "config.data.batch_rows=6 must be a multiple of config.data.group_size=4"),
    (dict(rewards="corect"), "config.rewards has 'corect', which is unknown; known rewards: correct"),
    (dict(rewards="nowhere/mine.py:short"), "no file 'nowhere/mine.py': looked for /"),
    (dict(rewards="correct=much"), "'correct=much' must be NAME or NAME=NUMBER"),
    (dict(sampler__temperature=0.0), "config.sampler.temperature=0 draws nothing"),
    (dict(data__held_out_frac=0.2, eval__max_problems=None), "has no end; set config.eval.max_problems"),
])
def test_a_config_that_cannot_be_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    recipes.load(config_of(**fields), runs.one_device())


def test_a_batch_goes_onto_a_mesh():
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  recipe, params, frozen = started(config_of(), mesh)
  batch = hosts.global_batch(mesh, recipe.source.next(Trained(params, frozen)))
  assert {len(array) for array in batch.values()} == {8}


@pytest.mark.parametrize("layout", [{}, LORA, KL, {**LORA, **KL}])
def test_the_flops_of_an_update_are_those_of_its_gradient(layout):
  """References and what lies beside adapters cost less backwards; shares of a peak would be too high."""
  recipe, params, frozen = started(config_of(**layout))
  batch = recipe.source.next(Trained(params, frozen))
  state = states.TrainState(0, params, (), (), (), jax.random.key(0), 0, 0)
  loss = lambda params: recipe.loss(params, batch, frozen=frozen, carry=(), rng=jax.random.key(0)).loss
  found = stepping.model_flops(recipe, state, frozen, batch)
  assert found == pytest.approx(profile.count_flops(jax.grad(loss), params).flops, rel=0.1)
