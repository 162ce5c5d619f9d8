"""The command line, called in this process or as a process of its own, in a folder of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APPS = Path(__file__).parent / "apps"
COMMAND = (sys.executable, "-m", "sagaz_core.cli")


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def ok(self) -> str:
        """Return the output of a command that must succeed."""
        assert (self.code, self.err) == (0, ""), self
        return self.out

    def fails(self, code: int = 2) -> str:
        """Return the one line of a command that must fail so."""
        assert self.code == code, self
        assert self.err.startswith("sagaz: "), self
        assert self.err.count("\n") == 1, self
        assert self.err.endswith("\n"), self
        assert "Traceback" not in self.out + self.err
        return self.err.removeprefix("sagaz: ").rstrip("\n")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, from which the test sagas can be imported."""
    for name in ("SAGAZ_STORE", "SAGAZ_DEBUG", "SAGAZ_REDACT_KEY", "NO_COLOR", "FORCE_COLOR", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(APPS))
    return tmp_path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Call the command in this process."""

    def call(*arguments: str, stdin: bytes = b"") -> Ran:
        from sagaz_core.cli.app import main

        monkeypatch.setattr(sys, "argv", ["sagaz", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        return Ran(int(ended.value.code or 0), written.out, written.err)

    return call


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command as a process; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def call(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(APPS), *filter(None, sys.path)])}
        environment.update(options.pop("env", {}))
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            **options,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def shell(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Ran]:
    """Run the command as a process."""

    def call(*arguments: str, **options: Any) -> Ran:
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=60)
        return Ran(process.returncode, out or "", err)

    return call


@pytest.fixture
def read_until() -> Callable[[subprocess.Popen[str], str], str]:
    """Read what a process prints, up to the line that has the text."""

    def read(process: subprocess.Popen[str], text: str) -> str:
        assert process.stdout is not None
        assert process.stderr is not None
        seen = ""
        for line in process.stdout:
            seen += line
            if text in line:
                return seen
        raise AssertionError(f"it ended without {text!r}: {seen} {process.stderr.read()}")

    return read
