"""Running a saga once, from its start or on from where another process left it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core.clock import Clock, IdSource, new_id, utc_now
from sagaz_core.engine.execution import Execution, Sleep, TakenOver
from sagaz_core.engine.journal import Journal, Observer
from sagaz_core.engine.result import SagaResult, result_of
from sagaz_core.errors import DriftError, UsageError
from sagaz_core.events import NO_DELTA, Delta, SagaStarted, StepSucceeded
from sagaz_core.interceptor import Interceptor
from sagaz_core.model import SagaModel
from sagaz_core.saga.base import Saga, describe
from sagaz_core.saga.definition import Definition, mapping_or_empty
from sagaz_core.state import SagaState
from sagaz_core.storage.base import SagaRecord, SnapshotStorage, checked_id

if TYPE_CHECKING:
    from uuid import UUID

    from sagaz_core.saga.config import ReplayConfig


class RunOptions(NamedTuple):
    """What a run is given beside its saga: where it is captured, who watches, its clock, ids and order of undoing.

    `in_order` has all steps, each behind those that it depends on, to be run one at a time. `sleep` waits between two
    attempts of a step that runs alone; one beside others waits in the loop's own way.
    """

    storage: SnapshotStorage | None = None
    replay_config: ReplayConfig | None = None
    interceptors: Sequence[Interceptor] = ()
    observers: Sequence[Observer] = ()
    clock: Clock = utc_now
    new_id: IdSource = new_id
    source: str = ""
    plan: str = ""
    oldest_first: bool = False
    in_order: Sequence[str] = ()
    on_journal: Callable[[Journal], object] | None = None
    sleep: Sleep = asyncio.sleep


_DEFAULT = RunOptions()


class Served(NamedTuple):
    """A step that is not run: what it returned and changed is taken from a record."""

    step: str
    result: Any
    delta: Delta = NO_DELTA


def served_from(state: SagaState) -> tuple[Served, ...]:
    """Return the completed steps of a state, to begin another run with."""
    return tuple(Served(step, result, state.layers.get(step, NO_DELTA)) for step, result in state.results.items())


async def run_saga(
    saga: Saga[Any],
    context: Any = None,
    *,
    saga_id: str | UUID | None = None,
    served: Sequence[Served] = (),
    options: RunOptions = _DEFAULT,
) -> SagaResult:
    """Run the saga from its start, or from behind the steps that are served. See `Saga.run`."""
    definition = await saga.prepare(to_run=True)
    identity = options.new_id() if saga_id is None else checked_id(saga_id)
    initial = mapping_or_empty(context)
    if definition.typed is not None:
        initial = definition.typed.initial(definition.model.name, initial)
    state = SagaState()
    journal = _journal_of(saga, definition, state, identity, options)
    model = definition.model
    journal.emit(SagaStarted, identity, model.name, model.version, model.fingerprint, initial, journal.run_id)
    for step in served:
        journal.emit(StepSucceeded, step.step, 0, step.result, step.delta, "served")
    execution = _execution_of(saga, definition, journal, options)
    return await _run(execution, execution.run)


async def resume_saga(saga: Saga[Any], state: SagaState, *, options: RunOptions = _DEFAULT) -> SagaResult:
    """Run the saga on from a state that another process left. The state is not copied."""
    from sagaz_core.engine.fields import FieldReader  # a run without a store does not load the codec

    definition = await saga.prepare(to_run=True)
    FieldReader(state.saga_id, options.replay_config or saga.replay_config).fill(state)
    journal = _journal_of(saga, definition, state, state.saga_id, options, resumed=True)
    execution = _execution_of(saga, definition, journal, options)
    return await _run(execution, execution.resume)


async def resume_stored(saga: Saga[Any], saga_id: object, *, allow_drift: bool = False) -> SagaResult:
    """Run on what the saga's own store has under this id. See `Saga.resume`."""
    storage, identity = saga.snapshot_storage, checked_id(saga_id)
    if storage is None:
        raise UsageError(f"saga {identity!r} cannot be resumed without a store: give the saga a snapshot_storage")
    state = await state_to_resume(storage, identity, await describe(saga), allow_drift=allow_drift)
    if state.status.ended:
        return result_of(Journal(state, utc_now))
    config = await capture_to_resume(saga.replay_config, storage, identity)
    return await resume_saga(saga, state, options=RunOptions(replay_config=config))


async def state_to_resume(
    storage: SnapshotStorage, saga_id: str, model: SagaModel, *, allow_drift: bool = False
) -> SagaState:
    """Return the saga's state, to be resumed by one of this model. Raises what `Saga.resume` does."""
    from sagaz_core.engine.load import (  # a run without a store does not load the codec
        load_record,
        load_state_to_resume,
    )

    record = await load_record(storage, saga_id)
    if (differences := model.differences(SagaModel.from_dict(record.model))) and not allow_drift:
        raise DriftError(
            f"saga {saga_id!r} was started with another definition: {'; '.join(differences)} "
            f"(allow_drift=True or --allow-drift resumes it all the same)",
            differences,
        )
    return await load_state_to_resume(storage, saga_id)


async def capture_to_resume(own: object, storage: SnapshotStorage, saga_id: str) -> ReplayConfig:
    """Return a saga's own settings of capture, but for those that would leave its end out of what is stored of it."""
    from sagaz_core.saga.config import ReplayConfig, SnapshotStrategy

    config = own if isinstance(own, ReplayConfig) else ReplayConfig()
    journaled = False
    async for _ in storage.read_events(saga_id):
        journaled = True
        break
    strategy = config.snapshot_strategy
    if not journaled and strategy is SnapshotStrategy.MANUAL:
        strategy = SnapshotStrategy.BEFORE_EACH_STEP
    update = {"enable_snapshots": True, "journal": journaled, "snapshot_strategy": strategy}
    return config.model_copy(update=update)


def _execution_of(saga: Saga[Any], definition: Definition, journal: Journal, options: RunOptions) -> Execution:
    execution = Execution(definition, journal, (*saga.interceptors, *options.interceptors), options.sleep)
    execution.oldest_first, execution.in_order = options.oldest_first, options.in_order
    return execution


async def _run(execution: Execution, start: Callable[[], Any]) -> SagaResult:
    capture = execution.journal.capture
    try:
        if capture is None:
            await start()
        else:
            with capture:
                await start()
        return result_of(execution.journal, execution.exception)
    except TakenOver as end:
        raise end.error from None
    finally:
        execution.let_go()


def open_journal(
    model: SagaModel,
    state: SagaState,
    saga_id: str,
    options: RunOptions,
    *,
    source: str,
    storage: SnapshotStorage | None = None,
    config: ReplayConfig | None = None,
    adapter: str = "native",
    resumed: bool = False,
) -> Journal:
    """Return the journal of a run, with its capture if one is asked for.

    `storage`, `config` and `source` are the saga's own, which those of the options stand above.
    """
    storage, config = options.storage or storage, options.replay_config or config
    capture = None
    if storage is not None and (config is None or config.enable_snapshots):
        from sagaz_core.engine.capture import Capture  # a run without a store does not load the codec

        if config is None:
            from sagaz_core.saga.config import ReplayConfig

            config = ReplayConfig()
        record = SagaRecord(
            saga_id=saga_id,
            saga_name=model.name,
            version=model.version,
            fingerprint=model.fingerprint,
            model=model.description,
            started_at=state.started_at or options.clock(),
            source=options.source or source,
            adapter=adapter,
            plan=options.plan,
        )
        capture = Capture(storage, config, record, state, run_id=options.new_id(), resumed=resumed)
    return _opened(Journal(state, options.clock, capture=capture, observers=options.observers), options)


def _opened(journal: Journal, options: RunOptions) -> Journal:
    if options.on_journal is not None:
        options.on_journal(journal)
    return journal


def _journal_of(
    saga: Saga[Any],
    definition: Definition,
    state: SagaState,
    saga_id: str,
    options: RunOptions,
    *,
    resumed: bool = False,
) -> Journal:
    if options.storage is None and saga.snapshot_storage is None:
        return _opened(Journal(state, options.clock, observers=options.observers), options)
    return open_journal(
        definition.model,
        state,
        saga_id,
        options,
        source=source_of(saga),
        storage=saga.snapshot_storage,
        config=saga.replay_config,
        resumed=resumed,
    )


def source_of(saga: object) -> str:
    """Return where the saga's class is found, `module:qualname`, or `""` for one that cannot be found again."""
    kind = saga if isinstance(saga, type) else type(saga)
    if "<locals>" in kind.__qualname__ or kind.__module__ in ("__main__", "sagaz_core.saga.base"):
        return ""
    return f"{kind.__module__}:{kind.__qualname__}"
