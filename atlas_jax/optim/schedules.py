"""Learning rates over a run, as functions of the number of updates made so far."""
from collections.abc import Callable

import jax.numpy as jnp

KINDS = ("cosine", "wsd")


def schedule(*, lr: float, warmup_steps: int, steps: int, schedule: str, decay_frac: float,
             final_lr_frac: float) -> Callable:
  """Makes the learning rate of a run.

  Update number n (from 1) warms up linearly as lr * n / warmup_steps, so the first one already moves; the
  last one has lr * final_lr_frac. A run shorter than its warm-up ends inside it.

  Args:
    lr: the highest rate.
    warmup_steps: updates until it is reached; 0 starts there.
    steps: updates of the whole run.
    schedule: "cosine" falls along half a cosine after the warm-up; "wsd" stays at lr (warm-up, stable, decay)
      and falls linearly over the last decay_frac of the run.
    decay_frac: fraction of `steps` that "wsd" spends falling, in (0, 1]; "cosine" does not use it.
    final_lr_frac: the last rate as a fraction of lr, in [0, 1].

  Returns:
    A function of the count of finished updates (0 before the first), int32 [], that gives float32 [].

  Raises:
    ValueError: for a field out of range, by its config name.
  """
  check(lr=lr, warmup_steps=warmup_steps, steps=steps, schedule=schedule, decay_frac=decay_frac,
        final_lr_frac=final_lr_frac)
  # At least one update falls, or a short run would never reach the final rate.
  falling_from = warmup_steps if schedule == "cosine" else steps - max(1, round(decay_frac * steps))

  def rate(count):
    # Counted from 1: the first update of a warm-up has lr / warmup_steps, where 0 would waste a batch.
    update = jnp.asarray(count).astype(jnp.float32) + 1.0
    warm = jnp.minimum(1.0, update / max(1, warmup_steps))
    # A run that ends inside its warm-up has steps below falling_from;
    # the quotient is then negative, so 0 here.
    fallen = jnp.clip((update - falling_from) / max(1, steps - falling_from), 0.0, 1.0)
    if schedule == "cosine":
      fallen = 0.5 - 0.5 * jnp.cos(jnp.pi * fallen)
    # The smaller of both, so that a warm-up that reaches into the decay never rises above it.
    return lr * jnp.minimum(warm, 1.0 - (1.0 - final_lr_frac) * fallen)

  return rate


def check(*, lr: float, warmup_steps: int, steps: int, schedule: str, decay_frac: float,
          final_lr_frac: float) -> None:
  """Refuses fields of a schedule that are out of range; works without a device."""
  if schedule not in KINDS:
    raise ValueError(f"config.optim.schedule={schedule!r} is not known; choose one of {', '.join(KINDS)}")
  for name, value, good, need in (
      ("lr", lr, lr > 0, "be above 0, such as 1e-3"),
      ("warmup_steps", warmup_steps, warmup_steps >= 0, "be at least 0 updates"),
      ("steps", steps, steps >= 1, "be at least 1 update"),
      ("decay_frac", decay_frac, 0 < decay_frac <= 1, "be a fraction of the run in (0, 1]"),
      ("final_lr_frac", final_lr_frac, 0 <= final_lr_frac <= 1, "be a fraction of lr in [0, 1]")):
    if not good:
      raise ValueError(f"config.optim.{name}={value} must {need}")
