"""The `sagaz` command as a whole: what it loads, what it hands over, and the project's settings."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from sagaz_core.errors import UsageError
from sagaz_core.settings import DEFAULT_STORE, Settings, project_settings, store_url

HEAVY = "asyncio pydantic rich ormsgpack sqlite3 logging sagaz freezegun pluggy zstandard"


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['sagaz', '--help']\nfrom sagaz_core.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "loaded = [m for m in sys.modules if m.startswith('sagaz_core')]\n"
        f"print('LOADED', *(m for m in '{HEAVY}'.split() if m in sys.modules))\nprint('OURS', *sorted(loaded))"
    )
    ran = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"],
                         capture_output=True, text=True, check=True)  # fmt: skip
    lines = ran.stdout.splitlines()
    assert lines[-2] == "LOADED"
    assert lines[-1].split()[1:] == [
        "sagaz_core",
        "sagaz_core.cli",
        "sagaz_core.cli.app",
        "sagaz_core.cli.failure",
        "sagaz_core.cli.text",
        "sagaz_core.errors",
    ]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_our_commands_and_says_where_others_go(cli, arguments):
    out = cli(*arguments).ok()
    for command in ("record", "recording", "replay"):
        assert f"\n  {command} " in out
    assert "sagaz package" in out


@pytest.mark.parametrize(
    "command",
    [
        ("record",),
        ("replay",),
        ("replay", "run"),
        ("replay", "time-travel"),
        ("replay", "list-changes"),
        ("replay", "history"),
        ("replay", "checkpoints"),
        ("recording",),
        ("recording", "export"),
        ("recording", "import"),
        ("recording", "show"),
        ("recording", "list"),
    ],
)
def test_every_command_has_help(cli, command):
    assert cli(*command, "--help").ok().startswith(f"Usage: sagaz {' '.join(command)} ")


# ---- handing over


def fake_package(place: Path, body: str) -> None:
    (place / "sagaz").mkdir()
    (place / "sagaz" / "__init__.py").write_text("")
    (place / "sagaz" / "cli.py").write_text(body)


def test_other_commands_are_handed_over_whole_with_their_exit_code(shell, place):
    fake_package(place, "import sys\ndef main():\n    print('theirs', *sys.argv[1:])\n    sys.exit(7)\n")
    here = {"PYTHONPATH": f"{place}:{Path(__file__).parents[2]}"}
    for arguments in (["init", "--local", "é"], ["dry-run"], ["--version"], ["repaly"]):
        ran = shell(*arguments, env=here)
        assert (ran.code, ran.out, ran.err) == (7, f"theirs {' '.join(arguments)}\n", "")
    for arguments in (["replay", "--help"], ["record", "--help"], ["recording", "--help"], ["--help"], []):
        assert "theirs" not in shell(*arguments, env=here).ok()


def test_a_package_that_returns_is_a_success(shell, place):
    fake_package(place, "def main():\n    print('theirs')\n")
    assert shell("init", env={"PYTHONPATH": f"{place}:{Path(__file__).parents[2]}"}).ok() == "theirs\n"


@pytest.mark.parametrize(
    ("word", "code", "hint"), [("repaly", 2, "did you mean 'replay'"), ("repaly", 1, ""), ("init", 2, "")]
)
def test_a_command_of_ours_that_is_misspelt_is_named_when_theirs_has_refused_it(shell, place, word, code, hint):
    fake_package(place, f"import sys\ndef main():\n    sys.exit({code})\n")
    ran = shell(word, env={"PYTHONPATH": f"{place}:{Path(__file__).parents[2]}"})
    assert (ran.code, hint in ran.err, bool(ran.err)) == (code, True, bool(hint))


def test_the_version_of_pytest_sagaz_is_its_own(cli, monkeypatch, capsys):
    from sagaz_core.cli.app import main

    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest-sagaz", "--version"])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capsys.readouterr().out.split()[0]) == (0, "pytest-sagaz")


def test_a_package_that_cannot_be_imported_is_one_line(shell, place):
    fake_package(place, "import click_is_missing\n")
    says = shell("init", env={"PYTHONPATH": f"{place}:{Path(__file__).parents[2]}"}).fails()
    assert says == "the command line of the sagaz package cannot be imported: No module named 'click_is_missing'"


def test_without_the_package_another_command_is_one_line(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "sagaz", None)
    monkeypatch.delitem(sys.modules, "sagaz.cli", raising=False)
    says = cli("recrod").fails()
    assert "there is no command 'recrod' (did you mean 'record'?)" in says
    assert "pip install 'pytest-sagaz[sagaz]'" in says
    assert "there is no option '--frobnicate'" in cli("--frobnicate").fails()


def test_without_the_package_the_version_is_ours(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "sagaz", None)
    monkeypatch.delitem(sys.modules, "sagaz.cli", raising=False)
    assert cli("--version").ok() == f"pytest-sagaz {importlib.metadata.version('pytest-sagaz')}\n"


def test_the_real_package_answers_its_commands(shell):
    pytest.importorskip("sagaz.cli")
    assert shell("--version").ok().startswith("sagaz, version")
    assert shell("no-such-command").code == 2


def test_both_names_are_the_same_command():
    points = importlib.metadata.distribution("pytest-sagaz").entry_points
    scripts = {point.name: point.value for point in points if point.group == "console_scripts"}
    assert scripts == dict.fromkeys(("sagaz", "pytest-sagaz"), "sagaz_core.cli:main")


# ---- sagas of the sagaz package


def test_a_saga_of_the_package_is_recorded_in_no_time_and_replayed(shell):
    pytest.importorskip("sagaz")
    saga = "sagaz.examples.commerce.order_processing.main:OrderProcessingSaga"
    context = '{"order_id": "A1", "user_id": "u", "items": [{"id": "W1", "quantity": 1}], "total_amount": 9.5}'
    ran = shell("record", saga, "--context", context, "--id", "a")
    assert ran.code == 0, ran
    assert "  done    create_shipment" in ran.out
    ran = shell("record", saga, "--context", context, "--id", "b", "--plan", "create_shipment@before")
    assert ran.code == 0, ran
    assert "  undone  process_payment" in ran.out
    assert "cannot take up a run" in shell("record", saga, "--plan", "create_shipment@crash").err
    ran = shell("replay", "run", "a", "--from-step", "create_shipment")
    assert ran.code == 0, ran
    assert "served:    reserve_inventory, process_payment" in ran.out


# ---- settings


def test_the_nearest_pyproject_counts(place):
    inner = place / "one" / "two"
    inner.mkdir(parents=True)
    assert project_settings(inner) == Settings()
    (place / "pyproject.toml").write_text('[tool.sagaz]\nsagas = ["shop.orders"]\nstore = "memory://"\n')
    assert project_settings(inner) == Settings(("shop.orders",), "memory://", place)
    (place / "one" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert project_settings(inner) == Settings((), None, place / "one")
    assert project_settings() == Settings(("shop.orders",), "memory://", place)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tool.sagaz", "cannot be read"),
        ('tool = "x"', "tool is not a table"),
        ("[tool]\nsagaz = 1", "tool.sagaz is not a table"),
        ('[tool.sagaz]\nsagas = "shop"', "tool.sagaz.sagas is not a list of modules"),
        ("[tool.sagaz]\nsagas = [1]", "tool.sagaz.sagas is not a list of modules"),
        ("[tool.sagaz]\nstore = 1", "tool.sagaz.store is not a text"),
        ("\xff", "cannot be read"),
    ],
)
def test_wrong_settings_name_the_file_and_the_key(cli, place, text, says):
    path = place / "pyproject.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as raised:
        project_settings()
    assert str(path) in str(raised.value)
    assert says in str(raised.value)
    assert says in cli("record", "cli_shop:OrderSaga").fails()
    assert sorted(entry.name for entry in place.iterdir()) == ["pyproject.toml"]


def test_the_store_is_chosen_in_order(place, monkeypatch):
    assert store_url() == DEFAULT_STORE == "sqlite:///.sagaz/sagaz.db"
    (place / "pyproject.toml").write_text('[tool.sagaz]\nstore = "sqlite:///p.db"\n')
    assert store_url() == "sqlite:///p.db"
    monkeypatch.setenv("SAGAZ_STORE", "sqlite:///e.db")
    assert store_url() == "sqlite:///e.db"
    assert store_url("sqlite:///o.db") == "sqlite:///o.db"
    monkeypatch.setenv("SAGAZ_STORE", "")
    assert store_url() == "sqlite:///p.db"
