"""Numbers for sequences that grow and shrink mostly at their ends, so that two of them are compared as integers."""

from __future__ import annotations

EMPTY = 0


class Stacks:
    """Gives equal sequences of `(name, number)` equal numbers; `EMPTY` is the one of the empty sequence."""

    def __init__(self) -> None:
        self._below = [EMPTY]
        self._top = [("", 0)]
        self._pushed: dict[tuple[int, str, int], int] = {}
        self._without: dict[tuple[int, str], int] = {}
        self._unordered: dict[int, int] = {}
        self._sets: dict[tuple[frozenset[tuple[str, int]], tuple[tuple[str, int], ...]], int] = {}

    def push(self, stack: int, name: str, number: int) -> int:
        """Return the sequence with one more at its end."""
        key = stack, name, number
        found = self._pushed.get(key)
        if found is None:
            found = self._pushed[key] = len(self._top)
            self._below.append(stack)
            self._top.append((name, number))
        return found

    def without(self, stack: int, name: str) -> int:
        """Return the sequence without the last that has the name, or as it is."""
        key = stack, name
        found = self._without.get(key)
        if found is None:
            found = self._without[key] = self._made_without(stack, name)
        return found

    def _made_without(self, stack: int, name: str) -> int:
        above: list[tuple[str, int]] = []
        at = stack
        while at != EMPTY:
            top = self._top[at]
            at = self._below[at]
            if top[0] == name:
                for kept, number in reversed(above):
                    at = self.push(at, kept, number)
                return at
            above.append(top)
        return stack

    def number(self, stack: int, name: str) -> int:
        """Return the last number under the name, or 0."""
        while stack != EMPTY:
            top, number = self._top[stack]
            if top == name:
                return number
            stack = self._below[stack]
        return 0

    def unordered(self, stack: int) -> int:
        """Return a number that all sequences of the same members share.

        What steps did is of one order wherever it matters (two that nothing orders write no key both), but not what
        compensations wrote (`undo:…`), nor what was changed in place (`=…`): of those the last one counts.
        """
        found = self._unordered.get(stack)
        if found is None:
            members: list[tuple[str, int]] = []
            in_order: list[tuple[str, int]] = []
            at = stack
            while at != EMPTY:
                top = self._top[at]
                (in_order if ":" in top[0] or top[0][0] == "=" else members).append(top)
                at = self._below[at]
            key = frozenset(members), tuple(in_order)
            found = self._unordered[stack] = self._sets.setdefault(key, len(self._sets))
        return found
