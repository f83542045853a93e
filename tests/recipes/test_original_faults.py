"""The faults of the system that episodic training follows, and the tests that fail where one is put back.

Faults of memories and models are put back here, the others in the files of this name in data/, optim/,
monitor/ and tests/ itself: a check that passes on what is here fails on the fault. Names without a file are
of this one; folders are those of tests/.

   1 memory that looks ahead: test_reading_the_memory_of_the_end_is_noticed,
     models/test_lm.py::test_random_tokens_are_never_predicted_better_than_their_entropy,
     recipes/test_memory_lm.py::test_random_letters_are_never_predicted_better_than_by_chance
   2 a write path without gradient: test_writes_without_a_gradient_are_noticed,
     recipes/test_episodic.py::test_the_loss_of_answers_reaches_what_is_written
   3 an inner step that diverges: test_keys_of_any_length_are_noticed,
     memory/test_liveness.py::test_a_shipped_memory_is_alive
   4 a polynomial of single channels, a third of it constant: test_powers_of_channels_are_no_polynomial,
     memory/test_features.py::test_queries_and_keys_meet_in_the_kernel
   5 no Muon: test_a_matrix_over_its_norm_is_not_orthogonal
   6 a gate floor that is never used: test_a_floor_that_no_update_is_given_is_noticed,
     recipes/test_episodic.py::test_the_floor_changes_the_loss
   7 a clamp that stops the gate's gradient:
     models/test_gate_floor.py::test_a_clamp_in_place_of_the_floor_is_noticed
   8 gates metered behind the clamp:
     models/test_gate_floor.py::test_a_gate_that_is_metered_behind_its_floor_is_noticed,
     evals/test_collapse.py::test_gates_metered_behind_the_floor_would_blind_the_check
   9 a retrieval loss for copying the input: data/test_original_faults.py::test_echoes_are_no_answers
  10 retrieved text in sight of attention: data/test_original_faults.py::test_answers_in_sight_are_noticed
  11 a verifier that compares a snapshot with itself:
     monitor/test_original_faults.py::test_controls_that_change_nothing_are_noticed,
     evals/test_memory_gain_limits.py::test_a_memory_that_holds_the_answer_is_worth_what_it_tells
  12 a measure of memories that is one of the batch (there the rank, which is not measured here):
     monitor/test_original_faults.py::test_a_norm_over_all_rows_together_is_noticed,
     evals/test_memory_health.py::test_each_number_equals_its_computation_by_hand
  13 gradients measured after they are cleared:
     optim/test_original_faults.py::test_norms_of_cleared_gradients_are_noticed
  14 a first update at the peak of the learning rate:
     optim/test_original_faults.py::test_a_first_update_at_the_peak_is_noticed,
     optim/test_schedules.py::test_warm_up_starts_with_the_first_update
  15 intervals that steps jump over:
     monitor/test_original_faults.py::test_steps_that_jump_over_intervals_are_noticed
  16 weight decay of everything: optim/test_original_faults.py::test_decay_of_norms_and_biases_is_noticed,
     optim/test_build.py::test_only_matrices_are_decayed
  17 devices and processes that do not add up their gradients, or are not joined:
     optim/test_original_faults.py::test_gradients_that_devices_keep_to_themselves_are_noticed,
     test_launch.py::test_two_processes_are_one_run_of_which_a_death_leaves_a_checkpoint
  18 steps that are micro-batches:
     monitor/test_original_faults.py::test_steps_that_are_no_updates_are_noticed
  19 a scale of the loss in the norms of gradients (no loss is scaled here):
     optim/test_original_faults.py::test_norms_of_scaled_gradients_are_noticed
  20 a tokenizer's path that is ignored: data/test_original_faults.py::test_another_tokenizer_is_noticed
  21 ids beyond the vocabulary: data/test_original_faults.py::test_ids_beyond_the_vocabulary_are_noticed,
     recipes/test_memory_lm.py::test_a_vocabulary_that_is_not_the_tokenizers_is_refused
  22 characters cut at the border of blocks:
     data/test_original_faults.py::test_characters_cut_in_two_are_noticed
  23 workers that all read the same:
     data/test_original_faults.py::test_processes_that_read_the_same_are_noticed,
     data/test_text.py::test_processes_together_read_the_batch_of_one
  24 documents without borders: test_a_memory_that_goes_on_from_document_to_document_is_noticed,
     data/test_original_faults.py::test_documents_without_borders_are_noticed
  25 checkpoints without the model's config:
     monitor/test_original_faults.py::test_a_run_that_does_not_say_its_model_is_noticed,
     test_main.py::test_the_workdir_is_enough_to_build_the_model_again
  26 a resume that loses memory, place or random numbers:
     monitor/test_original_faults.py::test_a_resume_that_loses_something_is_noticed,
     recipes/test_episodic.py::test_a_stopped_run_ends_as_if_it_had_not_been
  27 no validation: monitor/test_original_faults.py::test_a_run_without_evaluation_is_noticed
  28 thresholds of the config that are ignored:
     monitor/test_original_faults.py::test_settings_that_are_ignored_are_noticed,
     test_config.py::test_no_field_is_read_by_nobody,
     monitor/test_phases.py::test_every_threshold_counts
  29 arguments of alerts in the wrong order: no such part, alerts are not there
  30 a token of the environment that is not looked up (here that of trainers, not of alerts):
     language/test_server_sampler.py::test_a_token_that_may_not_change_weights_is_refused_and_not_shown
  31 a dashboard that goes back to its first page: no such part, the report is a picture
  32 panels of what is never written:
     monitor/test_original_faults.py::test_panels_of_what_no_run_writes_are_noticed
  33 advice that names missing fields: test_house_words.py::test_a_breach_is_found
  34 grokking told from training rows, and a stop by it:
     monitor/test_original_faults.py::test_grokking_told_from_training_rows_is_noticed,
     monitor/test_phases.py::test_knowing_the_training_rows_is_no_grokking,
     test_phase_runs.py::test_a_run_that_has_grokked_goes_on_to_its_end_and_its_summary_says_when
  35 tools that load another class of model:
     test_checkpoint.py::test_another_model_is_refused_by_leaf_and_shapes,
     language/test_runs.py::test_a_tuned_run_writes_on_from_its_prompt
  36 training on the model's own samples as if they were text:
     no such part; what samples is graded or taught
  37 modular arithmetic that cannot be imported and shows its answer:
     data/test_original_faults.py::test_an_answer_in_the_input_is_noticed,
     data/test_modular_arithmetic.py::test_the_answer_stands_in_no_input_and_only_it_counts
  38 tests that cannot be imported: test_original_faults.py::test_imports_that_lead_nowhere_are_noticed
  39 a library that is silently optional:
     test_original_faults.py::test_a_missing_library_that_nobody_is_told_of_is_noticed
  40 modes and floors that are not saved:
     monitor/test_original_faults.py::test_a_floor_that_a_reloaded_run_does_not_have_is_noticed,
     recipes/test_episodic.py::test_a_run_is_read_back_with_the_floor_that_it_ends_with
  41 a preset that does not fit its device: test_original_faults.py::test_a_batch_of_whole_logits_is_noticed
  42 secrets on disk: test_original_faults.py::test_secrets_that_a_config_would_save_are_noticed
  43 a health check that ignores the trainer: no such part, there is no container
  44 names that do not say how many parameters there are:
     test_original_faults.py::test_a_wrong_size_in_a_name_is_noticed,
     test_configs.py::test_the_name_says_how_many_parameters_there_are
  45 a start that is promised and gone: no such part, there is no container;
     what the README promises: test_readme.py::test_the_commands_of_a_block_run_as_written
"""
import ast
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import recipes, tree
from atlas_jax import step as stepping
from atlas_jax.kernels.newton_schulz import newton_schulz
from atlas_jax.memory import features, projections, scan
from atlas_jax.memory.layer import NO_DOC
from atlas_jax.recipes import episodic
from tests.helpers import assert_close, quick_compilation, tiny_lm, tiny_memory
from tests.models.test_lm import DOCUMENTS
from tests.recipes import test_episodic

TESTS = pathlib.Path(__file__).parents[1]
FAULTS = 45


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


# --- the list above ---


def entries() -> list[tuple[int, str]]:
  """Reads the list: number of each fault, and what is said of it."""
  parts = re.split(r"\n +(\d+) ", __doc__)[1:]
  return [(int(number), " ".join(text.split())) for number, text in zip(parts[::2], parts[1::2])]


@functools.lru_cache
def names_in(file: str) -> set[str]:
  """Lists the tests of a file below tests/."""
  body = ast.parse((TESTS / file).read_text()).body
  return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_every_fault_is_listed_once_with_tests_that_exist():
  found = entries()
  assert [number for number, _ in found] == list(range(1, FAULTS + 1))
  for number, text in found:
    named = re.findall(r"(?:([\w/]+\.py)::)?(test_\w+)\b(?!\.py|/)", text)
    assert named or "no such part" in text, f"fault {number} has no test"
    for file, name in named:
      file = file or "recipes/test_original_faults.py"
      assert (TESTS / file).is_file(), f"fault {number}: there is no {file}"
      assert name in names_in(file), f"fault {number}: there is no {file}::{name}"


# --- memory ---


def reader():
  """Compiles a small model anew: (tokens_BT, doc_BT) -> hidden_BTD, and its tokens."""
  model, params, tokens_BT = tiny_lm()

  def read(tokens_BT, doc_BT):
    return model.apply({"params": params}, tokens_BT, model.zero_state(2), doc_BT=doc_BT).hidden_BTD

  return jax.jit(read), tokens_BT


ours = functools.lru_cache(reader)


def sees_nothing_ahead(read, tokens_BT):
  """Checks that a token changes no bit before it, and all behind it."""
  at, one_doc_BT = 9, jnp.zeros_like(tokens_BT)
  other_BT = tokens_BT.at[:, at].add(1) % 32
  before, after = (np.asarray(read(x_BT, one_doc_BT)) for x_BT in (tokens_BT, other_BT))
  changed_T = (before != after).any(axis=(0, 2))
  assert not changed_T[:at].any(), "a token sees the future"
  assert changed_T[at:].all()


def test_reading_the_memory_of_the_end_is_noticed(monkeypatch):
  """Fault 1."""
  sees_nothing_ahead(*ours())
  packed = scan.scan_packed

  def read_at_the_end(rule, memory, learned, tokens, *others, **fields):
    end, out = packed(rule, memory, learned, tokens, *others, **fields)
    recalled = rule.apply(learned.slow, rule.base_of(learned.slow, end), tokens.q)
    return end, out._replace(out_CM=recalled)

  monkeypatch.setattr(scan, "scan_packed", read_at_the_end)
  with pytest.raises(AssertionError, match="a token sees the future"):
    sees_nothing_ahead(*reader())


def writing_is_learnt():
  """Checks that nearly every number of a memory's parameters has a gradient."""
  model, params, tokens_BT = tiny_lm()

  @jax.jit
  @jax.grad
  def gradient(params):
    doc_BT = jnp.zeros_like(tokens_BT)
    return jnp.sum(jnp.sin(model.apply({"params": params}, tokens_BT, model.zero_state(2), doc_BT=doc_BT)[0]))

  memory = gradient(params)["blocks"]["memory"]
  assert {"gates", "qkv_kernel"} <= memory.keys()
  for name, grad in tree.named_leaves(memory):
    learning = np.mean(np.abs(grad) > 1e-9)
    assert learning > 0.9, f"{name}: {learning:.0%} have a gradient"


def test_writes_without_a_gradient_are_noticed(monkeypatch):
  """Fault 2."""
  writing_is_learnt()
  packed = scan.scan_packed

  def cut_off(rule, memory, learned, tokens, gates, *others, **fields):
    k, v, gates = jax.lax.stop_gradient((tokens.k, tokens.v, gates))
    return packed(rule, memory, learned, tokens._replace(k=k, v=v), gates, *others, **fields)

  monkeypatch.setattr(scan, "scan_packed", cut_off)
  with pytest.raises(AssertionError, match="have a gradient"):
    writing_is_learnt()


def inner_steps_hold():
  """Checks that weights keep their size whatever the size of what is read."""
  # Without the bound on gradients, which by itself would keep the weights finite.
  layer, params, x_BTD = tiny_memory(T=32, options={"surprise_max": None})
  doc_BT, last_doc_B = jnp.zeros((2, 32), jnp.int32), jnp.full(2, NO_DOC, jnp.int32)

  @jax.jit
  def norm(x_BTD):
    out = layer.apply({"params": params}, x_BTD, layer.zero_state(2), doc_BT, last_doc_B, None, mode="packed")
    return out[2]["fast_norm_mean"]

  found = [float(norm(size * x_BTD)) for size in (1.0, 30.0)]
  assert found[1] < 3 * found[0], f"the memory's norm is {found[1]:.2g}, and {found[0]:.2g} of small inputs"


def test_keys_of_any_length_are_noticed(monkeypatch):
  """Fault 3: there the squared length of a key was a thousand, times a rate meant for one."""
  inner_steps_hold()
  monkeypatch.setattr(projections, "l2_normalize", lambda x: x)
  with pytest.raises(AssertionError, match="the memory's norm is"):
    inner_steps_hold()


def is_a_polynomial(of_queries, of_keys):
  """Checks that features meet in 1 + x + x^2 / 2 of the product, and that hardly one is the same for all."""
  q_TK, k_TK = np.random.default_rng(1).normal(size=(2, 9, 5)).astype(np.float32)
  met_TT, product_TT = np.asarray(of_queries(q_TK) @ of_keys(k_TK).T), q_TK @ k_TK.T
  assert_close(met_TT, 1 + product_TT + product_TT**2 / 2, why="the kernel", tolerance=1e-4)
  assert np.mean(np.ptp(np.asarray(of_keys(k_TK)), axis=0) == 0) < 0.1


def test_powers_of_channels_are_no_polynomial():
  """Fault 4."""
  lift = features.make(kind="poly", key_dim=5, degree=2)
  slow = lift.init(jax.random.key(0))
  is_a_polynomial(functools.partial(lift.queries, slow), functools.partial(lift.keys, slow))

  def powers(x_TK):
    return np.concatenate([np.ones_like(x_TK), x_TK, x_TK**2 / 2], axis=-1)

  with pytest.raises(AssertionError, match="the kernel"):
    is_a_polynomial(powers, powers)


def orthogonalises(function):
  """Checks that singular values come near one, however far apart they were."""
  draw = np.random.default_rng(2)
  left, right = (np.linalg.qr(draw.normal(size=(8, 8)))[0] for _ in range(2))
  found = np.linalg.svd(function((left * np.geomspace(0.1, 5, 8)) @ right), compute_uv=False)
  assert 0.6 < found.min() and found.max() < 1.3, f"singular values {found.min():.2g} to {found.max():.2g}"


def test_a_matrix_over_its_norm_is_not_orthogonal():
  """Fault 5: what was called Muon divided by the root of a norm."""
  orthogonalises(lambda x: np.asarray(newton_schulz(jnp.asarray(x, jnp.float32), steps=5)))
  with pytest.raises(AssertionError, match="singular values"):
    orthogonalises(lambda x: x / np.sqrt(np.linalg.norm(x)))


def documents_stay_apart(read, tokens_BT):
  """Checks that a document among others reads as if it were alone."""
  together_BTD = read(tokens_BT, jnp.asarray(DOCUMENTS))
  alone_BT = jnp.where(jnp.arange(12)[None] < 8, jnp.zeros((2, 12), jnp.int32), -1)
  assert_close(together_BTD[1, 4:], read(jnp.roll(tokens_BT, -4, axis=1), alone_BT)[1, :8], why="the second")


def test_a_memory_that_goes_on_from_document_to_document_is_noticed():
  """Fault 24."""
  read, tokens_BT = ours()
  documents_stay_apart(read, tokens_BT)
  with pytest.raises(AssertionError, match="the second"):
    documents_stay_apart(lambda x_BT, doc_BT: read(x_BT, jnp.minimum(doc_BT, 0)), tokens_BT)


# --- the floor ---


def floors_act(config):
  """Checks that an update of each phase sees a model of another floor."""
  model, params, tokens_BT = tiny_lm()

  def loss(*, phase=None, gate_floor=None):
    out = model.apply({"params": params}, tokens_BT, model.zero_state(2), doc_BT=jnp.zeros_like(tokens_BT),
                      gate_floor=gate_floor)
    return jnp.mean(jnp.sin(out.hidden_BTD))

  update = recipes.Update(by_step=episodic.by_step_of(config))
  recipe = recipes.Recipe(None, loss, None, {}, update=update)
  at = jax.jit(lambda step: stepping.loss_at(recipe, step)())
  found = {float(at(jnp.int32(step))) for step in (0, 4, 9)}
  assert len(found) == 3, f"three phases have {len(found)} losses"


def test_a_floor_that_no_update_is_given_is_noticed(monkeypatch, tmp_path):
  """Fault 6."""
  config = test_episodic.config_of(tmp_path, optim__steps=10)
  floors_act(config)
  monkeypatch.setattr(stepping, "loss_at", lambda recipe, step: recipe.loss)
  with pytest.raises(AssertionError, match="three phases have 1 losses"):
    floors_act(config)
