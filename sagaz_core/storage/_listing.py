"""Pages of a listing, also of one in which a record is damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sagaz_core.errors import CorruptDataError, DamagedListingError
from sagaz_core.storage.base import Page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Made = TypeVar("Made")


class Listing:
    """A page of a listing in the making: up to `limit` records. The cursor behind one is the id of its saga."""

    __slots__ = ("_cursor", "_items", "_limit", "_more")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: list[Any] = []
        self._cursor: str | None = None
        self._more = False

    def made(self, saga_id: str, make: Callable[..., Made], *given: Any) -> Made:
        """Return the record that is made of what was stored. Raises `DamagedListingError` for a damaged one."""
        try:
            return make(*given)
        except CorruptDataError as error:
            text = str(error) if repr(saga_id) in str(error) else f"saga {saga_id!r}: {error}"
            raise DamagedListingError(text, self._items, saga_id) from error

    def takes(self, saga_id: str, record: object) -> bool:
        """Take the record in, unless the page is full."""
        if len(self._items) == self._limit:
            self._more = True
            return False
        self._items.append(record)
        self._cursor = saga_id
        return True

    def page(self) -> Page:
        """Return the page."""
        return Page(self._items, self._cursor if self._more else None)


def page_of(limit: int, rows: Iterable[Any], make: Callable[[Any], Any], id_of: Callable[[Any], str]) -> Page:
    """Return the page of what is made of the rows, which are in order, and one more than `limit` if there are more."""
    page = Listing(limit)
    for row in rows:
        saga_id = id_of(row)
        if not page.takes(saga_id, page.made(saga_id, make, row)):
            break
    return page.page()
