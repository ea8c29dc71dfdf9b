"""When a model is overdue, and that a schedule confirms it before."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from dagster import AssetKey, AssetsDefinition, DagsterInstance, Definitions, build_schedule_context
from dagster._core.definitions.freshness_evaluator import FRESHNESS_EVALUATORS_BY_POLICY_TYPE
from dagster._core.loader import LoadingContextForTest
from dagster._core.test_utils import freeze_time

from mlops_assets.automation.schedules import REASON
from mlops_assets.dagster_internals.ticks import ticks_after
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets_tests.conftest import DUMMY, Project

MODEL = AssetKey(["customers", "model"])
PREDICTIONS = AssetKey(["customers", "predictions"])
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
SCORE = "score: {uri: 'inbox/{date}.csv', schedule: '@hourly'}\n"


def windows(project: Project, text: str) -> dict[AssetKey, timedelta]:
    """Return the windows of the freshness policies of a pipeline."""
    project.add("customers", DUMMY + text)
    policies = {
        spec.key: spec.freshness_policy
        for one in project.definitions().assets or ()
        if isinstance(one, AssetsDefinition)
        for spec in one.specs
    }
    return {
        key: policy.fail_window.to_timedelta()
        for key, policy in policies.items()
        if policy is not None
    }


def state(definitions: Definitions, instance: DagsterInstance, after: timedelta) -> str:
    """Return what Dagster's evaluator says of the model when some time has gone by."""
    node = definitions.resolve_asset_graph().get(MODEL)
    evaluator = FRESHNESS_EVALUATORS_BY_POLICY_TYPE[type(node.freshness_policy)]()
    with freeze_time(datetime.now(UTC) + after):
        context = LoadingContextForTest(instance)
        return asyncio.run(evaluator.evaluate_freshness(context, node)).value


def tick(project: Project, after: timedelta) -> str:
    """Evaluate the training schedule when some time has gone by; return why it did what it did."""
    definitions = project.definitions()
    store = StoreIOManager(url=project.settings.store_url)
    repository = definitions.get_repository_def()
    with build_schedule_context(
        scheduled_execution_time=datetime.now(UTC) + after,
        repository_def=repository,
        resources={"store": store},
    ) as context:
        context._instance, context._instance_ref = project.instance, project.instance
        ticked = repository.get_schedule_def("customers_training_schedule").evaluate_tick(context)
    if ticked.run_requests:
        return ticked.run_requests[0].tags[REASON]
    return ticked.skip_message or ""


@pytest.mark.parametrize(
    ("schedule", "window"),
    [
        ("@daily", 3 * DAY),
        ("0 9 * * 1-5", 5 * DAY),
        ("@monthly", 92 * DAY),
        ("*/5 * * * *", HOUR),
        ("0 0 29 2 *", None),
    ],
)
def test_what_is_overdue_follows_from_three_intervals_of_the_schedule(
    customers: Project, schedule: str, window: timedelta | None
) -> None:
    found = windows(customers, f"train: {{schedule: '{schedule}'}}\n")

    assert found == ({MODEL: window} if window else {})


def test_a_time_that_is_given_takes_precedence(customers: Project) -> None:
    assert windows(customers, "train: {schedule: '@daily', fresh_within: 2d}\n") == {MODEL: 2 * DAY}
    assert windows(customers, "train: {fresh_within: 90m}\n") == {MODEL: 1.5 * HOUR}
    assert windows(customers, "") == {}


def test_predictions_have_a_window_of_their_own(customers: Project) -> None:
    assert windows(customers, SCORE) == {PREDICTIONS: 3 * HOUR}
    given = SCORE.replace("'@hourly'", "'@hourly', fresh_within: 2d")
    assert windows(customers, given) == {PREDICTIONS: 2 * DAY}


def test_a_policy_changes_no_code_version(customers: Project) -> None:
    def versions(text: str) -> dict[AssetKey, str | None]:
        customers.add("customers", DUMMY + text)
        assets = customers.definitions().assets or ()
        return {
            key: version
            for one in assets
            if isinstance(one, AssetsDefinition)
            for key, version in one.code_versions_by_key.items()
        }

    assert versions("") == versions("train: {fresh_within: 2d}\n")


def test_a_missed_deadline_fails_and_a_reuse_renews_it(customers: Project) -> None:
    customers.add("customers", DUMMY + "train: {fresh_within: 2h}\n")
    definitions = customers.definitions()
    assert state(definitions, customers.instance, timedelta()) == "UNKNOWN"
    assert customers.train("customers").success
    assert state(definitions, customers.instance, HOUR) == "PASS"
    assert state(definitions, customers.instance, 2 * HOUR) == "FAIL"

    with freeze_time(datetime.now(UTC) + 3 * HOUR):
        result = customers.train("customers", "model")
    [event] = result.asset_materializations_for_node("customers__model")
    assert event.metadata["memoized"].value is True
    assert state(definitions, customers.instance, 3 * HOUR) == "PASS"


def test_a_schedule_with_nothing_to_do_confirms_the_model_before_it_is_overdue(
    customers: Project,
) -> None:
    customers.add("customers", DUMMY + "train: {schedule: '@daily', fresh_within: 4d}\n")
    assert "customers/raw: never materialised" in tick(customers, timedelta())
    assert customers.train("customers").success
    assert tick(customers, timedelta()).startswith("fresh: customers/champion")
    assert tick(customers, 1 * DAY).startswith("fresh: ")

    assert "customers/model: customers/model is to be confirmed within 4d" in tick(
        customers, 3 * DAY
    )


def test_ticks_are_those_of_the_time_zone() -> None:
    start = datetime(2026, 3, 28, 12, tzinfo=UTC)
    ticks = ticks_after("0 9 * * *", "Europe/Berlin", start)

    # the clocks go forward on the 29th
    assert [next(ticks).hour, next(ticks).day] == [7, 30]
