"""Gated DeltaNet as published: the memory fades, then what the key recalls is replaced; exact for any chunk.

  W_t = a_t W_{t-1} - r_t k_t (a_t k_t W_{t-1} - v_t)^T
  y_t = q_t W_t

`rules.delta` without momentum takes the error before fading, as Titans does; here it is that of the memory as
it has faded. The paper starts from zero (the layer's `initial`), its beta is our write rate r, its alpha our
retention a.

In a line: W = a W − r k (a k W − v)ᵀ: Gated DeltaNet as published; exact for any chunk size
Floats per head: d²

Source: Yang, Kautz and Hatamizadeh 2024, Gated DeltaNet, arXiv:2412.06464, Eq. 10.
"""
from atlas_jax.memory import fading_delta
from atlas_jax.memory.types import Gates, GateStarts, MemoryRule

STARTS = GateStarts(retention=0.9999, write_rate=0.5, write_rate_max=1.0)  # Half of the error.


def make(*, key_dim: int, value_dim: int) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
  """
  form = fading_delta.FadingForm(key_dim, value_dim, gates_of)
  return fading_delta.make(form, uses=("log_retention", "write_rate"), starts=STARTS)


def gates_of(gates: Gates) -> fading_delta.FadingGates:
  """Reads one number each from the common gates."""
  return fading_delta.FadingGates(gates.log_retention, gates.write_rate, gates.write_rate)
