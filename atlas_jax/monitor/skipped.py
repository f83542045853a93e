"""Updates that were skipped because a number was not finite: which number, and when there are too many."""
import math
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging


class NonFiniteError(RuntimeError):
  """Loss or gradients were not finite too many times in a row."""


def check(step: int, row: Mapping[str, Any], source, *, limit: int, newest_good: Callable) -> None:
  """Warns of a skipped update.

  Args:
    step: its number, from 1.
    row: its metrics.
    source: of the batch.
    limit: so many in a row are too many.
    newest_good: () -> path of the newest good checkpoint, None if there is none.

  Raises:
    NonFiniteError: if there are too many in a row.
  """
  bad = [name for name in ("train/loss_nats", "grad/norm") if not math.isfinite(row[name])]
  # Loss and norm are named first, since they have numbers. If both are finite, it is the carry or a gradient
  # of table rows that is not: see `step.make_step`.
  what = f"{bad[0]} is {row[bad[0]]}" if bad else "what it leaves to the next batch is not finite"
  # Steps are numbered from 1, batches from 0.
  origin = "; ".join(source.provenance(step - 1))
  logging.warning("step %d: %s; update skipped, batch from %s", step, what, origin)
  if row["train/skipped_in_row"] < limit:
    return
  raise NonFiniteError(
      f"step {step}: {what}; {row['train/skipped_in_row']} batches in a row gave no finite update "
      f"(config.train.skip_limit); last batch from {origin}; last good checkpoint: "
      f"{newest_good() or 'none'}. Look at that text, or lower config.optim.lr")
