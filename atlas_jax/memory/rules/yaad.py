"""Yaad memory: descent on a robust recall loss, so that one odd value does not overwrite much.

  e_t = f(W_base; k_t) - v_t
  A_t = a_t A_{t-1} - r_t clip(grad of the loss of e_t at W_base)
  y_t = f(A_t; q_t)

The loss is Huber's, squares for errors up to threshold_t and linear beyond, with threshold_t a gate of each
token: of each coordinate of e ("coordinate") or of its norm ("norm"). Or ("robust") it is half the square
plus `shift` times the norm, the worst case over values within `shift` of v; then there is no gate. f is an
MLP. The paper prints three Huber losses and trains a mixture of two that has a jump; we offer the two
without. It takes whole squares (its step is half of our write_rate), uses retention without momentum, and
does not clip: `surprise_max` is ours, see `rules.titans`.

Retention draws the weights to those of the text's start; the paper's draws them to zero (fade_to="zero"),
where a net of two matrices has no gradient, so that it cannot be written again. In the paper f is
layer-normed and added to its input (norm="layer", residual=True); with keys and values of norm one, reads
are then longer than values by the root of their width, and the loss stays above that of answering zero.

In a line: W = a W − r ∇ Huber(e)
Floats per head: w

Source: Behrouz et al. 2025, Miras, arXiv:2504.13173, section 5 (Yaad) and section 4 (value shift).
"""
from atlas_jax.memory import descent, features, nets, objectives
from atlas_jax.memory.types import GateSpec, GateStarts, MemoryRule

# Values have norm one, so that the coordinates of an error are about .2 at width 32: beyond .3 one is odd.
# With 3, as it was before, none ever was: the loss was half the square, and the gate had no gradient.
THRESHOLD = GateSpec("threshold", kind="softplus", init=0.3)
# The output of a layer norm has coordinates around 1: .3 would take most errors for odd ones, and from usual
# initial weights such memories swing from chunk to chunk.
NORMED_THRESHOLD = THRESHOLD._replace(init=3.0)

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) the layer norm made reads 5.7
# times as long as values: the loss was 25 times that of answering zero.
STARTS = GateStarts(retention=0.9999, write_rate=0.05, write_rate_max=0.12)


def make(*, key_dim: int, value_dim: int, huber: str = "coordinate", shift: float = 0.1, depth: int = 2,
         expansion: float = 4, activation: str = "gelu", norm: str | None = None, residual: bool = False,
         surprise_max: float | None = 1.0, fade_to: str = "start") -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    huber: "coordinate", "norm" or "robust"; see the module.
    shift: how far values may be off, at least 0; for "robust" alone.
    depth: matrices of the memory, 1 (linear) or more.
    expansion: hidden width over value_dim.
    activation: between matrices: "silu", "gelu" (tanh form), "relu2" or "identity".
    norm: of the memory's output before the key is added: None, "layer", as in the paper, "affine" (with a
      learned scale and bias), or "unit" (as long as values).
    residual: whether the memory's output is added to its input.
    surprise_max: bound on the norm of a token's gradient over all matrices; None: no bound, as in the paper,
      with which a run of equal tokens diverges.
    fade_to: what retention draws the weights to: "zero", or "start", those with which the text began.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  if huber not in ("coordinate", "norm", "robust"):
    raise ValueError(f"{nets.FIELD}.huber={huber!r} is unknown; known are coordinate, norm, robust")
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, depth=depth, expansion=expansion,
                 activation=activation, residual=residual, norm=norm)
  robust = huber == "robust"
  threshold = NORMED_THRESHOLD if norm in ("layer", "affine") else THRESHOLD
  return descent.make(net, lift=features.make("none", key_dim=key_dim), momentum=False,
                      objective=objectives.robust(shift) if robust else objectives.huber(huber),
                      surprise_max=surprise_max, fade_to=fade_to, starts=STARTS,
                      gates=() if robust else (threshold,))
