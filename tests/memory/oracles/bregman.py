"""Bregman (logistic map): z_t = a_t z_{t-1} - r_t grad(W_base), W = low + (high - low) sigmoid(z); fast is z.

The gradient is that with respect to W. Reads are with the base, the weights at the chunk's start. The network
is Moneta's, the loss half the squared error.
"""

from tests.memory.oracles import Recall, descent, mlp, sigmoid


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=None,
  low=-1,
  high=1,
  depth=2,
  expansion=4,
  activation="gelu",
  residual=False,
  norm=None,
  surprise_max=1.0,
  fade_to="start",
  **grid,
):
  def weights(fast, start):
    return {name: low + (high - low) * sigmoid(z) for name, z in start.items()}

  net = mlp(depth=depth, activation=activation, residual=residual, norm=norm)
  assert not momentum, "the rule has no momentum"
  recall = Recall(learned["slow"], net, surprise_max=surprise_max)
  return descent(learned, tokens, gates, recall, weights=weights, fade_to=fade_to, **grid)
