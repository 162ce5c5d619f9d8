"""Noticing that a saga acts on something of its own, and not on what is in the world that it was given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagaz_core.prove.world import plain_copy

if TYPE_CHECKING:
    from sagaz_core.prove.world import World


class Beside:
    """Remembers the plain data of a saga's services, those that are in its attributes and not in the world."""

    def __init__(self, saga: Any, world: World | None) -> None:
        self._saga = saga
        self._world = world
        self._before = self._look()

    def changed(self) -> list[str]:
        """Return the attributes of the saga whose service is not what it was."""
        now = self._look()
        return [name for name, parts in self._before.items() if now.get(name, parts) != parts]

    def _look(self) -> dict[str, dict[str, Any]]:
        found = {}
        for name, service in vars(self._saga).items():
            if not name.startswith("_") and not (self._world is not None and self._world.has(service)):
                found[name] = _plain_parts(service)
        return found


def _plain_parts(service: Any) -> dict[str, Any]:
    """Return what a service, which may be a dict or list, holds of plain data, copied."""
    parts = {"": service} if isinstance(service, (dict, list, set)) else getattr(service, "__dict__", {})
    copies = {name: plain_copy(value) for name, value in parts.items()}
    return {name: value for name, value in copies.items() if value is not None}
