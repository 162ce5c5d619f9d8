"""The kinds of faults, what each needs, and which a saga's steps can have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sagaz_core.errors import PlanError, nearest, quoted
from sagaz_core.model import END, SagaModel, StepModel

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind. `undo`: it strikes the compensation. `fatal`: the saga turns back, or gets stuck, because of it."""

    name: str
    meaning: str
    fatal: bool = False
    undo: bool = False
    needs: str = ""


_ALL = (
    Kind("before", "the action is not run; it raises", fatal=True),
    Kind("after", "the action runs, its effect happens, then it raises: the acknowledgement is lost", fatal=True),
    Kind("hang", "it never returns; the step's timeout fires", fatal=True, needs="timeout"),
    Kind("late", "the timeout fires, and the effect still happens afterwards", fatal=True, needs="timeout"),
    Kind("cancel", "the task that runs the saga is cancelled inside it, the effect having happened", fatal=True),
    Kind("flaky", "a transient error before the effect, then success on the retry", needs="retries"),
    Kind("flaky-after", "a transient error after the effect, then success on the retry", needs="retries"),
    Kind("crash", "the process dies after the effect, before it is recorded; another one resumes"),
    Kind("crash-recorded", "the process dies after the effect was recorded; another one resumes"),
    Kind("repeat", "it is delivered twice"),
    Kind("undo-fail", "its compensation fails for good, before its effect", fatal=True, undo=True),
    Kind("undo-fail-after", "its compensation fails for good, after its effect", fatal=True, undo=True),
    Kind("undo-hang", "its compensation never returns", fatal=True, undo=True, needs="timeout"),
    Kind("undo-flaky", "a transient error of its compensation, before its effect", undo=True, needs="retries"),
    Kind("undo-flaky-after", "a transient error of its compensation, after its effect", undo=True, needs="retries"),
    Kind("undo-crash", "the process dies after its compensation, before that is recorded", undo=True),
    Kind("undo-crash-recorded", "the process dies after its compensation was recorded", undo=True),
    Kind("undo-repeat", "its compensation is delivered twice", undo=True),
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL}
QUICK = ("before", "after", "undo-fail")


def kind_of(name: str, sets: Iterable[str] = ()) -> Kind:
    """Return the kind of this name, or raise `PlanError` with the nearest one, or of these sets of kinds."""
    try:
        return KINDS[name]
    except KeyError:
        known = ", ".join(KINDS)
        raise PlanError(f"there is no kind of fault {name!r}{nearest(name, [*sets, *KINDS])}; kinds: {known}") from None


def parse_kinds(text: str | Iterable[str]) -> tuple[str, ...]:
    """Read `quick`, `all` or a list of kinds, in text separated by commas. Raises `PlanError` for any other."""
    names = [name.strip() for name in text.split(",")] if isinstance(text, str) else list(text)
    if names == ["quick"]:
        return QUICK
    if names == ["all"]:
        return tuple(KINDS)
    if not any(names):
        raise PlanError("no kinds of faults: write quick, all, or a list such as before,after,undo-fail")
    sets = ("quick", "all") if len(names) == 1 else ()  # they stand alone
    return tuple(dict.fromkeys(kind_of(name, sets).name for name in names if name))


def why_not(kind: Kind, step: StepModel) -> str:
    """Say why this step cannot have this fault, or return `""` when it can."""
    if kind.undo and not step.has_compensation:
        return "it has no compensation"
    if kind.needs == "timeout" and (step.compensation_timeout if kind.undo else step.timeout) is None:
        return f"its {'compensation' if kind.undo else 'action'} has no timeout, so it would hang for ever"
    if kind.needs == "retries" and not (step.compensation_retries if kind.undo else step.retries):
        return f"its {'compensation' if kind.undo else 'action'} has no retries, so it cannot succeed on one"
    return ""


def step_of(model: SagaModel, name: str, kind: Kind) -> StepModel | None:
    """Return the step that a plan names; `None` is the end of the saga. Raises `PlanError` for a step that is not."""
    if name == END:
        if kind.name != "before":
            raise PlanError(f"{END}@{kind.name}: the end of a saga can only be failed before it, {END}@before")
        return None
    if name not in model:
        raise PlanError(
            f"saga {model.name!r} has no step {name!r}{nearest(name, model.names)}; its steps: {quoted(model.names)}"
        )
    return model.step(name)
