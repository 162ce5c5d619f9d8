"""Values that a store keeps encrypted: what encrypts them, and what stands in their place."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class FieldCipher(Protocol):
    """Encrypts the values of the context's keys that `ReplayConfig(encrypt_fields=…)` names.

    `value` is a value, encoded; `key` its key, which is best bound to it (as associated data, say). Two calls for one
    value may give different bytes: a run asks once for each value and uses the answer again. What they raise is taken
    for a value that cannot be stored, or not be read. They are called by the event loop, so neither may wait long.
    """

    def encrypt(self, key: str, value: bytes) -> bytes:
        """Return the bytes to store."""

    def decrypt(self, key: str, data: bytes) -> bytes:
        """Return the value that `encrypt` was given for this key."""


class Encrypted:
    """What stands where a value was encrypted. Equal to another of the same bytes; the value itself is not there."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return self.data == other.data if type(other) is Encrypted else NotImplemented

    def __hash__(self) -> int:
        return hash((Encrypted, self.data))

    def __repr__(self) -> str:
        return f"<encrypted, {len(self.data)} bytes>"
