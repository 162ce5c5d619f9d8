"""Writing what a run's capture has collected: at once, in groups or behind its back, and again if need be."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from sagaz_core._within import Within
from sagaz_core.engine.rest import Rest, coroutine_of
from sagaz_core.errors import DuplicateSagaError, StoreUnavailableError
from sagaz_core.events import StepFailed
from sagaz_core.storage.base import Batch, SagaRecord, SagaSnapshot, SnapshotStorage, StoredEvent
from sagaz_core.storage.durability import Delivery, background_writer, group_writer
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Sequence
    from datetime import datetime

    from sagaz_core.engine.summary import Summarizer
    from sagaz_core.saga.config import ReplayConfig
    from sagaz_core.storage.frames import FrameWriter

_new: Any = tuple.__new__  # what a named tuple's own `__new__` does, at half its cost
logger = logging.getLogger(__name__)


class Writer:
    """Writes the `events` and `snapshots` of one run that have come together, and its summary when that has changed.

    What could not be written is kept, and tried again the next time. `frames` are begun again when some were lost.
    """

    def __init__(
        self,
        storage: SnapshotStorage,
        config: ReplayConfig,
        record: SagaRecord,
        summary: Summarizer,
        frames: FrameWriter | None,
        *,
        resumed: bool,
    ) -> None:
        self.events: list[StoredEvent] = []
        self.snapshots: list[SagaSnapshot] = []
        self._storage = storage
        self._config = config
        self._durability, self._limit = config.durability, config.max_snapshots_per_saga
        self._record = record
        self._saga_id = record.saga_id
        self._summary = summary
        self._frames = frames
        self._announced = resumed
        self._delivery = Delivery()
        self._delivery.written = self._unclaimed = resumed
        self._kept: list[int] | None = None if resumed else []
        self._writing: asyncio.Future[None] | None = None
        self._not_before = 0.0

    def flush(self, last: bool) -> Coroutine[Any, Any, None] | None:
        """Begin to write, and return what is left of it, to be awaited at once; an embedded store leaves nothing.

        Raises what the store raises, and `StoreUnavailableError` when it takes too long, unless the config says `warn`.
        A store that took too long is left alone for as long again, but for the `last` time.
        """
        if self._writing is not None or self._durability == "background":
            return self._flushed(last)
        if self._due(last):
            batch = self._batch()
            try:
                waiting = self._begun(self._written(batch))
            except BaseException as error:  # the store's, which may be anyone's
                self._not_written(batch, error)
            else:
                if waiting is not None:
                    return self._finished(batch, waiting)
                self._is_written(batch)
                if self._limit is not None:
                    return self._trimmed(batch.snapshots)
        return None

    @property
    def begun(self) -> bool:
        """Whether the store has some of this run, or of the one that it goes on with, for sure."""
        return self._delivery.written

    @property
    def holds_back(self) -> bool:
        """Whether something is to be written."""
        return bool(self.events or self.snapshots)

    async def all_written(self, *, patient: bool = True) -> None:
        """Wait until nothing is left that is written behind the run's back.

        Who is not patient waits for no store that cannot be reached, or did not answer just now.
        """
        if self._durability == "background" and (patient or self._answers()):
            writer = background_writer(self._storage)
            try:
                waiting = self._begun(writer.written(self._saga_id, self._delivery, patient=patient))
                if waiting is not None:
                    await waiting
            except Exception as error:  # the store's, which may be anyone's
                self._told_of(error)

    async def claim(self) -> None:
        """Write what there is, and wait until it is written. Raises what the store raises, whatever the config says.

        Nothing is left to a background writer, which would say later on that a run that is over goes on with the saga.
        """
        durability = self._durability
        if durability == "background":
            self._durability = "sync"
        try:
            waiting = self.flush(last=False)
            if waiting is not None:
                await waiting
        finally:
            self._durability = durability
        self._unclaimed = False

    async def _flushed(self, last: bool) -> None:
        while self._writing is not None:
            await asyncio.shield(self._writing)
        if self._durability != "background":
            waiting = self.flush(last)
            if waiting is not None:
                await waiting
        elif self._due(last):
            await self._leave(self._batch())

    async def _finished(self, batch: Batch, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        except BaseException as error:  # the store's, which may be anyone's
            self._not_written(batch, error)
        else:
            self._is_written(batch)
            await self._trimmed(batch.snapshots)

    async def _trimmed(self, snapshots: Sequence[SagaSnapshot]) -> None:
        """Forget the snapshots that are more than are to be kept."""
        if self._limit is not None and snapshots:
            try:
                waiting = self._begun(self._forget_old(snapshots))
                if waiting is not None:
                    await waiting
            except Exception as error:  # the store's, which may be anyone's
                self._told_of(error)

    def _due(self, last: bool) -> bool:
        if not (self.events or self.snapshots or not self._announced):
            return False
        return last or self._answers()

    def _answers(self) -> bool:
        """Whether there is no need to leave the store alone, as it took too long."""
        return not self._not_before or asyncio.get_running_loop().time() >= self._not_before

    def _batch(self) -> Batch:
        """Take what has come together."""
        record = None if self._announced else self._record
        batch: Batch = _new(Batch, (self._saga_id, record, self.events, self.snapshots, self._summary.now()))
        self.events, self.snapshots = [], []
        return batch

    def _is_written(self, batch: Batch) -> None:
        self._announced = True
        if self._durability != "background":
            self._delivery.written = True
        if batch.summary is not None:
            self._summary.told(batch.summary)

    def _not_written(self, batch: Batch, error: BaseException) -> None:
        """Keep the batch for the next time, and raise the error unless it is only to be told."""
        self.events[:0] = batch.events
        self.snapshots[:0] = batch.snapshots
        if not isinstance(error, Exception):
            raise error
        self._told_of(error)

    def _written(self, batch: Batch) -> Coroutine[Any, Any, None]:
        if self._summary.lost_failure and batch.summary is not None:
            return self._dated_and_written(batch)
        writer = group_writer(self._storage) if self._durability == "group" else self._storage
        return coroutine_of(writer.write(batch))

    async def _dated_and_written(self, batch: Batch) -> None:
        batch = await self._dated(batch)
        await self._written(batch)

    async def _leave(self, batch: Batch) -> None:
        """Give the batch to the background writer. What was lost before is told now, as the config says."""
        writer = background_writer(self._storage)
        try:
            if self._summary.lost_failure:
                batch = await self._dated(batch)
            if writer.put(batch, self._too_old(batch.snapshots), self._delivery):
                self._is_written(batch)
            else:
                self._begin_again()
        except Exception as error:  # the store's, which may be anyone's
            self._begin_again()
            self._told_of(error)

    def _begin_again(self) -> None:
        if self._frames is not None:
            self._frames.begin_again()

    def _told_of(self, error: Exception) -> None:
        # That another run goes on with the saga, or may, is no failure to capture.
        another = self._unclaimed or (self.begun and isinstance(error, DuplicateSagaError))
        if another or self._config.on_capture_error == "raise":
            raise error
        logger.warning("saga %s goes on without capture: %s", self._saga_id, error)

    async def _dated(self, batch: Batch) -> Batch:
        """Return the batch with the time at which a resumed run had failed."""
        if batch.summary is None:
            return batch
        failed_at = await self._when_it_failed(batch.summary.step_name)
        self._summary.failed(failed_at)
        return batch._replace(summary=batch.summary._replace(failed_at=failed_at))

    async def _when_it_failed(self, step: str) -> datetime | None:
        """Return when the step failed for good, in a run that another process goes on with."""
        failed_at = None
        async for event in self._storage.read_events(self._saga_id):
            if event.kind == StepFailed.__name__ and event.step == step:
                failed_at = event.at
        return failed_at

    def _begun(self, work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None] | None:
        """Do the work up to where it waits, and return what is left of it, to be awaited within its time.

        An embedded store never waits: then nothing is left, and no timer, task or future was needed.
        """
        try:
            return self._limited(Rest(work, work.send(None)))
        except StopIteration:
            return None
        except asyncio.CancelledError as error:
            if _being_cancelled():
                raise
            raise self._cancelled_itself() from error

    async def _limited(self, rest: Rest) -> None:
        loop = asyncio.get_running_loop()
        self._writing = loop.create_future()
        limit = self._config.capture_timeout
        try:
            with Within(limit) as scope:
                await rest
        except asyncio.CancelledError as error:
            if _being_cancelled():
                raise
            raise self._cancelled_itself() from error
        except TimeoutError as error:
            if not scope.expired:
                raise
            self._not_before = loop.time() + limit
            raise StoreUnavailableError(
                f"the store {safe_url(self._storage.url)} did not answer within {limit:g} s: "
                f"look at the store, or set capture_timeout or on_capture_error='warn'"
            ) from error
        finally:
            self._writing.set_result(None)
            self._writing = None

    def _cancelled_itself(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"the store {safe_url(self._storage.url)} cancelled its own work")

    async def _forget_old(self, snapshots: Sequence[SagaSnapshot]) -> None:
        if self._kept is None:  # another process wrote some before
            self._kept = await self._seqs_before({snapshot.snapshot_id for snapshot in snapshots})
        first = self._too_old(snapshots)
        if first is not None:
            await self._storage.delete_snapshots(self._saga_id, below_seq=first)

    def _too_old(self, snapshots: Sequence[SagaSnapshot]) -> int | None:
        """Return the `seq` below which there are more than are to be kept, `None` if there are not. Takes these in."""
        limit = self._limit
        if limit is None:
            return None
        kept = self._kept or []
        kept += [snapshot.seq for snapshot in snapshots]
        self._kept = kept
        if len(kept) <= limit:
            return None
        # Those of one event go together; those of the last one stay, however many there are.
        first = next((seq for seq in kept[-limit:] if seq > kept[-limit - 1]), kept[-1])
        self._kept = [seq for seq in kept if seq >= first]
        return first

    async def _seqs_before(self, mine: set[str]) -> list[int]:
        found: list[int] = []
        cursor: str | None = None
        while True:
            page = await self._storage.list_snapshots(self._saga_id, cursor=cursor)
            found += [snapshot.seq for snapshot in page.items if snapshot.snapshot_id not in mine]
            cursor = page.cursor
            if cursor is None:
                return found


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
