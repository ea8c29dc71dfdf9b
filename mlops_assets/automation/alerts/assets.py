"""The incidents of assets: another champion, drift, an asset that is overdue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster import AssetKey, AssetRecordsFilter, DagsterEventType

from mlops_assets.automation.alerts.incidents import AT_ONCE, Incident, Watch
from mlops_assets.dagster_internals.events import events_after, latest_event, overdue, owners_of
from mlops_assets.store.reuse import PRODUCED_BY

if TYPE_CHECKING:
    from dagster import AssetCheckEvaluation, EventLogEntry, EventLogRecord


def champion_changes(watch: Watch, after: int | None) -> tuple[list[Incident], int]:
    """Find the materialisations of `p/champion` with another version than the one before."""
    latest = latest_event(watch.instance)
    if after is None:
        return [], latest
    incidents = []
    for pipeline in watch.pipelines:
        key = AssetKey([pipeline, "champion"])
        made = watch.instance.fetch_materializations(
            AssetRecordsFilter(key, after_storage_id=after, before_storage_id=latest + 1),
            limit=AT_ONCE,
            ascending=True,
        ).records
        if made:
            before = watch.instance.fetch_materializations(
                AssetRecordsFilter(key, before_storage_id=made[0].storage_id), limit=1
            ).records
            olds: list[EventLogRecord | None] = [*before, *made] if before else [None, *made]
            incidents += [
                _champion_change(watch, key, old, new)
                for old, new in zip(olds, made, strict=False)
                if watch.is_recent(new.event_log_entry) and _version(old) != _version(new)
            ]
    return incidents, latest


def _champion_change(
    watch: Watch, key: AssetKey, old: EventLogRecord | None, new: EventLogRecord
) -> Incident:
    metadata = new.asset_materialization.metadata if new.asset_materialization else {}
    reason = metadata["reason"].value if "reason" in metadata else None
    change = f"version {_version(old)} → {_version(new)}" if old else f"version {_version(new)}"
    return Incident(
        title=f"{key.to_user_string()} {'changed' if old else 'is there for the first time'}",
        details="\n".join(
            filter(None, [change, str(reason or ""), "" if new.run_id else "by hand"])
        ),
        kind="info",
        page=watch.page(new.run_id, key),
        at=new.timestamp,
        owners=owners_of(watch.repository, [key]),
        told_apart_by=str(new.storage_id),  # going back to an earlier champion is news again
    )


def _version(record: EventLogRecord | None) -> str | None:
    made = record.asset_materialization if record is not None else None
    return (made.tags or {}).get("dagster/data_version") if made is not None else None


def drift(watch: Watch, after: int | None) -> tuple[list[Incident], int]:
    """Find the checks of `p/drift` that did not pass, those of one run as one incident."""
    if after is None:
        return [], latest_event(watch.instance)
    events = events_after(watch.instance, DagsterEventType.ASSET_CHECK_EVALUATION, after, AT_ONCE)
    watched = {AssetKey([pipeline, "drift"]) for pipeline in watch.pipelines}
    failed: dict[tuple[str, AssetKey], list[EventLogEntry]] = {}
    for entry in filter(watch.is_recent, events.values()):
        check = entry.get_dagster_event().asset_check_evaluation_data
        if check.asset_key in watched and not check.passed and not _is_retold(watch, check):
            failed.setdefault((entry.run_id, check.asset_key), []).append(entry)
    incidents = [_drift(watch, *where, entries) for where, entries in failed.items()]
    return incidents, max(events, default=after)


def _is_retold(watch: Watch, check: AssetCheckEvaluation) -> bool:
    """Whether a check is reused from another run of this instance, which was told of then."""
    computed_by = check.metadata.get(PRODUCED_BY)
    return computed_by is not None and watch.instance.has_run(str(computed_by.value))


def _drift(watch: Watch, run_id: str, key: AssetKey, entries: list[EventLogEntry]) -> Incident:
    checks = [entry.get_dagster_event().asset_check_evaluation_data for entry in entries]
    run = watch.instance.get_run_by_id(run_id) if run_id else None
    is_error = any(check.severity.name == "ERROR" for check in checks)
    of_one_day = len({check.partition for check in checks}) == 1
    return Incident(
        title=f"drift in {key.path[0]}",
        details="\n".join(
            ("" if of_one_day else f"{check.partition} ")
            + f"{check.check_name} ({check.severity.name.lower()}): {check.description or 'failed'}"
            for check in checks
        ),
        kind="failure" if is_error else "warning",
        page=watch.page(run_id, key),
        at=entries[-1].timestamp,
        owners=owners_of(watch.repository, [key]),
        # not by the descriptions: they hold figures
        told_apart_by=",".join(sorted(f"{one.severity.name} {one.check_name}" for one in checks)),
        **watch.about(run),
    )


def overdue_assets(watch: Watch, after: int | None) -> tuple[list[Incident], int]:
    """Find the assets that have become overdue by their freshness policy."""
    if after is None:
        return [], latest_event(watch.instance)
    events = events_after(watch.instance, DagsterEventType.FRESHNESS_STATE_CHANGE, after, AT_ONCE)
    incidents = [
        Incident(
            title=f"{key.to_user_string()} is overdue",
            details="It was not materialised in the time that its freshness policy gives it.",
            kind="failure",
            page=watch.page("", key),
            at=entry.timestamp,
            owners=owners_of(watch.repository, [key]),
        )
        for entry in filter(watch.is_recent, events.values())
        if (key := overdue(entry)) is not None and watch.is_known(key)
    ]
    return incidents, max(events, default=after)
