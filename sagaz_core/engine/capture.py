"""Capturing a run: its events and snapshots, encoded as they happen and written where a step could not start otherwise.

Encoding is the isolation: what a store is given are bytes, which no later change of a value can reach.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar, Token
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sagaz_core.engine.encoded import Encoded, begun
from sagaz_core.engine.fields import encrypted_fields
from sagaz_core.engine.summary import Summarizer
from sagaz_core.engine.writing import Writer
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
from sagaz_core.storage.base import SagaRecord, SagaSnapshot, SnapshotStorage, StoredEvent
from sagaz_core.storage.frames import FrameWriter
from sagaz_core.storage.records import pack_event
from sagaz_core.storage.seals import sealed
from sagaz_core.storage.snapshot_ids import snapshot_name

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

    from sagaz_core.errors import CodecError
    from sagaz_core.saga.config import ReplayConfig
    from sagaz_core.state import SagaState

_new: Any = tuple.__new__  # what a named tuple's own `__new__` does, at half its cost
logger = logging.getLogger(__name__)
current_capture: ContextVar[Capture | None] = ContextVar("current_capture", default=None)


class Capture:
    """Captures one run into a store, as its `ReplayConfig` says.

    A value that cannot be stored is left out of what is captured, and the next `flush` raises when it has written the
    rest. Only an initial context is refused at once.
    """

    def __init__(
        self,
        storage: SnapshotStorage,
        config: ReplayConfig,
        record: SagaRecord,
        state: SagaState,
        *,
        run_id: str,
        resumed: bool = False,
    ) -> None:
        self.run_id = run_id
        self._config = config
        self._state = state
        self._saga_id = record.saga_id
        self._last_seq, self._further = -1, 0  # of the snapshot before, and how many there were at its `seq`
        self._strategy: str = config.snapshot_strategy._value_
        self.after_each = self._strategy == "after_each_step"
        self._frames: FrameWriter | None = None  # in this process's memory states are kept as they are
        if not getattr(storage, "in_memory", False):
            self._frames = FrameWriter(compress=config.compression is not None)
        self._retention = None if config.retention_days is None else timedelta(days=config.retention_days)
        self._before: set[str] = set()
        self._encoded = Encoded(state, encrypted_fields(config))
        self._summary = Summarizer(state, config.index_keys, resumed=resumed)
        self._writer = Writer(storage, config, record, self._summary, self._frames, resumed=resumed)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._token: Token[Capture | None]
        if resumed:
            self._encoded.go_on()

    @property
    def troubled(self) -> bool:
        """Whether there was a value that cannot be stored, and nobody was told yet."""
        return self._encoded.problem is not None

    @property
    def begun(self) -> bool:
        """Whether the store has some of this run, or of the one that it goes on with, for sure."""
        return self._writer.begun

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
            self._summary.failed(event.at)
        if not self._config.journal:
            return
        if data is None:
            self._writer.events.append(pack_event(self._saga_id, event, seal=self._frames is not None))
        else:
            fields = (self._saga_id, event.seq, event.at, type(event).__name__, step, data)
            self._writer.events.append(_new(StoredEvent, fields) if self._frames is None else sealed(*fields))

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
        """The saga turns back, or (after a pivot) gives up. Without a journal a snapshot is all that says so."""
        if self._strategy == "on_failure" or not (self._config.journal or self._strategy == "manual"):
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
        await self._writer.all_written()

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
        self._further = self._further + 1 if state.seq == self._last_seq else 0
        self._last_seq = state.seq
        encoded = self._encoded.state()
        fields = (
            snapshot_name(self._saga_id, state.seq, self._further),
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
        self._writer.snapshots.append(snapshot if frames is None else frames.frame(snapshot, encoded))

    # ---- writing

    def flush(self, *, last: bool = False) -> Awaitable[None]:
        """Write what has come together. What could not be written is kept, and tried again at the next boundary.

        It begins at once, so what is returned is to be awaited at once: with an embedded store, all is done by then.
        Raises what the store raises, `StoreUnavailableError` when it takes too long, and `CannotStoreError`, unless the
        config says `warn`. A store that took too long is left alone for as long again, but for the `last` time.
        """
        waiting = self._writer.flush(last)
        if waiting is not None:
            return self._flushed(waiting)
        if self._encoded.problem is not None:
            self._tell_problem(self._encoded.problem)
        return NOTHING_LEFT

    async def flush_for_sure(self) -> None:
        """Do `flush`, and wait also for what is written behind the run's back, if the store can be reached.

        It raises `DuplicateSagaError` when another run goes on with the saga. Unless the config says `warn`, a store
        that took too long is asked again.
        """
        await self.flush(last=self._config.on_capture_error == "raise")
        await self._writer.all_written(patient=False)

    @property
    def is_behind(self) -> bool:
        """Whether there is something that the store should have by now, and has not."""
        return self._config.durability != "background" and self._writer.holds_back

    def is_cut_off_by(self, error: Exception) -> bool:
        """Whether the error says that a run, which does not write in the background, cannot reach its store."""
        return self._config.durability != "background" and isinstance(error, (StoreUnavailableError, OSError))

    async def claim(self) -> None:
        """Have the store take in that this run goes on with the saga, which no other run can from then on.

        Raises `DuplicateSagaError` when one did so before, and what else the store raises: then it is not known.
        """
        await self._writer.claim()

    async def flush_at_last(self) -> None:
        """Do `flush(last=True)`, all of it in the task that runs this."""
        await self.flush(last=True)

    async def _flushed(self, waiting: Awaitable[None]) -> None:
        await waiting
        if self._encoded.problem is not None:
            self._tell_problem(self._encoded.problem)

    def _tell_problem(self, problem: CodecError) -> None:
        self._encoded.problem = None
        if self._config.on_capture_error == "raise":
            raise problem
        logger.warning("saga %s is captured without a value: %s", self._saga_id, problem)


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
