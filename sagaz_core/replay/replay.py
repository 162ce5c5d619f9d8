"""`SagaReplay`: a new run of a stored saga, from behind the steps before a checkpoint."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sagaz_core.adapters.locate import adapter_for, saga_of
from sagaz_core.clock import Clock, IdSource, new_id, utc_now
from sagaz_core.engine.fields import FieldReader, encrypted_fields
from sagaz_core.engine.load import load_checkpoint, load_record, load_state, load_state_before
from sagaz_core.engine.run import RunOptions
from sagaz_core.errors import PlanError, SagazError, UnknownStepError, UsageError
from sagaz_core.events import CompensationSucceeded, StepStarted, StepSucceeded
from sagaz_core.faults.inject import Injector
from sagaz_core.faults.plan import NO_FAULTS, Fault, FaultPlan, as_plan
from sagaz_core.model import SagaModel
from sagaz_core.replay.result import STATUS_OF, ReplayResult, ReplayStatus
from sagaz_core.replay.start import KeepOverride, Start, check_drift, check_runs, start_at
from sagaz_core.saga.config import ReplayConfig
from sagaz_core.state import SagaState, SagaStatus
from sagaz_core.storage.base import ReplayRecord, SagaRecord, SnapshotStorage, checked_id
from sagaz_core.storage.codec import Resolve, encode, importing_class, known_class, opaque_class
from sagaz_core.storage.together import Checkpoint, answers_together, log_replay

if TYPE_CHECKING:
    from sagaz_core.adapters.base import Adapter
    from sagaz_core.engine.journal import Observer
    from sagaz_core.engine.result import SagaResult
    from sagaz_core.interceptor import Interceptor

SagaFactory = Callable[..., Any]
_TOGETHER = ReplayConfig(durability="group")


class SagaReplay:
    """Replays one stored saga. The original is never changed; each replay is a saga of its own, and is logged.

    `saga_factory` gives the saga (a class, or a function without parameters or with the saga's name, sync or async);
    without one the class is found where the store says it was, or in the modules of `apps`. `initiated_by` is who asks.
    `origin` is where the original is read from, if that is not the store that the replay is written to; nobody vouches
    for it, so the classes of its values are only found among the modules that are imported.
    """

    def __init__(
        self,
        saga_id: object,
        snapshot_storage: SnapshotStorage,
        *,
        saga_factory: SagaFactory | None = None,
        initiated_by: str = "unknown",
        apps: Sequence[str] = (),
        interceptors: Sequence[Interceptor] = (),
        observers: Sequence[Observer] = (),
        clock: Clock = utc_now,
        ids: IdSource = new_id,
        origin: SnapshotStorage | None = None,
    ) -> None:
        self.saga_id = checked_id(saga_id)
        self._storage = snapshot_storage
        self._origin = snapshot_storage if origin is None else origin
        self._resolve: Resolve = importing_class if origin is None else known_class
        self._factory = saga_factory
        self._initiated_by = initiated_by
        self._apps = tuple(apps)
        self._interceptors = tuple(interceptors)
        self._observers = tuple(observers)
        self._clock = clock
        self._new_id = ids

    async def list_available_checkpoints(self) -> list[str]:
        """Return the steps from which it can be replayed, in the order in which the original started them.

        Of a saga whose process died, last come the steps that could have started next.
        """
        record = await load_record(self._origin, self.saga_id)
        steps: dict[str, None] = {}
        async for event in self._origin.read_events(self.saga_id):
            # One that was served from a record, in a replay, has no start.
            if event.kind in (StepStarted.__name__, StepSucceeded.__name__) and event.step is not None:
                steps[event.step] = None
        cursor: str | None = None
        while True:  # a run without a journal has its snapshots only
            page = await self._origin.list_snapshots(self.saga_id, cursor=cursor)
            for snapshot in page.items:
                if snapshot.phase == "before":
                    steps.setdefault(snapshot.step_name)
            cursor = page.cursor
            if cursor is None:
                break
        state = await load_state(self._origin, self.saga_id, resolve=opaque_class)
        model = SagaModel.from_dict(record.model)
        return [*steps, *(name for name in model.order if name not in steps and _is_next(name, state, model))]

    async def get_replay_history(self) -> Sequence[ReplayRecord]:
        """Return the replays of this saga, oldest first; one whose status is `started` has not ended, or died."""
        return await self._storage.list_replays(self.saga_id)

    async def from_checkpoint(
        self,
        step_name: str,
        context_override: Mapping[str, Any] | None = None,
        force_failure: bool | str | FaultPlan = False,
        dry_run: bool = False,
        *,
        allow_drift: bool = False,
        strict: bool = False,
    ) -> ReplayResult:
        """Run the saga on from the state just before the step, and return what happened.

        `force_failure` is a plan, or true for one that fails the step before it runs. `dry_run` checks everything and
        runs nothing. The saga runs for real, so a plan must leave it a process and a task to end in: crashes and
        cancellations are for tests. Raises `UnknownSagaError`, `UnknownStepError`, `UnknownSagaClassError`,
        `DriftError`, `PlanError`; with `strict` `OverrideError`.
        """
        record, found = await load_checkpoint(self._origin, self.saga_id, step_name)
        saga, adapter, source = await self._saga(record)
        model = await adapter.describe(saga)
        model.step(step_name)
        drift: tuple[str, ...] = ()
        migration = None
        if model.fingerprint != record.fingerprint:
            migration = _migration(saga, record)
            recorded = SagaModel.from_dict(record.model)
            drift = check_drift(model, recorded, allowed=allow_drift or migration is not None)
        plan = _plan(step_name, force_failure)
        plan.check(model)
        _check_live(plan, adapter)
        start = await self._start(saga, model, step_name, found, dict(context_override or {}), migration, strict=strict)
        check_runs(plan, start.served, step_name)
        if drift:
            start = replace(start, warnings=(*start.warnings, *drift))
        if dry_run:
            return self._dry_run(step_name, start, model)
        return await self._run(saga, adapter, source, step_name, start, plan, dict(context_override or {}))

    async def _saga(self, record: SagaRecord) -> tuple[Any, Adapter, str]:
        """Return the saga, its adapter, and what the new record says of where it is (`""`: its adapter knows)."""
        if self._factory is not None:
            made, source = await make_saga(self._factory, record.saga_name), record.source
        else:
            made, source = saga_of(record, self._apps)
        adapter = adapter_for(made)
        return adapter.create(made), adapter, source

    async def _start(
        self,
        saga: Any,
        model: SagaModel,
        step: str,
        found: Checkpoint,
        override: Mapping[str, Any],
        migration: Callable[[dict[str, Any]], Mapping[str, Any]] | None,
        *,
        strict: bool,
    ) -> Start:
        checkpoint = await self._checkpoint(step, model, found)
        undone = await self._undone_since(checkpoint, found)
        typed = getattr(getattr(saga, "_context_model", None), "model", None)
        declared = frozenset(getattr(typed, "model_fields", ()))
        FieldReader(self.saga_id, _own_config(saga), override, resolve=self._resolve).fill(checkpoint)
        start = start_at(checkpoint, override, undone, model=model, declared=declared, strict=strict)
        if migration is None:
            return start
        return replace(start, context=dict(migration(start.context)))

    async def _checkpoint(self, step: str, model: SagaModel, found: Checkpoint) -> SagaState:
        try:
            return await load_state_before(self._origin, self.saga_id, step, found.before, resolve=self._resolve)
        except UnknownStepError:
            # A process that died between two steps left the state before the second one, if it did not get to say so.
            state = await load_state(self._origin, self.saga_id, resolve=self._resolve)
            if not _is_next(step, state, model):
                raise
            return state

    async def _undone_since(self, checkpoint: SagaState, found: Checkpoint) -> frozenset[str]:
        """Return the steps that are undone at the end. Where the journal does not say so, the last state does."""
        since = [event for event in found.events if event.seq > checkpoint.seq]
        undone = {event.step for event in since if event.kind == CompensationSucceeded.__name__ and event.step}
        last = since[-1].seq if since else checkpoint.seq
        if last == checkpoint.seq + len(since) and (found.last_seq is None or found.last_seq <= last):
            return frozenset(undone | set(checkpoint.undone))
        final = await load_state(self._origin, self.saga_id, resolve=self._resolve)
        return frozenset(undone | set(final.undone))

    def _dry_run(self, step: str, start: Start, model: SagaModel) -> ReplayResult:
        served = tuple(s.step for s in start.served)
        return ReplayResult(
            ReplayStatus.DRY_RUN,
            self.saga_id,
            None,
            step,
            served=served,
            ran=tuple(name for name in model.order if name not in served),
            reran=start.reran,
            context=start.context,
            warnings=start.warnings,
        )

    async def _run(
        self,
        saga: Any,
        adapter: Adapter,
        source: str,
        step: str,
        start: Start,
        plan: FaultPlan,
        override: Mapping[str, Any],
    ) -> ReplayResult:
        replay_id, identity = self._new_id(), self._new_id()
        own = _own_config(saga)
        fields = None if own is None else encrypted_fields(own)
        entry = ReplayRecord(
            replay_id,
            self.saga_id,
            identity,
            step,
            self._initiated_by,
            ReplayStatus.STARTED.value,
            self._clock(),
            encode(dict(override if fields is None else fields.hidden(override)), "override"),
            str(plan),
        )
        await log_replay(self._storage, entry)
        injector = Injector(plan)
        options = RunOptions(
            storage=self._storage,
            replay_config=self._config(own),
            interceptors=(
                *((KeepOverride(override, start.reran),) if override and start.reran else ()),
                *self._interceptors,
                *((injector,) if plan else ()),
            ),
            observers=self._observers,
            clock=self._clock,
            new_id=self._new_id,
            source=source,
            plan=str(plan),
        )
        try:
            result = await adapter.run(saga, start.context, saga_id=identity, served=start.served, options=options)
        except asyncio.CancelledError as error:
            await self._log_end(entry, await self._end_of(identity), _said(error))  # it was undone, or is stuck
            raise
        except BaseException as error:
            await self._log_end(entry, ReplayStatus.FAILED, _said(error))
            raise
        await injector.deliver_late()
        # What an engine claims is one thing (result.status), a step that is left undone another.
        status = ReplayStatus.FAILED if result.stuck else STATUS_OF.get(result.status, ReplayStatus.FAILED)
        await self._log_end(entry, status, str(result.error or ""))
        missed = tuple(str(fault) for fault in injector.missed)
        try:
            return self._result(status, step, start, result, replay_id, missed)
        finally:
            del result  # the traceback of its error can have this frame

    def _config(self, own: ReplayConfig | None) -> ReplayConfig | None:
        """Return the saga's configuration, `None` for its own. Replays that run at the same time write together."""
        if not answers_together(self._storage) or (own is not None and own.durability != "sync"):
            return None
        return _TOGETHER if own is None else own.model_copy(update={"durability": "group"})

    async def _end_of(self, saga_id: str) -> ReplayStatus:
        """Return how the replay's own saga ended, as far as the store knows."""
        try:
            state = await load_state(self._storage, saga_id)
        except SagazError:
            return ReplayStatus.FAILED
        return STATUS_OF.get(state.status, ReplayStatus.FAILED)

    async def _log_end(self, entry: ReplayRecord, status: ReplayStatus, error: str) -> None:
        await log_replay(self._storage, entry.ended(status.value, self._clock(), error[:1000]))

    def _result(
        self,
        status: ReplayStatus,
        step: str,
        start: Start,
        result: SagaResult,
        replay_id: str,
        missed: tuple[str, ...],
    ) -> ReplayResult:
        ran = dict.fromkeys(event.step for event in result.events if isinstance(event, StepStarted))
        return ReplayResult(
            status,
            self.saga_id,
            result.saga_id,
            step,
            served=tuple(s.step for s in start.served),
            ran=tuple(ran),
            reran=start.reran,
            compensated=result.compensated_steps,
            stuck=result.stuck,
            context=result.context,
            warnings=start.warnings,
            missed=missed,
            error=str(result.error or ""),
            result=result,
            replay_id=replay_id,
        )


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _is_next(step: str, state: SagaState, model: SagaModel) -> bool:
    """Whether the saga stopped with this step neither started nor waiting for another."""
    if state.status is not SagaStatus.EXECUTING or step in state.attempts or step in state.results:
        return False
    return model.ancestors[step] <= state.results.keys()


async def make_saga(factory: SagaFactory, saga_name: str) -> Any:
    """Return what the factory gives: a class as it is, of a function what it returns; it may take the saga's name."""
    if isinstance(factory, type):
        return factory
    try:
        takes_name = len(inspect.signature(factory).parameters) > 0
    except (TypeError, ValueError):
        takes_name = False
    made = factory(saga_name) if takes_name else factory()
    return await made if inspect.isawaitable(made) else made


def _own_config(saga: Any) -> ReplayConfig | None:
    own: ReplayConfig | None = getattr(saga, "replay_config", None)
    return own


def _plan(step: str, force_failure: bool | str | FaultPlan) -> FaultPlan:
    if force_failure is True:
        return FaultPlan((Fault(step, "before"),))
    if not force_failure:
        return NO_FAULTS
    if not isinstance(force_failure, (str, FaultPlan)):
        raise UsageError(f"force_failure={force_failure!r}: give True, a plan, or its text such as 'charge@after'")
    return as_plan(force_failure)


def _check_live(plan: FaultPlan, adapter: Adapter) -> None:
    """Raise `PlanError` for a fault that a run for real cannot have, or not by this engine."""
    for fault in plan:
        if "crash" in fault.kind or fault.kind == "cancel":
            raise PlanError(
                f"{fault}: a replay runs for real, and nothing would take it up again after this; "
                f"try it with pytest --sagaz-replay, or `sagaz record --plan`"
            )
        if fault.kind in adapter.cannot:
            raise PlanError(f"{fault}: {adapter.cannot[fault.kind]}")


def _migration(saga: Any, record: SagaRecord) -> Callable[[dict[str, Any]], Mapping[str, Any]] | None:
    migrations = getattr(saga, "migrations", {})
    found: Callable[[dict[str, Any]], Mapping[str, Any]] | None = migrations.get(record.version)
    return found
