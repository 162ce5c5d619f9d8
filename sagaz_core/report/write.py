"""Writing the report: `index.html`, one page that needs nothing else, and `sagaz-report.json`, the same as data."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sagaz_core.errors import UsageError
from sagaz_core.report.page import page

if TYPE_CHECKING:
    from sagaz_core.prove.coverage import Coverage

PAGE, DATA = "index.html", "sagaz-report.json"


def check_folder(folder: Path, where: str) -> None:
    """Make the folder if it is not there. Raises `UsageError` that begins with `where` when it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".sagaz-"):
            pass
        for name in (PAGE, DATA):
            if (folder / name).is_dir():
                raise IsADirectoryError(None, f"{name} in it is a folder")
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{where} {folder}: it cannot be written to ({reason}); name another folder") from error


def write_report(folder: Path, coverage: Coverage) -> None:
    """Write both files: each is the old one or the new one whenever it is looked at, and never a part."""
    text = json.dumps(coverage.to_json(), indent=1) + "\n"
    for name, content in ((DATA, text), (PAGE, page(coverage))):
        _replace(folder / name, content.encode("utf-8", "backslashreplace"))


def _replace(path: Path, content: bytes) -> None:
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
