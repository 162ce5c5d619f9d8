"""`sagaz store` and `sagaz find`."""

from __future__ import annotations

import asyncio
import json
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

from sagaz_core.storage import Batch, open_storage
from sagaz_core.storage.contract import T0, a_snapshot

ORDER = "cli_shop:OrderSaga"
STORE = "sqlite:///.sagaz/sagaz.db"


@pytest.fixture
def orders(cli):
    """Two recorded orders: `a` that was rolled back at `ship`, and `b`."""
    cli("record", ORDER, "--context", '{"fail": "ship"}', "--id", "a").ok()
    cli("record", ORDER, "--id", "b").ok()


def test_info_says_what_is_there(cli, orders):
    out = cli("store", "info", STORE).ok().splitlines()
    assert out[0].endswith("/.sagaz/sagaz.db")
    assert [line.split()[0] for line in out[1:]] == ["schema", "sagas", "events", "snapshots", "replays", "bytes"]
    found = json.loads(cli("store", "info", STORE, "--format", "json").ok())
    assert (found["sagas"], found["replays"]) == (2, 0)
    assert found["events"] > found["snapshots"] > 2


def test_a_store_that_is_not_there_is_not_made_by_a_look(cli, place):
    assert "nothing is there yet" in cli("store", "info", "sqlite:///none.db").ok()
    assert "there is no store at" in cli("store", "copy", "sqlite:///none.db", "sqlite:///to.db").fails()
    assert not list(place.glob("*.db"))


@pytest.mark.parametrize("command", [("find", "--status", "failed"), ("recording", "list")])
def test_a_store_without_any_saga_is_told_from_one_in_which_nothing_is_found(cli, place, orders, command):
    answer = cli(*command, "--store", "sqlite:///typo.db")
    assert (answer.code, answer.out) == (0, "")
    assert answer.err.endswith("/typo.db has no sagas\n")
    assert not list(place.glob("typo.db"))
    assert cli("find", "--status", "failed").err == cli("recording", "list", "--prefix", "c").err == ""


def test_upgrade_makes_a_store(cli):
    assert "created" in cli("store", "upgrade", "sqlite:///new.db").ok()
    assert "created" not in cli("store", "upgrade", "sqlite:///new.db").ok()
    assert "  sagas      0\n" in cli("store", "info", "sqlite:///new.db").ok()


def test_a_newer_schema_is_refused(cli):
    cli("store", "upgrade", "sqlite:///new.db").ok()
    connection = sqlite3.connect("new.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    for command in ("info", "upgrade", "prune"):
        assert "has schema 99" in cli("store", command, "sqlite:///new.db").fails()


def test_prune_deletes_what_has_expired(cli, orders):
    assert cli("store", "prune", STORE).ok() == "0 snapshots deleted\n"
    storage = open_storage(STORE)
    asyncio.run(storage.write(Batch("old", snapshots=[a_snapshot("old", 0, retention_until=T0)])))
    asyncio.run(storage.close())
    assert "a time" in cli("store", "prune", STORE, "--now", "yesterday").fails()
    assert "a batch of 0" in cli("store", "prune", STORE, "--batch", "0").fails()
    before = json.loads(cli("store", "info", STORE, "--format", "json").ok())["snapshots"]
    assert cli("store", "prune", STORE, "--now", "9000-01-01T00:00:00Z").ok() == "1 snapshot deleted\n"
    assert json.loads(cli("store", "info", STORE, "--format", "json").ok())["snapshots"] == before - 1


def test_prune_deletes_nothing_for_an_end_that_was_changed_in_the_file(cli, orders):
    with closing(sqlite3.connect(".sagaz/sagaz.db", isolation_level=None)) as connection:
        connection.execute("UPDATE saga_snapshots SET retention_until = 5 WHERE step_name = 'reserve'")
    before = cli("store", "info", STORE).ok()
    assert "is damaged: what is stored beside it is not of this snapshot" in cli("store", "prune", STORE).fails()
    assert cli("store", "info", STORE).ok() == before


def test_a_copy_can_be_replayed(cli, orders):
    out = cli("store", "copy", STORE, "sqlite:///to.db").ok()
    assert out.startswith("2 sagas, ")
    assert out.endswith("copied and verified\n")
    assert cli("store", "copy", STORE, "sqlite:///to.db").ok().startswith("2 sagas (2 of them were there already), 0")
    cli("replay", "run", "a", "--from-step", "ship", "--override", "fail=", "--store", "sqlite:///to.db").ok()
    shown = [cli("recording", "show", "a", "--store", store).ok() for store in (STORE, "sqlite:///to.db")]
    assert shown[0] == shown[1]


def test_a_copy_of_some(cli, orders):
    none = cli("store", "copy", STORE, "sqlite:///a.db", "--saga-name", "nothing")
    assert (none.code, none.out.split(",")[0]) == (0, "0 sagas")
    assert none.err.startswith("there is no saga of the name 'nothing' in sqlite:///")
    none = cli("store", "copy", STORE, "sqlite:///b.db", "--since", "9000-01-01T00:00:00Z")
    assert (none.code, none.out.split(",")[0]) == (0, "0 sagas")
    assert none.err.startswith("there is no saga that started at 9000-01-01T00:00:00+00:00 or later in sqlite:///")
    assert "no timezone" in cli("store", "copy", STORE, "sqlite:///b.db", "--since", "2024-01-01").fails()
    assert "is both stores" in cli("store", "copy", STORE, STORE).fails()


def test_a_url_that_is_none_is_refused_and_no_password_is_shown(cli):
    for command in ("info", "upgrade", "prune"):
        said = cli("store", command, "nosuch://user:secret@host").fails()
        assert "unknown scheme" in said
        assert "secret" not in said


def test_an_empty_url_stands_for_no_other_store(cli, orders, monkeypatch):
    monkeypatch.setenv("SAGAZ_STORE", STORE)
    for command in (["info", ""], ["prune", ""], ["upgrade", ""], ["copy", "", "sqlite:///b.db"], ["copy", STORE, ""]):
        assert "'' is not a storage URL" in cli("store", *command).fails()
    assert "'' is not a storage URL" in cli("find", "--store", "").fails()
    assert "'' is not a storage URL" in cli("record", "cli_shop:OrderSaga", "--store", "").fails()


def test_find_by_where_and_when_it_failed(cli, orders):
    (line,) = cli("find", "--step", "ship").ok().splitlines()
    assert line.split()[:4] == ["a", "cli-order", "rolled_back", "ship"] or line.split()[0] == "a"
    found = json.loads(cli("find", "--format", "json").ok())
    assert [(saga["saga_id"], saga["status"]) for saga in found["sagas"]] == [("a", "rolled_back"), ("b", "completed")]
    at = found["sagas"][0]["failed_at"]
    assert cli("find", "--failed-from", at, "--failed-to", at).ok() == cli("find", "--status", "rolled_back").ok()
    assert cli("find", "--failed-to", "2020-01-01T00:00:00Z").ok() == ""
    assert cli("find", "--saga-name", "nothing").ok() == ""
    assert cli("find", "--tag", "customer=1").ok() == ""
    assert "+--" in cli("find", "--format", "table").ok()
    first = cli("find", "--limit", "1").ok().splitlines()
    assert first[1] == "more with --cursor a"
    assert cli("find", "--limit", "1", "--cursor", "a").ok().startswith("b ")


def test_the_cursor_of_a_page_is_written_for_a_shell(cli):
    for name in ("a 'b' $c", "d"):
        cli("record", ORDER, "--id", name).ok()
    for command in (("find",), ("recording", "list")):
        line = cli(*command, "--limit", "1").ok().splitlines()[-1]
        said = shlex.split(line.removeprefix("more with "))
        assert said == ["--cursor", "a 'b' $c"]
        assert cli(*command, *said).ok().startswith("d ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--status", "compleated"], "did you mean 'completed'"),
        (["--failed-from", "noon"], "is not a time"),
        (["--failed-from", "2024-02-01T00:00Z", "--failed-to", "2024-01-01T00:00Z"], "nothing is between them"),
        (["--tag", "customer"], "is not KEY=VALUE"),
        (["--limit", "0"], "give a limit of 1 or more"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(cli, arguments, says):
    assert says in cli("find", *arguments).fails()


def test_an_imported_recording_is_found(cli, orders):
    cli("recording", "export", "a", "-o", "a.json").ok()
    cli("recording", "import", "a.json", "--store", "sqlite:///b.db").ok()
    assert cli("find", "--store", "sqlite:///b.db").ok() == cli("find", "--status", "rolled_back").ok()


def test_help_loads_no_store():
    code = (
        "import sys; from sagaz_core.cli.app import main; sys.argv = ['sagaz', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not [m for m in sys.modules if m.startswith('sagaz_core.storage') or m == 'zstandard']"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "find" in done.stdout
    assert "store" in done.stdout


def test_a_copy_of_a_damaged_store_lists_the_damage_and_has_all_else(cli, orders):
    connection = sqlite3.connect(".sagaz/sagaz.db")
    connection.execute("UPDATE saga_events SET step = 'another' WHERE id IN (SELECT max(id) - 1 FROM saga_events)")
    connection.commit()
    connection.close()
    for _ in range(2):
        ran = cli("store", "copy", STORE, "sqlite:///to.db")
        assert ran.fails(1) == "1 record was damaged in sqlite:///.sagaz/sagaz.db, and left out"
        assert "of saga 'b' is damaged" in ran.out.splitlines()[1]
    counts = [json.loads(cli("store", "info", url, "--format", "json").ok()) for url in (STORE, "sqlite:///to.db")]
    assert counts[0]["snapshots"] == counts[1]["snapshots"]
    assert counts[0]["events"] == counts[1]["events"] + 1


def test_a_damaged_saga_is_named_and_all_others_are_listed(cli, orders):
    cli("record", ORDER, "--id", "c").ok()
    connection = sqlite3.connect(".sagaz/sagaz.db", isolation_level=None)
    connection.execute("UPDATE sagas SET source = 'x', status = 'executing' WHERE saga_id IN ('a', 'b')")
    for arguments in (["find"], ["recording", "list"]):
        ran = cli(*arguments)
        assert [line.split()[0] for line in ran.out.splitlines()] == ["c"]
        first, second, last = ran.err.splitlines()
        assert "saga 'a' is damaged" in first
        assert "saga 'b' is damaged" in second
        assert (ran.code, last) == (1, "sagaz: 2 sagas are damaged, and not listed")
        ran = cli(*arguments, "--format", "json", "--limit", "1")
        assert [saga["saga_id"] for saga in json.loads(ran.out)["sagas"]] == ["c"]
        assert ran.code == 1
    connection.execute("DELETE FROM sagas WHERE saga_id = 'b'")
    connection.execute("UPDATE saga_snapshots SET phase = 'x' WHERE saga = (SELECT id FROM sagas WHERE saga_id = 'c')")
    connection.close()
    assert cli("recording", "list").err.count("is damaged") == 2


def test_a_damaged_saga_does_not_keep_others_from_being_recorded_or_asked_for(cli, orders):
    connection = sqlite3.connect(".sagaz/sagaz.db", isolation_level=None)
    connection.execute("UPDATE sagas SET source = 'x' WHERE saga_id = 'a'")
    connection.close()
    cli("record", ORDER, "--id", "c").ok()
    assert cli("replay", "list-changes", "d").fails().startswith("there is no saga 'd' in the store")
