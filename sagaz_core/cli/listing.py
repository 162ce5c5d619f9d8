"""Listings of a store's sagas that go on behind a damaged one, and end with its name and an exit code."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from sagaz_core.cli.failure import NOT_WELL, Failure
from sagaz_core.cli.text import printable
from sagaz_core.errors import DamagedListingError
from sagaz_core.storage.base import Page
from sagaz_core.storage.url import safe_url

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sagaz_core.storage.base import SnapshotStorage


class Listed(NamedTuple):
    """The records of a page, where it goes on, and what is said of each damaged one that is not among them."""

    items: list[Any]
    cursor: str | None
    damaged: list[str]


async def listed(get: Callable[..., Awaitable[Page]], limit: int, cursor: str | None, **asked: Any) -> Listed:
    """Return up to `limit` records of a listing, without those that are damaged."""
    items: list[Any] = []
    damaged: list[str] = []
    while True:
        try:
            page = await get(limit=limit - len(items), cursor=cursor, **asked)
        except DamagedListingError as error:
            damaged.append(str(error))
            page, more = Page(error.items, error.cursor), True
        else:
            more = False
        items += page.items
        cursor = page.cursor
        if not more or len(items) == limit:
            return Listed(items, cursor, damaged)


async def tell_if_empty(storage: SnapshotStorage, found: Listed) -> None:
    """Say on stderr that nothing was found because there is nothing, as in a store whose URL is misspelt."""
    if not found.items and not found.damaged and not (await listed(storage.list_sagas, 1, None)).items:
        click.echo(f"the store {printable(safe_url(storage.url))} has no sagas", err=True)


def tell_cursor(cursor: str | None) -> None:
    """Say how to go on behind the page, in words for a shell."""
    if cursor is not None:
        click.echo(f"more with --cursor {printable(shlex.quote(cursor))}")


def tell_damaged(damaged: list[str]) -> None:
    """Name on stderr what is damaged, and end with exit code 1, if anything is."""
    if damaged:
        for damage in damaged:
            click.echo(printable(f"  {damage}"), err=True)
        what = "1 saga is" if len(damaged) == 1 else f"{len(damaged):,} sagas are"
        raise Failure(f"{what} damaged, and not listed", NOT_WELL)
