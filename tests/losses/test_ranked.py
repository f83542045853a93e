"""Losses of ranked responses against the published formulas in float64: ties, ragged groups, one response."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.losses import ranked
from tests import post_training_fixture as fixture
from tests.helpers import assert_close

NAME = "arc_atlas/ranked_response"


@functools.cache
def compiled(settings):
  def loss(logprob_BGT, mask_BGT, score_BG, valid_BG, ref_logprob_BGT):
    arrays = logprob_BGT, mask_BGT, score_BG, valid_BG
    out = ranked.ranked_loss(*arrays, settings, ref_logprob_BGT=ref_logprob_BGT)
    return out.loss, out

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(rows=slice(None), dtype="float64", ref=None, **fields):
  given = fixture.arrays(NAME)
  keys = ("token_logps", "token_mask", "scores", "response_valid")
  arrays = [jnp.asarray(given[key][rows], dtype) for key in keys]
  return compiled(ranked.RankedSettings(**fields))(*arrays, ref)


@pytest.mark.parametrize("preference", ("weighted_nll", "listnet"))
@pytest.mark.parametrize("scale", (1.0, 2.0))
@pytest.mark.parametrize("reduction", ("mean", "sum"))
def test_terms_total_and_gradient_are_the_formulas(x64, reduction, scale, preference):
  (loss, out), grad_BGT = run(reduction=reduction, score_scale=scale, preference=preference)
  part = lambda what: fixture.arrays(NAME)[f"{reduction}_tau{scale}_{preference}_{what}"]
  named = {"preference_nats": "pref", "pair_nats": "pair", "target": "target", "pairs": "n_pairs",
           "logprob": "seq_logp"}  # fmt: skip
  for ours, theirs in named.items():
    assert_close(out.parts[ours], part(theirs), why=ours, tolerance=1e-12)
  assert_close(loss, part("total"), tolerance=1e-12)
  assert_close(grad_BGT, part("grad"), tolerance=1e-8)  # The reference's gradient is a difference quotient.


def test_float32_is_close_too():
  (loss, _), _ = run(dtype="float32")
  assert_close(loss, fixture.arrays(NAME)["mean_tau1.0_weighted_nll_total"], tolerance=1e-6)


def test_pairs_can_weigh_by_how_far_apart_they_are(x64):
  (loss, out), _ = run(pair_weighting="gap")
  part = lambda what: fixture.arrays(NAME)[f"mean_gapweighted_{what}"]
  assert_close((loss, out.parts["pair_nats"]), (part("total"), part("pair")), tolerance=1e-12)


def test_advantages_of_scores_are_over_the_population_s_deviation(x64):
  (_, out), _ = run(objective="group_relative")
  assert_close(out.parts["advantage"], fixture.arrays(NAME)["group_relative_adv_pop_std"], tolerance=1e-10)


def test_large_scores_are_compared_by_their_differences():
  valid_BG = np.ones((1, 3), bool)
  near_BG, far_BG = (ranked.group_relative(jnp.asarray([[0.0, 2.0, 1.0]], jnp.float32) + jnp.float32(shift),
                                           valid_BG) for shift in (0, 1e7))
  assert_close(far_BG, near_BG, tolerance=1e-6)
  assert_close(jnp.sum(far_BG), jnp.float32(0), tolerance=1e-6)


def test_the_group_relative_loss_adds_the_kl_of_what_is_there(x64):
  given = fixture.arrays(NAME)
  ref_BGT = given["token_logps"] + 0.3
  (loss, out), _ = run(objective="group_relative", kl_weight=0.5, ref=jnp.asarray(ref_BGT))
  kl = np.exp(0.3) - 0.3 - 1
  advantage_BG, valid_BG = np.asarray(out.parts["advantage"]), given["response_valid"]
  policy_B = -(advantage_BG * np.asarray(out.parts["logprob"])).sum(1)
  assert_close(loss, (policy_B + 0.5 * kl * valid_BG.sum(1)).mean(), tolerance=1e-12)


def test_pieces_of_a_batch_weighed_by_their_prompts_are_the_whole(x64):
  (whole, out), _ = run()
  (first, left), _ = run(slice(0, 2))
  (second, right), _ = run(slice(2, 5))
  assert_close((first * left.weight + second * right.weight) / out.weight, whole, tolerance=1e-12)
  assert float(out.weight) == 5


def test_an_anchor_is_subtracted_in_pairs_alone(x64):
  given = fixture.arrays(NAME)
  (_, plain), _ = run(anchored=True, ref=jnp.zeros_like(jnp.asarray(given["token_logps"])))
  (_, anchored), _ = run(anchored=True, ref=jnp.asarray(given["token_logps"]))
  assert_close(anchored.parts["preference_nats"], plain.parts["preference_nats"])
  assert_close(plain.parts["pair_nats"], given["mean_tau1.0_weighted_nll_pair"])
  assert_close(anchored.parts["pair_nats"], np.log(2) * (given["mean_tau1.0_weighted_nll_n_pairs"] > 0))


def test_low_preferences_can_be_dropped(x64):
  (_, out), _ = run(min_preference=0.2)
  full_BG = fixture.arrays(NAME)["mean_tau1.0_weighted_nll_target"]
  kept_BG = np.where(full_BG >= 0.2, full_BG, 0)
  assert_close(out.parts["target"], kept_BG / kept_BG.sum(1, keepdims=True))


@pytest.mark.parametrize("fields", (dict(preference="listnet"), dict(objective="group_relative")))
def test_a_prompt_without_responses_counts_nothing_and_has_no_gradient(fields):
  mask_BGT, none_BG = jnp.zeros((1, 2, 3)), jnp.zeros((1, 2))
  (loss, out), grad_BGT = compiled(ranked.RankedSettings(**fields))(
    jnp.full((1, 2, 3), -jnp.inf), mask_BGT, none_BG, none_BG, None)  # fmt: skip
  assert float(loss) == float(out.weight) == 0
  assert not np.asarray(grad_BGT).any()


def test_scores_follow_the_rule_for_ranks():
  for case in fixture.text("arc_atlas/ranked_response_rules")["cases"]:
    rank_BG = jnp.asarray([case["ranks"] + [0]])
    valid_BG = jnp.asarray([[1] * len(case["ranks"]) + [0]])
    assert_close(ranked.scores_of(rank_BG, valid_BG), np.float32([case["scores"] + [0]]))


def test_a_raw_score_wins_over_the_rank():
  score_BG = ranked.scores_of(jnp.asarray([[1, 2, 2]]), jnp.ones((1, 3)), jnp.asarray([[0.25, jnp.nan, 9.0]]))
  assert_close(score_BG, np.float32([[0.25, 1, 9]]))


@pytest.mark.parametrize("fields, says", (
  (dict(objective="grpo"), "config.ranked.objective='grpo' is not known; choose one of ranked"),
  (dict(score_scale=-1.0), "config.ranked.score_scale=-1.0 would turn the order round"),
  (dict(pair_weight=-0.5), "config.ranked.pair_weight=-0.5 is negative"),
  (dict(min_preference=1.0), "config.ranked.min_preference=1.0 is outside"),
))  # fmt: skip
def test_a_wrong_setting_is_named(fields, says):
  with pytest.raises(ValueError, match=says):
    ranked.RankedSettings(**fields)


def test_a_reference_that_is_missing_is_named():
  with pytest.raises(ValueError, match="config.ranked.anchored=True .* needs ref_logprob_BGT"):
    run(dtype="float32", anchored=True)
