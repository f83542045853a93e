"""FLOPs of one token in one head, by formula: those of the algorithm, whatever a program really executes.

A multiply-add counts as 2. Activations, gates, norms, biases and lifts of features are left out, and so are
recomputation and whatever a form computes twice. A rule's own file says what its rule adds up to, in
`MemoryRule.flops`; what it builds on, such as `descent.make`, says it for it.
"""
from atlas_jax.memory.nets import Net


def gradients(net: Net, chunk_size: int, *, hebbian: bool, window_size: int | None = None) -> float:
  """Counts the gradients of recall losses at a chunk's base.

  With w the numbers of all matrices together: a pass of the key and back needs 2 w + 2 w, less 2 w_in of
  matrices that see the key itself, since nothing passes back through them. The gradient of a Hebbian loss is
  the value alone, so that the pass needs no product with the last matrix. Over a window of c tokens a chunk
  has c - 1 tokens of the one before again.
  """
  sizes = [inputs * outputs for inputs, outputs in _shapes(net)]
  back = sum(sizes) - sum(inputs * outputs for name, (inputs, outputs) in net.shapes if name in net.first)
  forward = sum(sizes) - (sizes[-1] if hebbian else 0)
  # 2 per multiply-add, for each number of a matrix; back is the product with the transposed matrix.
  return 2.0 * (forward + back) * (1 + ((window_size or 1) - 1) / chunk_size)


def writes(net: Net, *, momentum: bool) -> float:
  """Counts the outer products that enter the fast weights, and those that enter the momentum: 2 w each."""
  return 2.0 * _numbers(net) * (1 + momentum)


def reads(net: Net, chunk_size: int, *, momentum: bool, own_chunk: bool) -> float:
  """Counts a read: 2 w with the weights at a chunk's start.

  Reads that see the chunk's own writes need 2 w with the momentum and, with n inputs and m outputs of each
  matrix, 2 C (n + m) for the products with the chunk's inputs and gradients (`within`).
  """
  if not own_chunk:
    return 2.0 * _numbers(net)
  return 2.0 * _numbers(net) * (1 + momentum) + within(net, chunk_size)


def within(net: Net, chunk_size: int) -> float:
  """Counts what a read adds for its own chunk: products with the inputs and gradients of C tokens."""
  # Counted for a whole chunk of columns although half of them are masked: the products are made whole.
  return 2.0 * chunk_size * sum(inputs + outputs for inputs, outputs in _shapes(net))


def orthogonalization(net: Net, *, ns_steps: int, tokens: int) -> float:
  """Counts Newton-Schulz steps once per so many tokens: 4 a^2 b + 2 a^3 each, a <= b a matrix's sides."""
  # Each step: 2 a^2 b for A = X X^T, 2 a^3 for A^2, and 2 a^2 b for the product with X.
  sides = [sorted(shape) for shape in _shapes(net)]
  return ns_steps * sum(4.0 * short**2 * long + 2.0 * short**3 for short, long in sides) / tokens


def _numbers(net: Net) -> int:
  return sum(inputs * outputs for inputs, outputs in _shapes(net))


def _shapes(net: Net) -> list[tuple[int, int]]:
  return [shape for name, shape in net.shapes if name[0] != "b"]  # Biases cost nothing.
