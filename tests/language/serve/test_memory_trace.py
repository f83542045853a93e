"""What a memory does at each token: the same whatever the segments, with the means of training."""
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.language.serve.memory_trace import MemoryTracer, has_memory
from atlas_jax.models import language as languages
from tests.helpers import assert_close, tiny_lm
from tests.language.languages import tiny


def test_numbers_do_not_depend_on_segments_and_their_means_are_those_of_training():
  model, params, _ = tiny_lm()
  language = languages.of_memory(model)
  tokens = np.random.default_rng(0).integers(0, model.vocab_size, 22).tolist()
  whole = MemoryTracer(language, params, segment_tokens=24)(tokens)
  parts = MemoryTracer(language, params, segment_tokens=8)(tokens)
  for one, other in zip(whole, parts):
    assert one.shape == (22,)
    assert_close(one, other, tolerance=1e-5)
  doc_BT = jnp.asarray([[0] * 22 + [-1] * 2])
  tokens_BT = jnp.asarray([tokens + [0, 0]])
  stats = model.apply({"params": params}, tokens_BT, model.zero_state(1), doc_BT=doc_BT).stats
  for value_T, name in ((whole.gate_T, "mix_gate_mean"), (whole.write_rate_T, "write_rate_mean"),
                        (whole.surprise_T, "surprise_norm_mean")):
    told = np.mean([value for full, value in stats.items() if full.startswith(name)])
    assert_close(value_T.mean(), told, tolerance=1e-5)
  assert np.ptp(whole.surprise_T) > 0


def test_models_without_such_a_memory_are_told_apart():
  assert has_memory(tiny("memory")[0])
  assert not has_memory(tiny("decoder")[0])
  assert not has_memory(languages.of_memory(tiny_lm(memory_mix="none")[0]))
  with pytest.raises(ValueError, match="nothing to trace"):
    MemoryTracer(*tiny("decoder"))


def test_ids_of_another_model_are_refused():
  model, params, _ = tiny_lm()
  tracer = MemoryTracer(languages.of_memory(model), params)
  for tokens in ([], [-1], [model.vocab_size]):
    with pytest.raises(ValueError, match="ids in"):
      tracer(tokens)
