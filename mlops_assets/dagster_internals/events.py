"""What alerts need of Dagster beyond its public interface: the events of all runs, and a memory.

Which of them somebody should hear of is `mlops_assets.automation.alerts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagster import (
        AssetKey,
        DagsterEventType,
        DagsterInstance,
        EventLogEntry,
        RepositoryDefinition,
    )

MARKED_FROM_OUTSIDE = "This run has been marked as failed from outside the execution context."
"""What Dagster says of a run whose worker is gone; why is in the engine's event before it."""


def latest_event(instance: DagsterInstance) -> int:
    """Return the storage id of the latest event; 0 before the first one."""
    return instance.event_log_storage.get_maximum_record_id() or 0


def events_after(
    instance: DagsterInstance, event_type: DagsterEventType, event: int, limit: int
) -> Mapping[int, EventLogEntry]:
    """Return the first events of a type after an event, by storage id, oldest first.

    Of the types that Dagster keeps for the whole instance: changes of a run's status, and what
    happened to assets and their checks.
    """
    return instance.event_log_storage.get_logs_for_all_runs_by_log_id(
        after_cursor=event, dagster_event_type=event_type, limit=limit
    )


def remembered(instance: DagsterInstance, name: str) -> str | None:
    """Return what was remembered in an instance under a name; None if there is nothing."""
    return instance.daemon_cursor_storage.get_cursor_values({name}).get(name)


def remember(instance: DagsterInstance, name: str, text: str) -> None:
    """Remember a text in an instance, for every process that uses it."""
    instance.daemon_cursor_storage.set_cursor_values({name: text})


def overdue(entry: EventLogEntry) -> AssetKey | None:
    """Return the asset that an event of type FRESHNESS_STATE_CHANGE says to be overdue, if so."""
    change = entry.get_dagster_event().asset_freshness_state_change_data
    return change.key if change.new_state.name == "FAIL" else None


def owners_of(repository: RepositoryDefinition | None, keys: Iterable[AssetKey]) -> tuple[str, ...]:
    """Return the owners of the assets that a code location knows, each once."""
    if repository is None:
        return ()
    graph = repository.asset_graph
    known = [graph.get(key) for key in keys if graph.has(key)]
    return tuple(dict.fromkeys(owner for node in known for owner in node.owners))
