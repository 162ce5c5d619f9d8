"""Every plan of up to k faults of a saga, by forking its state between operations and merging equal states.

A node is a saga between two operations with a number of faults left. From it go one branch without a fault and one for
each script of faults that the next operation can have. What follows from a node depends on its key alone (see
`keys`), so it is worked out once: `counts` adds up the plans that end below it, `found` has what is wrong
with them.

In a DAG the nodes are the sets of steps that can be complete together (the ideals of the order), not interleavings; so
are the states of a rollback. With too many of them two orders are tried: newest first, oldest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from sagaz_core.faults.plan import Fault
from sagaz_core.prove.branch import Branch
from sagaz_core.prove.effects import Effects, Stopped
from sagaz_core.prove.ends import Ends
from sagaz_core.prove.keys import backward_key, forward_key
from sagaz_core.prove.moves import NO_FAULT, Moves
from sagaz_core.prove.scripts import Scripts
from sagaz_core.prove.summary import TURNED_BACK, Found, Move, Path, Summary, Total, blamed
from sagaz_core.prove.transitions import Transition, repeat

if TYPE_CHECKING:
    from sagaz_core.engine.run import Served

Begun = dict[Sequence[Fault], Transition]
"""What each script came to that scripts after it begin with."""

MAX_SIBLINGS = 4
SAMPLE = 100


class Tree:
    """Explores one saga, in every order of its steps with `orders`.

    `covered` counts the plans known to be done.
    """

    def __init__(
        self,
        scripts: Scripts,
        effects: Effects,
        ends: Ends,
        *,
        orders: bool = False,
        merge: bool = True,
        recorded: dict[str, Served] | None = None,
        over: Callable[[], bool] = lambda: False,
        on_progress: Callable[[int], object] | None = None,
    ) -> None:
        self.scripts = scripts
        self.model = scripts.model
        self.effects = effects
        self.covered = 0
        self.spent = False
        self.checked: set[tuple[str, str]] = set()
        self.unsound: set[tuple[str, str]] = set()
        self.samples: list[tuple[tuple[Fault, ...], frozenset[Found]]] = []
        self.ends = ends
        self.moves = Moves(self.model, recorded or {}, orders=orders)
        self._merge = merge
        self._over = over
        self._on_progress = on_progress
        self._memo: dict[tuple[Any, ...], Summary] = {}
        self._hits = [0, 0]
        self._prefix: list[tuple[Fault, ...]] = []
        self._ordered = not orders
        self.places = {name: place for place, name in enumerate(self.model.order)}

    async def explore(self, root: Branch, depth: int) -> Summary:
        """Return what is below the root."""
        self._depth = depth
        self._zero = (0,) * (depth + 1)
        self._one = (1,) + (0,) * depth
        while True:
            watched = self.effects.undone_read
            self.effects.relied_on_reads = self.effects.reads_changed = False
            summary = await self._forward(root, depth)
            if self.effects.undone_read is watched and not self.effects.reads_changed:
                self._memo.clear()  # or the garbage collector goes through them
                self.effects.transitions.clear()
                return summary
            # A compensation looks at more than was seen of it before, so states that were the same are not.
            self._memo.clear()
            self.samples.clear()
            self.unsound.clear()
            self.covered = 0
            self._hits = [0, 0]

    async def note_completed(self, root: Branch) -> None:
        """Tell the judge of each world that the saga leaves without faults, in whatever order its steps come."""
        seen, todo = set(), [root]
        while todo:
            at = todo.pop()
            key = forward_key(at, 0, self._ordered)
            if key in seen:
                continue
            seen.add(key)
            ready = at.ready()
            if not ready:
                self.ends.completed.setdefault(self.effects.worlds.key(at.world), at.world)
            for step in reversed(self.moves.forward(ready) if ready else ()):  # the first one is taken first
                branch = at.fork()
                if await self._run(branch, step, (), undo=False) and not branch.turning_back:
                    todo.append(branch)

    # ---- forward

    async def _forward(self, at: Branch, left: int, spine: bool = True) -> Summary:
        ready = at.ready()
        if not ready:
            return await self._at_end(at, left)
        key = forward_key(at, left, self._ordered)
        known = self._known(key, at)
        if known is not None:
            return known
        total = Total(self._depth, self.places)
        for place, step in enumerate(self.moves.forward(ready)):
            if place:
                total.count = False
            await self._act(at, step, left, place, total, spine and not place)
            if left and len(ready) > 1 and at.definition.on_sibling_failure == "cancel":
                await self._act_beside(at, step, [name for name in ready if name != step], left, place, total)
        return self._kept(key, total)

    async def _act(self, at: Branch, step: str, left: int, place: int, total: Total, spine: bool) -> None:
        if (without := await self._acted(at, step, (), left, spine)) is not None:
            total.add(Move(place, ()), without)
        begun: Begun = {}
        for script in self.scripts.of(step, False, left) if left else ():
            self._prefix.append(script)
            below = await self._acted(at, step, script, left - len(script), False, begun=begun)
            self._prefix.pop()
            if below is not None:
                total.add(Move(place, script), below)
                if left == self._depth:
                    self._note_unsound(script, below, without)
                if spine:
                    self._progress(below)

    async def _act_beside(
        self, at: Branch, step: str, siblings: list[str], left: int, place: int, total: Total
    ) -> None:
        """Let the step fail with all that its running siblings can have done by then: each its effect, or nothing."""
        counted, total.count = total.count, False
        combinations: Iterable[tuple[bool, ...]] = product((False, True), repeat=len(siblings))
        if len(siblings) > MAX_SIBLINGS:
            combinations = [(False,) * len(siblings), (True,) * len(siblings)]
        for done in combinations:
            interrupted = tuple(zip(siblings, done, strict=True))
            for script in self.scripts.of(step, False, 1):
                if not self.scripts.fatal(script):
                    continue
                below = await self._acted(at, step, script, left - 1, False, interrupted)
                if below is not None:
                    total.add(Move(place, script, interrupted), below)
        total.count = counted

    async def _acted(
        self,
        at: Branch,
        step: str,
        script: Sequence[Fault],
        left: int,
        spine: bool,
        interrupted: Sequence[tuple[str, bool]] = (),
        begun: Begun | None = None,
    ) -> Summary | None:
        branch, already = _begin(at, step, script, left, begun)
        if interrupted and not await self._interrupt(branch, interrupted):
            return None
        if not await self._run(branch, step, script, already, undo=False):
            return None
        if branch.abort is not None:
            raise branch.abort
        if not branch.turning_back:
            return await self._forward(branch, left, spine)
        if branch.past_pivot:
            try:
                recovered = await branch.recover()
            except Stopped as stopped:
                self._stop(stopped)
                return None
            if recovered:
                return await self._forward(branch, left, spine)
            below = await self._ended(branch)
        else:
            branch.begin_undoing()
            below = await self._back(branch, left)
        if not branch.fatal and not (script and self.scripts.fatal(tuple(script))):
            below = below._replace(found={TURNED_BACK: Path(()), **below.found})
        return below

    async def _interrupt(self, branch: Branch, interrupted: Sequence[tuple[str, bool]]) -> bool:
        try:
            for name, effect in interrupted:
                await branch.interrupt(name, effect)
        except Stopped as stopped:
            self._stop(stopped)
            return False
        return True

    async def _run(self, branch: Branch, step: str, script: Sequence[Fault], already: int = 0, *, undo: bool) -> bool:
        """Run one operation, and say whether all of the script happened."""
        if self.spent or self._over():
            self.spent = True
            return False
        try:
            await self.moves.made(branch, step, script, already, undo=undo)
        except Stopped as stopped:
            self._stop(stopped)
            return False
        if branch.void:
            return False
        for fault in script:
            self.checked.add((fault.step, fault.kind))
        return True

    async def _at_end(self, at: Branch, left: int) -> Summary:
        total = Total(self._depth, self.places)
        done = at.fork()
        total.add(Move(0, ()), await self._ended(done))
        if left and self.scripts.end is not None:
            failed = at.fork()
            failed.fail_end(self.scripts.end)
            failed.begin_undoing()
            script = (self.scripts.end,)
            self._prefix.append(script)
            below = await self._back(failed, left - 1)
            self._prefix.pop()
            if not self.scripts.end_counts:
                below = below._replace(counts=self._zero, beside=0)
            total.add(Move(0, script), below)
        return total.summary()

    # ---- back

    async def _back(self, at: Branch, left: int) -> Summary:
        assert at.undoing is not None
        todo = at.undoing.todo
        if not todo:
            return await self._ended(at)
        if not left and self.model.linear:
            return await self._straight_back(at)
        key = backward_key(at, left, self._ordered)
        known = self._known(key, at)
        if known is not None:
            return known
        total = Total(self._depth, self.places)
        for place, step in enumerate(self.moves.back(todo, at.late)):
            if place:
                total.count = False
            if (without := await self._undone(at, step, (), left)) is not None:
                total.add(Move(place, ()), without)
            # What struck it for good strikes again, before anything else could.
            free = left and step not in at.struck
            begun: Begun = {}
            for script in self.scripts.of(step, True, left) if free else ():
                self._prefix.append(script)
                below = await self._undone(at, step, script, left - len(script), begun)
                self._prefix.pop()
                if below is not None:
                    total.add(Move(place, script), below)
                    if left == self._depth - 1:
                        self._note_unsound(script, below, without)
        return self._kept(key, total)

    async def _straight_back(self, branch: Branch) -> Summary:
        """Go on where nothing is left to choose, on one branch, to the end or to what is known."""
        passed = []
        while True:
            assert branch.undoing is not None
            todo = branch.undoing.todo
            if not todo:
                below = await self._ended(branch)
                break
            key = backward_key(branch, 0, self._ordered)
            known = self._known(key, branch)
            if known is not None:
                below = known
                break
            passed.append(key)
            if not await self._run(branch, todo[0], (), undo=True):
                return Summary(self._zero, {})
        for key in reversed(passed):
            if below.found:
                below = below._replace(found={what: path.after(NO_FAULT) for what, path in below.found.items()})
            self._keep(key, below)
        return below

    async def _undone(
        self, at: Branch, step: str, script: Sequence[Fault], left: int, begun: Begun | None = None
    ) -> Summary | None:
        branch, already = _begin(at, step, script, left, begun, undo=True)
        if not await self._run(branch, step, script, already, undo=True):
            return None
        return await self._back(branch, left)

    async def _ended(self, at: Branch) -> Summary:
        try:
            found = await self.ends.found(at)
        except Stopped as stopped:
            self._stop(stopped)
            return Summary(self._zero, {})
        return Summary(self._one, dict.fromkeys(found, Path(())))

    # ---- bookkeeping

    def _stop(self, stopped: Stopped) -> None:
        if stopped.error is not None:
            raise stopped.error
        self.spent = True

    def _known(self, key: tuple[Any, ...], at: Branch) -> Summary | None:
        if not self._merge:
            return None
        known = self._memo.get(key)
        # Where the saga turned back by itself, that is what is said of the run, and not known here.
        if known is not None and self._prefix and (at.undoing is None or at.fatal):
            # Of those that go on and of those that turn back alike, the first and then one in a hundred.
            back = at.undoing is not None
            self._hits[back] += 1
            if self._hits[back] % SAMPLE == 1:
                self._sample(known)
        return known

    def _sample(self, below: Summary) -> None:
        faults = tuple(fault for script in self._prefix for fault in script)
        if TURNED_BACK not in below.found or below.found[TURNED_BACK].faults:
            clean = frozenset(blamed(key, faults) for key, path in below.found.items() if not path.faults)
            self.samples.append((faults, clean))

    def _note_unsound(self, script: Sequence[Fault], below: Summary, without: Summary | None) -> None:
        """Note the fault that makes unsound, by itself, what is sound without it; `found` keeps one plan of each."""
        here, there = (_at_once(summary) for summary in (below, without))
        if len(script) == 1 and here - there and not there - {TURNED_BACK}:
            self.unsound.add((script[0].step, script[0].kind))

    def _kept(self, key: tuple[Any, ...], total: Total) -> Summary:
        summary = total.summary()
        self._keep(key, summary)
        return summary

    def _keep(self, key: tuple[Any, ...], summary: Summary) -> None:
        if self._merge and not self.spent:
            self._memo[key] = summary

    def _progress(self, below: Summary) -> None:
        self.covered += sum(below.counts)
        if self._on_progress is not None:
            self._on_progress(self.covered)


def _at_once(below: Summary | None) -> set[Found]:
    """Return what is wrong without a further fault."""
    return set() if below is None else {key for key, path in below.found.items() if not path.faults}


def _begin(
    at: Branch, step: str, script: Sequence[Fault], left: int, begun: Begun | None, *, undo: bool = False
) -> tuple[Branch, int]:
    """Return a branch for the operation, and how much of the script has struck it: as much as was tried before."""
    branch = at.fork()
    if left:
        branch.begun = begun
    if begun and len(script) > 1 and (before := begun.get(script[:-1])) is not None:
        repeat(before, branch, step, undo=undo)
        return branch, len(script) - 1
    return branch, 0
