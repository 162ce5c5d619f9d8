"""Beginning a coroutine by hand: most of what an engine calls never waits, and then needs no timer, task or future."""

from __future__ import annotations

from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextvars import Context

_GIVEN = object()


def coroutine_of(awaitable: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    """Return the awaitable as what can be begun."""
    return awaitable if isinstance(awaitable, CoroutineType) else _awaited(awaitable)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class Rest:
    """What is left of a coroutine that was begun and waits, to be awaited in the task that has begun it.

        try:
            rest = Rest(coroutine, coroutine.send(None))
        except StopIteration as stop:
            return stop.value
        return await rest

    With a context the coroutine goes on in that one, in which it was begun.
    """

    __slots__ = ("_send", "_throw", "_waits_for", "coroutine")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], waits_for: Any, context: Context | None = None) -> None:
        self.coroutine = coroutine
        self._waits_for = waits_for
        self._send: Callable[[Any], Any] = coroutine.send
        self._throw: Callable[..., Any] = coroutine.throw
        if context is not None:
            run: Callable[..., Any] = context.run
            self._send, self._throw = partial(run, coroutine.send), partial(run, coroutine.throw)

    def __await__(self) -> Self:
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Give what the coroutine waits for, at first what it has waited for since it was begun."""
        waits_for, self._waits_for = self._waits_for, _GIVEN
        return self._send(value) if waits_for is _GIVEN else waits_for

    def throw(self, *error: Any) -> Any:
        """Raise the error where the coroutine waits."""
        self._waits_for = _GIVEN
        try:
            return self._throw(*error)
        finally:
            del error  # its traceback has this frame

    def close(self) -> None:
        """Close the coroutine."""
        self.coroutine.close()
