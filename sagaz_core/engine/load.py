"""Reading states back from a store: the newest snapshot, and the events after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagaz_core.errors import CorruptDataError, DamagedListingError, UnknownSagaError, UnknownStepError, nearest, quoted
from sagaz_core.events import Event, SagaResumed, StepStarted, StepSucceeded
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.storage.codec import importing_class, known_class
from sagaz_core.storage.records import Resolve, unpack_event, unpack_state
from sagaz_core.storage.together import Checkpoint, read_checkpoint
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from datetime import datetime

    from sagaz_core.storage.base import SagaRecord, SagaSnapshot, SnapshotStorage


async def load_record(storage: SnapshotStorage, saga_id: str) -> SagaRecord:
    """Return who the saga is, or raise `UnknownSagaError`."""
    record = await storage.get_saga(saga_id)
    if record is None:
        try:
            items = (await storage.list_sagas(limit=200)).items
        except DamagedListingError as error:  # another saga's
            items = error.items
        known = [found.saga_id for found in items]
        hint = nearest(saga_id, known)
        if not hint and known:
            hint = f"; it has {quoted(known[:3])}{' and more' if len(known) > 3 else ''}"
        raise UnknownSagaError(f"there is no saga {saga_id!r} in the store {safe_url(storage.url)}{hint}")
    return record


async def load_state(
    storage: SnapshotStorage,
    saga_id: str,
    *,
    until: datetime | None = None,
    max_seq: int | None = None,
    resolve: Resolve = known_class,
) -> SagaState:
    """Return the saga's state: the last one, or at that time or `seq`. A saga that had not started is `pending`."""
    snapshot = await storage.latest_snapshot(saga_id, until=until, max_seq=max_seq)
    state = SagaState() if snapshot is None else unpack_state(snapshot, resolve)
    async for stored in storage.read_events(saga_id, after_seq=state.seq, until=until):
        if max_seq is not None and stored.seq > max_seq:
            break
        if stored.seq != state.seq + 1:
            raise CorruptDataError(
                f"saga {saga_id!r} in the store {safe_url(storage.url)} lacks its event {state.seq + 1}"
            )
        state.apply(unpack_event(stored, resolve))
    return state


async def load_state_to_resume(storage: SnapshotStorage, saga_id: str) -> SagaState:
    """Return the saga's last state, to run on from. Its classes may be imported: the store is the saga's own."""
    state = await load_state(storage, saga_id, resolve=importing_class)
    if state.status is SagaStatus.PENDING:
        raise UnknownStepError(
            f"saga {saga_id!r} cannot be resumed: nothing of it was captured; run it anew under another id"
        )
    snapshot = await storage.latest_snapshot(saga_id)
    if snapshot is not None and snapshot.seq == state.seq and snapshot.phase == "before" and not state.status.ended:
        # Captured without a journal: that the step started is not written, but it did, and may have had its effect.
        state.apply(StepStarted(state.seq + 1, snapshot.created_at, snapshot.step_name, 1))
    return state


async def load_events(storage: SnapshotStorage, saga_id: str, *, resolve: Resolve = known_class) -> list[Event]:
    """Return all events of the saga."""
    return [unpack_event(stored, resolve) async for stored in storage.read_events(saga_id)]


async def load_checkpoint(storage: SnapshotStorage, saga_id: str, step: str) -> tuple[SagaRecord, Checkpoint]:
    """Return who the saga is, and what a replay from the step needs to know, or raise `UnknownSagaError`."""
    found = await read_checkpoint(storage, saga_id, step)
    return found.saga or await load_record(storage, saga_id), found


async def load_state_before(
    storage: SnapshotStorage,
    saga_id: str,
    step: str,
    snapshot: SagaSnapshot | None,
    *,
    resolve: Resolve = known_class,
) -> SagaState:
    """Return the state just before the step was begun (its first attempt; the first since a crashed run was resumed).

    `snapshot` is the latest one before it, if there is any. Raises `UnknownStepError` when the saga never got to the
    step, or nothing of it was captured.
    """
    if snapshot is not None:
        return unpack_state(snapshot, resolve)
    begun, resumed = None, -1
    async for stored in storage.read_events(saga_id):
        if stored.kind == SagaResumed.__name__:
            resumed = stored.seq
        elif stored.step == step and stored.kind in _BEGINS and (begun is None or begun < resumed):
            begun = stored.seq
    if begun is not None:
        return await load_state(storage, saga_id, max_seq=begun - 1, resolve=resolve)
    raise UnknownStepError(
        f"saga {saga_id!r} has no checkpoint before step {step!r}: it never got there, or it was captured without "
        f"a journal; `sagaz replay list-changes {saga_id}` shows what it did"
    )


# A step that was served from a record has no start.
_BEGINS = (StepStarted.__name__, StepSucceeded.__name__)
