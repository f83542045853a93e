"""Memory gain: each ablation equals its computation by hand, and touches nothing but the memory."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.evals import bootstrap, memory_gain
from atlas_jax.memory.layer import NO_DOC
from atlas_jax.models import lm
from atlas_jax.parallel import mesh as meshes
from atlas_jax.parallel import place
from tests.evals.documents import Documents, lm_and_params, nats, random_documents
from tests.helpers import assert_close

LENGTHS = (70, 5, 9, 61, 30, 44)
NAMES = ("reset", "swapped", "gate_zero")


def source():
  return Documents(random_documents(LENGTHS), rows=4, segment_len=12)


def one_device():
  return meshes.make(devices=jax.devices()[:1])


@functools.lru_cache
def measure():
  """The eval's run on one device; kept, so that it compiles once."""
  return memory_gain.make(lm_and_params()[0], source, one_device())


@jax.jit
def swap_by_hand(state):
  return with_running(state, jax.tree.map(lambda x: x[np.array([3, 0, 1, 2])], state.memory.running))


@jax.jit
def nothing_read():
  return lm_and_params()[0].zero_state(4)


@jax.jit
def read(params, batch, state, memory_scale=1.0):
  out = lm_and_params()[0].apply({"params": params}, batch["tokens_BT"], state, doc_BT=batch["doc_BT"],
                                 memory_scale=memory_scale, mode="packed")
  return lm.logits(params, out.hidden_BTD), out.state


def with_running(state, running):
  return state._replace(memory=state.memory._replace(running=running))


@jax.jit
def reset_by_hand(params, state):
  """Fast weights and base of every row as the parameters start them, momentum zero."""
  learned = params["blocks"]["memory"]["initial_fast"]
  same = jax.tree.map(lambda w: jnp.stack([w] * 4), learned)
  running = state.memory.running
  memory = running.memory._replace(fast=same, momentum=jax.tree.map(jnp.zeros_like, same))
  return with_running(state, running._replace(memory=memory, base=same))


def by_hand(params):
  """Gains and tokens as the docstring of the eval says them, segment by segment, in float64."""
  text = source()
  state, gains, tokens = nothing_read(), dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, 0)
  while True:
    try:
      batch = text.next(None)
    except StopIteration:
      return {name: gains[name] / tokens[name] for name in NAMES}, tokens
    last_B = np.asarray(state.doc_B)
    logits_BTV, after = read(params, batch, state)
    full_BT = nats(logits_BTV, batch["targets_BT"])
    others = dict(reset=(reset_by_hand(params, state), 1.0), swapped=(swap_by_hand(state), 1.0),
                  gate_zero=(state, 0.0))
    for name, variant in others.items():
      counted_BT = (batch["weight_BT"] > 0) & (batch["doc_BT"] == last_B[:, None])
      if name == "swapped":
        counted_BT &= (last_B[[3, 0, 1, 2]] != NO_DOC)[:, None]
      gains[name] += (nats(read(params, batch, *variant)[0], batch["targets_BT"]) - full_BT)[counted_BT].sum()
      tokens[name] += int(counted_BT.sum())
    state = after


def documents_by_hand(params):
  """What memory spares in every document that goes on into a second segment, and on how many tokens."""
  text, state, found = source(), nothing_read(), {}
  while True:
    try:
      batch = text.next(None)
    except StopIteration:
      return list(found.values())
    last_B = np.asarray(state.doc_B)
    logits_BTV, after = read(params, batch, state)
    reset = read(params, batch, reset_by_hand(params, state))[0]
    apart_BT = nats(reset, batch["targets_BT"]) - nats(logits_BTV, batch["targets_BT"])
    for row in range(4):
      counted_T = (batch["weight_BT"][row] > 0) & (batch["doc_BT"][row] == last_B[row])
      if counted_T.any():
        total, count = found.get((row, last_B[row]), (0.0, 0))
        found[row, last_B[row]] = total + apart_BT[row][counted_T].sum(), count + counted_T.sum()
    state = after


def gains_of(scalars):
  return [scalars[f"eval/memory_gain_{name}_nats"] for name in NAMES]


def test_each_gain_equals_its_computation_by_hand():
  params = lm_and_params()[1]
  scalars = measure()(params, step=3).scalars
  gains, tokens = by_hand(params)
  assert all(abs(gain) > 1e-4 for gain in gains.values()), "the ablations must change something"
  np.testing.assert_allclose(gains_of(scalars), list(gains.values()), rtol=1e-3, atol=1e-6)
  assert scalars["eval/memory_gain_tokens"] == tokens["reset"]
  assert scalars["eval/memory_gain_swapped_tokens"] == tokens["swapped"]


def test_an_interval_is_over_documents_whatever_their_segments():
  params = lm_and_params()[1]
  scalars, documents = measure()(params, step=3).scalars, documents_by_hand(params)
  assert scalars["eval/memory_gain_documents"] == len(documents) > 4
  assert scalars["eval/memory_gain_documents"] >= scalars["eval/memory_gain_swapped_documents"] > 1
  expected = bootstrap.interval_of_mean(*np.array(documents).T)
  metric = "eval/memory_gain_reset_nats"
  ends = [scalars[f"{metric}_low"], scalars[f"{metric}_high"]]
  np.testing.assert_allclose(ends, expected, rtol=1e-3, atol=1e-6)
  for name in NAMES:
    low, mean, high = (scalars[f"eval/memory_gain_{name}_nats{end}"] for end in ("_low", "", "_high"))
    assert low < mean < high


def test_one_document_alone_has_a_gain_without_an_interval_and_it_is_said():
  model, params = lm_and_params()
  lone = lambda: Documents(random_documents((8, 8, 8, 20)), rows=2, segment_len=12)
  out = memory_gain.make(model, lone, one_device())(params, step=0)
  assert out.scalars["eval/memory_gain_documents"] == 1
  assert "eval/memory_gain_reset_nats" in out.scalars
  assert not any(name.endswith(("_low", "_high")) for name in out.scalars)
  assert "measured on one document alone" in out.text


def test_a_memory_that_adds_nothing_gains_nothing():
  params = lm_and_params()[1]
  silent = {**params, "blocks": {**params["blocks"], "memory_out": {
      "kernel": jnp.zeros_like(params["blocks"]["memory_out"]["kernel"])}}}
  assert gains_of(measure()(silent, step=3).scalars) == [0.0, 0.0, 0.0]


def test_reset_equals_forgetting_the_document_but_for_the_convolutions():
  model, params = lm_and_params()
  lone = dict(params["blocks"]["memory"])
  lone["conv_kernel"] = lone["conv_kernel"].at[:, :-1].set(0)  # Convolutions that see no token before.
  lone = {**params, "blocks": {**params["blocks"], "memory": lone}}
  text = source()
  first, second = text.next(None), text.next(None)
  _, state = read(lone, first, nothing_read())
  forgot, _ = read(lone, second, state._replace(doc_B=jnp.full(4, NO_DOC, jnp.int32)))
  reset, _ = read(lone, second, memory_gain.fresh_memory(model, lone, state))
  assert_close(reset, forgot)


def test_reset_keeps_the_window_of_attention():
  model, params = lm_and_params()
  text = source()
  first, second = text.next(None), text.next(None)
  _, state = read(params, first, nothing_read())
  reset = memory_gain.fresh_memory(model, params, state)
  cut, _ = read(params, second, reset._replace(attention=nothing_read().attention))
  assert np.abs(np.asarray(cut - read(params, second, reset)[0]))[:, 0].max() > 1e-3


def test_eight_devices_give_what_one_gives():
  model, params = lm_and_params()
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  split = jax.device_put(params, place.shardings(mesh, params))
  eight = memory_gain.make(model, source, mesh)(split, step=0).scalars
  one = measure()(params, step=0).scalars
  np.testing.assert_allclose(gains_of(eight), gains_of(one), rtol=1e-3, atol=1e-6)


def test_text_without_a_second_segment_has_no_gain_and_says_so():
  model, params = lm_and_params()
  short = lambda: Documents(random_documents((9, 11, 8, 10, 11, 11, 10, 8)), rows=4, segment_len=12)
  out = memory_gain.make(model, short, one_device())(params, step=0)
  assert out.scalars == {f"eval/memory_gain_{name}": 0 for name in (
      "tokens", "documents", "swapped_tokens", "swapped_documents")}
  assert "lower config.data.segment_len" in out.text


def test_what_cannot_be_measured_is_refused():
  model, params = lm_and_params()
  with pytest.raises(ValueError, match="memory_mix='none'"):
    memory_gain.make(model.clone(memory_mix="none"), source, one_device())
  lonely = lambda: Documents(random_documents(LENGTHS), rows=1, segment_len=12)
  with pytest.raises(ValueError, match="batch_rows=1"):
    memory_gain.make(model, lonely, one_device())(params, step=0)
