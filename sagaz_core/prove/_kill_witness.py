"""What watches in a process that is to be killed: notes every call and every write, and dies when its moment comes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagaz_core.faults.inject import Injector
from sagaz_core.faults.plan import FaultPlan
from sagaz_core.network import network_allowed
from sagaz_core.prove.boundaries import Labels

if TYPE_CHECKING:
    from sagaz_core.interceptor import Proceed, StepCall
    from sagaz_core.storage.base import Batch, SnapshotStorage

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # on Windows os.kill() ends a process at once by any signal


class Diary:
    """What happens, a JSON line each, appended by one write: what was written is the system's, and survives us."""

    def __init__(self, path: Path, process: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._process = process

    def note(self, what: str, **facts: Any) -> None:
        """Append a line."""
        os.write(self._file, (json.dumps({"process": self._process, "what": what, **facts}) + "\n").encode())


class Witness:
    """The interceptor that makes the plan's faults happen, notes every call, and dies when its moment comes."""

    def __init__(self, diary: Diary, plan: FaultPlan, at: str) -> None:
        self.injector = Injector(plan)
        self._diary = diary
        self._at = at
        self._labels = Labels()

    async def intercept(self, call: StepCall, proceed: Proceed) -> Any:
        """Make the call, as the plan has it, and note what of it really happened."""
        if not self.injector.concerns(call):
            return await self._called(call, proceed)
        try:
            return await self.injector.intercept(call, lambda: self._called(call, proceed))
        finally:
            missed = self.injector.missed
            self._diary.note("fired", faults=[str(fault) for fault in self.injector.plan if fault not in missed])

    async def _called(self, call: StepCall, proceed: Proceed) -> Any:
        if call.kind not in ("action", "compensation"):
            return await proceed()
        undo = call.kind == "compensation"
        facts = {"step": call.step, "undo": undo, "attempt": call.attempt}
        self._diary.note("began", **facts)
        try:
            result = await proceed()
        except BaseException:
            self._diary.note("failed", **facts)
            raise
        label = self._labels.effect(call.step, undo=undo)
        self._diary.note("happened", **facts, label=label)
        self._reached([label])
        return result

    def written(self, batch: Batch) -> None:
        """Note what the store says is written."""
        labels = self._labels.written(batch.events)
        self._diary.note("written", labels=labels, events=[[e.seq, e.kind, e.step] for e in batch.events])
        self._reached(labels)

    def _reached(self, labels: Sequence[str]) -> None:
        if self._at and self._at in labels:
            self._at = ""
            os.kill(os.getpid(), KILL)


class Written:
    """A store that tells the witness when a batch is durable."""

    def __init__(self, storage: SnapshotStorage, witness: Witness) -> None:
        self._storage = storage
        self._witness = witness

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def write(self, batch: Batch) -> None:
        """Write the batch, and say so."""
        with network_allowed():  # it is the saga that is kept off the network, not its store
            await self._storage.write(batch)
        self._witness.written(batch)

    async def write_many(self, batches: Sequence[Batch]) -> Sequence[Exception | None]:
        """Write the batches, and say so of those that were."""
        with network_allowed():
            results = await self._storage.write_many(batches)
        for batch, result in zip(batches, results, strict=True):
            if result is None:
                self._witness.written(batch)
        return results
