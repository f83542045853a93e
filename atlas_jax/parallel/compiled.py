"""All processes wait for each other behind every compilation, so that a slow one is not taken for a dead one.

What a compiled program does first is to talk to the other processes, and that has a limit of its own: 30
seconds for the first words on a CPU. A process that reads a program from its cache would wait so long for one
that compiles it, and fail.
"""
from collections.abc import Callable

import jax


def after_each(meet: Callable[[str], None]) -> None:
  """Has `meet` called with a program's name behind the compilation of each that runs on all processes."""
  # JAX tells of the end of a compilation only by an event, which says nothing of the program's devices. So
  # the function itself is replaced, in the module where its caller looks it up at each call. It is no public
  # name: a JAX without it fails here, at the start. Programs of some processes alone are not waited for,
  # since the others never compile them.
  from jax._src import compiler
  compile_ = compiler.compile_or_get_cached
  everyone = jax.process_count()

  def compile_and_meet(backend, computation, devices, *args, **named):
    program = compile_(backend, computation, devices, *args, **named)
    if len({device.process_index for device in devices.flat}) == everyone:
      meet(str(computation.operation.attributes["sym_name"]).strip('"'))
    return program

  compiler.compile_or_get_cached = compile_and_meet
