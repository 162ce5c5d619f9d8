"""The server process that what is killed is forked from, as its parent sees it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sagaz_core.errors import SagazError, UsageError
from sagaz_core.prove._kill_process import FRESH


class KillError(SagazError):
    """The processes could not be run to what was wanted of them, which says nothing of the saga's soundness."""


class Server:
    """Starts the server when it is first needed, and again when `sys.path` has changed. Close it.

    It is an interpreter of its own because a fork of this one would take over the locks that other threads hold.
    """

    def __init__(self, *, fork: bool, workers: int) -> None:
        self._fork = fork
        self._workers = workers
        self._process: subprocess.Popen[str] | None = None
        self._path: list[str] = []
        self._busy = False

    def run(self, jobs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Run the jobs and return each one's answer as it comes. Whoever does not take them all ends those that run."""
        process = self._started()
        self._busy = True
        self._send(process, {"jobs": jobs, "fork": self._fork, "workers": self._workers})
        for _ in jobs:
            yield self._answer(process)
        self._busy = False

    def close(self) -> None:
        """End the server, and what still runs."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            if self._busy:
                _end_group(process)
            with suppress(OSError):
                process.stdin.close()
            process.wait()
            process.stdout.close()
        self._busy = False

    def _started(self) -> subprocess.Popen[str]:
        path = [entry or os.getcwd() for entry in sys.path]
        if self._process is not None and path == self._path and not self._busy and self._process.poll() is None:
            return self._process
        self.close()
        self._path = path
        self._process = subprocess.Popen(
            [sys.executable, "-c", FRESH.format(function="serve")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for us; the server ends when its input does
        )
        self._send(self._process, {"path": path})
        return self._process

    def _send(self, process: subprocess.Popen[str], data: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(data) + "\n")
            process.stdin.flush()
        except OSError as error:
            raise self._ended(process) from error

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise self._ended(process)
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise UsageError(f"in the process that is to be killed: {answer['problem']}")
        return answer

    def _ended(self, process: subprocess.Popen[str]) -> KillError:
        return KillError(
            f"the interpreter that runs what is killed has ended with exit code {process.wait()}: "
            f"look above for what it wrote"
        )


def _end_group(process: subprocess.Popen[str]) -> None:
    if hasattr(os, "killpg"):  # it leads a session of its own
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
