"""Capturing a run: its events and snapshots, encoded as they happen and written where a step could not start otherwise.

Encoding is the isolation: what a store is given are bytes, which no later change of a value can reach.
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import CodecError, StoreUnavailableError, UsageError
from sagaz_core.events import (
    NO_DELTA,
    CompensationSucceeded,
    Delta,
    Event,
    SagaStarted,
    StepSucceeded,
)
from sagaz_core.storage.base import Batch, SagaRecord, SagaSnapshot, SnapshotStorage, StoredEvent
from sagaz_core.storage.codec import Raw, decode, encode, importing_class
from sagaz_core.storage.records import event_fields, pack_event

if TYPE_CHECKING:
    from sagaz_core.saga.config import ReplayConfig
    from sagaz_core.state import SagaState

logger = logging.getLogger(__name__)
current_capture: ContextVar[Capture | None] = ContextVar("current_capture", default=None)


class Capture:
    """Captures one run into a store, as its `ReplayConfig` says."""

    def __init__(
        self,
        storage: SnapshotStorage,
        config: ReplayConfig,
        record: SagaRecord,
        state: SagaState,
        new_id: Callable[[], str],
        *,
        resumed: bool = False,
    ) -> None:
        if config.encrypt_fields:
            raise UsageError("encrypt_fields is set, but this release cannot encrypt: leave the keys out of the context")
        self.storage = storage
        self._config = config
        self._record = record
        self._state = state
        self._new_id = new_id
        self._announced = resumed
        self._strategy = config.snapshot_strategy.value
        self._events: list[StoredEvent] = []
        self._snapshots: list[SagaSnapshot] = []
        self._kept: list[int] = []
        self._before: set[str] = set()
        self._context: bytes | None = None
        self._initial: Raw | None = None
        self._results: dict[str, Raw] = {}
        self._layers: dict[str, Raw] = {}
        self._writing: asyncio.Future[None] | None = None
        self._problem: CodecError | None = None

    # ---- what the journal tells

    def record(self, event: Event) -> None:
        """Take the event in, encoded. What cannot be encoded is raised by the next `flush`, not here."""
        try:
            self._record_event(event)
        except CodecError as error:
            self._problem = self._problem or error

    def _record_event(self, event: Event) -> None:
        fields = None
        if isinstance(event, StepSucceeded):
            if event.step not in self._results:
                self.prepare(event.step, event.delta, event.result)
            if event.delta is not NO_DELTA:
                self._context = None
            fields = [event.step, event.attempt, self._results[event.step], self._layers.get(event.step), event.how]
        elif isinstance(event, CompensationSucceeded):
            self._context = None
            self._results.pop(event.step, None)
            self._layers.pop(event.step, None)
        elif isinstance(event, SagaStarted):
            self._context = encode(self._state.context, "context")
            self._initial = Raw(self._context)
            fields = [*event_fields(event)[:-1], self._initial]
        if self._config.journal:
            self._events.append(pack_event(self._record.saga_id, event, fields))

    def prepare(self, step: str, delta: Delta, result: Any) -> Delta:
        """Encode what a step returned and changed, before anything of it happens, and return the whole change.

        Values that the step changed in place are added to it, and what they were is put back for undoing. Raises
        `CannotStoreError`.
        """
        delta = self._with_changes_in_place(delta)
        if delta is not NO_DELTA:
            changed = Raw(encode(dict(delta.set), "context"))
            self._layers[step] = Raw(encode([changed, list(delta.deleted)]))
        else:
            self._layers.pop(step, None)
        self._results[step] = Raw(encode(result, f"result of {step!r}"))
        return delta

    def _with_changes_in_place(self, delta: Delta) -> Delta:
        if self._context is None:
            return delta
        state = self._state
        if encode(state.context, "context") == self._context:
            return delta
        before: dict[str, Any] = decode(self._context, resolve=importing_class)
        changed = dict(delta.set)
        for key, value in state.context.items():
            if key in before and encode(value) != encode(before[key]):
                if key not in changed and key not in delta.deleted:
                    changed[key] = value
                state.unalias(key, before[key])
        return Delta(changed, delta.deleted)

    # ---- when the engine reaches a boundary

    def before(self, step: str) -> None:
        """A step is about to start."""
        if self._context is None:
            self._context = encode(self._state.context, "context")
        if self._strategy == "before_each_step" and step not in self._before:
            self._before.add(step)
            self._snapshot(step, "before")

    def after(self, step: str) -> None:
        """A step is done."""
        if self._strategy == "after_each_step":
            self._snapshot(step, "after")

    def failed(self) -> None:
        """The saga turns back."""
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
        await self.flush()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Be the capture that `take_snapshot` finds."""
        token = current_capture.set(self)
        try:
            yield
        finally:
            current_capture.reset(token)

    async def taken(self, label: str) -> None:
        """The user asked for a snapshot."""
        self._snapshot(label, "manual")
        await self.flush()

    def _snapshot(self, step: str, phase: str) -> None:
        state, config = self._state, self._config
        assert state.at is not None
        if self._context is None:
            self._context = encode(state.context, "context")
        data = state.to_data()
        data["context"] = Raw(self._context)
        if self._initial is not None:
            data["initial"] = self._initial
        data["results"] = {name: self._results.get(name, value) for name, value in state.results.items()}
        data["layers"] = {name: self._layers.get(name, layer) for name, layer in data["layers"].items()}
        until = None if config.retention_days is None else state.at + timedelta(days=config.retention_days)
        self._snapshots.append(
            SagaSnapshot(
                self._new_id(),
                state.saga_id,
                state.saga_name,
                step,
                len(state.results),
                state.seq,
                phase,
                state.status.value,
                state.at,
                encode(data, "state"),
                until,
            )
        )

    # ---- writing

    async def flush(self) -> None:
        """Write what has come together. What could not be written is kept, and tried again at the next boundary.

        Raises what the store raises, and `StoreUnavailableError` when it takes too long, unless the config says `warn`.
        """
        while self._writing is not None:
            await asyncio.shield(self._writing)
        if self._problem is not None and self._config.on_capture_error == "raise":
            raise self._problem
        if not self._events and not self._snapshots and self._announced:
            return
        events, snapshots = self._events, self._snapshots
        self._events, self._snapshots = [], []
        record = None if self._announced else self._record
        try:
            await self._write(Batch(self._record.saga_id, record, events, snapshots))
            self._announced = True
            await self._forget_old(snapshots)
        except BaseException as error:
            self._events[:0] = events
            self._snapshots[:0] = snapshots
            if not isinstance(error, Exception) or self._config.on_capture_error == "raise":
                raise
            logger.warning("saga %s goes on without capture: %s", self._record.saga_id, error)

    async def _write(self, batch: Batch) -> None:
        writing = self.storage.write(batch)
        # An embedded store never waits: then no timer and no future is needed. One that does is run on from there.
        try:
            waits_for = writing.send(None)  # type: ignore[attr-defined]
        except StopIteration:
            return
        self._writing = asyncio.get_running_loop().create_future()
        limit = self._config.capture_timeout
        try:
            async with asyncio.timeout(limit) as scope:
                await _run_on(writing, waits_for)  # type: ignore[arg-type]
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise StoreUnavailableError(
                f"the store {self.storage.url} did not answer within {limit:g} s: "
                f"look at the store, or set capture_timeout or on_capture_error='warn'"
            ) from error
        finally:
            self._writing.set_result(None)
            self._writing = None

    async def _forget_old(self, snapshots: list[SagaSnapshot]) -> None:
        limit = self._config.max_snapshots_per_saga
        if limit is None:
            return
        self._kept += [snapshot.seq for snapshot in snapshots]
        if len(self._kept) > limit:
            self._kept = self._kept[-limit:]
            await self.storage.delete_snapshots(self._record.saga_id, below_seq=self._kept[0])


@types.coroutine
def _run_on(coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    """Await a coroutine that was started already and has yielded `waits_for`, within the same task."""
    while True:
        try:
            sent = yield waits_for
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            step: Callable[[], Any] = lambda error=error: coroutine.throw(error)  # type: ignore[misc]  # noqa: E731
        else:
            step = lambda sent=sent: coroutine.send(sent)  # type: ignore[misc]  # noqa: E731
        try:
            waits_for = step()
        except StopIteration as stop:
            return stop.value


async def take_snapshot(label: str) -> None:
    """Capture the state of the saga whose action or compensation is running.

    Raises `UsageError` outside of a run that is captured.
    """
    capture = current_capture.get()
    if capture is None:
        raise UsageError("take_snapshot() outside of a captured run: give the saga a snapshot_storage and replay_config")
    await capture.taken(label)
