"""Config of the runtime in which teachers of the study are deployed: our own server, a student in Python.

  CLOSED_LOOP_RUNS=runs/closed_loop atlas deploy runs/closed_loop/3/loop/round_1 \
    --config=experiments/closed_loop/runtime.py --canary=1.0

CLOSED_LOOP_RUNS is the workdir of the study, and CLOSED_LOOP_TEACHER the run of the teacher before it.
"""
import os
import pathlib

from atlas_jax.runtime import settings

HERE = pathlib.Path(__file__).parent
RUNS, TEACHER = "CLOSED_LOOP_RUNS", "CLOSED_LOOP_TEACHER"
WORLD = "experiments.closed_loop.proof"


def get_config(arg=None):
  """Returns the config; see the module."""
  if arg is not None:
    raise ValueError(f"config argument {arg!r} is unknown; there is none")
  folder = pathlib.Path(os.environ.get(RUNS, "runs/closed_loop")) / "deployed"
  templates = str(HERE / "templates.json")
  config = settings.default()
  config.agent.update(kind="python", options={"function": f"{WORLD}:student", "name": "sums"},
                      templates=templates)
  config.teacher.update(kind="function", function=f"{WORLD}:teacher_before", templates=templates,
                        form="texts", max_tokens=12)
  config.grader = "verbatim"
  config.routing.lane = "paired"
  config.store.update(url=f"sqlite:///{folder}/atlas.db", spool=f"{folder}/spool")
  config.deploy.update(canary=1.0, folder=f"{folder}/servers")
  return config
