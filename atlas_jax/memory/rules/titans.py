"""Titans memory: gradient descent on the recall loss, with momentum and retention gated by each token.

  S_t = m_t S_{t-1} - r_t clip(grad l(W_base; k_t, v_t))
  W_t = a_t W_{t-1} + S_t
  y_t = f(W_t; q_t)

f is an MLP of `depth` matrices, on request added to its input; l is half the squared error. The paper leaves
f's activation open, takes the whole square (its step is half of our write_rate) and does not clip. We bound
the norm of each token's gradient on request: a chunk of alike keys writes up to C times in one direction from
one base, and without a bound such a chunk can overshoot further with every chunk after it.

Retention draws the weights to those of the text's start; the paper's draws them to zero (fade_to="zero"),
where a net of two matrices has no gradient, so that it cannot be written again. The key is added to the
output on request alone (residual=True): else an emptied memory would pass the query on.

In a line: S = m S − r ∇l(W_base); W = a W + S
Floats per head: 2 w

Source: Behrouz et al. 2025, arXiv:2501.00663, Eq. 9-18.
"""
from atlas_jax.memory import descent, features, nets, on_chip
from atlas_jax.memory.types import GateStarts, MemoryRule

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) weights fell from a norm of
# 7.8 to 4e-8 within 4,096 tokens and no write moved a read again.
# At a rate of .5 memories of random keys were not finite within 65,536 tokens, at .12 those of
# keys of mean cosine .5, hence the bound.
STARTS = GateStarts(retention=0.9999, momentum=0.5, write_rate=0.05, write_rate_max=0.1)


def make(*, key_dim: int, value_dim: int, depth: int = 2, expansion: float = 1, activation: str = "silu",
         residual: bool = False, surprise_max: float | None = 1.0, fade_to: str = "start") -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    depth: matrices of the memory, 1 (linear) or more.
    expansion: hidden width over value_dim.
    activation: between matrices: "silu", "gelu" (tanh form), "relu2" or "identity".
    residual: whether the memory's output is added to its input.
    surprise_max: bound on the norm of a token's gradient over all matrices; None: no bound, as in the paper,
      with which a run of equal tokens diverges.
    fade_to: what retention draws the weights to: "zero", or "start", those with which the text began.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, depth=depth, expansion=expansion,
                 activation=activation, residual=residual)
  kernel = on_chip.make(depth=depth, activation=activation, residual=residual, surprise_max=surprise_max)
  # The kernel has no weights to fade to but zero.
  return descent.make(net, lift=features.make("none", key_dim=key_dim), surprise_max=surprise_max,
                      fade_to=fade_to, starts=STARTS, kernel=kernel if fade_to == "zero" else None)
