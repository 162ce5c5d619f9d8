"""Sagas of `sagaz.core.saga.Saga`: steps added by `await add_step(...)`, run by `execute()`.

What that engine does, read from its source (1.5.0):

- Steps run one after another; if any was added with `dependencies`, in batches as these allow, and then those without
  are roots.
- One after another, an action has its timeout and `max_retries` more attempts; in batches neither is looked at.
- A compensation has three attempts; one that fails for good makes the result FAILED, the others are run all the same.
- Pivots are kept in the definition and never looked at: everything is undone.
- What a step returns is put into the context under the step's name.
- When its task is cancelled, or an action raises `CancelledError` by itself, nothing is undone.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from inspect import isawaitable, signature
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sagaz.core.saga import Saga, SagaStep
from sagaz.core.types import SagaStepStatus

from sagaz_core.adapters._sagaz_copy import END_KEY, copy_of, rebound, safe_names
from sagaz_core.engine.run import source_of
from sagaz_core.errors import DefinitionError
from sagaz_core.model import SagaModel, StepModel
from sagaz_core.state import SagaStatus

if TYPE_CHECKING:
    from sagaz_core.adapters._sagaz_watch import Watch

_COMPENSATION_RETRIES = 2
_DEFAULT_NAME = "Saga"


def fresh(saga: Any) -> Any:
    """Return a copy of the saga as it was before any run, its steps' functions bound to the copy.

    What was put into its context before it was run stays; after a run that cannot be told from what the run put there.
    """
    began_with = dict(saga.context.data) if saga.status.value == "pending" else {}
    context, dependencies, has_dependencies = saga.context, saga.step_dependencies, saga._has_dependencies
    copied = copy_of(
        saga,
        Saga,
        name=saga.name,
        version=saga.version,
        failure_strategy=saga.failure_strategy,
        retry_backoff_base=saga.retry_backoff_base,
        replay_config=saga.replay_config,
        snapshot_storage=saga.snapshot_storage,
    )
    copied.context = replace(
        context,
        data=began_with,
        metadata=dict(context.metadata),
        external_refs={},
        _streams={},
        _saga_id=copied.saga_id,
    )
    copied.steps = [_fresh_step(step, saga, copied) for step in saga.steps]
    copied.step_dependencies = {name: set(others) for name, others in dependencies.items()}
    copied._has_dependencies = has_dependencies
    return copied


def _fresh_step(step: Any, saga: Any, copied: Any) -> Any:
    return replace(
        step,
        action=rebound(step.action, saga, copied),
        compensation=rebound(step.compensation, saga, copied),
        status=SagaStepStatus.PENDING,
        result=None,
        error=None,
        executed_at=None,
        compensated_at=None,
        retry_attempts=0,
        retry_count=0,
        tainted=False,
    )


async def built(saga: Any) -> Any:
    """Return a fresh copy of the saga with its steps, added by its own `build` (or `setup`) if it has none yet."""
    copied = fresh(saga)
    if not copied.steps:
        for method in (getattr(copied, name, None) for name in ("build", "setup")):
            if callable(method) and _takes_nothing(method):
                added = method()
                if isawaitable(added):
                    await added
                break
    return copied


def _takes_nothing(method: Callable[..., Any]) -> bool:
    try:
        signature(method).bind()
    except (TypeError, ValueError):
        return False
    return True


class Imperative:
    """One run of an imperative saga; made of a copy that has its steps (see `built`)."""

    def __init__(self, saga: Any) -> None:
        self.source = "" if type(saga) is Saga else source_of(saga)
        self._saga = saga
        self._names = safe_names(step.name for step in saga.steps)
        self._keys = {name: key for key, name in self._names.items()}
        self.model = self._described()
        self.bookkeeping = frozenset((END_KEY,))

    def _described(self) -> SagaModel:
        saga = self._saga
        steps = []
        previous: tuple[str, ...] = ()
        for step in saga.steps:
            name, undo = self._names[step.name], step.compensation is not None
            described = StepModel(
                name=name,
                depends_on=previous,
                has_compensation=undo,
                timeout=step.timeout,
                compensation_timeout=step.compensation_timeout if undo else None,
                retries=step.max_retries,
                compensation_retries=_COMPENSATION_RETRIES if undo else 0,
            )
            if saga._has_dependencies:
                others = saga.step_dependencies[step.name]
                depends_on = [self._names[key] for key in self._names if key in others]
                depends_on += sorted(others.difference(self._names))
                described = replace(described, depends_on=tuple(depends_on), timeout=None, retries=0)
            steps.append(described)
            previous = (name,)
        own = saga.name if saga.name != _DEFAULT_NAME else type(saga).__name__
        model = SagaModel(str(own), tuple(steps), str(saga.version))
        try:
            saga._build_execution_batches()
        except ValueError as error:
            raise DefinitionError(f"saga {model.name!r} cannot be run by its engine: {error}") from error
        return model

    def initial(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is in the instance's context already, and over it what the run is given."""
        return {**self._saga.context.data, **context}

    def wrap(self, watch: Watch) -> None:
        """Put the watch around the steps' functions, and let equals run in order of declaration."""
        saga = self._saga
        for step in saga.steps:
            self._wrap_step(watch, step)
        if watch.has_end and saga.steps:
            self._add_end(watch)
        # The engine takes the steps of a batch from a set: in production any order may come, here always this one.
        position = {step.name: index for index, step in enumerate(saga.steps)}
        batches = saga._build_execution_batches
        saga._build_execution_batches = lambda: [sorted(batch, key=position.__getitem__) for batch in batches()]

    def _add_end(self, watch: Watch) -> None:
        async def end(_: Any) -> None:
            await watch.end()

        steps = self._saga.steps
        self._saga.step_dependencies[END_KEY] = {step.name for step in steps}
        steps.append(SagaStep(END_KEY, end, max_retries=0, timeout=None))

    def _wrap_step(self, watch: Watch, step: Any) -> None:
        saga, name, action, compensation = self._saga, self._names[step.name], step.action, step.compensation

        async def act(context: Any) -> Any:
            async def proceed() -> Any:
                # In batches that engine awaits whatever it gets; else it asks first whether the function is async.
                return await (action(context) if saga._has_dependencies else saga._invoke(action, context))

            return await watch.act(name, proceed)

        async def undo(result: Any, context: Any) -> Any:
            async def proceed() -> Any:
                return await saga._invoke(compensation, result, context)

            return await watch.undo(name, proceed)

        step.action = act
        if compensation is not None:
            step.compensation = undo

    def data(self) -> dict[str, Any]:
        """Return the engine's context."""
        data: dict[str, Any] = self._saga.context.data
        return data

    def merged(self, step: str, result: Any) -> Mapping[str, Any]:
        """Return the result under the step's own name; a stream is kept elsewhere."""
        return {} if isinstance(result, AsyncGenerator) else {self._keys[step]: result}

    def backoff(self, attempt: int) -> float:
        """Return the engine's exponential backoff, without a limit."""
        return float(self._saga.retry_backoff_base * 2 ** (attempt - 1))

    async def run(self, initial: dict[str, Any], saga_id: str) -> tuple[SagaStatus, Exception | None]:
        """Run it. The saga gets this id if it is a UUID, which that engine's own snapshots need it to be."""
        saga = self._saga
        saga.context.data = initial
        with suppress(ValueError):
            saga.saga_id = saga.context._saga_id = str(UUID(saga_id))
        try:
            result = await saga.execute()
        except Exception as error:  # the engine's own, about a saga that it cannot run
            return SagaStatus.FAILED, error
        known = {status.value for status in SagaStatus}
        claimed = result.status.value
        return SagaStatus(claimed) if claimed in known else SagaStatus.FAILED, result.error
