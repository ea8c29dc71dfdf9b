"""What runs in progress may load, asked of a real Dagster instance."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dagster import (
    AssetMaterialization,
    DagsterInstance,
    DagsterRunStatus,
    Definitions,
    asset,
    define_asset_job,
)

from mlops_assets.store import ArtifactStore
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets.store.prune import prune
from mlops_assets.store.running import running

STATUSES = [it for it in DagsterRunStatus if it is not DagsterRunStatus.QUEUED]
"""A queued run needs a code location; it is created before it is queued."""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    folder = tmp_path / "dagster"
    folder.mkdir()
    with DagsterInstance.local_temp(str(folder)) as instance:
        yield instance


def report(
    instance: DagsterInstance, key: list[str], version: str | None, partition: str | None = None
) -> None:
    """Record a materialisation, as a run does."""
    tags = {"dagster/data_version": version} if version else None
    instance.report_runless_asset_event(AssetMaterialization(key, partition=partition, tags=tags))


@contextmanager
def run_in_progress(instance: DagsterInstance) -> Iterator[None]:
    """A run that goes on until the block ends."""
    started, over = threading.Event(), threading.Event()

    @asset
    def slow() -> None:
        started.set()
        over.wait(60)

    job = Definitions([slow], jobs=[define_asset_job("job")]).resolve_job_def("job")
    thread = threading.Thread(target=job.execute_in_process, kwargs={"instance": instance})
    thread.start()
    try:
        assert started.wait(60)
        yield
    finally:
        over.set()
        thread.join()


def versions(instance: DagsterInstance) -> set[str]:
    return {version for _, _, version in running(instance).protected}


def test_without_runs_the_latest_of_every_asset_and_partition_is_protected(
    instance: DagsterInstance,
) -> None:
    assert running(instance) == ([], None)
    for number in range(3):
        report(instance, ["a", "b"], f"whole {number}")
        report(instance, ["c"], f"x {number}", "x")
    report(instance, ["c"], "y 0", "y/z")
    report(instance, ["unversioned"], None)
    report(instance, ["not a folder"], "1")
    report(instance, ["c"], "longer than a folder's name may be", "y" * 300)
    in_use = running(instance)
    assert in_use.since is None
    assert {(tuple(key), partition, version) for key, partition, version in in_use.protected} == {
        (("a", "b"), None, "whole 2"),
        (("c",), "x", "x 2"),
        (("c",), "y/z", "y 0"),
    }


def test_what_was_the_latest_when_the_run_began_is_protected_and_all_since(
    instance: DagsterInstance,
) -> None:
    for number in range(3):
        report(instance, ["a"], f"before {number}")
        report(instance, ["c"], f"x before {number}", "x")
    report(instance, ["c"], "y before", "y")
    before = datetime.now(UTC)
    with run_in_progress(instance):
        for number in range(3):
            report(instance, ["a"], f"during {number}")
        report(instance, ["c"], "x during", "x")
        in_use = running(instance)
        assert in_use.since is not None
        assert before - timedelta(minutes=16) < in_use.since < before
        assert {version for _, _, version in in_use.protected} == {
            "before 2",
            "during 0",
            "during 1",
            "during 2",
            "x before 2",
            "x during",
            "y before",
        }
    assert running(instance).since is None
    assert versions(instance) >= {"during 2", "x during", "y before"}
    assert "before 2" not in versions(instance)


@pytest.mark.parametrize("status", STATUSES)
def test_every_run_that_has_not_ended_counts(
    instance: DagsterInstance, status: DagsterRunStatus
) -> None:
    report(instance, ["a"], "before")

    @asset
    def never() -> None:
        pass

    job = Definitions([never], jobs=[define_asset_job("job")]).resolve_job_def("job")
    instance.create_run_for_job(job, status=status)
    report(instance, ["a"], "after")
    ended = status.value in ("SUCCESS", "FAILURE", "CANCELED")
    assert versions(instance) == ({"after"} if ended else {"before", "after"})
    assert (running(instance).since is None) == ended


def test_more_materialisations_than_fit_in_a_page_are_all_seen(
    instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_assets.store.running._PAGE", 2)
    for number in range(7):
        report(instance, ["c"], str(number), f"day {number % 5}")
    assert versions(instance) == set("23456")


def test_a_run_goes_on_beside_a_prune_although_its_input_was_replaced(
    instance: DagsterInstance, tmp_path: Path
) -> None:
    started, over = threading.Event(), threading.Event()
    content = ["long gone"]

    @asset
    def upstream() -> str:
        return content[0]

    @asset
    def slow(upstream: str) -> str:
        started.set()
        over.wait(60)
        return upstream

    @asset
    def downstream(upstream: str, slow: str) -> str:
        return f"{upstream} and {slow}"

    store = ArtifactStore(str(tmp_path / "store"))
    definitions = Definitions(
        [upstream, slow, downstream],
        resources={"io_manager": StoreIOManager(url=store.url)},
        jobs=[define_asset_job("first", "upstream"), define_asset_job("rest", [slow, downstream])],
    )
    first, rest = (definitions.resolve_job_def(name) for name in ("first", "rest"))
    results = []
    thread = threading.Thread(
        target=lambda: results.append(rest.execute_in_process(instance=instance))
    )
    for text in ("long gone", "first"):
        content[0] = text
        assert first.execute_in_process(instance=instance).success
    thread.start()
    try:
        assert started.wait(60)
        content[0] = "second"
        assert first.execute_in_process(instance=instance).success
        protected = running(instance).protected
        prune(store, keep=0, older_than=timedelta(0), protected=protected)
    finally:
        over.set()
        thread.join()
    assert results[0].success
    assert {store.read(it) for it in store.versions(["upstream"])} == {"first", "second"}
