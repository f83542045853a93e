"""A plan is of the update that training compiles, its bytes are the compiler's, and what fits is proven."""
import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import main, modes, tree
from atlas_jax.command import read_config
from atlas_jax.parallel import mesh as meshes
from atlas_jax.plan import advice, compiled, hlo, planning, targets, update

SPEC = "configs/sft.py:smoke"
H100 = targets.load("h100")
HERE = dataclasses.replace(H100, name="here", kind="cpu", gpu_target_config=None)  # No measurement in tests.


@pytest.fixture(scope="module")
def planned():
  return update.prepare(configs.resolve(read_config(SPEC)))


@pytest.fixture(scope="module")
def mesh():
  return meshes.make(1, 1, 1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def found(planned, mesh):
  return compiled.compile_for(planned, HERE, mesh)


def test_the_memory_is_the_compilers(planned, mesh, found):
  on_mesh = update.on_mesh(planned, mesh)
  leaves = jax.tree.leaves((on_mesh.state, planned.batch))
  sizes = [np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves
           if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
  assert 0.95 * sum(sizes) < found.memory.arguments < 1.1 * sum(sizes)
  assert found.memory.peak == (found.memory.arguments + found.memory.outputs + found.memory.temporaries
                               + found.memory.code)
  # Donated: the new state lies where the old one was.
  assert found.memory.outputs < 0.1 * found.memory.arguments


def test_a_plan_is_json_and_a_table(planned, mesh, found, monkeypatch):
  monkeypatch.setattr(update, "prepare", lambda config: planned)
  monkeypatch.setattr(targets, "load", lambda name: HERE)
  monkeypatch.setattr(compiled, "compile_for", lambda *args: found)
  plan = json.loads(json.dumps(planning.plan(planned.config, "here", 1, command_config=SPEC)))
  assert plan["fits"] and plan["advice"] is None and plan["is"] == "compiled, not run"
  assert plan["memory"]["spare"] == HERE.limit_bytes - plan["memory"]["peak"] > 0
  assert plan["parameters"] == tree.count(update.on_mesh(planned, mesh).state.params)
  assert sum(plan["estimate"]["terms_s"].values()) >= plan["estimate"]["step_s"] > 0
  assert plan["estimate"]["tokens_per_s"] == pytest.approx(planned.batch["tokens_BT"].size
                                                           / plan["estimate"]["step_s"])
  assert len(plan["estimate"]["largest"]) == 3 and plan["program"]["kernels"] > 10
  parts = plan["flops"]["by_part"]
  assert sum(sum(passes.values()) for passes in parts.values()) == pytest.approx(plan["flops"]["update"])
  assert {"forward", "backward"} <= set().union(*parts.values())
  text = planning.table(plan)
  assert f"{SPEC} on 1 x here: fits" in text and "tokens/s" in text


def test_the_change_that_is_advised_fits_when_it_is_compiled(planned, mesh, found):
  # Just too small: what recomputation saves is enough, and the update stays the same.
  limit = found.memory.peak - 1
  small = dataclasses.replace(HERE, memory_bytes=limit, reserved_bytes=0)
  advised = advice.smallest_change(planned, small, mesh, found)
  assert advised["fields"] and advised["same_update"] and advised["peak"] <= limit
  assert all(f"--config.{name}=" in advised["lines"][0] for name in advised["fields"])


def test_a_machine_that_cannot_hold_the_state_is_said_to_be_too_small(planned, mesh, found):
  tiny = dataclasses.replace(HERE, memory_bytes=found.memory.arguments // 2, reserved_bytes=0)
  advised = advice.smallest_change(planned, tiny, mesh, found)
  assert advised["fields"] is None and advised["compiled"] == 0
  assert "parameters, optimizer and batch alone take" in advised["lines"][0]


def test_changes_begin_with_those_that_leave_the_update_as_it_is(planned):
  config = configs.unfrozen(planned.config)
  config.data.batch_rows, config.train.accumulate_steps = 8, 1
  flat = meshes.make(2, 1, 1, devices=jax.devices()[:2])
  found = list(advice.changes(configs.resolve(config), flat))
  assert [one.same_update for one in found] == sorted((one.same_update for one in found), reverse=True)
  assert found[0].fields == {"decoder.remat": "block"}
  assert found[1].fields == {"decoder.remat": "block", "mesh.fsdp": 2, "mesh.data": -1}
  assert found[2].fields["train.accumulate_steps"] == 2
  last = [one for one in found if not one.same_update]
  assert [one.fields["data.batch_rows"] for one in last] == [4, 2]


@pytest.mark.parametrize(("words", "said"), [
    (["--target=h1000"], "--target=h1000 is unknown; it must be one of"),
    ([], "--target is missing"),
    (["--target=h100", "--num_processes=2"], "--num_processes: --mode=plan computes on no device"),
    (["--target=h100", "--workdir=runs/a"], "--mode=plan neither makes nor uses a run"),
    (["--target=v5e", "--devices=3"], "a slice has one of 1, 4, 8"),
    (["--target=cpu", "--devices=999"], "set JAX_NUM_CPU_DEVICES=999"),
])
def test_wrong_words_are_refused(words, said, capsys, monkeypatch):
  monkeypatch.setattr(targets, "load", lambda name, load=targets.load: HERE if name == "cpu" else load(name))
  assert main.entry(["main", "--mode=plan", f"--config={SPEC}", *words]) == 1
  assert said in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "sizes", "slices", "axes", "crosses"), [
    ("gpu", (1, 8, 1), 1, ("fsdp",), False), ("gpu", (2, 8, 1), 1, ("fsdp",), False),
    ("gpu", (2, 8, 1), 1, ("data",), True), ("gpu", (1, 16, 1), 1, ("fsdp",), True),
    ("tpu", (2, 16, 1), 1, ("data", "fsdp"), False), ("tpu", (2, 16, 1), 2, ("fsdp",), False),
    ("tpu", (2, 16, 1), 2, ("data",), True)])
def test_an_exchange_over_the_slow_network_is_known_by_its_axes(kind, sizes, slices, axes, crosses):
  shape = dict(zip(meshes.AXES, sizes))
  there = types.SimpleNamespace(shape=shape, size=int(np.prod(sizes)))
  one = hlo.Transfer("all-reduce", axes, "", 1, 1)
  assert planning.crosses_hosts(one, there, dataclasses.replace(H100, kind=kind), slices) is crosses


def test_flags_of_the_mode_are_refused_elsewhere(capsys):
  assert main.entry(["main", f"--config={SPEC}", "--workdir=runs/a", "--target=h100"]) == 1
  assert "--target is for --mode=plan" in capsys.readouterr().err


def test_a_compiler_that_is_missing_is_said_in_one_line(monkeypatch):
  from jax.experimental import topologies

  def missing(**named):
    raise RuntimeError("no such platform")

  monkeypatch.setattr(topologies, "get_topology_desc", missing)
  monkeypatch.setattr(compiled, "_has_compiler", lambda kind: False)
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'atlas_jax\[plan\]'"):
    compiled.devices(H100, 1)


def test_the_exit_code_says_whether_it_fits(monkeypatch, capsys):
  asked = main.parse(["main", "--mode=plan", f"--config={SPEC}", "--target=h100"])[0]
  monkeypatch.setattr(planning, "table", lambda plan: "table")
  for fits in (True, False):
    monkeypatch.setattr(planning, "plan", lambda *args, fits=fits, **named: {"fits": fits})
    assert modes.run_plan(asked, {}) == (0 if fits else 1)
    assert json.loads(capsys.readouterr().out) == {"fits": fits}


@pytest.mark.skipif(not compiled._has_compiler("gpu"), reason="needs the extra plan")
@pytest.mark.plan
def test_a_gpu_that_is_not_there_is_compiled_for(planned):
  plan = compiled.compile_for(planned, H100, meshes.make(1, 1, 1, devices=compiled.devices(H100, 1)))
  assert plan.memory.peak > plan.memory.arguments > 0 and plan.program.kernels > 50


@pytest.mark.skipif(not compiled._has_compiler("tpu"), reason="needs the extra plan")
@pytest.mark.plan
def test_a_slice_of_tpus_that_is_not_there_is_compiled_for(planned):
  target = targets.load("v5e")
  mesh = meshes.make(1, 4, 1, devices=compiled.devices(target, 4))
  found = compiled.compile_for(planned, target, mesh)
  assert {one.kind for one in found.program.collectives} & {"all-gather", "all-reduce"}
