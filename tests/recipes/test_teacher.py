"""The teacher: it is trained on what it was shown, it learns to help, and runs go on where they were."""
import json
import math

import jax
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import recipes, train
from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.optim import accumulate
from atlas_jax.rollout import teaching
from atlas_jax.rollout.toy_student import CARRY
from atlas_jax.state import Trained
from configs import teacher_rcl
from tests import runs, teachers
from tests.helpers import assert_close, assert_same_bits, quick_compilation

BYTES = ByteTokenizer()


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def config_of(**changes):
  """A resolved config of a tiny teacher with a student that is a copy of it."""
  config = teacher_rcl.get_config("smoke")
  config.data.update(batch_rows=8, group_size=4, held_out_frac=0.0, max_prompt_tokens=40)
  config.decoder.update(width=16, ff_width=24, head_dim=8)
  config.sampler.max_tokens = 5
  config.teacher.update(max_tokens=5, probe_tokens=3, fixed_hint="Work step by step and check the result "
                        "before you answer.")
  config.monitor.update(tensorboard=False, report=False)
  config.optim.update(lr=1e-2, warmup_steps=1, final_lr_frac=1.0)
  config.checkpoint.update(every_steps=100, keep_best=0)
  return runs.changed(config, changes)


def toy(**changes):
  """Fields of the student that forgets to carry."""
  return {"teacher__sampler": "atlas_jax.rollout.toy_student", "teacher__probe_tokens": 0,
          "teacher__grader": "correct", **changes}


def started(config):
  """The recipe and what it starts from, moved a little so that the policy is none that is drawn."""
  recipe = recipes.load(config, runs.one_device())
  params, frozen, *_ = jax.jit(recipe.init)(jax.random.key(0))
  wave = lambda x: 0.05 * np.sin(np.arange(x.size, dtype=x.dtype)).reshape(x.shape)
  return recipe, jax.tree.map(lambda x: x + wave(x), params), frozen


def texts_of(batch):
  """The prompt of each row of a batch."""
  return [BYTES.decode(batch["tokens_BS"][row, :batch["start_B"][row] + 1])
          for row in range(len(batch["start_B"]))]


gradients = jax.jit(accumulate.gradients, static_argnames=("loss", "parts"))


@pytest.mark.parametrize("layout", [{}, {"lora__rank": 2, "lora__targets": "q,v,down"}])
def test_the_policy_is_trained_after_the_very_prompts_that_were_sampled(layout):
  config = config_of(sampler__temperature=0.7, rollout__batches_per_rollout=2, **layout)
  recipe, params, frozen = started(config)
  batch = recipe.source.next(Trained(params, frozen))
  mask_BT = batch["completion_mask_BT"]
  # Recomputed by the trainer, with the weights of the rollout, they are the sampler's.
  assert mask_BT.any(axis=1).all() and np.ptp(batch["sampler_logprob_BT"][mask_BT]) > 0.1
  assert_close(np.where(mask_BT, batch["old_logprob_BT"], 0), batch["sampler_logprob_BT"], tolerance=1e-4)
  # The prompt is the teacher's: the question and what the student said of it, not the question alone.
  table = recipe.source._lessons
  for text, where in zip(texts_of(batch), recipe.source.provenance(0)):
    problem = next(one.lesson.problem for one in recipe.source._taught if one.lesson.problem.where == where)
    lesson = next(one.lesson for one in recipe.source._taught if one.lesson.problem.where == where)
    assert text == problem.prompt + lesson.approach.text and lesson.approach.text
  assert table.settings.templates == teaching.PLAIN
  if layout:  # The gradient of adapters is that of every recipe.
    return
  (grads, _), out = gradients(recipe.loss, params, batch, (), frozen=frozen, rng=jax.random.key(0), parts=1)
  # The student has no gradient: what is differentiated is what is trained alone.
  assert jax.tree.structure(grads) == jax.tree.structure(params) and "student" in frozen
  metrics = recipe.accounting.finish(out.metrics)
  assert metrics["policy/sampler_gap_nats_max"] < 1e-4 and abs(metrics["policy/ratio_max"] - 1) < 1e-5


def test_the_student_stays_as_it_is_and_a_run_goes_on_bit_for_bit(tmp_path):
  config = config_of(optim__steps=5, rollout__batches_per_rollout=2, policy__kl_weight=0.0,
                     teacher__temperature=1.0)
  runs.run_lm(config, tmp_path / "whole")
  recipe = recipes.load(config, runs.one_device(), tmp_path / "whole")
  expected = runs.saved(config, recipe, tmp_path / "whole").params
  runs.run_lm(config, tmp_path / "parts", stop_at=3)
  assert not (tmp_path / "parts" / "summary.json").exists()
  runs.run_lm(config, tmp_path / "parts")
  assert_same_bits(runs.saved(config, recipe, tmp_path / "parts").params, expected)
  rows = [[{name: value for name, value in row.items() if not name.endswith("_s")}
           for row in runs.rows_of(tmp_path / part)] for part in ("whole", "parts")]
  assert rows[0] == rows[1] and len(rows[0]) == 5
  first = jax.jit(recipe.init)(jax.random.key(config.seed)).params
  assert max(float(abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (first, expected)))) > 1e-3
  # Its answers alone are the same questions' in every start: nothing of it was trained.
  tables = [(tmp_path / part / "completions" / "00000000.jsonl").read_text() for part in ("whole", "parts")]
  assert tables[0] == tables[1]
  logged = json.loads(tables[0].splitlines()[0])["logged"]
  assert set(logged) == {"question", "approach", "guidance", "baseline", "guided", "baseline_score",
                         "guided_score", "leak"}


def test_a_teacher_learns_the_token_that_helps_its_student(tmp_path):
  config = teacher_rcl.get_config("cpu")
  config.monitor.update(tensorboard=False, report=False)
  config.data.update(batch_rows=32)
  config.optim.update(steps=40, warmup_steps=2)
  config.train.eval_every_steps = 40
  config = configs.resolve(config)
  mesh = runs.one_device()
  summary = train.run(config, recipes.load(config, mesh, tmp_path), mesh, tmp_path)
  runs.check_names(tmp_path)
  assert summary["teaching_accuracy"] - summary["teaching_baseline_accuracy"] > 0.5
  assert summary["teaching_non_degradation_rate"] >= 0.95
  assert summary["teaching_mcnemar_p"] < 1e-6 and summary["teaching_learning_rate_low"] > 0.4
  # The same word helps with every sum, so that another question's guidance does as well, and no fixed hint.
  assert abs(summary["teaching_over_placebo"]) < 0.1
  assert summary["teaching_fixed_accuracy"] == summary["teaching_baseline_accuracy"]
  first, *_, last = runs.rows_of(tmp_path)
  assert first["teacher/student_accuracy"] < 0.6
  assert last["rollout/reward_mean"] > first["rollout/reward_mean"]
  lines = (tmp_path / "completions/00000000.jsonl").read_text().splitlines()
  assert CARRY in json.loads(lines[-1])["logged"]["guidance"]


def test_questions_that_the_student_answers_are_passed_over_where_failures_are_shown():
  config = config_of(**toy(teacher__shown="failure"), policy__kl_weight=0.0)
  recipe, params, frozen = started(config)
  passed = []
  for _ in range(3):
    batch = recipe.source.next(Trained(params, frozen))
    passed.append(recipe.source.metrics().scalars["teacher/passed_frac"])
    for text in texts_of(batch):
      question, _, attempt = text.partition("=")
      left, right = map(int, question.split("+"))
      assert attempt and int(attempt) != left + right
  state = json.loads(json.dumps(recipe.source.state()))
  expected = recipe.source.next(Trained(params, frozen))
  assert 0 < max(passed) < 1
  again, *_ = started(config)
  again.source.restore(state)
  for name, array in again.source.next(Trained(params, frozen)).items():
    np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_a_student_may_be_another_model_with_its_own_tokenizer(tmp_path):
  folder = teachers.published(tmp_path / "student")
  config = config_of(teacher__student=str(folder), optim__steps=2, teacher__reliance_weight=0.5,
                     data__held_out_frac=0.2)
  summary = runs.run_lm(config, tmp_path / "run", evals=True)
  recipe = recipes.load(config, runs.one_device(), tmp_path / "run")
  held = recipe.load(runs.one_device(), False).frozen["student"]
  shapes = [sorted(leaf.shape for leaf in jax.tree.leaves(tree))
            for tree in (held, jax.eval_shape(recipe.init, jax.random.key(0)).params)]
  assert shapes[0] != shapes[1]
  assert math.isfinite(summary["teaching_accuracy"]) and summary["teaching_contaminated_frac"] == 0
  rows = runs.rows_of(tmp_path / "run")
  assert all(math.isfinite(row["teacher/reliance_nats"]) for row in rows)
  recipe.assets.save(tmp_path / "run")
  recipe.assets.check(tmp_path / "run")
  changed = runs.changed(configs.unfrozen(config), {"teacher__formats__guided": "{guidance}{question}"})
  with pytest.raises(ValueError, match="another protocol: templates_sha256 was"):
    recipes.load(changed, runs.one_device(), tmp_path / "run").assets.check(tmp_path / "run")


@pytest.mark.parametrize(("fields", "message"), [
    (dict(teacher__templates="nothing"), "config.teacher.templates='nothing' is no set"),
    (dict(teacher__templates="chat"), "asks the teacher by 2 messages, and its prompts are texts"),
    (dict(teacher__grader="corect"), "config.teacher.grader='corect' is no reward: .* unknown"),
    (dict(teacher__rewards="teaching=1,corect"), "'corect', which is unknown"),
    (dict(teacher__rewards=""), "config.teacher.rewards is empty"),
    (dict(teacher__sampler="tests.nowhere"), "config.teacher.sampler='tests.nowhere': there is no module"),
    (dict(teacher__sampler="tests.helpers"), "defines no make"),
    (dict(teacher__student="nowhere"), "config.teacher.student='nowhere' cannot be opened"),
    (dict(teacher__verdict_weight=0.5), "and config.teacher.shown='probe' shows none"),
    (dict(teacher__shown="attempt", teacher__formats__teacher="{question}"), "needs the student's attempt"),
    (dict(teacher__reward__preset="r4", teacher__reward__keep_correct_value=0.5), "is not read by preset r4"),
    (dict(teacher__reliance_weight=0.1, **toy()), "which config.teacher.sampler='native' alone has"),
])
def test_a_config_that_cannot_be_is_refused_before_anything_is_compiled(fields, message):
  with pytest.raises(ValueError, match=message):
    recipes.load(config_of(**fields), runs.one_device())
