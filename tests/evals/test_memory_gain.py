"""Memory gain: each ablation equals its computation by hand, and touches nothing but the memory."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.evals import bootstrap, memory_gain
from atlas_jax.memory.layer import NO_DOC
from atlas_jax.models import head, memories, placement
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Trained
from tests.evals.documents import Documents, lm_and_params, nats, random_documents
from tests.helpers import assert_close

LENGTHS = (170, 5, 9, 61, 30, 44)
NAMES = ("emptied", "swapped", "writes_off", "gate_zero")
BY_POSITION = NAMES[:3]


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


@functools.partial(jax.jit, static_argnames="silent")
def read(params, batch, state, memory_scale=1.0, silent=False):
  """Reads with the model; `silent`, with one whose writes weigh nearly nothing, and fade nothing."""
  model = lm_and_params()[0]
  if silent:
    params = silenced(params)
    model = model.clone(memory={**model.memory, "write_rate_max": 1e-30, "write_rate_init": 1e-31})
  out = model.apply({"params": params}, batch["tokens_BT"], state, doc_BT=batch["doc_BT"],
                    memory_scale=memory_scale, mode="packed")
  return head.logits(params, out.hidden_BTD), out.state


def silenced(params):
  """Retention gates of 1: their bias far below zero, in the order log_retention, log_momentum, write_rate."""
  gates = params["blocks"]["memory"]["gates"]
  bias = gates["bias"].at[:, :gates["bias"].shape[1] // 3].set(-1e4)
  memory = {**params["blocks"]["memory"], "gates": {**gates, "bias": bias}}
  return {**params, "blocks": {**params["blocks"], "memory": memory}}


def with_running(state, running):
  return state._replace(memory=state.memory._replace(running=running))


@functools.partial(jax.jit, static_argnames="factor")
def start_by_hand(params, state, factor):
  """Fast weights and base of every row as the parameters start them (or zero), momentum zero."""
  learned = params["blocks"]["memory"]["initial_fast"]
  same = jax.tree.map(lambda w: factor * jnp.stack([w] * 4), learned)
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
    others = dict(emptied=(start_by_hand(params, state, 0.0), 1.0, True), swapped=(swap_by_hand(state), 1.0),
                  writes_off=(start_by_hand(params, state, 1.0), 1.0, True), gate_zero=(state, 0.0))
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
    emptied = read(params, batch, start_by_hand(params, state, 0.0), silent=True)[0]
    apart_BT = nats(emptied, batch["targets_BT"]) - nats(logits_BTV, batch["targets_BT"])
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
  scalars = measure()(Trained(params), step=3).scalars
  gains, tokens = by_hand(params)
  assert all(abs(gain) > 1e-4 for gain in gains.values()), "the ablations must change something"
  np.testing.assert_allclose(gains_of(scalars), list(gains.values()), rtol=1e-3, atol=1e-6)
  assert scalars["eval/memory_gain_tokens"] == tokens["emptied"]
  assert scalars["eval/memory_gain_swapped_tokens"] == tokens["swapped"]


def test_an_interval_is_over_documents_whatever_their_segments():
  params = lm_and_params()[1]
  scalars, documents = measure()(Trained(params), step=3).scalars, documents_by_hand(params)
  assert scalars["eval/memory_gain_documents"] == len(documents) > 4
  assert scalars["eval/memory_gain_documents"] >= scalars["eval/memory_gain_swapped_documents"] > 1
  expected = bootstrap.interval_of_mean(*np.array(documents).T)
  metric = "eval/memory_gain_emptied_nats"
  ends = [scalars[f"{metric}_low"], scalars[f"{metric}_high"]]
  np.testing.assert_allclose(ends, expected, rtol=1e-3, atol=1e-6)
  for name in NAMES:
    low, mean, high = (scalars[f"eval/memory_gain_{name}_nats{end}"] for end in ("_low", "", "_high"))
    assert low < mean < high


def test_one_document_alone_has_a_gain_without_an_interval_and_it_is_said():
  model, params = lm_and_params()
  lone = lambda: Documents(random_documents((8, 8, 8, 20)), rows=2, segment_len=12)
  out = memory_gain.make(model, lone, one_device())(Trained(params), step=0)
  assert out.scalars["eval/memory_gain_documents"] == 1
  assert "eval/memory_gain_emptied_nats" in out.scalars
  assert any(name.startswith("eval/memory_gain_emptied_nats_by_position/") for name in out.scalars)
  assert not any(name.endswith(("_low", "_high")) for name in out.scalars)
  assert "measured on one document alone" in out.text


def test_a_memory_that_adds_nothing_gains_nothing():
  params = lm_and_params()[1]
  silent = {**params, "blocks": {**params["blocks"], "memory_out": {
      "kernel": jnp.zeros_like(params["blocks"]["memory_out"]["kernel"])}}}
  assert gains_of(measure()(Trained(silent), step=3).scalars) == [0.0] * len(NAMES)


def test_a_start_equals_forgetting_the_document_but_for_the_convolutions():
  model, params = lm_and_params()
  lone = dict(params["blocks"]["memory"])
  lone["conv_kernel"] = lone["conv_kernel"].at[:, :-1].set(0)  # Convolutions that see no token before.
  lone = {**params, "blocks": {**params["blocks"], "memory": lone}}
  text = source()
  first, second = text.next(None), text.next(None)
  _, state = read(lone, first, nothing_read())
  forgot, _ = read(lone, second, state._replace(doc_B=jnp.full(4, NO_DOC, jnp.int32)))
  fresh, _ = read(lone, second, memories.started(model, memories.learned_memory(model, lone), state))
  assert_close(fresh, forgot)


def test_a_start_keeps_the_window_of_attention():
  model, params = lm_and_params()
  text = source()
  first, second = text.next(None), text.next(None)
  _, state = read(params, first, nothing_read())
  fresh = memories.started(model, memories.learned_memory(model, params), state)
  cut, _ = read(params, second, fresh._replace(attention=nothing_read().attention))
  assert np.abs(np.asarray(cut - read(params, second, fresh)[0]))[:, 0].max() > 1e-3


def test_positions_add_up_to_the_whole():
  scalars = measure()(Trained(lm_and_params()[1]), step=3).scalars
  for name in BY_POSITION:
    kind = "memory_gain_swapped" if name == "swapped" else "memory_gain"
    start, tokens = f"eval/memory_gain_{name}_nats_by_position/", f"eval/{kind}_tokens_by_position/"
    buckets = [key.removeprefix(tokens) for key in scalars if key.startswith(tokens)]
    assert len(buckets) == 2  # Documents have between 5 and 170 tokens.
    total = sum(scalars[tokens + bucket] for bucket in buckets)
    nats = sum(scalars[start + bucket] * scalars[tokens + bucket] for bucket in buckets)
    assert total == scalars[f"eval/{kind}_tokens"]
    np.testing.assert_allclose(nats / total, scalars[f"eval/memory_gain_{name}_nats"], rtol=1e-6)
    loss = [scalars[f"eval/{kind}_loss_nats_by_position/{bucket}"] for bucket in buckets]
    weighed = sum(one * scalars[tokens + bucket] for one, bucket in zip(loss, buckets)) / total
    np.testing.assert_allclose(weighed, scalars[f"eval/{kind}_loss_nats"], rtol=1e-6)


def test_a_bucket_has_the_interval_of_the_documents_that_reach_it():
  one = np.array([[3.0, 0.0], [1.0, 4.0], [2.0, 2.0]])
  tokens = np.array([[10.0, 0.0], [10.0, 5.0], [4.0, 8.0]])
  pad = lambda x: np.pad(x, ((0, 0), (0, 11)))
  gains = dict.fromkeys(("emptied", "writes_off", "gate_zero"), pad(one))
  whole = memory_gain.Documents(pad(tokens), pad(2 * tokens), gains)
  swapped = memory_gain.Documents(pad(tokens[:1]), pad(tokens[:1]), {"swapped": pad(one[:1])})
  scalars = memory_gain.result(whole, swapped).scalars
  second = "eval/memory_gain_emptied_nats_by_position/000064-000127"
  low, high = bootstrap.interval_of_mean([4.0, 2.0], [5.0, 8.0])
  assert [scalars[second + end] for end in ("", "_low", "_high")] == [6 / 13, low, high]
  assert scalars["eval/memory_gain_swapped_nats"] == 0.3
  assert "eval/memory_gain_swapped_nats_low" not in scalars
  assert "eval/memory_gain_emptied_nats_by_position/000128-000255" not in scalars
  assert not any(name.startswith("eval/memory_gain_gate_zero_nats_by") for name in scalars)


def test_eight_devices_give_what_one_gives():
  model, params = lm_and_params()
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  split = jax.device_put(params, placement.shardings(mesh, params))
  eight = memory_gain.make(model, source, mesh)(Trained(split), step=0).scalars
  one = measure()(Trained(params), step=0).scalars
  np.testing.assert_allclose(gains_of(eight), gains_of(one), rtol=1e-3, atol=1e-6)


def test_text_without_a_second_segment_has_no_gain_and_says_so():
  model, params = lm_and_params()
  short = lambda: Documents(random_documents((9, 11, 8, 10, 11, 11, 10, 8)), rows=4, segment_len=12)
  out = memory_gain.make(model, short, one_device())(Trained(params), step=0)
  assert out.scalars == {f"eval/memory_gain_{name}": 0.0 for name in (
      "tokens", "documents", "swapped_tokens", "swapped_documents")}
  assert "lower config.data.segment_len" in out.text


def test_what_cannot_be_measured_is_refused():
  model, params = lm_and_params()
  with pytest.raises(ValueError, match="memory_mix='none'"):
    memory_gain.make(model.clone(memory_mix="none"), source, one_device())
  lonely = lambda: Documents(random_documents(LENGTHS), rows=1, segment_len=12)
  with pytest.raises(ValueError, match="batch_rows=1"):
    memory_gain.make(model, lonely, one_device())(Trained(params), step=0)
