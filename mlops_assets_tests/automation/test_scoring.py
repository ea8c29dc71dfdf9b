"""Which days the scoring schedule launches, and what it says when it launches none."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, build_schedule_context
from dagster._core.definitions.schedule_definition import ScheduleExecutionData

from mlops_assets.assets.predictions import INBOX
from mlops_assets.automation import scoring
from mlops_assets.automation.schedules import REASON
from mlops_assets.automation.staleness import UndecidedError
from mlops_assets.ml import inbox
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets_tests.conftest import CUSTOMERS, Project, train_once

SCORE = "score: {uri: 'inbox/{date}/*.csv', start: 2026-01-02, schedule: '@daily'}\n"
MORNING = datetime(2026, 1, 6, 6, tzinfo=UTC)
ROWS = "age,plan\n25,basic\n60,plus\n"


def put(project: Project, name: str, text: str = ROWS, age: float = 100) -> None:
    """Write a file of the inbox that was last changed some seconds ago."""
    path = project.folder / "pipelines" / "inbox" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)


def tick(project: Project, now: datetime = MORNING) -> ScheduleExecutionData:
    repository = project.definitions().get_repository_def()
    schedule = repository.get_schedule_def("customers_scoring_schedule")
    store = StoreIOManager(url=project.settings.store_url)
    with build_schedule_context(
        scheduled_execution_time=now, repository_def=repository, resources={"store": store}
    ) as context:
        # given an instance in memory, a context has none: there is no reference to open it by
        context._instance, context._instance_ref = project.instance, project.instance
        return schedule.evaluate_tick(context)


def launched(project: Project, now: datetime = MORNING) -> dict[str, str]:
    """Return the reasons by day."""
    requests = tick(project, now).run_requests or []
    return {str(request.partition_key): request.tags[REASON] for request in requests}


def score(project: Project, day: str, *assets: str) -> bool:
    job = project.definitions().resolve_job_def("customers_scoring")
    return job.execute_in_process(
        instance=project.instance,
        partition_key=day,
        raise_on_error=False,
        asset_selection=[AssetKey(["customers", asset]) for asset in assets] or None,
    ).success


@pytest.fixture
def trained(customers: Project, trained_store: Path) -> Project:
    customers.add("customers", CUSTOMERS + SCORE)
    train_once(customers, trained_store)
    return customers


def test_days_are_launched_when_new_and_when_a_file_is_late_or_changed(trained: Project) -> None:
    for day in ("2026-01-01", "2026-01-03", "2026-01-05", "2026-01-06", "2026-01-07"):
        put(trained, f"{day}/a.csv")
    ticked = tick(trained)
    # the first day is before score.start, the last one in the future
    days = ["2026-01-06", "2026-01-05", "2026-01-03"]
    assert launched(trained) == {day: f"customers/predictions {day}: never scored" for day in days}
    for request in ticked.run_requests or []:
        assert request.tags["dagster/partition"] == request.partition_key
        assert len(request.tags[INBOX]) == 16

    assert all(score(trained, day) for day in days)
    assert launched(trained) == {}
    said = tick(trained).skip_message or ""
    assert "fresh: 2026-01-06, 2026-01-05, 2026-01-03" in said
    assert "without finished files: 2026-01-04" in said

    put(trained, "2026-01-03/late.csv")
    put(trained, "2026-01-05/a.csv", ROWS + "30,plus\n")
    changed = launched(trained)
    assert list(changed) == ["2026-01-05", "2026-01-03"]
    assert changed["2026-01-03"].endswith("other files than when it was scored")
    assert next(iter(launched(trained, datetime(2026, 1, 7, 6, tzinfo=UTC)))) == "2026-01-07"


def test_a_day_that_failed_is_launched_again_and_one_still_being_written_is_not(
    trained: Project,
) -> None:
    put(trained, "2026-01-03/a.csv", "age\n1\n")
    assert not score(trained, "2026-01-03")
    assert list(launched(trained)) == ["2026-01-03"]
    put(trained, "2026-01-03/b.csv", age=0)
    assert launched(trained) == {}
    put(trained, "2026-01-04/a.csv")
    assert score(trained, "2026-01-04")
    said = tick(trained).skip_message or ""
    assert "without finished files: 2026-01-06, 2026-01-05" in said


def test_a_day_that_a_run_is_at_work_on_waits(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(trained, "2026-01-03/a.csv")
    put(trained, "2026-01-04/a.csv")
    found, during = inbox.files_of_day, list[ScheduleExecutionData]()

    def ticking(*arguments: Any) -> list[inbox.InboxFile]:
        during.append(tick(trained))
        return found(*arguments)

    monkeypatch.setattr(inbox, "files_of_day", ticking)
    assert score(trained, "2026-01-03")
    for ticked in during:
        assert [request.partition_key for request in ticked.run_requests or []] == ["2026-01-04"]


def test_a_scored_day_that_was_not_compared_is_compared_and_not_scored_again(
    trained: Project,
) -> None:
    put(trained, "2026-01-03/a.csv")
    assert score(trained, "2026-01-03", "predictions")

    [request] = tick(trained).run_requests or []

    assert request.asset_selection == [AssetKey(["customers", "drift"])]
    assert request.tags[REASON] == "customers/drift 2026-01-03: never compared"
    assert score(trained, "2026-01-03", "drift")
    assert launched(trained) == {}


def test_more_days_than_a_tick_launches_are_left_for_the_next_ones(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "MOST_LAUNCHES", 2)
    days = ["2026-01-05", "2026-01-04", "2026-01-03"]
    for day in days:
        put(trained, f"{day}/a.csv")
    assert list(launched(trained)) == days[:2]
    assert all(score(trained, day) for day in days[:2])
    assert list(launched(trained)) == days[2:]


def test_nothing_is_launched_without_a_champion_or_without_files(customers: Project) -> None:
    customers.add("customers", CUSTOMERS + SCORE)
    put(customers, "2026-01-03/a.csv")
    assert "there is no champion yet" in (tick(customers).skip_message or "")


def test_an_inbox_without_files_is_named(trained: Project) -> None:
    put(trained, "2026-01-07/a.csv")
    said = tick(trained).skip_message or ""
    assert said == "no finished file matches inbox/{date}/*.csv for any day so far"


def test_a_listing_that_fails_is_a_failed_tick(trained: Project) -> None:
    trained.add("customers", CUSTOMERS + SCORE.replace("inbox/", "http://127.0.0.1:9/"))
    with pytest.raises(UndecidedError, match=r"customers: .*cannot be listed"):
        tick(trained)


def test_a_day_begins_at_midnight_in_the_time_zone_of_the_pipeline(trained: Project) -> None:
    put(trained, "2026-01-07/a.csv")
    late = datetime(2026, 1, 6, 20, tzinfo=UTC)
    assert launched(trained, late) == {}
    trained.add("customers", CUSTOMERS + SCORE + "train: {timezone: Asia/Tokyo}\n")
    assert list(launched(trained, late)) == ["2026-01-07"]


def test_labels_that_come_or_change_have_the_day_compared_and_not_scored_again(
    customers: Project,
) -> None:
    labelled = SCORE.replace("schedule:", "id: [id], labels: 'labels/{date}.csv', schedule:")
    customers.add("customers", CUSTOMERS + labelled)
    assert customers.train("customers").success
    rows = "id,age,plan\n1,25,basic\n2,60,plus\n"
    put(customers, "2026-01-05/a.csv", rows)
    job = customers.definitions().resolve_job_def("customers_scoring")

    def run(**selection: Any) -> bool:
        return job.execute_in_process(
            instance=customers.instance, partition_key="2026-01-05", **selection
        ).success

    assert run()
    assert launched(customers) == {}
    for labels in ("id,left\n1,yes\n", "id,left\n1,yes\n2,no\n"):
        put(customers, "../labels/2026-01-05.csv", labels)
        [request] = tick(customers).run_requests or []
        assert request.asset_selection == [AssetKey(["customers", "drift"])]
        assert "other labels than it was made with" in request.tags[REASON]
        assert run(asset_selection=request.asset_selection)
        assert launched(customers) == {}
