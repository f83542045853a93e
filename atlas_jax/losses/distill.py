"""Distillation: how far a student's next-token distributions are from a teacher's.

All losses are means over counted tokens together with their number, so that pieces of a batch, weighed by
it, give what the whole batch gives. A sum over rows instead of tokens is loss * weight / rows.
"""
import math

import jax
import jax.numpy as jnp

from atlas_jax.kernels.vocab_loss import map_blocks, vocab_logits


def divergence(student_log_NV, teacher_log_NV, *, beta: float):
  """Returns the generalised Jensen-Shannon divergence of log-probabilities, over the last axis.

  Args:
    student_log_NV, teacher_log_NV: log-probabilities s and p.
    beta: in [0, 1]. 0: KL(p || s); 1: KL(s || p); between, with m = beta p + (1 - beta) s:
      beta KL(p || m) + (1 - beta) KL(s || m), which is log 2 at most and 0 in the limit of either end.

  Returns:
    One number per leading index, in nats.

  Raises:
    ValueError: if beta is outside [0, 1].

  Source: Agarwal et al. 2024, arXiv:2306.13649.
  """
  if not 0 <= beta <= 1:
    raise ValueError(f"config.distill.beta={beta} is outside [0, 1]; 0 is KL(teacher || student), 1 is "
                     "KL(student || teacher), 0.5 the symmetric divergence")
  # The ends are cases of their own: the general formula tends to 0 there, not to these divergences.
  if beta == 0:
    return _kl(teacher_log_NV, student_log_NV)
  if beta == 1:
    return _kl(student_log_NV, teacher_log_NV)
  # log(beta p + (1 - beta) s) without leaving the logarithm, where p and s below 1e-38 would be 0 in float32.
  middle_NV = jnp.logaddexp(teacher_log_NV + math.log(beta), student_log_NV + math.log1p(-beta))
  return beta * _kl(teacher_log_NV, middle_NV) + (1 - beta) * _kl(student_log_NV, middle_NV)


def distill_loss(student_BTD, student_head_DV, teacher_BTD, teacher_head_DV, mask_BT, *, beta: float,
                 temperature: float = 1.0, block_tokens: int | None = None, vocab_size: int | None = None):
  """Averages the divergence between student and teacher over counted tokens.

  Args:
    student_BTD, teacher_BTD: hidden vectors of the same tokens; the models' widths may differ.
    student_head_DV, teacher_head_DV: output weights.
    mask_BT: 1 or True where a token counts.
    beta: see `divergence`.
    temperature: logits are divided by it; other than that of sampling.
    block_tokens: tokens whose logits exist at the same time; None: all of them.
    vocab_size: tokens of the common tokenizer; rows of a head beyond it are padding and left out.

  Returns:
    (loss, weight, nats_BT): mean nats per counted token (0 if none counts), how many count, and each token's
    nats. The teacher gets no gradient.

  Raises:
    ValueError: if a setting is out of range, or the vocabularies differ and vocab_size is not given.
  """
  # Padding rows of a head take part in a softmax like real ids, and the two models may have them in different
  # numbers; so they are cut off, not masked: a log-probability of -inf would make `_kl` 0 * inf.
  heads = _common(student_head_DV, teacher_head_DV, vocab_size)
  check_temperature(temperature)

  def score(student_ND, teacher_ND):
    return divergence(*_log_probs(student_ND, teacher_ND, heads, temperature), beta=beta)

  nats_BT = _by_rows(score, (student_BTD, teacher_BTD), block_tokens)
  return _mean(nats_BT, mask_BT)


def soft_target_loss(student_BTD, student_head_DV, teacher_BTD, teacher_head_DV, targets_BT, mask_BT, *,
                     alpha: float, temperature: float, block_tokens: int | None = None,
                     vocab_size: int | None = None):
  """Mixes the teacher's soft targets with the recorded tokens: alpha T^2 KL(p || s) + (1 - alpha) nll.

  Args:
    student_BTD, student_head_DV, teacher_BTD, teacher_head_DV, mask_BT: as in `distill_loss`.
    targets_BT: the recorded token of each position; one beyond the shared vocabulary does not count.
    alpha: weight of the teacher's part, in [0, 1].
    temperature: T of both distributions in the teacher's part; the recorded tokens are scored without.
    block_tokens, vocab_size: as in `distill_loss`.

  Returns:
    (loss, weight, nats_BT) as in `distill_loss`.

  Raises:
    ValueError: as in `distill_loss`, or if alpha is outside [0, 1].

  Source: Hinton et al. 2015, arXiv:1503.02531.
  """
  if not 0 <= alpha <= 1:
    raise ValueError(f"config.distill.alpha={alpha} is outside [0, 1]; it weighs the teacher's part")
  check_temperature(temperature)
  heads = _common(student_head_DV, teacher_head_DV, vocab_size)

  def score(student_ND, teacher_ND, target_N):
    # Recorded tokens are scored at temperature 1, as `losses.sft` does.
    soft_N = divergence(*_log_probs(student_ND, teacher_ND, heads, temperature), beta=0.0)
    log_NV = jax.nn.log_softmax(vocab_logits(student_ND, heads[0]), axis=-1)
    # Targets beyond the shared vocabulary do not count; out of range, their gradient
    # would be NaN all the same.
    target_N = jnp.minimum(target_N, heads[0].shape[1] - 1)
    nll_N = -jnp.take_along_axis(log_NV, target_N[:, None], axis=1)[:, 0]
    # T^2, because the gradient of the soft part shrinks as 1 / T^2 (Hinton et al. 2015, section 2): alpha
    # then keeps its meaning when T changes.
    return alpha * temperature**2 * soft_N + (1 - alpha) * nll_N

  nats_BT = _by_rows(score, (student_BTD, teacher_BTD, targets_BT), block_tokens)
  return _mean(nats_BT, mask_BT.astype(bool) & (targets_BT < heads[0].shape[1]))


def check_temperature(temperature: float) -> None:
  """Refuses a temperature that is not positive.

  Raises:
    ValueError: names the field.
  """
  if temperature <= 0:
    raise ValueError(f"config.distill.temperature={temperature} is not above 0; 1 compares the models as "
                     "they are")


def _kl(log_NV, other_NV):
  return jnp.sum(jnp.exp(log_NV) * (log_NV - other_NV), axis=-1)


def _log_probs(student_ND, teacher_ND, heads: tuple, temperature: float):
  # Stopped at the inputs, so that not even the teacher's output matmul has a backward pass.
  teacher_ND, teacher_DV = jax.lax.stop_gradient((teacher_ND, heads[1]))
  teacher_NV = vocab_logits(teacher_ND, teacher_DV, temperature=temperature)
  student_NV = vocab_logits(student_ND, heads[0], temperature=temperature)
  log_NV = jax.nn.log_softmax(student_NV, axis=-1)
  return log_NV, jax.nn.log_softmax(teacher_NV.astype(log_NV.dtype), axis=-1)


def _common(student_DV, teacher_DV, vocab_size: int | None):
  sizes = student_DV.shape[1], teacher_DV.shape[1]
  if vocab_size is None and sizes[0] != sizes[1]:
    raise ValueError(f"the student has {sizes[0]} output rows and the teacher {sizes[1]}; where both use one "
                     f"tokenizer, set vocab_size to its size, at most {min(sizes)}, to leave out the padding")
  if vocab_size is not None and not 0 < vocab_size <= min(sizes):
    raise ValueError(f"vocab_size={vocab_size} is not in 1..{min(sizes)}, the output rows that student "
                     f"({sizes[0]}) and teacher ({sizes[1]}) share")
  return student_DV[:, :vocab_size], teacher_DV[:, :vocab_size]


def _by_rows(score, arrays: tuple, block_tokens: int | None):
  shape = arrays[0].shape[:2]
  flat = tuple(x.reshape(-1, *x.shape[2:]) for x in arrays)
  return map_blocks(score, flat, block_tokens=block_tokens).reshape(shape)


def _mean(nats_BT, mask_BT):
  mask_BT = mask_BT.astype(nats_BT.dtype)
  # What does not count may be anything, also not a number.
  nats_BT = jnp.where(mask_BT > 0, nats_BT, 0)
  weight = jnp.sum(mask_BT)
  return jnp.sum(nats_BT * mask_BT) / jnp.maximum(weight, 1), weight, nats_BT
