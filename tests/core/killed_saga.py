"""A saga whose process is killed in one of its steps: `killed_saga.py URL DURABILITY STEP EFFECTS`."""

import asyncio
import os
import signal
import sys

from sagaz_core import ReplayConfig, Saga, open_storage


def make(store, durability, kill_at, effects):
    """Return the saga; each step writes its name into the file `effects`, and one is the last thing that happens."""
    made = Saga("mortal", snapshot_storage=store, replay_config=ReplayConfig(durability=durability))
    for number in range(5):

        async def act(ctx, number=number):
            with open(effects, "a") as file:  # noqa: ASYNC230 - nothing else runs
                file.write(f"s{number}\n")
            if number == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return {f"k{number}": number}

        made.add_step(f"s{number}", act, lambda ctx: None)
    return made


if __name__ == "__main__":
    url, durability, kill_at, effects = sys.argv[1:]
    saga = make(open_storage(url), durability, int(kill_at), effects)
    asyncio.run(saga.run({}, saga_id="s"))
