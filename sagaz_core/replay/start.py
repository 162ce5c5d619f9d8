"""Where a replay starts: what is served from the record, and the context with its override."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sagaz_core.engine.run import Served, served_from
from sagaz_core.errors import DriftError, OverrideError, PlanError, nearest, quoted
from sagaz_core.events import NO_DELTA, Delta

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagaz_core.faults.plan import FaultPlan
    from sagaz_core.interceptor import Proceed, StepCall
    from sagaz_core.model import SagaModel
    from sagaz_core.state import SagaState


@dataclass(frozen=True, slots=True)
class Start:
    """The context that a replayed run begins with, and the steps that it is served. `reran` are run again instead."""

    context: dict[str, Any]
    served: tuple[Served, ...]
    reran: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def start_at(
    checkpoint: SagaState,
    override: Mapping[str, Any],
    undone_since: frozenset[str] = frozenset(),
    *,
    model: SagaModel,
    declared: frozenset[str] = frozenset(),
    strict: bool = False,
) -> Start:
    """Return the start for a replay from this state.

    A step that was undone since is done no more: it, and what was built on it, runs again. An override of a key that
    the context does not have (nor its model declares) is a warning, and with `strict` an `OverrideError`.
    """
    warnings = check_override(override, {*checkpoint.context, *declared}, strict=strict)
    served, reran = [], []
    for step in served_from(checkpoint):
        if step.step not in model:
            continue
        if step.step in undone_since or model.ancestors[step.step] & undone_since:
            reran.append(step.step)
        else:
            served.append(_without(step, override))
    return Start({**checkpoint.initial, **override}, tuple(served), tuple(reran), warnings)


class KeepOverride:
    """An interceptor that keeps the override above what steps write that are run again to get to the checkpoint."""

    def __init__(self, override: Mapping[str, Any], reran: Iterable[str]) -> None:
        self._override = override
        self._reran = frozenset(reran)

    async def intercept(self, call: StepCall, proceed: Proceed) -> Any:
        """Make the call, and take the overridden keys out of what it returns and writes."""
        result = await proceed()
        if call.kind != "action" or call.step not in self._reran:
            return result
        for key, value in self._override.items():
            if isinstance(call.context, dict):
                call.context[key] = value
        if isinstance(result, Mapping) and not self._override.keys().isdisjoint(result):
            return {key: self._override.get(key, value) for key, value in result.items()}
        return result


def _without(step: Served, override: Mapping[str, Any]) -> Served:
    """Return the served step without the keys that are overridden: the override stands above what was recorded."""
    if not override or step.delta is NO_DELTA:
        return step
    kept = {key: value for key, value in step.delta.set.items() if key not in override}
    deleted = tuple(key for key in step.delta.deleted if key not in override)
    return step._replace(delta=Delta(kept, deleted) if kept or deleted else NO_DELTA)


def check_override(override: Mapping[str, Any], known: set[str], *, strict: bool) -> tuple[str, ...]:
    """Return a warning for each key that is not known; with `strict` raise `OverrideError` for the first."""
    warnings = tuple(_no_such_key(key, frozenset(known)) for key in override if key not in known)
    if warnings and strict:
        raise OverrideError(warnings[0])
    return warnings


@lru_cache(maxsize=256)
def _no_such_key(key: str, known: frozenset[str]) -> str:
    # Of many replays each has the same override; to look for the nearest name takes as long as to run a step.
    hint = nearest(key, known) or f"; it has {quoted(sorted(known))}"
    return f"the context has no key {key!r} to override{hint}"


def check_runs(plan: FaultPlan, served: Iterable[Served], step: str) -> None:
    """Raise `PlanError` for a fault in the action of a step that is not run when a run begins at `step`."""
    taken = {one.step for one in served}
    for fault in plan:
        if fault.step in taken and not fault.described.undo:
            raise PlanError(
                f"{fault}: step {fault.step!r} is not run from {step!r} on, its recorded result is taken; "
                f"replay from {fault.step!r}"
            )


def check_drift(now: SagaModel, recorded: SagaModel, *, allowed: bool) -> tuple[str, ...]:
    """Return the differences between the definitions as warnings; raise `DriftError` unless they are allowed."""
    differences = now.differences(recorded)
    if differences and not allowed:
        raise DriftError(
            f"saga {now.name!r} is not defined as it was recorded: {'; '.join(differences)} "
            f"(allow_drift=True or --allow-drift replays it all the same; migrations declare how)",
            differences,
        )
    return differences
