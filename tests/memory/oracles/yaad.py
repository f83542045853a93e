"""Yaad: A_t = a_t A_{t-1} - r_t grad(A_base) with the Huber loss; the gate "threshold" is its border.

huber="robust" has no such gate: half the squared error plus `shift` times its norm.
"""

from tests.memory.oracles import Recall, descent, mlp, robust
from tests.memory.oracles import huber as huber_loss


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=None,
  huber="coordinate",
  shift=0.1,
  depth=2,
  expansion=4,
  activation="gelu",
  residual=False,
  norm=None,
  surprise_max=1.0,
  fade_to="start",
  **grid,
):
  net = mlp(depth=depth, activation=activation, residual=residual, norm=norm)
  objective = robust(shift) if huber == "robust" else huber_loss(huber)
  recall = Recall(learned["slow"], net, objective=objective, surprise_max=surprise_max)
  assert not momentum, "the rule has no momentum"
  return descent(learned, tokens, gates, recall, fade_to=fade_to, **grid)
