"""`sagaz resume`: another process goes on with a saga whose process was killed."""

from __future__ import annotations

import json
import os
import shlex
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from sagaz_core.clock import utc_now
from sagaz_core.errors import StoreUnavailableError
from sagaz_core.storage.memory import InMemorySnapshotStorage
from sagaz_core.storage.sqlite import SqliteSnapshotStorage

WAITING = "cli_waits:WaitingSaga"


def effects() -> list[str]:
    return Path("effects.log").read_text().splitlines()


@pytest.fixture
def kill(start, read_until):
    """Start the saga in a process, and kill that in its second step."""

    def call(*arguments, saga=WAITING):
        process = start("record", saga, "--id", "a", *arguments)
        read_until(process, "start   charge")
        process.kill()
        assert process.wait() == -signal.SIGKILL

    return call


def test_a_saga_whose_process_was_killed_is_gone_on_with(kill, cli, shell):
    kill()
    assert "executing" in cli("find", "--status", "executing").ok()
    Path("go").write_text("on")
    ran = shell("resume", "a", "--idle", "0")
    assert ran.ok().splitlines() == [
        "a  waiting 1.0",
        "  again     taken up by another process",
        "  start   charge  attempt 2",
        "  done    charge  +charged",
        "completed, 2 steps done",
    ]
    assert effects() == ["do reserve", "do charge"]
    assert "completed" in cli("find", "--status", "completed").ok()
    assert json.loads(cli("recording", "list", "--format", "json").ok())["sagas"][0]["status"] == "completed"


def test_or_it_is_rolled_back(kill, cli):
    kill()
    Path("go").write_text("fail")
    assert cli("resume", "a", "--idle", "0").ok().splitlines()[-1] == (
        "rolled back, 1 step undone (OSError: the bank is closed)"
    )
    assert effects() == ["do reserve", "undo reserve"]


def test_one_that_gets_stuck_is_an_error(kill, cli):
    kill("--context", '{"stuck": true}')
    Path("go").write_text("fail")
    assert "saga 'a' is stuck at reserve" in cli("resume", "a", "--idle", "0").err
    assert "is stuck at reserve" in cli("resume", "a").fails(1)


def test_one_that_wrote_just_now_may_still_run(kill, cli):
    kill()
    Path("go").write_text("on")
    says = cli("resume", "a").fails()
    assert "saga 'a' wrote something " in says
    assert "(--idle 0 does so now)" in says
    assert effects() == ["do reserve"]
    assert "'--idle'" in cli("resume", "a", "--idle", "-1").fails()
    assert "'nan' is no number" in cli("resume", "a", "--idle", "nan").fails()


def test_one_that_has_ended_is_told_and_not_run(cli):
    Path("go").write_text("on")
    cli("record", WAITING, "--id", "a").ok()
    assert cli("resume", "a").ok() == "completed, 2 steps done\n"
    assert effects() == ["do reserve", "do charge"]


def test_a_process_that_dies_again_leaves_it_to_the_next_one(kill, cli):
    kill()
    Path("go").write_text("exit")
    assert "step 'charge' called sys.exit(3); saga 'a' is what a crash leaves" in cli("resume", "a", "--idle", "0").err
    Path("go").write_text("on")
    assert cli("resume", "a", "--idle", "0").ok().splitlines()[-1] == "completed, 2 steps done"
    assert effects() == ["do reserve", "do charge"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_has_it_undone(kill, start, read_until, number):
    kill()
    process = start("resume", "a", "--idle", "0")
    read_until(process, "start   charge")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}; the saga is rolled back" in err
    assert effects() == ["do reserve", "undo reserve"]


def test_what_cannot_be_resumed_is_one_line(kill, cli):
    assert "'b'" in cli("resume", "b").fails()
    kill()
    assert "no module 'nowhere'" in cli("resume", "a", "--app", "nowhere").fails()
    assert "is not a saga id" in cli("resume", "").fails()
    assert effects() == ["do reserve"]


def test_one_that_is_stopped_when_another_has_gone_on_undoes_nothing(kill, cli, start, read_until):
    kill()
    stale = start("resume", "a", "--idle", "0")
    read_until(stale, "waits")
    Path("go").write_text("on")
    assert cli("resume", "a", "--idle", "0").ok().splitlines()[-1] == "completed, 2 steps done"
    stale.terminate()
    _, err = stale.communicate(timeout=60)
    assert stale.returncode == 1
    assert err == "sagaz: another process goes on with saga 'a': this one stopped, and undid nothing\n"
    assert effects() == ["do reserve", "do charge"]
    assert "completed" in cli("find").ok()


@pytest.mark.parametrize(
    ("command", "undone"), [("record", "charge, reserve"), ("resume", "reserve")], ids=["record", "resume"]
)
def test_one_that_is_stopped_while_it_undoes_says_what_it_had_undone(cli, start, read_until, command, undone):
    os.mkfifo("go")
    stale = start("record", "cli_unwinds:UnwindingSaga", "--id", "a")
    read_until(stale, "waits")
    if command == "resume":
        stale.kill()
        stale = start("resume", "a", "--idle", "0")
        read_until(stale, "waits")
    Path("go").rename("later")
    assert cli("resume", "a", "--idle", "0").ok().splitlines()[-1] == (
        "rolled back, 2 steps undone (StepRejected: no lorry)"
    )
    Path("later").write_text("x")
    _, err = stale.communicate(timeout=60)
    assert stale.returncode == 1
    assert err == f"sagaz: another process goes on with saga 'a': this one stopped, and had undone {undone}\n"
    assert effects() == ["do reserve", "do charge", "undo charge", "undo reserve", "undo reserve"]
    assert "rolled_back" in cli("find").ok()


def test_one_whose_clock_was_ahead_is_resumed_when_it_is_asked_for(kill, cli, monkeypatch):
    kill()
    Path("go").write_text("on")
    monkeypatch.setattr("sagaz_core.cli.resume.utc_now", lambda: utc_now() - timedelta(hours=1))
    assert "wrote something 0 s ago" in cli("resume", "a").fails()
    assert cli("resume", "a", "--idle", "0").ok().splitlines()[-1] == "completed, 2 steps done"


@pytest.mark.parametrize("saga", ["UncapturedSaga", "UnjournaledSaga"])
def test_what_is_stored_of_one_goes_on_to_its_end_also_when_its_class_captures_less(kill, cli, saga):
    kill(saga=f"cli_waits:{saga}")
    Path("go").write_text("on")
    cli("resume", "a", "--idle", "0").ok()
    assert "completed" in cli("find").ok()
    assert cli("recording", "show", "a").ok().splitlines()[-1] == "completed, 2 steps done"
    assert cli("resume", "a", "--idle", "0").ok() == "completed, 2 steps done\n"
    assert effects() == ["do reserve", "do charge"]


@pytest.fixture
def store_down(monkeypatch):
    """Make the store one that cannot be reached while there is a file `down`, which the second step makes."""
    write = SqliteSnapshotStorage.write

    def when_up(self, batch):
        if Path("down").exists():
            raise StoreUnavailableError("the store is down")
        return write(self, batch)

    def said():
        Path("down").touch()
        return "fail"

    monkeypatch.setattr(SqliteSnapshotStorage, "write", when_up)
    monkeypatch.setattr("cli_waits.said", said)
    for another in ("UncapturedSaga", "UnjournaledSaga"):  # of the same name
        monkeypatch.delattr(f"cli_waits.{another}")


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (["--id", "a"], "sagaz resume a"),
        (["--id", "a b", "--store=sqlite:///b.db"], "sagaz resume --store=sqlite:///b.db 'a b'"),
        (["--id", "-a"], "sagaz resume -- -a"),
    ],
)
def test_the_command_that_goes_on_with_a_saga_whose_store_went_away_can_be_pasted(store_down, cli, given, command):
    assert cli("record", WAITING, *given).fails(1).endswith(f"not at an end: {command} goes on with it)")
    Path("down").unlink()
    _, resume, *words = shlex.split(command)
    again = command.replace("resume", "resume --app=cli_waits")
    says = cli(resume, "--idle=0", "--app=cli_waits", *words).err
    assert says.endswith(f"not at an end: {again} goes on with it)\n")
    assert effects() == ["do reserve"]


def test_nothing_is_run_while_the_store_does_not_take_in_that_the_saga_goes_on(store_down, kill, cli):
    kill()
    Path("down").touch()
    assert cli("resume", "a", "--app", "cli_waits", "--idle", "0").fails(2) == "the store is down"
    assert effects() == ["do reserve"]


def test_no_command_is_named_where_the_store_ends_with_the_process(cli, monkeypatch):
    async def down(self, batch):
        raise StoreUnavailableError("the store is down")

    def said():
        monkeypatch.setattr(InMemorySnapshotStorage, "write", down)
        return "fail"

    monkeypatch.setattr("cli_waits.said", said)
    assert cli("record", WAITING, "--id", "a", "--store", "memory://").fails(1).endswith("not at an end)")
