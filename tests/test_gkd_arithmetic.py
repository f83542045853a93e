"""The study of distillation: what its students start from, and that its settings build."""

import jax
import jax.numpy as jnp
import pytest

from atlas_jax import config as configs
from atlas_jax.models.decoder import Decoder
from experiments.gkd_arithmetic import config as settings
from experiments.gkd_arithmetic import run
from tests.helpers import assert_close


def test_neurons_that_do_nothing_go_first():
  fields = dict(vocab_size=11, width=8, depth=2, heads=2, kv_heads=1, head_dim=4)
  model, tokens_BT = Decoder(ff_width=6, **fields), jnp.arange(10)[None] % 11
  params = model.init(jax.random.key(0), tokens_BT)["params"]
  mlp = params["blocks"]["mlp"]
  idle_F = jnp.array([0, 1, 0, 1, 1, 0])
  mlp["down"]["kernel"] = mlp["down"]["kernel"] * idle_F[None, :, None]
  whole = model.apply({"params": params}, tokens_BT).hidden_BTD
  left = Decoder(ff_width=3, **fields).apply({"params": run.pruned(params, 3)}, tokens_BT).hidden_BTD
  assert_close(left, whole, tolerance=1e-6)


@pytest.mark.parametrize("name", run.STUDENTS)
def test_a_student_has_a_tenth_of_the_teacher_s_steps(name):
  fields = {name: value for name, value in run.STUDENTS[name].items() if name != "pruned"}
  config = configs.resolve(settings.student(**fields, teacher_workdir="teacher", start=None))
  assert config.optim.steps * 10 == configs.resolve(settings.teacher()).optim.steps
