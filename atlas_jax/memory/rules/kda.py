"""Kimi Delta Attention: every channel of keys fades by a gate of its own; exact for any chunk size.

  F_t = diag(a_t) W_{t-1},   a_t = retention_t ^ decay_t
  W_t = F_t - r_t k_t (k_t F_t - v_t)^T
  y_t = q_t W_t

In the paper log a_t = -exp(A) softplus(f(x_t) + b), with one A per head and f of low rank. Here A is the
head's common gate `retention` of the token, whose half-life the config sets and spreads over heads, and
`decay` has one number above 0 per channel, of a full linear map, 1 at the start. Its beta is our write rate r
(write_rate_max=2 allows negative eigenvalues). The paper starts from zero (the layer's `initial`) and divides
reads by the root of the key's width; the layer brings reads to unit mean square.

With decay 1 everywhere it is `gated_delta`.

In a line: F = diag(a) W; W = F − r k (k F − v)ᵀ: one a per channel; exact for any chunk size
Floats per head: d²

Source: Kimi Team 2025, Kimi Linear, arXiv:2510.26692, Eq. 1 and section 3; the chunks' form is ours.
"""
from atlas_jax.memory import fading_delta
from atlas_jax.memory.types import Gates, GateSpec, GateStarts, MemoryRule

STARTS = GateStarts(retention=0.9999, write_rate=0.5, write_rate_max=1.0)  # Half of the error.


def make(*, key_dim: int, value_dim: int) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
  """
  form = fading_delta.FadingForm(key_dim, value_dim, gates_of)
  return fading_delta.make(form, uses=("log_retention", "write_rate"), starts=STARTS,
                           gates=(GateSpec("decay", key_dim, kind="softplus", init=1.0),))


def gates_of(gates: Gates) -> fading_delta.FadingGates:
  """Reads the fading of each channel, and one rate for erasing and writing."""
  log_keep = gates.log_retention[..., None] * gates.more["decay"]
  return fading_delta.FadingGates(log_keep, gates.write_rate, gates.write_rate)
