"""What a schedule launches, what it says when it launches nothing, and what it leaves for later."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetKey,
    AssetMaterialization,
    AssetsDefinition,
    AssetSpec,
    DagsterInstance,
    DailyPartitionsDefinition,
    DataVersion,
    Definitions,
    DynamicPartitionsDefinition,
    Output,
    asset,
    build_schedule_context,
    multi_asset,
)
from dagster._core.definitions.schedule_definition import ScheduleExecutionData

from mlops_assets.automation.schedules import LONGEST_REASON, REASON, stale_assets_schedule
from mlops_assets.automation.staleness import UndecidedError, recorded_in
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets_tests.automation.conftest import NOON, World, made
from mlops_assets_tests.conftest import DUMMY, Project, write_customers

DAYS = DailyPartitionsDefinition("2026-03-02")
TWO_DAYS = {"2026-03-02", "2026-03-03"}
DAILY = "train: {schedule: '@daily'}\n"


def tick(
    definitions: Definitions, instance: DagsterInstance, **resources: object
) -> ScheduleExecutionData:
    """Evaluate the only schedule there is."""
    repository = definitions.get_repository_def()
    [schedule] = repository.schedule_defs
    with build_schedule_context(
        scheduled_execution_time=NOON, repository_def=repository, resources=resources
    ) as context:
        # given an instance in memory, a context has none: there is no reference to open it by
        context._instance, context._instance_ref = instance, instance
        return schedule.evaluate_tick(context)


# --- of a pipeline ------------------------------------------------------------------------------


class Training:
    """The training schedule of the pipeline `customers`."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.write(DUMMY)

    def write(self, text: str) -> None:
        self.project.add("customers", text + DAILY)

    def tick(self) -> tuple[list[str], str]:
        """Return the assets that are launched, and why they or none are."""
        store = StoreIOManager(url=self.project.settings.store_url)
        ticked = tick(self.project.definitions(), self.project.instance, store=store)
        if not ticked.run_requests:
            return [], ticked.skip_message or ""
        [request] = ticked.run_requests
        return [key.path[-1] for key in request.asset_selection or ()], request.tags[REASON]


@pytest.fixture
def training(customers: Project) -> Training:
    return Training(customers)


def test_training_is_launched_in_full_once_and_then_skipped_with_what_is_fresh(
    training: Training,
) -> None:
    launched, why = training.tick()
    assert sorted(launched) == ["champion", "metrics", "model", "raw", "test", "train"]
    assert "customers/raw: never materialised" in why

    keys = [AssetKey(["customers", stage]) for stage in ("raw", "model", "nothing")]
    assert recorded_in(training.project.instance, keys) == {}

    assert training.project.train("customers").success
    recorded = recorded_in(training.project.instance, keys)
    assert set(recorded) == {"customers/raw", "customers/model"}
    assert set(recorded["customers/model"].inputs) == {"customers/train"}
    assert len(recorded["customers/model"].version or "") == 16
    assert len(recorded["customers/model"].fingerprint or "") == 64
    assert training.tick() == (
        [],
        "fresh: customers/champion, customers/metrics, customers/model, customers/raw, "
        "customers/test, customers/train",
    )


def test_what_has_changed_is_launched_with_what_depends_on_it_and_why(training: Training) -> None:
    training.project.train("customers")
    training.write(DUMMY.replace("params: {}", "params: {strategy: uniform}"))
    launched, why = training.tick()
    assert launched == ["model", "metrics", "champion"]
    assert "customers/model: parameters changed: model.params.strategy" in why

    # nobody has observed it
    write_customers(training.project.folder / "pipelines" / "customers.csv", rows=130)
    launched, why = training.tick()
    assert len(launched) == 6
    assert "customers/raw: input content changed: customers/source" in why


def test_what_another_instance_has_computed_is_launched_to_be_told_to_this_one(
    training: Training,
) -> None:
    with DagsterInstance.ephemeral() as elsewhere:
        replace(training.project, instance=elsewhere).train("customers")
    launched, why = training.tick()

    assert len(launched) == 6
    assert "customers/raw: computed before, but not the latest in this Dagster" in why


def test_a_source_that_is_away_is_a_failed_tick_that_says_so(training: Training) -> None:
    (training.project.folder / "pipelines" / "customers.csv").unlink()

    with pytest.raises(UndecidedError, match=r"customers: .*customers\.csv does not exist"):
        training.tick()


# --- of any assets ------------------------------------------------------------------------------


class Nightly(World):
    """A schedule over all assets of a code location that changes."""

    selection: Any = "*"

    def night(self) -> dict[str | None, set[str]]:
        """Return what is launched, assets by partition."""
        return {
            request.partition_key: {key.to_user_string() for key in request.asset_selection}
            for request in self.evaluate().run_requests
        }

    def skipped(self) -> str:
        return self.evaluate().skip_message

    def evaluate(self) -> ScheduleExecutionData:
        schedule = stale_assets_schedule("nightly", self.selection, "@daily")
        ticked = tick(Definitions(self.assets, schedules=[schedule]), self.instance)
        keys = [request.run_key for request in ticked.run_requests]
        assert len(set(keys)) == len(keys)
        return ticked


@pytest.fixture
def nightly() -> Iterator[Nightly]:
    with DagsterInstance.ephemeral() as instance:
        yield Nightly(instance)


def chain(*names: str, partitions: Any = None, **changed: AssetsDefinition) -> list[Any]:
    """Return assets of which each depends on the one before."""
    return [
        changed.get(name) or made(name, deps=names[:i][-1:], partitions=partitions)
        for i, name in enumerate(names)
    ]


def test_stale_roots_are_launched_in_one_run_with_everything_below_them(nightly: Nightly) -> None:
    nightly.assets = chain("a", "b", "c")
    assert nightly.night() == {None: {"a", "b", "c"}}
    nightly.run()
    assert nightly.skipped() == "fresh: a, b, c"

    nightly.assets = chain("a", "b", "c", b=made("b", code="2", deps=["a"]))
    [request] = nightly.evaluate().run_requests
    assert {key.to_user_string() for key in request.asset_selection} == {"b", "c"}
    assert request.tags[REASON] == "b: code changed: version 1 → 2; c: below b"


def test_an_equal_observation_launches_nothing_and_a_new_one_what_is_below(
    nightly: Nightly,
) -> None:
    nightly.assets = [made("a", deps=[AssetSpec("source")]), made("b")]
    nightly.observe("source", "monday")
    nightly.run()
    nightly.observe("source", "monday")
    assert nightly.night() == {}
    nightly.observe("source", "tuesday")
    assert nightly.night() == {None: {"a"}}


def test_only_what_is_selected_is_launched(nightly: Nightly) -> None:
    nightly.selection = ["b"]
    nightly.assets = chain("a", "b", "c")
    assert nightly.skipped() == "waiting: b: never materialised, but a is missing"
    nightly.run("a")
    assert nightly.night() == {None: {"b"}}


def test_what_one_step_makes_together_is_launched_together(nightly: Nightly) -> None:
    def split(code: str) -> AssetsDefinition:
        @multi_asset(specs=[AssetSpec("x"), AssetSpec("y", code_version=code)])
        def step() -> Iterator[Any]:
            yield from (Output(None, name) for name in ("x", "y"))

        return step

    nightly.assets = [split("1"), made("below", deps=["x"])]
    nightly.run()
    nightly.assets[0] = split("2")

    assert nightly.night() == {None: {"x", "y", "below"}}


def test_each_stale_partition_is_launched_in_a_run_of_its_own(nightly: Nightly) -> None:
    nightly.assets = chain("a", "b", partitions=DAYS)
    assert nightly.night() == {day: {"a", "b"} for day in TWO_DAYS}

    for partition in TWO_DAYS:
        nightly.run("a", "b", partition=partition)
    assert nightly.night() == {}

    nightly.assets = chain("a", "b", partitions=DAYS, a=made("a", "other", partitions=DAYS))
    nightly.run("a", partition="2026-03-03")
    assert nightly.night() == {"2026-03-03": {"b"}}


def test_runs_with_and_without_a_partition_are_told_apart_in_one_tick(nightly: Nightly) -> None:
    nightly.assets = [made("table"), made("daily", partitions=DAYS)]
    assert nightly.night() == {None: {"table"}} | {day: {"daily"} for day in TWO_DAYS}
    assert {request.run_key for request in nightly.evaluate().run_requests} == {
        "unpartitioned",
        *(f"partition {day}" for day in TWO_DAYS),
    }


def test_what_other_partitions_are_made_of_comes_first(nightly: Nightly) -> None:
    nightly.assets = [
        made("table"),
        made("daily", deps=["table"], partitions=DAYS),
        made("total", deps=["daily"]),
    ]
    assert nightly.night() == {None: {"table"}}
    nightly.run("table")
    assert nightly.night() == {day: {"daily"} for day in TWO_DAYS}
    for partition in TWO_DAYS:
        nightly.run("daily", partition=partition)
    assert nightly.night() == {None: {"total"}}
    nightly.run("total")
    assert nightly.night() == {}


def test_dynamic_partitions_are_launched_as_they_come(nightly: Nightly) -> None:
    nightly.assets = [made("sales", partitions=DynamicPartitionsDefinition(name="shops"))]
    assert nightly.night() == {}
    nightly.instance.add_dynamic_partitions("shops", ["Zürich", "北京"])
    assert nightly.night() == {"Zürich": {"sales"}, "北京": {"sales"}}


def test_what_a_run_is_at_work_on_is_left_to_it_and_launched_if_it_used_old_code(
    nightly: Nightly,
) -> None:
    during = []

    def deploy() -> None:
        nightly.assets = [made("a", code="2")]
        during.append(nightly.skipped())

    nightly.assets = [made("a", meanwhile=deploy)]
    nightly.run()

    assert during == ["waiting: a: never materialised, but a run is at work on it"]
    assert nightly.night() == {None: {"a"}}


def test_a_long_list_of_what_waits_is_cut(nightly: Nightly) -> None:
    nightly.selection = ["daily"]
    nightly.assets = [
        made("table"),
        made("daily", deps=["table"], partitions=DailyPartitionsDefinition("2026-01-01")),
    ]
    *lines, last = nightly.skipped().splitlines()

    assert lines[0] == "waiting: daily 2026-01-01: never materialised, but table is missing"
    assert (len(lines), last) == (20, "and 42 more")


def test_what_failed_is_launched_again_the_next_time(nightly: Nightly) -> None:
    nightly.assets = [made("a", fails=True)]
    nightly.run()

    assert nightly.night() == {None: {"a"}}


def test_nothing_is_made_from_what_did_not_pass_a_blocking_check(nightly: Nightly) -> None:
    @asset(check_specs=[AssetCheckSpec("rule", asset="a", blocking=True)], code_version="1")
    def a() -> Iterator[Any]:
        yield Output(None, data_version=DataVersion("bad"))
        yield AssetCheckResult(passed=False)

    nightly.assets = [a, made("b", deps=["a"])]
    nightly.run()

    assert nightly.skipped() == (
        "fresh: a\nwaiting: b: never materialised, but a has not passed rule"
    )


def test_a_source_nobody_observed_and_a_materialisation_of_nobody_are_taken_as_they_are(
    nightly: Nightly,
) -> None:
    nightly.assets = [made("a", code="2", deps=[AssetSpec("source")])]
    nightly.instance.report_runless_asset_event(AssetMaterialization("a"))
    assert nightly.night() == {}


def test_many_reasons_fit_into_a_tag(nightly: Nightly) -> None:
    nightly.assets = [made(f"asset_{number}") for number in range(30)]
    [request] = nightly.evaluate().run_requests

    assert len(request.tags[REASON]) <= LONGEST_REASON
    assert len(request.asset_selection) == 30
