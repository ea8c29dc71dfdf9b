"""Computations as runs record them, without running anything."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from mlops_assets.code_version import Code
from mlops_assets.store import ArtifactStore
from mlops_assets.store.layout import folder_of
from mlops_assets.store.memo import Computation, Computed, Memo

LONG_AGO = timedelta(days=365)


def compute(
    store: ArtifactStore,
    asset: str,
    value: Any = None,
    *made_from: Computed,
    partition: str | None = None,
    code: str = "1",
    latest_of: str | None = None,
    outside: Mapping[str, str] | None = None,
) -> Computed:
    """Write what a step computed and record it as a run does; None is an asset without a value."""
    inputs = dict(outside or {})
    for it in made_from:
        name = it.asset if it.partition is None else f"{it.asset}[{it.partition}]"
        inputs[name] = it.artifact.version if it.artifact else "-"
    artifact = None if value is None else store.write(asset.split("/"), value, partition)
    computation = Computation(asset, partition, Code({}, {"module": code}, {}), None, inputs)
    memo = Memo(store)
    memo.put(computation, artifact, {}, run_id="run", seconds=1.5)
    computed = memo.get(computation.fingerprint)
    assert computed is not None
    if latest_of:
        be_latest(store, computed, latest_of)
    return computed


def be_latest(store: ArtifactStore, computed: Computed, instance: str) -> None:
    """Record a computation as the latest of an instance, as a run does that reuses it."""
    Memo(store).set_latest(
        instance,
        computed.asset,
        computed.partition,
        version=computed.artifact.version if computed.artifact else None,
        fingerprint=computed.fingerprint,
        run_id="run",
    )


def paths_of(computed: Computed) -> set[str]:
    """Where the records and the artefact of a computation lie."""
    folder = folder_of(computed.asset.split("/"), computed.partition)
    name = f"{computed.fingerprint}.json"
    paths = {f".memo/{name}", f".events/{folder}/{name}"}
    return paths | {computed.artifact.path} if computed.artifact else paths


def paths_in(store: ArtifactStore) -> set[str]:
    """Everything in a store but the records of what is the latest."""
    return {it.path for it in store.contents() if not it.path.startswith(".latest/")}


def age(store: ArtifactStore, by: timedelta = LONG_AGO, *paths: str) -> None:
    """Let files of a local store, or all of them, have been written earlier."""
    files = [Path(store.url, path) for path in paths] or Path(store.url).rglob("*.*")
    for file in files:
        if file.is_file():
            moment = file.stat().st_mtime - by.total_seconds()
            os.utime(file, (moment, moment))


def version_of(computed: Computed) -> str:
    """Version that a computation with a value produced."""
    assert computed.artifact is not None
    return computed.artifact.version


def all_paths_of(computations: Iterable[Computed]) -> set[str]:
    """Where the records and artefacts of several computations lie."""
    return set().union(*map(paths_of, computations))
