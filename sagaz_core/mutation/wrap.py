"""Putting something around a function of a saga's definition, sync or async, without touching the function."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core.saga.definition import Definition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sagaz_core.model import SagaModel
    from sagaz_core.saga.step import Operation, Step


class Call(NamedTuple):
    """A call of the user's function, to be made."""

    operation: Operation
    context: Any
    result: Any = None

    def make(self) -> Any:
        """Make it; what an async function gives is not awaited yet."""
        if self.operation.takes_second:
            return self.operation.function(self.context, self.result)
        return self.operation.function(self.context)


Around = Callable[["Operation", Any, Any], Generator[Call, Any, Any]]
"""Given what it is around, the context and the step's result: yields calls, is sent what each returned, and returns."""


def around_compensation(step: Step, around: Around) -> Step:
    """Return the step with something around its compensation."""
    undo = step.compensation
    return step if undo is None else replace(step, compensation=_wrapped(undo, around, takes_second=True))


def around_action(step: Step, around: Around) -> Step:
    """Return the step with something around its action."""
    return replace(step, action=_wrapped(step.action, around, takes_second=False))


def _wrapped(operation: Operation, around: Around, *, takes_second: bool) -> Operation:
    async def driven(context: Any, result: Any = None) -> Any:
        return await _rest(around(operation, context, result))

    def called(context: Any, result: Any = None) -> Any:
        return _now(around(operation, context, result))

    return operation.bound(driven if operation.is_async else called, takes_second)


async def _rest(calls: Generator[Call, Any, Any], waiting: Awaitable[Any] | None = None) -> Any:
    """Make the calls to their end; the first one was made already if it is waited for."""
    try:
        call = None if waiting is not None else next(calls)
        while True:
            try:
                value = waiting if call is None else call.make()
                if inspect.isawaitable(value):
                    value = await value
            except Exception as error:  # the user's code: whatever it is, it is shown to the generator
                call = calls.throw(error)
            else:
                call = calls.send(value)
    except StopIteration as stop:
        return stop.value


def _now(calls: Generator[Call, Any, Any]) -> Any:
    """Make the calls of sync functions. Where one gives an awaitable, the rest is awaited by who called."""
    try:
        call = next(calls)
        while True:
            try:
                value = call.make()
            except Exception as error:  # as above
                call = calls.throw(error)
            else:
                if inspect.isawaitable(value):
                    return _rest(calls, value)
                call = calls.send(value)
    except StopIteration as stop:
        return stop.value


def with_steps(definition: Definition, changed: Mapping[str, Step], model: SagaModel | None = None) -> Definition:
    """Return the definition with these steps in the place of its own, and `model` if the order changed."""
    return Definition(
        definition.model.name,
        {**definition.steps, **changed},
        typed=definition.typed,
        on_sibling_failure=definition.on_sibling_failure,
        forward_retries=definition.forward_retries,
        model=model or definition.model,
    )
