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
from atlas_jax.runtime.spool import Spool, StoreFull


class Write(NamedTuple):
  """Something to be written."""

  work: Callable[[Transaction], Any]
  done: asyncio.Future | None           # None: nobody waits
  spooled: tuple[str, Mapping[str, Any]] | None  # (key, operation) where the store is down; None: it fails
  rows: int = 1


class GroupCommit:
  """Takes writes, and has them made together.

  Attributes:
    down: whether the store did not answer last.
    spooled: keys of sessions whose writes go to the spool.
  """

  def __init__(self, transaction: Callable[[Sequence[Write]], list[Any]],
               threaded: Callable[[Callable[[], Any]], Awaitable[Any]], spool: Spool, *, batch_rows: int,
               batch_s: float, retry_s: float):
    """Takes what writes.

    Args:
      transaction: makes writes in one transaction, and returns their results.
      threaded: runs a function in the thread of the store.
      spool: where the store is down.
      batch_rows, batch_s: writes for which nobody waits are put off for so many, or so long.
      retry_s: until a store that is down is tried again.
    """
    self.down = False
    self.spooled: set[str] = set()
    self._transaction = transaction
    self._threaded = threaded
    self._spool_files = spool
    self._batch_rows = batch_rows
    self._batch_s = batch_s
    self._retry_s = retry_s
    self._pending: collections.deque[Write] = collections.deque()
    self._urgent = asyncio.Event()
    self._some = asyncio.Event()
    self._tried = 0.0

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
      batch = [*self._pending]
      self._pending.clear()
      self._some.clear()
      self._urgent.clear()
      if batch:
        await self._stored(batch)

  async def _stored(self, batch: Sequence[Write]) -> None:
    """Writes a batch; where that fails each for itself, and where the store is down to the spool."""
    # What is spooled of a session stays together: later parts follow the earlier ones.
    direct = [one for one in batch if one.spooled is None or one.spooled[0] not in self.spooled]
    waits = self.down and time.monotonic() < self._tried + self._retry_s
    try:
      if waits and any(one.spooled for one in direct):
        raise UnreachableStore("the store is down, and not tried again yet")
      results = await self._threaded(functools.partial(self._transaction, direct))
    except UnreachableStore as error:
      self._is_down(error)
      await self._spool(batch, error)
      return
    except StoreError as error:
      if len(batch) == 1:
        return _fail(batch[0], error)
      for one in batch:
        await self._stored([one])
      return
    self.down = False
    for one, result in zip(direct, results):
      _done(one, result)
    await self._spool([one for one in batch if one not in direct], None)

  def _is_down(self, error: UnreachableStore) -> None:
    if not self.down:
      logging.error("%s; sessions go on, and what is to be stored goes to %s", error,
                    self._spool_files.folder)
    self.down = True
    self._tried = time.monotonic()

  async def _spool(self, batch: Sequence[Write], error: StoreError | None) -> None:
    for one in batch:
      if one.spooled is None:
        assert error is not None
        _fail(one, error)
        continue
      key, operation = one.spooled
      try:
        if operation:
          await self._threaded(functools.partial(self._spool_files.put, key, operation))
          self.spooled.add(key)
        _done(one, None)
      except StoreFull as full:
        _fail(one, full)


def _done(write: Write, result: Any) -> None:
  if write.done is not None and not write.done.done():
    write.done.set_result(result)


def _fail(write: Write, error: Exception) -> None:
  if write.done is None:
    logging.error("an event is lost: %s", error)
  elif not write.done.done():
    write.done.set_exception(error)
