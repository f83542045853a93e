"""Distillation between models of different tokenizers: what both say of the same spans of text.

Ids of different tokenizers cannot be compared, texts can. Where both cut the text, each says with which
class of ids it goes on (`data.spans.classes`); and how likely a whole span is, is the product of its ids'
probabilities, however many each has. Both are coarser views of one distribution over texts, so what is
compared never exceeds how far the models are apart, and is zero where they say the same.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.kernels.vocab_loss import map_blocks, vocab_logits
from atlas_jax.losses.distill import check_temperature, divergence
from atlas_jax.losses.token_logprobs import token_logprobs

# Least distance of a span's log-probability from 0, about the rounding error of sums in float32.
SURE_NATS = 1e-6


class Side(NamedTuple):
  """Hidden vectors and head of one of the two models."""

  hidden_BTD: Any  # the vectors that predict its ids
  head_DV: Any  # output weights
  tokens_BT: Any  # its ids of the texts
  span_BT: Any  # int32, the span of each, in 0..N-1; -1: of none
  first_BN: Any  # int32, where each span begins; anything for a span that does not count
  class_V: Any  # int32, the class of each id, -1: of none; what the head has beyond them is padding


def span_loss(student: Side, teacher: Side, single_BN, mask_BN, *, classes: int, beta: float,
              temperature: float = 1.0, block_tokens: int | None = None):
  """Averages over spans how far student and teacher are apart.

  A span's nats are the divergence of the classes with which the text goes on where it begins, and, if it has
  more than one id on a side, the divergence of two outcomes: this span, or another.

  Args:
    student, teacher: what they say; the teacher gets no gradient.
    single_BN: whether a span has one id on either side.
    mask_BN: 1 or True where a span counts.
    classes: how many there are.
    beta: see `distill.divergence`.
    temperature: logits are divided by it.
    block_tokens: tokens whose logits exist at the same time; None: all of them.

  Returns:
    (loss, weight, nats_BN): mean nats per counted span (0 if none counts), how many count, and each one's.

  Raises:
    ValueError: if a setting is out of range.
  """
  check_temperature(temperature)
  teacher = jax.lax.stop_gradient(teacher)
  sides = [side._replace(head_DV=side.head_DV[:, :side.class_V.shape[0]]) for side in (student, teacher)]

  def begin(student_ND, teacher_ND):
    each = (class_log_probs(x, side, classes=classes, temperature=temperature)
            for x, side in zip((student_ND, teacher_ND), sides))
    return divergence(*each, beta=beta)

  # Vectors at a span's first id predict how the text goes on there; a span that does not count reads some
  # vector, and its nats are dropped below.
  starts = [jnp.take_along_axis(side.hidden_BTD, side.first_BN[..., None], axis=1) for side in sides]
  flat = tuple(x.reshape(-1, x.shape[-1]) for x in starts)
  begin_BN = map_blocks(begin, flat, block_tokens=block_tokens).reshape(mask_BN.shape)
  outcomes = [_outcomes(side, mask_BN.shape[1], temperature, block_tokens) for side in sides]
  whole_BN = divergence(*outcomes, beta=beta)
  nats_BN = begin_BN + jnp.where(single_BN, 0, whole_BN)
  mask_BN = mask_BN.astype(nats_BN.dtype)
  nats_BN = jnp.where(mask_BN > 0, nats_BN, 0)
  weight = jnp.sum(mask_BN)
  return jnp.sum(nats_BN * mask_BN) / jnp.maximum(weight, 1), weight, nats_BN


def class_log_probs(hidden_ND, side: Side, *, classes: int, temperature: float):
  """Returns the log-probability of each class as the next, among all ids that have one; [N, classes]."""
  logits_NV = vocab_logits(hidden_ND, side.head_DV, temperature=temperature)
  none_V = side.class_V < 0
  logits_NV = jnp.where(none_V[None], -jnp.inf, logits_NV)
  most_N1 = jax.lax.stop_gradient(jnp.max(logits_NV, axis=-1, keepdims=True))
  weight_VN = jnp.exp(logits_NV - most_N1).T
  # Segment number `classes` is out of range, and segment_sum drops it: ids that are of no class.
  weight_NC = jax.ops.segment_sum(weight_VN, jnp.where(none_V, classes, side.class_V), classes).T
  # A class whose ids all underflow has a finite log, without which the KL and its gradient are NaN.
  weight_NC = jnp.maximum(weight_NC, jnp.finfo(weight_NC.dtype).tiny)
  return jnp.log(weight_NC) - jnp.log(jnp.sum(weight_NC, axis=-1, keepdims=True))


def _outcomes(side: Side, spans: int, temperature: float, block_tokens: int | None):
  """Returns log-probabilities of each span and of all others, [B, N, 2]."""
  # Ids beyond the vocabulary, which belong to no span, would give NaN, whose gradient no mask takes away.
  tokens_BT = jnp.minimum(side.tokens_BT, side.head_DV.shape[1] - 1)
  logprob_BT = token_logprobs(side.hidden_BTD, side.head_DV, tokens_BT, temperature=temperature,
                              block_tokens=block_tokens)
  span_BT = jnp.where(side.span_BT < 0, spans, side.span_BT)
  logprob_BT = jnp.where(side.span_BT < 0, 0, logprob_BT)
  log_BN = jax.vmap(lambda x_T, at_T: jax.ops.segment_sum(x_T, at_T, spans))(logprob_BT, span_BT)
  log_BN = jnp.minimum(log_BN, -SURE_NATS)
  return jnp.stack([log_BN, _log1mexp(log_BN)], axis=-1)


def _log1mexp(log_BN):
  """Returns log(1 - exp(x)) of x below 0, exact at either end."""
  near_BN = log_BN > -0.7
  # The branch that is not taken must have a finite gradient too.
  close = jnp.where(near_BN, log_BN, -0.7)
  far = jnp.where(near_BN, -0.7, log_BN)
  return jnp.where(near_BN, jnp.log(-jnp.expm1(close)), jnp.log1p(-jnp.exp(far)))
