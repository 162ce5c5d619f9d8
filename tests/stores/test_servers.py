"""The servers that tests start leave nothing behind, not even when the tests are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.servers import remove_abandoned

if TYPE_CHECKING:
    from pathlib import Path


def test_only_folders_of_runs_that_are_no_more_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {
        f"sagaz-test-{ended.pid}-a1": False,
        f"sagaz-test-{os.getpid()}-a1": True,
        "sagaz-test-1-a1": True,  # which runs, and belongs to another user where this is not root
        "sagaz-test-a1b2": True,
        f"other-{ended.pid}-a1": True,
    }
    for name in names:
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "page").write_bytes(b"x")
    remove_abandoned(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names
