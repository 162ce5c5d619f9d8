"""Capturing a run: its events and snapshots, encoded as they happen and written where a step could not start otherwise.

Encoding is the isolation: what a store is given are bytes, which no later change of a value can reach.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar, Token
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

from sagaz_core.engine.encoded import Encoded, begun
from sagaz_core.engine.fields import encrypted_fields
from sagaz_core.engine.rest import Rest, coroutine_of
from sagaz_core.engine.summary import Summarizer
from sagaz_core.errors import StoreUnavailableError, UsageError
from sagaz_core.events import (
    NO_DELTA,
    CompensationStarted,
    CompensationSucceeded,
    Delta,
    Event,
    SagaRolledBack,
    SagaStarted,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from sagaz_core.storage.base import Batch, SagaRecord, SagaSnapshot, SnapshotStorage, StoredEvent
from sagaz_core.storage.durability import background_writer, group_writer
from sagaz_core.storage.frames import FrameWriter
from sagaz_core.storage.records import pack_event
from sagaz_core.storage.seals import sealed
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Generator, Sequence
    from datetime import datetime

    from sagaz_core.saga.config import ReplayConfig
    from sagaz_core.state import SagaState

_new: Any = tuple.__new__  # what a named tuple's own `__new__` does, at half its cost
logger = logging.getLogger(__name__)
current_capture: ContextVar[Capture | None] = ContextVar("current_capture", default=None)


class Capture:
    """Captures one run into a store, as its `ReplayConfig` says.

    A value that cannot be stored is left out of what is captured, and the next `flush` raises when it has written the
    rest. Only an initial context is refused at once. Snapshots have the id `snapshot_ids` and a number.
    """

    def __init__(
        self,
        storage: SnapshotStorage,
        config: ReplayConfig,
        record: SagaRecord,
        state: SagaState,
        snapshot_ids: str,
        *,
        resumed: bool = False,
    ) -> None:
        self.storage = storage
        self._config = config
        self._record = record
        self._state = state
        self._saga_id = record.saga_id
        self._snapshot_ids = snapshot_ids
        self._snapshot_number = count()
        self._announced = resumed
        self._strategy: str = config.snapshot_strategy._value_
        self.after_each = self._strategy == "after_each_step"
        self._durability, self._limit = config.durability, config.max_snapshots_per_saga
        self._frames: FrameWriter | None = None  # in this process's memory states are kept as they are
        if not getattr(storage, "in_memory", False):
            self._frames = FrameWriter(compress=config.compression is not None)
        self._retention = None if config.retention_days is None else timedelta(days=config.retention_days)
        self._events: list[StoredEvent] = []
        self._snapshots: list[SagaSnapshot] = []
        self._kept: list[int] | None = None if resumed else []
        self._before: set[str] = set()
        self._encoded = Encoded(state, encrypted_fields(config))
        self._summary = Summarizer(state, config.index_keys)
        self._lost_failure = resumed and bool(state.failed_step)
        self._writing: asyncio.Future[None] | None = None
        self._not_before = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._token: Token[Capture | None]
        if resumed:
            self._encoded.go_on()

    @property
    def troubled(self) -> bool:
        """Whether there was a value that cannot be stored, and nobody was told yet."""
        return self._encoded.problem is not None

    # ---- what the journal tells

    def record(self, event: Event) -> None:
        """Take the event in, encoded. Raises `CannotStoreError` for a `SagaStarted` whose context cannot be stored."""
        encoded, step, data = self._encoded, None, None
        if isinstance(event, StepStarted):
            step, data = event.step, begun(event.step, event.attempt)
        elif isinstance(event, StepSucceeded):
            step = event.step
            if step not in encoded.results:
                encoded.step(step, event.delta, event.result)
            if event.delta is not NO_DELTA:
                encoded.renew()
            data = encoded.succeeded(event)
        elif isinstance(event, CompensationStarted):
            step, data = event.step, begun(event.step, event.attempt)
        elif isinstance(event, CompensationSucceeded):
            step = event.step
            if step not in encoded.undone:
                encoded.undo(step, event.delta, event.result)
            encoded.forget(step)
            encoded.renew()
            data = encoded.compensated(event)
        elif isinstance(event, SagaStarted):
            encoded.begin(event.context, strict=self._config.on_capture_error == "raise")
            data = encoded.started(event)
        elif isinstance(event, SagaRolledBack):
            encoded.renew()
        elif isinstance(event, StepFailed) and event.final:
            self._summary.failed_at, self._lost_failure = event.at, False
        if not self._config.journal:
            return
        if data is None:
            self._events.append(pack_event(self._saga_id, event, seal=self._frames is not None))
        else:
            fields = (self._saga_id, event.seq, event.at, type(event).__name__, step, data)
            self._events.append(_new(StoredEvent, fields) if self._frames is None else sealed(*fields))

    def prepare(self, step: str, delta: Delta, result: Any) -> Delta:
        """Take in what a step returned and changed, before anything of it happens, and return the whole change.

        Values that the step changed in place are added to it, and what they were is put back for undoing.
        """
        return self._encoded.step(step, delta, result)

    def prepare_undo(self, step: str, delta: Delta, result: Any) -> Delta:
        """Do the same for a compensation."""
        return self._encoded.undo(step, delta, result)

    def forget_changes_in_place(self) -> None:
        """Put back what an attempt that failed changed in place, unless another step runs, whose change it may be."""
        if len(self._state.running) <= 1:
            self._encoded.put_back()

    # ---- when the engine reaches a boundary

    def before(self, step: str) -> None:
        """A step is about to start."""
        if self._strategy == "before_each_step" and step not in self._before:
            self._before.add(step)
            self._snapshot(step, "before")

    def after(self, step: str) -> None:
        """A step is done."""
        if self.after_each:
            self._snapshot(step, "after")

    def failed(self) -> None:
        """The saga turns back, or (after a pivot) gives up."""
        if self._strategy == "on_failure":
            self._snapshot(self._state.failed_step or "", "failed")

    def undone(self, step: str) -> None:
        """A compensation is done."""
        if self._strategy != "manual":
            self._snapshot(step, "undone")

    async def ended(self) -> None:
        """The run is over."""
        if self._strategy != "manual" and self._state.status.ended:
            self._snapshot("", "final")
        await self.flush(last=True)
        if self._durability == "background":
            await self._until_written()

    def __enter__(self) -> None:
        """Be the capture that `take_snapshot` finds, until the exit."""
        self._loop = asyncio.get_running_loop()
        self._token = current_capture.set(self)

    def __exit__(self, *error: object) -> None:
        current_capture.reset(self._token)

    def take(self, label: str) -> Awaitable[None]:
        """Take the snapshot that the user asked for; what is returned waits until it is stored."""
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            self._snapshot(label, "manual")
            return _Stored(self)
        if self._loop is None or self._loop.is_closed():
            raise UsageError(f"take_snapshot({label!r}) in a thread whose saga is over")
        asyncio.run_coroutine_threadsafe(self._taken(label), self._loop).result()
        return _Stored(None)

    async def _taken(self, label: str) -> None:
        self._snapshot(label, "manual")
        await self.flush()

    def _snapshot(self, step: str, phase: str) -> None:
        state, retention, frames = self._state, self._retention, self._frames
        assert state.at is not None
        encoded = self._encoded.state()
        fields = (
            f"{self._snapshot_ids}.{next(self._snapshot_number):06}",
            self._saga_id,
            state.saga_name,
            step,
            len(state.results),
            state.seq,
            phase,
            state.status._value_,
            state.at,
            encoded,
            None if retention is None else state.at + retention,
            None,
            (),
            tuple(state.results),
            self._summary.tags(),
        )
        snapshot: SagaSnapshot = _new(SagaSnapshot, fields)
        self._snapshots.append(snapshot if frames is None else frames.frame(snapshot, encoded))

    # ---- writing

    def flush(self, *, last: bool = False) -> Awaitable[None]:
        """Write what has come together. What could not be written is kept, and tried again at the next boundary.

        It begins at once, so what is returned is to be awaited at once: with an embedded store, all is done by then.
        Raises what the store raises, `StoreUnavailableError` when it takes too long, and `CannotStoreError`, unless the
        config says `warn`. A store that took too long is left alone for as long again, but for the `last` time.
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
        self._tell_problem()
        return NOTHING_LEFT

    async def flush_at_last(self) -> None:
        """Do `flush(last=True)`, all of it in the task that runs this."""
        await self.flush(last=True)

    async def _flushed(self, last: bool) -> None:
        while self._writing is not None:
            await asyncio.shield(self._writing)
        if self._durability != "background":
            await self.flush(last=last)
            return
        if self._due(last):
            await self._leave(self._batch())
        self._tell_problem()

    async def _finished(self, batch: Batch, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        except BaseException as error:  # the store's, which may be anyone's
            self._not_written(batch, error)
        else:
            self._is_written(batch)
            await self._trimmed(batch.snapshots)
            return
        self._tell_problem()

    async def _trimmed(self, snapshots: Sequence[SagaSnapshot]) -> None:
        """Forget the snapshots that are more than are to be kept."""
        if self._limit is not None and snapshots:
            try:
                waiting = self._begun(self._forget_old(snapshots))
                if waiting is not None:
                    await waiting
            except Exception as error:  # the store's, which may be anyone's
                self._told_of(error)
        self._tell_problem()

    def _due(self, last: bool) -> bool:
        if not (self._events or self._snapshots or not self._announced):
            return False
        return last or not self._not_before or asyncio.get_running_loop().time() >= self._not_before

    def _batch(self) -> Batch:
        """Take what has come together."""
        record = None if self._announced else self._record
        batch: Batch = _new(Batch, (self._saga_id, record, self._events, self._snapshots, self._summary.now()))
        self._events, self._snapshots = [], []
        return batch

    def _is_written(self, batch: Batch) -> None:
        self._announced = True
        if batch.summary is not None:
            self._summary.told(batch.summary)

    def _not_written(self, batch: Batch, error: BaseException) -> None:
        """Keep the batch for the next time, and raise the error unless it is only to be told."""
        self._events[:0] = batch.events
        self._snapshots[:0] = batch.snapshots
        if not isinstance(error, Exception):
            raise error
        self._told_of(error)

    def _tell_problem(self) -> None:
        problem = self._encoded.problem
        if problem is not None:
            self._encoded.problem = None
            if self._config.on_capture_error == "raise":
                raise problem
            logger.warning("saga %s is captured without a value: %s", self._saga_id, problem)

    def _written(self, batch: Batch) -> Coroutine[Any, Any, None]:
        if self._lost_failure and batch.summary is not None:
            return self._dated_and_written(batch)
        writer = group_writer(self.storage) if self._durability == "group" else self.storage
        return coroutine_of(writer.write(batch))

    async def _dated_and_written(self, batch: Batch) -> None:
        batch = await self._dated(batch)
        await self._written(batch)

    async def _leave(self, batch: Batch) -> None:
        """Give the batch to the background writer. What was lost before is told now, as the config says."""
        writer = background_writer(self.storage)
        try:
            if self._lost_failure:
                batch = await self._dated(batch)
            if writer.put(batch, self._too_old(batch.snapshots)):
                self._announced = True
                if batch.summary is not None:
                    self._summary.told(batch.summary)
            else:
                self._begin_again()
        except Exception as error:  # the store's, which may be anyone's
            self._begin_again()
            self._told_of(error)

    def _begin_again(self) -> None:
        if self._frames is not None:
            self._frames.begin_again()

    async def _until_written(self) -> None:
        try:
            waiting = self._begun(background_writer(self.storage).written(self._saga_id))
            if waiting is not None:
                await waiting
        except Exception as error:  # the store's, which may be anyone's
            self._told_of(error)

    def _told_of(self, error: Exception) -> None:
        if self._config.on_capture_error == "raise":
            raise error
        logger.warning("saga %s goes on without capture: %s", self._saga_id, error)

    async def _dated(self, batch: Batch) -> Batch:
        """Return the batch with the time at which a resumed run had failed."""
        if batch.summary is None:
            return batch
        failed_at = await self._when_it_failed(batch.summary.step_name)
        self._summary.failed_at, self._lost_failure = failed_at, False
        return batch._replace(summary=batch.summary._replace(failed_at=failed_at))

    async def _when_it_failed(self, step: str) -> datetime | None:
        """Return when the step failed for good, in a run that another process goes on with."""
        failed_at = None
        async for event in self.storage.read_events(self._saga_id):
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
            async with asyncio.timeout(limit) as scope:
                await rest
        except asyncio.CancelledError as error:
            if _being_cancelled():
                raise
            raise self._cancelled_itself() from error
        except TimeoutError as error:
            if not scope.expired():
                raise
            self._not_before = loop.time() + limit
            raise StoreUnavailableError(
                f"the store {safe_url(self.storage.url)} did not answer within {limit:g} s: "
                f"look at the store, or set capture_timeout or on_capture_error='warn'"
            ) from error
        finally:
            self._writing.set_result(None)
            self._writing = None

    def _cancelled_itself(self) -> StoreUnavailableError:
        return StoreUnavailableError(f"the store {safe_url(self.storage.url)} cancelled its own work")

    async def _forget_old(self, snapshots: Sequence[SagaSnapshot]) -> None:
        if self._kept is None:  # another process wrote some before
            self._kept = await self._seqs_before({snapshot.snapshot_id for snapshot in snapshots})
        first = self._too_old(snapshots)
        if first is not None:
            await self.storage.delete_snapshots(self._saga_id, below_seq=first)

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
            page = await self.storage.list_snapshots(self._saga_id, cursor=cursor)
            found += [snapshot.seq for snapshot in page.items if snapshot.snapshot_id not in mine]
            cursor = page.cursor
            if cursor is None:
                return found


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


_EXHAUSTED: Any = iter(())


class _NothingLeft:
    """What is awaited when all is done already."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, None]:
        made: Generator[Any, None, None] = _EXHAUSTED
        return made


NOTHING_LEFT = _NothingLeft()


class _Stored:
    """What `take_snapshot` gives: awaiting it stores the snapshot; leaving it leaves that to the next boundary."""

    __slots__ = ("_capture",)

    def __init__(self, capture: Capture | None) -> None:
        self._capture = capture

    def __await__(self) -> Generator[Any, None, None]:
        if self._capture is not None:
            yield from self._capture.flush().__await__()


def take_snapshot(label: str) -> Awaitable[None]:
    """Capture the state of the saga whose action or compensation is running. See `Saga.take_snapshot`."""
    capture = current_capture.get()
    if capture is None:
        raise UsageError("take_snapshot() outside of a captured run: give the saga a snapshot_storage")
    return capture.take(label)
