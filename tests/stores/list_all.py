"""A process that opens a store, reads all of saga "s" page by page, and prints how much that was and what it held.

`list_all.py URL` reads its snapshots, `list_all.py URL events` its events.
"""

import asyncio
import sys
import tracemalloc

from sagaz_core.storage import open_storage


async def main(url, what="snapshots"):
    storage = open_storage(url)
    await storage.list_snapshots("another")  # what is loaded and connected once is not what is measured
    tracemalloc.start()
    listed, cursor = 0, None
    if what == "events":
        async for _ in storage.read_events("s"):
            listed += 1
    else:
        while not listed or cursor is not None:
            page = await storage.list_snapshots("s", cursor=cursor)
            listed, cursor = listed + len(page.items), page.cursor
    print(listed, tracemalloc.get_traced_memory()[1])
    await storage.close()


asyncio.run(main(*sys.argv[1:]))
