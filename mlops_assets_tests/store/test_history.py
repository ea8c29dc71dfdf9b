"""The versions of an asset, as the records beside them tell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlops_assets.errors import StoreError
from mlops_assets.store import ArtifactStore
from mlops_assets.store.history import history
from mlops_assets_tests.store.computations import compute, version_of

METRICS = {"metrics": {"accuracy": 0.93}, "rows": 45}


def test_computations_are_listed_with_all_that_is_known_newest_first(store: ArtifactStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    train = compute(store, "iris/train", [1])
    made = [compute(store, "iris/model", {"n": n}, train, code=str(n)) for n in range(3)]
    found = history(store, ["iris", "model"])
    assert found.notes == []
    assert [entry.computed for entry in found.entries] == made[::-1]
    newest = found.entries[0]
    assert newest.artifact == made[2].artifact
    assert newest.present
    assert newest.metrics is None
    assert before < newest.at < datetime.now(UTC)
    assert newest.computed is not None
    assert newest.computed.inputs == {"iris/train": version_of(train)}
    assert newest.computed.run_id == "run"
    assert newest.computed.seconds == 1.5


def test_metrics_are_read_from_the_artefact(store: ArtifactStore) -> None:
    compute(store, "iris/metrics", METRICS)
    compute(store, "iris/metrics", [1, 2], code="2")
    compute(store, "iris/metrics", None, code="3")
    entries = history(store, ["iris", "metrics"]).entries
    assert [entry.metrics for entry in entries] == [None, None, {"accuracy": 0.93}]
    assert [entry.artifact is None for entry in entries] == [True, False, False]


def test_what_is_gone_or_damaged_is_still_listed(local: ArtifactStore) -> None:
    gone = compute(local, "iris/metrics", METRICS)
    damaged = compute(local, "iris/metrics", {**METRICS, "rows": 46}, code="2")
    assert gone.artifact is not None
    assert damaged.artifact is not None
    local.delete(gone.artifact)
    Path(local.url_of(damaged.artifact)).write_text("x" * damaged.artifact.size)
    entries = history(local, ["iris", "metrics"]).entries
    assert [(entry.computed, entry.present) for entry in entries] == [
        (damaged, True),
        (gone, False),
    ]
    assert [entry.metrics for entry in entries] == [None, None]


def test_two_computations_of_the_same_content_are_two_entries(store: ArtifactStore) -> None:
    made = [compute(store, "a", 1, code=code) for code in ("1", "2")]
    entries = history(store, ["a"]).entries
    assert [entry.computed for entry in entries] == made[::-1]
    assert len({entry.artifact for entry in entries}) == 1


def test_a_version_that_no_computation_is_known_of_is_listed_too(store: ArtifactStore) -> None:
    by_hand = store.write(["iris", "metrics"], METRICS)
    (entry,) = history(store, ["iris", "metrics"]).entries
    assert (entry.artifact, entry.present, entry.computed) == (by_hand, True, None)
    assert entry.metrics == {"accuracy": 0.93}
    computed = compute(store, "iris/metrics", METRICS)
    (entry,) = history(store, ["iris", "metrics"]).entries
    assert entry.computed == computed


def test_without_a_partition_those_of_all_partitions_are_listed(store: ArtifactStore) -> None:
    partitions = ["2024-01-31", "x/y", "b"]
    made = [compute(store, "a", it, partition=it) for it in partitions]
    other = compute(store, "a/b", "other")
    assert [it.computed for it in history(store, ["a"]).entries] == made[::-1]
    assert [it.computed for it in history(store, ["a"], "x/y").entries] == [made[1]]
    assert [it.computed for it in history(store, ["a"], "b").entries] == [made[2]]
    assert [it.computed for it in history(store, ["a", "b"]).entries] == [other]


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"[]",
        b"{}",
        b'{"asset": ["a"], "partition": 1, "code": {"version": 0, "parameters": 0, "modules": 0,'
        b' "libraries": 0}, "config": 0, "inputs": 0, "output": {"version": 1, "extension": 2,'
        b' "size": "3", "tag": 4}, "run_id": 0, "at": 0, "seconds": "x"}',
    ],
)
def test_a_damaged_record_is_left_out_with_a_note(
    store: ArtifactStore, content: bytes | None
) -> None:
    lost = compute(store, "a", 1)
    intact = compute(store, "a", 2, code="2")
    path = f".memo/{lost.fingerprint}.json"
    store.discard([path])
    if content is not None:
        store._objects.create(path, content)
    found = history(store, ["a"])
    assert len(found.notes) == 1
    assert path in found.notes[0]
    assert [it.computed for it in found.entries if it.computed] == [intact]
    assert [it.artifact for it in found.entries if not it.computed] == [lost.artifact]


def test_what_was_never_made_has_no_history(store: ArtifactStore) -> None:
    assert history(store, ["never"]).entries == []
    with pytest.raises(StoreError, match="asset key"):
        history(store, ["..", "etc"])
