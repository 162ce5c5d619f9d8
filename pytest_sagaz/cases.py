"""One saga, one start and one plan, ready to run: what the fixture `saga_case` gives, and what each of our items is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sagaz.runner import Runner
from pytest_sagaz.sagas import Make
from sagaz_core.adapters.locate import adapter_for
from sagaz_core.errors import DriftError, UsageError
from sagaz_core.faults.plan import NO_FAULTS, Fault, FaultPlan
from sagaz_core.model import END
from sagaz_core.prove.explorer import explore_subject
from sagaz_core.prove.outcome import Outcome, UnsoundError
from sagaz_core.prove.recorded import Faithful, RecordedSubject, not_as_recorded, run_faithful
from sagaz_core.prove.schedules import in_both_orders
from sagaz_core.prove.search import Search
from sagaz_core.prove.trial import NotRunnableError, Subject, describe, reference_reading, run_trial
from sagaz_core.prove.watch import watched_calls
from sagaz_core.prove.world import World
from sagaz_core.recording.base import Recording
from sagaz_core.replay.start import check_runs

if TYPE_CHECKING:
    from datetime import datetime

    from sagaz_core.adapters.base import Adapter
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.exploration import Exploration


class UnfaithfulError(UnsoundError):
    """The current code does something else than was recorded."""


@dataclass
class Case:
    """A saga to run under `plan`: from its start with `context`, or from where its `recording` has it at `step`.

    `run()` returns the outcome; `arun()` is the same inside a running loop. Under a plan that the engine cannot have,
    the test is skipped. `freeze` runs a replay at the recorded time.
    """

    runner: Runner
    make: Make
    context: Mapping[str, Any] = field(default_factory=dict)
    plan: FaultPlan = NO_FAULTS
    recording: Recording | None = None
    step: str | None = None
    override: Mapping[str, Any] = field(default_factory=dict)
    freeze: bool = True
    world: World | None = None
    allow_drift: bool = False
    compare: bool = False
    reproduce: str = ""
    saga_id: str | None = None

    def run(self) -> Outcome:
        """Run it once, on a virtual clock, and return how it ended. Each call is a run of its own."""
        __tracebackhide__ = True
        return self._noted(self.runner.run(self._outcome, instead="saga_case.arun", start=self._start()))

    async def arun(self) -> Outcome:
        """Do what `run` does, inside a running loop and in its time."""
        __tracebackhide__ = True
        return self._noted(await self.runner.arun(self._outcome, start=self._start()))

    def run_in_both_orders(self) -> Outcome:
        """Run it, and if that is sound once more, undone oldest first, where the saga leaves a choice.

        Returns what is not sound, or else the first run; `.under` says which it is. Fakes are put back in between. A
        live run (`--sagaz-allow-live`) is made once: the real outside is not put back.
        """
        __tracebackhide__ = True
        return self._noted(self.runner.run(self._worse_outcome, instead="saga_case.arun", start=self._start()))

    @property
    def subject(self) -> Subject:
        """What is run, before the plan decides which steps are served from the recording."""
        recording = self._readable
        context = self.context if recording is None else {**recording.context, **self.override}
        return Subject(
            self.make,
            context,
            world=self.world,
            saga_id=self.saga_id if recording is None else recording.saga_id,
            reproduce=self.reproduce,
            clock=self.runner.clock(),
            fails_at=None if recording is None or recording.record.plan else recording.failed_step,
        )

    def run_faithful(self) -> Faithful:
        """Run the current code from the recorded start, and compare."""
        __tracebackhide__ = True
        return self.runner.run(self._faithful, instead="saga_case.arun", start=self._start())

    def explore(self, search: Search) -> Exploration:
        """Explore every plan from the recorded state, as the search says."""
        __tracebackhide__ = True
        made = self.runner.run(lambda: self._explored(search), instead="sagaz.aexplore", start=self._start())
        return self.runner.explored(made)

    def _start(self) -> datetime | None:
        return self.recording.record.started_at if self.recording is not None and self.freeze else None

    @cached_property
    def _readable(self) -> Recording | None:
        return None if self.recording is None else readable(self.recording, self.make, self.override)

    def _noted(self, outcome: Outcome | NotRunnableError) -> Outcome:
        __tracebackhide__ = True
        if isinstance(outcome, NotRunnableError):
            pytest.skip(f"not run: {outcome}")
        self.runner.outcomes.append(outcome)
        return outcome

    async def _worse_outcome(self) -> Outcome | NotRunnableError:
        return await self._outcome(run_trial if self.runner.live else in_both_orders)

    async def _outcome(self, trial: Callable[..., Awaitable[Outcome]] = run_trial) -> Outcome | NotRunnableError:
        self.runner.world = self.world
        try:
            with watched_calls(self.subject) as subject:
                reference = None
                if self._readable is not None:
                    subject = await self._recorded(subject, self._readable)
                if not subject.served and self._compares:
                    reference = await reference_reading(subject)
                return await trial(subject, self.plan, reference=reference)
        except NotRunnableError as error:
            return error

    @property
    def _compares(self) -> bool:
        benign = self.plan and not any(fault.described.fatal for fault in self.plan)
        return self.compare and bool(benign) and self.step is None

    async def _explored(self, search: Search) -> Exploration:
        recording, subject = self._readable, self.subject
        assert recording is not None
        _, model = await self._described(subject, recording)
        check_drift(model, recording.model, allowed=self.allow_drift)
        whole = RecordedSubject(recording, subject, self.override).at(FaultPlan((Fault(END, "before"),)), model)
        served = {step.step: step for step in whole.served}
        return await explore_subject(replace(whole, served=()), replace(search, recorded=served))

    async def _recorded(self, subject: Subject, recording: Recording) -> Subject:
        adapter, model = await self._described(subject, recording)
        migrate = _migration(subject, adapter, recording, model)
        check_drift(model, recording.model, allowed=self.allow_drift or migrate is not None)
        if self.step is not None:
            model.step(self.step)
            check_runs(self.plan, recording.served_before(self.step), self.step)
        if self.step is not None or self.plan:
            recorded = RecordedSubject(recording, subject, self.override, from_step=self.step)
            subject = recorded.at(self.plan, model)
            if subject.served and self.step is None and not self.override:
                # Where running them comes to the same, the steps have their effects in this world, which shows more.
                live = replace(subject, served=())
                subject = subject if await not_as_recorded(live, subject.served) else live
        if migrate is not None:
            subject = replace(subject, context=dict(migrate(dict(subject.context))))
        return subject

    async def _faithful(self) -> Faithful:
        subject, recording = self.subject, self._readable
        assert recording is not None
        await self._described(subject, recording)
        if self.step is not None:
            subject = replace(subject, served=recording.served_before(self.step))
        with watched_calls(subject) as subject:
            return await run_faithful(RecordedSubject(recording, subject, self.override))

    async def _described(self, subject: Subject, recording: Recording) -> tuple[Adapter, SagaModel]:
        adapter, model = await describe(subject)
        if model.name != recording.saga_name:
            raise UsageError(
                f"saga {model.name!r} was given for the recording {recording.saga_id!r} of saga "
                f"{recording.saga_name!r}: let saga_factory make that one"
            )
        return adapter, model


def readable(recording: Recording, make: Make, override: Mapping[str, Any]) -> Recording:
    """Return the recording with its values, those that were stored encrypted too: the saga has the cipher for them.

    Raises `EncryptedValueError` for one that it cannot read and that is not overridden.
    """
    if not recording.encrypted:
        return recording
    saga = make()
    return recording.decrypted(getattr(adapter_for(saga).create(saga), "replay_config", None), override)


def check_drift(now: SagaModel, recorded: SagaModel, *, allowed: bool) -> None:
    """Raise `DriftError` when the saga is not defined as it was recorded, unless that is allowed."""
    differences = now.differences(recorded)
    if differences and not allowed:
        raise DriftError(
            f"saga {now.name!r} is not defined as it was recorded: {'; '.join(differences)} "
            f"(--sagaz-allow-drift runs it all the same; migrations declare how)",
            differences,
        )


def _migration(subject: Subject, adapter: Adapter, recording: Recording, model: SagaModel) -> Any:
    """Return what the saga declares for data of the recorded version, if its definition is another one now."""
    if model.fingerprint == recording.record.fingerprint:
        return None
    declared = getattr(adapter.create(subject.make()), "migrations", None) or {}
    return declared.get(recording.record.version)
