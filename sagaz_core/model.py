"""What a saga is made of, as plain data: names, dependencies, which steps can be undone, and how hard they try.

Every engine's saga is described by one `SagaModel`; the oracle, the fault plans and the fingerprint know nothing else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import DefinitionError, UnknownStepError, nearest, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

END = "end"
"""The pseudo-step after the last one; `end@before` fails a saga that has done everything."""


@dataclass(frozen=True, slots=True)
class StepModel:
    """One step. Times are in seconds; `None` is no limit."""

    name: str
    depends_on: tuple[str, ...] = ()
    has_compensation: bool = False
    pivot: bool = False
    timeout: float | None = None
    compensation_timeout: float | None = None
    retries: int = 0
    compensation_retries: int = 0
    in_doubt: str = "ignore"
    has_recovery: bool = False

    @property
    def undone_in_doubt(self) -> bool:
        """Whether its compensation runs when it failed in a way that leaves its effect unknown."""
        return self.has_compensation and self.in_doubt == "compensate"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        data = {name: getattr(self, name) for name in _STEP_FIELDS}
        data["depends_on"] = list(self.depends_on)
        return data


class Description(dict[str, Any]):
    """What `SagaModel.to_dict()` gives, made once for all runs of a definition: to be read only.

    `text` is its JSON as stores keep it, `""` for a copy.
    """

    text = ""


@dataclass(frozen=True)
class SagaModel:
    """A saga: its steps in declaration order, each with the steps that it depends on.

    Raises `DefinitionError` for two steps of one name, a dependency that does not exist, or a cycle.
    """

    name: str
    steps: tuple[StepModel, ...]
    version: str = "1.0"
    on_compensation_failure: str = "continue_on_error"
    _by_name: dict[str, StepModel] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name: dict[str, StepModel] = {}
        for step in self.steps:
            _check_step_name(self.name, step.name)
            if step.name in by_name:
                raise DefinitionError(f"saga {self.name!r} has two steps named {step.name!r}: rename one")
            by_name[step.name] = step
        object.__setattr__(self, "_by_name", by_name)
        for step in self.steps:
            for dependency in step.depends_on:
                if dependency not in by_name:
                    raise DefinitionError(
                        f"step {step.name!r} of saga {self.name!r} depends on {dependency!r}, which does not exist"
                        f"{nearest(dependency, by_name)}"
                    )
        _ = self.order

    def __contains__(self, step: object) -> bool:
        return step in self._by_name

    def step(self, name: str) -> StepModel:
        """Return the step of this name, or raise `UnknownStepError` with the nearest one."""
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownStepError(
                f"saga {self.name!r} has no step {name!r}{nearest(name, self._by_name)}; "
                f"its steps: {quoted(self.names)}"
            ) from None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The steps' names in declaration order."""
        return tuple(self._by_name)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The steps' names, each after those that it depends on; among equals in declaration order (Kahn)."""
        waiting = self.waits_for.copy()
        order: list[str] = []
        ready = [index for index, step in enumerate(self.steps) if not waiting[step.name]]
        places = {name: index for index, name in enumerate(waiting)}
        while ready:  # a heap: in order as it is
            name = self.steps[heappop(ready)].name
            order.append(name)
            for dependent in self.dependents[name]:
                waiting[dependent] -= 1
                if not waiting[dependent]:
                    heappush(ready, places[dependent])
        if len(order) < len(self.steps):
            raise DefinitionError(
                f"the steps of saga {self.name!r} depend on each other in a circle: {' -> '.join(self._cycle(order))}"
            )
        return tuple(order)

    @cached_property
    def waits_for(self) -> dict[str, int]:
        """For each step, how many others must be done before it; a run counts down in a copy."""
        return {step.name: len(set(step.depends_on)) for step in self.steps}

    @cached_property
    def first(self) -> tuple[str, ...]:
        """The steps that wait for none."""
        return tuple(name for name in self.order if not self.waits_for[name])

    def _cycle(self, done: Iterable[str]) -> list[str]:
        left = set(self.names) - set(done)
        path = [next(name for name in self.names if name in left)]
        while True:
            follow = next(name for name in self._by_name[path[-1]].depends_on if name in left)
            if follow in path:
                return [*path[path.index(follow) :], follow]
            path.append(follow)

    @cached_property
    def dependents(self) -> Mapping[str, tuple[str, ...]]:
        """For each step, those that depend on it directly, in declaration order."""
        found: dict[str, list[str]] = {step.name: [] for step in self.steps}
        for step in self.steps:
            for dependency in dict.fromkeys(step.depends_on):
                found[dependency].append(step.name)
        return {name: tuple(names) for name, names in found.items()}

    @cached_property
    def ancestors(self) -> Mapping[str, frozenset[str]]:
        """For each step, all that must be done before it."""
        found: dict[str, frozenset[str]] = {}
        for name in self.order:
            direct = self._by_name[name].depends_on
            found[name] = frozenset(direct).union(*(found[dependency] for dependency in direct))
        return found

    @cached_property
    def descendants(self) -> Mapping[str, frozenset[str]]:
        """For each step, all that can only be done after it."""
        return {name: frozenset(other for other in self.names if name in self.ancestors[other]) for name in self.names}

    @cached_property
    def compensable(self) -> frozenset[str]:
        """The names of the steps that have a compensation."""
        return frozenset(step.name for step in self.steps if step.has_compensation)

    @cached_property
    def pivots(self) -> frozenset[str]:
        """The names of the steps behind which nothing is undone."""
        return frozenset(step.name for step in self.steps if step.pivot)

    @cached_property
    def linear(self) -> bool:
        """Whether the steps form one chain."""
        return all(len(self.ancestors[name]) == index for index, name in enumerate(self.order))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with the steps, the edges, what can be undone, the pivots and the version."""
        shape = [self.version, [[s.name, sorted(set(s.depends_on)), s.has_compensation, s.pivot] for s in self.steps]]
        return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:16]

    def differences(self, recorded: SagaModel) -> tuple[str, ...]:
        """Say, a line each, in what this definition differs from the recorded one; `()` when the fingerprints agree."""
        if self.fingerprint == recorded.fingerprint:
            return ()
        lines = []
        if self.version != recorded.version:
            lines.append(f"version {recorded.version!r} is now {self.version!r}")
        lines += [f"step {name!r} is gone" for name in recorded.names if name not in self]
        lines += [f"step {name!r} is new" for name in self.names if name not in recorded]
        for name in (name for name in self.names if name in recorded):
            mine, theirs = self.step(name), recorded.step(name)
            if set(mine.depends_on) != set(theirs.depends_on):
                lines.append(f"step {name!r} depended on {quoted(theirs.depends_on)}, now on {quoted(mine.depends_on)}")
            if mine.has_compensation != theirs.has_compensation:
                has = "now has a" if mine.has_compensation else "no longer has its"
                lines.append(f"step {name!r} {has} compensation")
            if mine.pivot != theirs.pivot:
                lines.append(f"step {name!r} is {'now' if mine.pivot else 'no longer'} a pivot")
        return tuple(lines) or ("the steps are declared in another order",)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data; `from_dict` is the inverse."""
        return {
            "name": self.name,
            "version": self.version,
            "on_compensation_failure": self.on_compensation_failure,
            "steps": [step.to_dict() for step in self.steps],
        }

    @cached_property
    def description(self) -> Description:
        """Its data for a record."""
        made = Description(self.to_dict())
        made.text = json_text(made)
        return made

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SagaModel:
        """Build it from `to_dict()` data; unknown keys are ignored. Raises `DefinitionError` for any other shape."""
        try:
            steps = tuple(_step_from_dict(step) for step in data["steps"])
            return cls(
                name=str(data["name"]),
                steps=steps,
                version=str(data.get("version", "1.0")),
                on_compensation_failure=str(data.get("on_compensation_failure", "continue_on_error")),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DefinitionError(f"not the description of a saga: {type(error).__name__} at {error}") from error


def json_text(data: Mapping[str, Any]) -> str:
    """Return a model's data as text, the same for equal data. Raises `TypeError` or `ValueError` for no plain JSON."""
    return json.dumps(data, sort_keys=True, allow_nan=False, separators=(",", ":"))


_STEP_FIELDS = tuple(f.name for f in fields(StepModel))


def _step_from_dict(data: Mapping[str, Any]) -> StepModel:
    known = {key: data[key] for key in _STEP_FIELDS if key in data}
    for key, value in known.items():
        if not _FITS[key](value):
            raise DefinitionError(f"not the description of a saga: {key} of a step is {value!r:.40}")
    known["depends_on"] = tuple(known.get("depends_on", ()))
    return StepModel(**known)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_limit(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and value > 0)


def _are_names(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_text, value))


_FITS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("name", "in_doubt"), _is_text),
    **dict.fromkeys(("has_compensation", "pivot", "has_recovery"), _is_flag),
    **dict.fromkeys(("timeout", "compensation_timeout"), _is_limit),
    **dict.fromkeys(("retries", "compensation_retries"), _is_count),
    "depends_on": _are_names,
}


def _check_step_name(saga: str, name: object) -> None:
    # A plan is written unquoted in a shell, so what separates its parts cannot be in a name.
    if not isinstance(name, str) or not name or name == END or any(c in "@+#:" or c.isspace() for c in name):
        raise DefinitionError(
            f"{name!r} cannot name a step of saga {saga!r}: use a non-empty string without spaces and @ + # : "
            f"(and not {END!r}, which stands for the end of the saga)"
        )
