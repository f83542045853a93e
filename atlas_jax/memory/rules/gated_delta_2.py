"""Gated DeltaNet-2: erasing and writing have gates of their own, per channel; exact for any chunk size.

  F_t = diag(a_t) W_{t-1},   a_t = retention_t ^ decay_t
  W_t = F_t - k_t ((b_t * k_t) F_t - w_t * v_t)^T
  y_t = q_t W_t

`*` is by element. b (`erase`, per channel of keys) says what of the old recall is taken away, w (`write`, per
channel of values) what of the new value is put there. With b and w one and the same number it is `kda`, whose
file says how `retention` and `decay` stand for the paper's log-decay. The paper starts from zero (the layer's
`initial`); the common write rate is not used.

In a line: F = diag(a) W; W = F − k ((b ∘ k) F − w ∘ v)ᵀ; exact for any chunk size
Floats per head: d²

Source: Hatamizadeh, Choi and Kautz 2026, Gated DeltaNet-2, arXiv:2605.22791, gated delta rule-2; the chunks'
form is ours.
"""
from atlas_jax.memory import fading_delta
from atlas_jax.memory.nets import FIELD
from atlas_jax.memory.types import Gates, GateSpec, GateStarts, MemoryRule

STARTS = GateStarts(retention=0.9999)


def make(*, key_dim: int, value_dim: int, erase_max: float = 1.0) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    erase_max: bound of the erase gate, above 0 and at most 2; above 1 a recall may change its sign, which
      tracks states that alternate (arXiv:2411.12537).

  Raises:
    ValueError: if erase_max is out of range.
  """
  if not 0 < erase_max <= 2:
    raise ValueError(f"{FIELD}.erase_max={erase_max} must be above 0 and at most 2, beyond which a memory "
                     "grows without end; the paper's is 1")
  form = fading_delta.FadingForm(key_dim, value_dim, gates_of)
  own = (GateSpec("decay", key_dim, kind="softplus", init=1.0),
         GateSpec("erase", key_dim, init=erase_max / 2, max=erase_max),
         GateSpec("write", value_dim, init=0.5, writes=True))
  return fading_delta.make(form, uses=("log_retention",), starts=STARTS, gates=own)


def gates_of(gates: Gates) -> fading_delta.FadingGates:
  """Reads the fading, erasing and writing of each channel."""
  log_keep = gates.log_retention[..., None] * gates.more["decay"]
  return fading_delta.FadingGates(log_keep, gates.more["erase"], gates.more["write"])
