"""Distillation losses against TRL 1.16 and the published formula in float64, whole and by blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.losses.distill import distill_loss, soft_target_loss
from atlas_jax.optim import accumulate
from atlas_jax.recipes import LossOut
from tests import post_training_fixture as fixture
from tests.helpers import assert_close

TRL, ATLAS = "post_training/gkd_jsd", "arc_atlas/gkd_jsd"
BETAS, TEMPERATURES = (0, 0.1, 0.5, 0.9, 1), (1, 0.7, 2)


@functools.cache
def compiled(beta, temperature=1.0):
  """Loss of given logits, its weight and tokens, and the student's gradient; blocks of 4 tokens."""

  def loss(student_BTV, teacher_BTV, mask_BT):
    head_DV = jnp.eye(student_BTV.shape[-1], dtype=student_BTV.dtype)
    mean, weight, nats_BT = distill_loss(student_BTV, head_DV, teacher_BTV, head_DV, mask_BT, beta=beta,
                                         temperature=temperature, block_tokens=4)  # fmt: skip
    return mean, (weight, nats_BT)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("beta", BETAS)
def test_the_divergence_and_its_gradient_are_those_of_the_reference(x64, beta, temperature):
  given = fixture.arrays(TRL)
  student_BTV, teacher_BTV = jnp.asarray(given["student_logits"]), jnp.asarray(given["teacher_logits"])
  kept_BT = given["labels"] >= 0
  for name, mask_BT in (("masked", kept_BT), ("plain", np.ones_like(kept_BT))):
    (loss, (weight, _)), grad = compiled(beta, temperature)(student_BTV, teacher_BTV, jnp.asarray(mask_BT))
    assert float(weight) == mask_BT.sum()
    # Without a mask the reference divides by rows and not by tokens.
    scale = 1.0 if name == "masked" else weight / mask_BT.shape[0]
    part = lambda what: given[f"beta{beta}_temp{temperature}_{name}/{what}"]  # noqa: B023  Used at once.
    assert_close((loss * scale, grad * scale), (part("loss"), part("grad_student_logits")), tolerance=1e-12)


@pytest.mark.parametrize("name", "abc")
@pytest.mark.parametrize("beta", ("0.0", "0.1", "0.3", "0.5", "0.7", "0.9", "1.0"))
def test_the_divergence_is_the_published_one_at_every_beta(x64, beta, name):
  given = fixture.arrays(ATLAS)
  arrays = [jnp.asarray(given[f"{name}_{which}"]) for which in ("student", "teacher")]
  mask_BT = jnp.asarray(given[f"{name}_labels"] >= 0)
  part = lambda what: given[f"{name}_b{beta}_{what}"]
  (loss, (weight, nats_BT)), grad = compiled(float(beta))(*arrays, mask_BT)
  assert_close((loss, loss * weight), (part("T1.0_batchmean"), part("T1.0_sum")), tolerance=1e-10)
  if f"{name}_b{beta}_T1.0_grad" in given:
    assert_close(grad, part("T1.0_grad"), tolerance=1e-10)
  (whole, _), _ = compiled(float(beta))(*arrays, jnp.ones_like(mask_BT))
  assert_close(whole, part("nolabels_mean_over_BT"), tolerance=1e-10)
  if name == "a":
    for temperature in ("0.9", "2.0"):
      (loss, _), _ = compiled(float(beta), float(temperature))(*arrays, mask_BT)
      assert_close(loss, part(f"T{temperature}_batchmean"), tolerance=1e-10)


def models(V_teacher=7):
  """Hidden vectors and heads of two models, tokens and a mask with a row of nothing."""
  draw = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
  targets_BT = jnp.asarray(draw.integers(0, 7, (4, 5)), jnp.int32)
  mask_BT = jnp.asarray(np.arange(5)[None] < np.array([5, 0, 2, 3])[:, None])
  arrays = normal(4, 5, 3), normal(3, 7), normal(4, 5, 6), normal(6, V_teacher)
  return arrays, targets_BT, mask_BT


def both(beta, block_tokens):
  """The divergence and the loss with soft targets, with gradients into all that they are given."""
  arrays, targets_BT, mask_BT = models()

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1, 2, 3), has_aux=True)
  def grads(*arrays):
    blocks = dict(block_tokens=block_tokens)
    first = distill_loss(*arrays, mask_BT, beta=beta, temperature=0.8, **blocks)
    second = soft_target_loss(*arrays, targets_BT, mask_BT, alpha=0.3, temperature=2.0, **blocks)
    return first[0] + 2 * second[0], (first, second)

  return grads(*arrays)


def test_blocks_change_no_value_and_no_gradient_and_the_teacher_has_none():
  whole, blocks = both(0.3, None), both(0.3, 3)
  assert_close(blocks, whole, tolerance=1e-6)
  assert not any(np.asarray(x).any() for x in whole[0][2:])


def test_soft_targets_mix_the_teacher_s_distribution_and_the_token():
  (student_BTD, student_DV, teacher_BTD, teacher_DV), targets_BT, mask_BT = models()
  log = lambda hidden, head, T: np.asarray(jax.nn.log_softmax(hidden @ head / T, axis=-1), np.float64)
  student_BTV, teacher_BTV = log(student_BTD, student_DV, 2.0), log(teacher_BTD, teacher_DV, 2.0)
  soft_BT = (np.exp(teacher_BTV) * (teacher_BTV - student_BTV)).sum(-1)
  plain_BTV = log(student_BTD, student_DV, 1.0)
  nll_BT = -np.take_along_axis(plain_BTV, np.asarray(targets_BT)[..., None], axis=-1)[..., 0]
  _, (_, (loss, weight, _)) = both(0.3, None)
  expected_BT = 0.3 * 4 * soft_BT + 0.7 * nll_BT
  assert float(weight) == 10
  assert_close(loss, np.float32(expected_BT[np.asarray(mask_BT)].mean()), tolerance=1e-6)


def test_targets_beyond_the_shared_vocabulary_do_not_count_and_have_no_gradient():
  arrays, targets_BT, mask_BT = models()
  beyond_BT = mask_BT & (jnp.arange(5)[None] == 1)
  wild_BT = jnp.where(beyond_BT, 10**6, targets_BT)

  def loss(arrays, targets_BT, mask_BT):
    return soft_target_loss(*arrays, targets_BT, mask_BT, alpha=0.3, temperature=2.0)[:2]

  grads = jax.value_and_grad(loss, has_aux=True)
  assert_close(grads(arrays, wild_BT, mask_BT), grads(arrays, targets_BT, mask_BT & ~beyond_BT))


@pytest.mark.parametrize("beta", BETAS)
def test_a_teacher_like_the_student_gives_no_loss_and_no_gradient(beta):
  logits_BTV = jnp.asarray(fixture.arrays(TRL)["student_logits"], jnp.float32)
  (loss, _), grad = compiled(beta)(logits_BTV, logits_BTV, jnp.ones(logits_BTV.shape[:2], bool))
  assert_close((loss, grad), (np.float32(0), np.zeros_like(logits_BTV)), tolerance=1e-6)


def test_pieces_of_a_batch_weighed_by_their_tokens_are_the_whole():
  (student_BTD, student_DV, teacher_BTD, teacher_DV), _, mask_BT = models()
  batch = {"student": student_BTD, "teacher": teacher_BTD, "mask": mask_BT}

  def loss(params, batch, *, frozen, carry, rng):
    arrays = batch["student"], params, batch["teacher"], frozen, batch["mask"]
    mean, weight, _ = distill_loss(*arrays, beta=0.5)
    return LossOut(mean, weight, (), {})

  more = dict(frozen=teacher_DV, rng=jax.random.key(0))
  found = lambda parts: accumulate.gradients(loss, student_DV, batch, (), **more, parts=parts)
  assert_close(found(4), found(1), tolerance=1e-6)


def test_a_mask_without_tokens_gives_zero():
  (student_BTD, *more), _, mask_BT = models()
  loss = lambda x: distill_loss(x, *more, jnp.zeros_like(mask_BT), beta=0.5)[0]
  value, grad = jax.value_and_grad(loss)(student_BTD)
  assert float(value) == 0
  assert not np.asarray(grad).any()


def test_rows_of_a_head_beyond_the_tokenizer_are_left_out():
  arrays, _, mask_BT = models(V_teacher=9)
  padded = distill_loss(*arrays, mask_BT, beta=0.5, vocab_size=6)
  cut = [x[:, :6] if i % 2 else x for i, x in enumerate(arrays)]
  assert_close(padded, distill_loss(*cut, mask_BT, beta=0.5))


@pytest.mark.parametrize("settings, says", (
  (dict(beta=1.5), "config.distill.beta=1.5 is outside"),
  (dict(beta=0.5, temperature=0.0), "config.distill.temperature=0.0 is not above 0"),
  (dict(beta=0.5, vocab_size=None), "the student has 7 output rows and the teacher 9"),
  (dict(beta=0.5, vocab_size=8), "vocab_size=8 is not in 1..7"),
))  # fmt: skip
def test_a_wrong_setting_is_named(settings, says):
  arrays, targets_BT, mask_BT = models(V_teacher=9)
  with pytest.raises(ValueError, match=says):
    distill_loss(*arrays, mask_BT, **({"vocab_size": 7} | settings))
  with pytest.raises(ValueError, match="config.distill.alpha=2 is outside"):
    soft_target_loss(*arrays, targets_BT, mask_BT, alpha=2, temperature=1.0)
