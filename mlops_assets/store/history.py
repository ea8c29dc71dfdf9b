"""The versions of an asset: when each was computed, by which run, from what, with which metrics.

Only reads. Which versions are kept is `prune`; what is reused is `memo`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from mlops_assets.errors import StoreError
from mlops_assets.store.artifacts import Artifact, ArtifactStore
from mlops_assets.store.layout import folder_of, parse_computation_path, parse_object_path
from mlops_assets.store.memo import Computed, Memo
from mlops_assets.store.objects import ObjectInfo

READERS = 16
"""Requests at once: a store far away answers each in tens of milliseconds."""


@dataclass(frozen=True)
class Entry:
    """One computation of an asset, or a version that no computation is known of."""

    at: datetime
    """When it was finished; for a version without a computation, when it was written."""
    artifact: Artifact | None
    """None for an asset that stayed without a value."""
    present: bool
    """Whether the artefact is in the store in its full size."""
    computed: Computed | None
    """None for a version that was written by hand, or by an asset that is never reused."""
    metrics: Mapping[str, float] | None
    """Of an asset whose key ends in `metrics`, if the artefact can be read."""


@dataclass(frozen=True)
class History:
    """All that is known of an asset's versions."""

    entries: list[Entry]
    """The newest first."""
    notes: list[str]
    """What could not be read, in words for people."""


def history(store: ArtifactStore, key: Sequence[str], partition: str | None = None) -> History:
    """Return the computations of an asset, and the versions that none is known of.

    Parameters
    ----------
    store
        Is listed once, and read once for each computation.
    key, partition
        Without a partition, the computations of all partitions.

    Raises
    ------
    StoreError
        When the key or the partition cannot be in a store, or the store cannot be read.
    """
    asset = "/".join(key)
    folder = folder_of(key, partition)
    memo = Memo(store)
    objects = {info.path: info for info in store.contents(folder)}
    paths = (path for path, _ in store.records(f".events/{folder}"))
    fingerprints = [parsed[2] for path in paths if (parsed := parse_computation_path(path))]
    notes = []

    def entry_of(fingerprint: str) -> Entry | None:
        with suppress(AttributeError, TypeError, ValueError, StoreError):
            if computed := memo.get(fingerprint):
                return _entry(store, computed, objects)
        notes.append(f"{store.url}/.memo/{fingerprint}.json is damaged or missing: left out")
        return None

    with ThreadPoolExecutor(READERS) as pool:
        found = [entry for entry in pool.map(entry_of, fingerprints) if entry]
    entries = [entry for entry in found if entry.computed and entry.computed.asset == asset]
    known = {entry.artifact.path for entry in found if entry.artifact}
    for path, info in objects.items():
        named = parse_object_path(path)
        if named and path not in known and path.rpartition("/")[0] == folder:
            artifact = Artifact(tuple(key), partition, *named, info.size)
            metrics = _metrics(store, artifact)
            entries.append(Entry(info.modified, artifact, True, None, metrics))
    return History(sorted(entries, key=lambda entry: entry.at, reverse=True), sorted(notes))


def _entry(store: ArtifactStore, computed: Computed, objects: Mapping[str, ObjectInfo]) -> Entry:
    at = datetime.fromisoformat(computed.at)
    artifact = computed.artifact
    info = objects.get(artifact.path) if artifact else None
    present = artifact is not None and info is not None and info.size == artifact.size
    metrics = _metrics(store, artifact) if artifact and present else None
    return Entry(at if at.tzinfo else at.replace(tzinfo=UTC), artifact, present, computed, metrics)


def _metrics(store: ArtifactStore, artifact: Artifact) -> Mapping[str, float] | None:
    if artifact.key[-1] != "metrics" or artifact.extension != "json":
        return None
    with suppress(StoreError):  # damaged: the version itself is still worth listing
        evaluation = store.read(artifact)
        metrics = evaluation.get("metrics") if isinstance(evaluation, dict) else None
        if isinstance(metrics, dict):
            return metrics
    return None
