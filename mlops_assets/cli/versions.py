"""`mlops history` and `mlops prune`: the versions that the store holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

import click

from mlops_assets.cli.planning import Project
from mlops_assets.durations import seconds
from mlops_assets.errors import SettingsError
from mlops_assets.store.artifacts import ArtifactStore
from mlops_assets.store.champions import Champions
from mlops_assets.store.history import Entry, history
from mlops_assets.store.memo import differences
from mlops_assets.store.prune import PruneReport, prune
from mlops_assets.wording import size

_SHORTEST = timedelta(hours=1)
_SECONDS_OF_SILENCE = 5.0


def history_as_json(asset: str, partition: str | None, limit: int) -> list[dict[str, Any]]:
    """Return what `mlops history --json` prints, the newest first.

    Raises
    ------
    UserError
        Nothing is known of the asset, or the store cannot be read.
    """
    project = Project.load()
    store = project.store
    pipeline, _, stage = asset.partition("/")
    is_champion = stage == "champion" and pipeline in project.names
    if is_champion and (promotions := _promotions(store, pipeline)):
        return promotions[:limit]
    found = history(store, asset.split("/"), partition)
    if not found.entries:
        raise SettingsError(f"{store.url} holds no version of {asset!r}; `mlops plan` lists assets")
    entries = found.entries[:limit]
    return [
        _as_json(entry, before)
        for entry, before in zip(entries, [*found.entries[1:], None], strict=False)
    ]


def history_as_text(entries: Sequence[dict[str, Any]]) -> str:
    """Return the history for people."""
    lines = []
    for entry in entries:
        facts = [entry["at"][:19].replace("T", " "), entry["version"] or "no value"]
        facts += [size(entry["size"])] if entry["size"] is not None else []
        facts += [] if entry["present"] or not entry["version"] else ["deleted"]
        facts += [f"{entry['seconds']:.1f} s"] if entry["seconds"] is not None else []
        facts += [f"run {entry['run_id']}"] if entry["run_id"] else []
        facts += [f"promotion {entry['promotion']}"] if "promotion" in entry else []
        lines.append("  ".join(facts))
        if "reason" in entry:
            lines.append(f"    reason   {entry['reason']}")
        if entry["metrics"]:
            values = (f"{name} {value:.4g}" for name, value in entry["metrics"].items())
            lines.append(f"    metrics  {', '.join(values)}")
        if entry["inputs"]:
            inputs = (f"{name} {version}" for name, version in entry["inputs"].items())
            lines.append(f"    inputs   {', '.join(inputs)}")
        if entry["code_version"]:
            lines.append(f"    code     {entry['code_version']}")
        lines += [f"    changed  {change}" for change in entry["changes"]]
    return "\n".join(lines)


def pruned(keep: int, older_than: str, *, dry_run: bool) -> str:
    """Prune the store of the settings, and say what was deleted or would be.

    Raises
    ------
    UserError
        A duration that is none, or a store that cannot be read or changed.
    """
    try:
        age = timedelta(seconds=seconds(older_than))
    except (ValueError, OverflowError) as error:
        raise SettingsError(f"--older-than: {error}") from None
    store = Project.load().store
    from mlops_assets.cli.run import local_instance  # Dagster knows which runs are in progress
    from mlops_assets.store.running import running

    with local_instance() as instance:
        in_use = running(instance)
    report = prune(
        store, keep=keep, older_than=age, dry_run=dry_run, told=_Progress(), **in_use._asdict()
    )
    warning = (
        ["warning: a run that begins now may need what is younger than an hour"]
        if age < _SHORTEST and not dry_run
        else []
    )
    return "\n".join([*warning, *_as_lines(report, dry_run)])


class _Progress:
    """Says on stderr how far a long deletion is, every few seconds."""

    def __init__(self) -> None:
        self._said = monotonic()

    def __call__(self, deleted: int) -> None:
        if monotonic() - self._said >= _SECONDS_OF_SILENCE:
            self._said = monotonic()
            click.echo(f"{deleted:,} objects deleted so far", err=True)


def _as_lines(report: PruneReport, dry_run: bool) -> list[str]:
    lines = []
    for folder in report.folders:
        deleted = f"{folder.deleted} to delete" if dry_run else f"{folder.deleted} deleted"
        lines.append(f"{folder.folder}: {len(folder.kept)} kept, {deleted}, {size(folder.freed)}")
        if dry_run:
            lines += [f"  {kept.version}  {kept.reason}" for kept in folder.kept]
    lines += [f"note: {note}" for note in report.notes]
    count = sum(folder.deleted for folder in report.folders)
    freed = sum(folder.freed for folder in report.folders)
    total = "would be deleted" if dry_run else "deleted"
    return [*lines, f"{count} versions, {size(freed)} {total}"]


def _promotions(store: ArtifactStore, pipeline: str) -> list[dict[str, Any]]:
    """Return the promotions of a pipeline's champions, the newest first."""
    promotions = Champions(store, pipeline).history()
    objects = {one.version: one for one in store.versions([pipeline, "champion"])}
    return [
        {
            "at": one.at,
            "partition": None,
            "version": one.version,
            "size": objects[one.version].size if one.version in objects else None,
            "present": one.version in objects,
            "run_id": one.run_id,
            "seconds": None,
            "inputs": {},
            "code_version": None,
            "changes": [],
            "metrics": dict(one.metrics),
            "promotion": one.number,
            "by": one.by,
            "restores": one.restores,
            "reason": one.reason,
        }
        for one in reversed(promotions)
    ]


def _as_json(entry: Entry, before: Entry | None) -> dict[str, Any]:
    computed, artifact = entry.computed, entry.artifact
    earlier = before.computed if before is not None else None
    return {
        "at": entry.at.isoformat(),
        "partition": computed.partition if computed else artifact and artifact.partition,
        "version": artifact.version if artifact else None,
        "size": artifact.size if artifact else None,
        "present": entry.present,
        "run_id": computed.run_id if computed else None,
        "seconds": computed.seconds if computed else None,
        "inputs": dict(computed.inputs) if computed else {},
        "code_version": computed.code.version if computed else None,
        "changes": differences(earlier, computed) if earlier and computed else [],
        "metrics": entry.metrics,
    }
