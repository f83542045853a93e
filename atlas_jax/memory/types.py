"""The parts of a memory rule: tokens, gates, state, and the functions that turn one into the next.

Everything here belongs to one head of one row. Rows and heads are added by `vmap` in `memory.layer`.
"""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Names of the values that are worth keeping when the rest of a chunk is computed again: see checkpoint_name.
SAVED_NAMES = ("memory_product", "memory_grad")


class Token(NamedTuple):
  """Key, value and query of one token; a chunk has the same fields with a leading C or T."""

  q: jax.Array  # [K] what to recall; unit norm
  k: jax.Array  # [K] the key under which v is written; unit norm
  v: jax.Array  # [M] the value to be recalled


class LiftedToken(NamedTuple):
  """A token whose query and key are lifted already, by the `lift` of the rule that reads it."""

  q: jax.Array  # [K]
  k: jax.Array  # [K]
  v: jax.Array  # [M]
  query: jax.Array  # [P]
  key: jax.Array  # [P]


class GateSpec(NamedTuple):
  """A gate of a rule's own, computed from each token beside the common ones."""

  name: str
  size: int | None = None  # numbers per token; None: a scalar
  kind: str = "sigmoid"  # "sigmoid": in (0, max); "softplus": above 0
  init: float = 0.5  # value at the start of training
  max: float = 1.0
  writes: bool = False  # whether it is, below its bound, how much a token writes


class GateStarts(NamedTuple):
  """Initial values of a rule's common gates; fields of `config.model.memory` replace them.

  These are for rules that give none: a half-life of 1,386 tokens, and steps that a memory of one matrix with
  keys of unit norm takes without overshooting. A rule that is in use should measure its own.
  """

  retention: float = 0.9995  # fraction of the fast weights that stays per token, in (0, 1)
  momentum: float = 0.5  # fraction of the momentum that stays per token, in (0, 1)
  write_rate: float = 0.1  # step size, above 0
  write_rate_max: float = 1.0  # its bound, above write_rate; of all times, not of the start alone

  def of_head(self, head: int, heads: int, spread: float) -> "GateStarts":
    """Returns those of one head, where half-lives go up from head to head by equal factors.

    Args:
      spread: the last head's half-life over the first one's; the middle is that of `retention`.
    """
    place = head / (heads - 1) - 0.5 if heads > 1 else 0.0
    # a ** (spread ** -place): the half-life ln 2 / -ln a is multiplied by spread ** place, which runs from
    # spread ** -.5 at the first head to spread ** .5 at the last.
    return self._replace(retention=self.retention ** spread ** -place)

  def replaced(self, rule: str, **given: float | None) -> "GateStarts":
    """Returns these with those that a config gives; the others are the rule's own.

    Raises:
      ValueError: if the step size does not start below its bound; names the rule.
    """
    starts = self._replace(**{name: value for name, value in given.items() if value is not None})
    if not 0 < starts.write_rate < starts.write_rate_max:
      raise ValueError(
          f"config.model.memory.write_rate_init must be above 0 and below write_rate_max; with config.model."
          f"memory.rule={rule!r} they are {starts.write_rate} and {starts.write_rate_max}, where what the "
          "config leaves at None is the rule's own; set both")
    return starts


class Gates(NamedTuple):
  """Gates of one token: how strongly it writes and how much of the past stays."""

  # Logs, because a chunk multiplies up to C of them: sums of logs neither underflow on the way nor lose what
  # distinguishes a gate near 1 from 1.
  log_retention: jax.Array  # [] log of the fraction of fast weights that stays, <= 0
  log_momentum: jax.Array  # [] log of the fraction of momentum that stays, <= 0
  write_rate: jax.Array  # [] step size of the inner descent, > 0
  more: Any = ()  # dict of the rule's own gates, name -> [] or [size]; () for rules without

  @property
  def retention(self) -> jax.Array:
    """Fraction of the fast weights that stays, in (0, 1]."""
    return jnp.exp(self.log_retention)

  @property
  def momentum(self) -> jax.Array:
    """Fraction of the momentum that stays, in (0, 1]."""
    return jnp.exp(self.log_momentum)


class Learned(NamedTuple):
  """Parameters of one head that the optimizer trains."""

  fast: Any  # pytree: the fast weights with which a text starts
  slow: Any  # dict of what reading leaves alone: feature coefficients, scales; {} for rules without


class MemoryState(NamedTuple):
  """The state that changes while text is read."""

  fast: Any  # pytree of fast weights
  momentum: Any = ()  # running surprise, shaped like fast; () for rules without
  kept: Any = ()  # whatever else a rule carries: rows of a window, sums of an unfinished chunk
  start: Any = ()  # the fast weights that retention fades to, shaped like fast; (): to zero


class ChunkDecay(NamedTuple):
  """Gates of one chunk, accumulated: how each token's gradient weighs in each later state.

  With a, m, r, u the retention, momentum, write rate and write mask, W_t the fast weights and S_t the
  momentum after token t, W and S those before the chunk, and grad_i the gradient of token i:
    S_t = keep_C[t] S - sum_i surprise_CC[t, i] grad_i
    W_t = fast_C[t] W + momentum_C[t] S - sum_i mix_CC[t, i] grad_i
  Without momentum, keep_C and momentum_C are (), and S_t is token t's gradient alone.
  """

  fast_C: jax.Array  # fraction of W in each token's fast weights
  momentum_C: Any  # weight of S in each token's fast weights
  mix_CC: jax.Array  # weight of token i's gradient (column) in the fast weights after token t (row)
  keep_C: Any  # fraction of S in each token's momentum
  surprise_CC: jax.Array  # weight of token i's gradient (column) in the momentum after token t (row)


class ChunkOut(NamedTuple):
  """The outcome of reading one chunk beside the new state."""

  out_CM: jax.Array  # recalled values
  surprise_C: jax.Array  # norm of each token's recall-loss gradient at the base state
  loss_C: jax.Array  # recall loss of each token at the base state


def fast_weights(slow, state: MemoryState):
  """Returns the fast weights as they are: the base of rules that derive nothing from them."""
  del slow
  return state.fast


def no_close(slow, state: MemoryState, base) -> MemoryState:
  """Does nothing at the end of a chunk."""
  del slow, base
  return state


def all_tokens(slow, tokens: Token, gates: Gates, write_C, position_C):
  """Passes a chunk on as it is, for `chunk_of_steps`."""
  del slow
  return tokens, gates, write_C, position_C


def chunk_of_steps(rule: "MemoryRule", slow, state: MemoryState, base, prepared):
  """Reads a chunk token by token, for rules without a faster form.

  A token that is not written reads as in a chunk that writes nothing. Reports of surprise and loss are of
  the recall with the base: half the squared error and its norm.
  """
  def body(state, xs):
    token, gates, write, place = xs
    after, out_M = rule.step(slow, state, base, token, gates, place)
    # The step is taken for padding too, and dropped: under vmap a condition would compute both sides anyway.
    return jax.tree.map(lambda new, old: jnp.where(write.astype(bool), new, old), after, state), out_M

  state, out_CM = jax.lax.scan(body, state, prepared)
  token, _, write_C, position_C = prepared
  out_CM = jnp.where(write_C.astype(bool)[:, None], out_CM, rule.still(slow, base, token.q, position_C))
  # For reports alone: no gradient flows through this second recall.
  error_CM = jax.lax.stop_gradient(rule.apply(slow, base, token.k) - token.v)
  square_C = jnp.sum(error_CM * error_CM, -1)
  return state, ChunkOut(out_CM, jnp.sqrt(square_C), 0.5 * square_C)


def learned_weights(learned: Learned) -> MemoryState:
  """Returns the memory of the learned fast weights, without momentum."""
  return MemoryState(learned.fast)


def nothing_learned(learned: Learned) -> Learned:
  """Returns what a memory that holds nothing starts from: all fast weights are zero."""
  return learned._replace(fast=jax.tree.map(jnp.zeros_like, learned.fast))


class MemoryRule(NamedTuple):
  """One update rule, for one head. `base` is what a chunk's gradients are taken at: see `base_of`.

  A rule needs `init` and `step`; `complete` adds what follows from them. A rule with momentum, or with
  anything else that it carries, gives `start`; one that writes also at write rate 0, or whose `base` is not
  the fast weights, gives `apply`; one that reads by more than its base, `still`, and by learned starts in
  `slow`, `empty`. The rest makes it fast, or says where it differs from plain descent.
  """

  init: Callable  # key -> Learned
  step: Callable  # (slow, state, base, Token, Gates, place) -> (state, out_M): the plain form, of one token
  start: Callable = learned_weights  # Learned -> MemoryState: a memory that has read nothing
  apply: Any = None  # (slow, base, x_K) -> out_M: recalls with a base's weights; also with leading axes on x
  still: Any = None  # (slow, base, q_CK, position_C) -> out_CM: reads of a chunk that writes nothing
  empty: Callable = nothing_learned  # Learned -> Learned of a memory whose reads tell nothing of any start
  prepare: Callable = all_tokens  # (slow, Token, Gates, write_C, position_C) -> what needs no memory
  chunk: Callable | None = None  # (slow, state, base, prepared) -> (state, ChunkOut): C steps at once
  resume: Callable | None = None  # like chunk, from anywhere in a chunk; None: chunk does that itself
  base_of: Callable = fast_weights  # (slow, state) -> base of the chunk that starts
  close: Callable = no_close  # (slow, state, base) -> state: what happens when a chunk is full
  gates: tuple[GateSpec, ...] = ()  # gates of the rule's own
  uses: tuple[str, ...] = ("log_retention", "log_momentum", "write_rate")  # common gates it uses
  starts: GateStarts = GateStarts()  # where these begin
  reads: str = "token"  # "token": a read sees its own token's write; "chunk": writes of earlier chunks only
  aims: str = "value"  # "value": a read should be the value; "direction": point to it, its length is free
  lift: Callable | None = None  # (slow, x_K) -> [P]: what its `prepare` makes of keys; None: nothing
  kernel: Callable | None = None  # whole texts of many heads in one kernel, see `on_chip.read`; None: no such
  flops: Callable | None = None  # chunk_size -> FLOPs of one token, see `memory.flops`; None: no formula


def by_steps(rule: MemoryRule) -> MemoryRule:
  """Returns the rule that reads every chunk token by token: what a faster form must equal."""
  # Steps lift bare keys themselves: with a `lift` the projections would do it once more for nothing.
  return with_chunks(rule._replace(prepare=all_tokens, chunk=None, resume=None, lift=None, kernel=None))


def with_chunks(rule: MemoryRule) -> MemoryRule:
  """Returns a rule without `chunk` one that takes its steps in order."""
  if rule.chunk is not None:
    return rule
  return rule._replace(chunk=lambda *args: chunk_of_steps(rule, *args))


def complete(rule: MemoryRule, *, value_dim: int) -> MemoryRule:
  """Returns the rule with the `apply` and the `chunk` that follow from its `step`, where it has none."""
  # In this order: `still` is made of `apply`, and a chunk of steps calls both.
  if rule.apply is None:
    rule = rule._replace(apply=recall_of_step(rule, value_dim))
  if rule.still is None:
    rule = rule._replace(still=functools.partial(_wherever, rule.apply))
  return with_chunks(rule)


def _wherever(apply: Callable, slow, base, q_CK, position_C):
  del position_C
  return apply(slow, base, q_CK)


def recall_of_step(rule: MemoryRule, value_dim: int) -> Callable:
  """Returns the `apply` of a rule that has none: what a token reads that is written at rate 0."""
  def recall(slow, base, x_K):
    zero = jnp.zeros((), x_K.dtype)
    own = {spec.name: jnp.zeros(() if spec.size is None else (spec.size,), x_K.dtype) for spec in rule.gates}
    # The value does not matter: at write rate 0 no gradient reaches the weights. A rule that writes even
    # then, at a chunk's end for example, must bring its own `apply`.
    token = Token(x_K, x_K, jnp.zeros((value_dim,), x_K.dtype))
    state = rule.start(Learned(base, slow))
    gates = Gates(zero, zero, zero, own or ())  # Nothing fades.
    return rule.step(slow, state, base, token, gates, jnp.zeros((), jnp.int32))[1]

  def apply(slow, base, x_K):
    each = recall
    for _ in x_K.shape[:-1]:
      each = jax.vmap(each, in_axes=(None, None, 0))
    return each(slow, base, x_K)

  return apply


class Running(NamedTuple):
  """A memory at any point of a text, also inside a chunk."""

  memory: MemoryState
  base: Any  # what the current chunk's gradients are taken at
  position: jax.Array  # [] int32, tokens already read in the current chunk, in [0, chunk_size)
