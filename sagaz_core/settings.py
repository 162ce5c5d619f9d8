"""The project's settings: `[tool.sagaz]` in pyproject.toml, and where snapshots are kept unless one says otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from sagaz_core.errors import UsageError

DEFAULT_STORE = "sqlite:///.sagaz/sagaz.db"
"""The embedded store, below the current folder."""

_FILE = "pyproject.toml"


class Settings(NamedTuple):
    """What `[tool.sagaz]` says: modules that have saga classes, the store's URL, and the folder of the file."""

    sagas: tuple[str, ...] = ()
    store: str | None = None
    folder: Path | None = None


def project_settings(folder: str | os.PathLike[str] | None = None) -> Settings:
    """Return the settings of the nearest pyproject.toml, in that folder (the current one) or above it.

    Raises `UsageError` that names the file and the key when it cannot be read, or has another type.
    """
    start = Path(folder or os.getcwd()).absolute()
    for parent in (start, *start.parents):
        path = parent / _FILE
        if path.is_file():
            return _settings(path)
    return Settings()


def store_url(given: str | None = None, settings: Settings | None = None) -> str:
    """Return the URL of the store: the one given, or of SAGAZ_STORE, or of `[tool.sagaz]`, or `DEFAULT_STORE`.

    One that is given and empty, as a shell makes it of a variable that is not set, stands for no other.
    """
    if given is not None:
        return given
    url = os.environ.get("SAGAZ_STORE")
    if url:
        return url
    return (project_settings() if settings is None else settings).store or DEFAULT_STORE


def _settings(path: Path) -> Settings:
    table: Any = _read(path)
    for key in ("tool", "sagaz"):
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise UsageError(f"{path}: {'tool' if key == 'tool' else 'tool.sagaz'} is not a table: write [tool.sagaz]")
    sagas, store = table.get("sagas", []), table.get("store")
    if not isinstance(sagas, list) or not all(isinstance(module, str) and module for module in sagas):
        raise UsageError(f'{path}: tool.sagaz.sagas is not a list of modules: write sagas = ["shop.orders"]')
    if store is not None and (not isinstance(store, str) or not store):
        raise UsageError(f'{path}: tool.sagaz.store is not a text: write store = "{DEFAULT_STORE}"')
    return Settings(tuple(sagas), store, path.parent)


def _read(path: Path) -> dict[str, Any]:
    import tomllib  # most commands and test runs have no use for it

    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no TOML, or no UTF-8
        raise UsageError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
