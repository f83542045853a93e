"""Makes a process slow or ends it at a certain place; Python imports this where its folder is on PYTHONPATH.

ATLAS_TEST_FAULT holds PLACE:NAME:ACTION, such as compile:jit_step:sleep=40, save:4:SIGKILL or
read:held_out:SIGKILL; the place is the compilation of a program, the saving of a step, or the first batch of
a split.
"""

import functools
import json
import os
import signal
import time


def act(action):
  """Sleeps so many seconds, or sends the process a signal."""
  if action.startswith("sleep="):
    time.sleep(float(action.partition("=")[2]))
  else:
    os.kill(os.getpid(), signal.Signals[action])


def around(owner, name, wanted, label, action, *, after=False):
  """Replaces a function by one that acts first, or at last, where its arguments are labelled as wanted."""
  plain = getattr(owner, name)

  @functools.wraps(plain)
  def faulty(*args, **named):
    here = str(label(*args, **named)) == wanted
    if here and not after:
      act(action)
    out = plain(*args, **named)
    if here and after:
      act(action)
    return out

  setattr(owner, name, faulty)


def set_up(place, name, action):
  """Puts the fault in its place."""
  if place == "compile":
    from jax._src import compiler

    name_of = lambda backend, module, *rest: str(module.operation.attributes["sym_name"]).strip('"')
    around(compiler, "compile_or_get_cached", name, name_of, action)
  elif place == "save":
    from orbax.checkpoint import CheckpointManager

    around(CheckpointManager, "save", name, lambda manager, step, *rest, **named: step, action, after=True)
  else:
    from atlas_jax.data.text import TextSource

    split_of = lambda source, params: json.loads(source._settings).get("split", "")
    around(TextSource, "next", name, split_of, action)


if fault := os.environ.get("ATLAS_TEST_FAULT"):
  set_up(*fault.split(":"))
