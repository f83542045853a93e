"""Numbers of a server, in the text form that Prometheus reads."""
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import (
  CONTENT_TYPE_LATEST,
  CollectorRegistry,
  Counter,
  Gauge,
  Histogram,
  generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

PREFIX = "atlas_jax_"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class ServerMetrics:
  """Counts of requests, tokens and times, beside the scheduler's own."""

  def __init__(self, stats: Callable[[], Mapping[str, float]], meanings: Mapping[str, str]):
    """Makes all numbers, at 0; each server has its own, so that two in one process do not mix.

    Args:
      stats: of the scheduler, read whenever somebody looks.
      meanings: of these, by name.
    """
    self._registry = CollectorRegistry()

    def make(kind: Any, name: str, meaning: str, labels: tuple[str, ...] = (), **options: Any):
      return kind(PREFIX + name, meaning, labels, registry=self._registry, **options)

    self.requests = make(Counter, "requests", "Answers by route and status.", ("route", "status"))
    self.in_flight = make(Gauge, "requests_in_flight", "Requests that are being answered.")
    self.cancelled = make(Counter, "requests_cancelled", "Requests that ended early.")
    self.prompt_tokens = make(Counter, "prompt_tokens", "Tokens of prompts.")
    self.cached_tokens = make(Counter, "cached_tokens", "Of these, tokens not read again.")
    self.completion_tokens = make(Counter, "completion_tokens", "Tokens of completions.")
    self.first_token_s = make(Histogram, "first_token_seconds", "From a request to its first token.",
                              buckets=SECONDS)
    self.request_s = make(Histogram, "request_seconds", "From a request to the end of its answer.",
                          buckets=SECONDS)
    self._registry.register(_SchedulerNumbers(stats, meanings))

  def count(self, usage: Mapping[str, Any]) -> None:
    """Adds the tokens of a request."""
    self.prompt_tokens.inc(usage["prompt_tokens"])
    self.cached_tokens.inc(usage["prompt_tokens_details"]["cached_tokens"])
    self.completion_tokens.inc(usage["completion_tokens"])

  def text(self) -> tuple[bytes, str]:
    """Returns all numbers, and the type of this content."""
    return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _SchedulerNumbers:
  """The scheduler's numbers, in the form in which the library collects them."""

  def __init__(self, stats: Callable[[], Mapping[str, float]], meanings: Mapping[str, str]):
    self._stats = stats
    self._meanings = meanings

  def collect(self) -> Iterator[Any]:
    """Yields each number."""
    for name, value in self._stats().items():
      meaning = self._meanings[name] if name in self._meanings else "See the scheduler."
      yield GaugeMetricFamily(f"{PREFIX}scheduler_{name}", meaning, value=value)
