"""Times as users write them: always aware."""

from __future__ import annotations

from datetime import UTC, datetime

from sagaz_core.errors import NaiveTimeError, UsageError


def aware(moment: datetime | str) -> datetime:
    """Return the moment in UTC. Text is ISO 8601 with a zone, `Z` or an offset.

    Raises `NaiveTimeError` for a time without a zone, `UsageError` for what is no time, and for one that is not in
    the years 1 to 9999.
    """
    if isinstance(moment, str):
        text = moment.strip()
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise UsageError(f"{text!r} is not a time: write it like 2026-07-15T14:30:00Z") from None
    if not isinstance(moment, datetime):
        raise UsageError(f"{moment!r:.80} is not a time: give a datetime with a zone, or 2026-07-15T14:30:00Z as text")
    if moment.utcoffset() is None:
        raise NaiveTimeError(
            f"{moment.isoformat()} has no timezone: write {moment.isoformat()}Z for UTC, or an offset such as +02:00"
        )
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise UsageError(
            f"{moment.isoformat()} is not a time that can be used: in UTC it is not in the years 1 to 9999"
        ) from None
