"""A saga that waits for a file in its second step, so that its process can be killed there and another one goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from cli_shop import effect

from sagaz_core import ReplayConfig, Saga, SagaContext, action, compensate


def said() -> str:
    """Return what the file says, nothing if it is not there."""
    return Path("go").read_text() if Path("go").exists() else ""


class WaitingSaga(Saga):
    """`go` in the current folder says what becomes of the second step."""

    saga_name = "waiting"

    @action("reserve")
    async def reserve(self, ctx: SagaContext) -> dict[str, Any]:
        effect("do reserve")
        return {"reservation": "R1"}

    @compensate("reserve", retries=0)
    async def release(self, ctx: SagaContext) -> None:
        if ctx.get("stuck"):
            raise OSError("the stock is closed")
        effect("undo reserve")

    @action("charge")
    async def charge(self, ctx: SagaContext) -> dict[str, Any]:
        if not said():
            print("waits", flush=True)
            await asyncio.Event().wait()
        if said() == "exit":
            raise SystemExit(3)
        if said() != "on":
            raise OSError("the bank is closed")
        effect("do charge")
        return {"charged": 1}


class UncapturedSaga(WaitingSaga):
    """What `record` captures all the same."""

    def __init__(self) -> None:
        super().__init__(replay_config=ReplayConfig(enable_snapshots=False))


class UnjournaledSaga(WaitingSaga):
    """The same, of one that captures what it asks for."""

    def __init__(self) -> None:
        super().__init__(replay_config=ReplayConfig(journal=False, snapshot_strategy="manual"))
