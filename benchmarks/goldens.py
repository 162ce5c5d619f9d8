"""What a golden costs: ours beside syrupy's SingleFileSnapshotExtension, each a pytest of its own.

    python benchmarks/goldens.py [COUNT ...]        200 and 1000 by default; syrupy 4.7 needs minutes for 1000 modules

For each count of goldens, as the tests of one module and as a module each: the seconds of a run that writes them all
(`--snapshot-update`), of one that compares them, and of the same tests without a golden, which is pytest itself.
"above" is what the first two took above that.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

CONFTEST = """
import pytest
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

class Text(SingleFileSnapshotExtension):
    _write_mode = WriteMode.TEXT
    file_extension = _file_extension = "txt"

@pytest.fixture
def ours(request):
    from pytest_sagaz.goldens import golden_fixture
    return golden_fixture(request)

@pytest.fixture
def syrupys(snapshot):
    return snapshot.use_extension(Text)

@pytest.fixture
def neither():
    class Anything:
        def __eq__(self, other): return True
    return Anything()
"""
TEXT = "\n".join(
    f"  {number:2}  reserve_inventory  do    stock -1  {{'reservation_id': 'R-1'}}" for number in range(20)
)
PYTEST = (sys.executable, "-m", "pytest", "-q", *("-p", "no:sagaz", "-p", "no:randomly", "-p", "no:cacheprovider"))


def write_tests(folder: Path, fixture: str, count: int, modules: int) -> None:
    folder.joinpath("conftest.py").write_text(CONFTEST)
    for module in range(modules):
        tests = (
            f"def test_{number}({fixture}):\n    assert {f'{module} {number}' + TEXT!r} == {fixture}\n"
            for number in range(count // modules)
        )
        folder.joinpath(f"test_{module}.py").write_text("\n".join(tests))


def seconds(folder: Path, *options: str) -> float:
    began = time.perf_counter()
    result = subprocess.run([*PYTEST, *options], cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stdout)
    return time.perf_counter() - began


def main() -> None:
    counts = [int(count) for count in sys.argv[1:]] or [200, 1000]
    print(f"syrupy {version('syrupy')}, pytest {version('pytest')}; seconds a run")
    print(f"{'goldens':>8} {'modules':>8}  {'':8} {'write':>7} {'compare':>8} {'both':>7} {'above':>7}")
    for count in counts:
        for modules in (1, count):
            floor = 0.0
            for fixture in ("neither", "ours", "syrupys"):
                with tempfile.TemporaryDirectory() as name:
                    write_tests(Path(name), fixture, count, modules)
                    seconds(Path(name), "--collect-only")  # compiles the tests
                    wrote, compared = seconds(Path(name), "--snapshot-update"), seconds(Path(name))
                total = wrote + compared
                floor = floor or total
                times = f"{wrote:7.2f} {compared:8.2f} {total:7.2f} {total - floor:7.2f}"
                print(f"{count:8} {modules:8}  {fixture:8} {times}", flush=True)


if __name__ == "__main__":
    main()
