"""Perplexity of held-out text: streamed by segments equals one long pass, on one device and on eight."""
import functools
import math

import jax
import numpy as np
import pytest

from atlas_jax.evals import perplexity
from atlas_jax.models import head, placement
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Trained
from tests.evals.documents import Documents, joined, lm_and_params, nats, random_documents

LENGTHS = (150, 30, 7, 141, 3)


def source(**fields):
  return Documents(random_documents(LENGTHS), **(dict(rows=4, segment_len=24) | fields))


@functools.lru_cache
def measure(devices=1, **mesh):
  """The eval's run on a mesh; kept, so that it compiles once."""
  model, _ = lm_and_params()
  return perplexity.make(model, source, meshes.make(**mesh, devices=jax.devices()[:devices]))


@functools.lru_cache
def long_pass():
  """The whole held-out text as one segment: the batch, and nats of every target."""
  model, params = lm_and_params()
  batch = joined(source())

  @jax.jit
  def read(tokens_BT, doc_BT):
    out = model.apply({"params": params}, tokens_BT, model.zero_state(4), doc_BT=doc_BT, mode="packed")
    return head.logits(params, out.hidden_BTD)

  return batch, nats(read(batch["tokens_BT"], batch["doc_BT"]), batch["targets_BT"])


def test_streaming_equals_one_long_pass():
  batch, nll_BT = long_pass()
  counted_BT = batch["weight_BT"] > 0
  scalars = measure()(Trained(lm_and_params()[1]), step=7).scalars
  loss = nll_BT[counted_BT].mean()
  bits = nll_BT[counted_BT].sum() / math.log(2) / batch["bytes_BT"][counted_BT].sum()
  np.testing.assert_allclose(
      [scalars[f"val/{name}"] for name in ("loss_nats", "perplexity", "bits_per_byte", "tokens")],
      [loss, math.exp(loss), bits, sum(LENGTHS) + len(LENGTHS)], rtol=2e-6)


def test_loss_by_position_equals_that_of_one_long_pass():
  batch, nll_BT = long_pass()
  scalars = measure()(Trained(lm_and_params()[1]), step=7).scalars
  found = {name.split("/")[2]: value for name, value in scalars.items() if "loss_nats_by_position" in name}
  assert list(found) == ["000000-000063", "000064-000127"]
  for name, value in found.items():
    first, last = map(int, name.split("-"))
    inside_BT = (batch["weight_BT"] > 0) & (batch["pos_BT"] >= first) & (batch["pos_BT"] <= last)
    assert scalars[f"val/tokens_by_position/{name}"] == inside_BT.sum()
    np.testing.assert_allclose(value, nll_BT[inside_BT].mean(), rtol=2e-6)


def test_names_of_buckets_sort_like_positions_and_double():
  starts = perplexity.bucket_starts()
  names = perplexity.bucket_names(starts)
  assert names == sorted(names)
  assert starts[:4] == [0, 64, 128, 256]
  assert names[-1] == f"{starts[-1]}-up"


def test_eight_devices_give_what_one_gives():
  params = lm_and_params()[1]
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  split = jax.device_put(params, placement.shardings(mesh, params))
  one = measure()(Trained(params), step=0).scalars
  eight = measure(devices=8, data=2, fsdp=2, tensor=2)(Trained(split), step=0).scalars
  assert one.keys() == eight.keys()
  np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=1e-5)


def test_a_limit_stops_early_and_the_source_is_closed():
  made = []
  model, params = lm_and_params()
  factory = lambda: made.append(source()) or made[-1]
  mesh = meshes.make(devices=jax.devices()[:1])
  few = perplexity.make(model, factory, mesh, max_tokens=4 * 24 * 2 + 5)(Trained(params), step=0).scalars
  assert made[0].closed and made[0].step == 2
  assert 0 < few["val/tokens"] <= 4 * 24 * 2


def test_text_without_a_counted_token_is_refused():
  with pytest.raises(ValueError, match="held_out_frac"):
    perplexity.scalars({}, perplexity.bucket_names(perplexity.bucket_starts()))
