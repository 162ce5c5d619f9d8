"""The parts of a captured state, each encoded once and put together for every snapshot and event."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from sagaz_core.errors import CannotStoreError, CodecError
from sagaz_core.events import NO_DELTA, CompensationSucceeded, Delta, SagaStarted, StepSucceeded
from sagaz_core.storage.codec import decode, importing_class, list_of, map_head, moment_part, part, whole

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sagaz_core.engine.fields import EncryptedFields
    from sagaz_core.state import SagaState

# What a fold of events never changes, nor user code: needs no look whether it was.
_UNCHANGEABLE = frozenset({str, int, float, bool, type(None), bytes, Decimal, UUID})


@lru_cache(maxsize=4096)
def _text(text: str) -> bytes:
    """Return the part that is this name, without its class if it has one of its own. Raises `CannotStoreError`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CannotStoreError(
            f"the name {text!a} cannot be stored: it has a lone surrogate; rename it", "name"
        ) from None
    return part(str.__str__(text))


@lru_cache(maxsize=64)
def _number(number: int) -> bytes:
    return part(int(number))


@lru_cache(maxsize=4096)
def begun(step: str, attempt: int) -> bytes:
    """Return the fields of the start of an action or a compensation, encoded."""
    return whole(list_of(_text(step), _number(attempt)))


_NOTHING, _EMPTY = part(None), part({})
_STARTED_AT, _INITIAL, _AT, _CONTEXT = map(part, ("started_at", "initial", "at", "context"))
_RESULTS, _LAYERS, _UNDONE = map(part, ("results", "layers", "undone"))


@lru_cache(maxsize=4096)
def _nothing_of_it(step: str, attempt: int, *how: str) -> bytes:
    """Return the fields of the end of an action or compensation that returned and changed nothing, encoded."""
    return whole(list_of(_text(step), _number(attempt), _NOTHING, _NOTHING, *map(_text, how)))


class Encoded:
    """What a run's context, results and changes are as bytes.

    A value that cannot be stored is left out here, never out of what the saga works with. The first such error is the
    `problem`. `fields` are those that are stored encrypted; the saga works with what they are.
    """

    __slots__ = (
        "_fields",
        "_identity",
        "_results",
        "_state",
        "_unfit",
        "_watched",
        "_watched_part",
        "context",
        "initial",
        "layers",
        "problem",
        "results",
        "undone",
    )

    def __init__(self, state: SagaState, fields: EncryptedFields | None = None) -> None:
        self.problem: CodecError | None = None
        self.context = self.initial = _EMPTY
        self.results: dict[str, bytes] = {}
        self.layers: dict[str, bytes] = {}
        self.undone: dict[str, bytes] = {}
        self._fields = fields
        self._identity = b""
        self._results: bytes | None = b""  # what `results` are in a state, `None` when it must be made anew
        self._state = state
        self._unfit: set[str] = set()
        self._watched: dict[str, Any] = {}
        self._watched_part = b""

    def begin(self, context: Mapping[str, Any], *, strict: bool) -> None:
        """Encode the initial context. With `strict`, raises `CannotStoreError`."""
        try:
            self.context = self._part(context if type(context) is dict else dict(context))
        except CodecError as error:
            if strict:
                raise
            self._note(error)
            self.context = self._part(self._fitting(context))
        self.initial = self.context
        self._watch()

    def go_on(self) -> None:
        """Encode what a resumed run begins with."""
        state = self._state
        self.initial = self._part(state.initial)
        self.results = {step: self._part_of(result, f"result of {step!r}") for step, result in state.results.items()}
        self._results = None
        self.undone = {step: self._part_of(result, f"result of {step!r}") for step, result in state.undone.items()}
        for name, layer in state.layers.items():
            self._encode_layer(name, layer)
        self.renew()

    def renew(self) -> None:
        """Encode the context, which an event has changed."""
        context = self._state.context
        if self._unfit:
            self._unfit.intersection_update(context)
            context = self._without_unfit(context)
        try:
            self.context = self._part(context)
        except CodecError as error:  # a value that was stored before was changed in place
            self._note(error)
            self.context = self._part(self._fitting(context))
        self._watch()

    def step(self, step: str, delta: Delta, result: Any) -> Delta:
        """Encode what a step returned and changed, and return the whole change, with what it changed in place."""
        if self._watched:
            delta = self._with_changes_in_place(delta)
        self._encode_layer(step, delta)
        encoded = _NOTHING if result is None else self._encoded(result, f"result of {step!r}")
        self._results = None if self._results is None or step in self.results else self._results + _text(step) + encoded
        self.results[step] = encoded
        return delta

    def undo(self, step: str, delta: Delta, result: Any) -> Delta:
        """Do the same for a compensation."""
        if self._watched:
            delta = self._with_changes_in_place(delta)
        self._encode_layer(f"undo:{step}", delta)
        at = f"result of the compensation of {step!r}"
        self.undone[step] = _NOTHING if result is None else self._encoded(result, at)
        return delta

    def forget(self, step: str) -> None:
        """Let go of a step that was undone."""
        self.results.pop(step, None)
        self._results = None
        self.layers.pop(step, None)

    def put_back(self) -> None:
        """Put back what user code changed in place."""
        if self._watched:
            self._with_changes_in_place(NO_DELTA)

    # ---- put together

    def state(self) -> bytes:
        """Return the state's data, encoded: what `encode(state.to_data())` gives, from parts that are there already."""
        state = self._state
        assert state.at is not None
        progress = part(state.progress(), "state")
        if not self._identity:
            started_at = moment_part(cast("datetime", state.started_at))
            names = part(state.identity(), "state")[1:]
            self._identity = b"".join((names, _STARTED_AT, started_at, _INITIAL, self.initial))
        if self._results is None:
            self._results = _pairs(state.results, self.results)
        results = map_head(len(state.results))
        pieces = [self._identity, progress[1:], _AT, moment_part(state.at), _CONTEXT, self.context]
        pieces += (_RESULTS, results, self._results)
        size = 9 + (progress[0] & 0x0F)  # the first byte of a map this small has its size
        if state.layers:
            size += 1
            pieces += (_LAYERS, map_head(len(state.layers)), _pairs(state.layers, self.layers))
        if state.undone:
            size += 1
            pieces += (_UNDONE, map_head(len(state.undone)), _pairs(state.undone, self.undone))
        return whole(map_head(size) + b"".join(pieces), "state")

    def started(self, event: SagaStarted) -> bytes:
        """Return the event's fields, encoded."""
        names = (_text(event.saga_name), _text(event.version), _text(event.fingerprint))
        return whole(list_of(part(event.saga_id), *names, self.initial, part(event.run_id)))

    def succeeded(self, event: StepSucceeded) -> bytes:
        """Return the event's fields, encoded."""
        step = event.step
        if event.result is None and event.delta is NO_DELTA:
            return _nothing_of_it(step, event.attempt, event.how)
        layer = self.layers.get(step, _NOTHING)
        fields = (_text(step), _number(event.attempt), self.results[step], layer, _text(event.how))
        return whole(list_of(*fields), f"result of {step!r}")

    def compensated(self, event: CompensationSucceeded) -> bytes:
        """Return the event's fields, encoded."""
        step = event.step
        if event.result is None and event.delta is NO_DELTA:
            return _nothing_of_it(step, event.attempt)
        layer = self.layers.get(f"undo:{step}", _NOTHING)
        fields = (_text(step), _number(event.attempt), self.undone[step], layer)
        return whole(list_of(*fields), f"result of the compensation of {step!r}")

    # ---- what was changed in place

    def _watch(self) -> None:
        """Remember those of the context's values that can be changed in place, and what they are now."""
        unfit, context = self._unfit, self._state.context
        self._watched = {
            key: value for key, value in context.items() if type(value) not in _UNCHANGEABLE and key not in unfit
        }
        if self._watched:
            self._watched_part = part(self._watched, "context")

    def _with_changes_in_place(self, delta: Delta) -> Delta:
        """Put back what user code changed in place, and return the change with what it was changed to."""
        try:
            if part(self._watched, "context") == self._watched_part:
                return delta
        except CodecError as error:
            self._note(error)
        before: dict[str, Any] = decode(whole(self._watched_part), resolve=importing_class)
        changed = dict(delta.set)
        for key, now in self._watched.items():
            if not _same(now, before[key]):
                if key not in delta.deleted:
                    changed.setdefault(key, now)
                self._state.unalias(key, before[key])
        self._watch()
        return Delta(changed, delta.deleted)

    # ---- what cannot be stored

    def _encode_layer(self, name: str, delta: Delta) -> None:
        if delta is NO_DELTA:
            self.layers.pop(name, None)
            return
        changed = dict(delta.set)
        self._unfit.difference_update(changed)
        try:
            raw = self._part(changed)
        except CodecError as error:
            self._note(error)
            raw = self._part(self._fitting(changed))
        self.layers[name] = list_of(raw, part(list(delta.deleted)))

    def _encoded(self, value: Any, at: str) -> bytes:
        try:
            return self._part_of(value, at)
        except CodecError as error:
            self._note(error)
        if type(value) is dict:
            return self._part({key: item for key, item in value.items() if self._fits(key, item)}, at)
        return _NOTHING

    def _part(self, values: Mapping[str, Any], at: str = "context") -> bytes:
        return part(values if self._fields is None else self._fields.hidden(values), at)

    def _part_of(self, result: Any, at: str) -> bytes:
        hides = self._fields is not None and isinstance(result, Mapping)
        return self._part(result, at) if hides else part(result, at)

    def _fits(self, key: Any, value: Any) -> bool:
        try:
            part(key)
            part(value if self._fields is None else self._fields.of(key, value))
        except CodecError:
            return False
        return True

    def _fitting(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what can be stored of the values, and remember the keys of the others."""
        self._unfit.update(key for key, value in values.items() if not self._fits(key, value))
        return self._without_unfit(values)

    def _without_unfit(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in self._unfit}

    def _note(self, error: CodecError) -> None:
        if self.problem is None:
            self.problem = error


def _pairs(steps: Iterable[str], parts: Mapping[str, bytes]) -> bytes:
    return b"".join([_text(step) + parts[step] for step in steps])


def _same(one: Any, other: Any) -> bool:
    try:
        return part(one) == part(other)
    except CodecError:
        return False
