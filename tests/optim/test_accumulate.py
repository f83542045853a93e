"""Gradients in pieces against those of the whole batch."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.optim import accumulate
from atlas_jax.recipes import LossOut
from tests.helpers import assert_close, assert_same_bits

B, T, D = 8, 3, 5


def loss(params, batch, *, frozen, carry, rng):
  del rng
  error_BT = jnp.tanh(batch["x_BTD"] @ params["w"]) + carry["past_BD"] @ frozen @ params["w"][:, None]
  weight = jnp.sum(batch["weight_BT"])
  mean = jnp.sum(batch["weight_BT"] * error_BT**2) / jnp.maximum(weight, 1)
  return LossOut(mean, weight, {"past_BD": carry["past_BD"] + batch["x_BTD"][:, -1]}, {"twice": 2 * mean})


def problem(weight_BT):
  draw = np.random.default_rng(3)
  normal = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)
  batch = {"x_BTD": normal(B, T, D), "weight_BT": jnp.asarray(weight_BT, jnp.float32)}
  return {"w": normal(D)}, batch, {"past_BD": normal(B, D)}, normal(D, D)


def found(parts, weight_BT):
  params, batch, carry, frozen = problem(weight_BT)
  compiled = jax.jit(accumulate.gradients, static_argnames=("loss", "parts"))
  return compiled(loss, params, batch, carry, frozen=frozen, rng=jax.random.key(0), parts=parts)


EQUAL = np.ones((B, T))
UNEQUAL = np.arange(B * T).reshape(B, T) % 7 < np.arange(B)[:, None]  # The first row counts no token at all.


@pytest.mark.parametrize("weight_BT", (EQUAL, UNEQUAL), ids=("equal", "unequal"))
@pytest.mark.parametrize("parts", (2, 4, 8))
def test_pieces_give_what_the_whole_batch_gives(parts, weight_BT):
  whole, pieces = found(1, weight_BT), found(parts, weight_BT)
  assert_close(pieces, whole, tolerance=1e-5)
  assert_same_bits(pieces[1].carry, whole[1].carry)  # In the order of the rows.
  assert_close(pieces[1].metrics["twice"], 2 * whole[1].loss)
  assert float(whole[1].weight) == weight_BT.sum()


def test_one_piece_is_the_plain_gradient():
  params, batch, carry, frozen = problem(UNEQUAL)
  mean = lambda params: loss(params, batch, frozen=frozen, carry=carry, rng=None).loss
  (grads, _), out = found(1, UNEQUAL)
  assert_close(grads, jax.grad(mean)(params))
  assert_close(out.loss, mean(params))


def test_a_batch_without_counted_tokens_gives_zeros():
  (grads, _), out = found(2, np.zeros((B, T)))
  assert_same_bits(grads, {"w": np.zeros(D, np.float32)})
  assert float(out.loss) == float(out.weight) == 0.0


def test_every_piece_has_a_key_of_its_own():
  def noisy(params, batch, *, frozen, carry, rng):
    noise_B = jax.random.normal(rng, (batch["x_BTD"].shape[0],))
    return LossOut(jnp.sum(params["w"] ** 2), jnp.ones(()), noise_B, {})

  params, batch, _, _ = problem(EQUAL)
  carry = jnp.zeros((B,))
  _, out = accumulate.gradients(noisy, params, batch, carry, frozen=(), rng=jax.random.key(0), parts=4)
  assert len(np.unique(out.carry)) == B


def test_rows_of_tables_get_gradients_in_their_order():
  params, batch, carry, frozen = problem(UNEQUAL)
  rows_BD = jnp.asarray(np.random.default_rng(4).normal(size=(B, D)), jnp.float32)

  def with_rows(params, batch, *, frozen, carry, rng, rows):
    batch = {**batch, "x_BTD": batch["x_BTD"] + rows[:, None]}
    return loss(params, batch, frozen=frozen, carry=carry, rng=rng)

  given = dict(frozen=frozen, rng=jax.random.key(0), rows=rows_BD)
  both = [accumulate.gradients(with_rows, params, batch, carry, parts=parts, **given)[0] for parts in (1, 4)]
  assert both[0][1].shape == (B, D)
  assert float(jnp.abs(both[0][1]).min()) == 0  # The first row counts no token.
  assert_close(both[1], both[0], tolerance=1e-5)
