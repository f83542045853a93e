"""The study of recall: its sequences, its control without writes, and a memory that learns to recall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.data import source as sources
from atlas_jax.memory import rules, scan
from atlas_jax.memory.types import Gates, Token
from experiments.mqar import run
from tests.helpers import full_compilation

FIELDS = {"source": "experiments.mqar.task", "name": "keys:7", "segment_len": 20, "batch_rows": 6, "seed": 3}


def test_every_answer_is_the_value_paired_with_the_key_asked_for():
  batch = sources.load(**FIELDS).next(None)
  for tokens_T, targets_T in zip(batch["tokens_BT"], batch["targets_BT"]):
    value_of = dict(zip(tokens_T[:10:2].tolist(), tokens_T[1:10:2].tolist()))
    assert len(value_of) == 5
    assert sorted(tokens_T[10:15]) == sorted(tokens_T[15:]) == sorted(value_of)
    assert [value_of[key] for key in tokens_T[10:].tolist()] == targets_T[10:].tolist()
    assert max(value_of) < 7 <= min(value_of.values())
  assert batch["weight_BT"].sum(axis=1).tolist() == [10.0] * 6
  assert not batch["weight_BT"][:, :10].any()


def test_sequences_follow_from_seed_split_and_step_alone():
  first, second = sources.load(**FIELDS), sources.load(**FIELDS)
  first.next(None)
  second.restore(first.state())
  here, there = first.next(None), second.next(None)
  assert all(np.array_equal(here[name], there[name]) for name in here)
  for change in ({"seed": 4}, {"split": "held_out"}):
    other = sources.load(**{**FIELDS, **change})
    assert not np.array_equal(other.next(None)["tokens_BT"], sources.load(**FIELDS).next(None)["tokens_BT"])
    with pytest.raises(ValueError, match="belongs to other data or settings: (seed|split)="):
      other.restore(first.state())


def test_processes_share_the_rows_of_a_batch():
  whole = sources.load(**FIELDS).next(None)
  parts = [sources.load(**FIELDS, process_index=n, process_count=2).next(None) for n in range(2)]
  assert all(np.array_equal(np.concatenate([part[name] for part in parts]), whole[name]) for name in whole)


def test_a_held_out_split_ends():
  source = sources.load(**FIELDS, split="held_out", max_tokens=20 * 6 * 2)
  assert [bool(source.next(None)) for _ in range(2)] == [True, True]
  with pytest.raises(StopIteration):
    source.next(None)


@pytest.mark.parametrize("rule", ["titans", "omega", "atlas", "delta"])
def test_a_memory_without_writes_forgets_and_keeps_nothing(rule):
  sizes = {"key_dim": 4, "value_dim": 4, "chunk_size": 3}
  shut = rules.load("experiments.mqar.read_only", rule=rule, options={"fade_to": "zero"}, **sizes)
  learned = shut.init(jax.random.key(0))
  draw = np.random.default_rng(0)
  tokens = Token(*(jnp.asarray(draw.normal(size=(6, 4)), jnp.float32) for _ in range(3)))
  full_T = jnp.full((6,), 0.5, jnp.float32)
  more = {spec.name: jnp.full((6, spec.size) if spec.size else (6,), 0.5, jnp.float32) for spec in shut.gates}
  gates = Gates(jnp.log(full_T), jnp.log(full_T), full_T, more or ())
  memory, _ = scan.scan_packed(shut, shut.start(learned), learned, tokens, gates, jnp.ones((6,), bool),
                               jnp.zeros((2,), bool), chunk_size=3, remat=False)
  jax.tree.map(lambda now, start: np.testing.assert_allclose(now, start / 64, rtol=1e-5), memory.fast,
               learned.fast)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_model_learns_to_recall_with_writes_and_only_with_them(tmp_path):
  short = "rule=delta,pairs=4,n_keys=8"
  with full_compilation():
    found = run.trained(f"{short},steps=220", tmp_path / "on")
    assert found["accuracy"] > run.GOAL
    found = run.trained(f"{short},writes_off,steps=60", tmp_path / "off")
  assert found["accuracy"] < 0.3
