"""`sagaz replay`."""

from __future__ import annotations

import getpass
import json
import os
import re
import signal
from pathlib import Path

import pytest

ORDER = "cli_shop:OrderSaga"
END = "2999-01-01T00:00:00Z"


def effects() -> list[str]:
    path = Path("effects.log")
    return path.read_text().splitlines() if path.exists() else []


def state_of(cli, saga_id, at=END):
    return json.loads(cli("replay", "time-travel", saga_id, "--at", at, "--format", "json").ok())


def replays_of(cli, saga_id):
    return json.loads(cli("replay", "history", saga_id, "--format", "json").ok())["replays"]


def ids(cli):
    return [row["saga_id"] for row in json.loads(cli("recording", "list", "--format", "json").ok())["sagas"]]


@pytest.fixture
def order(cli):
    """A recorded order, `a`, whose effects are forgotten."""
    cli("record", ORDER, "--context", '{"quantity": 2, "password": "hunter2"}', "--id", "a").ok()
    Path("effects.log").unlink()
    return "a"


# ---- run


def test_a_replay_serves_what_was_recorded_and_runs_the_rest(cli, order):
    out = cli("replay", "run", order, "--from-step", "ship", "--override", "quantity=9", "--by", "me").ok()
    assert effects() == ["do ship"]
    lines = out.splitlines()
    assert lines[1:5] == [
        "  served  reserve  +reservation",
        "  served  charge  +charged +size +card_token",
        "  start   ship",
        "  done    ship  +parcel",
    ]
    new = lines[0].split()[0]
    assert f"new saga:  {new}" in lines
    assert lines[-1] == "success"
    assert state_of(cli, new)["context"]["parcel"] == "9 pieces"
    assert state_of(cli, order)["context"]["parcel"] == "2 pieces"
    (logged,) = replays_of(cli, order)
    assert (logged["new_saga_id"], logged["checkpoint"], logged["status"]) == (new, "ship", "success")
    assert (logged["initiated_by"], logged["override"], logged["plan"]) == ("me", {"quantity": 9}, "")


@pytest.mark.parametrize("sudo", [None, "alice"])
def test_who_asks_is_the_user_at_the_host(cli, order, monkeypatch, sudo):
    if sudo:
        monkeypatch.setenv("SUDO_USER", sudo)
    cli("replay", "run", order, "--from-step", "ship").ok()
    assert replays_of(cli, order)[0]["initiated_by"] == f"{sudo or getpass.getuser()}@{os.uname().nodename}"


def test_an_override_is_json_or_text_and_may_have_an_exact_type(cli, order):
    values = ["a=1", 'b="1"', "c=one", "d=", 'e={"$decimal": "1.50"}', "f=[1, 2]", "g=x=y", "h=NaN"]
    arguments = [part for value in values for part in ("--override", value)]
    cli("replay", "run", order, "--from-step", "ship", *arguments).ok()
    found = replays_of(cli, order)[0]["override"]
    assert found == {
        "a": 1,
        "b": "1",
        "c": "one",
        "d": "",
        "e": {"$decimal": "1.50"},
        "f": [1, 2],
        "g": "x=y",
        "h": "NaN",
    }


def test_an_unknown_key_is_a_warning_and_with_strict_an_error(cli, order):
    ran = cli("replay", "run", order, "--from-step", "ship", "--override", "quantiti=1")
    assert "warning: the context has no key 'quantiti' to override (did you mean 'quantity'?)" in ran.ok()
    before = ids(cli), effects()
    says = cli("replay", "run", order, "--from-step", "ship", "--override", "quantiti=1", "--strict").fails()
    assert "did you mean 'quantity'?" in says
    assert (ids(cli), effects()) == before


def test_a_forced_failure_that_rolls_back_is_as_asked(cli, order):
    out = cli("replay", "run", order, "--from-step", "ship", "--force-failure", "ship@after").ok()
    assert "undone:    charge, reserve" in out
    assert effects() == ["do ship", "undo charge", "undo reserve R1"]


def test_a_rollback_that_nobody_asked_for_is_a_failure(cli, order):
    says = cli("replay", "run", order, "--from-step", "ship", "--override", "fail=ship").fails(1)
    assert "was rolled back (StepRejected: ship refused)" in says
    says = cli("replay", "run", order, "--from-step", "ship", "--override", "fail=ship", "--force-failure",
               "reserve@undo-fail").fails(1)  # fmt: skip
    assert "is stuck at reserve" in says


def test_a_forced_failure_that_never_happens_is_a_failure(cli, order):
    says = cli("replay", "run", order, "--from-step", "charge", "--override", "fail=charge", "--force-failure",
               "ship@after").fails(1)  # fmt: skip
    assert "the forced failure ship@after never happened" in says


def test_a_late_effect_of_a_replay_comes_after_its_own_compensation(cli):
    cli("record", "cli_shop:HastySaga", "--id", "a").ok()
    Path("effects.log").unlink()
    cli("replay", "run", "a", "--from-step", "charge", "--force-failure", "charge@late").ok()
    assert effects() == ["undo charge", "do charge", "undo reserve"]


def test_a_dry_run_checks_all_and_runs_nothing(cli, order):
    out = cli("replay", "run", order, "--from-step", "ship", "--dry-run", "--override", "quantit=1").ok()
    assert "would run: ship" in out
    assert "did you mean 'quantity'" in out
    assert out.endswith("dry run\n")
    assert (ids(cli), effects(), replays_of(cli, order)) == (["a"], [], [])
    assert "no step" in cli("replay", "run", order, "--from-step", "shp", "--dry-run").fails()
    assert "'ship' cannot" in cli("replay", "run", order, "--from-step", "ship", "--dry-run", "--force-failure",
                                  "ship@hang").fails()  # fmt: skip


def test_a_rolled_back_original_does_again_what_it_undid(cli):
    cli("record", ORDER, "--context", '{"fail": "ship"}', "--id", "a").ok()
    Path("effects.log").unlink()
    out = cli("replay", "run", "a", "--from-step", "ship", "--override", "fail=").ok()
    assert "again:     reserve, charge" in out
    assert effects() == ["do reserve", "do charge", "do ship"]


def test_a_crashed_original_goes_on_where_it_stopped(cli):
    cli("record", ORDER, "--plan", "charge@crash-recorded", "--id", "a").fails(1)
    Path("effects.log").unlink()
    assert cli("replay", "checkpoints", "a").ok().split() == ["reserve", "charge", "ship"]
    cli("replay", "run", "a", "--from-step", "ship").ok()
    assert effects() == ["do ship"]


def test_a_crash_before_the_record_leaves_the_step_to_do_again(cli):
    cli("record", ORDER, "--plan", "charge@crash", "--id", "a").fails(1)
    assert cli("replay", "checkpoints", "a").ok().split() == ["reserve", "charge"]
    assert "has no checkpoint before step 'ship'" in cli("replay", "run", "a", "--from-step", "ship").fails()
    cli("replay", "run", "a", "--from-step", "charge").ok()


def test_drift_is_refused_with_the_difference_unless_it_is_allowed(cli, order):
    arguments = ("replay", "run", order, "--from-step", "ship", "--app", "cli_drifted:DriftedOrderSaga")
    says = cli(*arguments).fails()
    assert "step 'tell' is new" in says
    assert ids(cli) == ["a"]
    out = cli(*arguments, "--allow-drift").ok()
    assert "warning: step 'tell' is new" in out
    assert "ran:       ship, tell" in out
    new = next(saga_id for saga_id in ids(cli) if saga_id != "a")
    rows = json.loads(cli("recording", "list", "--format", "json").ok())["sagas"]
    assert {row["saga_id"]: row["source"] for row in rows}[new] == "cli_drifted:DriftedOrderSaga"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("b", "--from-step", "ship"), "there is no saga 'b' in the store sqlite://"),
        (("aa", "--from-step", "ship"), "did you mean 'a'?"),
        (("no.json", "--from-step", "ship"), "there is no recording 'no.json'"),
        (("a", "--from-step", "shp"), "has no step 'shp' (did you mean 'ship'?)"),
        (("a",), "Missing option '--from-step'"),
        (("a", "--from-step", "ship", "--force-failure", "ship@aftr"), "there is no kind of fault 'aftr'"),
        (("a", "--from-step", "ship", "--force-failure", "shp@after"), "has no step 'shp'"),
        (("a", "--from-step", "ship", "--force-failure", "ship@crash"), "a replay runs for real"),
        (("a", "--from-step", "ship", "--force-failure", "charge@undo-crash"), "a replay runs for real"),
        (("a", "--from-step", "ship", "--force-failure", "ship@cancel"), "a replay runs for real"),
        (("a", "--from-step", "ship", "--force-failure", "charge@after"), "replay from 'charge'"),
        (("a", "--from-step", "ship", "--override", "quantity"), "write KEY=VALUE"),
        (("a", "--from-step", "ship", "--override", "=1"), "write KEY=VALUE"),
        (("a", "--from-step", "ship", "--override", "q=1", "--override", "q=2"), "gives 'q' twice"),
        (("a", "--from-step", "ship", "--override", 'q={"$decimal": "x"}'), "--override q"),
        (("a", "--from-step", "ship", "--app", "cli_nothing"), "there is no module 'cli_nothing'"),
        (("a", "--from-step", "ship", "--app", "cli_broken"), "cannot be imported: ValueError: broken module"),
        (("a", "--from-step", "ship", "--app", "json"), "no saga named 'shop-order' is known here"),
        (("a", "--from-step", "ship", "--app", "cli_twins"), "two sagas are named 'shop-order'"),
        (("a", "--from-step", "ship", "--store", "sqlite:///other.db"), "there is no saga 'a'"),
    ],
)
def test_a_wrong_replay_is_one_line_and_nothing_is_written(cli, order, arguments, says):
    if arguments[-1] == "cli_twins":
        Path("cli_more_twins.py").write_text("from cli_shop import OrderSaga\nfrom cli_twins import OtherOrderSaga\n")
        arguments = (*arguments[:-1], "cli_more_twins")
    assert says in cli("replay", "run", *arguments).fails()
    assert (ids(cli), effects(), replays_of(cli, order)) == (["a"], [], [])
    assert not Path("other.db").exists()


def test_the_project_says_where_its_sagas_are(cli, order, place):
    (place / "pyproject.toml").write_text('[tool.sagaz]\nsagas = ["cli_drifted:DriftedOrderSaga"]\n')
    assert "step 'tell' is new" in cli("replay", "run", order, "--from-step", "ship").fails()
    (place / "pyproject.toml").write_text('[tool.sagaz]\nsagas = ["json"]\n')
    cli("replay", "run", order, "--from-step", "ship").ok()  # it is not there, but where it was recorded


def test_a_stopped_replay_undoes_and_is_logged(start, read_until, cli):
    cli("record", "cli_shop:SlowSaga", "--context", '{"quick": true}', "--id", "a").ok()
    Path("effects.log").unlink()
    process = start("replay", "run", "a", "--from-step", "charge", "--override", "quick=false")
    read_until(process, "start   charge")
    assert [row["status"] for row in replays_of(cli, "a")] == ["started"]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "sagaz: stopped by SIGTERM; the saga is rolled back\n")
    assert effects() == ["undo reserve"]
    assert [row["status"] for row in replays_of(cli, "a")] == ["rolled_back"]


# ---- files


def test_a_file_is_replayed_by_a_class_that_is_named(cli, order):
    cli("recording", "export", order, "-o", "a.json").ok()
    arguments = ("replay", "run", "a.json", "--from-step", "ship", "--store", "sqlite:///new.db")
    assert "name its module with --app" in cli(*arguments).fails()
    assert not Path("new.db").exists()
    out = cli(*arguments, "--app", "cli_shop").ok()
    assert "served:    reserve, charge" in out
    assert effects() == ["do ship"]
    history = cli("replay", "history", "a", "--store", "sqlite:///new.db", "--format", "json").ok()
    assert [row["status"] for row in json.loads(history)["replays"]] == ["success"]


def test_nothing_that_a_file_names_is_imported(cli, order, place):
    cli("recording", "export", order, "-o", "a.json").ok()
    (place / "cli_trap.py").write_text("open('sprung', 'w').close()\n")
    text = (place / "a.json").read_text().replace("cli_shop:", "cli_trap:")
    (place / "trap.json").write_text(text)
    says = cli("replay", "run", "trap.json", "--from-step", "ship", "--app", "cli_shop").fails()
    assert "cli_trap:" in says
    assert cli("replay", "checkpoints", "trap.json").ok() == "reserve\ncharge\nship\n"
    assert "cli_trap" in cli("recording", "import", "trap.json", "--store", "sqlite:///n.db").fails()
    assert not (place / "sprung").exists()
    assert not (place / "n.db").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("replay", "checkpoints", "bad.json"),
        ("replay", "list-changes", "bad.json"),
        ("replay", "time-travel", "bad.json", "--at", END),
        ("replay", "run", "bad.json", "--from-step", "ship"),
        ("recording", "show", "bad.json"),
        ("recording", "import", "bad.json"),
        ("recording", "export", "bad.json", "-o", "out.json"),
    ],
)
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], "is not a recording: no JSON"),
        (lambda text: "", "is not a recording: no JSON"),
        (lambda text: "{}", "does not say format"),
        (lambda text: text.replace('"version": 1\n', '"version": 2\n'), "upgrade pytest-sagaz"),
        (lambda text: text.replace("StepStarted", "StepStopped"), "is damaged"),
        (lambda text: text.replace('"seq": 1', '"seq": 5'), "is damaged"),
        (lambda text: text.replace('"events"', '"event"'), "is damaged"),
        (lambda text: text.replace('"at": "20', '"at": "0001-01-01T00:00:00+23:00", "x": "20'), "is damaged"),
        (lambda text: "[" * 100_000, "is not a recording"),
    ],
)
def test_a_damaged_file_is_one_line(cli, order, command, damage, says):
    cli("recording", "export", order, "-o", "a.json").ok()
    text = Path("a.json").read_text()
    assert damage(text) != text
    Path("bad.json").write_text(damage(text))
    before = ids(cli)
    assert says in cli(*command).fails()
    assert ids(cli) == before
    assert not Path("out.json").exists()


# ---- time travel


def test_the_past_is_told_in_three_forms(cli, order):
    state = state_of(cli, order)
    assert state["status"] == "completed"
    assert state["completed_steps"] == ["reserve", "charge", "ship"]
    money = {"$dataclass": "cli_shop:Money", "fields": {"amount": {"$decimal": "12.50"}, "iban": "NO93"}}
    assert state["context"]["charged"] == money
    assert state["context"]["password"] == "hunter2"
    text = cli("replay", "time-travel", order, "--at", END).ok()
    rows = dict(line.split("  ", 1) for line in text.splitlines())
    assert {name: value.strip() for name, value in rows.items()}.items() >= {
        "saga": "a (shop-order)",
        "status": "completed",
        "done": "reserve, charge, ship",
        "context quantity": "2",
        "context charged": "Money(amount=Decimal('12.50'), iban=***)",
        "context password": "***",
        "context card_token": "***",
    }.items()
    table = cli("replay", "time-travel", order, "--at", END, "--format", "table").ok()
    assert re.search(r"^\| context quantity +\| 2 +\|$", table, re.MULTILINE)
    assert "hunter2" not in text + table
    shown = cli("replay", "time-travel", order, "--at", END, "--show-secrets").ok()
    assert "context password     'hunter2'" in shown


def test_the_past_needs_no_application(order, shell, place):
    out = shell("replay", "time-travel", order, "--at", END, env={"PYTHONPATH": os.environ.get("PYTHONPATH", "")}).ok()
    assert "  Money(amount=Decimal('12.50'), iban=***)\n" in out
    assert "  Size(name='SMALL')\n" in out


def test_one_key_of_the_past(cli, order):
    def ask(key, *more, at=END):
        return cli("replay", "time-travel", order, "--at", at, "--key", key, *more)

    assert ask("parcel").ok() == "2 pieces\n"
    assert ask("parcel", "--format", "json").ok() == '"2 pieces"\n'
    assert ask("quantity").ok() == "2\n"
    assert ask("password").ok() == "***\n"
    assert ask("password", "--show-secrets").ok() == "hunter2\n"
    assert ask("password", "--format", "json").ok() == '"hunter2"\n'
    assert "| parcel | 2 pieces |" in ask("parcel", "--format", "table").ok()
    assert "never had a key 'parcl' (did you mean 'parcel'?)" in ask("parcl").fails()
    started = json.loads(cli("replay", "list-changes", order, "--limit", "1", "--format", "json").ok())["changes"][0]
    assert ask("parcel", at=started["at"]).ok() == "(not set)\n"
    assert ask("parcel", "--format", "json", at=started["at"]).ok() == "null\n"
    assert ask("parcel", at="2000-01-01T00:00:00Z").ok() == "not started yet\n"


def test_before_its_start_a_saga_has_not_started(cli, order):
    state = state_of(cli, order, "2000-01-01T00:00:00+02:00")
    assert (state["status"], state["started"], state["seq"], state["context"]) == ("pending", False, -1, {})
    assert "not started yet" in cli("replay", "time-travel", order, "--at", "2000-01-01T00:00:00Z").ok()


@pytest.mark.parametrize(
    ("at", "says"),
    [
        ("2026-07-15T14:30:00", "has no timezone: write 2026-07-15T14:30:00Z for UTC"),
        ("2026-07-15", "has no timezone"),
        ("yesterday", "'yesterday' is not a time"),
        ("", "'' is not a time"),
        ("0001-01-01T00:00:00+14:00", "not in the years 1 to 9999"),
    ],
)
def test_a_time_that_is_none_is_one_line(cli, order, at, says):
    assert says in cli("replay", "time-travel", order, "--at", at).fails()
    assert says in cli("replay", "list-changes", order, "--after", at).fails()
    assert says in cli("replay", "list-changes", order, "--before", at).fails()


def test_changes_come_in_pages(cli, order):
    def page(*more):
        return json.loads(cli("replay", "list-changes", order, "--format", "json", *more).ok())

    everything = page()
    assert everything["cursor"] is None
    changes = everything["changes"]
    assert [change["seq"] for change in changes] == list(range(8))
    assert changes[0]["changed_keys"] == ["quantity", "password"]
    first = page("--limit", "5")
    assert first["changes"] == changes[:5]
    assert page("--limit", "5", "--cursor", first["cursor"]) == {**everything, "changes": changes[5:]}
    assert page("--after", changes[2]["at"])["changes"] == [c for c in changes if c["at"] > changes[2]["at"]]
    assert page("--before", changes[2]["at"])["changes"] == [c for c in changes if c["at"] < changes[2]["at"]]
    text = cli("replay", "list-changes", order, "--limit", "2").ok().splitlines()
    assert len(text) == 3
    assert text[-1] == "more with --cursor 1"
    assert "hunter2" not in cli("replay", "list-changes", order).ok()
    assert "seq" in cli("replay", "list-changes", order, "--format", "table").ok()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--limit", "0"), "a limit of 0"),
        (("--limit", "x"), "'x' is not a valid integer"),
        (("--cursor", "x"), "'x' is not a cursor"),
        (("--cursor", "9" * 5000), "is not a cursor"),
        (("--format", "yaml"), "'yaml' is not one of"),
    ],
)
def test_a_wrong_question_is_one_line(cli, order, arguments, says):
    assert says in cli("replay", "list-changes", order, *arguments).fails()


@pytest.mark.parametrize("command", ["checkpoints", "history", "list-changes"])
def test_an_unknown_id_is_one_line_that_names_a_near_one(cli, order, command):
    assert "there is no saga 'aa'" in cli("replay", command, "aa").fails()
    says = cli("replay", command, "a", "--store", "sqlite:///no.db").fails()
    assert "there is no saga 'a' in the store sqlite:///" in says
    assert not Path("no.db").exists()


def test_the_log_hides_secrets_in_text(cli, order):
    cli("replay", "run", order, "--from-step", "ship", "--override", "password=swordfish").ok()
    assert "password=***" in cli("replay", "history", order).ok()
    assert "password=***" in cli("replay", "history", order, "--format", "table").ok()
    assert "password='swordfish'" in cli("replay", "history", order, "--show-secrets").ok()


def test_a_command_that_is_missing_or_unknown_is_one_line(cli):
    assert cli("replay").fails() == "Missing command. See 'sagaz replay --help'."
    assert "No such command 'rum'" in cli("replay", "rum").fails()


def test_a_step_that_ends_the_process_is_a_failure_that_names_the_replay(cli):
    cli("record", "cli_shop:ExitSaga", "--id", "a").ok()
    ran = cli("replay", "run", "a", "--from-step", "second", "--override", "exit=0")
    new_id = next(line.split()[0] for line in ran.out.splitlines() if line.endswith("  exit 1.0"))
    assert ran.fails(1) == f"step 'second' called sys.exit(0); the replay, {new_id!r}, is what a crash leaves"
    (logged,) = json.loads(cli("replay", "history", "a", "--format", "json").ok())["replays"]
    assert (logged["new_saga_id"], logged["status"]) == (new_id, "failed")
