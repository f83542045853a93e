"""Times every form of each kernel that this platform has, forward alone and with the backward pass.

  python scripts/bench_kernels.py
  python scripts/bench_kernels.py --kernels=newton_schulz

Prints one JSON object per row: kernel, shape, impl, platform, and the milliseconds of one call, `forward_ms`
alone and `both_ms` with the backward pass: processor time on a CPU, the clock's elsewhere; best of some
rounds.
"""
import functools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from atlas_jax.files import closed_pipe
from atlas_jax.kernels.local_attention import local_attention
from atlas_jax.kernels.memory_scan import Decay, memory_scan
from atlas_jax.kernels.newton_schulz import newton_schulz
from atlas_jax.kernels.vocab_loss import vocab_loss

flags.DEFINE_list("kernels", ["local_attention", "vocab_loss", "newton_schulz", "memory_scan"], "which ones")
flags.DEFINE_integer("rounds", 5, "rounds of calls, of which the best counts", lower_bound=1)
flags.DEFINE_integer("calls", 5, "calls of a round", lower_bound=1)


def arrays(*shapes):
  """Returns float32 arrays of independent normal numbers."""
  draw = np.random.default_rng(0)
  return [jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes]


def attention_rows():
  """Yields (shape, impl, function, arrays) for windows of 64 in 2 rows of 1,024 tokens."""
  doc_BT = jnp.zeros((2, 1024), jnp.int32)
  for impl in ("reference", "chunked"):
    run = lambda q, k, v, impl=impl: local_attention(q, k, v, doc_BT, doc_BT, window_tokens=64, impl=impl)
    yield "2x1024x4x32 window 64", impl, run, arrays(*[(2, 1024, 4, 32)] * 3)


def vocab_rows():
  """Yields the same for 2,048 tokens of width 128 and 8,192 words, all at once and by blocks of 256."""
  hidden_ND, head_DV = arrays((2048, 128), (128, 8192))
  target_N = jnp.arange(2048, dtype=jnp.int32)
  for impl, block in (("reference", None), ("chunked", 256)):
    run = lambda hidden, head, block=block: vocab_loss(hidden, head, target_N, block_tokens=block)
    yield "2048x128x8192", impl, run, [hidden_ND, 0.1 * head_DV]


def newton_schulz_rows():
  """Yields the same for squares and wide matrices; the kernel where there is one."""
  forms = ["reference", "chunked"] + ["pallas"] * (jax.default_backend() != "cpu")
  for shape in [(256, 16, 16), (48, 64, 64), (128, 16, 153), (48, 32, 128)]:
    for impl in forms:
      yield "x".join(map(str, shape)), impl, functools.partial(newton_schulz, impl=impl), arrays(shape)


def memory_rows():
  """Yields the same for 8 memories of two matrices that read 1,024 tokens in chunks of 64, gates open."""
  G, N, C, K = 8, 16, 64, 32
  line_GT, row_GNC = jnp.ones((G, N * C)), jnp.full((G, N, C), 0.02)
  mix_GNCC = jnp.broadcast_to(0.02 * jnp.tri(C), (G, N, C, C))
  decay = Decay(line_GT, line_GT, mix_GNCC, jnp.ones((G, N)), row_GNC)
  reset_GN = jnp.zeros((G, N), bool)
  forms = ["reference", "chunked"] + ["pallas"] * (jax.default_backend() != "cpu")
  for impl in forms:
    def run(q, k, v, first, second, impl=impl):
      fast, still = [first, second], [0 * first, 0 * second]
      return memory_scan(q, k, v, decay, reset_GN, fast, fast, still, chunk_size=C, impl=impl)[0]
    tokens, weights = arrays(*[(G, N * C, K)] * 3), arrays(*[(G, K, K)] * 2)
    yield "8x1024x32 chunk 64", impl, run, [K**-0.5 * x for x in (*tokens, *weights)]


ROWS = {"local_attention": attention_rows, "vocab_loss": vocab_rows, "newton_schulz": newton_schulz_rows,
        "memory_scan": memory_rows}


def milliseconds(function, inputs, *, rounds: int, calls: int) -> float:
  """Times one call of a jitted function."""
  clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
  jax.block_until_ready(function(*inputs))
  spent = []
  for _ in range(rounds):
    start = clock()
    for _ in range(calls):
      out = function(*inputs)
    jax.block_until_ready(out)
    spent.append(clock() - start)
  return 1e3 * min(spent) / calls


def both_passes(function, inputs):
  """Returns a jitted function of `inputs`: the gradients of a sum that weighs the outputs differently."""
  out = jax.eval_shape(function, *inputs)
  weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
  return jax.jit(lambda *inputs: jax.vjp(function, *inputs)[1](weight))


def main(argv):
  """Prints the rows."""
  del argv
  args = flags.FLAGS
  unknown = set(args.kernels) - set(ROWS)
  if unknown:
    raise ValueError(f"--kernels={','.join(sorted(unknown))} is unknown; known are {', '.join(ROWS)}")
  for kernel in args.kernels:
    for shape, impl, function, inputs in ROWS[kernel]():
      timed = functools.partial(milliseconds, inputs=inputs, rounds=args.rounds, calls=args.calls)
      row = dict(kernel=kernel, shape=shape, impl=impl, platform=jax.default_backend())
      spent = dict(forward_ms=timed(jax.jit(function)), both_ms=timed(both_passes(function, inputs)))
      print(json.dumps(row | {name: round(value, 3) for name, value in spent.items()}), flush=True)


if __name__ == "__main__":
  closed_pipe.quiet(app.run)(main)
