"""Every error that sagaz_core raises, in one tree.

    SagazError
    ├── DefinitionError (ValueError)          the saga is declared wrongly
    │   ├── NoStepsError                      it has none: a base of other sagas, perhaps
    │   └── ContextConflictError              two parallel steps wrote one context key
    ├── UsageError (ValueError)               an argument, option, marker or plan is wrong
    │   ├── PlanError                         a fault plan that cannot be read, or does not fit the saga
    │   ├── NaiveTimeError                    a time without a timezone
    │   └── OverrideError                     an override of a key that the context does not have
    ├── UnknownSagaError (LookupError)        no such saga, recording, class
    │   ├── UnknownStepError                  no such step, or no checkpoint before it
    │   └── UnknownSagaClassError             the class of a recorded saga cannot be found
    ├── DriftError (ValueError)               the definition is not the one that was recorded
    ├── CodecError (ValueError)               a value or a stored byte string
    │   ├── CannotStoreError (TypeError)      a value that would not survive the store
    │   ├── CorruptDataError                  stored data that is damaged
    │   │   ├── DamagedSnapshotError          a snapshot, or one that it is based on
    │   │   └── DamagedListingError           a record in a listing, which goes on behind it
    │   ├── UnknownTypeError                  stored data of a class that is not known here
    │   ├── EncryptedValueError               a stored value that must be decrypted, and cannot be
    │   └── NewerFormatError                  stored data of a format newer than this code
    ├── StorageError (OSError)                a store could not do what it was asked
    │   ├── StoreUnavailableError             it cannot be reached, or did not answer in time
    │   ├── SchemaError                       its tables are of another version
    │   ├── CopyError                         a copied saga is not what was read
    │   └── DuplicateSagaError                a saga of this id is there already
    ├── MissingExtraError (ImportError)       an optional dependency is not installed
    ├── RunningLoopError (RuntimeError)       a sync entry point was called inside a running loop
    ├── DeadlockError (RuntimeError)          under virtual time, nothing can ever wake the tasks that wait
    ├── NetworkBlockedError (ConnectionError) a replay tried to reach the network
    ├── StepRejected                          raised by an action: refused, so certainly without effect
    ├── StepTimeoutError (TimeoutError)       a step ran out of its time
    └── InjectedFaultError                    what a fault plan raises when it is given no exception

Messages are one line: what, where, expected and got, what to do. The parts are attributes of the error.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class SagazError(Exception):
    """The root of all errors that sagaz_core raises."""


class DefinitionError(SagazError, ValueError):
    """A saga is declared in a way that cannot run."""


class NoStepsError(DefinitionError):
    """A saga has no steps: it cannot run, but may be what other sagas are derived from."""


class ContextConflictError(DefinitionError):
    """Two steps with no order between them wrote the same context key."""

    def __init__(self, key: str, steps: tuple[str, str]) -> None:
        super().__init__(
            f"steps {steps[0]!r} and {steps[1]!r} run in parallel and both write the context key {key!r}: "
            f"give them different keys, or an order with depends_on"
        )
        self.key = key
        self.steps = steps


class UsageError(SagazError, ValueError):
    """An argument, option or marker is wrong; the message says how to write it."""


class PlanError(UsageError):
    """A fault plan cannot be read, or names what the saga does not have."""


class NaiveTimeError(UsageError):
    """A time came without a timezone."""


class OverrideError(UsageError):
    """An override names a key that the context does not have."""


class UnknownSagaError(SagazError, LookupError):
    """There is no such saga, recording or class."""


class UnknownStepError(UnknownSagaError):
    """The saga has no such step, or the recording has no state before it."""


class UnknownSagaClassError(UnknownSagaError):
    """The class of a recorded saga cannot be found."""


class DriftError(SagazError, ValueError):
    """The saga's definition differs from the recorded one.

    `differences` has one line for each difference.
    """

    def __init__(self, message: str, differences: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.differences = differences


class CodecError(SagazError, ValueError):
    """A value cannot be encoded, or stored bytes cannot be decoded."""


class CannotStoreError(CodecError, TypeError):
    """A value would not survive the store. `path` says where it is, such as `context['items'][2]`."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class CorruptDataError(CodecError):
    """Stored data is damaged."""


class DamagedSnapshotError(CorruptDataError):
    """A stored snapshot, or one that it is based on, is damaged or missing. `readable` are the ids of those that it is
    based on and that can still be read.
    """

    def __init__(self, message: str, snapshot_id: str = "", readable: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.snapshot_id = snapshot_id
        self.readable = readable


class DamagedListingError(CorruptDataError):
    """A record in a listing is damaged. `items` are those of the page before it, `cursor` goes on behind it."""

    def __init__(self, message: str, items: Sequence[Any], cursor: str) -> None:
        super().__init__(message)
        self.items = items
        self.cursor = cursor


class UnknownTypeError(CodecError):
    """Stored data is of a class that is not known here. `type_name` is `module:qualname`."""

    def __init__(self, message: str, type_name: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name


class EncryptedValueError(CodecError):
    """A stored value is encrypted and is needed as it was. `key` is its key in the context."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class NewerFormatError(CodecError):
    """Stored data has a format version that this release does not read."""


class StorageError(SagazError, OSError):
    """A store could not do what it was asked."""


class StoreUnavailableError(StorageError):
    """A store cannot be reached, or did not answer in time."""


class SchemaError(StorageError):
    """A store's tables are of a version that this release does not read."""


class CopyError(StorageError):
    """A store does not give back what was copied into it."""


class DuplicateSagaError(StorageError):
    """A saga of this id is in the store already."""


class MissingExtraError(SagazError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class RunningLoopError(SagazError, RuntimeError):
    """A synchronous entry point was called inside a running event loop."""


class DeadlockError(SagazError, RuntimeError):
    """Under virtual time no timer, callback or thread is left that could wake the waiting tasks.

    `tasks` describes them (`sagaz_core.virtual_time.WaitingTask`).
    """

    tasks: tuple[object, ...] = ()


class NetworkBlockedError(SagazError, ConnectionError):
    """A replay tried to reach the network, which it may not."""


class StepRejected(SagazError):  # noqa: N818 - reads as what happened, like asyncio's CancelledError does not
    """Raised by an action that refused before it did anything: it certainly has no effect to undo."""


class StepTimeoutError(SagazError, TimeoutError):
    """A step ran out of its time."""


class InjectedFaultError(SagazError):
    """What a fault plan raises when it is given no exception of its own."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the known name closest to `name`, or `""`."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def quoted(names: Iterable[str]) -> str:
    """Return the names for a message: `'a', 'b'`, or `none`."""
    return ", ".join(repr(name) for name in names) or "none"
