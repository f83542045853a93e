"""Recursive models: sizes, variants against a plain loop, where gradient flows, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import tree
from atlas_jax.models import rope, trm, trm_baselines, trm_blocks
from tests import trm_fixture as fixture
from tests.helpers import assert_close, assert_same_bits

PUBLISHED = dict(fixture.TINY, vocab_size=11, seq_len=81, width=512, heads=8, expansion=4.0, n_outer=3,
                 n_inner=6, n_prefix=16, row_width=512)  # fmt: skip
MLP = dict(mixer="mlp", positions="none")
MAZE, ARC = dict(vocab_size=6, seq_len=900, n_inner=4), dict(vocab_size=12, seq_len=900, n_inner=4)
SIZES = {
  "sudoku_mlp": (MLP, 5_028_866),
  "sudoku_attention": ({}, 6_828_034),
  "sudoku_attention_of_4_blocks": (dict(depth=4), 13_643_778),
  "maze_attention": (MAZE, 6_822_914),
  "maze_mlp": (MAZE | MLP, 18_795_522),
  "arc_attention": (ARC, 6_829_058),
  "arc_mlp": (ARC | MLP, 18_801_666),
  "hrm": (dict(variant="hrm", depth=4, n_prefix=1), 27_275_266),
  # With 12 heads of 42 features, and counted with 5 tokens.
  "transformer": (dict(variant="transformer", depth=8, heads=12, vocab_size=5, n_prefix=1), 27_138_050),
}
VARIANTS = [(variant, mixer) for variant in trm_baselines.VARIANTS for mixer in ("attention", "mlp")]


def apply(model, params, *inputs):
  return fixture.step_of(model)(params, *inputs)


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_have_the_published_number_of_weights(name):
  fields, expected = SIZES[name]
  model = trm.TRM(**PUBLISHED | fields)
  rows_BE = jax.ShapeDtypeStruct((1, model.row_width), jnp.float32)
  inputs_BT = jax.ShapeDtypeStruct((1, model.seq_len), jnp.int32)
  latents = jax.eval_shape(lambda: model.zero_latents(1))
  params = jax.eval_shape(model.init, jax.random.key(0), inputs_BT, rows_BE, latents)["params"]
  assert tree.count(params) == expected


def plain(model, params, embedded_BTD, latents):
  """The variant as a loop over calls, with a block written batch first."""
  def call(level, x_BTD):
    for weights in level.values():
      if "token_mlp" in weights:
        mix = {"gate_up_kernel": weights["token_mlp"]["gate_up_kernel"].T,
               "out_kernel": weights["token_mlp"]["out_kernel"].T}  # fmt: skip
        y_BDT = jnp.swapaxes(x_BTD, 1, 2)
        y_BDT = trm_blocks.rms_normalize(y_BDT + trm_blocks.channel_mlp(mix, y_BDT), model.norm_eps)
        x_BTD = jnp.swapaxes(y_BDT, 1, 2)
      else:
        frequencies = rope.inverse_frequencies(model.width // model.heads, model.rope_base)
        cos_sin = rope.cos_sin(jnp.arange(x_BTD.shape[1]), *frequencies, jnp.float32)
        mixed = trm_blocks.attention(weights["attention"], x_BTD, heads=model.heads, cos_sin=cos_sin)
        x_BTD = trm_blocks.rms_normalize(x_BTD + mixed, model.norm_eps)
      x_BTD = trm_blocks.rms_normalize(x_BTD + trm_blocks.channel_mlp(weights["mlp"], x_BTD), model.norm_eps)
    return x_BTD

  if model.variant == "transformer":
    return (call(params["level"], latents[0] + embedded_BTD),)
  if model.variant == "single":
    (z,) = latents
    for _ in range(model.n_outer):
      for _ in range(model.n_inner):
        z = call(params["level"], z + embedded_BTD)
      z = call(params["level"], z)
    return (z,)
  answer_level = params["answer_level" if model.variant == "hrm" else "level"]
  latent_level = params["latent_level" if model.variant == "hrm" else "level"]
  answer, latent = latents
  for _ in range(model.n_outer):
    for _ in range(model.n_inner):
      latent = call(latent_level, latent + answer + embedded_BTD)
    answer = call(answer_level, answer + latent)
  return answer, latent


def embedded(model, params, inputs_BT, rows_BE):
  """Prefix and tokens, scaled."""
  pad = model.n_prefix * model.width - model.row_width
  prefix = jnp.pad(rows_BE, ((0, 0), (0, pad))).reshape(len(rows_BE), model.n_prefix, model.width)
  return model.width**0.5 * jnp.concatenate([prefix, params["embed"][inputs_BT]], axis=1)


@pytest.mark.parametrize("variant, mixer", VARIANTS)
def test_every_variant_is_its_plain_loop(variant, mixer):
  model, params, inputs_BT, rows_BE, latents = fixture.tiny(variant=variant, mixer=mixer)
  out = apply(model, params, inputs_BT, rows_BE, latents)
  expected = plain(model, params, embedded(model, params, inputs_BT, rows_BE), latents)
  assert_close(out.latents, expected)
  assert_close(out.logits_BTV, expected[0][:, model.n_prefix:] @ params["head"])
  halting = expected[0][:, 0] @ params["halt_kernel"] + params["halt_bias"][None]
  assert_close((out.halt_logit_B, out.continue_logit_B), (halting[:, 0], halting[:, 1]))


@pytest.mark.parametrize("variant, mixer", [("trm", "attention"), ("trm", "mlp"), ("single", "mlp")])
def test_gradient_is_that_of_the_last_cycle_alone(variant, mixer):
  model, params, inputs_BT, rows_BE, latents = fixture.tiny(variant=variant, mixer=mixer, n_outer=3)
  before = apply(model.clone(n_outer=2), params, inputs_BT, rows_BE, latents).latents

  def loss(model, latents, params, rows_BE):
    out = model.apply({"params": params}, inputs_BT, rows_BE, latents)
    return jnp.sum(jnp.square(out.logits_BTV)) + jnp.sum(out.halt_logit_B)

  grad = jax.jit(jax.grad(loss, argnums=(2, 3)), static_argnums=0)
  whole, last = grad(model, latents, params, rows_BE), grad(model.clone(n_outer=1), before, params, rows_BE)
  scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(last))
  assert_close(*(jax.tree.map(lambda x: x / scale, tree) for tree in (whole, last)))


def test_hrm_s_gradient_passes_the_last_call_of_each_stack_alone():
  fields = dict(variant="hrm", n_outer=2, n_inner=3)
  model, params, inputs_BT, rows_BE, latents = fixture.tiny(**fields)
  embedded_BTD = embedded(model, params, inputs_BT, rows_BE)
  one = model.clone(n_outer=1, n_inner=1)
  answer, latent = plain(model.clone(n_outer=1), params, embedded_BTD, latents)
  for _ in range(2):
    _, latent = plain(one, params, embedded_BTD, (answer, latent))

  def loss(model, latents, params):
    out = model.apply({"params": params}, inputs_BT, rows_BE, latents)
    return jnp.sum(jnp.square(out.logits_BTV))

  grad = jax.jit(jax.grad(loss, argnums=2), static_argnums=0)
  whole, last = grad(model, latents, params), grad(one, (answer, latent), params)
  scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(last))
  assert_close(*(jax.tree.map(lambda x: x / scale, tree) for tree in (whole, last)))


def test_latents_pass_no_gradient():
  model, params, inputs_BT, rows_BE, latents = fixture.tiny()

  def loss(latents):
    out = model.apply({"params": params}, inputs_BT, rows_BE, latents)
    return jnp.sum(jnp.square(out.logits_BTV)) + sum(jnp.sum(z) for z in out.latents)

  assert_same_bits(jax.jit(jax.grad(loss))(latents), jax.tree.map(jnp.zeros_like, latents))


@pytest.mark.parametrize("mixer", ["attention", "mlp"])
def test_a_row_does_not_depend_on_the_others(mixer):
  model, params, inputs_BT, rows_BE, latents = fixture.tiny(mixer=mixer, B=3)
  whole = apply(model, params, inputs_BT, rows_BE, latents)
  some = apply(model, params, *jax.tree.map(lambda x: x[1:], (inputs_BT, rows_BE, latents)))
  assert_close(some, jax.tree.map(lambda x: x[1:], whole))


@pytest.mark.parametrize("mixer", ["attention", "mlp"])
def test_bfloat16_is_close_and_keeps_its_dtype(mixer):
  model, params, inputs_BT, rows_BE, latents = fixture.tiny(mixer=mixer, n_outer=1, n_inner=1)
  full = apply(model, params, inputs_BT, rows_BE, latents)
  half = model.clone(dtype="bfloat16")
  out = apply(half, params, inputs_BT, rows_BE, tuple(z.astype(jnp.bfloat16) for z in latents))
  assert {z.dtype for z in out.latents} == {jnp.dtype("bfloat16")}
  assert out.halt_logit_B.dtype == jnp.float32
  assert_close(out.latents, full.latents, tolerance=0.1)  # Four rounded blocks in a row.


def test_learned_positions_are_added_before_the_scale():
  model, params, inputs_BT, rows_BE, latents = fixture.tiny(variant="transformer", positions="learned")
  input_BTD = embedded(model, params, inputs_BT, rows_BE) + model.width**0.5 * params["positions"][None]
  level = lambda x_BTD: trm_blocks.block(params["level"]["block_1"], trm_blocks.block(
      params["level"]["block_0"], x_BTD, heads=3, eps=model.norm_eps, cos_sin=None),
      heads=3, eps=model.norm_eps, cos_sin=None)  # fmt: skip
  out = apply(model, params, inputs_BT, rows_BE, latents)
  assert_close(out.latents[0], level(latents[0] + trm.LEARNED_SCALE * input_BTD))


def test_without_a_prefix_the_first_token_decides_on_halting():
  model, params, inputs_BT, rows_BE, latents = fixture.tiny(n_prefix=0, row_width=0)
  out = apply(model, params, inputs_BT, rows_BE, latents)
  assert out.logits_BTV.shape == (2, 6, 7) and latents[0].shape == (2, 6, 12)
  expected_B = out.latents[0][:, 0] @ params["halt_kernel"][:, 0] + params["halt_bias"][0]
  assert_close(out.halt_logit_B, expected_B)


def test_reset_vectors_are_drawn_in_the_dtype_of_the_latents():
  model = trm.TRM(**fixture.TINY | dict(width=4096, heads=4, dtype="bfloat16", row_width=0))
  answer_D, latent_D = model.reset(jax.random.key(3))
  assert answer_D.shape == latent_D.shape == (4096,) and answer_D.dtype == jnp.bfloat16
  assert not np.array_equal(answer_D, latent_D)
  assert abs(float(answer_D.astype(jnp.float32).std()) - 1) < 0.05
  assert len(model.clone(variant="single").reset(jax.random.key(3))) == 1


def test_halting_starts_unlikely_and_the_same_for_all():
  model = trm.TRM(**fixture.TINY)
  inputs_BT, rows_BE = jnp.zeros((2, 6), jnp.int32), jnp.ones((2, 15), jnp.float32)
  params = jax.jit(model.init)(jax.random.key(0), inputs_BT, rows_BE, model.zero_latents(2))["params"]
  out = apply(model, params, inputs_BT, rows_BE, model.zero_latents(2))
  np.testing.assert_array_equal(out.halt_logit_B, [-5, -5])
  np.testing.assert_array_equal(out.continue_logit_B, [-5, -5])


@pytest.mark.parametrize("fields, message", [
  (dict(variant="nix"), "config.trm.variant='nix' is not known"),
  (dict(mixer="nix"), "config.trm.mixer='nix' is not known; choose one of attention, mlp"),
  (dict(positions="nix"), "config.trm.positions='nix'"),
  (dict(row_width=25), "config.trm.row_width=25 does not fit config.trm.n_prefix=2 .* at least 3"),
  (dict(heads=4), "gives heads of 3 features"),
  (dict(heads=24, positions="none"), "config.trm.heads=24 must be at most"),
  (dict(n_inner=0), "config.trm.n_inner=0 must be at least 1"),
])  # fmt: skip
def test_fields_that_do_not_fit_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    trm.TRM(**fixture.TINY | fields)
