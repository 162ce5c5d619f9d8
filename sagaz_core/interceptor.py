"""The one seam around every call of an action or a compensation.

Fault injection, serving recorded results, the effect ledger, metrics and tracing are interceptors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal, Protocol

CallKind = Literal["action", "compensation", "recovery", "end"]
Proceed = Callable[[], Awaitable[Any]]


@dataclass(slots=True)
class StepCall:
    """One call that is about to be made.

    `kind` is `end` once, after the last step and before the saga is completed: an interceptor that raises there turns
    a saga back that has done everything. `cancel_saga()` cancels the task that runs the saga. `renew_time(True)`
    lets the timeout of a call that is under way begin anew, `renew_time(False)` takes it away; it is `None` where the
    call has none, or the engine cannot.
    """

    saga_id: str
    step: str
    kind: CallKind
    attempt: int
    context: Any
    result: Any = None
    cancel_saga: Callable[[], object] | None = None
    renew_time: Callable[[bool], object] | None = None


def put_back(context: Any) -> Callable[[], None]:
    """Return the function that puts a call's context back to what it is now: another delivery is given the same.

    Values that are changed in place stay changed, as they do between two attempts.
    """
    if isinstance(context, dict):
        values = dict(context)

        def again() -> None:
            context.clear()
            context.update(values)

    else:  # a model of pydantic's, whose fields may be frozen
        copied = copy(context)

        def again() -> None:
            context.__setstate__(copied.__getstate__())

    return again


class Interceptor(Protocol):
    """Wraps a call. It may call `proceed` never, once or again, and what it returns or raises is the call's outcome."""

    def intercept(self, call: StepCall, proceed: Proceed) -> Awaitable[Any]:
        """Make the call by `await proceed()`, or not; most are `async def`."""


def run_intercepted(interceptors: Sequence[Interceptor], call: StepCall, function: Proceed) -> Awaitable[Any]:
    """Return the awaitable that makes the call through the interceptors, the first one outermost."""
    proceed = function
    for interceptor in interceptors[:0:-1]:
        proceed = _bind(interceptor, call, proceed)
    return interceptors[0].intercept(call, proceed) if interceptors else proceed()


def _bind(interceptor: Interceptor, call: StepCall, proceed: Proceed) -> Proceed:
    return lambda: interceptor.intercept(call, proceed)
