"""The file of a recording: JSON, one fact a line.

The keys of what is ours are sorted. A saga's own values keep the order of their keys: it is a part of them, and of the
maps of steps in a state, whose order is the order of what was done.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from typing import TYPE_CHECKING, Any

from sagaz_core.errors import (
    CodecError,
    CorruptDataError,
    DefinitionError,
    NewerFormatError,
    SagazError,
    StorageError,
    UnknownSagaError,
)
from sagaz_core.events import EVENT_TYPES, Event, SagaStarted
from sagaz_core.model import SagaModel
from sagaz_core.state import SagaState
from sagaz_core.storage.base import SagaRecord, SagaSnapshot, checked_id
from sagaz_core.storage.codec import decode, encode, opaque_class
from sagaz_core.storage.frames import standalone, state_bytes
from sagaz_core.storage.jsonform import from_json, parse_json, to_json
from sagaz_core.storage.records import (
    Resolve,
    event_fields,
    event_from_fields,
    state_from_data,
)
from sagaz_core.times import aware

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

FORMAT = "sagaz-recording"
VERSION = 1
MAX_FILE_BYTES = 64 * 1024 * 1024

Parts = tuple[SagaRecord, tuple[Event, ...], tuple[SagaSnapshot, ...]]


def read_file(path: Path) -> Any:
    """Return the file's JSON. Raises `UnknownSagaError` for no file, `CorruptDataError` for one that is no JSON."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CorruptDataError(f"{path} has {size:,} bytes: a recording has at most {MAX_FILE_BYTES:,}")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        return parse_json(data.decode("utf-8"))
    except CodecError:
        raise
    except FileNotFoundError:
        raise UnknownSagaError(f"there is no recording {str(path)!r}: check the path") from None
    except IsADirectoryError:
        raise UnknownSagaError(f"{str(path)!r} is a folder: name a recording file in it") from None
    except OSError as error:
        raise StorageError(f"recording {str(path)!r} cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise CorruptDataError(f"{path} is not a recording: no JSON ({what})") from None
    except ValueError as error:  # an integer of millions of digits
        raise CorruptDataError(f"{path} is not a recording: {error}") from None


def write_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write the JSON beside the path and put it there at once. The file is for its owner only: it has customer data."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise StorageError(f"recording {str(path)!r} cannot be written: {error.strerror or error}") from error


def recording_to_json(record: SagaRecord, events: Sequence[Event], snapshots: Sequence[SagaSnapshot]) -> dict[str, Any]:
    """Return what the file holds."""
    model = json.loads(json.dumps(record.model, sort_keys=True))  # has no order of its own
    return _sorted(
        {
            "format": FORMAT,
            "version": VERSION,
            "saga": _sorted({**record._asdict(), "model": model, "started_at": record.started_at.isoformat()}),
            "events": [_sorted(_event_to_json(event)) for event in events],
            "snapshots": [_sorted(_snapshot_to_json(snapshot)) for snapshot in snapshots],
        }
    )


def _sorted(mapping: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(mapping.items()))


def recording_from_json(content: Any, where: str, resolve: Resolve) -> Parts:
    """Do the inverse. Raises `CodecError` that names `where` for whatever else it is given."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CorruptDataError(f"{where} is not a recording: it does not say format {FORMAT!r}")
    version = content.get("version")
    if type(version) is not int or version != VERSION:  # to Python, true is 1
        if type(version) is int and version > VERSION:
            raise NewerFormatError(
                f"{where} has format version {version!r:.40}, this release reads {VERSION}: upgrade pytest-sagaz"
            )
        raise CorruptDataError(f"{where} has no format version that was ever written: {version!r:.40}")
    try:
        record = _record_from_json(content["saga"])
        events = tuple(_event_from_json(event, resolve) for event in content["events"])
        snapshots = tuple(_snapshot_from_json(snapshot, record) for snapshot in content["snapshots"])
        state = SagaState()
        for event in events:
            state.apply(event)
        SagaModel.from_dict(record.model)
        if events and (not isinstance(events[0], SagaStarted) or state.saga_id != record.saga_id):
            raise ValueError("its events do not begin with the start of its saga")
    except CodecError as error:
        error.args = (f"{where}: {error}", *error.args[1:])
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, SagazError) as error:
        why = f"{type(error).__name__}: {error}" if not isinstance(error, DefinitionError) else str(error)
        raise CorruptDataError(f"{where} is damaged ({why:.200})") from error
    if not events:
        raise CorruptDataError(f"{where} is damaged: it has no events")
    return record, events, snapshots


def _record_from_json(data: Mapping[str, Any]) -> SagaRecord:
    known = set(SagaRecord._fields)
    values: dict[str, Any] = {key: value for key, value in data.items() if key in known}
    for key, value in values.items():
        if key not in ("model", "started_at") and not isinstance(value, str):
            raise TypeError(f"saga.{key} is no text")
    values["started_at"] = aware(values["started_at"])
    values["saga_id"] = checked_id(values["saga_id"])
    return SagaRecord(**values)


def _event_to_json(event: Event) -> dict[str, Any]:
    names = type(event)._fields[2:]
    at = event.at.isoformat()
    values = {name: to_json(value, name) for name, value in zip(names, event_fields(event), strict=True)}
    return {"seq": event.seq, "at": at, "kind": type(event).__name__, **values}


def _event_from_json(data: Mapping[str, Any], resolve: Resolve) -> Event:
    kind = EVENT_TYPES[data["kind"]]
    values = [from_json(data[name], resolve=resolve) for name in kind._fields[2:]]
    return event_from_fields(data["kind"], _whole(data["seq"]), aware(data["at"]), values)


def _whole(value: object) -> int:
    if type(value) is not int or not -1 <= value < 2**63:
        raise TypeError(f"{value!r:.40} is no number of an event")
    return value


def _snapshot_to_json(snapshot: SagaSnapshot) -> dict[str, Any]:
    return {
        "snapshot_id": snapshot.snapshot_id,
        "step_name": snapshot.step_name,
        "phase": snapshot.phase,
        "seq": snapshot.seq,
        "created_at": snapshot.created_at.isoformat(),
        "retention_until": snapshot.retention_until.isoformat() if snapshot.retention_until else None,
        **({"tags": dict(snapshot.tags)} if snapshot.tags else {}),
        "state": to_json(decode(state_bytes(snapshot), resolve=opaque_class), "state"),
    }


def _snapshot_from_json(data: Mapping[str, Any], record: SagaRecord) -> SagaSnapshot:
    # Its classes need not be known to keep it, only to look into it.
    plain = from_json(data["state"], resolve=opaque_class)
    state = state_from_data(plain, str(data["snapshot_id"]))
    until = data.get("retention_until")
    created: datetime = aware(data["created_at"])
    snapshot = SagaSnapshot(
        snapshot_id=str(data["snapshot_id"]),
        saga_id=record.saga_id,
        saga_name=record.saga_name,
        step_name=str(data["step_name"]),
        step_index=len(state.results),
        seq=_whole(data["seq"]),
        phase=str(data["phase"]),
        status=state.status.value,
        created_at=created,
        data=b"",
        retention_until=aware(until) if until else None,
        completed_steps=tuple(state.results),
        tags=tuple(sorted((str(key), str(value)) for key, value in data.get("tags", {}).items())),
    )
    return standalone(snapshot, encode(plain, "state"))
