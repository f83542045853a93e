"""Dot: the Omega rule with the first layer of `deep_transformer`, on half the squared error.

Token t adds -r_t context_{t,lag} gradient_{t-lag} to the row of each of the last window_size real tokens, all
gradients taken at the base of t's chunk.
"""

from tests.memory.oracles import l2
from tests.memory.oracles.deep_transformer import kernel_descent


def run(learned, tokens, gates, *, window_size=4, **options):
  return kernel_descent(learned, tokens, gates, l2, window_size=window_size, **options)
