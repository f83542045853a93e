"""Writes of many sessions in one transaction: what came while the last one was written.

Where the store is down, writes go to a spool; what is spooled of a session draws its later writes with it.
"""
import asyncio
import collections
import functools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from atlas_jax.data.traces.connections import StoreError, Transaction, UnreachableStore
from atlas_jax.files.damage import one_line
from atlas_jax.runtime.spool import Spool, StoreFull

Threaded = Callable[[Callable[[], Any]], Awaitable[Any]]


class Write(NamedTuple):
  """Something to be written."""

  work: Callable[[Transaction], Any] | None  # None: an event
  done: asyncio.Future | None                # None: nobody waits
  spooled: tuple[str, Mapping[str, Any]] | None  # (key, operation) where the store is down; None: it fails
  event: tuple[str, int, Mapping[str, Any]] | None = None  # (key, seq, event)


class GroupCommit:
  """Takes writes, and has them made together.

  Attributes:
    down: whether the store did not answer last.
    spooled: keys of sessions whose writes go to the spool.
    lost: keys of sessions of which something could be written nowhere.
    lock: held while a batch is written, and by whoever takes from the spool.
  """

  def __init__(self, transaction: Callable[[Sequence[Write]], list[Any]], threaded: Threaded,
               on_disk: Threaded, spool: Spool, *, batch_rows: int, batch_s: float, retry_s: float,
               stall_s: float):
    """Takes what writes.

    Args:
      transaction: makes writes in one transaction, and returns their results.
      threaded: runs a function in the thread of the store.
      on_disk: runs one in a thread that a store that hangs does not hold up.
      spool: where the store is down.
      batch_rows, batch_s: writes for which nobody waits are put off for so many, or so long.
      retry_s: until a store that is down is tried again.
      stall_s: after which a store that does not answer is down.
    """
    self.down = False
    self.spooled: set[str] = set()
    self.lost: set[str] = set()
    self.lock = asyncio.Lock()
    self._transaction = transaction
    self._threaded = threaded
    self._on_disk = on_disk
    self._spool_files = spool
    self._batch_rows = batch_rows
    self._batch_s = batch_s
    self._retry_s = retry_s
    self._stall_s = stall_s
    self._pending: list[Write] = []
    self._urgent = asyncio.Event()
    self._some = asyncio.Event()
    self._tried = 0.0
    self._stuck: asyncio.Future | None = None

  async def written(self, work: Callable[[Transaction], Any], spooled: tuple[str, Mapping] | None) -> Any:
    """Hands something over and waits for its result; None where it is spooled."""
    done = asyncio.get_running_loop().create_future()
    self.put(Write(work, done, spooled), urgent=True)
    return await done

  def put(self, write: Write, *, urgent: bool = False) -> None:
    """Takes a write; one that is urgent is made at once, with all that came before."""
    self._pending.append(write)
    self._some.set()
    if urgent or len(self._pending) >= self._batch_rows:
      self._urgent.set()

  async def run(self) -> None:
    """Writes what is pending, all together, as soon as somebody waits for it or it has waited long enough."""
    while True:
      await self._some.wait()
      try:
        async with asyncio.timeout(self._batch_s):
          await self._urgent.wait()
      except TimeoutError:
        logging.debug("events are written after %g s", self._batch_s)
      async with self.lock:
        batch, self._pending = self._pending, []
        self._some.clear()
        self._urgent.clear()
        await self._stored(batch)

  async def asked(self, work: Callable[[], Any]) -> Any:
    """Runs a function in the thread of the store, within the time that the store has for an answer.

    Raises:
      UnreachableStore: if it does not answer, or hangs still from an earlier time.
    """
    if self._stuck is not None and not self._stuck.done():
      raise UnreachableStore(f"the store has not answered for more than {self._stall_s:g} seconds")
    job = asyncio.ensure_future(self._threaded(work))
    await asyncio.wait([job], timeout=self._stall_s)
    if job.done():
      return job.result()
    self._stuck = job  # A thread cannot be ended; nothing else is given to it before it comes back.
    job.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    raise UnreachableStore(f"the store does not answer within {self._stall_s:g} seconds")

  async def _stored(self, batch: Sequence[Write]) -> None:
    """Writes a batch; where that fails each half for itself, and where the store is down to the spool."""
    # What is spooled of a session stays together: later parts follow the earlier ones.
    direct: list[Write] = []
    late: list[Write] = []
    for one in batch:
      is_late = one.spooled is not None and one.spooled[0] in self.spooled
      (late if is_late else direct).append(one)
    try:
      if self.down and time.monotonic() < self._tried + self._retry_s:
        raise UnreachableStore("the store is down, and not tried again yet")
      results = await self.asked(functools.partial(self._transaction, direct)) if direct else []
    except UnreachableStore as error:
      self._is_down(error)
      await self._spool(batch, error)
      return
    except Exception as error:  # Of one of them: a driver raises what it likes about a value.
      self.down = False
      if len(direct) == 1:
        _fail(direct[0], error, self.lost)
      else:
        for half in (direct[:len(direct) // 2], direct[len(direct) // 2:]):
          await self._stored(half)
    else:
      self.down = self.down and not direct
      for one, result in zip(direct, results):
        _done(one, result)
    await self._spool(late, None)

  def _is_down(self, error: UnreachableStore) -> None:
    if not self.down:
      logging.error("%s; sessions go on, and what is to be stored goes to %s", error,
                    self._spool_files.folder)
    if not self.down or time.monotonic() >= self._tried + self._retry_s:
      self._tried = time.monotonic()
    self.down = True

  async def _spool(self, batch: Sequence[Write], error: StoreError | None) -> None:
    """Puts writes into the spool, those of a session together; those that have no place there fail."""
    of: dict[str, list[Write]] = collections.defaultdict(list)
    for one in batch:
      if one.spooled is None:
        assert error is not None
        _fail(one, error, self.lost)
      else:
        of[one.spooled[0]].append(one)
    for key, listed in of.items():
      operations = [one.spooled[1] for one in listed if one.spooled and one.spooled[1]]
      try:
        if operations:
          await self._on_disk(functools.partial(self._spool_files.put, key, operations))
          self.spooled.add(key)
      except Exception as full:  # A full disk, or a value that is no JSON.
        for one in listed:
          _fail(one, full, self.lost)
      else:
        for one in listed:
          _done(one, None)


def _done(write: Write, result: Any) -> None:
  if write.done is not None and not write.done.done():
    write.done.set_result(result)


def _fail(write: Write, error: Exception, lost: set[str]) -> None:
  """Tells whoever waits that a write was not made; where nobody does, its session has lost something."""
  if not isinstance(error, StoreError | StoreFull):
    error = StoreError(f"it cannot be stored: {one_line(error) or type(error).__name__}")
  if write.done is not None:
    if not write.done.done():
      write.done.set_exception(error)
  elif write.spooled is not None:
    logging.error("an event of session %s is lost: %s", write.spooled[0], error)
    lost.add(write.spooled[0])
