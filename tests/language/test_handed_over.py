"""What a run is handed over with is read back to the bit; it is refused if damaged or of another model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import tree
from atlas_jax.checkpoint import Checkpoints
from atlas_jax.files.damage import Damaged
from atlas_jax.language import handed_over
from atlas_jax.models import placement
from atlas_jax.parallel import mesh as meshes
from configs import memory_40m

PARAMS = {"blocks": {"kernel": jnp.arange(48.0).reshape(8, 6), "bias": jnp.ones((), jnp.bfloat16)},
          "embed": jnp.arange(16.0)}


def config():
  return configs.resolve(memory_40m.get_config("smoke"))


@pytest.fixture
def run(tmp_path):
  """The workdir of a run at step 7, with parameters, their moving average, a table and an optimizer."""
  workdir = tmp_path / "run"
  saver = Checkpoints(workdir)
  state = {"params": PARAMS, "ema": jax.tree.map(lambda leaf: leaf * 2, PARAMS),
           "tables": {"puzzles": jnp.arange(32.0).reshape(8, 4)}, "opt_state": {"mu": PARAMS},
           "rng": jax.random.key(1)}
  saver.save(7, state, {"step": 7})
  saver.close()
  return workdir, state


def abstract(shapes, **mesh):
  return placement.abstract(meshes.make(**mesh), shapes)


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 8, "data": 1}], ids=["whole", "split"])
@pytest.mark.parametrize("fields", [("params", "tables"), ("ema",)])
def test_every_field_is_read_as_a_checkpoint_would_give_it(fields, mesh, run, tmp_path):
  workdir, state = run
  assert handed_over.write_weights(workdir, tmp_path / "made", config(), fields) == 7
  assert handed_over.is_here(tmp_path / "made") and not handed_over.is_here(workdir)
  opened = handed_over.open_run(tmp_path / "made")
  assert opened.latest_step() == 7
  for field in fields:
    found, meta = opened.restore_params(abstract(state[field], **mesh), field=field)
    wanted, _ = handed_over.open_run(workdir).restore_params(abstract(state[field], **mesh), field=field)
    assert meta == {"step": 7} and jax.tree.structure(found) == jax.tree.structure(wanted)
    for (name, one), (_, other) in zip(tree.named_leaves(found), tree.named_leaves(wanted)):
      assert one.dtype == other.dtype and one.sharding == other.sharding, name
      np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32), name)


def test_the_same_state_gives_the_same_bytes_and_no_optimizer(run, tmp_path):
  for name in ("one", "two"):
    handed_over.write_weights(run[0], tmp_path / name, config(), ("params", "tables"))
  one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
  assert one == two and b"opt_state" not in one and b"rng" not in one


def test_what_was_handed_over_is_handed_on(run, tmp_path):
  handed_over.write_weights(run[0], tmp_path / "one", config(), ("params",))
  assert handed_over.write_weights(tmp_path / "one", tmp_path / "two", config(), ("params",)) == 7
  assert handed_over.open_run(tmp_path / "two").restore_params(abstract(PARAMS))[1] == {"step": 7}


def test_a_damaged_file_is_refused(run, tmp_path):
  handed_over.write_weights(run[0], tmp_path / "made", config(), ("params",))
  file = tmp_path / "made" / "model.safetensors"
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.write_bytes(data)
  with pytest.raises(Damaged, match="model.safetensors.*checksum differs.*fetch it again"):
    handed_over.open_run(tmp_path / "made").restore_params(abstract(PARAMS))
  record = tmp_path / "made" / "weights.json"
  record.write_text(json.dumps({**json.loads(record.read_text()), "step": 8}))
  with pytest.raises(Damaged, match="weights.json"):
    handed_over.open_run(tmp_path / "made").latest_step()


@pytest.mark.parametrize(
  ("other", "says"),
  [({**PARAMS, "more": jnp.ones(3)}, "has none of the name 'params/more'"),
   ({"embed": PARAMS["embed"]}, "has one of the name 'params/blocks/"),
   ({**PARAMS, "embed": jnp.ones(17)}, r"params/embed is float32 of shape \(16,\).*needs float32 of shape "
                                       r"\(17,\)")],
)  # fmt: skip
def test_another_model_is_named(other, says, run, tmp_path):
  handed_over.write_weights(run[0], tmp_path / "made", config(), ("params",))
  with pytest.raises(ValueError, match=says):
    handed_over.open_run(tmp_path / "made").restore_params(abstract(other))
