"""The study of gates that collapse: each fault does what it says, and the README says what was found.

Faults of the system that this project follows, which live in the study alone: memory that looks ahead (1), a
write path without gradient (2), an inner step that diverges (3), a clamp that kills the gate's gradient (7),
a loss for copying (9), an answer that attention sees (10).
"""

import functools
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax.data import recall
from atlas_jax.memory import rules, scan
from atlas_jax.memory.types import Gates, Token, by_steps
from atlas_jax.models import head
from atlas_jax.models.blocks import gate
from atlas_jax.state import Init
from experiments import arms
from experiments.gate_collapse import analysis, config, faults, original_memory, recipe, run
from tests import program
from tests.data.recall import settings
from tests.helpers import SHIFTED, assert_close, assert_same_bits, freeze, quick_compilation, tiny_lm

FOLDER = pathlib.Path(run.CONFIG).parent
NO_GRAD = {"rule": "experiments.gate_collapse.no_grad",
           "options": freeze({"rule": "delta", "options": {"momentum": False}})}  # fmt: skip
ONE_HEAD = {"key_dim": 8, "value_dim": 4, "chunk_size": 4}


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def model_of(*names, **memory):
  model, params, tokens_BT = tiny_lm(memory=SHIFTED | memory)
  return faults.with_faults(model, names), params, tokens_BT


def read(model, params, tokens_BT, **given):
  return model.apply({"params": params}, tokens_BT, model.zero_state(2), doc_BT=jnp.zeros_like(tokens_BT),
                     **given).hidden_BTD  # fmt: skip


def gradients(model, params, tokens_BT, **given):
  """The largest entry of the gradient of each parameter."""
  total = lambda params: jnp.sum(jnp.sin(read(model, params, tokens_BT, **given)))
  found = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total))(params))
  return {jax.tree_util.keystr(path): float(jnp.max(jnp.abs(leaf))) for path, leaf in found}


# --- faults of the forward pass ---


def test_look_ahead_sees_the_future_and_the_model_that_is_used_does_not():
  moved = {}
  for name in ("none", "look_ahead"):
    model, params, tokens_BT = model_of(*({name} - {"none"}))
    hidden = jax.jit(functools.partial(read, model))
    change = hidden(params, tokens_BT) - hidden(params, tokens_BT.at[:, -1].add(1) % 32)
    moved[name] = np.abs(change)[:, 1:-1].max()  # With the shift the first token neither writes nor reads.
  assert moved["none"] == 0 and moved["look_ahead"] > 1e-3
  assert "look_ahead" in faults.IN_TRAINING


def test_faults_are_in_place_only_while_their_model_is_called():
  before = gate.Memory, gate.floored, gate.mix_layer
  model, params, tokens_BT = model_of("look_ahead", "clamp", "convex", "no_such_part")
  assert model.faults == ("look_ahead", "clamp", "convex")
  assert jax.eval_shape(functools.partial(read, model), params, tokens_BT).shape == (2, 12, 12)
  assert (gate.Memory, gate.floored, gate.mix_layer) == before


def test_without_a_gradient_of_writes_reads_are_the_same_and_only_queries_learn():
  options = freeze({"momentum": False})
  plain, params, tokens_BT = model_of(options=options)
  cut, _, _ = model_of(**NO_GRAD)
  assert_close(jax.jit(functools.partial(read, cut))(params, tokens_BT),
               jax.jit(functools.partial(read, plain))(params, tokens_BT))  # fmt: skip
  found = gradients(cut, params, tokens_BT)
  written = {path: value for path, value in found.items() if "value_kernel" in path or "['gates']" in path}
  assert len(written) == 3 and not any(written.values())
  assert all(found[path] > 1e-5 for path in found if "qkv_kernel" in path or "memory_out" in path)


def test_a_clamp_has_no_gradient_below_the_floor_and_ours_has():
  raw = jnp.float32([0.0025, 0.05, 0.5])
  slope_of = lambda floored: jax.grad(lambda raw: jnp.sum(floored(raw, 0.1)))(raw)
  assert slope_of(faults.clamped).tolist() == [0, 0, 1] and (slope_of(gate.floored) > 0.8).all()
  assert_same_bits(faults.clamped(raw, 0.1), jnp.float32([0.1, 0.1, 0.5]))


def test_gates_that_start_shut_stay_so_with_a_clamp():
  model, params, tokens_BT = model_of("clamp")
  shut = recipe.init_shut(lambda rng: Init(params, frozen=(), carry=()), None).params
  bias = lambda tree: tree["blocks"]["mix_gate"]["bias"]
  assert_close(bias(shut), bias(params) - 6)
  found = gradients(model, shut, tokens_BT, gate_floor=0.3)
  assert not any(value for path, value in found.items() if "mix_gate" in path)
  ours = gradients(faults.with_faults(model, ()), shut, tokens_BT, gate_floor=0.3)
  assert all(value > 0 for path, value in ours.items() if "mix_gate" in path)


def test_a_convex_gate_takes_from_attention_what_it_gives_to_memory():
  model, params, tokens_BT = model_of("convex")
  wide_open = jax.tree_util.tree_map_with_path(
    lambda path, x: x + 60 if "mix_gate" in jax.tree_util.keystr(path) and x.ndim == 2 else x, params)
  found = gradients(model, wide_open, tokens_BT)
  assert not any(value for path, value in found.items() if "['attention']" in path)
  assert any(value for path, value in found.items() if "['memory']" in path)


# --- the diverging step ---


def test_the_originals_step_diverges_to_its_clip_and_recalls_nothing():
  draw = np.random.default_rng(0)
  unit = lambda x: jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)
  tokens = Token(*(unit(draw.normal(size=(64, size))) for size in (8, 8, 4)))
  tokens = tokens._replace(q=tokens.k)

  def after(step_size, form=lambda rule: rule):
    rule = form(rules.load("experiments.gate_collapse.original_memory", step_size=step_size, **ONE_HEAD))
    log_retention_T = jnp.full(64, jnp.log(rule.starts.retention))
    gates = Gates(log_retention_T, jnp.zeros(64), jnp.full(64, rule.starts.write_rate))
    learned = rule.init(None)
    memory, out = scan.scan_packed(rule, rule.start(learned), learned, tokens, gates, jnp.ones(64),
                                   jnp.zeros(16, bool), chunk_size=4)  # fmt: skip
    return float(jnp.linalg.norm(memory.fast["w0"])), np.asarray(jnp.sum((out.out_CM - tokens.v) ** 2, -1))

  norm, error_T = after(original_memory.STEP)
  assert norm == pytest.approx(original_memory.NORM_MAX, rel=1e-4) and np.median(error_T[8:]) > 100
  assert_close(after(original_memory.STEP, by_steps)[1], error_T, tolerance=1e-4)
  norm, error_T = after(0.5)
  assert norm < 3 and error_T.mean() < 5  # A step that is short enough stays near the values, of length 1.


# --- faults of the loss and of episodes ---


def test_the_copy_loss_asks_each_token_of_an_episode_for_itself():
  model, params, tokens_BT = model_of()
  draw = np.random.default_rng(1)
  doc_BT = np.zeros((2, 12), np.int32)
  doc_BT[0, 9:] = -1
  answer_BT = np.zeros((2, 12), np.float32)
  answer_BT[0, 4] = 1  # The other row is text.
  weight_BT = np.float32(draw.integers(2, size=(2, 12)) * (doc_BT >= 0))
  batch = {"tokens_BT": tokens_BT, "targets_BT": jnp.roll(tokens_BT, -1, 1), "weight_BT": weight_BT,
           "doc_BT": doc_BT, "answer_BT": answer_BT, "bytes_BT": np.ones((2, 12), np.int32)}  # fmt: skip
  given = types.SimpleNamespace(loss={}, episode=types.SimpleNamespace(recall_weight=5.0))

  @jax.jit
  def both(params):
    carry = model.zero_state(2)
    out = recipe.loss_with_copies(given, model)(params, batch, frozen=None, carry=carry, rng=None)
    hidden_BTD = model.apply({"params": params}, tokens_BT, carry, doc_BT=doc_BT).hidden_BTD
    return out, jax.nn.log_softmax(head.logits(params, hidden_BTD))

  out, log_BTV = both(params)
  nll = lambda ids_BT: -np.take_along_axis(np.asarray(log_BTV), np.asarray(ids_BT)[..., None], -1)[..., 0]
  text = [nll(batch["targets_BT"])[row][weight_BT[row] > 0].mean() for row in range(2)]
  copies = nll(tokens_BT)[0][:9].mean()
  assert_close(np.asarray(out.loss), np.mean(text) + 5 * copies / 2, tolerance=1e-5)
  of_weight = [out.metrics[name] * out.weight for name in ("answer_tokens", "text_tokens")]
  assert (*of_weight, out.seen) == (9, weight_BT.sum(), 21)


@pytest.mark.parametrize("name", config.TASKS)
def test_answers_that_are_visible_stand_in_the_window_and_ours_beyond_its_reach(name):
  visible = configs.resolve(config.get_config("faults=visible"))
  ours = configs.resolve(config.get_config())
  assert visible.episode.least_distance == visible.episode.most_distance == 0
  assert visible.episode.most_items == 1
  draw = lambda items, distance: recall.load(name).sample(
    {"items": items, "distance": distance}, settings.setting(), seed=0, split="train", number=0)
  assert max(draw(1, 0).distance_N) < visible.model.window_tokens
  reach = ours.model.depth * (ours.model.window_tokens - 1)
  assert min(draw(3, ours.episode.least_distance).distance_N) > reach


# --- the study ---


def test_arms_have_as_many_parameters():
  count = {}  # By what decides it: options and training change none.
  for arm in run.ARMS:
    fields = configs.resolve(config.get_config(arm.config.partition(":")[2])).model
    key = fields.ff_width, fields.memory.shared_qk, fields.memory.rule
    if key not in count:
      count[key] = arms.parameters(arm.config, arm.fields)
  assert count[256, True, "delta"] == run.PARAMS and len(count) == 5
  assert all(abs(params / run.PARAMS - 1) < 0.011 for params in count.values())


def test_what_is_unknown_or_without_effect_is_refused():
  for arg, message in (("faults=clmap", "names 'clmap'; did you mean 'clamp'"),
                       ("train=plan", "did you mean 'plain'"),
                       ("train=plain,faults=visible", "exclude each other: nothing is asked")):  # fmt: skip
    with pytest.raises(ValueError, match=message):
      config.get_config(arg)
  assert config.get_config("faults=fast_gates").optim.gate_lr_scale == 5


def test_every_fault_is_in_an_arm():
  used = {name for arm in run.ARMS for name in config.FAULTS if name in arm.config}
  assert used == {*config.FAULTS}


def test_a_collapse_is_a_shut_gate_or_a_gain_that_may_be_nothing():
  def row(raw, gain, low):
    evals = [{"tokens": 1e5 * at, "emptied": gain * at, "emptied_low": low} for at in (1, 2)]
    gates = [{"tokens": 1, "raw": [0.9, 0.9]}, *[{"tokens": 2, "raw": [0.5, raw]}] * 3]
    return {"gates": gates, "evals": evals}

  assert analysis.collapsed(row(0.3, 0.1, 0.05)) == [] and analysis.lowest_gate(row(0.3, 0.1, 0.05)) == 0.3
  assert analysis.collapsed(row(0.09, 0.1, 0.05)) == ["gate"]
  assert analysis.collapsed(row(0.01, 0.1, -0.01)) == ["gate", "gain"]
  assert analysis.growth(row(0.3, 0.1, 0.05)) == pytest.approx(0.1)


def test_the_page_says_what_was_found(tmp_path):
  found = json.loads((FOLDER / "results.json").read_text())
  page = (FOLDER / "README.md").read_text()
  assert page == analysis.filled(page, found) and all(f"<!-- {name} -->" in page for name in analysis.PARTS)
  for name, row in found.items():
    arm = next(arm for arm in run.ARMS if arm.name == name.rpartition("/")[0])
    assert f"--config={arm.config}" in row["command"] and row["steps"] == config.STEPS
  analysis.draw(found, tmp_path / "x.png")
  assert (tmp_path / "x.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_original_is_trained_and_evaluated(tmp_path):
  arm = next(arm for arm in run.ARMS if arm.name == "original")
  small = ["--config.data.batch_rows=8", "--config.optim.steps=2", "--config.train.eval_every_steps=2",
           "--config.train.log_every_steps=1", "--config.eval.task_samples=2",
           "--config.eval.gain_max_tokens=8192"]  # fmt: skip
  done = program.run(f"--config={arm.config}", f"--workdir={tmp_path}/run", *small)
  assert done.code == 0, done.err
  rows = run.curves([json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()])
  assert len(rows["gates"]) == 2 and all(len(one["raw"]) == 2 for one in rows["gates"])
  assert {"emptied", "swapped", "bits_per_byte"} < {*rows["evals"][-1]}
