"""Yaad: A_t = a_t A_{t-1} - r_t grad(A_base) with the Huber loss; the gate "threshold" is its border."""

from tests.memory.oracles import Recall, descent, mlp
from tests.memory.oracles import huber as huber_loss


def run(
  learned,
  tokens,
  gates,
  *,
  momentum=None,
  huber="coordinate",
  depth=2,
  expansion=4,
  activation="gelu",
  residual=True,
  norm="layer",
  **grid,
):
  net = mlp(depth=depth, activation=activation, residual=residual, norm=norm)
  recall = Recall(learned["slow"], net, objective=huber_loss(huber))
  assert not momentum, "the rule has no momentum"
  return descent(learned, tokens, gates, recall, **grid)
