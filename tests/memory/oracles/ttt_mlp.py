"""TTT with a memory of two layers: f(x) = LN(act(x @ w0 + b0) @ w1 + b1); else as ttt_linear."""

from tests.memory.oracles import mlp
from tests.memory.oracles.ttt_linear import descent_by_place


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=None,
  expansion=4,
  activation="gelu",
  residual=False,
  norm=None,
  rope=True,
  **grid,
):
  net = mlp(depth=2, activation=activation, residual=residual, norm=norm)
  return descent_by_place(learned, tokens, gates, net, momentum=momentum, rope=rope, **grid)
