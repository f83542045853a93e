"""Policy losses against 43 cases of TRL 1.16 in float64, Arc ATLAS, and what they are by definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.losses import policy, policy_metrics
from atlas_jax.losses.policy import policy_loss
from atlas_jax.optim import accumulate
from atlas_jax.recipes import LossOut
from tests import post_training_fixture as fixture
from tests.helpers import assert_close

TRL = "post_training/grpo_losses"
CASES = tuple(fixture.text(TRL))
METRICS = {"entropy": "entropy_nats", "kl": "kl_nats", "clip_ratio/low_mean": "clip_low_frac",
           "clip_ratio/high_mean": "clip_high_frac", "clip_ratio/region_mean": "clip_frac",
           "cispo_clip_ratio": "clip_high_frac"}  # fmt: skip


def settings_of(name):
  """Our settings of a case of the fixture."""
  given, flags = fixture.text(TRL)[name]["settings"], fixture.text(TRL)[name]["flags"]
  more = {}
  if flags["sampler"]:
    more = dict(sampler_correction=given.get("vllm_importance_sampling_mode", "sequence_mask"),
                sampler_low=given.get("vllm_importance_sampling_clip_min"),
                sampler_high=given.get("vllm_importance_sampling_clip_max", 3.0))  # fmt: skip
  return policy.preset(
    given["loss_type"], ratio=given["importance_sampling_level"], clip_low=given["epsilon"],
    clip_high=given["epsilon_high"], clip_max=given["delta"], kl_weight=given["beta"],
    kl_ratio=given["use_bias_correction_kl"], entropy_weight=given.get("entropy_coef", 0.0),
    top_entropy_frac=given.get("top_entropy_quantile"), stale_nats=given.get("off_policy_mask_threshold"),
    max_completion_tokens=given["max_completion_length"], **more)  # fmt: skip


def inputs_of(name, dtype="float64"):
  """The arrays of a case."""
  given, case = fixture.arrays(TRL), fixture.text(TRL)[name]
  settings, flags = case["settings"], case["flags"]
  number = lambda key: jnp.asarray(given[key], dtype)
  mask_BT = policy.loss_mask(
    jnp.asarray(given["completion_mask"]),
    own_BT=jnp.asarray(given["tool_mask"]) if flags["tools"] else None,
    truncated_B=jnp.asarray(given["truncated"]) if "mask_truncated_completions" in settings else None,
  )
  np.testing.assert_array_equal(mask_BT, given[f"{name}/loss_mask"])
  more = {"old_logprob_BT": number("old_logps") if flags["old"] else None,
          "ref_logprob_BT": number("ref_logps") if settings["beta"] else None,
          "sampler_logprob_BT": number("sampler_logps") if flags["sampler"] else None}  # fmt: skip
  return number("logps"), number("entropies"), number(f"{name}/advantages"), mask_BT, more


@functools.cache
def compiled(settings):
  def loss(logprob_BT, entropy_BT, advantage_B, mask_BT, more):
    out = policy_loss(logprob_BT, advantage_B, mask_BT, settings, entropy_BT=entropy_BT, **more)
    return out.loss, out

  return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)


def check(name, dtype, tolerance):
  """Loss, gradients and metrics of a case."""
  given, case = fixture.arrays(TRL), fixture.text(TRL)[name]
  (loss, out), (grad_BT, entropy_grad_BT) = compiled(settings_of(name))(*inputs_of(name, dtype))
  assert grad_BT.dtype == loss.dtype == dtype
  assert_close(loss, given[f"{name}/loss"], why="loss", tolerance=tolerance)
  assert_close(grad_BT, given[f"{name}/grad_logps"], why="grad", tolerance=tolerance)
  expected_BT = given.get(f"{name}/grad_entropies", np.zeros_like(given["entropies"]))
  assert_close(entropy_grad_BT, expected_BT, why="gradient of entropies", tolerance=tolerance)
  found = policy_metrics.finish(out.metrics)
  for theirs, ours in METRICS.items():
    if theirs in case["metrics"]:  # Those are means of float32 numbers.
      assert_close(found[f"policy/{ours}"], np.float32(case["metrics"][theirs]), why=theirs, tolerance=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_case_of_the_reference_agrees_to_the_last_digits(x64, name):
  check(name, "float64", 1e-12)


@pytest.mark.parametrize("name", ("grpo_kl_corrected", "gspo_kl", "vespo", "dapo_is_default"))
def test_float32_is_close_too(name):
  check(name, "float32", 1e-6)


def test_the_sequence_form_per_token_has_the_loss_and_gradient_of_the_plain_one(x64):
  name = "gspo_kl"
  plain = compiled(settings_of(name))(*inputs_of(name))
  token = compiled(policy.dataclasses.replace(settings_of(name), ratio="sequence_token"))(*inputs_of(name))
  assert_close((token[0][0], token[1]), (plain[0][0], plain[1]), tolerance=1e-12)


def test_the_geometric_mean_of_ratios_clips_tokens_on_the_side_of_the_advantage(x64):
  apart_BT, mask_BT = np.array([[0.1, 0.9, -0.9, 5.0], [0.1, 0.9, -0.9, 5.0]]), np.array([[1, 1, 1, 0]] * 2)
  advantage_B = jnp.asarray([2.0, -3.0])
  out = policy_loss(jnp.asarray(apart_BT), advantage_B, jnp.asarray(mask_BT), policy.preset("gmpo"),
                    old_logprob_BT=jnp.zeros((2, 4)))  # fmt: skip
  up, down = np.exp((0.1 + 0.4 - 0.9) / 3), np.exp((0.1 + 0.9 - 0.4) / 3)
  assert_close(out.loss, -(2 * up - 3 * down) / 2)


def test_the_gamma_weight_of_a_row_takes_in_the_sampler_s_ratios(x64):
  logprob_BT, mask_BT = np.array([[-0.5, -1.0, -2.0], [-0.7, -0.2, -9.0]]), np.array([[1, 1, 1], [1, 1, 0]])
  old_BT, sampler_BT = logprob_BT - 0.1, logprob_BT - [[0.2, 0.4, -0.3], [0.0, 0.1, 5.0]]
  settings = policy.preset("vespo", sampler_correction="token_truncate", sampler_high=1.2, sampler_low=0.8)
  arrays = (jnp.asarray(x) for x in (logprob_BT, np.array([1.0, -2.0]), mask_BT))
  out = policy_loss(*arrays, settings, old_logprob_BT=jnp.asarray(old_BT),
                    sampler_logprob_BT=jnp.asarray(sampler_BT))  # fmt: skip
  part_BT = np.clip(old_BT - sampler_BT, np.log(0.8), np.log(1.2))
  log_B = ((logprob_BT - old_BT + part_BT) * mask_BT).sum(1)
  power_B, rate_B = np.array([2, 3]), np.array([3, 2])
  weight_B = np.exp(rate_B + power_B * log_B - rate_B * np.exp(log_B))
  expected = -(weight_B * [1, -2] * (logprob_BT * mask_BT).sum(1)).sum() / 5
  assert_close(out.loss, expected, tolerance=1e-12)


@pytest.mark.parametrize("estimator", ("k1", "k2", "k3"))
def test_estimates_of_the_kl_are_their_formulas(x64, estimator):
  given = fixture.arrays(TRL)
  u_BT = given["ref_logps"] - given["logps"]
  kl_BT = {"k1": -u_BT, "k2": u_BT**2 / 2, "k3": np.exp(u_BT) - u_BT - 1}[estimator]
  settings = policy.preset("dapo", kl_weight=0.5, kl_estimator=estimator)
  mask_BT = given["completion_mask"]
  out = policy_loss(jnp.asarray(given["logps"]), jnp.zeros(12), jnp.asarray(mask_BT), settings,
                    ref_logprob_BT=jnp.asarray(given["ref_logps"]))  # fmt: skip
  assert_close(out.loss, 0.5 * (kl_BT * mask_BT).sum() / mask_BT.sum(), tolerance=1e-12)


@pytest.mark.parametrize("reward", ("B", "none"))
@pytest.mark.parametrize("beta", ("0.0", "0.04", "0.5"))
def test_one_update_per_rollout_is_that_of_arc_atlas(x64, beta, reward):
  given = fixture.arrays("arc_atlas/grpo_numeric")
  part = lambda name: given[f"loss_beta{beta}_T0.7_{name}"]
  settings = policy.preset("grpo", kl_weight=float(beta))
  advantage_B = given["advantages"] if reward == "B" else 0 * given["advantages"]
  arrays = (jnp.asarray(x) for x in (part("logps"), advantage_B, given["completion_mask"]))
  out = policy_loss(*arrays, settings, ref_logprob_BT=jnp.asarray(part("ref_logps")))
  expected = part("mean") if reward == "B" else float(beta) * part("kl_per_seq").mean()
  assert_close(out.loss, expected, tolerance=1e-12)


# --- pieces of a batch ---

PIECES = {
  **{name: policy.preset(name, **more) for name, more in (
    ("grpo", {}), ("dapo", {}), ("dr_grpo", dict(max_completion_tokens=12)), ("gspo", {}), ("luspo", {}))},
  "all terms": policy.preset("grpo", kl_weight=0.1, kl_ratio=True, entropy_weight=0.02, top_entropy_frac=0.6,
                             sampler_correction="token_truncate", stale_nats=0.02),
}  # fmt: skip


@pytest.mark.parametrize("name", PIECES)
def test_four_pieces_of_two_rows_are_one_batch_of_eight(name):
  settings = PIECES[name]
  keys = ("logps", "old_logps", "ref_logps", "sampler_logps", "entropies", "completion_mask")
  batch = {key: jnp.asarray(fixture.arrays(TRL)[key][:8], jnp.float32) for key in keys}
  batch["advantage"] = jnp.asarray(fixture.arrays(TRL)["grpo/advantages"][:8], jnp.float32)
  batch["completion_mask"] = batch["completion_mask"].at[3].set(0)  # One row without tokens.
  mask_BT = batch["completion_mask"]
  whole = dict(entropy_floor=policy.importance.entropy_floor(batch["entropies"], mask_BT > 0, top_frac=0.6),
               tokens_per_row=mask_BT.sum() / 8)  # fmt: skip

  def loss(params, batch, *, frozen, carry, rng):
    out = policy_loss(
      batch["logps"] * params, batch["advantage"], batch["completion_mask"], settings,
      old_logprob_BT=batch["old_logps"], ref_logprob_BT=batch["ref_logps"],
      sampler_logprob_BT=batch["sampler_logps"], entropy_BT=batch["entropies"] * params, **whole)  # fmt: skip
    return LossOut(out.loss, out.weight, (), out.metrics)

  def found(parts):
    grads, out = jax.jit(accumulate.gradients, static_argnames=("loss", "parts"))(
      loss, jnp.ones(()), batch, (), frozen=(), rng=jax.random.key(0), parts=parts)  # fmt: skip
    metrics = policy_metrics.finish(out.metrics)
    exact = {k: v for k, v in metrics.items() if not k.endswith(("_min", "_max"))}
    return grads, out.loss, out.weight, exact

  assert_close(found(4), found(1), tolerance=2e-6)


# --- what does not count ---


def small(mask_BT, settings=None, **changes):
  """Loss and gradient of two rows of four tokens."""
  settings = settings or policy.preset("grpo", kl_weight=0.1)
  draw = np.random.default_rng(0)
  names = ("logprob", "old_logprob_BT", "ref_logprob_BT", "sampler_logprob_BT", "entropy_BT")
  arrays = {name: jnp.asarray(draw.normal(size=(2, 4)), jnp.float32) for name in names} | changes
  logprob_BT = arrays.pop("logprob")
  loss = lambda x_BT: policy_loss(x_BT, jnp.asarray([1.0, -2.0]), jnp.asarray(mask_BT), settings, **arrays)
  out, pull = jax.vjp(lambda x_BT: loss(x_BT)[:2], logprob_BT)
  return out, pull((jnp.ones(()), jnp.zeros(())))[0], loss(logprob_BT).metrics


def test_a_batch_that_counts_no_token_has_loss_zero_and_no_gradient():
  for settings in (policy.preset("dapo", entropy_weight=0.1, top_entropy_frac=0.5),
                   policy.preset("gspo", entropy_weight=0.1), policy.preset("gmpo")):  # fmt: skip
    (loss, _), grad_BT, metrics = small(np.zeros((2, 4)), settings)
    assert float(loss) == 0
    assert not np.asarray(grad_BT).any()
    assert all(np.isfinite(x) for x in jax.tree.leaves(policy_metrics.finish(metrics)))


def test_what_is_not_counted_may_be_anything():
  mask_BT = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
  wild = lambda seed: jnp.where(mask_BT > 0, jax.random.normal(jax.random.key(seed), (2, 4)), -jnp.inf)
  names = ("logprob", "old_logprob_BT", "ref_logprob_BT", "sampler_logprob_BT")
  (loss, _), grad_BT, _ = small(mask_BT, **{name: wild(i) for i, name in enumerate(names)})
  assert np.isfinite(float(loss))
  assert np.isfinite(grad_BT).all()
  assert not np.asarray(grad_BT)[mask_BT == 0].any()


def test_a_token_far_from_the_old_policy_is_clipped_without_nan():
  old_BT = jnp.full((2, 4), -1e3)
  (loss, _), grad_BT, metrics = small(np.ones((2, 4)), policy.preset("dapo"), old_logprob_BT=old_BT)
  assert np.isfinite(float(loss))
  assert np.isfinite(grad_BT).all()
  assert float(policy_metrics.finish(metrics)["policy/ratio_max"]) > 1e8


def test_rows_that_fill_up_a_batch_do_not_count():
  mask_BT = np.ones((2, 4))
  (loss, weight), grad_BT, metrics = small(mask_BT, row_mask_B=jnp.asarray([1, 0]))
  (whole, _), _, alone = small(mask_BT * [[1], [0]])
  assert float(weight) == 1
  assert_close(loss, 2 * whole)
  assert not np.asarray(grad_BT)[1].any()
  assert_close(*(policy_metrics.finish(x)["policy/kl_nats"] for x in (metrics, alone)))


def test_log_probabilities_that_the_sampler_does_not_report_leave_their_tokens_as_they_are():
  settings = policy.preset("dapo", sampler_correction="token_mask", sampler_high=1e-3)
  changes = {"sampler_logprob_BT": jnp.full((2, 4), jnp.nan), "old_logprob_BT": None}
  (loss, _), _, metrics = small(np.ones((2, 4)), settings, **changes)
  found = policy_metrics.finish(metrics)
  assert float(found["policy/sampler_gap_nats"]) == 0
  assert float(found["policy/sampler_ratio_mean"]) == 0  # A ratio of 1 is beyond the bound here.
  assert float(loss) == 0


def test_on_policy_the_gradient_is_the_advantage_and_nothing_is_clipped():
  (_, _), grad_BT, metrics = small(np.ones((2, 4)), policy.preset("dapo"), old_logprob_BT=None)
  assert_close(grad_BT, np.broadcast_to(np.float32([[-1], [2]]) / 8, (2, 4)))
  found = policy_metrics.finish(metrics)
  assert {k: float(found[f"policy/{k}"]) for k in ("clip_frac", "ratio_min", "ratio_mean", "ratio_max")} == {
    "clip_frac": 0, "ratio_min": 1, "ratio_mean": 1, "ratio_max": 1}  # fmt: skip


@pytest.mark.parametrize("name, changes, says", (
  ("ppo", {}, "config.policy has no preset 'ppo'; choose one of grpo, bnpo"),
  ("grpo", dict(ratio="word"), "config.policy.ratio='word' is not known; choose one of token, sequence"),
  ("grpo", dict(clip_low=1.5), "config.policy.clip_low=1.5 is out of range; set it between 0 and 1"),
  ("grpo", dict(top_entropy_frac=0.0), "config.policy.top_entropy_frac=0.0 is out of range"),
  ("grpo", dict(sampler_low=2.0, sampler_high=1.0), "config.policy.sampler_high=1.0 is out of range"),
  ("cispo", dict(clip_high=0.2), "config.policy.clip_high=0.2 cuts every ratio down"),
  ("grpo", dict(clip_max=1.1), "config.policy.clip_max=1.1 needs config.policy.objective='clip' and a value"),
  ("vespo", dict(ratio="sequence"), "config.policy.ratio='sequence' does not go with"),
  ("vespo", dict(sampler_correction="sequence_mask"), "set 'token_truncate' or 'token_mask'"),
  ("dr_grpo", {}, "max_completion_tokens, which is None"),
))  # fmt: skip
def test_settings_that_do_not_fit_are_named(name, changes, says):
  with pytest.raises(ValueError, match=says):
    policy.preset(name, **changes)


def test_an_unknown_field_is_a_type_error():
  with pytest.raises(TypeError, match="clip_hi"):
    policy.preset("grpo", clip_hi=0.2)


@pytest.mark.parametrize("field, value, array", (
  ("kl_weight", 0.1, "ref_logprob_BT"), ("sampler_correction", "token_mask", "sampler_logprob_BT"),
  ("entropy_weight", 0.1, "entropy_BT"), ("top_entropy_frac", 0.5, "entropy_BT"),
))  # fmt: skip
def test_a_setting_without_its_array_is_named(field, value, array):
  with pytest.raises(ValueError, match=f"config.policy.{field}={value!r} needs {array}"):
    small(np.ones((2, 4)), policy.preset("grpo", **{field: value}), **{array: None})
