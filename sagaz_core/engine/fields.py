"""The fields of a context that are encrypted: on their way into a store, and back before a saga runs on."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sagaz_core.encryption import Encrypted
from sagaz_core.errors import CannotStoreError, CodecError, EncryptedValueError, UnknownTypeError, UsageError
from sagaz_core.events import CompensationSucceeded, Delta, SagaStarted, StepSucceeded
from sagaz_core.storage.codec import Resolve, decode, encode, importing_class

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sagaz_core.encryption import FieldCipher
    from sagaz_core.events import Event
    from sagaz_core.saga.config import ReplayConfig
    from sagaz_core.state import SagaState


class EncryptedFields:
    """Puts what a cipher makes of them in the place of some keys' values.

    The cipher is asked once for each value of a key: with a new nonce each time no two snapshots would have those bytes
    in common, and a snapshot's difference from the one before would hold them all again.
    """

    __slots__ = ("_cipher", "_keys", "_made")

    def __init__(self, cipher: FieldCipher, keys: Iterable[str]) -> None:
        self._cipher = cipher
        self._keys = tuple(keys)
        self._made: dict[tuple[str, bytes], Encrypted] = {}

    def hidden(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values with those of the keys encrypted. Raises `CannotStoreError`."""
        found = [key for key in self._keys if key in values]
        if not found:
            return values
        if not isinstance(values, dict):
            raise CannotStoreError(
                f"a {type(values).__name__} with the key {found[0]!r}, which is to be encrypted, cannot be stored; "
                f"return a dict",
                found[0],
            )
        hidden = values.copy()
        for key in found:
            hidden[key] = self.of(key, values[key])
        return hidden

    def of(self, key: str, value: Any) -> Any:
        """Return what is stored in place of the key's value: the value itself, unless the key is one of them."""
        if key not in self._keys or type(value) is Encrypted:
            return value
        at = f"context[{key!r}]"
        plain = encode(value, at)
        made = self._made.get((key, plain))
        if made is None:
            made = self._made[key, plain] = Encrypted(self._encrypted(key, plain, at))
        return made

    def _encrypted(self, key: str, plain: bytes, at: str) -> bytes:
        try:
            data = self._cipher.encrypt(key, plain)
        except Exception as error:  # anyone's
            raise CannotStoreError(f"{at}: its cipher could not encrypt it ({_said(error)})", at) from error
        if not isinstance(data, bytes):
            raise CannotStoreError(f"{at}: its cipher gave a {type(data).__name__!r}, and must give bytes", at)
        return data


def encrypted_fields(config: ReplayConfig) -> EncryptedFields | None:
    """Return what encrypts the fields that the configuration names. Raises `UsageError` when it has no cipher."""
    if not config.encrypt_fields:
        return None
    if config.field_cipher is None:
        raise UsageError(
            "encrypt_fields: nothing is there to encrypt them with; give ReplayConfig a field_cipher, "
            "or leave those keys out of the context"
        )
    return EncryptedFields(config.field_cipher, config.encrypt_fields)


class FieldReader:
    """Puts values where encrypted ones stand: those of an override, and what the cipher of the configuration reads.

    Raises `EncryptedValueError` for a value that is neither overridden nor can be read.
    """

    __slots__ = ("_cipher", "_override", "_resolve", "_saga_id")

    def __init__(
        self,
        saga_id: str,
        config: ReplayConfig | None,
        override: Mapping[str, Any] = MappingProxyType({}),
        *,
        resolve: Resolve = importing_class,
    ) -> None:
        self._saga_id = saga_id
        self._cipher = None if config is None else config.field_cipher
        self._override = override
        self._resolve = resolve

    def fill(self, state: SagaState) -> None:
        """Put the values into the state."""
        read = self._read
        state.initial, state.context = read(state.initial), read(state.context)
        for name, layer in state.layers.items():
            state.layers[name] = Delta(read(layer.set), layer.deleted)
        state.results = {step: read(result) for step, result in state.results.items()}
        state.undone = {step: read(result) for step, result in state.undone.items()}

    def event(self, event: Event) -> Event:
        """Return the event with the values in it."""
        if isinstance(event, SagaStarted):
            return event._replace(context=self._read(event.context))
        if isinstance(event, (StepSucceeded, CompensationSucceeded)):
            delta = event.delta
            if delta.set:
                delta = Delta(self._read(delta.set), delta.deleted)
            return event._replace(result=self._read(event.result), delta=delta)
        return event

    def _read(self, values: Any) -> Any:
        """Return a mapping with the values in it; anything else as it is."""
        if not has_encrypted(values):
            return values
        made = values.copy()
        for key, value in values.items():
            if type(value) is Encrypted:
                made[key] = self._override[key] if key in self._override else self._decrypted(key, value.data)
        return made

    def _decrypted(self, key: str, data: bytes) -> Any:
        what = f"the value of {key!r} in saga {self._saga_id!r} is encrypted"
        if self._cipher is None:
            raise EncryptedValueError(
                f"{what}: give its ReplayConfig a field_cipher that reads it, or override it", key
            )
        try:
            plain = self._cipher.decrypt(key, data)
        except Exception as error:  # anyone's
            raise EncryptedValueError(f"{what}, and its cipher cannot read it ({_said(error)})", key) from error
        try:
            return decode(plain, resolve=self._resolve)
        except UnknownTypeError:
            raise
        except (CodecError, TypeError) as error:
            raise EncryptedValueError(f"{what}, and what its cipher gave is no value ({_said(error)})", key) from error


def has_encrypted(values: Any) -> bool:
    """Say whether these are a mapping, and one of its values is encrypted."""
    return isinstance(values, dict) and Encrypted in map(type, values.values())


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200].rstrip(": ")
