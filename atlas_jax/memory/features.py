"""Feature maps: lift queries and keys, so that a memory of one matrix tells more keys apart.

With parts i of degree i, lifted keys and queries meet in sum_i c_i (q . k)^i / i!, c learned, on the query's
side, 1 at the start. Source: Behrouz et al. 2025, Atlas, arXiv:2505.23735, section 3; the maps' scales, the
projection and the sketch are ours, the paper discloses none.
"""
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.memory.nets import FIELD

KINDS = ("none", "power", "poly", "projected", "sketch", "cells")
SHARPNESS = 6.0  # Of the cells at the start of training.


class FeatureMap(NamedTuple):
  """A map that lifts keys and queries before they meet the fast weights."""

  kind: str
  key_dim: int  # K
  width: int  # of the lifted key, P
  parts: tuple[int, ...]  # width of each part, lowest degree first; () for "none"
  lift: Callable  # (slow, x_K) -> the parts joined, [P], also with leading axes
  init: Callable  # key -> dict of learned parameters

  def keys(self, slow, k_K):
    """Lifts keys."""
    return self.lift(slow, k_K)

  def queries(self, slow, q_K):
    """Lifts queries, each part weighed by its learned coefficient."""
    return self.weighed(slow, self.lift(slow, q_K))

  def weighed(self, slow, lifted_P):
    """Makes lifted keys queries: each part times its learned coefficient."""
    if not self.parts:
      return lifted_P
    # On the query's side alone, so that a vector that is key and query is lifted once for both.
    part_P = np.repeat(np.arange(len(self.parts), dtype=np.int32), self.parts)
    weight_P = slow["coefficients"][part_P].astype(lifted_P.dtype)
    return lifted_P * weight_P.reshape(*(1,) * (lifted_P.ndim - 1), -1)


def make(kind: str, *, key_dim: int, degree: int = 2, feature_dim: int = 16,
         cell_groups: int = 1) -> FeatureMap:
  """Makes a feature map.

  Args:
    kind: "none"; "power", elementwise powers 1..degree; "poly", all monomials up to the degree, exactly;
      "projected", the same of a learned projection to feature_dim; "sketch", feature_dim random products per
      degree whose expected inner products are those of "poly"; "cells", a softmax over the key's products
      with feature_dim fixed random directions, brought to norm one, of learned sharpness: few cells answer,
      and alike keys share them.
    key_dim: K.
    degree: highest degree; 2 or 3 for "poly" and "projected".
    feature_dim: see kind.
    cell_groups: of "cells": softmaxes side by side, each over its part of the cells. In one softmax two or
      three cells hold a key, and another key that meets them overwrites it; of several, a part of each.

  Raises:
    ValueError: if an option is out of range.
  """
  _check(kind, degree, feature_dim, cell_groups)
  if kind == "none":
    return FeatureMap(kind, key_dim, key_dim, (), lambda slow, x: x, lambda key: {})
  if kind == "cells":
    def init(key):
      return _coefficients(1)(key) | {"sharpness": jnp.full((), SHARPNESS, jnp.float32)}

    return FeatureMap(kind, key_dim, feature_dim, (feature_dim,), _cells(key_dim, feature_dim, cell_groups),
                      init)
  if kind == "power":
    return FeatureMap(kind, key_dim, key_dim * degree, (key_dim,) * degree, _powers(degree),
                      _coefficients(degree))
  if kind == "sketch":
    return FeatureMap(kind, key_dim, 1 + feature_dim * degree, (1,) + (feature_dim,) * degree,
                      _sketch(key_dim, degree, feature_dim), _coefficients(degree + 1))
  # Of 32 features there are 528 monomials of degree 2 and 5,984 of degree 3: hence "projected".
  inner = key_dim if kind == "poly" else feature_dim
  parts = tuple(math.comb(inner + i - 1, i) for i in range(degree + 1))
  lift = _monomials(inner, degree)
  if kind == "poly":
    return FeatureMap(kind, key_dim, sum(parts), parts, lift, _coefficients(degree + 1))
  init = lambda key: _coefficients(degree + 1)(key) | {
      "projection": jax.random.normal(key, (key_dim, feature_dim), jnp.float32) * key_dim**-0.5}

  def projected(slow, x):
    return lift(slow, x @ slow["projection"])

  return FeatureMap(kind, key_dim, sum(parts), parts, projected, init)


def _check(kind: str, degree: int, feature_dim: int, cell_groups: int) -> None:
  if kind not in KINDS:
    raise ValueError(f"{FIELD}.feature_map={kind!r} is unknown; known are {', '.join(KINDS)}")
  if kind in ("poly", "projected") and degree not in (2, 3):
    raise ValueError(f"{FIELD}.degree={degree} is not known to feature_map={kind!r}; known are 2 and 3")
  if degree < 1:
    raise ValueError(f"{FIELD}.degree={degree} must be at least 1")
  if kind in ("projected", "sketch", "cells") and feature_dim < 1:
    raise ValueError(f"{FIELD}.feature_dim={feature_dim} must be at least 1")
  if kind != "cells" and cell_groups != 1:
    raise ValueError(f"{FIELD}.cell_groups={cell_groups} groups the cells of feature_map='cells', and "
                     f"{FIELD}.feature_map={kind!r} has none; leave cell_groups at 1")
  if cell_groups < 1 or feature_dim % cell_groups:
    raise ValueError(f"{FIELD}.cell_groups={cell_groups} must be at least 1 and divide {FIELD}.feature_dim="
                     f"{feature_dim}")


def _coefficients(size):
  return lambda key: {"coefficients": jnp.ones((size,), jnp.float32)}


def _powers(degree):
  # The root of 1 / i! on both sides: part i of a query and a key meet in sum_f (q_f k_f)^i / i!.
  return lambda slow, x: jnp.concatenate(
      [x**i * jnp.asarray(math.factorial(i) ** -0.5, x.dtype) for i in range(1, degree + 1)], axis=-1)


def _monomials(width, degree):
  """Returns the lift to monomials, each once, times the root of how often it is in (q . k)^i, over i!."""
  tables = []
  for i in range(1, degree + 1):
    combos = list(itertools.combinations_with_replacement(range(width), i))
    # The multinomial coefficient: (q . k)^i has a monomial that often, once per order of its factors.
    often = [math.factorial(i) / math.prod(math.factorial(n) for n in Counter(c).values()) for c in combos]
    tables.append((np.asarray(combos, np.int32), np.sqrt(np.asarray(often) / math.factorial(i))))

  def lift(slow, x):
    del slow
    parts = [jnp.ones((*x.shape[:-1], 1), x.dtype)]
    for index_PS, weight_P in tables:
      product = x[..., index_PS[:, 0]]
      for at in range(1, index_PS.shape[1]):
        product = product * x[..., index_PS[:, at]]
      parts.append(product * jnp.asarray(weight_P, x.dtype).reshape(*(1,) * (x.ndim - 1), -1))
    return jnp.concatenate(parts, axis=-1)

  return lift


@jax.custom_jvp
def _unit_softmax(logit_P):
  """Brings softmax to norm one.

  Its derivative is written by hand: automatic differentiation would pass over all cells more often.
  """
  return _with_ratio(logit_P)[0]


def _with_ratio(logit_P):
  # The maximum cancels in the result; without it sharp logits overflow.
  cell_P = jnp.exp(logit_P - jnp.max(logit_P, -1, keepdims=True))
  total = jnp.sum(cell_P, -1, keepdims=True)
  # The sums are those of softmax's values, over the total: a division of all cells is saved.
  scale = jax.lax.rsqrt(jnp.sum(cell_P * cell_P, -1, keepdims=True) + 1e-6 * total * total)
  return cell_P * scale, 1e-6 * total * scale


@_unit_softmax.defjvp
def _grad_of_unit_softmax(primals, tangents):
  # With c = exp(logits), t their sum and s = (c . c + 1e-6 t^2)^.5 the answer is y = c / s, with
  #   dy = y (d - sum of y (y + 1e-6 t / s) d)
  # where `ratio` is 1e-6 t / s, the part of the small term.
  answer_P, ratio = _with_ratio(*primals)
  d_P, = tangents
  return answer_P, answer_P * (d_P - jnp.sum(answer_P * (answer_P + ratio) * d_P, -1, keepdims=True))


def _cells(width, cells, groups):
  # A fixed seed: constants of the program, no parameters, the same in every layer and head.
  directions_KP = np.random.default_rng(0).standard_normal((width, cells))

  def lift(slow, x):
    logit_P = (x * slow["sharpness"].astype(x.dtype)) @ jnp.asarray(directions_KP, x.dtype)
    if groups == 1:
      return _unit_softmax(logit_P)
    # Each of norm one, so that together they have the root of their number.
    part_GP = _unit_softmax(logit_P.reshape(*logit_P.shape[:-1], groups, -1))
    return part_GP.reshape(logit_P.shape) * jnp.asarray(groups**-0.5, x.dtype)

  return lift


def _sketch(width, degree, feature_dim):
  draw = np.random.default_rng(0)
  # For a vector s of random signs, (s . q)(s . k) has the expectation q . k; the product of i such, with
  # signs of their own, has (q . k)^i, and the mean over feature_dim of them estimates it.
  signs = [draw.choice([-1.0, 1.0], size=(i, width, feature_dim)) for i in range(1, degree + 1)]

  def lift(slow, x):
    del slow
    parts = [jnp.ones((*x.shape[:-1], 1), x.dtype)]
    for i, signs_SKE in enumerate(signs, 1):
      product = x @ jnp.asarray(signs_SKE[0], x.dtype)
      for matrix in signs_SKE[1:]:
        product = product * (x @ jnp.asarray(matrix, x.dtype))
      parts.append(product * jnp.asarray((feature_dim * math.factorial(i)) ** -0.5, x.dtype))
    return jnp.concatenate(parts, axis=-1)

  return lift
