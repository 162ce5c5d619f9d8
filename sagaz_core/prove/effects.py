"""What each operation does to the context and the world, found out by calling it once for each state it can see.

An operation is the user's code, and sees the context, the step's result, what compensations returned, and the world.
Where all of these are the same, so is what it does: that is measured before it is relied on (see `explorer`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from sagaz_core._leftovers import SCOPE, NewTasks, Scope, tells_scopes
from sagaz_core.engine.calls import call_operation
from sagaz_core.errors import CannotStoreError
from sagaz_core.events import describe_error
from sagaz_core.faults.inject import exception_of
from sagaz_core.prove.held import Held
from sagaz_core.prove.hidden import Hidden
from sagaz_core.prove.leftovers import left_by
from sagaz_core.prove.looks import Looked, Undone, WatchedContext
from sagaz_core.prove.round_trip import changed_by_store
from sagaz_core.prove.stacks import Stacks
from sagaz_core.prove.typed_reads import watched
from sagaz_core.prove.verdict import Finding, Verdict
from sagaz_core.prove.world import ATOMS
from sagaz_core.prove.worlds import NotForkableError, Worlds
from sagaz_core.saga.context import TypedContext
from sagaz_core.storage.codec import decode, encode, importing_class
from sagaz_core.virtual_time import VirtualClockLoop

if TYPE_CHECKING:
    from sagaz_core.faults.plan import Fault
    from sagaz_core.prove.transitions import Transition
    from sagaz_core.saga.step import Operation

_MISSING = object()


class Stopped(BaseException):
    """The search cannot go on: because of an error, or, without one, because the budget is spent."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__(error)
        self.error = error


class Sight(NamedTuple):
    """All that an operation can see, as numbers: what decides what it does."""

    step: str
    kind: str
    context: int
    result: int
    undone: tuple[Any, ...]
    world: int


class Effect(NamedTuple):
    """What one call did. Effects that are the same have the same number.

    `set`, `deleted` and `mutated` are what it did to the context; `mutated` keys hold the value they had, changed.
    """

    number: int
    result: Any = None
    error: BaseException | None = None
    set: Mapping[str, Any] = MappingProxyType({})
    deleted: tuple[str, ...] = ()
    mutated: Mapping[str, Any] = MappingProxyType({})


class Effects:
    """Calls operations, each once for all that it can see. `executions` counts the calls.

    `reads` and `writes` are the context keys that each step's action was seen to use. `noticed` is what was found out
    by looking at the calls themselves. `seen_by_world` has for each step the worlds before and after the calls that
    changed something. `looks_grown` is how often an operation was seen to look at more than before: then what it can
    see has another number.
    """

    def __init__(self, worlds: Worlds, typed: TypedContext | None, *, limit: int | None = None, keep: bool = True):
        self.worlds = worlds
        self.stacks = Stacks()
        self.executions = 0
        self.limit = limit
        self.reads: dict[str, set[str]] = {}
        self.writes: dict[str, set[str]] = {}
        self.seen_by_world: dict[str, dict[tuple[int, int], None]] = {}
        self.undone_read = False
        self.relied_on_reads = self.reads_changed = False
        self.looks_grown = 0
        self._undo_reads: dict[str, frozenset[str] | None] = {}
        self._checked: dict[str, set[str]] = {}
        self._read_by: dict[Sequence[str], frozenset[str] | None] = {}
        self.under_way: Sight | None = None
        self.held: Held | None = None
        self.noticed: dict[tuple[Verdict, str | None], Finding] = {}
        self._typed = typed
        self._known: dict[Sight, tuple[Effect, int]] = {}
        self._numbers: dict[Any, Effect] = {}
        self.keeps = keep
        self.transitions: dict[tuple[Any, ...], Transition] = {}
        self._exceptions: dict[Fault, BaseException] = {}
        loop = asyncio.get_running_loop()
        self._scope = Scope()
        self._begun: Scope | NewTasks = self._scope if tells_scopes(loop) else NewTasks()
        self.hidden = Hidden(worlds.world)
        self._loop = loop if isinstance(loop, VirtualClockLoop) else None
        self._busy: set[tuple[str, str]] = set()  # operations that were seen to poll until they were ended

    def current(self) -> tuple[int, str]:
        """Return how many calls were made, and what is being called now, or `""`."""
        sight = self.under_way
        return self.executions, f"the {sight.kind} of step {sight.step!r}" if sight is not None else ""

    def known(self, sight: Sight) -> tuple[Effect, int] | None:
        """Return what a call did that saw the same, and the world's state after it."""
        return self._known.get(sight)

    def exception_of(self, fault: Fault) -> BaseException:
        """Return what the fault raises: the same each time it strikes."""
        found = self._exceptions.get(fault)
        if found is None:
            found = self._exceptions[fault] = exception_of(fault)
        return found

    def number_of(self, result: Any, changes: Any) -> int:
        """Return the number of an effect that was not found out here but recorded."""
        return self._numbered(result, dict(changes.set), tuple(changes.deleted), {}).number

    async def call(
        self,
        sight: Sight,
        operation: Operation,
        context: Mapping[str, Any],
        second: tuple[Any, ...],
        undone: Mapping[str, Any],
    ) -> tuple[Effect, int]:
        """Call the operation in the world that it sees, and return what it did and the world's state after it.

        Raises `Stopped`.
        """
        if self.limit is not None and self.executions >= self.limit:
            raise Stopped
        self.executions += 1
        loop, what = self._loop, (sight.kind, sight.step)
        if loop is not None:
            pushes = loop.pushes
            loop.count_turns_anew(busy=what in self._busy)
        looked_into = None
        try:
            self.worlds.put(sight.world)
            if self.hidden and sight.kind == "action" and sight.step not in self.reads:
                looked_into = self.hidden.look()
            made = _Made(self._typed, context, undone)
            self.under_way = sight
            try:
                effect = await self._called(sight, operation, made, second)
            except CannotStoreError as error:
                place = made.unkept(error)
                raise NotForkableError(f"what step {sight.step!r} leaves cannot be kept: {place}") from error
            self.under_way = None
            if loop is not None and loop.pushes != pushes:
                self._busy.add(what)
            world = self.worlds.look()
        except NotForkableError as error:
            raise Stopped(error) from error
        if looked_into is not None:
            self.hidden.note(looked_into)
        if world != sight.world:
            self.seen_by_world.setdefault(sight.step, {})[sight.world, world] = None
        looked = made.looked
        if looked.undone and not self.undone_read:
            self.undone_read = True
            self.looks_grown += 1
        if sight.kind == "action":
            self.reads.setdefault(sight.step, set()).update(looked.reads)
            written = effect.result if isinstance(effect.result, Mapping) else {}
            self.writes.setdefault(sight.step, set()).update(effect.set, effect.deleted, written)
        elif sight.kind == "compensation":
            self._note_reads(sight.step, looked)
        return effect, world

    def keep(self, sight: Sight, found: tuple[Effect, int]) -> None:
        """Let what a call did be known for all that see the same."""
        if self.keeps:
            self._known[sight] = found

    def shows(self, step: str) -> bool:
        """Whether the world was seen to change by a call of the step."""
        key = self.worlds.key
        return any(key(before) != key(after) for before, after in self.seen_by_world.get(step, ()))

    # ---- what compensations read of the context

    def read_by(self, steps: Sequence[str]) -> frozenset[str] | None:
        """Return the context keys that the compensations of these steps were seen to read; `None` is all of them.

        What the caller leaves out for it is no longer sound when one is seen to read more: then `reads_changed`.
        """
        found = self._read_by.get(steps)
        if found is None and steps not in self._read_by:
            reads = [self._undo_reads.get(step, frozenset()) for step in steps]
            known = [keys for keys in reads if keys is not None]
            everything = self._typed is not None or len(known) < len(reads)
            found = self._read_by[steps] = None if everything else frozenset().union(*known)
        return found

    def may_read_more(self, step: str, hidden: frozenset[str]) -> bool:
        """Whether it was not checked yet that the step's compensation reads nothing of what the hidden steps left."""
        return self.keeps and not hidden <= self._checked.setdefault(step, set())

    async def check_unread(
        self,
        sight: Sight,
        operation: Operation,
        context: Mapping[str, Any],
        second: tuple[Any, ...],
        undone: Mapping[str, Any],
        found: tuple[Effect, int],
        hidden: frozenset[str],
    ) -> None:
        """Call a compensation once more, without what the hidden steps left, which it was not seen to read.

        If it does not do what was `found`, it reads that in a way that cannot be seen, and from now on everything
        counts as read by it.
        """
        self._checked[sight.step] |= hidden
        effect, world = await self.call(sight, operation, context, second, undone)
        if (effect.number, world) != (found[0].number, found[1]):
            self._undo_reads[sight.step] = None
            self.looks_grown += 1
            self._read_by.clear()
            self.reads_changed = True

    def _note_reads(self, step: str, looked: Looked) -> None:
        before = self._undo_reads.get(step, frozenset())
        if before is None:
            return
        now = None if looked.everything else before | looked.reads | looked.touched
        if now != before:
            self._undo_reads[step] = now
            self.looks_grown += 1
            self._read_by.clear()
            self.reads_changed = self.relied_on_reads

    async def _called(self, sight: Sight, operation: Operation, made: _Made, second: tuple[Any, ...]) -> Effect:
        SCOPE.set(self._scope)
        try:
            self.held = Held(call_operation(operation, (made.view, *map(_copied, second)), None, None))
            result = await self.held
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise Stopped(error) from error  # it is the search that is cancelled
            return self._failed(error, made)
        except Exception as error:  # the user's code: anything
            return self._failed(error, made)
        finally:
            self.held = None
            SCOPE.set(None)
            if left := self._begun.end():
                await self._note_left(sight, left)
        if isinstance(result, Mapping):
            result = dict(result) if type(result) is not dict else result
        made.result = result
        return self._numbered(result, *made.changes(), sight.step)

    async def _note_left(self, sight: Sight, left: tuple[str, ...]) -> None:
        self.noticed[Verdict.ORPHAN, sight.step] = left_by(sight.step, sight.kind, left)
        await asyncio.sleep(0)  # so that what was cancelled ends here, and not within the next call

    def _failed(self, error: BaseException, made: _Made) -> Effect:
        info = describe_error(error)
        _, _, mutated = made.changes()
        key = ("error", info, encode(mutated) if mutated else b"")
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = Effect(len(self._numbers) + 1, error=error, mutated=mutated)
        return found

    def _note_changed_by_store(self, step: str) -> None:
        self.noticed[Verdict.CONTEXT_LEAK, step] = changed_by_store(step)

    def _numbered(
        self, result: Any, changed: dict[str, Any], deleted: tuple[str, ...], mutated: dict[str, Any], step: str = ""
    ) -> Effect:
        content = encode([result, changed, deleted, mutated])
        found = self._numbers.get(content)
        if found is None:
            # Kept as a copy: what the operation holds on to may change behind our back.
            result, changed, deleted, mutated = decode(content, resolve=importing_class)
            if step and encode([result, changed, deleted, mutated]) != content:
                self._note_changed_by_store(step)
            found = Effect(len(self._numbers) + 1, result, None, changed, deleted, mutated)
            self._numbers[content] = found
        return found


class _Made:
    """A context of its own for one call, and what the call did to it."""

    def __init__(self, typed: TypedContext | None, context: Mapping[str, Any], undone: Mapping[str, Any]) -> None:
        self._typed = typed
        self._given = {key: _copied(value) for key, value in context.items()}
        self._context = context
        self.looked = Looked()
        self.result: Any = None
        self.view: Any
        seen = Undone(self.looked, undone)
        if typed is None:
            self.view = WatchedContext(self._given)
            self.view.looked = self.looked
            self.view.compensation_results = seen
        else:
            self.view = watched(typed.view(self._given, seen), self.looked.reads)
            self.looked.undone = bool(undone)  # of that a model does not tell: it may have looked

    def changes(self) -> tuple[dict[str, Any], tuple[str, ...], dict[str, Any]]:
        """Return the keys set, deleted, and changed in place."""
        mutated = {
            key: value
            for key, value in self._given.items()
            if type(value) not in ATOMS and _differ(self._context[key], value)
        }
        if self._typed is not None:
            after = self._typed.data(self.view)
            changed = {key: v for key, v in after.items() if key not in self._given or _differ(self._given[key], v)}
            return changed, (), mutated
        view = self.view
        after = {key: dict.__getitem__(view, key) for key in dict.keys(view)}
        changed = {key: value for key, value in after.items() if self._given.get(key, _MISSING) is not value}
        deleted = tuple(key for key in self._given if key not in after)
        return changed, deleted, mutated

    def unkept(self, error: CannotStoreError) -> CannotStoreError:
        """Return the error with the place, as the user knows it, of what cannot be stored."""
        after = dict.copy(self.view) if self._typed is None else self._typed.data(self.view)
        for name, value in (("context", {**self._given, **after}), ("its result", self.result)):
            try:
                encode(value, name)
            except CannotStoreError as known:
                return known
        return error


def _copied(value: Any) -> Any:
    return value if type(value) in ATOMS else decode(encode(value), resolve=importing_class)


def _differ(one: Any, other: Any) -> bool:
    return encode(one) != encode(other)
