"""Tasks that run at once until they first wait, on loops that have such: most of what a saga does never waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

BeginTask: TypeAlias = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]


def begin_task(coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Return a new task of the running loop, begun at once by a loop of ours, and in its turn by another one."""
    loop: Any = asyncio.get_running_loop()
    begin: BeginTask = getattr(loop, "begin_task", create_task)
    return begin(coroutine, name)


def create_task(coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Return a new task of the running loop, which begins in its turn."""
    return asyncio.create_task(coroutine, name=name)
