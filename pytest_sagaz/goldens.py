"""Golden files: `assert outcome == saga_golden` compares a saga's trace with a text file kept next to the test.

Each assertion has one file, `__sagas__/<test module>/<test>.saga` beside the test module. In `test_orders.py`:

    test_ship                        __sagas__/test_orders/test_ship.saga
    its second assertion             __sagas__/test_orders/test_ship.1.saga
    saga_golden(name="late")         __sagas__/test_orders/test_ship[late].saga
    TestRefund::test_ship[charge-2]  __sagas__/test_orders/TestRefund.test_ship[charge-2].saga
    test_ship[W1/5]                  __sagas__/test_orders/test_ship[W1_5]-3f0c9a72d1.saga

A file name is a function of the test's own name, whatever else is collected. Where two names could meet in one file (a
character replaced, a long name cut, names that differ only in case) a hash of the exact name keeps them apart.

This is a syrupy extension: `--snapshot-update` and the report of a failed assertion are syrupy's. Its session is left
out, for that one walks the snapshot folders (syrupy 4.7 all of them again for every test module, the square of their
number) and deletes, or fails the run for, what the tests that ran did not reach. Here an assertion reads one file; an
update writes one, if it differs, in one atomic step; nothing is ever deleted; syrupy's counts and the snapshots of its
own fixture `snapshot` are as they would be without us.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.data import SnapshotCollection, SnapshotCollections
from syrupy.exceptions import SnapshotDoesNotExist
from syrupy.extensions.base import AbstractSyrupyExtension
from syrupy.location import PyTestLocation
from syrupy.session import SnapshotSession
from syrupy.terminal import context_style, received_style, reset, snapshot_style

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["GoldenAssertion", "GoldenExtension", "add_worker_log", "golden_fixture", "golden_path"]

FOLDER = "__sagas__"
SUFFIX = ".saga"
WORKER_KEY = "sagaz_goldens"
"""The key of `config.workeroutput` under which an xdist worker sends what `add_worker_log` takes."""

_LONGEST_STEM = 120  # in ASCII characters; eCryptfs takes 143 bytes, and Windows 260 for the whole path
_SHOWN_LINES = 8  # pytest cuts a longer explanation
_PLAIN_PART = re.compile(r"(\[[a-z0-9_.,=+@#-]*\]|\.[0-9]+)?")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.,=+@#\[\]-]+")
_SPELLINGS = pytest.StashKey["Counter[str]"]()
_LOG = pytest.StashKey["GoldenLog"]()


def golden_fixture(request: pytest.FixtureRequest) -> GoldenAssertion:
    """Return what the fixture `saga_golden` gives to a test: an object to compare an outcome or a text with."""
    config, item = request.config, request.node
    if not config.pluginmanager.hasplugin("syrupy"):
        raise pytest.UsageError("saga_golden needs the plugin syrupy: remove -p no:syrupy")
    folder = os.path.join(item.path.parent, FOLDER)
    snapshots = os.path.normpath(os.path.join(item.path.parent, config.getoption("snapshot_dirname", "__snapshots__")))
    if os.path.join(folder, "").startswith(os.path.join(snapshots, "")):
        raise pytest.UsageError(
            f"--snapshot-dirname={config.getoption('snapshot_dirname')} holds the golden files in {folder}, "
            f"which syrupy would delete: choose another folder"
        )
    log_of(config)
    golden = GoldenAssertion(
        session=GoldenSession(pytest_session=request.session),
        extension_class=GoldenExtension,
        test_location=PyTestLocation(item),
        update_snapshots=config.getoption("update_snapshots"),
    )
    # syrupy 4 has no such option, nor the field
    golden.update_new_snapshots_only = config.getoption("update_new_snapshots_only", False)
    return golden


# -- what a golden is called ------------------------------------------------------------------------------------------


def golden_path(item: pytest.Item, index: str | int) -> str:
    """Return the file of a test's assertion: its number, from 0, or the name given in `saga_golden(name=…)`."""
    module = item.path.stem if item.path.suffix == ".py" else item.path.name
    return os.path.join(item.path.parent, FOLDER, module, _stem(item, index) + SUFFIX)


def _stem(item: pytest.Item, index: str | int) -> str:
    scopes = [node for node in item.listchain() if isinstance(node, (pytest.Module, pytest.Class))]
    function = item.originalname if isinstance(item, pytest.Function) else ""
    static = [*(scope.name for scope in scopes[1:]), function]
    fixed = ".".join(static)
    parameters = item.name.removeprefix(function)
    which = f"[{index}]" if isinstance(index, str) else f".{index}" if index else ""
    stem = _UNSAFE.sub("_", fixed + parameters + which)
    if (
        stem == fixed + parameters + which
        and len(stem) <= _LONGEST_STEM
        and _PLAIN_PART.fullmatch(parameters)
        and _PLAIN_PART.fullmatch(which)
        and not any(_has_twin(scope, name) for scope, name in zip(scopes, static, strict=True))
    ):
        return stem
    exact = repr((fixed, parameters, index))
    digest = hashlib.sha256(exact.encode("utf-8", "backslashreplace")).hexdigest()[:10]
    return f"{stem[: _LONGEST_STEM - len(digest) - 1]}-{digest}"


def _has_twin(scope: pytest.Module | pytest.Class, name: str) -> bool:
    """Say whether the module or class has another function or class of this name but for its case."""
    spellings = scope.stash.get(_SPELLINGS, None)
    if spellings is None:
        spaces = scope.obj.__mro__ if isinstance(scope.obj, type) else (scope.obj,)
        names = {key for space in spaces for key, value in vars(space).items() if callable(value)}
        spellings = scope.stash[_SPELLINGS] = Counter(key.lower() for key in names)
    return spellings[name.lower()] > 1


# -- what is in it ----------------------------------------------------------------------------------------------------


def golden_text(data: object) -> str:
    """Return the text that a golden of `data` holds: lines that end with a newline, and no carriage return.

    `data` is a str or has a method `golden_text()` that returns one; a TypeError says so for anything else.
    """
    text = data
    if not isinstance(data, (str, type)):
        method = getattr(data, "golden_text", None)
        text = method() if callable(method) else None
    if not isinstance(text, str):
        raise TypeError(
            f"saga_golden compares an outcome (whose golden_text() returns a str) or a str, not {type(data).__name__}"
        )
    lines = _lines(text.encode("utf-8", "backslashreplace").decode())  # a lone surrogate has no bytes in UTF-8
    return "\n".join(lines) + "\n"


def _lines(text: str) -> list[str]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def _read(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        return None
    # git may have checked it out with \r\n; bytes that are no UTF-8 stay unequal to every text
    return raw.decode("utf-8", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")


def _write(path: str, text: str) -> None:
    """Put the text at the path in one step, so that nobody ever sees a part of it, not after a kill -9 either."""
    folder = os.path.dirname(path)
    scratch = os.path.join(folder, f".{os.getpid()}-{os.urandom(6).hex()}.tmp")
    try:
        file = open(scratch, "xb")  # noqa: SIM115 - the with statement is below, for both ways to get it
    except FileNotFoundError:
        os.makedirs(folder, exist_ok=True)
        file = open(scratch, "xb")  # noqa: SIM115 - as above
    try:
        with file:
            file.write(text.encode())
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise


# -- syrupy's parts ---------------------------------------------------------------------------------------------------


class GoldenExtension(AbstractSyrupyExtension):
    """Goldens for syrupy: finds each file from the test's name alone, discovers nothing, deletes nothing."""

    file_extension = SUFFIX.removeprefix(".")
    write_immediately = True

    def serialize(self, data: object, **options: object) -> str:
        return golden_text(data)

    def diff_lines(self, serialized_data: str | bytes, snapshot_data: str | bytes) -> Iterator[str]:
        golden, received = (_lines(str(text)) for text in (snapshot_data, serialized_data))
        styles = {"-": snapshot_style, "+": received_style}
        for number, line in enumerate(difflib.unified_diff(golden, received, lineterm="")):
            if number > 1:  # after the names of the two files, which are said above
                shown = line.encode("utf-8", "backslashreplace").decode()
                yield reset(styles.get(line[0], context_style)(shown))

    @classmethod
    def get_location(cls, *, test_location: PyTestLocation, index: str | int) -> str:
        return golden_path(test_location.item, index)

    @classmethod
    def get_snapshot_name(cls, *, test_location: PyTestLocation, index: str | int = 0) -> str:
        return _stem(test_location.item, index)

    def read_snapshot(self, *, test_location: PyTestLocation, index: str | int, session_id: str) -> str:
        text = _read(golden_path(test_location.item, index))
        if text is None:
            raise SnapshotDoesNotExist
        return text

    @classmethod
    def write_snapshot(
        cls,
        *,
        snapshot_location: str,
        snapshots: Sequence[tuple[str | bytes, PyTestLocation, str | int]],
        name_order: dict[str, int] | None = None,
    ) -> None:
        for text, _, _ in snapshots:
            _write(snapshot_location, str(text))

    def discover_snapshots(self, **where: object) -> SnapshotCollections:
        """Find nothing: what syrupy has discovered, and no test has used, it deletes."""
        return SnapshotCollections()

    def delete_snapshots(self, **what: object) -> None:
        """Delete nothing."""

    # What is left of the abstract class is only called by its reading, writing and discovery, all replaced above.

    def read_snapshot_collection(self, *, snapshot_location: str) -> SnapshotCollection:
        return SnapshotCollection(location=snapshot_location)

    def read_snapshot_data_from_location(self, *, snapshot_location: str, **names: str) -> str | None:
        return _read(snapshot_location)

    @classmethod
    def write_snapshot_collection(cls, *, snapshot_collection: SnapshotCollection, **options: object) -> None:
        for snapshot in snapshot_collection:
            _write(snapshot_collection.location, str(snapshot.data))

    # The same under the names of syrupy 4.
    _file_extension = file_extension
    _read_snapshot_collection = read_snapshot_collection
    _read_snapshot_data_from_location = read_snapshot_data_from_location
    _write_snapshot_collection = write_snapshot_collection


class GoldenSession(SnapshotSession):
    """One test's goldens, kept out of syrupy's own session: not counted there, never unused, written at once."""

    def __init__(self, pytest_session: pytest.Session) -> None:
        super().__init__(pytest_session=pytest_session)
        self.asserted: set[str] = set()

    def register_request(self, assertion: SnapshotAssertion) -> None:
        """Leave the assertion unknown to the discovery and to the report."""

    def queue_snapshot_write(
        self,
        extension: AbstractSyrupyExtension,
        test_location: PyTestLocation,
        data: str | bytes,
        index: str | int,
    ) -> None:
        location = golden_path(test_location.item, index)
        if location in self.asserted:
            raise ValueError(
                f"saga_golden(name={index!r}) was compared before in this test, with another text: "
                f"give each golden a name of its own"
            )
        extension.write_snapshot(snapshot_location=location, snapshots=[(data, test_location, index)])


class GoldenAssertion(SnapshotAssertion):
    """What `saga_golden` is: equal to an outcome, or a text, that is what the golden file holds."""

    session: GoldenSession

    @property
    def name(self) -> str:
        """What a failed assertion calls the golden: its path as seen from the folder where pytest was started."""
        results = self.executions
        return self._shown(results[len(results) - 1].snapshot_location) if results else "saga_golden"

    def __call__(self, *, name: str | int | None = None, **options: Any) -> GoldenAssertion:
        """Name the golden of the next comparison, instead of its number in the test."""
        if options:
            raise TypeError(f"saga_golden takes a name only, not {', '.join(options)}")
        if not isinstance(name, str) or not name:
            raise TypeError(f"saga_golden(name=…) takes a str that is not empty, not {name!r}")
        super().__call__(name=name)
        return self

    def with_defaults(self, **options: Any) -> SnapshotAssertion:
        raise TypeError("saga_golden has one format and no filters: use syrupy's fixture snapshot for another")

    def __eq__(self, other: object) -> bool:
        equal = super().__eq__(other)
        result = self.executions[self.num_executions - 1]
        self.session.asserted.add(result.snapshot_location)
        log_of(self.test_location.item.config).used.add(result.snapshot_location)
        if result.exception is not None:
            raise result.exception
        if equal and hasattr(other, "asserted") and not self.update_snapshots:
            other.asserted = True
        return equal

    __hash__ = None  # type: ignore[assignment]  # as syrupy's: equal to many things

    def get_assert_diff(self, **options: Any) -> list[str]:
        """Say why the last comparison failed. Called through syrupy's hook when pytest explains an assertion."""
        if not self.executions:
            return ["the other side's own __eq__ answered, without a look at the golden: its class must not"]
        result = self.executions[self.num_executions - 1]
        if result.success:
            return ["the golden is equal"]
        if result.recalled_data is None:
            return [f"there is no such golden file: write it with `{self._command()}`"]
        hint = f"the golden differs: if what was received is right, `{self._command()}`"
        if options.get("diff_mode") == "disabled":
            return [hint]
        diff = list(self.extension.diff_lines(result.asserted_data or "", result.recalled_data))
        if self._is_cut(2 + len(diff)):
            self.test_location.item.add_report_section("call", f"golden {self.name}", "\n".join(diff))
        return [hint, *diff]

    def _is_cut(self, lines: int) -> bool:
        """Say whether pytest shows a part only of an explanation of so many lines."""
        verbosity = self.test_location.item.config.get_verbosity(pytest.Config.VERBOSITY_ASSERTIONS)
        return lines > _SHOWN_LINES and verbosity < 2 and not {"CI", "BUILD_NUMBER"} & os.environ.keys()

    def _command(self) -> str:
        item = self.test_location.item
        node = self._shown(str(item.path)) + "::" + item.nodeid.partition("::")[2]
        return f"pytest {shlex.quote(node)} --snapshot-update"

    def _shown(self, path: str) -> str:
        return _relative(path, str(self.test_location.item.config.invocation_params.dir))


def _relative(path: str, start: str) -> str:
    try:
        return os.path.relpath(path, start).replace(os.sep, "/")
    except ValueError:  # on another drive
        return path


# -- what no test uses ------------------------------------------------------------------------------------------------


class GoldenLog:
    """The golden files that a run used, and at its end one line on those that it did not.

    A plugin, registered by the first golden of a process. It speaks only after a run of everything that passed, and
    only of modules whose tests all passed, or which are gone; it changes no exit status.
    """

    def __init__(self) -> None:
        self.used: set[str] = set()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[WORKER_KEY] = sorted(self.used)

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
        stats = terminalreporter.stats
        if exitstatus != 0 or config.get_verbosity() < 0 or _is_part(config, stats):
            return
        wholly = _modules(config, stats, "passed") - _modules(config, stats, "skipped", "xfailed", "xpassed")
        unused = [_relative(str(path), str(config.invocation_params.dir)) for path in self._unused(wholly)]
        if unused:
            more = f" and {len(unused) - 5} more" if len(unused) > 5 else ""
            terminalreporter.write_line(f"golden files that no test uses: {', '.join(unused[:5])}{more}")

    def _unused(self, wholly: set[Path]) -> Iterator[Path]:
        for folder in sorted({Path(path).parent.parent for path in self.used}):
            for path in sorted(folder.glob(f"*/*{SUFFIX}")):
                module = folder.with_name(path.parent.name)
                owners = {owner for owner in (module, module.with_name(f"{module.name}.py")) if owner.is_file()}
                if owners <= wholly and str(path) not in self.used:
                    yield path


def _modules(config: pytest.Config, stats: dict[str, list[Any]], *outcomes: str) -> set[Path]:
    nodes = {report.nodeid.partition("::")[0] for outcome in outcomes for report in stats.get(outcome, ())}
    return {config.rootpath / node for node in nodes}


def log_of(config: pytest.Config) -> GoldenLog:
    """Return the log of this process, made and registered on first use."""
    log = config.stash.get(_LOG, None)
    if log is None:
        log = config.stash[_LOG] = GoldenLog()
        config.pluginmanager.register(log, "sagaz-goldens")
    return log


def add_worker_log(config: pytest.Config, used: Iterable[str]) -> None:
    """Take up, in an xdist controller, what a worker sent under `WORKER_KEY` of its `workeroutput`."""
    log_of(config).used.update(used)


_PARTIAL_OPTIONS = ("keyword", "markexpr", "deselect", "lf", "stepwise", "sagaz_replay")


def _is_part(config: pytest.Config, stats: dict[str, list[Any]]) -> bool:
    return (
        config.args_source is pytest.Config.ArgsSource.ARGS
        or bool(stats.get("deselected"))
        or any(config.getoption(option, None) for option in _PARTIAL_OPTIONS)
    )
