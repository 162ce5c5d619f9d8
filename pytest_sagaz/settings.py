"""What the options, the environment, the ini file and pyproject.toml say together, and which of them said it."""

from __future__ import annotations

import contextlib
import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from sagaz_core.adapters.locate import make_importable
from sagaz_core.errors import SagazError, UsageError
from sagaz_core.faults.kinds import parse_kinds
from sagaz_core.faults.plan import NO_FAULTS, FaultPlan
from sagaz_core.prove.budget import seconds_of
from sagaz_core.settings import DEFAULT_STORE, project_settings
from sagaz_core.settings import Settings as ProjectSettings
from sagaz_core.storage.jsonform import parse_json
from sagaz_core.storage.url import open_storage, safe_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sagaz_core.recording.base import Recording
    from sagaz_core.storage.base import SnapshotStorage

MAX_DEPTH = 20
NONE = "none"
"""What is written for the plan without faults."""


class SagazWarning(pytest.PytestWarning):
    """Something about a saga is probably not meant."""


class Value(NamedTuple):
    """A setting, and who said it."""

    value: Any
    origin: str


class Settings:
    """The settings of one pytest run. Each is read when it is first asked for; what is wrong is a `UsageError`."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.folder = config.invocation_params.dir
        self.from_store: dict[int, Recording] = {}
        make_importable(str(config.rootpath))
        make_importable(str(self.folder))

    def _first(self, option: str, default: str) -> Value:
        """Return option, environment, ini or the default, whichever comes first."""
        name = option.removeprefix("sagaz_")
        given = self.config.getoption(option, None)
        if given is not None:
            return Value(given, f"--sagaz-{name}")
        variable = f"SAGAZ_{name.upper()}"
        if os.environ.get(variable):
            return Value(os.environ[variable], f"${variable}")
        ini = self.config.getini(option)
        if ini:
            return Value(ini, f"ini {option}")
        return Value(default, "default")

    @cached_property
    def _project(self) -> ProjectSettings:
        found = project_settings(self.folder)
        if found.sagas and found.folder is not None:
            make_importable(str(found.folder))
        return found

    @cached_property
    def store(self) -> Value:
        """The store's URL."""
        found = self._first("sagaz_store", "")
        if found.origin != "default":
            return found
        if self._project.store:
            return Value(self._project.store, "[tool.sagaz] store")
        return Value(DEFAULT_STORE, "default")

    def open_store(self) -> SnapshotStorage:
        """Return the store; the caller closes it. A relative path counts from where pytest was started, also for a test
        that has gone elsewhere, and one of the ini file from the root folder.
        """
        url, origin = self.store
        with contextlib.chdir(self.config.rootpath if origin.startswith("ini") else self.folder):
            return open_storage(url)

    @cached_property
    def kinds(self) -> Value:
        """The kinds of faults, parsed."""
        text, origin = self._first("sagaz_kinds", "quick")
        return Value(parse_kinds(text), origin)

    @cached_property
    def kinds_text(self) -> str:
        """The kinds as they were written."""
        return str(self._first("sagaz_kinds", "quick").value)

    @cached_property
    def depth(self) -> Value:
        """How many faults at a time: with more than one, each recorded saga has one item more."""
        text, origin = self._first("sagaz_depth", "1")
        return Value(depth_of(str(text), origin), origin)

    @cached_property
    def budget(self) -> float | None:
        """How many real seconds an exploration may take."""
        text = self.config.getoption("sagaz_budget", None)
        if text is None:
            return None
        try:
            return seconds_of(text)
        except UsageError as error:
            raise UsageError(f"--sagaz-budget: {error}") from None

    @cached_property
    def apps(self) -> tuple[Value, ...]:
        """The modules that may hold saga classes, in groups, those that count first first."""
        groups = [
            Value(tuple(self.config.getoption("sagaz_app", None) or ()), "--app"),
            Value(tuple(os.environ.get("SAGAZ_SAGAS", "").replace(",", " ").split()), "$SAGAZ_SAGAS"),
            Value(tuple(self.config.getini("sagaz_sagas")), "ini sagaz_sagas"),
            Value(self._project.sagas, "[tool.sagaz] sagas"),
        ]
        return tuple(group for group in groups if group.value)

    @cached_property
    def override(self) -> dict[str, Any]:
        """What is laid over the recorded context."""
        return dict(_key_and_value(text) for text in self.config.getoption("sagaz_override", None) or ())

    @cached_property
    def plans(self) -> tuple[FaultPlan, ...]:
        """The plans that were named, or none."""
        texts = self.config.getoption("sagaz_plan", None) or ()
        return tuple(dict.fromkeys(parse_plan(text) for text in texts))

    def trusts(self, recording: Recording) -> bool:
        """Whether this very recording was read from the store, which knows where classes are."""
        return id(recording) in self.from_store

    @property
    def from_step(self) -> str | None:
        """The step to begin at."""
        return self.config.getoption("sagaz_from", None) or None

    @property
    def strict(self) -> bool:
        """Whether drift in values, and overrides of unknown keys, fail."""
        return bool(self.config.getoption("sagaz_strict", None))

    @property
    def allow_drift(self) -> bool:
        """Whether plans run although the definition is not the recorded one."""
        return bool(self.config.getoption("sagaz_allow_drift", None))

    @property
    def live(self) -> bool:
        """Whether sagas may reach the network."""
        return bool(self.config.getoption("sagaz_allow_live", None))

    @property
    def kill(self) -> bool:
        """Whether processes that run the sagas are killed."""
        return bool(self.config.getoption("sagaz_kill", None))

    def check(self) -> None:
        """Raise `UsageError` for a value that cannot be read, or two that do not go together."""
        if self.kill and self.from_step is not None:
            raise UsageError("--sagaz-kill and --sagaz-from: a saga that is killed runs from its start; leave one out")
        _ = self.kinds, self.depth, self.budget, self.override, self.plans

    def header(self) -> list[str]:
        """Return a line that says which settings hold, and who said so."""
        store, kinds = self.store, self.kinds
        parts = [
            f"store {safe_url(store.value)} ({store.origin})",
            f"kinds {self.kinds_text} ({kinds.origin})",
            *(f"sagas {', '.join(group.value)} ({group.origin})" for group in self.apps),
        ]
        return [f"sagaz: {'; '.join(parts)}"]


def depth_of(text: str, where: str) -> int:
    """Return how many faults at a time the text says. Raises `UsageError`, which begins with where it stands."""
    if not text.strip().isdecimal() or not 1 <= int(text) <= MAX_DEPTH:
        raise UsageError(f"{where} is {text!r}: write how many faults at a time, 1 to {MAX_DEPTH}")
    return int(text)


def parse_plan(text: str) -> FaultPlan:
    """Return the plan; `none` is the one without faults."""
    return NO_FAULTS if text.strip() == NONE else FaultPlan.parse(text)


def _key_and_value(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"--sagaz-override {text!r}: write KEY=VALUE, such as quantity=3")
    try:
        return key, parse_json(value)
    except (ValueError, RecursionError):
        return key, value


_SETTINGS = pytest.StashKey[Settings]()


def settings_of(config: pytest.Config) -> Settings:
    """Return the run's settings, made when they are first asked for."""
    if _SETTINGS not in config.stash:
        config.stash[_SETTINGS] = Settings(config)
    return config.stash[_SETTINGS]


@contextlib.contextmanager
def usage_errors(where: str = "") -> Iterator[None]:
    """Turn what we raise about input into pytest's usage error, of one line."""
    try:
        yield
    except SagazError as error:
        raise pytest.UsageError(f"{where}{error}") from error


def warn(config: pytest.Config, messages: Sequence[str]) -> None:
    """Put the messages into pytest's warnings; where warnings are errors, raise the first as a usage error."""
    if hasattr(config, "workerinput"):
        return  # the controller has said it
    for message in messages:
        try:
            config.issue_config_time_warning(SagazWarning(message), stacklevel=2)
        except SagazWarning as error:
            raise pytest.UsageError(str(error)) from error
