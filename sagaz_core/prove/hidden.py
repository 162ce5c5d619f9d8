"""Noticing a fake that changes and does not show it: its `snapshot()` gives the same before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagaz_core.storage.codec import encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sagaz_core.prove.world import World

_Seen = tuple[bytes, "dict[str, bytes]"]


class Hidden:
    """Looks at the attributes of the fakes that say themselves what their state is. Without such fakes it is false.

    A fake may well keep something to itself, such as a count of its calls. So one is only told of when it never showed
    anything of what its steps did.
    """

    def __init__(self, world: World | None) -> None:
        self._fakes = {} if world is None else world.with_snapshot()
        self._changed: dict[str, dict[str, None]] = {}
        self._shown: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._fakes)

    def look(self) -> Mapping[str, _Seen]:
        """Return what the fakes are now, for `note`."""
        return {name: (_encoded(fake.snapshot()), _attributes(fake)) for name, fake in self._fakes.items()}

    def note(self, before: Mapping[str, _Seen]) -> None:
        """Take in what has changed since."""
        for name, (state, attributes) in self.look().items():
            state_before, attributes_before = before[name]
            if state != state_before:
                self._shown.add(name)
            keys = attributes.keys() | attributes_before.keys()
            changed = sorted(key for key in keys if attributes.get(key) != attributes_before.get(key))
            self._changed.setdefault(name, {}).update(dict.fromkeys(changed))

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is to be said, a sentence for each such fake."""
        return tuple(
            f"the fake {name!r} hides what it is: {', '.join(keys)} changed, and its snapshot() did not; "
            f"of it only the calls were judged"
            for name, keys in self._changed.items()
            if keys and name not in self._shown
        )


def _attributes(fake: Any) -> dict[str, bytes]:
    return {key: _encoded(value) for key, value in getattr(fake, "__dict__", {}).items()}


def _encoded(value: Any) -> bytes:
    try:
        return encode(value)
    except Exception:  # what cannot be stored cannot be compared
        return b""
