"""The memory scan: all forms against every gradient in full, in both passes, and the layer that uses them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.kernels.memory_scan import Decay, Form, chunked, memory_scan, reference
from tests.helpers import assert_close, quick_compilation


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


G, N, C = 3, 4, 4
FORMS = {"reference": reference.memory_scan, "chunked": chunked.memory_scan}


def decay_matrices(gate_GNC):
  """Product of the gates i+1..t at row t and column i; 0 above the diagonal."""
  size = gate_GNC.shape[-1]
  rows = [
    [np.prod(gate_GNC[..., i + 1 : t + 1], -1) * (i <= t) for i in range(size)] for t in range(size)
  ]
  return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def random_decay(draw, momentum, write_GNC):
  """The weights of random gates, by their definition."""
  shape = write_GNC.shape
  low, high = zip((0.7, 1.0), (0.2, 0.95), (0.05, 0.4))
  retain, keep, rate = np.moveaxis(draw.uniform(low, high, size=(*shape, 3)), -1, 0)
  retain, keep, rate = np.where(write_GNC, retain, 1), np.where(write_GNC, keep, 1), rate * write_GNC
  flat = lambda x: x.reshape(shape[0], -1)
  by_fast, fast = decay_matrices(retain), flat(np.cumprod(retain, -1))
  if not momentum:
    return Decay(fast, (), by_fast * rate[..., None, :], (), ())
  surprise, kept = decay_matrices(keep) * rate[..., None, :], np.cumprod(keep, -1)
  applied = by_fast * write_GNC[..., None, :]
  carried = flat((applied @ kept[..., None])[..., 0])
  return Decay(fast, carried, applied @ surprise, kept[..., -1], surprise[..., -1, :])


def problem(*, depth=2, momentum=True, key_dim=6, hidden=8, value_dim=6, chunk=C, dtype="float64", seed=0):
  """Memories with random weights and momentum, two resets and three padded tokens at a chunk's end."""
  draw = np.random.default_rng(seed)
  write_GNC = np.ones((G, N, chunk), bool)
  write_GNC[1, 1, -3:] = False
  widths = (key_dim, value_dim) if depth == 1 else (key_dim, hidden, value_dim)
  weights = lambda scale: [scale * draw.normal(size=(G, *pair)) for pair in zip(widths[:-1], widths[1:])]
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  q_GTK, k_GTK = unit(draw.normal(size=(2, G, N * chunk, key_dim)))
  v_GTM = draw.normal(size=(G, N * chunk, value_dim))
  arrays = (
    (q_GTK, k_GTK, v_GTM, random_decay(draw, momentum, write_GNC)),
    (weights(0.5), weights(0.4), weights(0.1) if momentum else []),
  )
  reset_GN = np.zeros((G, N), bool)
  reset_GN[0, 2] = reset_GN[1, 0] = True
  (q, k, v, decay), state = jax.tree.map(lambda x: jnp.asarray(x, dtype), arrays)
  return (q, k, v, decay), jnp.asarray(reset_GN), state


def both_passes(form_of_scan, given, form, chunk=C):
  """All that a scan gives, and the slopes of a sum that weighs its outputs and last state differently."""
  first, reset_GN, state = given
  run = functools.partial(form_of_scan, chunk_size=chunk, form=form)

  def total(first, state):
    results = run(*first, reset_GN, *state)
    slopes = [np.random.default_rng(i).normal(size=x.shape) for i, x in enumerate(jax.tree.leaves(results[:3]))]
    terms = zip(jax.tree.leaves(results[:3]), slopes, strict=True)
    return sum(jnp.sum(x * jnp.asarray(s, x.dtype)) for x, s in terms), results

  (_, results), slopes = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(first, state)
  return results, slopes


VARIANTS = {
  "titans": (dict(), Form()),
  "bounded": (dict(), Form("gelu", surprise_max=0.3)),
  "plain": (dict(momentum=False, value_dim=5), Form("identity", residual=False)),
  "one": (dict(depth=1), Form(surprise_max=0.5)),
  "delta": (dict(depth=1, momentum=False), Form()),
}


@pytest.mark.core
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_dual_form_is_the_definition_in_both_passes(x64, variant):
  sizes, form = VARIANTS[variant]
  given = problem(**sizes)
  expected = both_passes(reference.memory_scan, given, form)
  assert_close(both_passes(chunked.memory_scan, given, form), expected)
  assert all(np.asarray(x).any() for x in jax.tree.leaves(expected))
