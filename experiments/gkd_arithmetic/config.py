"""Settings of the study: a teacher of sums, and students that learn from it or from recorded solutions.

  python -m experiments.gkd_arithmetic.run --workdir=runs/gkd_arithmetic \
    --out=experiments/gkd_arithmetic/results.json
"""
from atlas_jax import config as base

STEPS = 400  # Of the teacher; students have a tenth.
ROWS = 64  # Problems per step, of every run.
FF_WIDTH = 168  # Feed-forward neurons per block, of the teacher.


def teacher():
  """Returns the config of the teacher, which learns recorded solutions."""
  config = _sums("sft", FF_WIDTH)
  config.data.update(segment_len=40, packed=False, max_problems=STEPS * ROWS)
  config.optim.update(lr=3e-3, warmup_steps=20, steps=STEPS)
  config.train.update(log_every_steps=10, eval_every_steps=100)
  return config


def student(recipe: str, *, ff_width: int, lr: float, teacher_workdir: str, start: str | None,
            beta: float = 0.0, on_policy_frac: float = 0.0, steps: int = STEPS // 10, seed: int = 0):
  """Returns the config of a student with fewer feed-forward neurons.

  Args:
    recipe: "gkd", or "sft", which learns recorded solutions as the teacher did.
    ff_width: neurons per block.
    lr: highest learning rate.
    teacher_workdir: of the teacher's run.
    start: folder of the model it starts from; None: drawn.
    beta, on_policy_frac: of config.distill.
    steps: updates.
    seed: draws the problems and their order.
  """
  config = _sums(recipe, ff_width)
  config.seed = seed
  config.model.path = start
  config.data.update(segment_len=40, packed=False, max_problems=steps * ROWS)
  config.distill.update(teacher=teacher_workdir, beta=beta, on_policy_frac=on_policy_frac)
  config.optim.update(lr=lr, warmup_steps=max(2, steps // 10), steps=steps)
  config.train.update(log_every_steps=1, eval_every_steps=max(1, steps // 2))
  return config


def _sums(recipe: str, ff_width: int):
  config = base.default()
  config.recipe = recipe
  config.model.kind = "decoder"
  config.data.options = {"operations": "+", "digits": 2}
  config.data.update(name="arithmetic", tokenizer="byte", batch_rows=ROWS, held_out_frac=0.1,
                     max_prompt_tokens=8)
  config.decoder.update(width=64, depth=3, heads=4, kv_heads=2, head_dim=16, ff_width=ff_width, scan_unroll=3)
  config.sampler.max_tokens = 32
  config.rollout.pad_tokens = 40
  config.optim.update(weight_decay=0.0)
  config.eval.update(max_problems=380, batch_rows=380, sample_prompt="47+85=", sample_tokens=0)
  config.checkpoint.update(every_steps=100_000, best_metric="val_accuracy", best_mode="max")
  config.monitor.update(tensorboard=False, progress=False)
  return config
