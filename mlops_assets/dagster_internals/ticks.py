"""When a cron string fires, as Dagster's scheduler reckons it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime


def ticks_after(cron: str, timezone: str, start: datetime) -> Iterator[datetime]:
    """Return the times, in UTC, at which a schedule fires after `start`, without end.

    Parameters
    ----------
    cron : str
        As in a pipeline file.
    timezone : str
        IANA name.
    start : datetime
        With a time zone.
    """
    from dagster._utils.schedules import cron_string_iterator

    ticks = cron_string_iterator(start.timestamp(), cron, timezone)
    return (tick.astimezone(UTC) for tick in ticks if tick > start)
