"""`Recording`: everything a store has of one saga, as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagaz_core.engine.fields import FieldReader, has_encrypted
from sagaz_core.engine.load import load_events, load_record
from sagaz_core.engine.run import Served, served_from
from sagaz_core.errors import DuplicateSagaError, UnknownStepError, UsageError, nearest, quoted
from sagaz_core.events import (
    NO_DELTA,
    CompensationSucceeded,
    Event,
    SagaCompleted,
    SagaStarted,
    StepFailed,
    StepStarted,
    StepSucceeded,
)
from sagaz_core.model import SagaModel
from sagaz_core.recording.file import read_file, recording_from_json, recording_to_json, write_file
from sagaz_core.recording.redact import Redactor
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.storage.base import Batch, SagaRecord, SagaSnapshot, SagaSummary, SnapshotStorage, checked_id
from sagaz_core.storage.codec import known_class
from sagaz_core.storage.frames import standalone, state_bytes
from sagaz_core.storage.records import Resolve, pack_event
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sagaz_core.saga.config import ReplayConfig


@dataclass(frozen=True)
class Recording:
    """One saga as it was recorded: who it is, its events in order, and its snapshots (encoded states).

    The snapshots are as they were stored; one that is damaged is found when its state is read, and no replay needs it.
    """

    record: SagaRecord
    events: tuple[Event, ...]
    snapshots: tuple[SagaSnapshot, ...] = ()

    @classmethod
    async def from_storage(
        cls, storage: SnapshotStorage, saga_id: object, *, resolve: Resolve = known_class
    ) -> Recording:
        """Read it from a store. Raises `UnknownSagaError`, or what the store and the codec raise."""
        identity = checked_id(saga_id)
        record = await load_record(storage, identity)
        events = await load_events(storage, identity, resolve=resolve)
        if not events:
            raise UsageError(
                f"saga {identity!r} was captured without a journal: it has snapshots only, and a recording needs events"
            )
        snapshots: list[SagaSnapshot] = []
        cursor: str | None = None
        while True:
            page = await storage.list_snapshots(identity, cursor=cursor)
            snapshots += page.items
            cursor = page.cursor
            if cursor is None:
                return cls(record, tuple(events), tuple(snapshots))

    async def to_storage(self, storage: SnapshotStorage) -> None:
        """Write it to a store. Raises `DuplicateSagaError` when a saga of its id is there already."""
        if await storage.get_saga(self.saga_id) is not None:
            raise DuplicateSagaError(
                f"saga {self.saga_id!r} is in the store {safe_url(storage.url)} already: "
                f"nothing was written; use another store"
            )
        events = [pack_event(self.saga_id, event) for event in self.events]
        snapshots = [standalone(snapshot, state_bytes(snapshot)) for snapshot in self.snapshots]
        await storage.write(Batch(self.saga_id, self.record, events, snapshots, self._summary()))

    def _summary(self) -> SagaSummary:
        state = self._end
        failed = next((event for event in self.events if isinstance(event, StepFailed) and event.final), None)
        step, at = "", None
        if failed is not None and not self.completed:
            step, at = failed.step or "", failed.at
        elif state.status is SagaStatus.FAILED:  # stuck behind its pivot: nothing turned it back
            step, at = state.failed_step or "", state.at
        return SagaSummary(self.saga_id, self.saga_name, state.seq, state.status.value, step, at)

    @classmethod
    def load(cls, path: str | Path, *, resolve: Resolve = known_class) -> Recording:
        """Read a file that `save` wrote, or anyone else: no code of it runs, and its size and depth are bounded.

        Classes in it are found among the modules that are imported already. Raises `CodecError`, `UnknownSagaError`
        when there is no such file.
        """
        return cls(*recording_from_json(read_file(Path(path)), str(path), resolve))

    def save(self, path: str | Path) -> None:
        """Write the file, all of it or nothing."""
        write_file(Path(path), self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return what the file holds."""
        return recording_to_json(self.record, self.events, self.snapshots)

    def redacted(self, keys: Iterable[str], secret: bytes | str) -> Recording:
        """Return it with the values of these keys replaced by pseudonyms of the same type, wherever they stand.

        Equal values get equal pseudonyms under one `secret`, and nobody without it can test a guess. Raises
        `UsageError` for a key under which nothing stands: it may be misspelt, and what it means would be left to see.
        """
        redactor = Redactor(keys, secret)
        redactor.learn(self.events, self.snapshots)
        for key in sorted(redactor.keys - redactor.found):
            raise UsageError(
                f"recording {self.saga_id!r} has nothing under the key {key!r} to redact"
                f"{nearest(key, self._keys()) or f'; it has {quoted(sorted(self._keys()))}'}"
            )
        redactor.known()
        return replace(
            self,
            record=redactor.record(self.record),
            events=tuple(redactor.event(event) for event in self.events),
            snapshots=tuple(redactor.snapshot(snapshot) for snapshot in self.snapshots),
        )

    @cached_property
    def encrypted(self) -> bool:
        """Whether there are values in it that a cipher must read before it can be run."""
        return any(
            has_encrypted(getattr(event, "context", None))
            or has_encrypted(getattr(event, "result", None))
            or has_encrypted(getattr(event, "delta", NO_DELTA).set)
            for event in self.events
        )

    def decrypted(self, config: ReplayConfig | None, override: Mapping[str, Any]) -> Recording:
        """Return it with values in its events where encrypted ones stood: overridden, or read by the `field_cipher`.

        Its snapshots stay as they were stored. Raises `EncryptedValueError`.
        """
        reader = FieldReader(self.saga_id, config, override, resolve=known_class)
        return replace(self, events=tuple(reader.event(event) for event in self.events))

    def _keys(self) -> set[str]:
        changed = [
            event.delta.set for event in self.events if isinstance(event, (StepSucceeded, CompensationSucceeded))
        ]
        return set(self.context).union(*changed)

    # ---- what it says

    @property
    def saga_id(self) -> str:
        """The saga's id."""
        return self.record.saga_id

    @property
    def saga_name(self) -> str:
        """The saga's name."""
        return self.record.saga_name

    @cached_property
    def model(self) -> SagaModel:
        """The definition that was recorded."""
        return SagaModel.from_dict(self.record.model)

    @property
    def state(self) -> SagaState:
        """The last state."""
        return self._end.fork()

    @cached_property
    def _end(self) -> SagaState:
        return self.state_at(len(self.events) - 1)

    @cached_property
    def status(self) -> SagaStatus:
        """How it ended; `executing` or `compensating` when its process died."""
        return self._end.status

    @property
    def context(self) -> Mapping[str, Any]:
        """The context that it began with."""
        first = self.events[0]
        return dict(first.context) if isinstance(first, SagaStarted) else {}

    @cached_property
    def reached(self) -> tuple[str, ...]:
        """The steps that it started, in the order in which they first did."""
        return tuple(
            dict.fromkeys(
                event.step
                for event in self.events
                if isinstance(event, StepStarted) or (isinstance(event, StepSucceeded) and event.how == "served")
            )
        )

    @cached_property
    def completed(self) -> bool:
        """Whether it got to its end."""
        return any(isinstance(event, SagaCompleted) for event in self.events)

    @cached_property
    def failed_step(self) -> str | None:
        """The step that turned it back, if one did."""
        return next((event.step for event in self.events if isinstance(event, StepFailed) and event.final), None)

    def state_at(self, seq: int) -> SagaState:
        """Return the state just after the event of this number; -1 is before the first."""
        state = SagaState()
        for event in self.events[: seq + 1]:
            state.apply(event)
        return state

    def state_before(self, step: str) -> SagaState:
        """Return the state just before the step first started or was served; `UnknownStepError` if it never was."""
        for index, event in enumerate(self.events):
            if isinstance(event, (StepStarted, StepSucceeded)) and event.step == step:
                return self.state_at(index - 1)
        hint = nearest(step, self.model.names) if step not in self.model else ": it never got there"
        raise UnknownStepError(f"recording {self.saga_id!r} has no checkpoint before {step!r}{hint}")

    def served_before(self, step: str) -> tuple[Served, ...]:
        """Return the recorded results of the steps to serve when a run begins at this step.

        Those that were done when it started; for one that it never got to, all that were ever done and do not come
        after it.
        """
        if step in self.reached:
            return served_from(self.state_before(step))
        after = self.model.descendants.get(step, frozenset()) | {step}
        return tuple(served for served in self.served() if served.step not in after)

    def served(self) -> tuple[Served, ...]:
        """Return the recorded results of all steps that were ever done, undone since or not."""
        found: dict[str, Served] = {}
        for event in self.events:
            if isinstance(event, StepSucceeded):
                found.pop(event.step, None)
                found[event.step] = Served(event.step, event.result, event.delta)
        return tuple(found.values())
