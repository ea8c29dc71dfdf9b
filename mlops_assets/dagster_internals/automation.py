"""What automation needs of Dagster beyond its public interface: what an instance has recorded.

Which of it makes an asset stale is `mlops_assets.automation.staleness`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from functools import cache, cached_property
from hashlib import sha256
from logging import Logger
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from dagster import (
        AssetCheckKey,
        AssetKey,
        AssetSelection,
        AutomationContext,
        AutomationResult,
        DagsterEventType,
        DagsterInstance,
        EventLogRecord,
        PartitionsDefinition,
        ScheduleEvaluationContext,
        SensorEvaluationContext,
    )
    from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
    from dagster._core.asset_graph_view.entity_subset import EntitySubset
    from dagster._core.definitions.asset_selection import (
        CoercibleToAssetSelection as CoercibleToAssetSelection,
    )
    from dagster._core.definitions.assets.graph.base_asset_graph import (
        BaseAssetGraph,
        BaseAssetNode,
    )


NO_VERSION = "INITIAL"
"""What Dagster records as the version of an input without events, or whose event has none."""

TAKES_WHAT_IS_THERE = "mlops/takes_what_is_there"
"""Metadata of an asset: True for one that is made of those partitions of an input that there are,
so that missing ones keep nothing waiting."""

_CHUNK = 1000  # events in a query; SQLite takes 32,766 parameters


class Latest(NamedTuple):
    """The latest event of an asset, or of one partition of it."""

    event: int
    """Storage id; later events have higher ones."""
    run_id: str
    """Empty for an event that no run has made."""
    tags: Mapping[str, str]

    @property
    def version(self) -> str:
        """The data version."""
        return self.tags.get("dagster/data_version", NO_VERSION)

    @property
    def code_version(self) -> str | None:
        """The code version; None for what no step of Dagster's has made."""
        return self.tags.get("dagster/code_version")

    @property
    def inputs(self) -> dict[str, str]:
        """Data versions of what it was made from, by asset."""
        prefix = "dagster/input_data_version/"
        return {
            tag.removeprefix(prefix): version
            for tag, version in self.tags.items()
            if tag.startswith(prefix)
        }

    def input_event(self, key: AssetKey) -> int | None:
        """Return the latest event of an input when it was read; None if it had none."""
        event = self.tags.get(f"dagster/input_event_pointer/{key.to_user_string()}", "NULL")
        return None if event == "NULL" else int(event)


class Lineage:
    """The assets of a code location, with what a Dagster instance has recorded of them.

    Everything is read once, when it is first asked for: an object is for one evaluation. Where
    partitions depend on the time or are dynamic, it takes a `dagster.partition_loading_context`.
    """

    def __init__(self, instance: DagsterInstance, graph: BaseAssetGraph[Any]) -> None:
        self._instance = instance
        self._graph: BaseAssetGraph[BaseAssetNode] = graph
        self.latest = cache(self._latest)
        self.in_progress = cache(self._in_progress)

    @cached_property
    def _view(self) -> AssetGraphView:
        from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
        from dagster._core.definitions.temporal_context import TemporalContext

        return AssetGraphView(
            temporal_context=TemporalContext(
                effective_dt=datetime.now(UTC),
                last_event_id=self._instance.event_log_storage.get_maximum_record_id(),
            ),
            instance=self._instance,
            asset_graph=self._graph,
        )

    @staticmethod
    def of_condition(context: AutomationContext[AssetKey]) -> Lineage:
        """Return what a condition is evaluated on."""
        return Lineage(context.asset_graph_view.instance, context.asset_graph)

    @staticmethod
    def of_schedule(context: ScheduleEvaluationContext | SensorEvaluationContext) -> Lineage:
        """Return the code location of a schedule or sensor, and the instance that it runs on."""
        repository = context.repository_def
        assert repository is not None  # but for a sensor's context that was made by hand
        return Lineage(context.instance, repository.asset_graph)

    def resolve(self, selection: AssetSelection) -> set[AssetKey]:
        """Return the assets of a selection that this code location can materialise."""
        return set(selection.resolve(self._graph)) & self._graph.materializable_asset_keys

    def code_version(self, key: AssetKey) -> str | None:
        """Return the code version of the definition."""
        return self._graph.get(key).code_version

    def parents(self, key: AssetKey) -> list[AssetKey]:
        """Return what an asset depends on, in the order of names."""
        return sorted(self._graph.get(key).parent_keys)

    def is_made_here(self, key: AssetKey) -> bool:
        """Whether this code location can materialise the asset."""
        return self._graph.get(key).is_materializable

    def takes_what_is_there(self, key: AssetKey) -> bool:
        """Whether missing partitions of its inputs keep the asset from nothing."""
        return self._graph.get(key).metadata.get(TAKES_WHAT_IS_THERE) is True

    def made_with(self, key: AssetKey) -> frozenset[AssetKey]:
        """Return the assets that one step always makes together, the asset among them."""
        return frozenset(self._graph.get(key).execution_set_asset_keys)

    def partitions_def(self, key: AssetKey) -> PartitionsDefinition | None:
        """Return the asset's partitions definition."""
        return self._graph.get(key).partitions_def

    def partitions(self, key: AssetKey) -> Sequence[str | None]:
        """Return the asset's partitions as they are now; only None for an unpartitioned asset."""
        partitions_def = self.partitions_def(key)
        return [None] if partitions_def is None else partitions_def.get_partition_keys()

    def parent_partitions(
        self, key: AssetKey, partition: str | None, parent: AssetKey
    ) -> Sequence[str | None]:
        """Return the partitions of a parent that an asset or a partition of it is made from."""
        if self.partitions_def(parent) is None:
            return [None]
        mapped = self._graph.get_parent_partition_keys_for_child(partition, parent, key)
        return sorted(mapped.partitions_subset.get_partition_keys())

    def _latest(self, key: AssetKey) -> Mapping[str | None, Latest]:
        """Return the latest event by partition; the key is None for an unpartitioned asset.

        That of a source is its latest observation. An asset or partition without event is not
        among them.
        """
        if self.partitions_def(key) is not None:
            by_partition = self._latest_by_partition(key)
            return {record.partition_key: _event(record) for record in by_partition}
        # a step looks for the version of its input in the same order
        records = (
            self._instance.fetch_materializations(key, limit=1).records
            or self._instance.fetch_observations(key, limit=1).records
        )
        return {None: _event(records[0])} if records else {}

    def _latest_by_partition(self, key: AssetKey) -> Iterator[EventLogRecord]:
        from dagster import AssetRecordsFilter

        event_type = self._event_type(key)
        events = sorted(self._instance.get_latest_storage_id_by_partition(key, event_type).values())
        observed = event_type.name == "ASSET_OBSERVATION"
        fetch = (
            self._instance.fetch_observations if observed else self._instance.fetch_materializations
        )
        for start in range(0, len(events), _CHUNK):
            chunk = events[start : start + _CHUNK]
            yield from fetch(AssetRecordsFilter(key, storage_ids=chunk), limit=_CHUNK).records

    def versions_as_of(
        self, key: AssetKey, event: int | None, partitions: Sequence[str]
    ) -> dict[str, str]:
        """Return the data versions of partitions when an event happened; none before the first."""
        if event is None:
            return {}
        tags = self._instance.event_log_storage.get_latest_tags_by_partition(
            key,
            self._event_type(key),
            ["dagster/data_version"],
            asset_partitions=partitions,
            before_cursor=event + 1,
        )
        return {partition: found["dagster/data_version"] for partition, found in tags.items()}

    def _event_type(self, key: AssetKey) -> DagsterEventType:
        from dagster import DagsterEventType

        if self._graph.get(key).is_observable:
            return DagsterEventType.ASSET_OBSERVATION
        return DagsterEventType.ASSET_MATERIALIZATION

    def _in_progress(self, key: AssetKey) -> set[str | None]:
        """Return the partitions that a run or a backfill is at work on, or queued for."""
        queries = self._view.get_inner_queryer_for_back_compat()
        runs = self._view.get_subset_from_serializable_subset(
            queries.get_in_progress_asset_subset(asset_key=key)
        )
        backfills = self._view.get_entity_subset_from_asset_graph_subset(
            queries.get_active_backfill_in_progress_asset_graph_subset(), key
        )
        return partitions_of(backfills) | (set() if runs is None else partitions_of(runs))

    def targets_of(self, run_id: str) -> Set[AssetKey]:
        """Return the assets that a run was to materialise, whether it did or not."""
        queries = self._view.get_inner_queryer_for_back_compat()
        return queries.get_planned_materializations_for_run(run_id=run_id)

    def blocking_checks_not_passed(self, key: AssetKey) -> list[str]:
        """Return the names of an asset's blocking checks whose latest evaluation did not pass."""
        keys = [check for check in self._graph.get(key).check_keys if self._is_blocking(check)]
        latest = self._instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
        return sorted(
            check.name
            for check in keys
            if check not in latest or latest[check].status.name != "SUCCEEDED"
        )

    def _is_blocking(self, check: AssetCheckKey) -> bool:
        return self._graph.get(check).blocking


def versions_by_partition(instance: DagsterInstance, key: AssetKey) -> dict[str, str]:
    """Return the data version of each partition of an asset that has been materialised."""
    from dagster import DagsterEventType

    tags = instance.event_log_storage.get_latest_tags_by_partition(
        key, DagsterEventType.ASSET_MATERIALIZATION, ["dagster/data_version"]
    )
    return {partition: found["dagster/data_version"] for partition, found in tags.items()}


def version_of_partitions(versions: Mapping[str, str]) -> str:
    """Return what Dagster records as the version of an input of several partitions.

    The formula of `DataVersionCache` in `dagster/_core/execution/context/data_version_cache.py`; it
    leaves the names of the partitions out.
    """
    joined = "".join(version for _, version in sorted(versions.items()))
    return sha256(joined.encode()).hexdigest()


def partitions_of(subset: EntitySubset[AssetKey]) -> set[str | None]:
    """Return the partitions in a subset; None stands for an unpartitioned asset."""
    return {found.partition_key for found in subset.expensively_compute_asset_partitions()}


def candidates(context: AutomationContext[AssetKey]) -> set[str | None]:
    """Return the partitions that a condition is to decide on."""
    return partitions_of(context.candidate_subset)


def requested_before(context: AutomationContext[AssetKey]) -> set[str | None]:
    """Return the partitions that the asset's whole condition requested at the tick before."""
    subset = context.get_previous_requested_subset(context.key)
    return set() if subset is None else partitions_of(subset)


def tick_log(context: AutomationContext[AssetKey]) -> Logger:
    """Return the log of the tick; `context.log` is a child of it that reaches only the console."""
    return context._root_log


def result(
    context: AutomationContext[AssetKey], partitions: Iterable[str | None], cursor: str
) -> AutomationResult[AssetKey]:
    """Return that a condition is true for partitions of the asset."""
    from dagster import AutomationResult
    from dagster._core.definitions.events import AssetKeyPartitionKey

    subset = context.asset_graph_view.get_asset_subset_from_asset_partitions(
        context.key, {AssetKeyPartitionKey(context.key, partition) for partition in partitions}
    )
    return AutomationResult(context, subset, cursor=cursor)


def _event(record: EventLogRecord) -> Latest:
    return Latest(record.storage_id, record.run_id, record.event_log_entry.tags or {})
