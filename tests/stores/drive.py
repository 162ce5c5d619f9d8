"""Runs coroutines that never wait, which those of embedded stores are, without an event loop."""


def now(work):
    """Return what the coroutine returns."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    finally:
        work.close()
    raise AssertionError("an embedded store waited")


def events(storage, saga_id, **asked):
    """Return the events as a list."""

    async def collected():
        return [event async for event in storage.read_events(saga_id, **asked)]

    return now(collected())
