"""How soon a batch is durable: written by itself, together with those of other sagas, or behind the saga's back.

- `group`: whoever writes while a write is under way waits, and goes with all the others in the next round trip.
- `background`: batches wait in a queue of bounded length, and the saga waits for none of them until its end.

There is one of each for a store and an event loop, whichever sagas use it. Both write through `write_many`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, NamedTuple

from sagaz_core.errors import DuplicateSagaError, StoreUnavailableError
from sagaz_core.storage.base import Batch
from sagaz_core.storage.together import Together, calls_at_once, shared
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagaz_core.storage.base import SnapshotStorage

logger = logging.getLogger(__name__)

MAX_BATCHES = 1000
MAX_BYTES = 64 * 1024 * 1024
_TOGETHER = 500
_LAST_TRY = 5.0
_DELAYS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class GroupWriter:
    """Writes the batches of many sagas in one round trip. `write` returns when its batch is durable."""

    def __init__(self, storage: SnapshotStorage) -> None:
        self._together: Together[Batch, None] = Together(storage.write_many, calls_at_once(storage))

    async def write(self, batch: Batch) -> None:
        """Do what `SnapshotStorage.write` does."""
        try:
            await self._together.ask(batch)
        except asyncio.CancelledError:
            self._together.give_up()
            raise


class Delivery:
    """What became of what one run gave to a background writer.

    `written`: some of it is in the store. `refused` is what the store said when it refused some, and nobody was told
    yet; when that was a `DuplicateSagaError`, another run writes under the saga's id: it stays, and no more is written.
    """

    __slots__ = ("refused", "written")

    def __init__(self) -> None:
        self.written = False
        self.refused: Exception | None = None

    @property
    def taken_over(self) -> bool:
        """Whether another run writes under the saga's id."""
        return isinstance(self.refused, DuplicateSagaError)

    def tell(self) -> None:
        """Raise what the store said when it refused some of it."""
        error = self.refused
        if error is not None:
            if not self.taken_over:
                self.refused = None
            raise error


class _Queued(NamedTuple):
    batch: Batch
    size: int
    forget_below: int | None
    delivery: Delivery

    def and_(self, later: _Queued) -> _Queued:
        """Return both in one, which the store takes or refuses as a whole."""
        one, other = self.batch, later.batch
        events, snapshots = (*one.events, *other.events), (*one.snapshots, *other.snapshots)
        batch = Batch(one.saga_id, one.saga or other.saga, events, snapshots, other.summary or one.summary)
        below = self.forget_below if later.forget_below is None else later.forget_below
        return _Queued(batch, self.size + later.size, below, self.delivery)


class Losses:
    """What a background writer has not written, and never will. `batches` went with all that was in them."""

    __slots__ = ("batches", "events", "snapshots")

    def __init__(self) -> None:
        self.batches = self.events = self.snapshots = 0

    def count(self, batch: Batch) -> None:
        """Count what is in the batch."""
        self.batches += 1
        self.events += len(batch.events)
        self.snapshots += len(batch.snapshots)

    def __repr__(self) -> str:
        return f"Losses(batches={self.batches}, events={self.events}, snapshots={self.snapshots})"


class BackgroundWriter:
    """Writes batches in the order in which they came, while their sagas go on.

    At most `max_batches` batches and `max_bytes` bytes wait; what comes when it is full is lost. So is what waits when
    the process dies, and what the store refuses. All that this process knows to be lost is counted in `losses` and
    logged. A store that cannot be reached is tried again until it can; the queue fills meanwhile.
    """

    def __init__(self, storage: SnapshotStorage, max_batches: int = MAX_BATCHES, max_bytes: int = MAX_BYTES) -> None:
        self.losses = Losses()
        self.max_batches = max_batches
        self.max_bytes = max_bytes
        self._storage = storage
        self._queue: deque[_Queued] = deque()
        self._bytes = 0
        self._writing: list[_Queued] = []
        self._task: asyncio.Task[None] | None = None
        self._ends: list[tuple[str, asyncio.Future[None], bool]] = []
        self._unreachable = False

    def put(self, batch: Batch, forget_below: int | None = None, delivery: Delivery | None = None) -> bool:
        """Queue the batch, and say whether there was room. Then delete the saga's snapshots below that `seq`, if any.

        `delivery` is the same one for all batches of a run. Raises what the store said when it refused an earlier one.
        """
        delivery = delivery or Delivery()
        delivery.tell()
        size = sum(len(event.data) for event in batch.events) + sum(len(one.data) for one in batch.snapshots)
        full = len(self._queue) + len(self._writing) >= self.max_batches
        if full or (self._queue and self._bytes + size > self.max_bytes):
            waiting = f"{len(self._queue):,} batches" if full else f"{self._bytes:,} bytes"
            self._lose(batch, f"{waiting} wait already")
            return False
        self._queue.append(_Queued(batch, size, forget_below, delivery))
        self._bytes += size
        self._see_to_it()
        return True

    def _see_to_it(self) -> None:
        """Have a task that writes, also where one was cancelled before it had begun, as the loop is being closed."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())

    async def written(self, saga_id: str, delivery: Delivery | None = None, *, patient: bool = True) -> None:
        """Wait until nothing of this saga waits any more; who is not patient, until the store cannot be reached.

        Raises what the store said when it refused some of it.
        """
        waits = any(queued.batch.saga_id == saga_id for queued in (*self._queue, *self._writing))
        if waits and (patient or not self._unreachable):
            end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._ends.append((saga_id, end, patient))
            self._see_to_it()
            await end
        if delivery is not None:
            delivery.tell()

    async def _run(self) -> None:
        try:
            while self._queue:
                self._writing = self._next()
                await self._write_until_it_is_there()
                self._unreachable = False
                self._done()
        except asyncio.CancelledError:  # the loop is being closed: a last try
            await self._write_the_rest()
            raise
        finally:
            self._task = None

    def _next(self) -> list[_Queued]:
        """Take what is written next. Of one run it is one batch: none may be written when one before it is refused."""
        found: dict[Delivery, _Queued] = {}
        for _ in range(min(_TOGETHER, len(self._queue))):
            queued = self._queue.popleft()
            delivery = queued.delivery
            if delivery.taken_over:
                self._bytes -= queued.size
                self._lose(queued.batch, str(delivery.refused))
            else:
                found[delivery] = found[delivery].and_(queued) if delivery in found else queued
        return list(found.values())

    async def _write_until_it_is_there(self) -> None:
        tries = 0
        while True:
            try:
                return await self._write()
            except StoreUnavailableError as error:
                self._unreachable = True
                self._end(waited for waited in self._ends if not waited[2])
                if tries == 0:
                    logger.warning("what waits for the store %s waits on: %s", safe_url(self._storage.url), error)
            except Exception as error:  # the store's, which may be anyone's
                for queued in self._writing:
                    self._refuse(queued, error)
                return None
            await asyncio.sleep(_DELAYS[min(tries, len(_DELAYS) - 1)])
            tries += 1

    async def _write(self) -> None:
        results = await self._storage.write_many([queued.batch for queued in self._writing])
        for queued, result in zip(self._writing, results, strict=True):
            if queued.forget_below is not None and result is None:
                await self._storage.delete_snapshots(queued.batch.saga_id, below_seq=queued.forget_below)
        # Not before all is done: until then it may be that all of it is tried again.
        for queued, result in zip(self._writing, results, strict=True):
            if result is None:
                queued.delivery.written = True
            else:
                self._refuse(queued, result)

    async def _write_the_rest(self) -> None:
        try:
            async with asyncio.timeout(_LAST_TRY):
                await self._write()
                self._done()
                while self._queue:
                    self._writing = self._next()
                    await self._write()
                    self._done()
        except Exception as error:  # the store's, which may be anyone's
            for queued in (*self._writing, *self._queue):
                self._lose(queued.batch, str(error))
            self._queue.clear()
            self._done()

    def _done(self) -> None:
        self._bytes -= sum(queued.size for queued in self._writing)
        if not self._queue:
            self._bytes = 0
        self._writing = []
        waiting = {queued.batch.saga_id for queued in self._queue}
        self._end(waited for waited in self._ends if waited[0] not in waiting)

    def _end(self, waited: Iterable[tuple[str, asyncio.Future[None], bool]]) -> None:
        for _, end, _ in waited:
            if not end.done():
                end.set_result(None)
        self._ends = [waited for waited in self._ends if not waited[1].done()]

    def _refuse(self, queued: _Queued, error: Exception) -> None:
        queued.delivery.refused = error
        self._lose(queued.batch, str(error))

    def _lose(self, batch: Batch, why: str) -> None:
        self.losses.count(batch)
        logger.warning(
            "saga %s: %d events and %d snapshots are lost: %s",
            batch.saga_id,
            len(batch.events),
            len(batch.snapshots),
            why,
        )


def group_writer(storage: SnapshotStorage) -> GroupWriter:
    """Return the store's group writer on the running loop."""
    return shared("group_writer", storage, lambda: GroupWriter(storage))


def background_writer(storage: SnapshotStorage) -> BackgroundWriter:
    """Return the store's background writer on the running loop."""
    return shared("background_writer", storage, lambda: BackgroundWriter(storage))
