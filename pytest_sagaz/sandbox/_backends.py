"""What the mocked services hold."""

from __future__ import annotations

from typing import Any

from moto.backends import get_backend

BUCKET, TABLE, QUEUE = "(bucket)", "(table)", "(queue)"
"""What stands for a bucket, table or queue itself in a state, at its name and a slash."""


def backends(service: str) -> dict[str, Any]:
    """Return the parts of a mocked service that were used, by region."""
    accounts: Any = get_backend(service)  # type: ignore[call-overload] # moto has a literal type for each service
    return {region: backend for account in list(accounts.values()) for region, backend in list(account.items())}


def named(region: str, home: str, name: str) -> str:
    """Return the name of a table or queue: in another region than that of the test it says which."""
    return name if region == home else f"{region}:{name}"


def joined(*parts: str) -> str:
    """Return parts as one text in which each can be told."""
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in parts)
