"""FLOPs of a token by formula: what each mix adds up to, and a forward pass beside the compiled program."""

import jax
import jax.numpy as jnp
import pytest

from atlas_jax.models import blocks, flops
from tests.helpers import SHIFTED, freeze, quick_compilation, tiny_lm

D, H, K, W, F, V = 12, 3, 4, 4, 20, 32
ATTENTION = 8 * D**2 + 4 * W * D
MEMORY = 2 * D * H * 4 * K  # Projections of queries, keys, values and reads; the rest is the rule's.
EXPECTED = {
  "none": lambda rule: ATTENTION,
  "conv": lambda rule: ATTENTION + MEMORY,
  "gate": lambda rule: ATTENTION + MEMORY + rule,
  "layer": lambda rule: ATTENTION + MEMORY + rule,
  "only": lambda rule: MEMORY + rule,
  "context": lambda rule: 8 * D**2 + 4 * (2 * W + 2) * D + 2 * MEMORY + 4 * D**2 + rule,
  "e2e": lambda rule: ATTENTION + 6 * D * 16,
}


def model_of(name, **given):
  return tiny_lm(memory_mix=name, window_tokens=W, **given)[0]


@pytest.mark.parametrize("name", blocks.names())
def test_a_mix_costs_what_its_parts_do(name):
  model = model_of(name)
  rule = flops.memory_layer(model.memory, D) - MEMORY
  assert rule > 0
  assert model.mix.flops(model.block_fields("packed")) == pytest.approx(EXPECTED[name](rule))


def test_shared_keys_and_values_of_tokens_are_counted_as_they_are_projected():
  assert flops.projections(model_of("gate", memory=SHIFTED).memory, D) == 2 * D * H * (K + K + K)


def test_blocks_without_a_memory_and_inner_steps_are_counted_in_a_forward_pass():
  mlp, head = 6 * D * F, 2 * D * V
  none = flops.forward(model_of("none", depth=3))
  assert none == 3 * (ATTENTION + mlp) + head
  one = flops.forward(model_of("gate", depth=3, memory_layers=(1,)))
  assert one == none + flops.memory_layer(model_of("gate").memory, D)
  inner = flops.forward(model_of("e2e", depth=3, memory_layers=(1,)))
  above = 2 * (ATTENTION + mlp) + 6 * D * 16 + head
  assert inner == none + 6 * D * 16 + 2 * above
  assert flops.forward(model_of("gate", memory=dict(SHIFTED, initial="learned", writes=False))) is None


def test_a_compiled_program_without_a_memory_costs_what_the_formula_says():
  """Where attention's window is the whole text: XLA counts products of every pair of its tokens."""
  model, params, tokens_BT = tiny_lm(memory_mix="none", width=64, heads=2, ff_width=128, window_tokens=12,
    ngram_embed=freeze({"max_n": None, "table_rows": 1}), scan_unroll=2)  # fmt: skip
  state = model.zero_state(2)

  def read(params, tokens_BT):
    out = model.apply({"params": params}, tokens_BT, state, doc_BT=jnp.zeros_like(tokens_BT))
    return out.hidden_BTD @ params["embed"].T

  with quick_compilation():
    found = jax.jit(read).lower(params, tokens_BT).compile().cost_analysis()["flops"] / tokens_BT.size
  assert flops.forward(model) == pytest.approx(found, rel=0.15)
