"""Small cases of every memory rule, in its variants, and the compiled functions that the contract shares."""

import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.memory import rules, scan
from atlas_jax.memory.types import Gates
from tests.helpers import (
  assert_close,
  for_oracle,
  random_gates,
  random_tokens,
  results,
  running_from,
  tiny_rule,
)

FILES = sorted(
  path.stem for path in pathlib.Path(rules.__file__).parent.glob("*.py") if path.stem != "__init__"
)
WIDTH, N, CHUNK = 5, 12, 4

# Beside the rule with its defaults, which is always tried. The window of six tokens is longer than a chunk.
OPTIONS = {
  "atlas": (
    dict(mode="hybrid", surprise_max=2.0, residual=True),
    dict(mode="per_token"),
    dict(mode="hybrid", feature_map="poly", window_size=None, fade_to="zero"),
  ),
  "atlas_plus": (
    dict(mode="hybrid"),
    dict(mode="per_token", window_size=None, fade_to="zero", residual=True),
  ),
  "bregman": (
    dict(low=-0.5, high=2.0, norm="unit"),
    dict(surprise_max=1.0, norm="layer", residual=True, fade_to="zero"),
  ),
  "deep_transformer": (
    dict(reach_tokens=3, normalize="sum", momentum=True),
    dict(depth=3, scale=0.7, surprise_max=2.0, residual=True, fade_to="zero"),
  ),
  "delta": (dict(momentum=False, fade_to="start"), dict(feature_map="poly", fade_to="start")),
  "dla": (
    dict(momentum=True, surprise_max=1.0, residual=True, fade_to="zero"),
    dict(feature_map="projected", feature_dim=3),
  ),
  "dot": (
    dict(window_size=6, reach_tokens=5, momentum=True, surprise_max=2.0),
    dict(window_size=None, depth=1, normalize="sum", fade_to="zero"),
  ),
  "elastic_net": (
    dict(smooth=True),
    dict(threshold=0.2, surprise_max=1.0, norm="layer", residual=True, fade_to="zero"),
  ),
  "f_divergence": (
    dict(divergence="chi2"),
    dict(divergence="hellinger", surprise_max=1.0, norm="layer", residual=True, fade_to="zero"),
  ),
  "gated_delta_2": (dict(erase_max=2.0),),
  "lact": (dict(momentum=True),),
  "linear_attention": (dict(feature_map="poly"),),
  "memora": (
    dict(over="matrix", scale=2.0, surprise_max=1.0, norm="layer", residual=True, fade_to="zero"),
  ),
  "memory_caching": (
    dict(rule="delta", read="residual", segment=8, restart=True),
    dict(rule="gated_delta_2", read="sparse", segments=2, choose=1),
    dict(rule="delta", read="sparse", segments=1, restart=True, when_full="first"),
    dict(rule="atlas", segments=2),
  ),
  "moneta": (
    dict(p=1.5, q=3, sharpness=4.0, surprise_max=1.0, norm="layer", residual=True, fade_to="zero"),
  ),
  "omega": (
    dict(window_size=6, momentum=True, surprise_max=2.0, residual=True, fade_to="zero"),
    dict(window_size=1, feature_map="poly"),
    dict(window_size=3, feature_map="power", depth=1),
    dict(window_size=2, feature_map="projected", feature_dim=3, degree=3),
    dict(window_size=5, feature_map="sketch", feature_dim=3),
  ),
  "retention": (dict(feature_map="power", degree=3, fade_to="start"),),
  "swla": (dict(window_size=6, depth=2, momentum=True, residual=True, fade_to="start"),),
  "titans": (
    dict(depth=3, activation="gelu", surprise_max=2.0, residual=True, fade_to="zero"),
    dict(depth=1),
    dict(activation="relu2"),
  ),
  "tnt": (
    dict(local_chunks=(1, 2), shard_tokens=2),
    dict(local_chunks=(2,), project_queries=False),
    dict(local_chunks=(2, 4), global_memory=False, residual=True),
  ),
  "ttt_linear": (dict(rope=False, surprise_max=1.0, residual=True, norm="affine"),),
  "ttt_mlp": (
    dict(rope=False, surprise_max=1.0, activation="silu", expansion=1, residual=True, norm="affine"),
  ),
  "yaad": (
    dict(huber="norm", surprise_max=1.0, norm="layer", residual=True, fade_to="zero"),
    dict(huber="robust", shift=0.5),
  ),
}


def label(options):
  return "-".join(f"{name}={value}" for name, value in options.items()).replace(" ", "") or "default"


VARIANTS = [(name, options) for name in FILES for options in ({}, *OPTIONS.get(name, ()))]
VARIANT_IDS = [f"{name}-{label(options)}" for name, options in VARIANTS]


def oracle_of(name):
  """The rule's loop; a rule without one is refused."""
  path = pathlib.Path(__file__).parent / "oracles" / f"{name}.py"
  assert path.is_file(), f"tests/memory/oracles/{name}.py is missing; write the loop of the rule there"
  return importlib.import_module(f"tests.memory.oracles.{name}").run


class Case:
  """A rule of one small head with something learned, a momentum to start from, tokens, and gates."""

  def __init__(self, name, options, dtype):
    self.name, self.options = name, options
    self.rule, self.learned = tiny_rule(
      name, dtype=dtype, key_dim=WIDTH, value_dim=WIDTH, chunk_size=CHUNK, **options
    )
    self.momentum = running_from(self.rule, self.learned, seed=7).memory.momentum
    self.tokens = random_tokens(2, N, key_dim=WIDTH, value_dim=WIDTH, dtype=dtype)
    self.gates = self.as_used(random_gates(2, N, rule=self.rule, dtype=dtype))

  def as_used(self, gates: Gates) -> Gates:
    """The gates as a layer gives them: those that the rule does not use are zero."""
    unused = {
      name: jnp.zeros_like(gates.write_rate) for name in gates._fields[:3] if name not in self.rule.uses
    }
    return gates._replace(**unused)

  def oracle(self, arguments=None, **grid):
    """Runs the loop on (momentum, learned, tokens, gates); it sees only the gates that the rule names."""
    momentum, learned, tokens, gates = arguments or self.arguments
    learned, tokens, every = for_oracle(learned, tokens, gates)
    used = [name.removeprefix("log_") for name in self.rule.uses] + [spec.name for spec in self.rule.gates]
    before = {"momentum": jax.tree.map(np.asarray, momentum)} if momentum else {}
    return oracle_of(self.name)(
      learned,
      tokens,
      {name: every[name] for name in used},
      chunk_size=CHUNK,
      **(self.options | before),
      **grid,
    )

  @property
  def arguments(self):
    return self.momentum, self.learned, self.tokens, self.gates

  def start(self):
    """The state before the first token, with the case's momentum."""
    running = scan.start(self.rule, self.learned)
    return running._replace(memory=running.memory._replace(momentum=self.momentum))

  def with_grid(self, write_T=None, resets=()):
    """Write mask and chunk resets as `chunks` takes them."""
    write_T = np.ones(N) if write_T is None else write_T
    return jnp.asarray(write_T, bool), jnp.asarray([i in resets for i in range(N // CHUNK)])


@functools.lru_cache
def _case(name, options, dtype):
  with jax.enable_x64(dtype == "float64"):
    return Case(name, dict(options), dtype)


def case(name, options=None, dtype="float64") -> Case:
  """The same object for the same arguments, so that its functions compile once."""
  return _case(name, tuple((options or {}).items()), dtype)


def weighed(out_TM, memory):
  """A scalar that looks at every output and every number of fast weights and momentum."""
  draw = np.random.default_rng(5)
  leaves = [out_TM, *jax.tree.leaves((memory.fast, memory.momentum))]
  return sum((draw.normal(size=x.shape).astype(x.dtype) * x).sum() for x in leaves)


def _chunks(rule, arguments, write_T, reset_N):
  momentum, learned, tokens, gates = arguments
  memory = rule.start(learned)._replace(momentum=momentum)
  memory, out = scan.scan_packed(rule, memory, learned, tokens, gates, write_T, reset_N, chunk_size=CHUNK)
  return weighed(out.out_CM, memory), (memory, out)


# Each of these is compiled once per rule, variant and dtype.
chunks = jax.jit(_chunks, static_argnums=0)
# ((value, (memory, out)), gradients by momentum, learned, tokens, gates)
chunks_and_grads = jax.jit(jax.value_and_grad(_chunks, argnums=1, has_aux=True), static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def single(rule, running, slow, tokens, gates, write_T):
  return scan.scan_tokens(rule, running, slow, tokens, gates, write_T, chunk_size=CHUNK)


@functools.partial(jax.jit, static_argnums=0)
def stream(rule, running, slow, tokens, gates, count):
  return scan.scan_stream(rule, running, slow, tokens, gates, count, chunk_size=CHUNK)


def read_parts(case, running, tokens, gates, lengths):
  """Reads in calls of these lengths, each padded to N tokens; what follows the last real one is junk."""
  reads, start = [], 0
  for length in lengths:
    part = jax.tree.map(lambda x, start=start: jnp.roll(x, -start, axis=0), (tokens, gates))
    running, out_TM = stream(case.rule, running, case.learned.slow, *part, length)
    reads.append(np.asarray(out_TM[:length]))
    start += length
  return running, np.concatenate(reads)


def chunks_of(small):
  """The rule's chunks; with its defaults from the function that gives gradients too, to compile one less."""
  if small.options:
    return lambda *args: chunks(small.rule, *args)[1]
  return lambda *args: chunks_and_grads(small.rule, *args)[0][1]


# Padding inside chunks, a chunk of padding alone, and a reset at the last chunk.
GRIDS = {
  "whole": (np.ones(N), ()),
  "padded": (np.array([1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 1, 1]), ()),
  "an empty chunk": (np.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]), ()),
  "a reset": (np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 0]), (2,)),
}


def resets_of(resets):
  """1 at the first token of each of these chunks, as the loops take it."""
  return np.array([t % CHUNK == 0 and t // CHUNK in resets for t in range(N)])


def assert_equals_oracle(case, out_TM, memory, write_T, resets=(), arguments=None, why="", tolerance=None):
  expected = case.oracle(arguments, write_T=write_T, reset_T=resets_of(resets))
  real = np.flatnonzero(write_T)
  assert_close(
    results(np.asarray(out_TM)[real], memory),
    results(expected.out_TM[real], expected),
    why=f"{why}: ",
    tolerance=tolerance,
  )


def gates_at(rule, z, *, dtype, write_rate_max=0.3):
  """Gates from what goes into their maps: `z` gives the array of a shape, or one number for all."""
  give = z if callable(z) else lambda *shape: np.full(shape, z)
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  softplus = lambda x: np.logaddexp(0, x)
  common = (-softplus(give(N)), -softplus(-give(N)), write_rate_max * sigmoid(give(N)))
  own = {}
  for spec in rule.gates:
    logit = give(N) if spec.size is None else give(N, spec.size)
    own[spec.name] = jnp.asarray(
      softplus(logit) if spec.kind == "softplus" else spec.max * sigmoid(logit), dtype
    )
  return Gates(*(jnp.asarray(x, dtype) for x in common), more=own or ())
