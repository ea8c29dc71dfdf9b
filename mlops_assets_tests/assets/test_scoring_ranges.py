"""Several days in one run: each by itself, reused or scored, and a bad one fails only itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetCheckKey,
    AssetKey,
    AssetMaterialization,
    ExecuteInProcessResult,
    partition_loading_context,
)

from mlops_assets.dagster_internals.automation import Lineage
from mlops_assets.store.artifacts import Artifact, ArtifactStore
from mlops_assets.store.reuse import MEMOIZED, REFRESH
from mlops_assets_tests.conftest import CUSTOMERS, Project, train_once
from mlops_assets_tests.ranges import materialize_range

DAYS = [(date(2026, 1, 1) + timedelta(n)).isoformat() for n in range(4)]
PREDICTIONS, DRIFT = AssetKey(["customers", "predictions"]), AssetKey(["customers", "drift"])
SCORE = "score: {uri: 'inbox/{date}/*.csv', start: 2026-01-01, id: [customer]}\n"
GOOD, BAD = "customer,age,plan\n7,25,basic\n", "customer,age\n7,25\n"


@pytest.fixture
def trained(customers: Project, trained_store: Path) -> Project:
    customers.add("customers", CUSTOMERS + SCORE)
    train_once(customers, trained_store)
    for day in DAYS:
        put(customers, day, GOOD)
    return customers


def put(project: Project, day: str, text: str) -> None:
    path = project.folder / "pipelines" / "inbox" / day / "a.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def run(
    project: Project,
    *keys: AssetKey,
    days: Sequence[str] = DAYS,
    refresh: bool = False,
) -> ExecuteInProcessResult:
    return materialize_range(
        project.definitions(),
        project.instance,
        keys or [PREDICTIONS],
        days[0],
        days[-1],
        {REFRESH: "true"} if refresh else {},
    )


def run_alone(project: Project, day: str, refresh: bool = False) -> ExecuteInProcessResult:
    job = project.definitions().resolve_job_def("customers_scoring")
    return job.execute_in_process(
        instance=project.instance,
        partition_key=day,
        asset_selection=[PREDICTIONS],
        tags={REFRESH: "true"} if refresh else {},
    )


def made(result: ExecuteInProcessResult, key: AssetKey = PREDICTIONS) -> list[AssetMaterialization]:
    return [
        event.step_materialization_data.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key == key
    ]


def days_made(result: ExecuteInProcessResult, key: AssetKey = PREDICTIONS) -> list[str | None]:
    return [one.partition for one in made(result, key)]


def reused(result: ExecuteInProcessResult, key: AssetKey = PREDICTIONS) -> list[str | None]:
    return [one.partition for one in made(result, key) if MEMOIZED in one.metadata]


def why(result: ExecuteInProcessResult, asset: str = "predictions") -> str:
    data = result.failure_data_for_node(f"customers__{asset}")
    assert data is not None
    assert data.user_failure_data is not None
    return data.user_failure_data.description or ""


def test_every_day_of_a_range_is_what_a_run_of_its_own_makes(trained: Project) -> None:
    put(trained, DAYS[1], "customer,age,plan\n7,25,basic\n7,60,plus\n")
    result = run(trained, PREDICTIONS, DRIFT)
    assert result.success, why(result)
    together = made(result)
    assert [one.partition for one in together] == DAYS
    assert days_made(result, DRIFT) == DAYS

    for day, one in zip(DAYS, together, strict=True):
        [alone] = made(run_alone(trained, day, refresh=True))
        assert one.tags == alone.tags
        assert one.metadata.keys() == alone.metadata.keys()
        [artifact] = trained.store.versions(PREDICTIONS.path, day)
        assert (one.tags or {})["dagster/data_version"] == artifact.version
    rows = [one.metadata["dagster/row_count"].value for one in together]
    assert rows == [1, 2, 1, 1]


def test_every_day_has_the_results_of_its_checks(trained: Project) -> None:
    put(trained, DAYS[1], "customer,age,plan\n7,25,basic\n7,60,plus\n")
    result = run(trained)
    checks = {check.partition: check for check in result.get_asset_check_evaluations()}
    assert {day: check.passed for day, check in checks.items()} == {
        day: day != DAYS[1] for day in DAYS
    }
    records = trained.instance.fetch_materializations(PREDICTIONS, limit=10).records
    partition_of = {record.storage_id: record.partition_key for record in records}
    for day, check in checks.items():
        assert check.target_materialization_data is not None
        assert partition_of[check.target_materialization_data.storage_id] == day

    key = AssetCheckKey(PREDICTIONS, "unique_ids")
    history = trained.instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
    assert {record.partition: record.status.value for record in history} == {
        day: "FAILED" if day == DAYS[1] else "SUCCEEDED" for day in DAYS
    }


def test_days_that_are_known_are_reused_and_the_others_scored(trained: Project) -> None:
    run(trained, days=DAYS[1:3])
    put(trained, DAYS[2], "customer,age,plan\n7,25,plus\n")
    result = run(trained, PREDICTIONS, DRIFT)
    assert days_made(result) == DAYS
    assert reused(result) == [DAYS[1]]
    assert reused(run(trained, PREDICTIONS, DRIFT)) == DAYS
    assert reused(run(trained, PREDICTIONS, DRIFT), DRIFT) == DAYS


def test_a_day_of_a_range_is_reused_by_a_run_of_its_own_and_the_other_way_round(
    trained: Project,
) -> None:
    assert reused(run_alone(trained, DAYS[0])) == []
    assert reused(run(trained)) == [DAYS[0]]
    assert reused(run_alone(trained, DAYS[1])) == [DAYS[1]]


def test_bad_days_fail_by_name_and_the_others_are_scored_and_compared(trained: Project) -> None:
    put(trained, DAYS[0], BAD)
    put(trained, DAYS[2], BAD)
    result = run(trained, PREDICTIONS, DRIFT)

    assert not result.success
    good = [DAYS[1], DAYS[3]]
    assert days_made(result) == days_made(result, DRIFT) == good
    told = why(result, "drift")
    assert "2 of 4 partitions failed" in told
    for day in (DAYS[0], DAYS[2]):
        assert f"{day}: customers/predictions failed: " in told
        assert f"inbox/{day}/a.csv lacks the column plan" in told
    assert not any(event.is_step_up_for_retry for event in result.all_events)


def test_bad_days_fail_the_run_when_nothing_is_made_of_them(trained: Project) -> None:
    put(trained, DAYS[2], BAD)
    result = run(trained)
    assert not result.success
    assert days_made(result) == [DAYS[0], DAYS[1], DAYS[3]]
    assert f"1 of 4 partitions failed:\n{DAYS[2]}: " in why(result)

    put(trained, DAYS[2], GOOD)
    mended = run(trained)
    assert mended.success
    assert reused(mended) == [DAYS[0], DAYS[1], DAYS[3]]


def test_nothing_is_compared_when_no_day_could_be_scored(trained: Project) -> None:
    for day in DAYS:
        put(trained, day, BAD)
    result = run(trained, PREDICTIONS, DRIFT)
    assert "4 of 4 partitions failed" in why(result)
    assert made(result) == made(result, DRIFT) == []


def test_a_passing_failure_is_tried_again_without_the_days_before_it(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(trained, DAYS[0], BAD)
    scored = scoring_that_fails(monkeypatch, {DAYS[2]: 1})
    result = run(trained, refresh=True)

    assert [event for event in result.all_events if event.is_step_up_for_retry]
    assert scored == [DAYS[0], DAYS[1], DAYS[2], DAYS[3], DAYS[2], DAYS[3]]
    assert sorted(map(str, set(days_made(result)))) == DAYS[1:]
    assert f"1 of 4 partitions failed:\n{DAYS[0]}: " in why(result)


def test_a_failure_that_does_not_pass_within_the_retries_is_named(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring_that_fails(monkeypatch, {DAYS[1]: 99})
    result = run(trained)
    assert f"1 of 4 partitions failed:\n{DAYS[1]}: ConnectionError: away" in why(result)
    assert set(days_made(result)) == {DAYS[0], DAYS[2], DAYS[3]}
    assert sum(event.is_step_up_for_retry for event in result.all_events) == 2


def test_when_all_fails_the_days_do_not_wait_one_after_another(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = scoring_that_fails(monkeypatch, dict.fromkeys(DAYS, 99))
    result = run(trained)
    assert scored == DAYS[:3] * 3
    assert f"{DAYS[3]}: not tried, as the 3 before it failed" in why(result)


def test_the_model_is_read_once_for_all_days(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, keys = ArtifactStore.read, []

    def counting(store: ArtifactStore, artifact: Artifact, *options: Any) -> Any:
        keys.append(artifact.key)
        return read(store, artifact, *options)

    monkeypatch.setattr(ArtifactStore, "read", counting)
    assert run(trained).success
    assert keys == [("customers", "champion")]


def test_days_that_a_run_has_still_to_score_are_in_progress(
    trained: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlops_assets.ml import inbox

    graph = trained.definitions().resolve_asset_graph()
    found: dict[str, set[str | None]] = {}
    files_of_day = inbox.files_of_day

    def looking(uri: str, folder: Path, day: str, *options: Any) -> Any:
        with partition_loading_context(datetime.now(UTC), trained.instance):
            found[day] = Lineage(trained.instance, graph).in_progress(PREDICTIONS)
        return files_of_day(uri, folder, day, *options)

    monkeypatch.setattr(inbox, "files_of_day", looking)
    assert run(trained).success
    for day in DAYS:
        assert found[day] >= {one for one in DAYS if one >= day}


def scoring_that_fails(monkeypatch: pytest.MonkeyPatch, times: dict[str, int]) -> list[str]:
    """Have days fail so many times for a reason that may pass; return which days were tried."""
    from mlops_assets.ml import inbox

    tried: list[str] = []
    files_of_day = inbox.files_of_day

    def files(uri: str, folder: Path, day: str, *options: object) -> object:
        tried.append(day)
        if times.get(day, 0) > 0:
            times[day] -= 1
            raise ConnectionError("away")
        return files_of_day(uri, folder, day, *options)

    monkeypatch.setattr(inbox, "files_of_day", files)
    monkeypatch.setattr(inbox, "identity_of_day", lambda *_: "same")
    return tried
