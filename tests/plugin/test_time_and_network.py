"""Replays run at the recorded time, in no time, and off the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from shops import Shop

SLOW = """
import asyncio, datetime, socket, time
from sagaz_core import Saga, action


class Slow(Saga):
    saga_name = "slow"

    @action("sleep")
    async def sleep(self, ctx):
        before = datetime.datetime.now(datetime.UTC), time.time()
        await asyncio.sleep(3600)
        after = datetime.datetime.now(datetime.UTC), time.time()
        return {"before": before[0], "slept": (after[0] - before[0]).total_seconds(), "stamp": after[1] - before[1]}


class Reaching(Saga):
    saga_name = "reaching"

    @action("reach")
    async def reach(self, ctx):
        try:
            socket.create_connection(("127.0.0.1", 1), timeout=0.01).close()
        except OSError:
            pass
"""

RECORD = """
import asyncio
from freezegun import freeze_time
from sagaz_core import ReplayConfig, open_storage
from sagaz_core.virtual_time import frozen_at, run
from datetime import UTC, datetime
import slow

async def main(name):
    saga = getattr(slow, name)()
    saga.snapshot_storage, saga.replay_config = open_storage("sqlite:///.sagaz/sagaz.db"), ReplayConfig()
    await saga.run({"order_id": "1"}, saga_id=name)

with frozen_at(datetime(2020, 2, 29, 12, tzinfo=UTC)):
    run(main("Slow"))
    run(main("Reaching"))
"""


@pytest.fixture
def slow(shop: Shop) -> Shop:
    import sys

    shop.write("slow", SLOW)
    shop.write("make", RECORD)
    result = shop.pytester.run(sys.executable, "make.py")
    assert result.ret == 0, result.stderr.str()
    return shop


def test_a_replay_is_at_the_recorded_time_and_moves_with_its_sleeps(slow: Shop) -> None:
    slow.replay("--sagaz-strict", saga_id="Slow").assert_outcomes(passed=4)
    slow.write(
        "test_a",
        """
        import pytest
        from datetime import UTC, datetime

        WHEN = datetime(2020, 2, 29, 12, tzinfo=UTC)

        @pytest.mark.replay_from("Slow")
        def test_frozen(saga_case):
            context = saga_case.run().context
            assert (context["before"], context["slept"], context["stamp"]) == (WHEN, 3600, 3600)

        @pytest.mark.replay_from("Slow", freeze=False)
        def test_not_frozen(saga_case):
            assert saga_case.run().context["before"] > WHEN

        def test_by_hand(sagaz, saga_clock):
            outcome = sagaz.replay("Slow")
            assert outcome.context["before"] == WHEN
            assert [event.at for event in outcome.events][0] == WHEN
            assert (saga_clock.now() - WHEN).total_seconds() == 3600
        """,
    )
    slow.run("test_a.py").assert_outcomes(passed=3)


def test_the_virtual_clock_is_the_test_s_to_move(slow: Shop) -> None:
    slow.write(
        "test_a",
        """
        import slow
        from datetime import UTC, datetime, timedelta

        def test_it(sagaz, saga_clock):
            saga_clock.start_at(datetime(2030, 1, 1, tzinfo=UTC))
            saga_clock.advance(timedelta(days=1))
            saga_clock.advance(60)
            outcome = sagaz.run(slow.Slow, {})
            assert outcome.events[0].at == datetime(2030, 1, 2, 0, 1, tzinfo=UTC)
            assert saga_clock.now() == datetime(2030, 1, 2, 1, 1, tzinfo=UTC)

        def test_it_begins_anew(saga_clock):
            assert saga_clock.now() < datetime(2030, 1, 1, tzinfo=UTC)
        """,
    )
    slow.run("test_a.py").assert_outcomes(passed=2)


def test_an_attempt_to_reach_the_network_fails_although_it_was_swallowed(slow: Shop) -> None:
    result = slow.replay("-k", "faithful", saga_id="Reaching")
    result.assert_outcomes(failed=1, deselected=3)
    result.stdout.fnmatch_lines(
        ["NetworkBlockedError: the saga tried to connect to 127.0.0.1:1: give it fakes by*--sagaz-allow-live"]
    )
    slow.write("test_a", "import slow\n\ndef test_it(sagaz): sagaz.run(slow.Reaching)")
    slow.run("test_a.py").stdout.fnmatch_lines(["E *NetworkBlockedError: the saga tried to connect to 127.0.0.1:1*"])


def test_it_is_let_when_that_is_asked_for(slow: Shop) -> None:
    slow.replay("-k", "faithful", "--sagaz-allow-live", saga_id="Reaching").assert_outcomes(passed=1, deselected=3)


def test_a_sync_run_inside_a_loop_says_what_to_write(slow: Shop) -> None:
    slow.write(
        "test_a",
        """
        import asyncio, pytest, slow
        from sagaz_core.errors import RunningLoopError

        def test_it(sagaz):
            async def main():
                with pytest.raises(RunningLoopError, match=r"write `await sagaz.arun\\(...\\)` there"):
                    sagaz.run(slow.Slow)
                with pytest.raises(RunningLoopError, match=r"sagaz.areplay"):
                    sagaz.replay("Slow")
                with pytest.raises(RunningLoopError, match=r"sagaz.aexplore"):
                    sagaz.explore(slow.Slow)
            asyncio.run(main())

        @pytest.mark.replay_from("Slow")
        def test_case(saga_case):
            async def main():
                with pytest.raises(RunningLoopError, match=r"saga_case.arun"):
                    saga_case.run()
            asyncio.run(main())
        """,
    )
    slow.run("test_a.py").assert_outcomes(passed=2)


ASYNC = """
    import pytest, shop
    from shop import Order

    {mark}
    @pytest.mark.force_failure("ship")
    async def test_run(sagaz):
        (await sagaz.arun(Order, {context!r})).assert_sound()

    {mark}
    @pytest.mark.replay_from("ORDER-1")
    async def test_replay(sagaz, recording, saga_case):
        (await sagaz.areplay(recording, "ship")).assert_completed()
        (await saga_case.arun()).assert_completed()
        assert not (await sagaz.aexplore(Order, {context!r}, kinds="quick")).failures

    def test_sync(sagaz):
        sagaz.run(Order, {context!r}).assert_completed()
"""


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_with_pytest_asyncio(shop: Shop, mode: str) -> None:
    pytest.importorskip("pytest_asyncio")
    shop.record()
    mark = "@pytest.mark.asyncio" if mode == "strict" else ""
    from shops import CONTEXT

    shop.write("test_a", ASYNC.format(mark=mark, context=CONTEXT))
    shop.without.remove("asyncio")
    shop.ini(f"asyncio_mode = {mode}\nasyncio_default_fixture_loop_scope = function")
    shop.run("test_a.py").assert_outcomes(passed=3)
    shop.replay().assert_outcomes(passed=10)


def test_with_anyio(shop: Shop) -> None:
    pytest.importorskip("anyio")
    shop.without.remove("anyio")
    shop.record()
    from shops import CONTEXT

    shop.write("test_a", ASYNC.format(mark="@pytest.mark.anyio", context=CONTEXT))
    shop.write("conftest", "import pytest\n\n@pytest.fixture\ndef anyio_backend(): return 'asyncio'")
    shop.run("test_a.py").assert_outcomes(passed=3)
    shop.replay().assert_outcomes(passed=10)
