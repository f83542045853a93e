"""Solving puzzles in slots: an answer depends on its example alone, and easy examples cost less."""

import functools
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.losses import recursion
from atlas_jax.parallel import mesh as meshes
from atlas_jax.puzzles import solver
from atlas_jax.state import Trained
from tests import trm_fixture as fixture
from tests.helpers import quick_compilation

SLOTS, N_EXAMPLES, N_SUPERVISION = 4, 11, 4


@functools.cache
def tiny():
  """The tiny model, parameters whose halting logits differ from example to example, table and resets."""
  # Shallow, as untrained recursion enlarges differences of rounding step by step.
  model, params, *_ = fixture.tiny(B=SLOTS, n_outer=1, n_inner=1)
  params = dict(params)
  draw = np.random.default_rng(3)
  params["halt_kernel"] = jnp.asarray(draw.normal(size=params["halt_kernel"].shape), jnp.float32)
  params["halt_bias"] = jnp.asarray([-0.5, 0.0], jnp.float32)
  table = jnp.asarray(draw.normal(size=(5, model.row_width)), jnp.float32)
  return model, params, table, model.reset(jax.random.key(0))


@functools.cache
def examples():
  model = tiny()[0]
  draw = np.random.default_rng(5)
  inputs = draw.integers(1, model.vocab_size, (N_EXAMPLES, model.seq_len)).astype(np.int32)
  labels = draw.integers(1, model.vocab_size, (N_EXAMPLES, model.seq_len)).astype(np.int32)
  labels[:, 0] = -100
  labels[3] = -100
  return {"inputs_BT": inputs, "labels_BT": labels, "ids_B": draw.integers(0, 5, N_EXAMPLES).astype(np.int32)}


def batches(order=None, rows=3):
  """The examples in some order, several to a batch, with padding at the end of each."""
  order = list(range(N_EXAMPLES)) if order is None else order
  for start in range(0, len(order), rows):
    batch = {name: values[order[start : start + rows]] for name, values in examples().items()}
    pad = np.zeros_like(batch["inputs_BT"][:1])
    yield {
      "inputs_BT": np.concatenate([batch["inputs_BT"], pad]),
      "labels_BT": np.concatenate([batch["labels_BT"], pad - 100]),
      "ids_B": np.append(batch["ids_B"], 0),
    }


@functools.cache
def solve_fn(n_devices=1, **options):
  model = tiny()[0]
  mesh = meshes.make(devices=jax.devices()[:n_devices])
  orders = {}
  filled = solver.SolverOptions(**{"batch_rows": SLOTS, "n_supervision": N_SUPERVISION, **options})
  solve = solver.make(model, lambda: batches(**orders), mesh, filled)
  return solve, orders


def solved(order=None, n_devices=1, **options):
  _, params, table, reset = tiny()
  solve, orders = solve_fn(n_devices, **options)
  orders["order"] = order
  with quick_compilation():
    return list(solve(Trained(params, {"reset": reset}, {"puzzles": table})))


def alone(example, n_steps):
  """Every step of an example that fills all slots, by calling the model itself."""
  model, params, table, reset = tiny()
  repeat = lambda x: jnp.repeat(jnp.asarray(x)[None], SLOTS, axis=0)
  given = {name: repeat(values[example]) for name, values in examples().items()}
  latents = tuple(jnp.broadcast_to(start, z.shape) for start, z in zip(reset, model.zero_latents(SLOTS)))
  outs = []
  for _ in range(n_steps):
    out = fixture.step_of(model)(params, given["inputs_BT"], table[given["ids_B"]], latents)
    latents = out.latents
    outs.append(out)
  return outs


def assert_same_answers(results, others):
  for result, other in zip(results, others, strict=True):
    np.testing.assert_array_equal(result.prediction_T, other.prediction_T)
    assert result.metrics["steps"] == other.metrics["steps"]
    # Rounding of another batch or device, passed on through some steps of recursion.
    np.testing.assert_allclose(result.halt_logit, other.halt_logit, rtol=1e-4, atol=1e-4)


def test_in_mode_all_every_example_has_all_its_steps_and_the_last_answer_counts():
  results = solved()
  assert [result.example for result in results] == list(range(N_EXAMPLES))
  for example, result in enumerate(results):
    out = alone(example, N_SUPERVISION)[-1]
    np.testing.assert_array_equal(result.prediction_T, np.argmax(out.logits_BTV[0], axis=-1))
    np.testing.assert_allclose(result.halt_logit, out.halt_logit_B[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result.input_T, examples()["inputs_BT"][example])
    assert result.metrics["steps"] == N_SUPERVISION
  assert results[-1].calls == 3 * N_SUPERVISION  # Eleven examples in four slots.


def test_a_halted_example_gives_the_answer_of_its_first_step_above_the_threshold():
  results = solved(mode="halting")
  steps = set()
  for example, result in enumerate(results):
    outs = alone(example, N_SUPERVISION)
    halts = [out.halt_logit_B[0] > 0 for out in outs[:-1]] + [True]
    n_steps = halts.index(True) + 1
    steps.add(n_steps)
    assert result.metrics["steps"] == n_steps
    np.testing.assert_array_equal(result.prediction_T, np.argmax(outs[n_steps - 1].logits_BTV[0], axis=-1))
  assert len(steps) > 1, "the example must have easy and hard puzzles, or it shows nothing"
  assert results[-1].calls < 3 * N_SUPERVISION


def test_answers_do_not_depend_on_the_order_of_examples_and_so_on_slots():
  order = list(np.random.default_rng(0).permutation(N_EXAMPLES))
  there, back = solved(mode="halting"), solved(order, mode="halting")
  assert_same_answers([there[i] for i in order], back)


def test_eight_devices_give_the_answers_of_one():
  options = dict(mode="halting", batch_rows=8)
  assert_same_answers(solved(n_devices=1, **options), solved(n_devices=8, **options))


def test_metrics_are_those_of_the_loss():
  results = solved()
  labels = jnp.asarray(examples()["labels_BT"])
  outs = [alone(example, N_SUPERVISION)[-1] for example in range(N_EXAMPLES)]
  logits, halt_logits = (jnp.stack([out[i][0] for out in outs]) for i in range(2))
  all_done = dict(halted_B=jnp.ones(N_EXAMPLES, bool), steps_B=jnp.full(N_EXAMPLES, N_SUPERVISION))
  _, expected = recursion.recursion_loss(logits, halt_logits, labels, **all_done, skip_unlabelled=True)
  labelled = [result for result in results if result.labelled]
  assert [result.example for result in results if not result.labelled] == [3]
  assert len(labelled) == expected["count"]
  for name in solver.MEANS:
    total = sum(result.metrics[name] for result in labelled)
    np.testing.assert_allclose(total, expected[name], rtol=1e-4, err_msg=name)


def test_answers_without_numbers_are_said_aloud_and_count_with_a_probability_of_zero(caplog):
  _, params, table, reset = tiny()
  solve, orders = solve_fn()
  orders["order"] = None
  broken = {**params, "halt_bias": jnp.full((2,), jnp.nan)}
  with quick_compilation(), caplog.at_level("WARNING", logger="absl"):
    results = list(solve(Trained(broken, {"reset": reset}, {"puzzles": table})))
  assert {result.q for result in results} == {0.0}
  assert f"{N_EXAMPLES} of {N_EXAMPLES} answers have a halting logit that is not a number" in caplog.text


def test_max_examples_reads_no_further():
  assert [result.example for result in solved(max_examples=5)] == [0, 1, 2, 3, 4]


def test_the_surest_of_several_noisy_trajectories_counts():
  one = solved(n_trajectories=1, noise_std=0.5, max_examples=6)
  three = solved(n_trajectories=3, noise_std=0.5, max_examples=6)
  assert all(more.halt_logit >= less.halt_logit - 1e-4 for less, more in zip(one, three, strict=True))
  assert any(more.halt_logit > less.halt_logit + 1e-3 for less, more in zip(one, three, strict=True))
  plain = solved(max_examples=6)
  assert any(abs(a.halt_logit - b.halt_logit) > 1e-3 for a, b in zip(plain, one, strict=True))


def test_noise_belongs_to_the_example_not_to_the_slot():
  options = dict(mode="halting", n_trajectories=3, noise_std=0.5)
  assert_same_answers(solved(**options), solved(batch_rows=8, **options))


def test_the_model_is_compiled_once():
  model, params, table, reset = tiny()
  traces = []

  class Counted:
    row_width, seq_len, zero_latents = model.row_width, model.seq_len, model.zero_latents

    @staticmethod
    def apply(*args):
      traces.append(1)
      return model.apply(*args)

  options = solver.SolverOptions(SLOTS, N_SUPERVISION, mode="halting")
  solve = solver.make(Counted, batches, meshes.make(devices=jax.devices()[:1]), options)
  for _ in range(2):
    assert len(list(solve(Trained(params, {"reset": reset}, {"puzzles": table})))) == N_EXAMPLES
  assert len(traces) == 1


@pytest.mark.parametrize(
  "options, said",
  [
    (dict(mode="fast"), "config.puzzle_eval.mode='fast' is not known; choose one of all, halting"),
    (dict(n_trajectories=2), "config.puzzle_eval.n_trajectories=2 with noise_std=0"),
    (dict(n_trajectories=0), "config.puzzle_eval.n_trajectories=0 must be at least 1"),
    (dict(noise_std=-1.0), "config.puzzle_eval.noise_std=-1.0"),
    (dict(n_supervision=0), "config.supervision.n_supervision=0 must be at least 1"),
  ],
)
def test_options_that_do_not_fit_are_refused(options, said):
  with pytest.raises(ValueError, match=said):
    solve_fn(**options)


def test_a_missing_table_is_named():
  solve, _ = solve_fn()
  with pytest.raises(ValueError, match="needs a table of puzzles"):
    solve(Trained(tiny()[1], {"reset": tiny()[3]}))


WORKER = """
import sys

import jax

from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes

hosts.start(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
from tests.puzzles import test_solver

mesh = meshes.make(fsdp=2)
model, params, table, reset = test_solver.tiny()
params, table = jax.device_put((params, table), meshes.replicated(mesh))
options = test_solver.solver.SolverOptions(test_solver.SLOTS, test_solver.N_SUPERVISION, mode="halting")
solve = test_solver.solver.make(model, test_solver.batches, mesh, options)
for result in solve(test_solver.Trained(params, {"reset": reset}, {"puzzles": table})):
  print("RESULT", result.example, result.metrics["steps"], result.calls, *result.prediction_T)
"""


def test_two_processes_see_the_same_answers_as_one():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
  workers = [
    subprocess.Popen(
      [sys.executable, "-c", WORKER, str(port), str(rank)], env=env, cwd=pathlib.Path(__file__).parents[2],
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for rank in (0, 1)
  ]  # fmt: skip
  try:
    texts = [worker.communicate(timeout=120)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  expected = [
    [f"{value}" for value in (one.example, one.metrics["steps"], one.calls, *one.prediction_T)]
    for one in solved(mode="halting")
  ]
  for text in texts:
    lines = [line.split()[1:] for line in text.splitlines() if line.startswith("RESULT")]
    assert lines == expected, text
