"""The skeleton of sources whose batches are made from prompts with the parameters of the time."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from atlas_jax.data.problems import Problem
from atlas_jax.data.prompts import PromptSource
from atlas_jax.data.stepped import SteppedSource
from atlas_jax.evals import EvalOut
from atlas_jax.state import Trained

MOST_SKIPPED = 10_000  # Prompts in a row that are too long before it is an error.
REMEMBERED = 16  # Steps whose rows `provenance` can name exactly.


class PromptedSource(SteppedSource):
  """A source that takes as many prompts as a batch needs, so that it has a place in them beside its step.

  A subclass defines `_make` and `_places`.

  Attributes:
    step: batches given so far.
    tokenizer: of the ids, for who uses the run.
  """

  def __init__(self, prompts: PromptSource, settings: Mapping[str, Any], mine: range, *, tokenizer: Any):
    """Starts at step 0, at the place where the prompts are.

    Args:
      prompts: one problem per step; the same in every process, for all make the whole batch.
      settings, mine: see `SteppedSource`.
      tokenizer: of the ids.
    """
    super().__init__(settings, mine)
    self.tokenizer = tokenizer
    self._prompts = prompts
    self._origins: dict[int, list[str]] = {}
    self._metrics = EvalOut({})

  def _make(self, trained: Trained) -> tuple[dict[str, np.ndarray], list[str], EvalOut]:
    """Returns this process's rows of the next batch, where each comes from, and its metrics."""
    raise NotImplementedError

  def _places(self, step: int) -> Sequence[int]:
    """Returns the prompt of each of this process's rows of a step, if none was passed over before."""
    raise NotImplementedError

  def next(self, trained: Trained) -> dict[str, np.ndarray]:
    """Returns the next batch, this process's rows; what the model writes, it writes with these parameters.

    Raises:
      ValueError: if a prompt, a reward or what a sampler wrote is not right; the place stays as it was.
    """
    first = self._prompts.step
    try:
      batch, origins, self._metrics = self._make(trained)
    except Exception:
      self._prompts.step = first  # A state that is saved now must not lose them.
      raise
    self._origins = dict([*self._origins.items(), (self.step, origins)][-REMEMBERED:])
    self.step += 1
    return batch

  def metrics(self) -> EvalOut:
    """Returns what is to be logged of the batch given last."""
    return self._metrics

  def _take(self, count: int, encode: Callable[[Problem], Any], too_long: str) -> list[tuple[Problem, Any]]:
    """Returns the next problems that can be encoded, each with its encoding.

    Args:
      count: how many.
      encode: problem -> what is needed of it, None for one that is passed over.
      too_long: what is wrong if there seem to be none, and a remedy.
    """
    found: list[tuple[Problem, Any]] = []
    skipped = 0
    while len(found) < count:
      problem = self._prompts.next()["problems"][0]
      if (encoded := encode(problem)) is not None:
        found.append((problem, encoded))
        skipped = 0
      elif (skipped := skipped + 1) == MOST_SKIPPED:  # Prompts have no end: it would look for ever.
        raise ValueError(f"{skipped} {too_long}, or set config.data.overlong='truncate'")
    return found

  def state(self) -> dict:
    """Returns the place, here and in the prompts; independent of the number of processes."""
    # Which prompts were passed over depends on their lengths, so the step does not say how many were taken.
    return {**super().state(), "prompts": self._prompts.state()}

  def restore(self, state: dict) -> None:
    """Goes to the saved place; see `SteppedSource.restore`."""
    super().restore(state)
    self._prompts.restore(state["prompts"])
    self._origins = {}

  def provenance(self, step: int) -> list[str]:
    """Names where the prompt of each of this process's rows comes from.

    For batches that this start has not given lately: as it is where no prompt is passed over or resampled.
    """
    if step in self._origins:
      return self._origins[step]
    return [self._prompts.batch(place)["problems"][0].where for place in self._places(step)]
