"""The state of the mocked SQS."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import moto.sqs.models

from pytest_sagaz.sandbox._backends import QUEUE, backends, named

moto_sqs: Any = moto.sqs.models

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sagaz_core.clock import Clock

_STAYS = 30_000.0  # ms, for which a message that is put back is in flight or delayed


class SQSState:
    """`{"queue/": "(queue)", "queue/body": 1}`: how many messages have that body. If not all are plain it is a list
    of dicts instead, with a message's attributes, its group, and whether it is in flight or delayed.

    Messages that are put back are the ones that were there, so that a receipt handle that a saga holds is good again.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._queues: dict[tuple[str, str], Any] = {}
        self._messages: dict[tuple[str, str], list[Any]] = {}

    def read(self) -> dict[str, Any]:
        """Return what is there."""
        found: dict[str, Any] = {}
        for region, backend in sorted(backends("sqs").items()):
            for name, queue in sorted(backend.queues.items()):
                self._queues[region, name] = queue
                path = named(region, self._home, name)
                found[f"{path}/"] = QUEUE
                found.update(_read_messages(queue, path))
                known = self._messages.setdefault((region, name), [])
                known.extend(message for message in queue._messages if not _is_in(message, known))
        return found

    def write(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        now = self.read()
        if state == now:
            return
        for region, backend in backends("sqs").items():
            for name in [name for name in backend.queues if f"{named(region, self._home, name)}/" not in state]:
                del backend.queues[name]
        for (region, name), queue in self._queues.items():
            path = f"{named(region, self._home, name)}/"
            if path in state:
                backends("sqs")[region].queues.setdefault(name, queue)
                if _part(state, path) != _part(now, path):
                    _write_messages(queue, self._messages[region, name], _part(state, path))


def _part(state: Mapping[str, Any], path: str) -> dict[str, Any]:
    return {at[len(path) :]: messages for at, messages in state.items() if at.startswith(path) and at != path}


def _is_in(message: Any, messages: list[Any]) -> bool:
    return any(each is message for each in messages)


def _read_messages(queue: Any, path: str) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {}
    for message in queue._messages:
        found.setdefault(f"{path}/{message.body}", []).append({**_content(message), **_condition(message)})
    return {
        at: sorted(messages, key=repr) if any(messages) else len(messages) for at, messages in sorted(found.items())
    }


def _content(message: Any) -> dict[str, Any]:
    found = {}
    if message.message_attributes:
        found["attributes"] = {
            name: next(value for kind, value in sorted(parts.items()) if kind != "DataType")
            for name, parts in sorted(message.message_attributes.items())
        }
    if message.group_id is not None:
        found["group"] = message.group_id
    return found


def _condition(message: Any) -> dict[str, bool]:
    return {name: True for name, holds in (("delayed", message.delayed), ("in_flight", not message.visible)) if holds}


def _write_messages(queue: Any, known: list[Any], wanted: Mapping[str, Any]) -> None:
    here: list[Any] = list(queue._messages)
    chosen: list[Any] = []
    for body, messages in wanted.items():
        for message in [{}] * messages if isinstance(messages, int) else messages:
            content = {name: value for name, value in message.items() if value is not True}
            match = next(
                each
                for each in [*here, *known]
                if each.body == body and _content(each) == content and not _is_in(each, chosen)
            )
            chosen.append(match)
            _set_condition(queue, match, message)
    queue._messages = [message for message in known if _is_in(message, chosen)]  # in the order in which they came
    queue._pending_messages = {message for message in queue._pending_messages if _is_in(message, chosen)}


def _set_condition(queue: Any, message: Any, wanted: Mapping[str, Any]) -> None:
    queue.deleted_messages.difference_update(message.all_receipt_handles)
    queue._pending_messages.discard(message)
    now = moto_sqs.unix_time_millis()
    if not wanted.get("in_flight"):
        message.visible_at = 0.0
    else:
        queue._pending_messages.add(message)
        if message.visible:
            message.visible_at = now + _STAYS
    if not wanted.get("delayed"):
        message.delayed_until = 0.0
    elif not message.delayed:
        message.delayed_until = now + _STAYS


@contextlib.contextmanager
def sqs_time(clock: Clock) -> Iterator[None]:
    """Let messages become visible in the time that the clock has, and let no receiver wait for them."""
    moments = 0
    receive = moto_sqs.SQSBackend.receive_message

    def milliseconds() -> float:
        # moto looks whether a moment is over: in a time that stands still, that would never be.
        nonlocal moments
        moments += 1
        return clock().timestamp() * 1000.0 + moments / 1000.0

    def receive_at_once(backend: Any, queue: str, count: int, wait: int, *rest: Any, **more: Any) -> Any:
        # While the client blocks the loop nobody can send what it would wait for.
        return receive(backend, queue, count, 0, *rest, **more)

    with (
        patch.object(moto_sqs, "unix_time_millis", milliseconds),
        patch.object(moto_sqs, "unix_time", lambda: clock().timestamp()),
        patch.object(moto_sqs.SQSBackend, "receive_message", receive_at_once),
    ):
        yield
