"""What the network stores do when the network or the server fails: nothing is lost and nothing is doubled."""

import asyncio
import signal
from collections import Counter
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from proxy import Proxy

from sagaz_core import ReplayConfig, Saga, action
from sagaz_core.errors import StoreUnavailableError, UsageError
from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import T0, a_replay, a_saga, a_snapshot, an_event
from tests.servers import free_port

SECRET = "s3cr3t"


def with_options(url, **options):
    return url + ("&" if "?" in url else "?") + "&".join(f"{name}={value}" for name, value in options.items())


@pytest.fixture(params=["redis", "postgres"])
def store_url(request):
    """The URL of an empty store in a real server."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
def proxy(store_url):
    proxy = Proxy(store_url)
    yield proxy
    proxy.close()


@asynccontextmanager
async def opened(url, **options):
    storage = open_storage(with_options(url, **options))
    try:
        yield storage
    finally:
        await storage.close()


def a_batch(seq, first=False):
    return Batch("s", a_saga("s") if first else None, [an_event("s", seq)], [a_snapshot("s", seq)])


async def seqs(storage):
    return [event.seq async for event in storage.read_events("s")]


def test_a_refused_connection_is_an_unavailable_store(store_url):
    scheme = store_url.partition("://")[0]
    url = f"{scheme}://user:{SECRET}@127.0.0.1:{free_port()}/0?timeout=0.2"

    async def main():
        async with opened(url) as storage:
            with pytest.raises(StoreUnavailableError) as caught:
                await storage.write(a_batch(0, first=True))
            return str(caught.value)

    message = asyncio.run(main())
    assert "cannot be reached" in message
    assert ":***@" in message
    assert SECRET not in message
    assert "\n" not in message


def test_a_connection_that_is_lost_mid_write_neither_loses_nor_doubles(proxy):
    async def main():
        async with opened(proxy.url) as storage:
            await storage.write(a_batch(0, first=True))
            for seq in range(1, 9):
                if seq % 2:
                    proxy.cut_after()  # written, and nobody is told
                else:
                    proxy.cut_all()
                await storage.write(a_batch(seq))
            assert await seqs(storage) == list(range(9))
            assert [s.seq for s in (await storage.list_snapshots("s")).items] == list(range(9))

    asyncio.run(main())


def test_a_first_write_that_is_lost_is_written_once(proxy):
    async def main():
        async with opened(proxy.url) as storage:
            await storage.count_snapshots("s")
            for answers in (1, 2, 3):
                await storage.delete_saga("s")
                proxy.cut_after(answers)
                await storage.write(a_batch(0, first=True))
                assert await storage.get_saga("s") == a_saga("s")
                assert await seqs(storage) == [0]

    asyncio.run(main())


def test_reads_go_on_over_a_new_connection(proxy):
    async def main():
        async with opened(proxy.url) as storage:
            await storage.write(a_batch(0, first=True))
            await storage.log_replay(a_replay("r", "s"))
            for work in (
                lambda: storage.get_saga("s"),
                lambda: storage.get_snapshot("s/0"),
                lambda: storage.latest_snapshot("s"),
                lambda: storage.list_snapshots("s"),
                lambda: storage.list_replays("s"),
                storage.list_sagas,
            ):
                proxy.cut_all()
                assert await work()
                proxy.cut_after()
                assert await work()

    asyncio.run(main())


def test_a_store_that_does_not_answer_is_unavailable_after_its_timeout(proxy):
    async def main():
        async with opened(proxy.url, timeout="0.3") as storage:
            await storage.write(a_batch(0, first=True))
            proxy.stalled = True
            for work in (storage.write(a_batch(1)), storage.latest_snapshot("s")):
                with pytest.raises(StoreUnavailableError, match=r"did not answer within 0\.3 s"):
                    await work
            proxy.stalled = False
            await storage.write(a_batch(1))
            assert await seqs(storage) == [0, 1]

    asyncio.run(main())


def test_a_cancelled_call_leaves_no_broken_connection(proxy):
    async def main():
        async with opened(proxy.url, pool_size=1) as storage:
            await storage.write(a_batch(0, first=True))
            proxy.stalled = True
            task = asyncio.create_task(storage.write(a_batch(1)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            proxy.stalled = False
            await storage.write(a_batch(1))
            assert await seqs(storage) == [0, 1]

    asyncio.run(main())


def test_more_callers_than_connections_wait_for_one(store_url):
    async def main():
        async with opened(store_url, pool_size=2) as storage:
            await asyncio.gather(*(storage.write(Batch(str(n), a_saga(str(n)))) for n in range(50)))
            assert len((await storage.list_sagas()).items) == 50

    asyncio.run(main())


def test_one_store_serves_one_loop_after_the_other(store_url):
    storage = open_storage(store_url)

    async def use(seq):
        await storage.write(a_batch(seq, first=not seq))
        found = await seqs(storage)
        await storage.close()
        return found

    assert [asyncio.run(use(seq)) for seq in range(3)] == [[0], [0, 1], [0, 1, 2]]


class TwoSteps(Saga):
    saga_name = "two-steps"
    restart = staticmethod(lambda: None)

    @action("one")
    async def one(self, ctx):
        await asyncio.to_thread(type(self).restart)
        return {"one": 1}

    @action("two")
    async def two(self, ctx):
        return {"two": 2}


def run_with_a_restart(url, restart, monkeypatch):
    monkeypatch.setattr(TwoSteps, "restart", staticmethod(restart))

    async def main():
        async with opened(url) as storage:
            result = await TwoSteps(snapshot_storage=storage).run({}, saga_id="restarted")
            assert result.context == {"one": 1, "two": 2}
            kinds = [event.kind async for event in storage.read_events("restarted")]
            assert kinds == ["SagaStarted", *["StepStarted", "StepSucceeded"] * 2, "SagaCompleted"]
            assert len((await storage.list_snapshots("restarted")).items) == 3

    asyncio.run(main())


def test_redis_restarts_between_two_steps(valkey_server, monkeypatch):
    def restart():
        valkey_server.kill()
        valkey_server.start()

    run_with_a_restart(f"{valkey_server.url}?prefix=restart", restart, monkeypatch)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["shut-down", "crash"])
def test_postgresql_restarts_between_two_steps(postgres_server, monkeypatch, how):
    def restart():
        postgres_server.stop(how)
        postgres_server.start()

    run_with_a_restart(f"{postgres_server.url()}?schema=restart_{how.name.lower()}", restart, monkeypatch)


@pytest.mark.parametrize("durability", ["group", "background"])
@pytest.mark.parametrize("server", ["valkey_server", "postgres_server"])
def test_a_restart_among_many_sagas_neither_loses_nor_doubles(request, server, durability):
    server = request.getfixturevalue(server)
    postgres = hasattr(server, "stop")
    url = f"{server.url()}?schema=many_{durability}" if postgres else f"{server.url}?prefix=many-{durability}"
    calls, restarted = Counter(), asyncio.Event()

    def restart():
        if postgres:
            server.stop(signal.SIGQUIT)
        else:
            server.kill()
        server.start()

    async def act(ctx):
        calls[ctx["id"]] += 1
        if calls.total() == 60:  # of 120
            await asyncio.to_thread(restart)
            restarted.set()
        return {f"call {calls.total()}": 1}

    async def main():
        async with opened(url) as storage:
            config = ReplayConfig(durability=durability, capture_timeout=60)
            saga = Saga("many", snapshot_storage=storage, replay_config=config)
            for number in range(6):
                saga.add_step(f"step_{number}", act)
            ids = [f"s{number}" for number in range(20)]
            await asyncio.gather(*(saga.run({"id": saga_id}, saga_id=saga_id) for saga_id in ids))
            assert restarted.is_set()
            assert calls == dict.fromkeys(ids, 6)
            for saga_id in ids:
                kinds = [event.kind async for event in storage.read_events(saga_id)]
                assert kinds == ["SagaStarted", *["StepStarted", "StepSucceeded"] * 6, "SagaCompleted"]
                seqs = [snapshot.seq for snapshot in (await storage.list_snapshots(saga_id)).items]
                assert seqs == [0, 2, 4, 6, 8, 10, 13]

    asyncio.run(main())


@pytest.mark.parametrize("durability", ["sync", "group"])
@pytest.mark.parametrize("gone_in", ["b", "-b"])
@pytest.mark.parametrize("server", ["valkey_server", "postgres_server"])
def test_a_saga_whose_server_stayed_away_is_resumed_where_the_store_left_it(request, server, gone_in, durability):
    server = request.getfixturevalue(server)
    postgres = hasattr(server, "stop")
    name = f"away_{durability}_{'back' if gone_in == '-b' else 'on'}"
    url = f"{server.url()}?schema={name}" if postgres else f"{server.url}?prefix={name}"
    log = []

    def step(name, fails=False):
        async def act(ctx):
            log.append(name)
            if name == gone_in and log.count(name) == 1:
                await asyncio.to_thread(server.stop if postgres else server.kill)
            if fails:
                raise ValueError("no")

        return act

    async def main():
        saga = Saga("away", replay_config=ReplayConfig(durability=durability))
        for name in "abc":
            saga.add_step(name, step(name), step(f"-{name}"))
        saga.add_step("d", step("d", fails=gone_in == "-b"))
        async with opened(url) as storage:  # before the server goes
            await storage.upgrade()
        async with opened(url, timeout=0.5) as saga.snapshot_storage:
            with pytest.raises(StoreUnavailableError):
                await saga.run(saga_id="s")
            before = log.copy()
            await asyncio.to_thread(server.start)
            result = await saga.resume("s")
        return before, log[len(before) :], result.status.value

    if gone_in == "b":
        assert asyncio.run(main()) == (["a", "b"], ["b", "c", "d"], "completed")
    else:
        assert asyncio.run(main()) == (["a", "b", "c", "d", "-c", "-b"], ["-b", "-a"], "rolled_back")


def test_a_server_that_is_started_late_is_waited_for(valkey_server):
    valkey_server.kill()

    async def main():
        async with opened(valkey_server.url, prefix="late") as storage:
            writing = asyncio.create_task(storage.write(a_batch(0, first=True)))
            await asyncio.to_thread(valkey_server.start)
            await writing
            assert await seqs(storage) == [0]

    asyncio.run(main())


async def answers_all(storage):
    """Ask what takes one trip where the server may be written to."""
    batch = a_batch(0, first=True)
    (snapshot,) = batch.snapshots
    assert await seqs(storage) == [0]
    assert await storage.latest_snapshot(batch.saga_id, until=snapshot.created_at) == snapshot
    assert await storage.latest_snapshot(batch.saga_id, max_seq=5) == snapshot
    assert [event async for event in storage.read_events(batch.saga_id, after_seq=0)] == []
    assert [record.saga_id for record in (await storage.list_sagas()).items] == [batch.saga_id]


def test_a_read_only_redis_is_unavailable_and_can_be_read(valkey_server):
    import redis

    async def main():
        async with opened(valkey_server.url, prefix="ro") as storage:
            await storage.write(a_batch(0, first=True))
            with redis.Redis.from_url(valkey_server.url) as client:
                client.replicaof("127.0.0.1", free_port())
                client.config_set("replica-serve-stale-data", "yes")
                try:
                    with pytest.raises(StoreUnavailableError, match="it is read-only: name the primary server"):
                        await storage.write(a_batch(1))
                    await answers_all(storage)
                finally:
                    client.replicaof("NO", "ONE")
            await storage.write(a_batch(1))
            assert await seqs(storage) == [0, 1]

    asyncio.run(main())


def test_a_redis_whose_memory_is_full_is_unavailable(valkey_server):
    import redis

    async def main():
        async with opened(valkey_server.url, prefix="full") as storage:
            await storage.write(a_batch(0, first=True))
            with redis.Redis.from_url(valkey_server.url) as client:
                client.config_set("maxmemory", "1")
                try:
                    with pytest.raises(StoreUnavailableError, match="is full: raise its maxmemory, or delete sagas"):
                        await storage.write(a_batch(1))
                    await answers_all(storage)
                    assert await storage.delete_saga("s")
                finally:
                    client.config_set("maxmemory", "0")
            await storage.write(a_batch(0, first=True))
            await storage.write(a_batch(1))
            assert await seqs(storage) == [0, 1]

    asyncio.run(main())


def test_a_redis_without_its_replicas_takes_no_writes_and_can_be_read(valkey_server):
    import redis

    async def main():
        async with opened(valkey_server.url, prefix="alone") as storage:
            await storage.write(a_batch(0, first=True))
            with redis.Redis.from_url(valkey_server.url) as client:
                client.config_set("min-replicas-to-write", 1)
                try:
                    with pytest.raises(StoreUnavailableError, match="it takes no writes without its replicas"):
                        await storage.write(a_batch(1))
                    await answers_all(storage)
                finally:
                    client.config_set("min-replicas-to-write", 0)

    asyncio.run(main())


def test_a_replica_without_its_primary_that_answers_nothing_is_unavailable(valkey_server):
    import redis

    async def main():
        async with opened(valkey_server.url, prefix="stale", timeout=0.3) as storage:
            await storage.write(a_batch(0, first=True))
            with redis.Redis.from_url(valkey_server.url) as client:
                client.config_set("replica-serve-stale-data", "no")
                client.replicaof("127.0.0.1", free_port())
                try:
                    with pytest.raises(StoreUnavailableError, match="cannot be reached: Link with MASTER is down"):
                        await seqs(storage)
                finally:
                    client.replicaof("NO", "ONE")
                    client.config_set("replica-serve-stale-data", "yes")
            await storage.write(a_batch(1))
            assert await seqs(storage) == [0, 1]

    asyncio.run(main())


def _is_busy(client):
    import redis

    try:
        client.ping()
    except redis.ResponseError:
        return True
    return False


def test_a_redis_that_runs_a_script_of_somebody_else_is_waited_for(valkey_server):
    import redis

    async def main():
        async with opened(valkey_server.url, prefix="busy") as storage:
            await storage.write(a_batch(0, first=True))
            with redis.Redis.from_url(valkey_server.url) as client, redis.Redis.from_url(valkey_server.url) as other:
                client.config_set("busy-reply-threshold", 1)
                script = asyncio.create_task(asyncio.to_thread(other.eval, "while true do end", 0))
                while not _is_busy(client):  # noqa: ASYNC110 - of a server
                    await asyncio.sleep(0.01)
                writing = asyncio.create_task(storage.write(a_batch(1)))
                await asyncio.sleep(0.1)
                assert not writing.done()
                client.script_kill()
                with pytest.raises(redis.ResponseError, match="killed"):
                    await script
                await writing
                client.config_set("busy-reply-threshold", 5000)
            assert await seqs(storage) == [0, 1]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("58030", "it cannot read or write its files: look at its disk"),  # io_error
        ("53000", "it has run out of what it needs"),  # insufficient_resources: no file can be opened
        ("55P03", "what it was to write is locked: look at its lock_timeout"),
        ("57P05", "cannot be reached"),  # idle_session_timeout
        ("25P03", "cannot be reached"),  # idle_in_transaction_session_timeout
    ],
)
def test_a_postgresql_that_cannot_write_for_now_is_unavailable(postgres_server, code, message):
    schema = f"fails_{code.lower()}"

    async def main():
        import asyncpg

        admin = await asyncpg.connect(postgres_server.url())
        async with opened(f"{postgres_server.url()}?schema={schema}", timeout=0.3) as storage:
            await storage.write(a_batch(0, first=True))
            body = f"BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END"
            await admin.execute(
                f"CREATE FUNCTION {schema}.no() RETURNS trigger LANGUAGE plpgsql AS $${body}$$;"
                f"CREATE TRIGGER no BEFORE INSERT ON {schema}.saga_events EXECUTE FUNCTION {schema}.no()"
            )
            with pytest.raises(StoreUnavailableError, match=message):
                await storage.write(a_batch(1))
            await admin.execute(f"DROP TRIGGER no ON {schema}.saga_events")
            await storage.write(a_batch(1))
            assert await seqs(storage) == [0, 1]
        await admin.close()

    asyncio.run(main())


def test_a_postgresql_user_that_may_only_read_reads(postgres_server):
    url = f"{postgres_server.url()}?schema=reading"

    async def main():
        import asyncpg

        async with opened(url) as storage:
            await storage.write(a_batch(0, first=True))
        admin = await asyncpg.connect(postgres_server.url())
        await admin.execute("CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA reading TO reader")
        await admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA reading TO reader")
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        async with opened(parts._replace(netloc=f"reader@{host}").geturl()) as storage:
            assert await seqs(storage) == [0]
            for work in (storage.write(a_batch(1)), storage.write_many([a_batch(1)]), storage.prune(T0)):
                with pytest.raises(StoreUnavailableError, match="cannot be used: this user may not do that there"):
                    await work
            assert await storage.upgrade() == (await storage.info()).schema_version  # there is nothing to do
        await admin.execute("DROP OWNED BY reader; DROP ROLE reader")
        await admin.close()

    asyncio.run(main())


def test_a_read_only_postgresql_is_unavailable_and_can_be_read(postgres_server):
    url = f"{postgres_server.url()}?schema=ro"

    async def main():
        import asyncpg

        async with opened(url) as storage:
            await storage.write(a_batch(0, first=True))
        admin = await asyncpg.connect(postgres_server.url())
        await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await admin.execute("SELECT pg_reload_conf()")
        try:
            async with opened(url) as storage:
                with pytest.raises(StoreUnavailableError, match="it is read-only: name the primary server"):
                    await storage.write(a_batch(1))
                assert await seqs(storage) == [0]
        finally:
            await admin.execute("SET default_transaction_read_only = off")
            await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await admin.execute("SELECT pg_reload_conf()")
            await admin.close()
        async with opened(url) as storage:
            await storage.write(a_batch(1))
            assert await seqs(storage) == [0, 1]

    asyncio.run(main())


def test_no_such_database_is_said_at_once(postgres_database):
    url = postgres_database.rpartition("/")[0] + "/nowhere"

    async def main():
        async with opened(url) as storage:
            with pytest.raises(StoreUnavailableError, match="there is no such database"):
                await storage.write(a_batch(0, first=True))

    asyncio.run(main())


def test_text_that_is_none_is_a_usage_error(store_url):
    async def main():
        async with opened(store_url) as storage:
            with pytest.raises(UsageError):
                await storage.write(Batch("s", None, [an_event("s", 0)._replace(step="\ud800")]))
            assert await seqs(storage) == []

    asyncio.run(main())
