"""The fixture `saga_redis`: what a saga leaves in Redis is an orphan with its key, and time is the sagas' time."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

import fakeredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_sagaz.sandbox._text import data_of, readable
from pytest_sagaz.sandbox.redis import RedisState
from sagaz_core import Saga, StepRejected, action, compensate
from sagaz_core.storage.codec import decode, encode

if TYPE_CHECKING:
    from shops import Shop

    from pytest_sagaz.sandbox.redis import SagaRedis
    from pytest_sagaz.session import Sagaz
    from sagaz_core import World


class Reserve(Saga):
    """Reserves in Redis, by an id, so that doing or undoing it twice is the same as once."""

    saga_name = "reserve"

    def __init__(self, redis: Any) -> None:
        super().__init__()
        self.redis = redis

    @action("reserve", in_doubt="compensate")
    async def reserve(self, ctx: Any) -> None:
        if await self.redis.sismember("closed", ctx["order"]):
            raise StepRejected("undone before")
        await self.redis.set(f"stock:{ctx['sku']}", ctx["quantity"])

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        await self.redis.delete(f"stock:{ctx['sku']}")

    @action("mail")
    async def mail(self, ctx: Any) -> None:
        pass


class Forgetful(Reserve):
    """Does not undo when the reply was lost."""

    @action("reserve")
    async def reserve(self, ctx: Any) -> None:
        await super().reserve(ctx)


class Wrong(Reserve):
    """Undoes another key."""

    @compensate("reserve")
    async def release(self, ctx: Any) -> None:
        await self.redis.delete(f"stock:{ctx['order']}")


ORDER = {"order": "1", "sku": "W1", "quantity": 3}


def test_a_key_that_was_left_is_shown(sagaz: Sagaz, saga_redis: SagaRedis) -> None:
    outcome = sagaz.run(Wrong(saga_redis), ORDER, plan="mail@before")
    assert [str(change) for change in outcome.world_changes] == ["redis.stock:W1: (nothing) -> 3"]
    assert outcome.verdict.value == "LIE"


def test_an_orphan_after_a_lost_reply_is_shown_with_its_key(sagaz: Sagaz, saga_redis: SagaRedis) -> None:
    outcome = sagaz.run(Forgetful(saga_redis), ORDER, plan="reserve@after")
    assert outcome.verdict.value == "ORPHAN"
    assert "redis.stock:W1: (nothing) -> 3" in outcome.explain()


def test_a_sound_saga_is_sound_under_every_plan(sagaz: Sagaz, saga_redis: SagaRedis) -> None:
    saga_redis.sync_client.set("stock:W2", 7)
    exploration = sagaz.explore(Reserve(saga_redis), ORDER)
    exploration.assert_sound()
    assert exploration.plans > 10
    assert saga_redis.sync_client.keys() == [b"stock:W2"]


def test_an_exploration_begins_every_plan_in_the_same_redis(sagaz: Sagaz, saga_redis: SagaRedis) -> None:
    exploration = sagaz.explore(Wrong(saga_redis), ORDER)
    assert {str(change) for outcome in exploration.failures for change in outcome.world_changes} == {
        "redis.stock:W1: (nothing) -> 3"
    }
    assert not saga_redis.sync_client.keys()


def test_each_test_has_a_server_of_its_own(saga_redis: SagaRedis) -> None:
    assert saga_redis.sync_client.dbsize() == 0


def test_other_clients_of_the_server_see_the_same(saga_redis: SagaRedis, saga_world: World) -> None:
    text = fakeredis.FakeRedis(server=saga_redis.server, decode_responses=True)
    saga_redis.sync_client.set("a", "x")
    assert text.get("a") == "x"
    fakeredis.FakeRedis(server=saga_redis.server, db=2).set("b", "y")
    assert saga_world.save()["redis"] == {"a": "x", 2: {"b": "y"}}


class Lock(Saga):
    """Takes a lock that expires, and works for an hour."""

    def __init__(self, redis: Any, ttl: int) -> None:
        super().__init__()
        self.redis, self.ttl = redis, ttl

    @action("lock")
    async def lock(self, ctx: Any) -> None:
        await self.redis.set("lock", "me", ex=self.ttl)

    @action("work")
    async def work(self, ctx: Any) -> None:
        await asyncio.sleep(3600)


def test_a_key_expires_in_the_time_of_the_saga(sagaz: Sagaz, saga_redis: SagaRedis) -> None:
    outcome = sagaz.run(Lock(saga_redis, ttl=3599), {})
    assert outcome.world_changes == ()
    outcome = sagaz.run(Lock(saga_redis, ttl=3601), {})
    assert [str(change) for change in outcome.world_changes] == [
        "redis.lock: (nothing) -> {'value': 'me', 'expires': True}"
    ]
    assert saga_redis.sync_client.pttl("lock") == 1000


def test_that_time_passes_is_no_change(sagaz: Sagaz, saga_redis: SagaRedis) -> None:
    saga_redis.sync_client.set("token", "x", ex=7200)

    class Wait(Saga):
        @action("wait")
        async def wait(self, ctx: Any) -> None:
            await asyncio.sleep(3600)

    outcome = sagaz.run(Wait(), {}, plan="end@before")
    outcome.assert_sound()
    assert outcome.world_changes == ()
    assert saga_redis.sync_client.ttl("token") == 3600


def test_a_blocking_read_waits_in_virtual_time(sagaz: Sagaz, saga_redis: SagaRedis) -> None:
    class Read(Saga):
        @action("read")
        async def read(self, ctx: Any) -> dict[str, Any]:
            return {"found": await saga_redis.blpop(["mail"], timeout=3600)}

    assert sagaz.run(Read(), {}).context["found"] is None


REDIS_SHOP = """
from sagaz_core import Saga, action, compensate


class Stock(Saga):
    saga_name = "stock"

    def __init__(self, redis=None):
        super().__init__()
        self.redis = redis

    @action("reserve")
    async def reserve(self, ctx):
        if self.redis is not None:
            await self.redis.set("stock:W1", 3, ex=60)

    @compensate("reserve")
    async def release(self, ctx):
        await self.redis.delete("stock:W1")
"""


def test_a_replay_shows_what_was_left(shop: Shop) -> None:
    shop.write("stock", REDIS_SHOP)
    shop.record("stock:Stock")
    shop.write(
        "conftest",
        """
        import pytest
        from stock import Stock

        @pytest.fixture
        def saga_factory(saga_redis):
            return lambda: Stock(saga_redis)
        """,
    )
    result = shop.replay()
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(
        ["*reserve@after*", "world *redis.stock:W1: (nothing) -> {'value': 3, 'expires': True}", "ORPHAN *"]
    )


# -- snapshot and restore

KEYS = st.sampled_from(["a", "b", "stock:W1", b"\xff"])
ITEMS = st.one_of(st.integers(-99, 99), st.text(max_size=3), st.binary(max_size=3))
FIELDS = st.dictionaries(st.text(min_size=1, max_size=2), ITEMS, min_size=1, max_size=3)
CHANGES = st.one_of(
    st.tuples(st.just("set"), KEYS, ITEMS, st.booleans()),
    st.tuples(st.just("hset"), KEYS, FIELDS),
    st.tuples(st.just("rpush"), KEYS, st.lists(ITEMS, min_size=1, max_size=3)),
    st.tuples(st.just("sadd"), KEYS, st.lists(ITEMS, min_size=1, max_size=3)),
    st.tuples(st.just("zadd"), KEYS, st.dictionaries(ITEMS, st.floats(-9, 9), min_size=1, max_size=3)),
    st.tuples(st.just("xadd"), KEYS, FIELDS),
    st.tuples(st.just("group"), KEYS, st.booleans()),
    st.tuples(st.just("pfadd"), KEYS, st.lists(ITEMS, min_size=1, max_size=3)),
    st.tuples(st.just("expire"), KEYS),
    st.tuples(st.just("delete"), KEYS),
)


def change(client: fakeredis.FakeRedis, what: str, key: str | bytes, *more: Any) -> None:
    if what == "set":
        client.set(key, more[0], ex=100 if more[1] else None)
    elif what == "expire":
        client.expire(key, 50)
    elif what == "delete":
        client.delete(key)
    else:
        client.delete(key)
        if what == "hset":
            client.hset(key, mapping=more[0])
        elif what == "zadd":
            client.zadd(key, more[0])
        elif what == "xadd":
            client.xadd(key, more[0])
        elif what == "group":
            first = client.xadd(key, {"f": 1})
            client.xadd(key, {"f": 2})
            client.xgroup_create(key, "readers", "0")
            client.xreadgroup("readers", "ann", {key: ">"}, count=1)
            if more[0]:
                client.xack(key, "readers", first)
                client.xdel(key, first)
        else:
            getattr(client, what)(key, *more[0])


@given(st.lists(CHANGES, max_size=6), st.lists(CHANGES, max_size=6))
def test_what_was_there_is_put_back(before: list[Any], after: list[Any]) -> None:
    server = fakeredis.FakeServer()
    client, state = fakeredis.FakeRedis(server=server), RedisState(server)
    for each in before:
        change(client, *each)
    saved = state.snapshot()
    assert decode(encode(saved)) == saved
    for each in after:
        change(client, *each)
    later = state.snapshot()
    state.restore(saved)
    assert encode(state.snapshot()) == encode(saved)
    state.restore(decode(encode(later)))
    assert encode(state.snapshot()) == encode(later)
    empty = fakeredis.FakeServer()
    elsewhere = RedisState(empty)
    elsewhere.restore(saved)
    assert encode(elsewhere.snapshot()) == encode(saved)


@given(st.one_of(st.binary(), st.integers().map(lambda number: str(number).encode()), st.text().map(str.encode)))
def test_bytes_are_read_back_as_they_were(data: bytes) -> None:
    assert data_of(readable(data)) == data


def test_only_what_differs_is_written(
    saga_redis: SagaRedis, saga_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    saga_redis.sync_client.mset({"same": 1, "other": 2})
    saved = saga_world.save()
    saga_redis.sync_client.set("other", 3)
    written: list[Any] = []
    execute = fakeredis.FakeRedis.execute_command

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        written.append(args[:2])
        return execute(self, *args, **options)

    monkeypatch.setattr(fakeredis.FakeRedis, "execute_command", watched)
    saga_world.restore(saved)
    assert [call for call in written if call[0] in ("DEL", "SET")] == [("DEL", b"other"), ("SET", b"other")]


# -- without it


@pytest.mark.parametrize(
    ("fixture", "module"), [("saga_redis", "fakeredis"), ("saga_aws", "moto"), ("saga_aws", "boto3")]
)
def test_without_the_extra_the_error_says_what_to_install(shop: Shop, fixture: str, module: str) -> None:
    shop.apart = True
    shop.write("conftest", f"import sys\nsys.modules[{module!r}] = None\n")
    shop.write("test_a", f"def test_it({fixture}): pass\n\ndef test_other(saga_world): pass")
    result = shop.run("test_a.py")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(
        [f"*MissingExtraError: {fixture} needs the sandbox extra: pip install 'pytest-sagaz?sandbox?'"]
    )


def test_time_is_given_back(shop: Shop) -> None:
    shop.write("test_a", "def test_it(saga_redis): saga_redis.sync_client.set('a', 1)")
    shop.run("test_a.py").assert_outcomes(passed=1)
    modules = [module for name, module in sys.modules.items() if name.startswith("fakeredis")]
    assert all(getattr(module, "time", time) is time for module in modules)
