"""Sagas of `sagaz.core.decorators.Saga` (which `from sagaz import Saga` gives), decorated or built with `add_step`.

What that engine does, read from its source (1.5.0):

- Steps without `depends_on` are roots. Steps run in levels, a level begins when all of the one before it has ended.
- `max_retries` is never read: an action is called once, a compensation too.
- An error of a compensation is put into the context and goes no further; the saga counts as rolled back all the same.
- Ancestors of a completed pivot are kept, and the pivot; what came after it is undone. `forward_recovery` handlers are
  collected and never called.
- When its task is cancelled nothing is undone. A step that raises `CancelledError` by itself counts as done.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sagaz.core.decorators import Saga, SagaStepDefinition

from sagaz_core.adapters._sagaz_copy import END_KEY, copy_of, rebound, safe_names
from sagaz_core.engine.run import source_of
from sagaz_core.errors import DefinitionError
from sagaz_core.model import SagaModel, StepModel
from sagaz_core.state import SagaStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sagaz_core.adapters._sagaz_watch import Watch


def fresh(saga: Any) -> Any:
    """Return a copy of the saga as it was before any run, its steps' functions bound to the copy."""
    copied = copy_of(saga, Saga, config=saga._config)
    copied._mode, copied._instance_listeners = saga._mode, saga._instance_listeners
    copied._steps = [
        replace(
            step,
            forward_fn=rebound(step.forward_fn, saga, copied),
            compensation_fn=rebound(step.compensation_fn, saga, copied),
        )
        for step in saga._steps
    ]
    copied._step_registry = {step.step_id: step for step in copied._steps}
    return copied


class Declarative:
    """One run of a declarative saga."""

    def __init__(self, saga: Any) -> None:
        self.source = "" if type(saga) is Saga else source_of(saga)
        self._saga = fresh(saga)
        self._names = safe_names(step.step_id for step in self._saga._steps)
        self.model = self._described()
        keys = (*self._names, END_KEY)
        ends = ("completed", "compensated", "compensation_error")
        self.bookkeeping = frozenset(("saga_id", *(f"__{key}_{end}" for key in keys for end in ends)))

    def _described(self) -> SagaModel:
        saga, names = self._saga, self._names
        steps = tuple(
            StepModel(
                name=names[step.step_id],
                depends_on=tuple(names.get(other, other) for other in step.depends_on),
                has_compensation=step.compensation_fn is not None,
                pivot=step.pivot,
                timeout=step.timeout_seconds,
                compensation_timeout=step.compensation_timeout_seconds if step.compensation_fn is not None else None,
            )
            for step in saga._steps
        )
        version = getattr(saga, "version", None)
        model = SagaModel(
            str(saga.saga_name or type(saga).__name__), steps, version if isinstance(version, str) else "1.0"
        )
        try:
            saga.get_execution_order()
        except ValueError as error:
            raise DefinitionError(f"saga {model.name!r} cannot be run by its engine: {error}") from error
        return model

    def initial(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Return the context itself."""
        return dict(context)

    def wrap(self, watch: Watch) -> None:
        """Put the watch around the steps' functions, and let equals run in order of declaration."""
        saga = self._saga
        for step in saga._steps:
            name = self._names[step.step_id]
            step.forward_fn = _watched(watch.act, name, step.forward_fn)
            if step.compensation_fn is not None:
                step.compensation_fn = _watched(watch.undo, name, step.compensation_fn)
        if watch.has_end and saga._steps:
            self._add_end(watch)
        # The engine takes the steps of a level from a set: in production any order may come, here always this one.
        position = {step.step_id: index for index, step in enumerate(saga._steps)}
        graph = saga._compensation_graph
        saga.get_execution_order = _sorted_levels(saga.get_execution_order, lambda step: position[step.step_id])
        graph.get_compensation_order = _sorted_levels(graph.get_compensation_order, lambda key: -position[key])

    def _add_end(self, watch: Watch) -> None:
        saga = self._saga
        keys = [step.step_id for step in saga._steps]
        end = SagaStepDefinition(END_KEY, lambda _: watch.end(), depends_on=keys, timeout_seconds=None)
        saga._steps.append(end)
        saga._step_registry[END_KEY] = end
        saga._instance_listeners = [_WithoutEnd(listener) for listener in saga._instance_listeners]

    def data(self) -> dict[str, Any]:
        """Return the engine's context."""
        data: dict[str, Any] = self._saga._context
        return data

    def merged(self, step: str, result: Any) -> Mapping[str, Any]:
        """Return what the engine merges: a dict that is not empty, and nothing else."""
        return result if result and isinstance(result, dict) else {}

    def backoff(self, attempt: int) -> float:
        """Return 0: nothing is tried again."""
        return 0.0

    async def run(self, initial: dict[str, Any], saga_id: str) -> tuple[SagaStatus, Exception | None]:
        """Run it. Whatever was raised after the start, that engine says that it rolled the saga back."""
        try:
            await self._saga.run(initial, saga_id)
        except Exception as error:  # the user's, passed on
            return SagaStatus.ROLLED_BACK, error
        return SagaStatus.COMPLETED, None


def _watched(call: Callable[..., Any], name: str, function: Any) -> Callable[..., Any]:
    async def made(context: Any) -> Any:
        async def proceed() -> Any:
            return await function(context)

        return await call(name, proceed)

    return made


def _sorted_levels(levels: Callable[[], Any], place: Callable[[Any], int]) -> Callable[[], Any]:
    return lambda: [sorted(level, key=place) for level in levels()]


class _WithoutEnd:
    """A listener that is not told of the step which only a watched run has."""

    def __init__(self, listener: Any) -> None:
        self._listener = listener

    def __getattr__(self, event: str) -> Any:
        handler = getattr(self._listener, event)
        return partial(_unless_end, handler) if event.startswith("on_step_") and callable(handler) else handler


def _unless_end(handler: Callable[..., Any], saga_name: str, step: str, *rest: Any) -> Any:
    return None if step == END_KEY else handler(saga_name, step, *rest)
