"""FLOPs of a memory layer by formula: those of the algorithm, whatever a program really executes."""
from collections.abc import Mapping

import jax

from atlas_jax.memory import rules

# Rules whose chunks this formula describes, and how their tokens make slopes: "recall" by a whole pass of the
# keys and back, "dot" from the values alone (no product with the last matrix), "exact" by a triangular solve.
KINDS = {
    "atlas": "recall", "atlas_plus": "recall", "bregman": "recall", "delta": "exact", "dla": "dot",
    "elastic_net": "recall", "f_divergence": "recall", "lact": "dot", "linear_attention": "dot",
    "memora": "recall", "moneta": "recall", "omega": "recall", "retention": "dot", "swla": "dot",
    "titans": "recall", "ttt_linear": "recall", "ttt_mlp": "recall", "yaad": "recall",
}
FIRST = ("w0", "gate", "up")  # Matrices that see the key itself: no slope passes back through them.
MUON = ("atlas", "atlas_plus", "lact")
NS_STEPS = 5


def layer_flops(rule: str, *, width: int, heads: int, key_dim: int, value_dim: int, chunk_size: int,
                options: Mapping) -> float | None:
  """Counts the FLOPs of one token's forward pass through a layer: projections of width D, and every head.

  With a multiply-add as 2, w the numbers of all fast matrices together, w_in of those that see the key, w_out
  of the last, n + m the sum over matrices of inputs and outputs, and C the chunk, a head needs per token

    slopes       2 w + 2 (w - w_in), for a Hebbian loss 2 (w - w_out) + 2 (w - w_in); over a window of c
                 tokens times 1 + (c - 1) / C
    writes       2 w for the fast weights, and 2 w for the momentum
    reads        2 w with the fast weights, and 2 w with the momentum
    in a chunk   2 C (n + m), if reads see the chunk's own writes
    exact form   3 C K for the solve
    Muon         (20 a^2 b + 10 a^3) / C per matrix, a <= b its sides, instead of the writes of the fast
                 weights; in mode "per_token" for each token

  so that an MLP of two matrices, hidden width r K, has 22 r K^2 + 4 C K (1 + r) with momentum. Projections
  are 2 D (2 K + M) for queries, keys and values and 2 M D back. Gates, convolutions, activations and lifts of
  features are left out, and so are recomputation and whatever a form computes twice. A backward pass is twice
  this.

  Args:
    rule: by name; options: its own.
    width: D; key_dim, value_dim: K and M, of each head.
    chunk_size: C.

  Returns:
    FLOPs per token, or None for rules without such a formula.
  """
  if rule not in KINDS:
    return None
  made = rules.load(rule, key_dim=key_dim, value_dim=value_dim, chunk_size=chunk_size, **options)
  fast = jax.eval_shape(made.init, jax.random.key(0)).fast
  shapes = {name: leaf.shape for name, leaf in fast.items() if name[0] != "b"}  # Biases cost nothing.
  sizes = {name: inputs * outputs for name, (inputs, outputs) in shapes.items()}
  whole = sum(sizes.values())
  inner = whole - sum(size for name, size in sizes.items() if name in FIRST)
  seen = whole - (sizes[max(sizes, key=_order)] if KINDS[rule] == "dot" else 0)
  window = next((gate.size or 1 for gate in made.gates if gate.name == "context"), 1)
  momentum = "log_momentum" in made.uses
  within = made.reads == "token"
  flops = 2.0 * (seen + inner) * (1 + (window - 1) / chunk_size)
  flops += 2 * whole * (1 + (momentum and rule not in MUON))
  flops += 2 * whole * (1 + (momentum and within))
  flops += 2 * chunk_size * sum(sum(shape) for shape in shapes.values()) * within
  flops += 3 * chunk_size * key_dim * (KINDS[rule] == "exact")
  if rule in MUON:
    turns = 1 if options.get("mode") == "per_token" else chunk_size
    flops += options.get("ns_steps", NS_STEPS) * sum(_muon_step(*shape) for shape in shapes.values()) / turns
  return heads * (flops + 2 * width * (2 * key_dim + 2 * value_dim))


def _order(name: str) -> tuple[bool, str]:
  return name == "out", name


def _muon_step(inputs: int, outputs: int) -> int:
  short, long = sorted((inputs, outputs))
  return 4 * short**2 * long + 2 * short**3
