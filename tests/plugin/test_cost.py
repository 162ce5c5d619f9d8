"""What the plugin costs a run that has no sagas: a handful of small modules."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from shops import Shop

CONFTEST = """
import atexit, json, sys

def pytest_unconfigure(config):
    with open({name!r}, "w") as file:
        json.dump(sorted(sys.modules), file)
"""
HEAVY = ("asyncio", "freezegun", "hypothesis", "ormsgpack", "pydantic", "sagaz", "sagaz_core", "syrupy", "zstandard")


def modules(shop: Shop, *args: str) -> set[str]:
    """Return what a run in a process of its own has imported at its end."""
    shop.write("conftest", CONFTEST.format(name="modules.json"))
    others = [
        "syrupy",
        "xdist",
        "xdist.looponfail",
        "hypothesispytest",
        "randomly",
        "time_machine",
        "anyio",
        "asyncio",
        "valkey",
    ]
    blocked = [option for name in others for option in ("-p", f"no:{name}")]
    result = shop.pytester.runpytest_subprocess(*blocked, *args)
    assert result.ret == pytest.ExitCode.OK, result.stdout.str() + result.stderr.str()
    return set(json.loads((shop.path / "modules.json").read_text()))


@pytest.fixture
def plain(shop: Shop) -> Shop:
    shop.write("test_a", "import pytest\n\n@pytest.mark.parametrize('a', [1, 2])\ndef test_it(a, tmp_path): pass")
    return shop


def test_a_run_without_sagas_imports_at_most_six_modules_of_ours_and_no_heavy_one(plain: Shop) -> None:
    with_it, without = modules(plain), modules(plain, "-p", "no:sagaz")
    brought = with_it - without
    ours = {name for name in brought if name.partition(".")[0] in ("pytest_sagaz", "sagaz_core")}
    assert ours == {"pytest_sagaz", "pytest_sagaz.fixtures", "pytest_sagaz.options", "pytest_sagaz.plugin"}
    assert {name.partition(".")[0] for name in brought} == {"pytest_sagaz"}
    assert not {name for name in brought if name.partition(".")[0] in HEAVY}


def test_the_markers_alone_import_nothing(plain: Shop) -> None:
    plain.write("test_a", "import pytest_sagaz\nfrom pytest_sagaz import force_failure\n\ndef test_it(): pass")
    assert not {name for name in modules(plain) if name.partition(".")[0] in HEAVY}


def test_a_replay_imports_no_engine_but_the_saga_s(plain: Shop) -> None:
    plain.record()
    assert "sagaz" not in modules(plain, "--sagaz-replay=ORDER-1")
