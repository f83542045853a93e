"""Titans memory: gradient descent on the recall loss, with momentum and retention gated by each token.

  S_t = m_t S_{t-1} - r_t grad l(W_base; k_t, v_t)
  W_t = a_t W_{t-1} + S_t
  y_t = f(W_t; q_t)

f is an MLP of `depth` matrices, by default added to its input; l is half the squared error. The paper leaves
f's activation open and takes the whole square, so that its step is half of our write_rate.

Source: Behrouz et al. 2025, arXiv:2501.00663, Eq. 9-18. Chunks are computed in dual form: no gradient of a
token or a chunk ever exists as a matrix of its own.
"""
import jax
import jax.numpy as jnp

from atlas_jax.memory.types import ChunkOut, MemoryRule, MemoryState

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "identity": lambda x: x,
}


def _check(key_dim, value_dim, depth, expansion, activation, residual):
  if depth < 1:
    raise ValueError(f"config.model.memory.options.depth={depth} must be at least 1")
  if expansion <= 0:
    raise ValueError(f"config.model.memory.options.expansion={expansion} must be positive")
  if activation not in ACTIVATIONS:
    raise ValueError(f"config.model.memory.options.activation={activation!r} is unknown; "
                     f"known are {', '.join(ACTIVATIONS)}")
  if residual and key_dim != value_dim:
    raise ValueError(f"config.model.memory.options.residual=True needs keys and values of one width, got "
                     f"{key_dim} and {value_dim}; make them equal or set residual=False")


def make(*, key_dim: int, value_dim: int, depth: int = 2, expansion: float = 1, activation: str = "silu",
         residual: bool = True) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    depth: matrices of the memory, 1 (linear) or more.
    expansion: hidden width over value_dim.
    activation: between matrices: "silu", "gelu" (tanh form), "relu2" or "identity".
    residual: whether the memory's output is added to its input.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  _check(key_dim, value_dim, depth, expansion, activation, residual)
  activate = ACTIVATIONS[activation]
  widths = [key_dim, *[round(expansion * value_dim)] * (depth - 1), value_dim]

  def init_fast(key):
    keys = jax.random.split(key, depth)
    shapes = list(zip(widths[:-1], widths[1:], strict=True))
    return {f"w{i}": jax.random.normal(keys[i], shape, jnp.float32) * shape[0] ** -0.5
            for i, shape in enumerate(shapes)}

  def init(fast):
    return MemoryState(fast, jax.tree.map(jnp.zeros_like, fast))

  def apply(fast, x_K):
    h = x_K
    for i in range(depth):
      h = (activate(h) if i else h) @ fast[f"w{i}"]
    return x_K + h if residual else h

  def recall_loss(fast, token):
    return 0.5 * jnp.sum(jnp.square(apply(fast, token.k) - token.v))

  def step(state, base, token, gates):
    grad = jax.grad(recall_loss)(base, token)
    momentum = jax.tree.map(lambda s, g: gates.momentum * s - gates.write_rate * g, state.momentum, grad)
    fast = jax.tree.map(lambda w, s: gates.retention * w + s, state.fast, momentum)
    return MemoryState(fast, momentum), apply(fast, token.q)

  def surprise(base, tokens):
    """Back-propagates the recall loss at base weights: each matrix's inputs and its outputs' gradients."""
    inputs, pulls, h = [], [], tokens.k
    for i in range(depth):
      if i:
        h, pull = jax.vjp(activate, h)
        pulls.append(pull)
      inputs.append(h)
      h = h @ base[f"w{i}"]
    error_CM = (tokens.k + h if residual else h) - tokens.v
    deltas = [error_CM]
    for i in range(depth - 1, 0, -1):
      deltas.append(pulls[i - 1](deltas[-1] @ base[f"w{i}"].T)[0])
    return inputs, deltas[::-1], error_CM

  def read(state, decay, inputs, deltas, q_CK):
    h = q_CK
    for i in range(depth):
      h = activate(h) if i else h
      old = (decay.fast_C[:, None] * (h @ state.fast[f"w{i}"])
             + decay.momentum_C[:, None] * (h @ state.momentum[f"w{i}"]))
      h = old - (decay.mix_CC * (h @ inputs[i].T)) @ deltas[i]
    return q_CK + h if residual else h

  def write(state, decay, inputs, deltas):
    fast, momentum = {}, {}
    for i in range(depth):
      name, x_CI = f"w{i}", inputs[i]
      fast[name] = (decay.fast_C[-1] * state.fast[name] + decay.momentum_C[-1] * state.momentum[name]
                    - x_CI.T @ (decay.mix_CC[-1][:, None] * deltas[i]))
      momentum[name] = (decay.momentum_keep * state.momentum[name]
                        - x_CI.T @ (decay.momentum_weight_C[:, None] * deltas[i]))
    return MemoryState(fast, momentum)

  def chunk(state, base, tokens, decay):
    inputs, deltas, error_CM = surprise(base, tokens)
    out_CM = read(state, decay, inputs, deltas, tokens.q)
    # An outer product's norm is the product of the norms.
    square_C = sum(jnp.sum(x**2, -1) * jnp.sum(d**2, -1) for x, d in zip(inputs, deltas, strict=True))
    surprise_C = jnp.sqrt(jax.lax.stop_gradient(square_C))  # A metric; sqrt has no slope at 0.
    loss_C = 0.5 * jnp.sum(error_CM**2, -1)
    return write(state, decay, inputs, deltas), ChunkOut(out_CM, surprise_C, loss_C)

  return MemoryRule(init_fast, init, apply, step, chunk)
