"""Limits on what an endpoint is asked: a circuit that opens while it fails, and calls at the same time."""
import asyncio
import collections
import random
import time
from collections.abc import Callable

GROWS_AFTER = 100  # Successes in a row before one more call at a time is allowed.


class Circuit:
  """Refuses calls for a while after several failures in a row, then lets one through to try.

  Attributes:
    opened: how often it opened.
  """

  def __init__(self, failures: int, open_s: float, clock: Callable[[], float] = time.monotonic):
    """Starts closed.

    Args:
      failures: in a row that open it.
      open_s: seconds until a call is let through again.
      clock: seconds that only grow.
    """
    self.opened = 0
    self._most = failures
    self._open_s = open_s
    self._clock = clock
    self._failures = 0
    self._until: float | None = None  # None: closed.
    self._trying = False

  def admits(self) -> bool:
    """Returns whether a call may be made; after it `succeeded`, `failed` or `abandoned` must be called."""
    if self._until is None:
      return True
    if self._trying or self._clock() < self._until:
      return False
    self._trying = True  # Half-open: one call, on whose result the others wait.
    return True

  def succeeded(self) -> None:
    """Closes it."""
    self._failures = 0
    self._until = None
    self._trying = False

  def failed(self) -> None:
    """Counts a failure, and opens it after too many in a row or after the one that was let through."""
    self._failures += 1
    if self._trying or self._until is None and self._failures >= self._most:
      self.opened += 1
      self._until = self._clock() + self._open_s
    self._trying = False

  def abandoned(self) -> None:
    """Forgets a call that was cancelled: it says nothing of the endpoint."""
    self._trying = False


class CallLimit:
  """A limit on calls at the same time: halved where the endpoint is told too much, and slowly raised again.

  It belongs to the event loop that it is first entered in.

  Attributes:
    limit: calls at the same time now.
  """

  def __init__(self, most: int):
    """Starts with the most there may ever be."""
    self.limit = most
    self._most = most
    self._running = 0
    self._successes = 0
    # In the order of coming. A condition would wake all for each place, and forget one that is cancelled.
    self._waiting: collections.deque[asyncio.Future] = collections.deque()

  async def __aenter__(self) -> None:
    """Waits for room."""
    if self._running < self.limit and not self._waiting:
      self._running += 1
      return
    turn = asyncio.get_running_loop().create_future()
    self._waiting.append(turn)
    try:
      await turn  # Whoever made room has counted this one as running.
    except asyncio.CancelledError:
      if turn.cancelled():
        self._waiting = collections.deque(one for one in self._waiting if one is not turn)
      else:  # Its turn had come already.
        await self.__aexit__()
      raise

  async def __aexit__(self, *error) -> None:
    """Makes room."""
    self._running -= 1
    while self._waiting and self._running < self.limit:
      turn = self._waiting.popleft()
      if not turn.done():
        self._running += 1
        turn.set_result(None)

  def overloaded(self) -> None:
    """Halves the limit."""
    self._successes = 0
    self.limit = max(1, self.limit // 2)

  def succeeded(self) -> None:
    """Counts a success."""
    self._successes += 1
    if self._successes >= GROWS_AFTER:
      self._successes = 0
      self.limit = min(self._most, self.limit + 1)


def pause_s(tries: int, backoff_s: float, most_s: float, rng: random.Random) -> float:
  """Returns how long to wait after so many tries: uniform from 0 to a bound that doubles (full jitter)."""
  return rng.uniform(0, min(most_s, backoff_s * 2 ** min(tries - 1, 30)))
