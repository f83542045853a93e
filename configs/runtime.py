"""An agent at work under a teacher that gets better.  Results: docs/guides/runtime.md.

  atlas run --config=configs/runtime.py:arithmetic --tasks=tasks.jsonl --concurrency=64 --json
  atlas config validate --config=configs/runtime.py:arithmetic

Without an argument the student is an endpoint of yours, and the teacher another; with arithmetic both are
functions of this project, without key or network: sums in two columns, by a student that forgets to carry.
Fields are those of atlas_jax/defaults/runtime.py.
"""
from atlas_jax.runtime import settings

WORLD = "atlas_jax.runtime.worlds.arithmetic"


def get_config(arg=None):
  """Returns the config; see the module."""
  if arg not in (None, "arithmetic"):
    raise ValueError(f"config argument {arg!r} is unknown; known is arithmetic")
  config = settings.default()
  if arg == "arithmetic":
    return _arithmetic(config)
  config.agent.update(kind="openai", options={"url": "http://127.0.0.1:8000/v1", "model": "student"})
  config.teacher.update(kind="endpoint", url="http://127.0.0.1:8001/v1", served_as="teacher")
  return config


def _arithmetic(config):
  config.agent.update(kind="python", options={"function": f"{WORLD}:student", "name": "sums",
                                              "idempotent": True},
                      templates="plain")
  config.teacher.update(kind="function", function=f"{WORLD}:first_teacher", templates="plain", form="texts",
                        max_tokens=8)
  config.routing.lane = "paired"  # Sessions of all versions are supervised alike, to be compared.
  config.loop.update(train="--config=configs/teacher_rcl.py:cpu --override teacher.shown=attempt")
  return config
