"""A process that writes into a store, for the contract: `… -m sagaz_core.storage.contract_writer URL NAME SAGAS STEPS`.

It says `ready`, and starts at a line on stdin. Each step is a batch of two events and a snapshot, and is printed when
it is written. With 0 SAGAS it goes on until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from itertools import count

from sagaz_core.storage.base import Batch
from sagaz_core.storage.contract import a_saga, a_snapshot, an_event
from sagaz_core.storage.url import open_storage


async def write_sagas(url: str, name: str, sagas: int, steps: int) -> None:
    """Write them, and print what is written."""
    storage = open_storage(url)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    for number in range(sagas) if sagas else count():
        saga_id = f"{name}-{number:06}"
        await storage.write(Batch(saga_id, a_saga(saga_id)))
        for step in range(steps):
            events = [an_event(saga_id, 2 * step, data=b"x" * 900), an_event(saga_id, 2 * step + 1, data=b"y" * 900)]
            base_seq = 1 if step else None
            snapshot = a_snapshot(saga_id, 2 * step + 1, data=b"z" * 900, base_seq=base_seq)
            await storage.write(Batch(saga_id, None, events, [snapshot]))
            print(saga_id, step, flush=True)
    await storage.close()


if __name__ == "__main__":
    asyncio.run(write_sagas(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
