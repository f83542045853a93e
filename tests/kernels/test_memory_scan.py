"""The memory scan: all forms against every gradient in full, in both passes, and the layer that uses them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.kernels.memory_scan import (
  PALLAS_PLATFORMS,
  Decay,
  ScanForm,
  chunked,
  memory_scan,
  pallas,
  reference,
)
from atlas_jax.memory.rules import titans
from tests.helpers import assert_close, quick_compilation, tiny_memory
from tests.kernels.lowering import lower
from tests.memory.layers import DOCUMENTS, packed


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


G, N, C = 3, 4, 4
FORMS = {"reference": reference.memory_scan, "chunked": chunked.memory_scan}


def decay_matrices(gate_GNC):
  """Product of the gates i+1..t at row t and column i; 0 above the diagonal."""
  size = gate_GNC.shape[-1]
  rows = [[np.prod(gate_GNC[..., i + 1 : t + 1], -1) * (i <= t) for i in range(size)] for t in range(size)]
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
  """All that a scan gives, and the gradients of a sum that weighs its outputs and last state differently."""
  first, reset_GN, state = given
  run = functools.partial(form_of_scan, chunk_size=chunk, form=form)

  def total(first, state):
    results = run(*first, reset_GN, *state)
    grad = lambda i, x: jnp.asarray(np.random.default_rng(i).normal(size=x.shape), x.dtype)
    return sum(jnp.sum(x * grad(i, x)) for i, x in enumerate(jax.tree.leaves(results[:3]))), results

  (_, results), grads = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(first, state)
  return results, grads


VARIANTS = {
  "titans": (dict(), ScanForm()),
  "bounded": (dict(), ScanForm("gelu", surprise_max=0.3)),
  "plain": (dict(momentum=False, value_dim=5), ScanForm("identity", residual=False)),
  "one": (dict(depth=1), ScanForm(surprise_max=0.5)),
  "delta": (dict(depth=1, momentum=False), ScanForm()),
}


@pytest.mark.core
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_dual_form_is_the_definition_in_both_passes(x64, variant):
  sizes, form = VARIANTS[variant]
  given = problem(**sizes)
  expected = both_passes(reference.memory_scan, given, form)
  assert_close(both_passes(chunked.memory_scan, given, form), expected)
  assert all(np.asarray(x).any() for x in jax.tree.leaves(expected))


KERNELS = {
  name: functools.partial(pallas.memory_scan, platform=name, interpret=True, group_chunks=2)
  for name in pallas.ROUTES
}


@pytest.mark.parametrize("variant", ["titans", "bounded", "plain", "delta"])
@pytest.mark.parametrize("route", KERNELS)
def test_the_kernel_equals_the_dual_form_in_both_passes(route, variant):
  sizes, form = VARIANTS[variant]
  given = problem(**sizes, dtype="float32")
  assert_close(both_passes(KERNELS[route], given, form), both_passes(chunked.memory_scan, given, form))


def test_groups_of_any_size_give_the_same(x64):
  given, form = problem(depth=1), ScanForm()
  by = lambda group_chunks: functools.partial(
    pallas.memory_scan, platform="tpu", interpret=True, group_chunks=group_chunks
  )
  assert_close(both_passes(by(1), given, form), both_passes(by(5), given, form))


def abstract(G, N, C, K, F, M, *, depth=2, momentum=True):
  """Shapes of a scan's arguments."""
  at = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  weights = [at(G, K, F), at(G, F, M)] if depth == 2 else [at(G, K, M)]
  more = (at(G, N * C), at(G, N), at(G, N, C)) if momentum else ((), (), ())
  decay = Decay(at(G, N * C), more[0], at(G, N, C, C), *more[1:])
  first = at(G, N * C, K), at(G, N * C, K), at(G, N * C, M), decay
  return first, jax.ShapeDtypeStruct((G, N), jnp.bool_), (weights, weights, weights if momentum else [])


@pytest.mark.parametrize("platform, route", [("cuda", "gpu"), ("tpu", "tpu")])
@pytest.mark.parametrize(
  "sizes, variant", [(dict(C=64, K=32, F=64, M=32), "bounded"), (dict(C=16, K=16, F=0, M=16), "delta")]
)
def test_both_passes_lower_without_the_device(platform, route, sizes, variant):
  options, form = VARIANTS[variant]
  given = abstract(2, 8, **sizes, **{name: x for name, x in options.items() if name in ("depth", "momentum")})
  run = lambda first, reset_GN, state: pallas.memory_scan(
    *first, reset_GN, *state, chunk_size=sizes["C"], form=form, platform=route
  )

  def grads(first, reset_GN, state):
    out, pull = jax.vjp(lambda first, state: run(first, reset_GN, state)[:3], first, state)
    return pull(out)

  assert "memory_scan_forward" in lower(run, *given, platform=platform)
  assert "memory_scan_backward" in lower(grads, *given, platform=platform)


def shapes_of(given, chunk, platform):
  """What the kernel of a platform would give."""
  run = lambda first, reset_GN, state: pallas.memory_scan(
    *first, reset_GN, *state, chunk_size=chunk, form=ScanForm(), platform=platform
  )
  return jax.eval_shape(run, *given)


def test_the_kernel_says_what_it_cannot_hold(x64):
  assert pallas.ROUTES.keys() == set(PALLAS_PLATFORMS)
  for change, platform, why in [
    (dict(C=12), "gpu", "chunks of 12 and widths of 16 x 16 x 16 are not all powers of two from 16 up"),
    (dict(F=512, K=64, M=64), "gpu", "take 1280 KiB on chip, and gpu has 227"),
    (dict(F=1024, K=256, M=256), "tpu", "KiB on chip, and tpu has 16384"),
    (dict(), "cpu", "no kernel for cpu, only for gpu and tpu"),
  ]:
    sizes = dict(G=1, N=2, C=16, K=16, F=16, M=16) | change
    with pytest.raises(ValueError, match=f"{why}.*impl='chunked' takes every shape"):
      shapes_of(abstract(**sizes), sizes["C"], platform)
  with pytest.raises(ValueError, match="works in float32, not in float64"):
    shapes_of(problem(), C, "gpu")


@pytest.mark.parametrize(
  "options, why",
  [
    (
      dict(impl="fused"),
      "supported are auto, reference and chunked on every platform, pallas on gpu and tpu",
    ),
    (dict(activation="relu"), "known are identity, silu, gelu"),
    (dict(surprise_max=0.0), "must be positive"),
    (dict(chunk_size=5), "16 tokens are not 4 chunks of 5"),
  ],
)
def test_wrong_calls_are_refused(options, why):
  first, reset_GN, state = problem(dtype="float32")
  with pytest.raises(ValueError, match=why):
    memory_scan(*first, reset_GN, *state, **{"chunk_size": C, **options})


@pytest.mark.parametrize("sizes, why", [(dict(value_dim=5), "one width"), (dict(depth=1), "got 0")])
def test_memories_of_other_forms_are_refused(sizes, why):
  first, reset_GN, (initial, fast, momentum) = problem(dtype="float32", **sizes)
  fast = [] if why == "got 0" else fast
  with pytest.raises(ValueError, match=why):
    memory_scan(*first, reset_GN, initial, fast, momentum, chunk_size=C)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there the kernel is supported")
def test_the_kernel_is_refused_by_name_where_there_is_none():
  first, reset_GN, state = problem(dtype="float32")
  with pytest.raises(ValueError, match="no impl='pallas' on cpu; supported are"):
    memory_scan(*first, reset_GN, *state, chunk_size=C, impl="pallas")


@pytest.mark.parametrize("impl", ["auto", "reference", "chunked"])
def test_the_package_gives_every_form(impl):
  first, reset_GN, state = problem(depth=1, dtype="float32")
  run = jax.jit(functools.partial(memory_scan, chunk_size=C), static_argnames="impl")
  expected = jax.jit(functools.partial(chunked.memory_scan, chunk_size=C, form=ScanForm()))
  assert_close(run(*first, reset_GN, *state, impl=impl), expected(*first, reset_GN, *state))


@pytest.mark.accelerator
@pytest.mark.parametrize("momentum", [True, False])
def test_the_kernel_runs_on_the_device(momentum):
  platform = jax.default_backend()
  sizes = dict(key_dim=32, hidden=32, value_dim=32, chunk=32, dtype="float32", momentum=momentum)
  given, form = problem(**sizes), ScanForm(surprise_max=1.0)
  run = functools.partial(pallas.memory_scan, platform=platform)
  assert_close(both_passes(run, given, form, 32), both_passes(chunked.memory_scan, given, form, 32))


# --- the layer ---


def make(*, fade_to="zero", surprise_max=None, **options):
  """Titans as a rule of this module's own, whose kernel is interpreted."""
  rule = titans.make(fade_to=fade_to, surprise_max=surprise_max, **options)
  form = ScanForm("silu", False)
  interpreted = lambda *arguments, impl, **sizes: KERNELS["tpu"](*arguments, form=form, **sizes)
  return rule._replace(kernel=functools.partial(rule.kernel, scan=interpreted))


def layer_passes(layer, params, x_BTD):
  """Output and last state of a packed row with documents and padding, and gradients of the parameters."""

  def total(params):
    out, state = packed(layer, params, x_BTD, jnp.asarray(DOCUMENTS))
    return jnp.sum(out * out[:, ::-1]), (out, state.running.memory)

  (_, results), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
  return results, grads


def test_every_form_gives_the_layer_the_same(x64):
  expected = None
  for impl, rule in (
    ("auto", "titans"),
    ("chunked", "titans"),
    ("reference", "titans"),
    ("pallas", __name__),
  ):
    options = {"fade_to": "zero", "surprise_max": None}
    layer, params, x_BTD = tiny_memory(rule, dtype="float64", impl=impl, options=options)
    results = layer_passes(layer, params, x_BTD)
    assert_close(results, expected or results, why=impl)
    expected = expected or results


def test_a_rule_without_a_kernel_or_an_unknown_form_is_refused():
  for fields in (
    dict(rule="omega", impl="pallas"),
    dict(rule="titans", impl="pallas"),  # Its weights fade to their start.
    dict(rule="titans", impl="pallas", options={"fade_to": "zero", "depth": 3}),
    dict(rule="titans", impl="pallas", options={"fade_to": "zero", "activation": "relu2"}),
  ):
    with pytest.raises(
      ValueError, match="impl='pallas' is not offered .* supported are auto, reference, chunked$"
    ):
      tiny_memory(**fields)
  with pytest.raises(ValueError, match="supported are auto, reference, chunked, pallas"):
    tiny_memory(impl="fast", options={"fade_to": "zero"})
