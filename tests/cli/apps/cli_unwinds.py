"""A saga that fails at its end, and waits where it is undone, so that another process can go on with that."""

from __future__ import annotations

import os
from pathlib import Path

from cli_shop import effect

from sagaz_core import Saga, SagaContext, StepRejected, action, compensate


class UnwindingSaga(Saga):
    """To undo the first step, it reads a byte from the pipe `go` in the current folder, if there is one."""

    saga_name = "unwinding"

    @action("reserve")
    async def reserve(self, ctx: SagaContext) -> None:
        effect("do reserve")

    @compensate("reserve")
    def release(self, ctx: SagaContext) -> None:
        if Path("go").exists():
            pipe = os.open("go", os.O_RDWR)
            print("waits", flush=True)
            os.read(pipe, 1)
        effect("undo reserve")

    @action("charge")
    async def charge(self, ctx: SagaContext) -> None:
        effect("do charge")

    @compensate("charge")
    async def refund(self, ctx: SagaContext) -> None:
        effect("undo charge")

    @action("ship")
    async def ship(self, ctx: SagaContext) -> None:
        raise StepRejected("no lorry")
