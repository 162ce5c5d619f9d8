"""Calls of many at the same time as one call of the store: writes, what replays ask for, and the log of replays.

Whoever asks while a call is under way waits, and goes with all the others in the next one. Where a store may have
several calls at once, and many wait, a part of them goes in each: so this process works for one call, the server for
another, and the disk for a third. A store that nothing is gained by need not know of this: what is asked is then asked
one by one, with the methods that every store has.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeGuard, TypeVar

from sagaz_core._per_loop import PerLoop
from sagaz_core.errors import UsageError
from sagaz_core.storage.base import SnapshotStorage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sagaz_core.storage.base import ReplayRecord, SagaRecord, SagaSnapshot

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

_AT_ONCE = 500
_LEAST = 24  # that ask for a call of their own while another is under way


class EventHead(NamedTuple):
    """An event without its data."""

    seq: int
    kind: str
    step: str | None


class Checkpoint(NamedTuple):
    """What a replay needs to know of a saga: who it is, and from where it can start.

    `before` is the latest snapshot before the step, `last_seq` that of the latest of all. `events` are those after
    `before`, or all of them if there is none.
    """

    saga: SagaRecord | None
    before: SagaSnapshot | None
    last_seq: int | None
    events: Sequence[EventHead]


class AnswersTogether(SnapshotStorage, Protocol):
    """What a store may have besides: it does many things in one round trip.

    One that gains by several of these calls at the same time says how many: `calls_at_once`.
    """

    async def read_checkpoints(self, asked: Sequence[tuple[str, str]]) -> Sequence[Checkpoint]:
        """Return for each saga and step what the store's other methods would say."""

    async def log_replays(self, records: Sequence[ReplayRecord]) -> Sequence[Exception | None]:
        """Do for each record, in this order, what `log_replay` does, and return for each what that would have raised.

        Raises what concerns them all, such as `StoreUnavailableError`.
        """


def answers_together(storage: SnapshotStorage) -> TypeGuard[AnswersTogether]:
    """Whether the store has these."""
    return hasattr(storage, "read_checkpoints") and hasattr(storage, "log_replays")


def calls_at_once(storage: SnapshotStorage) -> int:
    """Return how many calls at the same time the store gains by."""
    found: int = getattr(storage, "calls_at_once", 1)
    return found


class Together(Generic[Asked, Answer]):
    """Does what many ask in one call of `do`, which returns for each the answer, or what is to be raised.

    At most `calls` are under way at the same time, and more than one only while many wait.
    """

    def __init__(self, do: Callable[[list[Asked]], Awaitable[Sequence[Answer | Exception]]], calls: int = 1) -> None:
        self._do, self._calls = do, calls
        self._waiting: list[tuple[Asked, asyncio.Future[Answer]]] = []
        self._under_way = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._asked: dict[asyncio.Task[Any], list[tuple[Asked, asyncio.Future[Answer]]]] = {}

    def ask(self, asked: Asked) -> asyncio.Future[Answer]:
        """Return a future of the answer."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((asked, done))
        running = self._running()
        if running < (self._calls if len(self._waiting) >= _LEAST else 1):
            # It runs after all that are ready to ask now, so that they go together.
            task = loop.create_task(self._ask_all(), context=Context())
            task.add_done_callback(self._ended)
            self._tasks.append(task)
        return done

    def give_up(self) -> None:
        """Leave what nobody waits for any more, as those who asked were cancelled: a call may never be answered."""
        self._waiting = [(asked, done) for asked, done in self._waiting if not done.done()]
        for task, together in list(self._asked.items()):
            if all(done.done() for _, done in together):
                del self._asked[task]
                task.cancel()

    def _running(self) -> int:
        for task in self._tasks:
            if task.done():
                self._tasks = [task for task in self._tasks if not task.done()]
                break
        return len(self._tasks)

    async def _ask_all(self) -> None:
        if self._under_way and len(self._waiting) < _LEAST:
            return  # the others have gone already
        task = asyncio.current_task()
        assert task is not None
        while self._waiting:
            total = self._under_way + len(self._waiting)
            parts = min(self._calls, total // _LEAST) or 1
            count = min(len(self._waiting), -(-total // parts), _AT_ONCE)
            together, self._waiting = self._waiting[:count], self._waiting[count:]
            self._under_way += count
            self._asked[task] = together
            try:
                await self._ask(together)
            except asyncio.CancelledError:
                if task in self._asked or task.cancelling() > 1:
                    raise
            finally:
                self._under_way -= count
                if self._asked.pop(task, None) is None:  # given up
                    task.uncancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Let nobody wait for a task that was cancelled, as the loop is being closed: it may not even have begun."""
        if not self._running():
            for _, done in self._waiting:
                done.cancel()
            self._waiting.clear()

    async def _ask(self, together: list[tuple[Asked, asyncio.Future[Answer]]]) -> None:
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._do([asked for asked, _ in together])
        except Exception as error:  # the store's, which may be anyone's
            answers = [error] * len(together)
        except BaseException:
            for _, done in together:
                done.cancel()
            raise
        for (_, done), answer in zip(together, answers, strict=True):
            if done.done():  # who asked was cancelled
                continue
            if isinstance(answer, Exception):
                done.set_exception(answer)
            else:
                done.set_result(answer)


_shared: PerLoop[dict[tuple[str, int], Any]] = PerLoop(dict, lambda _: None)


def shared(kind: str, storage: SnapshotStorage, make: Callable[[], Answer]) -> Answer:
    """Return what the running loop has of that kind for the store, made by the first call."""
    of_loop, key = _shared.get(), (kind, id(storage))
    found: Answer | None = of_loop.get(key)
    if found is None:
        found = of_loop[key] = make()
    return found


async def read_checkpoint(storage: SnapshotStorage, saga_id: str, step: str) -> Checkpoint:
    """Return what a replay of the saga from that step needs to know. Raises `UsageError` for what is no text."""
    try:
        step.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{step!a:.80} is not the name of a step: it has a lone surrogate") from None
    if answers_together(storage):
        reader = shared("read_checkpoint", storage, lambda: Together(storage.read_checkpoints, calls_at_once(storage)))
        return await reader.ask((saga_id, step))
    saga = await storage.get_saga(saga_id)
    before = await storage.latest_snapshot(saga_id, step=step, phase="before")
    last = await storage.latest_snapshot(saga_id)
    read = storage.read_events(saga_id, after_seq=-1 if before is None else before.seq)
    events = [EventHead(event.seq, event.kind, event.step) async for event in read]
    return Checkpoint(saga, before, None if last is None else last.seq, events)


async def log_replay(storage: SnapshotStorage, record: ReplayRecord) -> None:
    """Do what `SnapshotStorage.log_replay` does."""
    if answers_together(storage):
        await shared("log_replay", storage, lambda: Together(storage.log_replays, calls_at_once(storage))).ask(record)
    else:
        await storage.log_replay(record)
