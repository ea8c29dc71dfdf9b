"""What the runs in progress of a Dagster instance may load, for `prune` to keep.

Only asks the instance. What else has to stay, and what is deleted, is `prune`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from dagster import (
    AssetKey,
    AssetRecordsFilter,
    DagsterInstance,
    DagsterRunStatus,
    EventLogRecord,
    RunsFilter,
)

from mlops_assets.errors import StoreError
from mlops_assets.store.layout import folder_of
from mlops_assets.store.prune import Protected

_FINISHED = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)
_CLOCKS_DIFFER = timedelta(minutes=15)  # at most: S3 refuses a client whose clock is further off
_PAGE = 1000


class InUse(NamedTuple):
    """What must not be deleted for the sake of a Dagster instance: arguments of `prune`."""

    protected: list[Protected]
    """The latest version of every asset and partition, those that were the latest when the oldest
    run in progress was created, and all between."""
    since: datetime | None
    """Before the oldest run in progress was created; None when none is."""


def running(instance: DagsterInstance) -> InUse:
    """Return what the runs of an instance may load: those in progress, and any that begins now."""
    since = _oldest_run(instance)
    protected = [
        (key.path, partition, version)
        for key in instance.get_asset_keys()
        for partition, version in _in_use(instance, key, since or datetime.now(UTC))
        if _can_be_stored(key, partition)
    ]
    return InUse(protected, since and since - _CLOCKS_DIFFER)


def _oldest_run(instance: DagsterInstance) -> datetime | None:
    unfinished = [status for status in DagsterRunStatus if status not in _FINISHED]
    records = instance.get_run_records(RunsFilter(statuses=unfinished), limit=1, ascending=True)
    return records[0].create_timestamp if records else None


def _can_be_stored(key: AssetKey, partition: str | None) -> bool:
    try:
        folder_of(key.path, partition)
    except StoreError:
        return False
    return True


def _in_use(
    instance: DagsterInstance, key: AssetKey, since: datetime
) -> Iterator[tuple[str | None, str]]:
    """Partition and version of what was the latest at a time or has been since."""
    settled = set()  # partitions of which the latest at that time is known
    for record in _materializations(instance, key):
        event = record.asset_materialization
        if event is None or event.partition in settled:
            continue
        version = (event.tags or {}).get("dagster/data_version")
        if version is not None:
            yield event.partition, version
        if record.timestamp < since.timestamp():
            settled.add(event.partition)
            if event.partition is None:
                return


def _materializations(instance: DagsterInstance, key: AssetKey) -> Iterator[EventLogRecord]:
    """The newest first."""
    cursor = None
    while True:
        result = instance.fetch_materializations(AssetRecordsFilter(key), _PAGE, cursor=cursor)
        yield from result.records
        if not result.has_more:
            return
        cursor = result.cursor
