"""Linear attention: every token adds its value under its key, and nothing fades.

  W_t = W_{t-1} + r_t phi(k_t) v_t^T
  y_t = phi(q_t) W_t

It is descent on -f(phi(k)) . v with a linear f. That gradient does not depend on W, so the chunk size changes
nothing but speed. The paper's phi is elu + 1 and its reads are divided by phi(q_t) . sum phi(k_i); here phi
is one of the maps of `features`, by default none, and nothing is divided: the layer brings reads to unit mean
square. W starts from learned weights, the paper's from zero; the write rate r is ours.

In a line: W += r φ(k) vᵀ
Floats per head: d²

Source: Katharopoulos et al. 2020, arXiv:2006.16236, Eq. 16-20.
"""
from atlas_jax.memory import descent, features, nets, objectives
from atlas_jax.memory.types import GateStarts, MemoryRule

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) one write moved a read by
# 1.4%. Nothing fades, so that the weight of a write falls with the root of the text's length: 6% after
# 16,384 tokens.
STARTS = GateStarts(write_rate=0.1, write_rate_max=1.0)


def make(*, key_dim: int, value_dim: int, feature_map: str = "none", degree: int = 2,
         feature_dim: int = 16,
         cell_groups: int = 1) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    feature_map, degree, feature_dim, cell_groups: how keys and queries are lifted, see `features.make`.

  Raises:
    ValueError: if an option is out of range.
  """
  lift = features.make(feature_map, key_dim=key_dim, degree=degree, feature_dim=feature_dim,
                       cell_groups=cell_groups)
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=lift.width, depth=1, expansion=1,
                 activation="identity", residual=False)
  rule = descent.make(net, lift=lift, objective=objectives.dot, momentum=False)

  def step(slow, state, base, token, gates, place):
    return rule.step(slow, state, base, token, _all_stays(gates), place)

  def prepare(slow, tokens, gates, write_C, position_C):
    return rule.prepare(slow, tokens, _all_stays(gates), write_C, position_C)

  return rule._replace(step=step, prepare=prepare, uses=("write_rate",), starts=STARTS)


def _all_stays(gates):
  # The layer gives zeros anyway, since `uses` leaves retention out; other callers may not.
  return gates._replace(log_retention=0 * gates.log_retention)
