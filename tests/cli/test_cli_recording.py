"""`sagaz recording`."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

ORDER = "cli_shop:OrderSaga"
CONTEXT = {"zeta": 1, "email": "ann@example.org", "alpha": {"email": "bob@example.org", "b": 1, "a": 2}, "fail": "ship"}


@pytest.fixture
def order(cli):
    """A recorded order, `a`, that was rolled back."""
    cli("record", ORDER, "--context", json.dumps(CONTEXT), "--id", "a").ok()
    return "a"


def test_a_recording_is_carried_from_store_to_store(cli, order):
    cli("recording", "export", order, "-o", "a.json").ok()
    assert stat.S_IMODE(os.stat("a.json").st_mode) == 0o600
    out = cli("recording", "import", "a.json", "--store", "sqlite:///b.db", "--app", "cli_shop:OrderSaga").ok()
    assert "saga class cli_shop:OrderSaga" in out
    cli("recording", "export", order, "-o", "b.json", "--store", "sqlite:///b.db").ok()
    assert Path("b.json").read_text() == Path("a.json").read_text()
    cli("replay", "run", order, "--from-step", "ship", "--override", "fail=", "--store", "sqlite:///b.db").ok()


def test_an_imported_recording_does_not_say_where_its_class_is(cli, order):
    cli("recording", "export", order, "-o", "a.json").ok()
    out = cli("recording", "import", "a.json", "--store", "sqlite:///b.db").ok()
    assert "its class is not known here: see --app" in out
    arguments = ("replay", "run", order, "--from-step", "ship", "--override", "fail=", "--store", "sqlite:///b.db")
    assert "name its module with --app" in cli(*arguments).fails()
    cli(*arguments, "--app", "cli_shop").ok()


def test_a_file_keeps_the_order_of_steps_and_of_a_saga_s_own_keys(cli, order):
    cli("recording", "export", order, "-o", "a.json").ok()
    made = json.loads(Path("a.json").read_text())
    assert list(made) == sorted(made)
    assert list(made["saga"]) == sorted(made["saga"])
    assert list(made["events"][0]["context"]) == list(CONTEXT)
    before_ship = next(s for s in made["snapshots"] if (s["phase"], s["step_name"]) == ("before", "ship"))
    assert list(before_ship["state"]["results"]) == ["reserve", "charge"]


def test_a_replay_of_a_file_undoes_in_the_order_of_the_original(cli):
    cli("record", ORDER, "--id", "a", "--out", "a.json").ok()
    Path("effects.log").unlink()
    cli("replay", "run", "a.json", "--from-step", "ship", "--force-failure", "ship@before", "--app", "cli_shop").ok()
    assert Path("effects.log").read_text().splitlines() == ["undo charge", "undo reserve R1"]


def test_importing_twice_is_refused(cli, order):
    cli("recording", "export", order, "-o", "a.json").ok()
    assert "saga 'a' is in the store" in cli("recording", "import", "a.json").fails()
    assert "there is no recording 'b.json'" in cli("recording", "import", "b.json").fails()
    assert "'.' is a folder" in cli("recording", "import", ".").fails()


def test_redacted_values_are_nowhere_and_equal_ones_are_equal(cli, order, monkeypatch):
    monkeypatch.setenv("SAGAZ_REDACT_KEY", "s3cret")
    for name in ("a", "b"):
        cli("recording", "export", order, "-o", f"{name}.json", "--redact", "email, iban").ok()
    text = Path("a.json").read_text()
    assert "example.org" not in text
    assert "NO93" not in text
    assert text == Path("b.json").read_text()
    monkeypatch.setenv("OTHER", "another")
    cli("recording", "export", order, "-o", "c.json", "--redact", "email", "--redact-key-env", "OTHER").ok()
    emails = [json.loads(Path(f"{name}.json").read_text())["events"][0]["context"]["email"] for name in "ac"]
    assert emails[0] != emails[1]
    cli("replay", "checkpoints", "a.json").ok()


def test_what_is_redacted_without_its_application_can_be_read_with_it(cli, shell):
    cli("record", ORDER, "--context", '{"note": "NO93 is the account"}', "--id", "a").ok()
    without = {"SAGAZ_REDACT_KEY": "s3cret", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    shell("recording", "export", "a", "-o", "a.json", "--redact", "charged,size,iban", env=without).ok()
    assert "NO93" not in Path("a.json").read_text()
    cli("recording", "import", "a.json", "--store", "sqlite:///b.db", "--app", "cli_shop").ok()
    out = cli("replay", "time-travel", "a", "--at", "2999-01-01T00:00:00Z", "--format", "json", "--store",
              "sqlite:///b.db").ok()  # fmt: skip
    context = json.loads(out)["context"]
    assert context["size"] == {"$enum": "cli_shop:Size", "name": "SMALL"}
    assert context["charged"]["$dataclass"] == "cli_shop:Money"
    assert context["charged"]["fields"]["amount"] != {"$decimal": "12.50"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a", "-o", "out.json", "--redact", "email"), "environment variable SAGAZ_REDACT_KEY"),
        (("a", "-o", "out.json", "--redact", "email", "--redact-key-env", "NO"), "environment variable NO"),
        (("a", "-o", "out.json", "--redact", " , "), "--redact names no keys"),
        (("a", "-o", "out.json", "--redact", "emial", "--redact-key-env", "KEY"), "(did you mean 'email'?)"),
        (("b", "-o", "out.json"), "there is no saga 'b'"),
        (("a",), "Missing option '-o'"),
        (("a", "-o", "there.json"), "there is a file 'there.json' already"),
        (("a", "-o", "no/out.json"), "there is no folder 'no'"),
    ],
)
def test_a_wrong_export_is_one_line_and_writes_nothing(cli, order, place, monkeypatch, arguments, says):
    monkeypatch.setenv("KEY", "s3cret")
    (place / "there.json").write_text("mine")
    assert says in cli("recording", "export", *arguments).fails()
    assert not (place / "out.json").exists()
    assert (place / "there.json").read_text() == "mine"
    assert sorted(path.name for path in place.iterdir()) == [".sagaz", "effects.log", "there.json"]


def test_an_export_overwrites_by_force(cli, order, place):
    (place / "there.json").write_text("mine")
    cli("recording", "export", order, "-o", "there.json", "--force").ok()
    assert json.loads((place / "there.json").read_text())["saga"]["saga_id"] == "a"


def test_a_recording_is_shown_as_it_was_printed(cli):
    printed = cli("record", ORDER, "--context", '{"fail": "ship"}', "--id", "a").ok().splitlines()
    cli("recording", "export", "a", "-o", "a.json").ok()
    for target in ("a", "a.json"):
        shown = cli("recording", "show", target).ok().splitlines()
        assert [shown[0], *(line for line in shown[1:] if ": " not in line[:12])] == printed[:-1]


def test_recordings_are_listed_in_pages(cli):
    for number in range(3):
        cli("record", ORDER, "--id", f"x{number}").ok()
    cli("record", ORDER, "--id", "y").ok()
    out = cli("recording", "list", "--prefix", "x", "--limit", "2").ok().splitlines()
    assert [line.split()[0] for line in out] == ["x0", "x1", "more"]
    cursor = out[-1].split()[-1]
    more = json.loads(cli("recording", "list", "--prefix", "x", "--format", "json", "--cursor", cursor).ok())
    assert [row["saga_id"] for row in more["sagas"]] == ["x2"]
    assert "| x0 | shop-order | 1.0" in cli("recording", "list", "--format", "table").ok()
    assert "limit" in cli("recording", "list", "--limit", "0").fails()


def test_a_reader_who_has_enough_is_no_trouble(start, cli):
    cli("record", ORDER, "--id", "a").ok()
    process = start("recording", "list")
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (141, "")


def test_an_id_that_begins_with_a_dash_is_written_behind_two(cli):
    cli("record", "cli_shop:OrderSaga", "--id", "-lead").ok()
    assert "such as an id, is written last, behind --" in cli("recording", "show", "-lead").fails()
    assert "behind --" not in cli("find", "-lead").fails()
    assert cli("recording", "show", "--", "-lead").ok().startswith("-lead")
