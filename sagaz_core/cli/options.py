"""Options that several commands have, and what they name: a store, modules, a recorded saga."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from sagaz_core.errors import UnknownSagaClassError, UnknownSagaError, UsageError
from sagaz_core.settings import Settings, project_settings, store_url

if TYPE_CHECKING:
    from sagaz_core.recording import Recording
    from sagaz_core.storage.base import SagaRecord, SnapshotStorage

F = TypeVar("F", bound=Callable[..., Any])


class NumberRange(click.FloatRange):
    """A number from `min` to `max`; `nan`, which compares with nothing, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number that the text says."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


def store_option(function: F) -> F:
    """Add --store."""
    return click.option("--store", metavar="URL", help="Where snapshots are kept, such as sqlite:///path/to/file.db.")(
        function
    )


def app_option(function: F) -> F:
    """Add --app."""
    return click.option(
        "--app",
        "apps",
        metavar="MODULE",
        multiple=True,
        help="A module that has saga classes; repeatable. Default: `sagas` under [tool.sagaz] in pyproject.toml.",
    )(function)


def format_option(function: F) -> F:
    """Add --format."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(["text", "table", "json"]),
        default="text",
        show_default=True,
        help="json is exact and complete, for programs: it hides no secrets.",
    )(function)


def secrets_option(function: F) -> F:
    """Add --show-secrets."""
    return click.option(
        "--show-secrets",
        "secrets",
        is_flag=True,
        help="Show values under keys that sound secret (password, token, iban…), which are *** in text and table.",
    )(function)


def settings_and_path() -> Settings:
    """Return the project's settings, having made its folder and the current one importable."""
    from sagaz_core.adapters.locate import make_importable

    settings = project_settings()
    if settings.sagas and settings.folder is not None:
        make_importable(str(settings.folder))
    make_importable()
    return settings


@contextlib.asynccontextmanager
async def opened(store: str | None, settings: Settings | None = None) -> AsyncIterator[SnapshotStorage]:
    """Give the store, and close it."""
    from sagaz_core.storage.url import open_storage

    storage = open_storage(store_url(store, settings))
    try:
        yield storage
    finally:
        await storage.close()


class Found(NamedTuple):
    """A recorded saga: where it is, its id, and its recording if it is a file's."""

    storage: SnapshotStorage
    saga_id: str
    file: Recording | None = None


async def find(storage: SnapshotStorage, target: str) -> Found:
    """Return the recorded saga that an argument names: an id in the store, else a file.

    A file is read into memory; nothing of it is trusted: no class is imported for it, and where it says that its saga
    is does not count.
    """
    from sagaz_core.engine.load import load_record
    from sagaz_core.storage.base import MAX_ID_LENGTH, checked_id

    path = Path(target)
    fits = 1 <= len(target) <= MAX_ID_LENGTH
    if fits and await storage.get_saga(checked_id(target)) is not None:
        return Found(storage, target)
    if _is_there(path) or path.suffix == ".json" or (os.sep in target and not fits):
        return await _from_file(path)
    try:
        await load_record(storage, checked_id(target))
    except UnknownSagaError as error:
        raise UnknownSagaError(f"{error}, and no such file") from None
    return Found(storage, target)


def apps_of(record: SagaRecord, apps: Sequence[str], settings: Settings) -> tuple[str, ...]:
    """Return the modules in which its class is: those given; else the project's, if it is there or nowhere else."""
    from sagaz_core.adapters.locate import find_saga

    if apps or not settings.sagas:
        return tuple(apps)
    try:
        find_saga(record.saga_name, settings.sagas)
    except UnknownSagaClassError:
        if record.source:
            return ()
    return settings.sagas


async def _from_file(path: Path) -> Found:
    from dataclasses import replace

    from sagaz_core.recording import Recording
    from sagaz_core.storage.codec import opaque_class
    from sagaz_core.storage.memory import InMemorySnapshotStorage

    loaded = Recording.load(path, resolve=opaque_class)
    memory = InMemorySnapshotStorage()
    untrusted = replace(loaded, record=loaded.record._replace(source=""))
    await untrusted.to_storage(memory)
    return Found(memory, loaded.saga_id, loaded)


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL
        return False


def checked_output(path: str, *, force: bool) -> Path:
    """Return the path of a file to write. Raises `UsageError` when it is there already, or cannot be."""
    out = Path(path)
    if "\0" in path:
        raise UsageError(f"{path!r:.200} cannot be a file: it has a NUL")
    try:
        if out.is_dir():
            raise UsageError(f"{path!r} is a folder: name a file in it")
        if out.exists() and not force:
            raise UsageError(f"there is a file {path!r} already: name another, or overwrite it with --force")
        if not out.parent.is_dir():
            raise UsageError(f"there is no folder {str(out.parent)!r}: make it first")
        if not os.access(out.parent, os.W_OK):
            raise UsageError(f"the folder {str(out.parent)!r} cannot be written to")
    except OSError as error:
        raise UsageError(f"{path!r:.200} cannot be written: {error.strerror or error}") from error
    return out


def read_json(text: str, what: str) -> Any:
    """Return what a JSON text holds. `{"$decimal": "9.99"}` and its like give exact types, as `--format json` writes
    them. Raises `UsageError` that says where it is wrong.
    """
    import json

    from sagaz_core.errors import CodecError
    from sagaz_core.storage.codec import known_class
    from sagaz_core.storage.jsonform import from_json, parse_json

    try:
        plain = parse_json(text, parse_constant=_no_constant, object_pairs_hook=_no_doubles)
    except json.JSONDecodeError as error:
        why = error.msg.removesuffix(" at")  # some say "starting at"
        raise UsageError(f"{what} is not JSON: {why} at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} is not JSON: {error}") from None
    try:
        return from_json(plain, resolve=known_class)
    except CodecError as error:
        raise UsageError(
            f'{what}: {error} (a key that begins with $ gives a type, such as {{"$decimal": "9.99"}}; '
            f'{{"$dict": [["$key", 1]]}} is a plain one)'
        ) from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _no_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def read_context(text: str) -> dict[str, Any]:
    """Return what `--context` says. Raises `UsageError` for what is no JSON object, or cannot be stored."""
    from sagaz_core.cli.text import show
    from sagaz_core.storage.codec import encode

    context = read_json(read_argument(text, "--context"), "--context")
    if not isinstance(context, dict) or not all(isinstance(key, str) for key in context):
        raise UsageError(f'--context is not a JSON object but {show(context)[:60]}: write {{"key": "value"}}')
    encode(context, "context")
    return context


def read_argument(text: str, what: str) -> str:
    """Return the text of an option: as given, of `@FILE`, or of `-` (stdin). Raises `UsageError`."""
    if text != "-" and not text.startswith("@"):
        return text
    where = "standard input" if text == "-" else repr(text[1:])
    try:
        data = sys.stdin.buffer.read() if text == "-" else Path(text[1:]).read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{what}: {where} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{what}: {where} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{what}: {where} cannot be read: {error}") from None
