"""The order in which recursive models call their stacks: TRM, with one latent, HRM, and a plain transformer.

Each is a function (call, levels, latents, embedded, n_outer, n_inner) -> latents. `call(level, x)` runs a
stack of blocks; `levels` are the stacks' parameters; `embedded` is the input; `latents[0]` is the answer.
Gradient passes through the last calls only, and the earlier ones run in loops that need no backward pass.
"""
from collections.abc import Callable

import jax

LEVELS = {"trm": ("level",), "single": ("level",), "hrm": ("answer_level", "latent_level"),
          "transformer": ("level",)}
LATENTS = {"trm": 2, "single": 1, "hrm": 2, "transformer": 1}


def trm(call: Callable, levels: tuple, latents: tuple, embedded, n_outer: int, n_inner: int) -> tuple:
  """Improves the latent n_inner times and then the answer, n_outer times over; the last time with gradient.

  Source: Jolicoeur-Martineau 2025, arXiv:2510.04871, algorithm 2.
  """
  def cycle(levels, latents, embedded, repeat):
    answer, latent = latents
    injected = answer + embedded
    # The input enters with every update of the latent, and not with that of the answer: this tells one stack
    # which of the two it works on.
    latent = repeat(n_inner, lambda latent: call(levels[0], latent + injected), latent)
    return call(levels[0], answer + latent), latent

  return _last_with_gradient(cycle, levels, latents, embedded, n_outer)


def single(call: Callable, levels: tuple, latents: tuple, embedded, n_outer: int, n_inner: int) -> tuple:
  """Like `trm` with one latent that is the answer too: n_inner calls see the input, one does not."""
  def cycle(levels, latents, embedded, repeat):
    (latent,) = latents
    latent = repeat(n_inner, lambda latent: call(levels[0], latent + embedded), latent)
    return (call(levels[0], latent),)

  return _last_with_gradient(cycle, levels, latents, embedded, n_outer)


def hrm(call: Callable, levels: tuple, latents: tuple, embedded, n_outer: int, n_inner: int) -> tuple:
  """Has a stack for the answer and one for the latent; gradient passes through the last call of each.

  Source: Wang et al. 2025, arXiv:2506.21734.
  """
  def inner(levels, answer, embedded, times, latent):
    injected = answer + embedded
    return _loop(times, lambda latent: call(levels[1], latent + injected), latent)

  # The one-step gradient: parameters are cut too, so that earlier calls keep nothing for a backward pass.
  quiet_levels, quiet_embedded, (answer, latent) = jax.lax.stop_gradient((levels, embedded, latents))

  def cycle(state):
    answer, latent = state
    latent = inner(quiet_levels, answer, quiet_embedded, n_inner, latent)
    return call(quiet_levels[0], answer + latent), latent

  answer, latent = _loop(n_outer - 1, cycle, (answer, latent))
  # The last cycle is split: all of its calls but the last of each stack are quiet as well.
  latent = inner(quiet_levels, answer, quiet_embedded, n_inner - 1, latent)
  latent = call(levels[1], latent + (answer + embedded))
  return call(levels[0], answer + latent), latent


def transformer(call: Callable, levels: tuple, latents: tuple, embedded, n_outer: int, n_inner: int) -> tuple:
  """Calls its one stack once; n_outer and n_inner mean nothing to it."""
  del n_outer, n_inner
  return (call(levels[0], jax.lax.stop_gradient(latents[0]) + embedded),)


VARIANTS = {"trm": trm, "single": single, "hrm": hrm, "transformer": transformer}


def _loop(times: int, function: Callable, x):
  return jax.lax.fori_loop(0, times, lambda _, x: function(x), x) if times else x


def _unrolled(times: int, function: Callable, x):
  # A loop of the program, which the compiler sees whole; n_inner + 1 calls have a gradient, all others none.
  for _ in range(times):
    x = function(x)
  return x


def _last_with_gradient(cycle: Callable, levels, latents, embedded, n_outer: int):
  """Runs a cycle n_outer - 1 times in a loop without gradient, then once, unrolled, with it."""
  quiet_levels, quiet_embedded, latents = jax.lax.stop_gradient((levels, embedded, latents))
  # (n_outer - 1)(n_inner + 1) calls that keep nothing: their number costs time and no memory.
  latents = _loop(n_outer - 1, lambda z: cycle(quiet_levels, z, quiet_embedded, _loop), latents)
  return cycle(levels, jax.lax.stop_gradient(latents), embedded, _unrolled)
