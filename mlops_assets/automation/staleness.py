"""What is stale in a Dagster instance, and what of it can be launched now.

Stale is what has never been materialised, or was made by other code or from other inputs than
there are now. It is read from what Dagster recorded with the latest materialisation, and never from
changes that were seen happening: a change during a run, or while nobody looked, is found all the
same. When this is asked for is `conditions` and `schedules`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import TopologicalSorter
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from dagster import AssetKey, DagsterError

from mlops_assets.dagster_internals.automation import NO_VERSION, version_of_partitions
from mlops_assets.errors import UserError

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from mlops_assets.dagster_internals.automation import Latest, Lineage
    from mlops_assets.dagster_internals.database import Recorded


class UndecidedError(UserError, DagsterError):
    """A tick cannot decide: what it is about cannot be looked at.

    Dagster shows the message of its own errors as it is, and wraps all others.
    """


class Target(NamedTuple):
    """An asset, or one partition of it."""

    key: AssetKey
    partition: str | None


class Launch(NamedTuple):
    """What a schedule launches now and what it leaves for later, with the reasons."""

    now: dict[Target, str]
    later: dict[Target, str]


class Staleness:
    """Compares what a Dagster instance has recorded with the definitions, for one evaluation."""

    def __init__(self, lineage: Lineage) -> None:
        self._lineage = lineage

    def reason(self, key: AssetKey, partition: str | None = None) -> str | None:
        """Say why an asset, or a partition of it, is stale; None if it is fresh.

        A materialisation that no step made, such as one reported in the UI, is taken for fresh:
        whoever reported it vouches for it.
        """
        latest = self._lineage.latest(key).get(partition)
        if latest is None:
            return "never materialised"
        if latest.code_version is None:
            return None
        code_version = self._lineage.code_version(key)
        if code_version is not None and code_version != latest.code_version:
            return f"code changed: version {latest.code_version} → {code_version}"
        parents = self._lineage.parents(key)
        if {parent.to_user_string() for parent in parents} != set(latest.inputs):
            return "dependencies changed"
        changed = [
            parent.to_user_string()
            for parent in parents
            if self._is_changed(key, partition, latest, parent)
        ]
        return f"input content changed: {', '.join(changed)}" if changed else None

    def has_news(self, key: AssetKey, partition: str | None, event: int) -> bool:
        """Whether anything that it is made from was made or observed after an event.

        With the same content too; but not by a run that was to make the asset as well.
        """
        return any(
            latest.event > event and key not in self._lineage.targets_of(latest.run_id)
            for parent in self._lineage.parents(key)
            for above in self._lineage.parent_partitions(key, partition, parent)
            if (latest := self._lineage.latest(parent).get(above)) is not None
        )

    def _is_changed(
        self, key: AssetKey, partition: str | None, made: Latest, parent: AssetKey
    ) -> bool:
        recorded, latest = made.inputs[parent.to_user_string()], self._lineage.latest(parent)
        if self._lineage.partitions_def(parent) is None:
            return recorded != (latest[None].version if None in latest else NO_VERSION)
        found = {
            above: latest[above]
            for above in self._lineage.parent_partitions(key, partition, parent)
            if above in latest and above is not None
        }
        if recorded == version_of_partitions({name: one.version for name, one in found.items()}):
            return False
        # Of a hundred partitions, and of those of other partitions made in the same run, Dagster
        # records another version: what counts is which of them have another one since then.
        event = made.input_event(parent)
        newer = {name: one.version for name, one in found.items() if one.event > (event or 0)}
        return bool(newer) and newer != self._lineage.versions_as_of(parent, event, [*newer])


def launchable(
    lineage: Lineage,
    keys: Iterable[AssetKey],
    reason: Callable[[AssetKey, str | None], str | None],
) -> Launch:
    """Choose what is stale together with everything below it that the same run can make.

    What a run is at work on is left for later. So is what lies below something that is missing, has
    failed a blocking check, or is being made by another run, now or soon: it may turn out fresh.
    Another run is also the one for other partitions, a week's for the days above it.

    Parameters
    ----------
    lineage
        What the instance has recorded.
    keys
        The assets to choose from; those that a step makes together with them are included.
    reason
        Says of an asset and partition why it is stale; None if it is not.
    """
    made = Launch({}, {})
    for step in _in_order(lineage, keys):
        for partition in lineage.partitions(step[0]):
            targets = [Target(key, partition) for key in step]
            stale = next((why for target in targets if (why := reason(*target))), None)
            above = _above(lineage, targets)
            below = [one for one in above if one in made.now and one.partition == partition]
            if not stale and not below:
                continue
            why = stale or f"below {name_of(below[0])}"
            others = [one for one in above if one not in below]
            obstacle = _obstacle(lineage, made, targets, others)
            if obstacle is None:
                made.now.update(dict.fromkeys(targets, why))
            else:
                made.later.update(dict.fromkeys(targets, f"{why}, but {obstacle}"))
    return made


def _in_order(lineage: Lineage, keys: Iterable[AssetKey]) -> list[list[AssetKey]]:
    """Group the assets by the step that makes them, steps below others last."""
    steps = {key: lineage.made_with(key) for key in keys}
    steps |= {member: step for step in steps.values() for member in step}
    above = {
        step: {steps[parent] for key in step for parent in lineage.parents(key) if parent in steps}
        for step in steps.values()
    }
    sorter = TopologicalSorter({step: parents - {step} for step, parents in above.items()})
    return [sorted(step) for step in sorter.static_order()]


def _above(lineage: Lineage, targets: list[Target]) -> list[Target]:
    parents = {
        Target(parent, above)
        for key, partition in targets
        for parent in lineage.parents(key)
        for above in lineage.parent_partitions(key, partition, parent)
    }
    return sorted(parents.difference(targets))


def _obstacle(
    lineage: Lineage, made: Launch, targets: list[Target], above: list[Target]
) -> str | None:
    """Say why something cannot be made now from what is above it and in no run with it."""
    if any(partition in lineage.in_progress(key) for key, partition in targets):
        return "a run is at work on it"
    takes_what_is_there = all(lineage.takes_what_is_there(key) for key, _ in targets)
    for target in above:
        key, partition = target
        if not lineage.is_made_here(key):
            continue
        if target in made.now or target in made.later or partition in lineage.in_progress(key):
            return f"{name_of(target)} is to be made first"
        missing = partition not in lineage.latest(key)
        if missing and takes_what_is_there and lineage.latest(key):
            continue
        if missing:
            return f"{name_of(target)} is missing"
        if checks := lineage.blocking_checks_not_passed(key):
            return f"{name_of(target)} has not passed {', '.join(checks)}"
    return None


def name_of(target: Target) -> str:
    """Name an asset or partition for people."""
    name = target.key.to_user_string()
    return name if target.partition is None else f"{name} {target.partition}"


def recorded_in(
    instance: DagsterInstance,
    keys: Sequence[AssetKey],
    daily: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Recorded]:
    """Return what `database.recorded_in` does, for instances of any kind."""
    from mlops_assets.dagster_internals.automation import versions_by_partition
    from mlops_assets.dagster_internals.database import FINGERPRINT, Recorded, name_of_partition

    recorded = {}
    for record in instance.get_asset_records(keys):
        event = record.asset_entry.last_materialization
        if event is not None and event.asset_materialization is not None:
            made = event.asset_materialization
            fingerprint = made.metadata.get(FINGERPRINT)
            recorded[made.asset_key.to_user_string()] = Recorded.of(
                made.tags or {}, fingerprint.value if fingerprint is not None else None
            )
    for asset, first in daily.items():
        key = AssetKey.from_user_string(asset)
        for day, version in versions_by_partition(instance, key).items():
            if day >= first:
                recorded[name_of_partition(asset, day)] = Recorded(version, None, {}, None)
    return recorded
