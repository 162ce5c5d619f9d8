"""Time limits that share one timer."""

import asyncio

import pytest

from sagaz_core._leftovers import SCOPE, Scope
from sagaz_core._within import Within
from sagaz_core.virtual_time import run


async def took(seconds, limit):
    """Say when a sleep of so many seconds ended, and whether it was cut off."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        with Within(limit) as block:
            await asyncio.sleep(seconds)
    except TimeoutError:
        assert block.expired
        return loop.time() - start, True
    assert not block.expired
    return loop.time() - start, False


def test_what_is_done_in_time_is_left_alone_and_what_is_not_ends_in_time():
    async def main():
        assert await took(1, 10) == (1, False)
        assert await took(11, 10) == (10, True)
        await asyncio.sleep(100)
        return await took(5, 10)

    assert run(main()) == (5, False)


def test_each_of_many_has_its_own_time():
    async def main():
        works = [(9, 10), (30, 20), (30, 5), (1, 2), (7, 6), (30, 40)]
        return await asyncio.gather(*(took(*work) for work in works))

    assert run(main()) == [(9, False), (20, True), (5, True), (1, False), (6, True), (30, False)]


def test_one_inside_another_ends_by_itself():
    async def main():
        with Within(100):
            inner = await took(20, 10)
        with pytest.raises(TimeoutError), Within(10):
            await took(30, 20)
        return inner

    assert run(main()) == (10, True)


def test_who_is_cancelled_is_not_told_of_a_time():
    async def main():
        task = asyncio.ensure_future(took(20, 10))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        late = asyncio.ensure_future(took(20, 10))
        await asyncio.sleep(9)
        asyncio.get_running_loop().call_at(asyncio.get_running_loop().time() + 1, late.cancel)  # both at once
        with pytest.raises(asyncio.CancelledError):
            await late

    run(main())


def test_an_error_passes():
    async def main():
        with pytest.raises(ZeroDivisionError), Within(10):
            _ = 1 / 0
        with pytest.raises(TimeoutError, match="of its own"), Within(10):
            raise TimeoutError("of its own")

    run(main())


def test_the_timer_is_no_leftover_of_the_step_that_it_was_set_in():
    async def main():
        scope = Scope()
        token = SCOPE.set(scope)
        with Within(10):
            await asyncio.sleep(1)
        SCOPE.reset(token)
        return scope.end()

    assert run(main()) == ()


def test_one_timer_does_for_all(monkeypatch):
    async def main():
        loop = asyncio.get_running_loop()
        set_timers, call_at = [], loop.call_at
        monkeypatch.setattr(
            loop, "call_at", lambda *given, **how: set_timers.append(given[0]) or call_at(*given, **how)
        )
        for _ in range(1000):
            with Within(10):
                pass
        assert len(set_timers) == 1

    run(main())
