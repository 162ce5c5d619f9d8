"""Running sagas in a test: on a virtual clock, with the wall clock frozen for replays, and off the network."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from sagaz_core.clock import Clock, utc_now
from sagaz_core.errors import NetworkBlockedError, RunningLoopError
from sagaz_core.network import NetworkBlock, no_network
from sagaz_core.virtual_time import VirtualClockLoop, VirtualRunner, frozen_at

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from sagaz_core.prove.exploration import Exploration
    from sagaz_core.prove.outcome import Outcome
    from sagaz_core.prove.world import World

T = TypeVar("T")

_LOOP = pytest.StashKey[VirtualRunner]()
_RUNNER = pytest.StashKey["Runner"]()
EXPLORED = pytest.StashKey["Callable[[Exploration, str], None]"]()
"""Where a run keeps what wants to know of each exploration, and of the test that made it."""


class Runner:
    """Runs the sagas of one test, and remembers how they ended."""

    def __init__(self, item: pytest.Item) -> None:
        self.item = item
        self.config = item.config
        self.live = bool(item.config.getoption("sagaz_allow_live", None))
        self.outcomes: list[Outcome] = []
        self.world: World | None = None
        self._virtual: VirtualRunner | None = None

    @property
    def virtual(self) -> VirtualRunner:
        """The virtual clock's loop: one for the whole run, set back to the present for each test."""
        if self._virtual is None:
            stash = self.config.stash
            if _LOOP not in stash:
                stash[_LOOP] = VirtualRunner()
                self.config.add_cleanup(stash[_LOOP].close)
            self._virtual = stash[_LOOP]
            self._virtual.reset()
        return self._virtual

    def clock(self) -> Clock:
        """Return the clock of what runs now: the virtual one on its own loop."""
        virtual = self._virtual
        if virtual is None or _running_loop() is not virtual.loop:
            return utc_now
        return virtual.loop.now

    def now(self) -> datetime:
        """Return the time that the test's sagas have, in whatever thread it is asked for: virtual, but in a live run
        and on a loop of the test's own.
        """
        loop = _running_loop()
        if isinstance(loop, VirtualClockLoop):
            return loop.now()
        return utc_now() if self.live or loop is not None else self.virtual.loop.now()

    def run(self, coroutine: Callable[[], Coroutine[Any, Any, T]], *, instead: str, start: datetime | None = None) -> T:
        """Run it to its end. `start` freezes the wall clock there, and moves it with the loop.

        Raises `RunningLoopError`, which names what to use `instead`, inside a running loop, and `NetworkBlockedError`
        when the network was tried, even if that error was swallowed.
        """
        self.outside_a_loop(instead)
        __tracebackhide__ = True
        if self.live:
            return asyncio.run(coroutine())
        virtual = self.virtual
        if start is not None:
            virtual.reset(start)
        with self._shielded(start) as block:
            result = virtual.run(coroutine())
        _check_network(block)
        return result

    def outside_a_loop(self, instead: str) -> None:
        """Raise `RunningLoopError`, which names what to use instead, inside a running loop."""
        if _running_loop() is not None:
            raise RunningLoopError(f"this was called inside a running event loop: write `await {instead}(...)` there")

    async def arun(self, coroutine: Callable[[], Coroutine[Any, Any, T]], start: datetime | None = None) -> T:
        """Do the same on the loop that runs, in its time."""
        __tracebackhide__ = True
        if self.live:
            return await coroutine()
        with self._shielded(start) as block:
            result = await coroutine()
        _check_network(block)
        return result

    def explored(self, exploration: Exploration) -> Exploration:
        """Tell what the test explored to who wants to know, and return it."""
        if EXPLORED in self.config.stash:
            self.config.stash[EXPLORED](exploration, self.item.nodeid)
        return exploration

    @contextlib.contextmanager
    def _shielded(self, start: datetime | None) -> Iterator[NetworkBlock]:
        with contextlib.ExitStack() as stack:
            if start is not None:
                stack.enter_context(frozen_at(start))
            yield stack.enter_context(no_network())


def _check_network(block: NetworkBlock) -> None:
    """Raise for an attempt whose error the saga kept to itself, or took for a failure of the step."""
    __tracebackhide__ = True
    if block.attempts:
        first, more = block.attempts[0], len(block.attempts) - 1
        raise NetworkBlockedError(
            f"the saga tried to {first.call} to {first.address}{f' (and {more} times more)' if more else ''}: "
            f"give it fakes by overriding the fixture saga_factory, or let it with --sagaz-allow-live"
        )


def runner_of(item: pytest.Item) -> Runner:
    """Return the test's runner, made when it is first asked for. It makes our hooks around each test take part."""
    if _RUNNER not in item.stash:
        from pytest_sagaz import reports

        reports.take_part(item.config)
        item.stash[_RUNNER] = Runner(item)
    return item.stash[_RUNNER]


def runner_or_none(item: pytest.Item) -> Runner | None:
    """Return the test's runner, if any saga was run by it."""
    return item.stash.get(_RUNNER, None)


def forget_runner(item: pytest.Item) -> None:
    """Let the test have a new runner when it runs again."""
    if _RUNNER in item.stash:
        del item.stash[_RUNNER]


def _running_loop() -> asyncio.AbstractEventLoop | None:
    return asyncio._get_running_loop()


class SagaClock:
    """The virtual clock of a test: the time in the sagas that `sagaz.run` and `saga_case.run` run."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def now(self) -> datetime:
        """Return the virtual time, aware and in UTC."""
        return self._runner.virtual.loop.now()

    def advance(self, by: timedelta | float) -> None:
        """Let so much time go by (seconds, or a timedelta), at once. Frozen clocks move with it."""
        seconds = by.total_seconds() if isinstance(by, timedelta) else float(by)
        if seconds < 0:
            raise ValueError(f"advance({by!r}): time does not go back")
        self._runner.virtual.run(asyncio.sleep(seconds))

    def start_at(self, moment: datetime) -> None:
        """Set the virtual time, which must be aware, as `sagaz.run` is to begin at."""
        self._runner.virtual.reset(moment)
