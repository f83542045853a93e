"""Distillation from whole models: nothing to learn from oneself, much from another, whatever its ids."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atlas_jax import config as configs
from atlas_jax import recipes
from atlas_jax.data.problems import Problem
from atlas_jax.optim import accumulate
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import gkd
from atlas_jax.rollout.distill_rows import Text
from atlas_jax.state import Trained
from atlas_jax.workdir import CHECKPOINTS
from configs import gkd as config_file
from tests import runs, teachers
from tests.helpers import assert_close, assert_same_bits, quick_compilation
from tests.pieces import Pieces


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  """The folder of a model that nobody has trained; it has three ids more than its tokenizer."""
  return teachers.published(tmp_path_factory.mktemp("gkd") / "teacher")


def make_config(teacher, **changes):
  """A student of the teacher's shape but for padding rows, on sums."""
  config = config_file.get_config("smoke")
  config.decoder.update(**teachers.SMALL)
  config.distill.update(teacher=str(teacher), beta=0.5, on_policy_frac=0.5)
  config.sampler.max_tokens = 32
  config.monitor.update(tensorboard=False, report=False, progress=False)
  return runs.changed(config, changes)


def same(teacher):
  """What makes the student a copy of the teacher."""
  return {"model__path": str(teacher)}


def opened(config, mesh=None):
  """A recipe with its first parameters and what is frozen."""
  mesh = mesh or runs.one_device()
  recipe = recipes.load(config, mesh)
  given = recipe.load(mesh, True)
  params = given.params if given.params is not None else jax.jit(recipe.init)(jax.random.key(0)).params
  frozen = dict(given.frozen)
  return recipe, params, frozen


def gradd(recipe, frozen):
  """The loss and its gradient, compiled."""
  def loss(params, batch):
    out = recipe.loss(params, batch, frozen=frozen, carry=(), rng=jax.random.key(0))
    return out.loss, out

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("alignment", ("auto", "spans"))
def test_a_teacher_like_the_student_gives_no_loss_and_no_gradient(teacher, alignment):
  config = make_config(teacher, **same(teacher), distill__alignment=alignment, distill__on_policy_frac=0.0)
  recipe, params, frozen = opened(config)
  (loss, out), grad = gradd(recipe, frozen)(params, recipe.source.next(Trained(params, frozen)))
  assert float(out.weight) > 40  # Four solutions of a dozen bytes and more.
  assert_close((loss, grad), (np.float32(0), jax.tree.map(np.zeros_like, grad)), tolerance=2e-6)


def renumbered(pair, params, seed):
  """The student as a teacher whose ids have other numbers."""
  tokenizer = Pieces(shuffle=seed)
  number = {tokenizer.decode_bytes([token]): token for token in range(256)}
  order = np.array([number[bytes([byte])] for byte in range(256)] + [256, 257, 258, 259])
  moved = {**params, "embed": jnp.zeros_like(params["embed"]).at[order].set(params["embed"])}
  return pair.student._replace(tokenizer=tokenizer), moved


def test_the_student_with_its_ids_renumbered_is_no_teacher(teacher):
  config = make_config(teacher, **same(teacher))
  pair, (_, params, _) = gkd.pair_of(config), opened(config)
  other, moved = renumbered(pair, params, seed=5)
  found = gkd.spans.classes(pair.student.tokenizer, other.tokenizer, [256], [256])
  pair = gkd.Pair(pair.student, other, found)
  readers = [gkd.reader_of(config, start) for start in pair[:2]]
  problems = [Problem("a", "47+85=", "132", "7+5=12 4+8+1=13 #### 132"), Problem("b", "1+1=", "2", "it is 2")]
  texts = [Text(*(one.prompt(problem) for one in readers), readers[0].solution(problem), by_teacher=False)
           for problem in problems]  # fmt: skip
  batch = gkd.distill_rows.by_spans(texts, *readers, pad_tokens=8, align_tokens=1)
  batch["on_policy_B"] = np.zeros(2, np.float32)
  recipe = opened(config)[0]._replace(loss=gkd.loss_of(config, pair))
  (loss, out), grad = gradd(recipe, {gkd.FROZEN: moved})(params, batch)
  assert float(out.weight) == len("7+5=12 4+8+1=13 #### 132") + len("it is 2") + 2
  assert_close((loss, grad), (np.float32(0), jax.tree.map(np.zeros_like, grad)), tolerance=2e-6)


@pytest.mark.parametrize("changes", (
  {}, {"distill__beta": 1.0, "distill__on_policy_frac": 1.0},
  {"distill__alignment": "spans"}, {"distill__alpha": 0.5, "distill__temperature": 2.0},
))  # fmt: skip
def test_the_loss_of_a_student_drawn_at_random_falls_with_every_step(teacher, changes):
  config = make_config(teacher, **changes)
  recipe, params, frozen = opened(config)
  batch, grad_of = recipe.source.next(Trained(params, frozen)), gradd(recipe, frozen)
  descent, losses = optax.sgd(0.005), []
  state = descent.init(params)
  for _ in range(12):
    (loss, _), grad = grad_of(params, batch)
    updates, state = descent.update(grad, state)
    params, losses = optax.apply_updates(params, updates), [*losses, float(loss)]
  assert np.all(np.diff(losses) < 0), losses


def test_pieces_of_a_batch_give_the_gradient_of_the_whole(teacher):
  config = make_config(teacher, distill__on_policy_frac=0.0)
  recipe, params, frozen = opened(config)
  batch = jax.tree.map(jnp.asarray, recipe.source.next(Trained(params, frozen)))
  assert len(set(np.asarray(batch["completion_mask_BT"]).sum(axis=1))) > 1
  found = lambda parts: accumulate.gradients(recipe.loss, params, batch, (), frozen=frozen,
                                             rng=jax.random.key(0), parts=parts)  # fmt: skip
  whole, parts = found(1), found(2)
  assert_close((parts[0], parts[1].loss), (whole[0], whole[1].loss), tolerance=1e-5)


MAIN = dict(optim__steps=6, checkpoint__every_steps=2, train__accumulate_steps=2, optim__ema_decay=0.5,
            distill__off_policy_source="teacher")  # fmt: skip


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
  """A run that is never stopped: (config, workdir, summary)."""
  config, workdir = make_config(teacher, **MAIN), tmp_path_factory.mktemp("gkd") / "whole"
  return config, workdir, runs.run_lm(config, workdir, evals=True)


def test_a_run_tells_how_near_the_student_is_and_how_often_both_are_right(whole):
  _, workdir, summary = whole
  rows = runs.rows_of(workdir)
  for name in ("train/loss_nats", "distill/on_policy_frac", "rollout/length_tokens", "rollout/ended_frac"):
    assert all(np.isfinite(row[name]) for row in rows), name
  assert {row["distill/on_policy_frac"] for row in rows} == {0.0, 1.0}
  assert summary.keys() >= {"val_divergence_nats", "val_accuracy", "teacher_accuracy", "train_loss_nats"}
  assert 0 < summary["val_divergence_nats"] < np.log(2)


def test_a_stopped_run_goes_on_bit_for_bit(whole, tmp_path):
  config, workdir, _ = whole
  assert runs.run_lm(config, tmp_path, stop_at=3) == {}
  runs.run_lm(config, tmp_path)
  apart = ("val/", "teacher/", "rollout/generate_s")  # Of evaluations, and what a clock measured.
  without = lambda row: {name: value for name, value in row.items() if not name.startswith(apart)}
  assert [without(row) for row in runs.rows_of(tmp_path)] == [without(row) for row in runs.rows_of(workdir)]
  recipe = recipes.load(config, runs.one_device())
  params = lambda folder: runs.saved(config, recipe, folder).params
  assert_same_bits(params(tmp_path), params(workdir))


def test_many_devices_give_the_loss_of_one(teacher):
  config = make_config(teacher, **same(teacher), distill__on_policy_frac=1.0, seed=3)
  cube = meshes.make(data=2, fsdp=2, tensor=2)
  losses = []
  for mesh in (runs.one_device(), cube):
    recipe, params, frozen = opened(config, mesh)
    params = jax.tree.map(lambda x: 1.1 * x, params)
    batch = gkd.hosts.global_batch(mesh, recipe.source.next(Trained(params, frozen)))
    losses.append(float(gradd(recipe, frozen)(params, batch)[0][0]))
  assert_close(*losses, tolerance=1e-6)


def test_adapters_alone_learn_where_they_are_asked_for(teacher):
  config = make_config(teacher, **same(teacher), lora__rank=2, distill__on_policy_frac=1.0)
  recipe, params, frozen = opened(config)
  assert frozen.keys() == {"base", "teacher"}
  names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)}
  assert names == {"lora_a", "lora_b"}
  params = jax.tree.map(lambda x: x + 0.3, params)
  (loss, _), grad = gradd(recipe, frozen)(params, recipe.source.next(Trained(params, frozen)))
  assert float(loss) > 1e-3
  assert all(np.asarray(x).any() for x in jax.tree.leaves(grad))


def test_a_memory_model_learns_from_a_decoder(teacher):
  config = make_config(teacher, model__kind="memory", distill__on_policy_frac=0.0)
  recipe, params, frozen = opened(config)
  batch = recipe.source.next(Trained(params, frozen))
  assert batch["tokens_BS"].shape[1] % config.model.memory.chunk_size == 0
  out = jax.jit(lambda: recipe.loss(params, batch, frozen=frozen, carry=(), rng=jax.random.key(0)))()
  assert 0 < float(out.loss) < np.log(2)
  assert any("memory" in name for name in out.metrics)


def test_held_out_texts_have_the_divergence_of_the_loss(teacher):
  config = make_config(teacher, eval__max_problems=6)
  recipe, params, frozen = opened(config)
  pair = gkd.pair_of(config)
  found = recipe.evals["divergence"].run(Trained(params, frozen), step=0).scalars
  solved = gkd.prompts.listed(config, "held_out")
  readers = [gkd.reader_of(config, start) for start in pair[:2]]
  texts = [Text(*(one.prompt(problem) for one in readers), readers[0].solution(problem), by_teacher=False)
           for problem in solved]  # fmt: skip
  batch = {**recipe.source.arrays(texts), "on_policy_B": np.zeros(len(texts), np.float32)}
  out = recipe.loss(params, batch, frozen=frozen, carry=(), rng=jax.random.key(0))
  assert len(texts) == 6
  assert found["val/completion_tokens"] == float(out.weight)
  assert_close(found["val/divergence_nats"], float(out.loss), tolerance=1e-6)


@pytest.mark.parametrize("changes, says", (
  ({"distill__teacher": None}, "config.distill.teacher=None: distillation needs a teacher"),
  ({"distill__teacher": "nowhere"}, "config.distill.teacher='nowhere' cannot be opened"),
  ({"distill__alignment": "spans", "distill__alpha": 0.5}, "config.distill.alpha=0.5 mixes in"),
))  # fmt: skip
def test_a_teacher_that_cannot_teach_is_refused(teacher, changes, says):
  with pytest.raises(ValueError, match=says):
    recipes.load(make_config(teacher, **changes), runs.one_device())


def test_other_ids_are_not_taken_for_the_same(teacher, monkeypatch):
  config = make_config(teacher, distill__alignment="tokens")
  own = gkd.open_teacher(config)
  monkeypatch.setattr(gkd, "open_teacher", lambda config: own._replace(tokenizer=Pieces("12")))
  with pytest.raises(ValueError, match="'tokens' compares the same ids.*257 ids, the teacher's 258"):
    gkd.pair_of(config)
  auto = make_config(teacher)
  assert gkd.pair_of(auto).classes.size == 257


def test_a_teacher_that_was_trained_further_is_refused(teacher, tmp_path):
  """It is read at every start: what was taught by one teacher would go on with another, unsaid."""
  first = make_config(teacher, optim__steps=1, distill__on_policy_frac=0.0, data__held_out_frac=0.0)
  runs.run_lm(first, tmp_path / "teacher")
  configs.save(first, tmp_path / "teacher")
  recipes.load(first, runs.one_device()).assets.save(tmp_path / "teacher")
  recipe = recipes.load(make_config(tmp_path / "teacher"), runs.one_device())
  (tmp_path / "run").mkdir()
  recipe.assets.save(tmp_path / "run")
  recipe.assets.check(tmp_path / "run")
  (tmp_path / "teacher" / CHECKPOINTS / "9").mkdir()
  with pytest.raises(ValueError, match="config.distill.teacher=.*teacher' is at step 9, and was at 1 when"):
    recipe.assets.check(tmp_path / "run")
