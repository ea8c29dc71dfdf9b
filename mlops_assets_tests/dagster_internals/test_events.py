"""What alerts read of Dagster's internals; these fail when it moves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    DagsterEventType,
    DagsterInstance,
    Definitions,
    asset,
    job,
    materialize,
    op,
)
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange

from mlops_assets.dagster_internals.events import (
    MARKED_FROM_OUTSIDE,
    events_after,
    latest_event,
    overdue,
    owners_of,
)


@pytest.fixture(params=["ephemeral", "sqlite"])
def instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DagsterInstance]:
    """The storage of a laptop keeps a database per run, and one for what is looked for here."""
    made = (
        DagsterInstance.ephemeral()
        if request.param == "ephemeral"
        else DagsterInstance.local_temp(str(tmp_path))
    )
    with made as instance:
        yield instance


@asset(owners=["team:ml", "anna@example.org"])
def broken() -> None:
    raise RuntimeError("broken")


@asset(owners=["team:ml"])
def fine() -> None:
    """Do nothing."""


def test_events_of_a_type_are_returned_in_order_after_an_event(instance: DagsterInstance) -> None:
    runs = [materialize([broken], instance=instance, raise_on_error=False) for _ in range(3)]
    kind = DagsterEventType.RUN_FAILURE
    every = events_after(instance, kind, 0, 10)
    first = min(every)

    assert [entry.run_id for entry in every.values()] == [run.run_id for run in runs]
    assert list(events_after(instance, kind, first, 1)) == sorted(every)[1:2]
    assert list(events_after(instance, kind, latest_event(instance), 10)) == []


def test_checks_without_a_run_are_among_the_events(instance: DagsterInstance) -> None:
    assert latest_event(instance) == 0
    instance.report_runless_asset_event(
        AssetCheckEvaluation(asset_key=AssetKey("fine"), check_name="one", passed=False)
    )

    [entry] = events_after(instance, DagsterEventType.ASSET_CHECK_EVALUATION, 0, 10).values()
    assert not entry.get_dagster_event().asset_check_evaluation_data.passed


def test_only_a_change_to_failing_freshness_is_overdue(instance: DagsterInstance) -> None:
    for before, after in [
        ("UNKNOWN", "PASS"),
        ("PASS", "WARN"),
        ("WARN", "FAIL"),
        ("FAIL", "PASS"),
    ]:
        instance._report_runless_asset_event(
            FreshnessStateChange(
                key=AssetKey("fine"),
                previous_state=FreshnessState(before),
                new_state=FreshnessState(after),
                state_change_timestamp=0.0,
            )
        )
    changes = events_after(instance, DagsterEventType.FRESHNESS_STATE_CHANGE, 0, 10).values()

    assert [overdue(entry) for entry in changes] == [None, None, AssetKey("fine"), None]


def test_a_run_that_is_marked_from_outside_says_so(instance: DagsterInstance) -> None:
    @op
    def nothing() -> None: ...

    @job
    def lost() -> None:
        nothing()

    instance.report_run_failed(instance.create_run_for_job(lost))
    [entry] = events_after(instance, DagsterEventType.RUN_FAILURE, 0, 10).values()

    assert entry.get_dagster_event().message == MARKED_FROM_OUTSIDE


def test_owners_are_those_of_known_assets_each_once() -> None:
    repository = Definitions([broken, fine]).get_repository_def()
    keys = [AssetKey("fine"), AssetKey("broken"), AssetKey("of another location")]

    assert owners_of(repository, keys) == ("team:ml", "anna@example.org")
    assert owners_of(None, keys) == ()
