"""Losses over spans of text against loops in float64, and where two models say the same of a text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.losses.spans import Side, span_loss
from atlas_jax.optim import accumulate
from atlas_jax.recipes import LossOut
from tests.helpers import assert_close, assert_grads

BETAS = (0.0, 0.3, 1.0)
CLASSES = 4
# Two rows: spans of 1:1, 2:1 and 2:3 ids, ids of none at the end; and one span of 1:2, then nothing.
STUDENT_SPANS = [[0, 1, 1, 2, 2, -1], [0, -1, -1, -1, -1, -1]]
TEACHER_SPANS = [[0, 1, 2, 2, 2, -1, -1], [0, 0, -1, -1, -1, -1, -1]]
SINGLE_BN, MASK_BN = np.array([[1, 0, 0], [0, 0, 0]], bool), np.array([[1, 1, 1], [1, 0, 0]], bool)
FIRST = [[0, 1, 3], [0, 0, 0]], [[0, 1, 2], [0, 0, 0]]


def divergence(student, teacher, beta):
  """The published divergence of two distributions, by a loop."""
  kl = lambda p, q: sum(a * np.log(a / b) for a, b in zip(p, q))
  if beta in (0, 1):
    return kl(teacher, student) if beta == 0 else kl(student, teacher)
  middle = [beta * p + (1 - beta) * s for s, p in zip(student, teacher)]
  return beta * kl(teacher, middle) + (1 - beta) * kl(student, middle)


def softmax(logits):
  exps = np.exp(logits - logits.max())
  return exps / exps.sum()


def by_loops(sides, temperature, beta):
  """Nats of every span that counts, from the definition."""
  nats_BN = np.zeros(MASK_BN.shape)
  for row, number in zip(*np.nonzero(MASK_BN)):
    views, wholes = [], []
    for side in sides:
      hidden, head, tokens, span, first, class_V = (np.asarray(x) for x in side)
      logits = lambda at: (hidden[row, at] @ head)[: len(class_V)] / temperature  # noqa: B023  Used at once.
      begin = logits(first[row, number])
      named = softmax(begin[class_V >= 0])
      views.append([named[class_V[class_V >= 0] == one].sum() for one in range(CLASSES)])
      here = [softmax(logits(at))[tokens[row, at]] for at in np.flatnonzero(span[row] == number)]
      wholes.append([np.prod(here), 1 - np.prod(here)])
    nats_BN[row, number] = divergence(*views, beta)
    if not SINGLE_BN[row, number]:
      nats_BN[row, number] += divergence(*wholes, beta)
  return nats_BN


def sides(dtype="float64"):
  """Two models of other widths and vocabularies, the heads with a row of padding each."""
  draw = np.random.default_rng(0)
  found = []
  for spans, first, width, class_V in zip((STUDENT_SPANS, TEACHER_SPANS), FIRST, (3, 5),
                                          ([2, 0, 1, 3, -1, 1], [0, 0, 3, 2, 1])):  # fmt: skip
    tokens = draw.integers(0, len(class_V), np.shape(spans))
    found.append(Side(
        jnp.asarray(draw.normal(size=(*np.shape(spans), width)), dtype),
        jnp.asarray(draw.normal(size=(width, len(class_V) + 1)), dtype),
        *(jnp.asarray(x, jnp.int32) for x in (tokens, spans, first, class_V))))  # fmt: skip
  return found


@functools.cache
def compiled(beta, temperature=1.0, block_tokens=None):
  """Loss, its weight and nats, and the gradients into both models' hidden vectors and heads."""

  def loss(arrays, student, teacher):
    each = [side._replace(hidden_BTD=one[0], head_DV=one[1])
            for side, one in zip((student, teacher), arrays)]  # fmt: skip
    mean, *more = span_loss(*each, jnp.asarray(SINGLE_BN), jnp.asarray(MASK_BN), classes=CLASSES, beta=beta,
                            temperature=temperature, block_tokens=block_tokens)  # fmt: skip
    return mean, more

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def arrays_of(sides):
  return tuple((side.hidden_BTD, side.head_DV) for side in sides)


@pytest.mark.parametrize("beta", BETAS)
def test_nats_are_those_of_loops_and_the_gradient_is_their_s(x64, beta):
  found, temperature = sides(), 0.7
  function = compiled(beta, temperature)
  (loss, (weight, nats_BN)), grads = function(arrays_of(found), *found)
  expected_BN = by_loops(found, temperature, beta)
  assert_close((loss, nats_BN), (expected_BN.sum() / 4, expected_BN), tolerance=1e-9)
  assert float(weight) == 4
  value = lambda student: function((student, arrays_of(found)[1]), *found)[0][0]
  assert_grads(value, arrays_of(found)[0], grads[0])
  assert not any(np.asarray(x).any() for x in grads[1])  # The teacher has none.


def test_blocks_change_no_value_and_no_gradient():
  found = sides("float32")
  whole, blocks = (compiled(0.3, 1.0, block)(arrays_of(found), *found) for block in (None, 4))
  assert_close(blocks, whole, tolerance=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_the_student_with_its_ids_renumbered_gives_no_loss_and_no_gradient(beta):
  draw = np.random.default_rng(1)
  hidden_BTD = jnp.asarray(draw.normal(size=(2, 5, 3)), jnp.float32)
  head_DV, new_V = jnp.asarray(3 * draw.normal(size=(3, 7)), jnp.float32), draw.permutation(7)
  tokens_BT, span_BT = draw.integers(0, 7, (2, 5)), np.array([[0, 1, 1, 2, -1]] * 2)
  first_BN = jnp.asarray([[0, 1, 3]] * 2, jnp.int32)
  ids = lambda x: jnp.asarray(x, jnp.int32)
  student = Side(hidden_BTD, head_DV, ids(tokens_BT), ids(span_BT), first_BN, jnp.arange(7, dtype=jnp.int32))
  teacher = student._replace(head_DV=head_DV[:, np.argsort(new_V)], tokens_BT=ids(new_V[tokens_BT]),
                             class_V=ids(np.argsort(new_V)))  # fmt: skip
  single_BN, mask_BN = jnp.asarray([[True, False, True]] * 2), jnp.ones((2, 3), bool)

  def loss(hidden_BTD):
    given = student._replace(hidden_BTD=hidden_BTD), teacher, single_BN, mask_BN
    return span_loss(*given, classes=7, beta=beta)[0]

  value, grad = jax.value_and_grad(loss)(hidden_BTD)
  assert_close((value, grad), (np.float32(0), np.zeros_like(grad)), tolerance=2e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_models_of_one_distribution_over_texts_are_not_apart(beta):
  # Letters a and b, each as likely as the other, one by one; and in ids a, b, ab that take the longest.
  # The text abba: a, b, b, a and ab, b, a.
  rows = lambda *probs: jnp.log(jnp.asarray(probs, jnp.float32))[None]
  ids = lambda *x: jnp.asarray([x], jnp.int32)
  eye = lambda n: jnp.eye(n, dtype=jnp.float32)
  student = Side(rows(*[[0.5, 0.5]] * 4), eye(2), ids(0, 1, 1, 0), ids(0, 0, 1, 2), ids(0, 2, 3),
                 jnp.asarray([0, 1], jnp.int32))  # fmt: skip
  teacher = Side(rows(*[[0.25, 0.5, 0.25]] * 3), eye(3), ids(2, 1, 0), ids(0, 1, 2), ids(0, 1, 2),
                 jnp.asarray([0, 1, 0], jnp.int32))  # fmt: skip
  single_BN, mask_BN = jnp.asarray([[False, True, True]]), jnp.ones((1, 3), bool)
  loss, weight, _ = span_loss(student, teacher, single_BN, mask_BN, classes=2, beta=beta)
  assert float(weight) == 3
  assert_close(loss, np.float32(0), tolerance=1e-6)


def test_a_student_sure_of_a_span_has_a_finite_gradient():
  found = sides("float32")
  student = found[0]._replace(head_DV=100 * found[0].head_DV)
  (loss, _), grads = compiled(0.0)(arrays_of([student, found[1]]), student, found[1])
  assert np.isfinite(float(loss))
  assert all(np.isfinite(np.asarray(x)).all() for x in grads[0])


def test_ids_beyond_the_vocabulary_have_no_say_and_no_gradient():
  student, teacher = sides("float32")
  wild = lambda side: side._replace(tokens_BT=np.where(side.span_BT < 0, 10**6, side.tokens_BT))
  loss = lambda x_BTD, student, teacher: span_loss(
    student._replace(hidden_BTD=x_BTD), teacher, SINGLE_BN, MASK_BN, classes=CLASSES, beta=0.5)[0]
  tame = jax.value_and_grad(loss)(student.hidden_BTD, student, teacher)
  assert_close(jax.value_and_grad(loss)(student.hidden_BTD, wild(student), wild(teacher)), tame)


def test_pieces_of_a_batch_weighed_by_their_spans_are_the_whole():
  student, teacher = sides("float32")
  per_row = [[one.hidden_BTD, one.tokens_BT, one.span_BT, one.first_BN] for one in (student, teacher)]
  batch = {"sides": per_row, "single": jnp.asarray(SINGLE_BN), "mask": jnp.asarray(MASK_BN)}

  def loss(params, batch, *, frozen, carry, rng):
    each = [Side(hidden, head, *rest, side.class_V) for (hidden, *rest), head, side
            in zip(batch["sides"], (params, frozen), (student, teacher))]  # fmt: skip
    mean, weight, _ = span_loss(*each, batch["single"], batch["mask"], classes=CLASSES, beta=0.5)
    return LossOut(mean, weight, (), {})

  more = dict(frozen=teacher.head_DV, rng=jax.random.key(0))
  found = lambda parts: accumulate.gradients(loss, student.head_DV, batch, (), **more, parts=parts)
  assert_close(found(2), found(1), tolerance=1e-6)


def test_a_mask_without_spans_gives_zero():
  student, teacher = sides("float32")
  loss = lambda head: span_loss(student._replace(head_DV=head), teacher, jnp.asarray(SINGLE_BN),
                                jnp.zeros_like(MASK_BN), classes=CLASSES, beta=0.5)[0]  # fmt: skip
  value, grad = jax.value_and_grad(loss)(student.head_DV)
  assert float(value) == 0
  assert not np.asarray(grad).any()


def test_a_wrong_setting_is_named():
  with pytest.raises(ValueError, match="config.distill.temperature=0.0 is not above 0"):
    span_loss(*sides("float32"), jnp.asarray(SINGLE_BN), jnp.asarray(MASK_BN), classes=CLASSES, beta=0.5,
              temperature=0.0)  # fmt: skip
