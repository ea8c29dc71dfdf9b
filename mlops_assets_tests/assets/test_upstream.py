"""A pipeline whose source is the asset of another pipeline: the versions read, and the plan."""

from __future__ import annotations

import pytest
from dagster import AssetKey, AssetsDefinition, ExecuteInProcessResult

from mlops_assets.automation.staleness import recorded_in
from mlops_assets.cli.planning import Project as Planned
from mlops_assets.plan import PipelinePlan
from mlops_assets_tests.conftest import DUMMY, Project, write_customers

SECOND = DUMMY.replace("customers.csv", "asset://customers/train")
SCORED = DUMMY + "score: {uri: 'inbox/{date}.csv', start: 2026-01-01, id: [age]}\n"
OF_DAYS = """\
data: {uri: 'asset://customers/predictions', target: age, columns: {age: number}}
model: {estimator: sklearn.dummy.DummyRegressor}
"""


def score(project: Project, day: str, rows: int) -> ExecuteInProcessResult:
    """Write the files of a day, and score them."""
    file = project.folder / "pipelines" / "inbox" / f"{day}.csv"
    file.parent.mkdir(exist_ok=True)
    file.write_text("age,plan\n" + "".join(f"{20 + row},basic\n" for row in range(rows)))
    return scored_again(project, day)


def scored_again(project: Project, day: str) -> ExecuteInProcessResult:
    job = project.definitions().resolve_job_def("customers_scoring")
    return job.execute_in_process(
        instance=project.instance,
        partition_key=day,
        asset_selection=[AssetKey(["customers", "predictions"])],
        raise_on_error=False,
    )


def plans(
    project: Project, *names: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, PipelinePlan]:
    """Plan pipelines, with what the instance has recorded."""
    for name, value in project.environment(project.folder).items():
        monkeypatch.setenv(name, value)
    planned = Planned.load(names)
    keys = [AssetKey(asset.split("/")) for asset in (*planned.assets, *planned.sources)]
    return planned.plan(recorded_in(project.instance, keys, planned.daily_sources))


@pytest.fixture
def second(customers: Project) -> Project:
    """The project with a pipeline `second` whose source is `customers/train`."""
    customers.add("customers", DUMMY)
    customers.add("second", SECOND)
    return customers


@pytest.fixture
def of_days(customers: Project) -> Project:
    """The project with a pipeline `second` whose source is `customers/predictions`."""
    customers.add("customers", SCORED)
    customers.add("second", OF_DAYS)
    assert customers.train("customers").success
    return customers


def input_version(project: Project, asset: str, upstream: str) -> str:
    event = project.instance.get_latest_materialization_event(AssetKey(asset.split("/")))
    assert event is not None
    assert event.asset_materialization is not None
    return (event.asset_materialization.tags or {})[f"dagster/input_data_version/{upstream}"]


def version_of(project: Project, asset: str) -> str:
    key = AssetKey(asset.split("/"))
    return str(recorded_in(project.instance, [key])[asset].version)


def raw_of(result: ExecuteInProcessResult, pipeline: str = "second"):
    return result.output_for_node(f"{pipeline}__raw")


def test_the_lineage_leads_from_one_pipeline_to_the_other(second: Project) -> None:
    assets = [one for one in second.definitions().assets or () if isinstance(one, AssetsDefinition)]
    keys = {key.to_user_string() for one in assets for key in one.keys}
    [raw] = [one for one in assets if AssetKey(["second", "raw"]) in one.keys]

    assert raw.dependency_keys == {AssetKey(["customers", "train"])}
    assert "customers/source" in keys
    assert "second/source" not in keys


def test_the_version_that_is_recorded_is_the_one_that_is_read(second: Project) -> None:
    assert second.train("customers").success
    first = second.train("second")
    assert first.success
    assert len(raw_of(first)) == 96
    assert input_version(second, "second/raw", "customers/train") == version_of(
        second, "customers/train"
    )

    write_customers(second.folder / "pipelines" / "customers.csv", rows=200)
    assert second.train("customers").success
    assert len(raw_of(second.train("second"))) == 160


def test_the_rows_and_types_are_those_of_the_upstream_asset(second: Project) -> None:
    upstream = second.train("customers")
    frame = raw_of(second.train("second"))
    train = upstream.output_for_node("customers__split", "train")

    assert frame.reset_index(drop=True).equals(train.reset_index(drop=True))


def test_nothing_to_read_is_an_error_that_names_the_pipeline_to_run(
    second: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = plans(second, "second", monkeypatch=monkeypatch)["second"]
    assert "customers/train has never been materialised" in (alone.error or "")

    failed = second.train("second")
    [event] = [event for event in failed.all_events if event.is_step_failure]
    failure = event.step_failure_data.user_failure_data
    assert failure is not None
    assert "run the pipeline customers first" in str(failure.description)


def test_a_plan_of_both_pipelines_follows_the_change_from_one_to_the_other(
    second: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = plans(second, monkeypatch=monkeypatch)
    assert both["second"].error is None
    assert len(both["second"].execute) == 6
    assert second.train("customers").success
    assert second.train("second").success
    assert all(plan.is_empty for plan in plans(second, monkeypatch=monkeypatch).values())

    write_customers(second.folder / "pipelines" / "customers.csv", rows=130)
    both = plans(second, monkeypatch=monkeypatch)
    assert dict(both["second"].execute)["second/raw"] == (
        "depends on what is executed: customers/train"
    )
    assert plans(second, "second", monkeypatch=monkeypatch)["second"].is_empty

    assert second.train("customers").success
    alone = plans(second, "second", monkeypatch=monkeypatch)["second"]
    assert dict(alone.execute)["second/raw"] == "input content changed: customers/train"


def test_an_upstream_pipeline_that_cannot_be_planned_is_named(
    second: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (second.folder / "pipelines" / "customers.csv").unlink()
    both = plans(second, monkeypatch=monkeypatch)

    assert "customers.csv does not exist" in (both["customers"].error or "")
    assert "customers could not be planned" in (both["second"].error or "")


def test_the_days_of_a_daily_asset_are_read_one_after_the_other_with_their_date(
    of_days: Project,
) -> None:
    assert score(of_days, "2026-01-07", 3).success
    assert score(of_days, "2026-01-05", 2).success
    frame = raw_of(of_days.train("second", "raw"))

    days = frame["date"].dt.strftime("%Y-%m-%d").tolist()
    assert days == ["2026-01-05"] * 2 + ["2026-01-07"] * 3
    assert frame["age"].tolist() == [20, 21, 20, 21, 22]
    assert str(frame["date"].dtype) == "datetime64[ns]"


def test_a_new_day_is_a_change_of_the_input_and_the_same_days_are_none(
    of_days: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert score(of_days, "2026-01-05", 60).success
    assert of_days.train("second", "raw").success
    assert scored_again(of_days, "2026-01-05").success
    assert "second/raw" in plans(of_days, "second", monkeypatch=monkeypatch)["second"].reuse

    assert score(of_days, "2026-01-06", 3).success
    plan = plans(of_days, "second", monkeypatch=monkeypatch)["second"]
    assert dict(plan.execute)["second/raw"] == (
        "input content changed: customers/predictions[2026-01-06]"
    )
    assert score(of_days, "2026-01-07", 3).success
    plan = plans(of_days, "second", monkeypatch=monkeypatch)["second"]
    assert dict(plan.execute)["second/raw"] == (
        "input content changed: customers/predictions (2 partitions)"
    )


def test_days_before_the_first_one_that_counts_are_in_neither_plan_nor_step(
    of_days: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in ("2026-01-05", "2026-01-06"):
        assert score(of_days, day, 60).success
    of_days.add("customers", SCORED.replace("2026-01-01", "2026-01-06"))

    result = of_days.train("second", "raw")

    assert set(raw_of(result)["date"].dt.day) == {6}
    plan = plans(of_days, "second", monkeypatch=monkeypatch)["second"]
    assert plan.reuse == ["second/raw"]
    assert plan.unrecorded == []


def test_a_column_named_date_of_its_own_is_refused(of_days: Project) -> None:
    text = SCORED.replace("id: [age]", "id: [date]")
    of_days.add("customers", text)
    file = of_days.folder / "pipelines" / "inbox" / "2026-01-05.csv"
    file.parent.mkdir()
    file.write_text("age,plan,date\n20,basic,1\n")
    assert scored_again(of_days, "2026-01-05").success
    failed = of_days.train("second", "raw")

    [event] = [event for event in failed.all_events if event.is_step_failure]
    assert "2026-01-05 has a column 'date' of its own" in str(
        event.step_failure_data.user_failure_data
    )
