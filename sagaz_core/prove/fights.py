"""Which keys of the context each action of a run reads and writes, and which steps fight over one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sagaz_core.events import Event, StepSucceeded
from sagaz_core.prove.typed_reads import NOTES, is_model, watched
from sagaz_core.prove.unordered import fights, said_of
from sagaz_core.saga.context import SagaContext

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sagaz_core.interceptor import Proceed, StepCall
    from sagaz_core.model import SagaModel
    from sagaz_core.prove.unordered import Fight
    from sagaz_core.prove.verdict import Finding

_NOWHERE: set[str] = set()
"""Where contexts note that a step made itself."""


class Fights:
    """Watches the actions of one run. `reads` and `writes` are keys by step."""

    def __init__(self) -> None:
        self.reads: dict[str, set[str]] = {}
        self.writes: dict[str, set[str]] = {}
        self.pairs: Mapping[Fight, list[str]] = {}

    async def watch(self, call: StepCall, proceed: Proceed) -> Any:
        """Make the call, and note what its action reads."""
        context: Any = call.context
        reads = self.reads.setdefault(call.step, set())
        if type(context) is SagaContext:
            vars(context)[NOTES] = reads
            context.__class__ = _Noting
            try:
                return self._returned(call.step, await proceed())
            finally:
                context.__class__ = SagaContext  # the engine's own looks are not the step's
        if is_model(context):
            watched(context, reads)
        return self._returned(call.step, await proceed())

    def _returned(self, step: str, result: Any) -> Any:
        if isinstance(result, Mapping):  # of a step that fails all the same the events do not tell it
            self.writes.setdefault(step, set()).update(result)
        return result

    def findings(self, events: Iterable[Event], model: SagaModel) -> tuple[Finding, ...]:
        """Return what is wrong: a step reads what another one writes, and nothing orders them."""
        for event in events:
            if isinstance(event, StepSucceeded):
                self.writes.setdefault(event.step, set()).update(event.delta.set, event.delta.deleted)
        self.pairs = fights(self, model)
        return tuple(said_of(self.pairs, model).values())


class _Noting(SagaContext):
    def __getitem__(self, key: str) -> Any:
        vars(self).get(NOTES, _NOWHERE).add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        vars(self).get(NOTES, _NOWHERE).add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        if isinstance(key, str):
            vars(self).get(NOTES, _NOWHERE).add(key)
        return super().__contains__(key)
