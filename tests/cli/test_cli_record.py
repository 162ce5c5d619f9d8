"""`sagaz record`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import own_valkey

ORDER = "cli_shop:OrderSaga"


def effects() -> list[str]:
    path = Path("effects.log")
    return path.read_text().splitlines() if path.exists() else []


def status_of(cli, saga_id):
    rows = json.loads(cli("recording", "list", "--format", "json").ok())["sagas"]
    return next((row["status"] for row in rows if row["saga_id"] == saga_id), None)


def test_a_run_is_printed_and_recorded(cli):
    out = cli("record", ORDER, "--context", '{"quantity": 5}', "--id", "O-1").ok()
    assert out.splitlines() == [
        "O-1  shop-order 1.0",
        "  start   reserve",
        "  done    reserve  +reservation",
        "  start   charge",
        "  done    charge  +charged +size +card_token",
        "  start   ship",
        "  done    ship  +parcel",
        "completed, 3 steps done",
        "recorded in sqlite:///.sagaz/sagaz.db; prove it with:  pytest --sagaz-replay=O-1",
    ]
    assert Path(".sagaz/sagaz.db").is_file()
    assert effects() == ["do reserve", "do charge", "do ship"]


def test_each_step_has_a_snapshot_before_it_whatever_the_saga_says_itself(cli):
    cli("record", ORDER, "--id", "a", "--out", "a.json").ok()
    made = json.loads(Path("a.json").read_text())
    assert [(s["phase"], s["step_name"]) for s in made["snapshots"]] == [
        ("before", "reserve"),
        ("before", "charge"),
        ("before", "ship"),
        ("final", ""),
    ]
    assert made["saga"]["source"] == ORDER


def test_a_rolled_back_saga_is_no_failure(cli):
    out = cli("record", ORDER, "--context", '{"fail": "ship"}', "--id", "a").ok()
    assert "  failed  ship  StepRejected: ship refused" in out
    assert "  undone  charge\n  undo    reserve\n  undone  reserve\n" in out
    assert "rolled back, 2 steps undone" in out
    assert effects()[-2:] == ["undo charge", "undo reserve R1"]


def test_a_stuck_saga_is_a_failure_that_names_the_step(cli):
    ran = cli("record", ORDER, "--plan", "ship@before+charge@undo-fail", "--id", "a")
    assert ran.fails(1).startswith("saga 'a' is stuck at charge")
    assert "  stuck   charge" in ran.out
    assert "  undone  reserve" in ran.out
    assert status_of(cli, "a") == "failed"


@pytest.mark.parametrize("time", ["--real-time", "--virtual-time"])
@pytest.mark.parametrize("code", [0, 3])
def test_a_step_that_ends_the_process_is_a_failure_and_leaves_what_a_crash_leaves(cli, time, code):
    ran = cli("record", "cli_shop:ExitSaga", "--context", json.dumps({"exit": code}), "--id", "a", time)
    assert ran.fails(1) == f"step 'second' called sys.exit({code}); 'a' is what a crash leaves"
    assert "executing at second, not at an end" in ran.out
    assert effects() == ["do first"]
    assert status_of(cli, "a") == "executing"


def test_how_it_ended_is_one_line_whatever_the_error_says(cli):
    out = cli("record", "cli_shop:ExitSaga", "--context", '{"fail": 1}', "--id", "a").ok()
    assert "rolled back, 1 step undone (RuntimeError: one line\\nand another)" in out.splitlines()


def test_what_is_recorded_in_memory_is_only_proved_from_the_file_that_was_asked_for(cli):
    out = cli("record", ORDER, "--store", "memory://").ok()
    assert out.endswith("recorded in memory://, which ends here; keep it with --out FILE, or in another --store\n")
    out = cli("record", ORDER, "--store", "memory://", "--out", "a.json").ok()
    assert out.endswith("recorded in a.json; prove it with:  pytest --sagaz-replay=a.json --app=cli_shop\n")


def test_without_an_id_it_gets_a_new_one(cli):
    first, second = (cli("record", ORDER).ok().split()[0] for _ in range(2))
    assert len(first) == 36
    assert first < second


def test_an_instance_can_be_recorded_and_replayed(cli):
    cli("record", "cli_instance:an_order", "--id", "a").ok()
    cli("replay", "run", "a", "--from-step", "ship").ok()


def test_the_context_comes_from_a_file_or_stdin(cli, place):
    (place / "order.json").write_bytes(b'\xef\xbb\xbf{"quantity": 7}')
    cli("record", ORDER, "--context", "@order.json", "--id", "a").ok()
    cli("record", ORDER, "--context", "-", "--id", "b", stdin=b'{"quantity": 8}').ok()
    at = ("--at", "2999-01-01T00:00:00Z", "--key")
    assert cli("replay", "time-travel", "a", *at, "parcel").ok() == "7 pieces\n"
    assert cli("replay", "time-travel", "b", *at, "parcel").ok() == "8 pieces\n"


def test_a_context_may_have_exact_types(cli):
    context = {"price": {"$decimal": "9.90"}, "at": {"$datetime": "2026-07-15T14:30:00+00:00"}}
    cli("record", ORDER, "--context", json.dumps(context), "--id", "a").ok()
    out = cli("replay", "time-travel", "a", "--at", "2999-01-01T00:00:00Z", "--format", "json").ok()
    assert json.loads(out)["context"].items() >= context.items()


@pytest.mark.parametrize(
    ("context", "says"),
    [
        ('{"a": 1,\n "b" 2}', "--context is not JSON: Expecting ':' delimiter at line 2, column 6"),
        ("", "--context is not JSON: Expecting value at line 1, column 1"),
        ('{"a', "--context is not JSON: Unterminated string starting at line 1, column 2"),
        ("[1, 2]", "--context is not a JSON object but [1, 2]"),
        ('"text"', "--context is not a JSON object but 'text'"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('{"a": {"$nothing": 1}}', "$nothing"),
        ('{"$dict": [[1, 2]]}', "--context is not a JSON object"),
        ('{"a": ' + "[" * 100_000, "--context is not JSON"),
        ('{"a": ' + "[" * 900 + "]" * 900 + "}", "deep"),
        ("@nothing.json", "--context: 'nothing.json' cannot be read: No such file"),
        ("@.", "--context: '.' cannot be read: Is a directory"),
        ("@binary", "--context: 'binary' is not UTF-8 text"),
        ("@a\0b", "--context: 'a\\x00b' cannot be read"),
    ],
)
def test_a_wrong_context_is_one_line_and_nothing_is_written(cli, place, context, says):
    (place / "binary").write_bytes(b"\xff\xfe\x00")
    assert says in cli("record", ORDER, "--context", context).fails()
    assert not Path(".sagaz").exists()
    assert effects() == []


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("cli_shop", "write MODULE:CLASS, such as shop.orders:OrderSaga"),
        ("cli_shop:", "write MODULE:CLASS"),
        ("cli_instance:Nothing", "module 'cli_instance' has no 'Nothing'; its sagas: 'an_order'"),
        ("cli_shop:OrderSagas", "module 'cli_shop' has no 'OrderSagas' (did you mean 'OrderSaga'?)"),
        ("cli_shopp:OrderSaga", "there is no module 'cli_shopp'"),
        ("cli_shop.more:OrderSaga", "no module"),
        ("cli_broken:Saga", "module 'cli_broken' cannot be imported: ValueError: broken module"),
        ("cli_leaves:Saga", "its module ends the process (3)"),
        ("cli_needs:Saga", "module 'cli_needs' cannot be imported: No module named 'nothing_like_this'"),
        ("cli_shop:NOT_A_SAGA", "7 is not a saga"),
        ("cli_shop:Money", "Money is not a saga"),
        ("cli_shop:EmptySaga", "saga 'EmptySaga' has no steps"),
        ("cli_shop:BareSaga", "BareSaga.__init__ must call super().__init__() before it uses the saga"),
        ("sagaz_core:Saga", "has no steps"),
        ("cli_shop:AbstractSaga", "cannot be made without arguments"),
        ("cli_shop:PickySaga", "cannot be made without arguments"),
        ("cli_shop:BrokenSaga", "BrokenSaga cannot be made: RuntimeError: no bank at all"),
        ("cli_shop:CycleSaga", "depend on each other in a circle: one -> two -> one"),
        ("cli_shop:MissingSaga", "depends on 'tow', which does not exist (did you mean 'two'?)"),
        (".:x", "module '.' cannot be imported"),
        ("..a:x", "'..a'"),
        ("é\x1b[31m:x", "there is no module"),
    ],
)
def test_a_wrong_saga_is_one_line_and_nothing_is_written(cli, spec, says):
    assert says in cli("record", spec).fails()
    assert not Path(".sagaz").exists()


def test_without_the_sagaz_package_a_saga_of_it_says_what_to_install(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "sagaz", None)
    assert cli("record", "sagaz:OrderSaga").fails() == (
        "there is no module 'sagaz': for the sagaz package, pip install 'pytest-sagaz[sagaz]'"
    )


def test_a_module_that_runs_a_loop_when_it_is_imported_can_be_recorded_and_replayed(shell):
    shell("record", "cli_runs:saga", "--id", "a").ok()
    assert "success" in shell("replay", "run", "a", "--from-step", "two").ok()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--plan", "chrage@after"), "has no step 'chrage' (did you mean 'charge'?)"),
        (("--plan", "charge@aftr"), "there is no kind of fault 'aftr' (did you mean 'after'?)"),
        (("--plan", "charge"), "'charge' is not a fault"),
        (("--plan", ""), "'' is not a fault"),
        (("--plan", "ship@undo-fail"), "step 'ship' cannot have it, it has no compensation"),
        (("--plan", "ship@hang"), "no timeout"),
        (("--store", "sqlite://x.db"), "too few slashes"),
        (("--store", "nosuch://x"), "unknown scheme"),
        (("--store", "x.db"), "is not a storage URL"),
        (("--id", ""), "is not a saga id"),
        (("--id", "x" * 256), "is not a saga id"),
        (("--id", "\udcff"), "is not a saga id"),
        (("--out", "no/such/folder.json"), "there is no folder 'no/such'"),
        (("--out", "."), "'.' is a folder"),
        (("--out", "there.json"), "there is a file 'there.json' already"),
        (("--out", "a\0b"), "it has a NUL"),
        (("--contxt", "{}"), "No such option"),
        (("--context",), "requires an argument"),
        (("more",), "unexpected extra argument"),
    ],
)
def test_a_wrong_option_is_one_line_and_nothing_is_written(cli, place, arguments, says):
    (place / "there.json").write_text("mine")
    assert says in cli("record", ORDER, *arguments).fails()
    assert not Path(".sagaz").exists()
    assert effects() == []
    assert (place / "there.json").read_text() == "mine"


def test_an_id_that_is_taken_is_refused_before_anything_runs(cli):
    cli("record", ORDER, "--id", "a").ok()
    before = effects()
    ran = cli("record", ORDER, "--id", "a", "--virtual-time")
    assert "there is a saga 'a' in the store" in ran.fails()
    assert "there is a saga 'a' in the store" in cli("record", ORDER, "--id", "a").fails()
    assert effects() == before


def test_two_writers_of_a_key_leave_no_recording(cli):
    says = cli("record", "cli_shop:ConflictSaga", "--id", "a").fails()
    assert "steps 'left' and 'right' run in parallel and both write the context key 'key'" in says
    assert effects() == ["undo left"]
    assert cli("recording", "list").out == ""
    assert "both write" in cli("record", "cli_shop:ConflictSaga", "--id", "a", "--virtual-time").fails()
    assert cli("recording", "list").out == ""


def test_a_typed_context_that_does_not_fit_is_one_line(cli):
    says = cli("record", "cli_shop:TypedSaga", "--context", '{"quantity": "many", "note": 3}').fails()
    assert "does not fit Order: quantity: Input should be a valid integer" in says
    assert not Path(".sagaz").exists()
    cli("record", "cli_shop:TypedSaga", "--context", '{"quantity": 2}').ok()


def test_a_result_that_cannot_be_stored_is_undone_and_said(cli):
    ran = cli("record", "cli_shop:SocketSaga", "--id", "a")
    assert "cannot be stored" in ran.fails(1)
    assert effects() == ["do one", "undo one"]
    assert status_of(cli, "a") == "rolled_back"


# ---- plans


def test_a_fault_that_never_happened_is_a_failure(cli):
    says = cli("record", ORDER, "--plan", "reserve@before+ship@after", "--id", "a").fails(1)
    assert says == "of the plan, ship@after never happened: the saga did not get there"
    assert status_of(cli, "a") == "rolled_back"


@pytest.mark.parametrize("time", ["--real-time", "--virtual-time"])
@pytest.mark.parametrize(("kind", "done"), [("crash", ["reserve"]), ("crash-recorded", ["reserve", "charge"])])
def test_a_planned_crash_leaves_what_a_crash_leaves(cli, time, kind, done):
    says = cli("record", ORDER, "--plan", f"charge@{kind}", "--id", "a", "--out", "a.json", time).fails(1)
    assert says.startswith(f"the process died here (simulated): charge@{kind}")
    assert effects() == ["do reserve", "do charge"]
    state = json.loads(cli("replay", "time-travel", "a", "--at", "2999-01-01T00:00:00Z", "--format", "json").ok())
    assert (state["status"], state["completed_steps"]) == ("executing", done)
    assert Path("a.json").exists()


def test_a_crash_in_a_compensation_leaves_the_rest_to_undo(cli):
    cli("record", ORDER, "--plan", "charge@undo-crash-recorded", "--id", "a").fails(1)
    state = json.loads(cli("replay", "time-travel", "a", "--at", "2999-01-01T00:00:00Z", "--format", "json").ok())
    assert (state["status"], state["compensated_steps"]) == ("compensating", ["charge"])


def test_a_planned_cancellation_is_an_end(cli):
    out = cli("record", ORDER, "--plan", "charge@cancel", "--id", "a").ok()
    assert "rolled back, 2 steps undone" in out
    assert effects() == ["do reserve", "do charge", "undo charge", "undo reserve R1"]


def test_a_late_effect_comes_after_its_own_compensation(cli):
    cli("record", ORDER, "--plan", "charge@late", "--virtual-time").ok()
    assert effects() == ["do reserve", "undo charge", "do charge", "undo reserve R1"]


def test_in_virtual_time_a_year_is_nothing_and_recorded_as_a_year(cli):
    cli("record", "cli_shop:YearSaga", "--virtual-time", "--id", "a", "--out", "a.json").ok()
    times = [event["at"] for event in json.loads(Path("a.json").read_text())["events"]]
    assert int(times[-1][:4]) - int(times[0][:4]) == 1


# ---- stores and settings


def test_the_store_is_the_option_s_else_the_environment_s_else_the_project_s(cli, place, monkeypatch):
    (place / "pyproject.toml").write_text('[tool.sagaz]\nstore = "sqlite:///project.db"\n')
    cli("record", ORDER, "--id", "a").ok()
    monkeypatch.setenv("SAGAZ_STORE", "sqlite:///environment.db")
    cli("record", ORDER, "--id", "b").ok()
    out = cli("record", ORDER, "--id", "c", "--store", "sqlite:///option.db").ok()
    assert "--sagaz-store=sqlite:///option.db" in out
    found = {
        name: cli("recording", "list", "--store", f"sqlite:///{name}.db").ok().split("  ")[0]
        for name in ("project", "environment", "option")
    }
    assert found == {"project": "a", "environment": "b", "option": "c"}
    assert not Path(".sagaz").exists()


def test_the_command_that_proves_a_saga_names_a_store_with_secrets_without_them(cli):
    with own_valkey() as server:
        out = cli("record", ORDER, "--id", "a", "--store", server.url.replace("//", "//:PSSWD@")).ok()
        shown = server.url.replace("//", "//:***@")
        assert out.splitlines()[-1].endswith(f"pytest --sagaz-replay=a '--sagaz-store={shown}'")
        assert "PSSWD" not in out


def test_a_store_that_is_no_store_is_one_line(cli, place):
    (place / "no.db").write_text("this is a text, and no database at all" * 100)
    assert "no.db" in cli("record", ORDER, "--store", "sqlite:///no.db").fails()
    assert effects() == []


def test_an_existing_output_is_overwritten_by_force(cli, place):
    (place / "a.json").write_text("old")
    cli("record", ORDER, "--out", "a.json", "--force").ok()
    assert json.loads((place / "a.json").read_text())["format"] == "sagaz-recording"


HOSTILE = [
    "--help",
    "../../etc/passwd",
    "a b",
    "é😀",
    "\x1b[31mred\nline",
    "‮rtl",
    "'; DROP TABLE sagas; --",
    "%s%n",
    "a\0b",
]


@pytest.mark.parametrize("saga_id", HOSTILE)
def test_any_text_can_be_an_id(cli, saga_id):
    out = cli("record", ORDER, f"--id={saga_id}").ok()
    assert all(line.isprintable() for line in out.splitlines())
    out = cli("recording", "list").ok()
    assert len(out.splitlines()) == 1
    assert out.rstrip("\n").isprintable()
    assert cli("replay", "checkpoints", "--", saga_id).ok() == "reserve\ncharge\nship\n"
    assert cli("replay", "run", "--from-step=ship", "--", saga_id).code == 0
    assert "ship" in cli("replay", "history", "--", saga_id).ok()


# ---- processes


def test_a_killed_process_leaves_a_recording_to_go_on_from(start, read_until, cli):
    process = start("record", "cli_shop:SlowSaga", "--id", "dead", "--context", '{"quick": false}')
    read_until(process, "start   charge")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert effects() == ["do reserve"]
    assert cli("replay", "checkpoints", "dead").ok() == "reserve\ncharge\n"
    state = json.loads(cli("replay", "time-travel", "dead", "--at", "2999-01-01T00:00:00Z", "--format", "json").ok())
    assert (state["status"], state["completed_steps"], state["current_step"]) == ("executing", ["reserve"], "charge")
    assert state["context"] == {"quick": False, "reservation": "R1"}
    out = cli("replay", "run", "dead", "--from-step", "charge", "--override", "quick=true").ok()
    assert "served:    reserve\n" in out
    assert "ran:       charge\n" in out
    assert effects() == ["do reserve", "do charge"]
    assert status_of(cli, "dead") == "executing"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_saga_undoes_what_it_did(start, read_until, cli, number, code):
    process = start("record", "cli_shop:SlowSaga", "--id", "a")
    read_until(process, "start   charge")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, (out, err)
    assert err == f"sagaz: stopped by {signal.Signals(number).name}; the saga is rolled back\n"
    assert "undone  reserve" in out
    assert effects() == ["do reserve", "undo reserve"]
    assert status_of(cli, "a") == "rolled_back"


def test_a_second_signal_stops_at_once(start, read_until, cli):
    process = start("record", "cli_shop:StubbornSaga", "--id", "a")
    read_until(process, "start   charge")
    process.send_signal(signal.SIGTERM)
    read_until(process, "undo    reserve")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert status_of(cli, "a") == "compensating"


def test_processes_record_into_one_new_store_at_once(start, cli):
    processes = [start("record", ORDER, "--id", f"saga-{number}") for number in range(4)]
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
    rows = json.loads(cli("recording", "list", "--format", "json").ok())["sagas"]
    assert [(row["saga_id"], row["status"]) for row in rows] == [(f"saga-{n}", "completed") for n in range(4)]


def test_of_two_processes_with_one_id_one_runs(start, cli):
    processes = [start("record", ORDER, "--id", "same") for _ in range(2)]
    ended = [(process.communicate(timeout=60), process.returncode) for process in processes]
    assert sorted(code for _, code in ended) == [0, 2], ended
    assert effects() == ["do reserve", "do charge", "do ship"]
    assert status_of(cli, "same") == "completed"


def test_a_closed_output_does_not_stop_a_saga(start, cli):
    process = start("record", ORDER, "--id", "a")
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert status_of(cli, "a") == "completed"


def test_the_output_is_plain_in_a_pipe_and_in_any_encoding(shell):
    out = shell("record", ORDER, "--id", "\U0001f600", env={"PYTHONIOENCODING": "latin-1", "FORCE_COLOR": "1"}).ok()
    assert out.startswith("\\U0001f600  shop-order")
    assert "\x1b" not in out


def test_an_error_shows_its_traceback_when_asked(cli, monkeypatch):
    monkeypatch.setenv("SAGAZ_DEBUG", "1")
    ran = cli("record", "cli_shop:CycleSaga")
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("sagaz: ")


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is needed")
def test_a_terminal_has_colours_unless_no_color(start):
    import os
    import pty

    for environment, coloured in [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)]:
        ours, theirs = pty.openpty()
        process = start("record", ORDER, stdout=theirs, env=environment)
        os.close(theirs)
        seen = b""
        try:
            while data := os.read(ours, 4096):
                seen += data
        except OSError:  # the end of a pseudo-terminal
            pass
        os.close(ours)
        assert process.wait() == 0
        assert (b"\x1b[" in seen) is coloured


SIGNALLED = """
import asyncio, signal, threading
from sagaz_core.cli.running import Signals

signals = Signals()

def deliver():
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

async def waits():
    threading.Timer(0.1, deliver).start()
    await asyncio.Event().wait()

with signals.handled():
    try:
        asyncio.run(signals.guard(waits()))
    except asyncio.CancelledError:
        print("cancelled", signals.received)
"""


def test_a_signal_that_does_not_interrupt_the_waiting_loop_wakes_it_all_the_same():
    ran = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=30, check=False)
    assert (ran.stdout, ran.stderr, ran.returncode) == (f"cancelled {int(signal.SIGTERM)}\n", "", 0)


def test_a_saga_is_stopped_by_ctrl_c_where_the_shell_has_it_ignored(start, read_until):
    signal_before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for a command that a script puts behind with &
    try:
        process = start("record", "cli_shop:SlowSaga", "--id", "a")
    finally:
        signal.signal(signal.SIGINT, signal_before)
    read_until(process, "start   charge")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "sagaz: stopped by SIGINT; the saga is rolled back\n")
