"""Importing modules of the application, which may be asked for inside a running event loop."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType


def import_application(name: str) -> ModuleType:
    """Import the module as a program would at its start: it may call `asyncio.run`, as one must to build an imperative
    saga of the sagaz package. Raises what its import raises.
    """
    if name in sys.modules or "asyncio" not in sys.modules:
        return importlib.import_module(name)
    with _outside_the_loop():
        return importlib.import_module(name)


@contextlib.contextmanager
def _outside_the_loop() -> Iterator[None]:
    """Let code of this thread run as if no loop did. asyncio has no public way to."""
    from asyncio import events, tasks

    loop = events._get_running_loop()
    if loop is None:
        yield
        return
    swap: Any = getattr(tasks, "_swap_current_task", None)  # Python 3.11 keeps the task with the loop
    task = swap(loop, None) if swap is not None else None
    events._set_running_loop(None)
    try:
        yield
    finally:
        events._set_running_loop(loop)
        if swap is not None:
            swap(loop, task)
