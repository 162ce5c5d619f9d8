"""The parts of a captured state, each encoded once and put together for every snapshot and event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagaz_core.errors import CodecError
from sagaz_core.events import NO_DELTA, Delta
from sagaz_core.storage.codec import Raw, decode, encode, importing_class

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sagaz_core.state import SagaState


class Encoded:
    """What a run's context, results and changes are as bytes.

    A value that cannot be stored is left out here, never out of what the saga works with. The first such error is the
    `problem`.
    """

    __slots__ = ("_started_at", "_state", "_unfit", "context", "initial", "layers", "problem", "results", "undone")

    def __init__(self, state: SagaState) -> None:
        self.problem: CodecError | None = None
        self.context = b""
        self.initial: Raw | None = None
        self.results: dict[str, Raw | None] = {}
        self.layers: dict[str, Raw] = {}
        self.undone: dict[str, Raw | None] = {}
        self._started_at: Raw | None = None
        self._state = state
        self._unfit: set[str] = set()

    def begin(self, context: Mapping[str, Any], *, strict: bool) -> Raw:
        """Encode the initial context. With `strict`, raises `CannotStoreError`."""
        try:
            self.context = encode(dict(context), "context")
        except CodecError as error:
            if strict:
                raise
            self._note(error)
            self.context = encode(self._fitting(context), "context")
        self.initial = Raw(self.context)
        return self.initial

    def renew(self) -> None:
        """Encode the context, which an event has changed."""
        context = self._state.context
        if self._unfit:
            self._unfit.intersection_update(context)
            context = self._without_unfit(context)
        try:
            self.context = encode(context, "context")
        except CodecError as error:  # a value that was stored before was changed in place
            self._note(error)
            self.context = encode(self._fitting(context), "context")

    def step(self, step: str, delta: Delta, result: Any) -> Delta:
        """Encode what a step returned and changed, and return the whole change, with what it changed in place."""
        delta = self._with_changes_in_place(delta)
        self._encode_layer(step, delta)
        self.results[step] = None if result is None else self._encoded(result, f"result of {step!r}")
        return delta

    def undo(self, step: str, delta: Delta, result: Any) -> Delta:
        """Do the same for a compensation."""
        delta = self._with_changes_in_place(delta)
        self._encode_layer(f"undo:{step}", delta)
        at = f"result of the compensation of {step!r}"
        self.undone[step] = None if result is None else self._encoded(result, at)
        return delta

    def forget(self, step: str) -> None:
        """Let go of a step that was undone."""
        self.results.pop(step, None)
        self.layers.pop(step, None)

    def put_back(self) -> None:
        """Put back what user code changed in place."""
        for key, before, _ in self._changes_in_place():
            self._state.unalias(key, before)

    def parts(self) -> dict[str, Any]:
        """Return the parts of the state's data that are encoded already."""
        state, results, layers = self._state, self.results, self.layers
        found: dict[str, Any] = {"context": Raw(self.context)}
        if state.results:
            found["results"] = {name: results.get(name, value) for name, value in state.results.items()}
        if state.layers:
            found["layers"] = {
                name: layers.get(name) or [dict(layer.set), list(layer.deleted)] for name, layer in state.layers.items()
            }
        if self._started_at is None:
            self._started_at = Raw(encode(state.started_at))
        found["started_at"] = self._started_at
        if self.initial is not None:
            found["initial"] = self.initial
        if state.undone:
            found["undone"] = {name: self.undone.get(name, value) for name, value in state.undone.items()}
        return found

    # ---- what was changed in place

    def _changes_in_place(self) -> Iterator[tuple[str, Any, Any]]:
        """Iterate `(key, value before, value now)` of the context's values that user code changed in place."""
        context = self._state.context
        if self._unfit:
            context = self._without_unfit(context)
        try:
            if encode(context, "context") == self.context:
                return
        except CodecError as error:
            self._note(error)
        before: dict[str, Any] = decode(self.context, resolve=importing_class)
        for key, value in context.items():
            if key in before and not _same(value, before[key]):
                yield key, before[key], value

    def _with_changes_in_place(self, delta: Delta) -> Delta:
        changed: dict[str, Any] | None = None
        for key, before, now in self._changes_in_place():
            changed = dict(delta.set) if changed is None else changed
            if key not in changed and key not in delta.deleted:
                changed[key] = now
            self._state.unalias(key, before)
        return delta if changed is None else Delta(changed, delta.deleted)

    # ---- what cannot be stored

    def _encode_layer(self, name: str, delta: Delta) -> None:
        if delta is NO_DELTA:
            self.layers.pop(name, None)
            return
        changed = dict(delta.set)
        self._unfit.difference_update(changed)
        try:
            raw = Raw(encode(changed, "context"))
        except CodecError as error:
            self._note(error)
            raw = Raw(encode(self._fitting(changed), "context"))
        self.layers[name] = Raw(encode([raw, list(delta.deleted)]))

    def _encoded(self, value: Any, at: str) -> Raw | None:
        try:
            return Raw(encode(value, at))
        except CodecError as error:
            self._note(error)
        if type(value) is dict:
            return Raw(encode({key: part for key, part in value.items() if _fits(key) and _fits(part)}, at))
        return None

    def _fitting(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what can be stored of the values, and remember the keys of the others."""
        self._unfit.update(key for key, value in values.items() if not (_fits(key) and _fits(value)))
        return self._without_unfit(values)

    def _without_unfit(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in self._unfit}

    def _note(self, error: CodecError) -> None:
        if self.problem is None:
            self.problem = error


def _fits(value: Any) -> bool:
    try:
        encode(value)
    except CodecError:
        return False
    return True


def _same(one: Any, other: Any) -> bool:
    try:
        return encode(one) == encode(other)
    except CodecError:
        return False
