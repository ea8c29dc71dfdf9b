"""Runs and backfills over a range of partitions, as tests and benchmarks start them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from dagster import AssetKey, DagsterInstance, Definitions, ExecuteInProcessResult
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, PartitionBackfill
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)


def range_tags(first: str, last: str) -> dict[str, str]:
    """Return the tags of a run for all partitions from the first to the last."""
    return {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}


def materialize_range(
    definitions: Definitions,
    instance: DagsterInstance,
    keys: Sequence[AssetKey],
    first: str,
    last: str,
    tags: Mapping[str, str] | None = None,
) -> ExecuteInProcessResult:
    """Materialise assets for all partitions from the first to the last, in one run."""
    job = definitions.resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        instance=instance,
        raise_on_error=False,
        asset_selection=list(keys),
        tags={**range_tags(first, last), **(tags or {})},
    )


def backfill_of(
    definitions: Definitions,
    instance: DagsterInstance,
    keys: Sequence[AssetKey],
    partitions: Sequence[str],
    tags: Mapping[str, str] | None = None,
) -> PartitionBackfill:
    """Return a backfill, as the UI makes one, for the daemon to be added to the instance."""
    return PartitionBackfill.from_asset_partitions(
        backfill_id="all_days",
        asset_graph=definitions.resolve_asset_graph(),
        partition_names=list(partitions),
        asset_selection=list(keys),
        backfill_timestamp=time.time(),
        tags=dict(tags or {}),
        dynamic_partitions_store=instance,
        all_partitions=False,
        title=None,
        description=None,
        run_config=None,
    )


def is_over(instance: DagsterInstance, backfill_id: str) -> bool:
    """Say whether a backfill has ended, well or not."""
    backfill = instance.get_backfill(backfill_id)
    assert backfill is not None
    return backfill.status in BULK_ACTION_TERMINAL_STATUSES
