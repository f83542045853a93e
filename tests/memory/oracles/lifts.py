"""Feature maps of the loops: what a memory of one matrix sees of a key or a query."""

import itertools
import math

import numpy as np


def poly_parts(x, degree):
  """Part i holds all monomials of degree i, so scaled that part(q) . part(k) = (q . k)^i / i!.

  Within a part in lexicographic order of the factors' indices: x0 x0, x0 x1, .., x1 x1, ..
  """
  parts = [np.ones(1)]
  for i in range(1, degree + 1):
    part = []
    for factors in itertools.combinations_with_replacement(range(len(x)), i):
      repeats = math.prod(math.factorial(factors.count(j)) for j in set(factors))
      part.append(math.prod(x[j] for j in factors) / math.sqrt(repeats))
    parts.append(np.array(part))
  return parts


def sketch_parts(x, degree, feature_dim):
  """The constant 1; then part i, feature_dim products of i random projections of x.

  The signs of part i are rng.choice([-1.0, 1.0], (i, K, feature_dim)), drawn for i = 1, 2, .. from one
  default_rng(0). Each product is divided by sqrt(feature_dim i!).
  """
  rng, parts = np.random.default_rng(0), [np.ones(1)]
  for i in range(1, degree + 1):
    signs = rng.choice([-1.0, 1.0], (i, len(x), feature_dim))
    product = np.ones(feature_dim)
    for j in range(i):
      product = product * (x @ signs[j])
    parts.append(product / math.sqrt(feature_dim * math.factorial(i)))
  return parts


def cells(x, feature_dim, sharpness, cell_groups=1):
  """softmax over the products with fixed random directions, each times the sharpness; then norm one.

  Of groups, each is such a softmax over its part of the cells, over the root of their number.
  """
  directions = np.random.default_rng(0).standard_normal((len(x), feature_dim))
  groups = []
  for of_group in np.split(directions, cell_groups, axis=1):
    weights = np.exp([sharpness * (x @ direction) for direction in of_group.T])
    answers = weights / weights.sum()
    groups.append(answers / math.sqrt((answers**2).sum() + 1e-6) / math.sqrt(cell_groups))
  return np.concatenate(groups)
