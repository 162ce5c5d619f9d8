"""A call that can be left, whatever it does when it is cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from sagaz_core._leftovers import SCOPE
from sagaz_core._stubborn import close
from sagaz_core.engine.rest import coroutine_of

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from sagaz_core.virtual_time import VirtualClockLoop


class Held:
    """Awaits a call in the task that makes this, until it ends or is left.

    A call that catches every cancellation can be ended by nobody, so it is its caller that goes on without it.
    """

    __slots__ = ("_scope", "_why", "coroutine", "task")

    def __init__(self, call: Awaitable[Any]) -> None:
        self.coroutine = coroutine_of(call)
        self.task = asyncio.current_task()
        self._scope = SCOPE.get()
        self._why: BaseException | None = None

    def cancel(self) -> None:
        """Cancel the call."""
        if self.task is not None:
            self.task.cancel()

    def leave(self, why: BaseException, loop: VirtualClockLoop) -> None:
        """Raise the error instead of waiting for the call, close that, and let go of the tasks that it began."""
        self._why = why
        if self._scope is not None:
            self._scope.let_go(but=self.task)
        if self.task is not None:
            loop.wake(self.task)

    def __await__(self) -> Self:
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        """Give what the call waits for."""
        if self._why is not None:
            self._left()
        return self.coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Raise the error where the call waits."""
        if self._why is not None:
            self._left()
        try:
            return self.coroutine.throw(*error)
        finally:
            del error  # its traceback has this frame

    def close(self) -> None:
        """Close the call."""
        self.coroutine.close()

    def _left(self) -> None:
        why, self._why = self._why, None
        assert why is not None
        close(self.coroutine)
        raise why
