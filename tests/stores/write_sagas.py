"""A process that writes: `write_sagas.py URL NAME SAGAS STEPS`. It starts at a line on stdin.

Each step is a batch of two events and a snapshot, and printed after it was written. SAGAS 0 goes on until it is killed.
"""

import itertools
import sys

from drive import now

from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import a_saga, a_snapshot, an_event


def main():
    url, name, sagas, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    storage = open_storage(url)
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(sagas) if sagas else itertools.count():
        saga_id = f"{name}-{number:06}"
        now(storage.write(Batch(saga_id, a_saga(saga_id))))
        for step in range(steps):
            events = [an_event(saga_id, 2 * step, data=b"x" * 900), an_event(saga_id, 2 * step + 1, data=b"y" * 900)]
            snapshot = a_snapshot(saga_id, 2 * step + 1, data=b"z" * 900)
            now(storage.write(Batch(saga_id, None, events, [snapshot])))
            print(saga_id, step, flush=True)
    now(storage.close())


main()
