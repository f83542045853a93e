"""Log-probabilities and entropies of tokens: from all logits or block by block, and those of Arc ATLAS."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.losses import policy
from atlas_jax.losses.sft import sft_loss
from atlas_jax.losses.token_logprobs import token_logprobs, token_logprobs_and_entropies
from tests import post_training_fixture as fixture
from tests.helpers import assert_close, assert_same_bits

B, T, D, V = 2, 5, 3, 7


def inputs():
  draw = np.random.default_rng(0)
  tokens_BT = jnp.asarray(draw.integers(0, V, (B, T)), jnp.int32)
  return jnp.asarray(draw.normal(size=(B, T, D))), jnp.asarray(draw.normal(size=(D, V))), tokens_BT


@functools.cache
def scored(block_tokens):
  """Both results and the gradients of a mixture of them, compiled."""

  def mixture(hidden_BTD, head_DV, tokens_BT, temperature):
    logprob_BT, entropy_BT = token_logprobs_and_entropies(
      hidden_BTD, head_DV, tokens_BT, temperature=temperature, block_tokens=block_tokens)  # fmt: skip
    position_BT = jnp.arange(B * T, dtype=logprob_BT.dtype).reshape(B, T)
    return jnp.sum(logprob_BT * position_BT + entropy_BT * jnp.sin(position_BT)), (logprob_BT, entropy_BT)

  return jax.jit(jax.value_and_grad(mixture, argnums=(0, 1), has_aux=True))


def test_they_are_those_of_the_tempered_softmax(x64):
  hidden_BTD, head_DV, tokens_BT = inputs()
  logits_BTV = np.asarray(hidden_BTD) @ np.asarray(head_DV) / 0.7
  p_BTV = np.exp(logits_BTV) / np.exp(logits_BTV).sum(-1, keepdims=True)
  (_, (logprob_BT, entropy_BT)), _ = scored(None)(hidden_BTD, head_DV, tokens_BT, 0.7)
  picked_BT = np.take_along_axis(p_BTV, np.asarray(tokens_BT)[..., None], axis=-1)[..., 0]
  assert_close(logprob_BT, np.log(picked_BT), tolerance=1e-12)
  assert_close(entropy_BT, -(p_BTV * np.log(p_BTV)).sum(-1), tolerance=1e-12)


@pytest.mark.parametrize("block_tokens", (4, 64))  # A last block that is not full; one block longer than all.
def test_blocks_change_no_value_and_no_gradient(x64, block_tokens):
  assert_close(scored(block_tokens)(*inputs(), 0.7), scored(None)(*inputs(), 0.7), tolerance=1e-12)


def test_log_probabilities_alone_are_the_same():
  hidden_BTD, head_DV, tokens_BT = inputs()
  both_BT, _ = token_logprobs_and_entropies(hidden_BTD, head_DV, tokens_BT, temperature=1.3)
  assert_close(token_logprobs(hidden_BTD, head_DV, tokens_BT, temperature=1.3), both_BT)
  assert_close(token_logprobs(hidden_BTD, head_DV, tokens_BT, temperature=1.3, block_tokens=3), both_BT)


def test_half_precision_is_scored_in_float32():
  hidden_BTD, head_DV, tokens_BT = inputs()
  logprob_BT = token_logprobs(hidden_BTD.astype(jnp.bfloat16), head_DV, tokens_BT)
  assert logprob_BT.dtype == jnp.float32


def test_no_array_has_the_vocabulary_and_more_than_a_block_of_tokens():
  hidden_BTD, head_DV, tokens_BT = inputs()
  scores = lambda hidden_BTD: token_logprobs_and_entropies(hidden_BTD, head_DV, tokens_BT, block_tokens=2)
  text = str(jax.make_jaxpr(jax.grad(lambda hidden_BTD: scores(hidden_BTD)[0].sum()))(hidden_BTD))
  assert f"[2,{V}]" in text
  assert not any(f"[{n},{V}]" in text for n in (5, B * T)) and f"[{B},{T},{V}]" not in text
  assert f"[5,2,{V}]" not in text  # Nothing of the vocabulary's size is kept for the backward pass.


def test_a_temperature_or_block_of_nothing_is_refused():
  with pytest.raises(ValueError, match="config.sampler.temperature=0 gives no log-probabilities"):
    token_logprobs(*inputs(), temperature=0)
  with pytest.raises(ValueError, match="config.loss.block_tokens=0 is no number of tokens"):
    token_logprobs(*inputs(), block_tokens=0)


@pytest.mark.parametrize("temperature", ("1.0", "0.7"))
def test_a_whole_update_is_that_of_arc_atlas(x64, temperature):
  """Its toy policy adds up embeddings and has one output matrix; the gradient goes through all of it."""
  given = fixture.arrays("arc_atlas/grpo_numeric")
  ids_BT = jnp.asarray(np.concatenate([given["prompt_ids"], given["completion_ids"]], axis=1))
  mask_BT = jnp.asarray(np.concatenate([given["prompt_mask"], given["completion_mask"]], axis=1), "float64")
  length = given["completion_ids"].shape[1]

  def logprobs(table, head_DV):
    hidden_BTD = jnp.cumsum(table[ids_BT] * mask_BT[..., None], axis=1)
    return token_logprobs(hidden_BTD[:, -length - 1 : -1], head_DV, ids_BT[:, -length:],
                          temperature=float(temperature), block_tokens=5)  # fmt: skip

  ref_BT = logprobs(jnp.asarray(given["ref_e"]), jnp.asarray(given["ref_w"]))

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def loss(table, head_DV):
    settings = policy.preset("grpo", kl_weight=0.5)
    logprob_BT = logprobs(table, head_DV)
    out = policy.policy_loss(logprob_BT, jnp.asarray(given["advantages"]), mask_BT[:, -length:], settings,
                             ref_logprob_BT=ref_BT)  # fmt: skip
    return out.loss, logprob_BT

  (mean, logprob_BT), grads = loss(jnp.asarray(given["policy_e"]), jnp.asarray(given["policy_w"]))
  part = lambda name: given[f"loss_beta0.5_T{temperature}_{name}"]
  assert_close((logprob_BT, ref_BT), (part("logps"), part("ref_logps")), tolerance=1e-12)
  assert_close(mean, part("mean"), tolerance=1e-12)
  assert_close(grads, (part("grad_e"), part("grad_w")), tolerance=1e-12)


def test_picking_log_probabilities_from_logits_is_that_of_arc_atlas(x64):
  given = fixture.arrays("arc_atlas/grpo_numeric")
  logits_BTV = jnp.asarray(given["sls_logits"])
  head_DV = jnp.eye(logits_BTV.shape[-1])
  found_BT = token_logprobs(logits_BTV, head_DV, jnp.asarray(given["sls_index"]))
  assert_close(found_BT, given["sls_out"], tolerance=1e-12)


@pytest.mark.parametrize("kind", ("nll", "dft"))
def test_supervised_losses_are_those_of_the_reference(x64, kind):
  given = fixture.arrays("post_training/sft")
  labels_BT = jnp.asarray(given["labels"][:, 1:])

  def loss(logits_BTV):
    hidden_BTD, head_DV = logits_BTV[:, :-1], jnp.eye(logits_BTV.shape[-1])
    logprob_BT = token_logprobs(hidden_BTD, head_DV, jnp.maximum(labels_BT, 0))
    return sft_loss(logprob_BT, labels_BT >= 0, kind=kind)[0]

  value, grad = jax.value_and_grad(loss)(jnp.asarray(given["logits"]))
  assert_close((value, grad), (given[kind], given[f"{kind}_grad"]), tolerance=1e-12)


def test_supervised_losses_take_no_notice_of_what_does_not_count():
  logprob_BT, mask_BT = jnp.asarray([[-1.0, -jnp.inf, -3.0]]), jnp.asarray([[True, False, True]])
  (loss, weight), pull = jax.vjp(lambda x_BT: sft_loss(x_BT, mask_BT, kind="dft"), logprob_BT)
  assert_close(loss, np.float32((np.exp(-1) + 3 * np.exp(-3)) / 2))
  assert float(weight) == 2
  assert_close(pull((jnp.ones(()), jnp.zeros(())))[0], np.float32([[-np.exp(-1) / 2, 0, -np.exp(-3) / 2]]))
  none = sft_loss(logprob_BT, jnp.zeros((1, 3)), kind="nll")
  assert_same_bits(none, (np.float32(0), np.float32(0)))


def test_an_unknown_supervised_loss_is_refused():
  with pytest.raises(ValueError, match="config.sft.loss='mse' is not known; choose one of nll, dft"):
    sft_loss(jnp.zeros((1, 1)), jnp.ones((1, 1)), kind="mse")
