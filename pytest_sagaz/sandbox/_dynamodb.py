"""The state of the mocked DynamoDB."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

from moto.dynamodb.models.dynamo_type import DynamoType, Item

from pytest_sagaz.sandbox._backends import TABLE, backends, joined, named
from pytest_sagaz.sandbox._text import data_of, readable

if TYPE_CHECKING:
    from collections.abc import Mapping


class DynamoDBState:
    """`{"table/": "(table)", "table/key": item}`, or `table/key/sort key`; an item is a dict of plain values."""

    def __init__(self, home: str) -> None:
        self._home = home
        self._tables: dict[tuple[str, str], Any] = {}

    def read(self) -> dict[str, Any]:
        """Return what is there."""
        found: dict[str, Any] = {}
        for region, backend in sorted(backends("dynamodb").items()):
            for name, table in sorted(backend.tables.items()):
                self._tables[region, name] = table
                path = named(region, self._home, name)
                found[f"{path}/"] = TABLE
                items = {f"{path}/{_key_of(item)}": _plain_item(item) for item in table.all_items()}
                found.update(sorted(items.items()))
        return found

    def write(self, state: Mapping[str, Any]) -> None:
        """Put it back."""
        now = self.read()
        if state == now:
            return
        for region, backend in backends("dynamodb").items():
            for name in [name for name in backend.tables if f"{named(region, self._home, name)}/" not in state]:
                del backend.tables[name]
        for (region, name), table in self._tables.items():
            path = f"{named(region, self._home, name)}/"
            if path in state:
                backends("dynamodb")[region].tables.setdefault(name, table)
                _write_items(table, path, state)


def _write_items(table: Any, path: str, state: Mapping[str, Any]) -> None:
    found = {f"{path}{_key_of(item)}": item for item in list(table.all_items())}
    for at, item in found.items():
        if at not in state:
            _remove(table, item)
    for at, attributes in state.items():
        if at.startswith(path) and at != path and (at not in found or _plain_item(found[at]) != attributes):
            _put(table, attributes)


# Around the table's own methods, which would write to its stream as well.


def _remove(table: Any, item: Any) -> None:
    if table.has_range_key:
        del table.items[item.hash_key][item.range_key]
    else:
        del table.items[item.hash_key]


def _put(table: Any, attributes: Mapping[str, Any]) -> None:
    typed = {name: _typed(value) for name, value in attributes.items()}
    hash_key = DynamoType(typed[table.hash_key_attr])
    if table.has_range_key:
        range_key = DynamoType(typed[table.range_key_attr])
        table.items[hash_key][range_key] = Item(hash_key, range_key, typed)
    else:
        table.items[hash_key] = Item(hash_key, None, typed)


def _key_of(item: Any) -> str:
    keys = [item.hash_key] if item.range_key is None else [item.hash_key, item.range_key]
    return joined(*(_shown(_plain(key)) for key in keys))


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, bytes) else str(value)


def _plain_item(item: Any) -> dict[str, Any]:
    return {name: _plain(item.attrs[name]) for name in sorted(item.attrs)}


def _plain(typed: Any) -> Any:
    """Return the value of DynamoDB as one of Python: what boto3's resources give, but whole numbers as `int`."""
    ((kind, value),) = typed.to_regular_json().items() if typed.is_binary() else ((typed.type, typed.value),)
    if kind == "M":
        return {name: _plain(value[name]) for name in sorted(value)}
    if kind == "L":
        return [_plain(each) for each in value]
    if kind == "N":
        return _number(value)
    if kind == "NS":
        return {_number(each) for each in value}
    if kind in ("SS", "BS"):
        return set(value)
    return None if kind == "NULL" else value


def _number(text: str) -> int | Decimal:
    found = readable(text.encode())
    return found if isinstance(found, int) else Decimal(text)


def _typed(value: Any) -> dict[str, Any]:
    if value is None:
        return {"NULL": True}
    if isinstance(value, dict):
        return {"M": {name: _typed(each) for name, each in value.items()}}
    if isinstance(value, list):
        return {"L": [_typed(each) for each in value]}
    if isinstance(value, (set, frozenset)):
        return _typed_set(value)
    for kind, code in ((bool, "BOOL"), (str, "S"), (bytes, "B")):
        if isinstance(value, kind):
            return {code: value}
    return {"N": data_of(value).decode()}


def _typed_set(values: set[Any] | frozenset[Any]) -> dict[str, Any]:
    one = next(iter(values))
    if isinstance(one, (str, bytes)):
        return {"SS" if isinstance(one, str) else "BS": sorted(values)}
    return {"NS": [str(value) for value in sorted(values)]}
