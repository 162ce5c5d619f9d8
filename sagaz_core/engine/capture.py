"""Capturing a run: its events and snapshots, encoded as they happen and written where a step could not start otherwise.

Encoding is the isolation: what a store is given are bytes, which no later change of a value can reach.
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import Coroutine, Generator, Iterator, Mapping
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
    SagaRolledBack,
    SagaStarted,
    StepSucceeded,
)
from sagaz_core.storage.base import Batch, SagaRecord, SagaSnapshot, SnapshotStorage, StoredEvent
from sagaz_core.storage.codec import Raw, decode, encode, importing_class
from sagaz_core.storage.records import compressed, pack_event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sagaz_core.saga.config import ReplayConfig
    from sagaz_core.state import SagaState

logger = logging.getLogger(__name__)
current_capture: ContextVar[Capture | None] = ContextVar("current_capture", default=None)

_NOTHING = Raw(encode(None))


class Capture:
    """Captures one run into a store, as its `ReplayConfig` says.

    A value that cannot be stored is left out of what is captured (never out of what the saga works with), and is the
    `problem` that the next `flush` raises when it has written the rest. Only an initial context is refused at once.
    """

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
        self.problem: CodecError | None = None
        self._config = config
        self._record = record
        self._state = state
        self._new_id = new_id
        self._announced = resumed
        self._strategy = config.snapshot_strategy.value
        self._events: list[StoredEvent] = []
        self._snapshots: list[SagaSnapshot] = []
        self._kept: list[int] | None = None if resumed else []
        self._before: set[str] = set()
        self._unfit: set[str] = set()
        self._context = b""
        self._initial: Raw | None = None
        self._results: dict[str, Raw] = {}
        self._layers: dict[str, Raw] = {}
        self._undone: dict[str, Raw] = {}
        self._writing: asyncio.Future[None] | None = None
        self._not_before = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        if resumed:
            self._encode_context()

    # ---- what the journal tells

    def record(self, event: Event) -> None:
        """Take the event in, encoded. Raises `CannotStoreError` for a `SagaStarted` whose context cannot be stored."""
        kind = type(event)
        fields: list[Any] | None = None
        if kind is StepSucceeded:
            assert isinstance(event, StepSucceeded)
            if event.step not in self._results:
                self.prepare(event.step, event.delta, event.result)
            if event.delta is not NO_DELTA:
                self._encode_context()
            fields = [event.step, event.attempt, self._results[event.step], self._layers.get(event.step), event.how]
        elif kind is CompensationSucceeded:
            assert isinstance(event, CompensationSucceeded)
            if event.step not in self._undone:
                self.prepare_undo(event.step, event.delta, event.result)
            self._results.pop(event.step, None)
            self._layers.pop(event.step, None)
            self._encode_context()
            layer = self._layers.get(f"undo:{event.step}")
            fields = [event.step, event.attempt, self._undone[event.step], layer]
        elif kind is SagaStarted:
            assert isinstance(event, SagaStarted)
            self._encode_initial(event.context)
            fields = [*event[2:-1], self._initial]
        elif kind is SagaRolledBack:
            self._encode_context()
        if self._config.journal:
            self._events.append(pack_event(self._record.saga_id, event, fields))

    def _encode_initial(self, context: Mapping[str, Any]) -> None:
        try:
            self._context = encode(dict(context), "context")
        except CodecError as error:
            if self._config.on_capture_error == "raise":
                raise
            self._note(error)
            self._fit(dict(context))
            self._encode_context()
        self._initial = Raw(self._context)

    def _encode_context(self) -> None:
        context = self._state.context
        if self._unfit:
            self._unfit.intersection_update(context)
            context = {key: value for key, value in context.items() if key not in self._unfit}
        try:
            self._context = encode(context, "context")
        except CodecError as error:  # a stored value was changed into one that cannot be
            self._note(error)
            self._context = encode(self._fit(context), "context")

    def _fit(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what can be stored of the values, and remember the keys of the others."""
        fit = {}
        for key, value in values.items():
            try:
                encode(value, f"context[{key!r}]")
            except CodecError:  # noqa: PERF203 - each value by itself is the point
                self._unfit.add(key)
            else:
                fit[key] = value
        return fit

    def _note(self, error: CodecError) -> None:
        if self.problem is None:
            self.problem = error

    def _encoded(self, value: Any, at: str) -> Raw:
        try:
            return Raw(encode(value, at))
        except CodecError as error:
            self._note(error)
        if type(value) is dict:
            fit = {k: v for k, v in value.items() if self._is_fit(k) and self._is_fit(v)}
            return Raw(encode(fit, at))
        return _NOTHING

    @staticmethod
    def _is_fit(value: Any) -> bool:
        try:
            encode(value)
        except CodecError:
            return False
        return True

    def prepare(self, step: str, delta: Delta, result: Any) -> Delta:
        """Encode what a step returned and changed, before anything of it happens, and return the whole change.

        Values that the step changed in place are added to it, and what they were is put back for undoing.
        """
        delta = self._with_changes_in_place(delta)
        self._encode_layer(step, delta)
        self._results[step] = _NOTHING if result is None else self._encoded(result, f"result of {step!r}")
        return delta

    def prepare_undo(self, step: str, delta: Delta, result: Any) -> Delta:
        """Do the same for a compensation."""
        delta = self._with_changes_in_place(delta)
        self._encode_layer(f"undo:{step}", delta)
        self._undone[step] = self._encoded(result, f"result of the compensation of {step!r}")
        return delta

    def _encode_layer(self, name: str, delta: Delta) -> None:
        if delta is NO_DELTA:
            self._layers.pop(name, None)
            return
        changed = dict(delta.set)
        self._unfit.difference_update(changed)
        try:
            raw = Raw(encode(changed, "context"))
        except CodecError as error:
            self._note(error)
            raw = Raw(encode(self._fit(changed), "context"))
        self._layers[name] = Raw(encode([raw, list(delta.deleted)]))

    def _changes_in_place(self) -> list[tuple[str, Any, Any]]:
        """Return `(key, value before, value now)` for each value of the context that user code changed in place."""
        context = self._state.context
        if self._unfit:
            context = {key: value for key, value in context.items() if key not in self._unfit}
        try:
            if encode(context, "context") == self._context:
                return []
        except CodecError as error:
            self._note(error)
        before: dict[str, Any] = decode(self._context, resolve=importing_class)
        return [
            (key, before[key], value)
            for key, value in context.items()
            if key in before and not self._same(value, before[key])
        ]

    @staticmethod
    def _same(one: Any, other: Any) -> bool:
        try:
            return encode(one) == encode(other)
        except CodecError:
            return False

    def _with_changes_in_place(self, delta: Delta) -> Delta:
        found = self._changes_in_place()
        if not found:
            return delta
        changed = dict(delta.set)
        for key, before, now in found:
            if key not in changed and key not in delta.deleted:
                changed[key] = now
            self._state.unalias(key, before)
        return Delta(changed, delta.deleted)

    def forget_changes_in_place(self) -> None:
        """Put back what an attempt that failed changed in place, unless another step runs, whose change it may be."""
        if len(self._state.running) <= 1:
            for key, before, _ in self._changes_in_place():
                self._state.unalias(key, before)

    # ---- when the engine reaches a boundary

    def before(self, step: str) -> None:
        """A step is about to start."""
        if self._strategy == "before_each_step" and step not in self._before:
            self._before.add(step)
            self._snapshot(step, "before")

    def after(self, step: str) -> None:
        """A step is done."""
        if self._strategy == "after_each_step":
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

    @contextmanager
    def current(self) -> Iterator[None]:
        """Be the capture that `take_snapshot` finds."""
        self._loop = asyncio.get_running_loop()
        token = current_capture.set(self)
        try:
            yield
        finally:
            current_capture.reset(token)

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
        state, config = self._state, self._config
        assert state.at is not None
        results, layers = self._results, self._layers
        encoded = {
            "context": Raw(self._context),
            "results": {name: results.get(name, value) for name, value in state.results.items()},
            "layers": {
                name: layers.get(name) or [dict(layer.set), list(layer.deleted)] for name, layer in state.layers.items()
            },
        }
        if self._initial is not None:
            encoded["initial"] = self._initial
        if state.undone:
            encoded["undone"] = {name: self._undone.get(name, value) for name, value in state.undone.items()}
        data = encode(state.to_data(**encoded), "state")
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
                data if config.compression is None else compressed(data),
                None if config.retention_days is None else state.at + timedelta(days=config.retention_days),
            )
        )

    # ---- writing

    async def flush(self, *, last: bool = False) -> None:
        """Write what has come together. What could not be written is kept, and tried again at the next boundary.

        Raises what the store raises, `StoreUnavailableError` when it takes too long, and the `problem`, unless the
        config says `warn`. A store that took too long is left alone for as long again, but for the `last` time.
        """
        while self._writing is not None:
            await asyncio.shield(self._writing)
        if (self._events or self._snapshots or not self._announced) and (last or not self._resting()):
            await self._write_all()
        problem, self.problem = self.problem, None
        if problem is not None:
            if self._config.on_capture_error == "raise":
                raise problem
            logger.warning("saga %s is captured without a value: %s", self._record.saga_id, problem)

    def _resting(self) -> bool:
        return bool(self._not_before) and asyncio.get_running_loop().time() < self._not_before

    async def _write_all(self) -> None:
        events, snapshots = self._events, self._snapshots
        self._events, self._snapshots = [], []
        record = None if self._announced else self._record
        try:
            await self._within_time(self.storage.write(Batch(self._record.saga_id, record, events, snapshots)))
            self._announced = True
            if self._config.max_snapshots_per_saga is not None and snapshots:
                await self._within_time(self._forget_old(snapshots, self._config.max_snapshots_per_saga))
        except BaseException as error:
            self._events[:0] = events
            self._snapshots[:0] = snapshots
            failure = error
            if isinstance(error, asyncio.CancelledError) and not _being_cancelled():
                failure = StoreUnavailableError(f"the store {self.storage.url} cancelled its own work")
            if not isinstance(failure, Exception) or self._config.on_capture_error == "raise":
                raise failure from error.__cause__
            logger.warning("saga %s goes on without capture: %s", self._record.saga_id, failure)

    async def _within_time(self, work: Coroutine[Any, Any, None]) -> None:
        # An embedded store never waits: then no timer and no future is needed. One that does is run on from there.
        try:
            waits_for = work.send(None)
        except StopIteration:
            return
        loop = asyncio.get_running_loop()
        self._writing = loop.create_future()
        limit = self._config.capture_timeout
        try:
            async with asyncio.timeout(limit) as scope:
                await _run_on(work, waits_for)
        except TimeoutError as error:
            if not scope.expired():
                raise
            self._not_before = loop.time() + limit
            raise StoreUnavailableError(
                f"the store {self.storage.url} did not answer within {limit:g} s: "
                f"look at the store, or set capture_timeout or on_capture_error='warn'"
            ) from error
        finally:
            self._writing.set_result(None)
            self._writing = None

    async def _forget_old(self, snapshots: list[SagaSnapshot], limit: int) -> None:
        if self._kept is None:  # another process wrote some before
            self._kept = await self._stored_before(snapshots)
        self._kept += [snapshot.seq for snapshot in snapshots]
        if len(self._kept) > limit:
            # Never fewer than those of the last event, of which there may be several.
            first = min(kept for kept in (*self._kept[-limit:], self._kept[-1]) if self._fits_from(kept, limit))
            self._kept = [seq for seq in self._kept if seq >= first]
            await self.storage.delete_snapshots(self._record.saga_id, below_seq=first)

    def _fits_from(self, first: int, limit: int) -> bool:
        kept = self._kept or []
        return first == kept[-1] or sum(seq >= first for seq in kept) <= limit

    async def _stored_before(self, snapshots: list[SagaSnapshot]) -> list[int]:
        mine = {snapshot.snapshot_id for snapshot in snapshots}
        found: list[int] = []
        cursor: str | None = None
        while True:
            page = await self.storage.list_snapshots(self._record.saga_id, cursor=cursor)
            found += [snapshot.seq for snapshot in page.items if snapshot.snapshot_id not in mine]
            cursor = page.cursor
            if cursor is None:
                return found


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Stored:
    """What `take_snapshot` gives: awaiting it stores the snapshot; leaving it leaves that to the next boundary."""

    __slots__ = ("_capture",)

    def __init__(self, capture: Capture | None) -> None:
        self._capture = capture

    def __await__(self) -> Generator[Any, None, None]:
        if self._capture is not None:
            yield from self._capture.flush().__await__()


@types.coroutine
def _run_on(coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    """Await a coroutine that was started already and has yielded `waits_for`, within the same task."""
    try:
        while True:
            try:
                sent = yield waits_for
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:
                waits_for = coroutine.throw(error)
            else:
                waits_for = coroutine.send(sent)
    except StopIteration as stop:
        return stop.value


def take_snapshot(label: str) -> Awaitable[None]:
    """Capture the state of the saga whose action or compensation is running. See `Saga.take_snapshot`."""
    capture = current_capture.get()
    if capture is None:
        raise UsageError("take_snapshot() outside of a captured run: give the saga a snapshot_storage and replay_config")
    return capture.take(label)
