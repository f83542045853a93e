"""Settings of the study: the student and the first teacher, and how a teacher learns from a round's sessions.

  python -m atlas_jax.main --config=experiments/closed_loop/config.py:stage=start,seed=3 --workdir=runs/t
  python scripts/run_offline_pipeline.py --config=experiments/closed_loop/config.py:stage=round,seed=3 \
    --export-path=SESSIONS.jsonl --output-dir=OUT --override model.path=TEACHER \
    --override teacher.student=STUDENT

Stages: "student" adds, obeys hints, and knows no letter; it is frozen. "start" writes hints, "plain" more
often than others. "round" is the training of a pipeline: GRPO on the questions of approved sessions. `smoke`
makes all of them tiny.
"""
from atlas_jax import config as base
from atlas_jax.data.convention import CONVENTIONS
from experiments.adaptive_teacher import config as adaptive
from experiments.adaptive_teacher.config import ANSWER_TOKENS as ANSWER_TOKENS
from experiments.adaptive_teacher.config import FORMATS as FORMATS
from experiments.adaptive_teacher.config import HINT_TOKENS as HINT_TOKENS
from experiments.adaptive_teacher.config import PROBE_TOKENS as PROBE_TOKENS

PLAIN_SHARE = 3  # Hints "plain" for one of each other: the likeliest hint is right where the student is.
ROUND_STEPS = 180


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, stage="round", seed=0, smoke=False)
  stages = {"student": adaptive.student, "start": start, "round": round_}
  if arg.stage not in stages:
    raise ValueError(f"stage={arg.stage!r} is unknown; known stages: {', '.join(stages)}")
  config = stages[arg.stage](arg.seed)
  return adaptive._smoke(config) if arg.smoke else config


def start(seed: int):
  """Returns the config of the first teacher: it writes hints whatever the letter, "plain" most often."""
  config = adaptive.teacher_start(seed)
  hints = ["plain"] * (PLAIN_SHARE - 1) + [*CONVENTIONS]
  config.data.options = {"act": "teacher", "hints": ",".join(hints)}
  return config


def round_(seed: int):
  """Returns the config of one round's training, on the questions of sessions."""
  config = adaptive.teacher(seed)
  config.data.options = {}
  config.data.name = "traces"
  config.optim.steps = ROUND_STEPS
  config.train.eval_every_steps = ROUND_STEPS
  config.eval.max_problems = 64
  return config
