"""What is requested, tick by tick."""

from datetime import timedelta

import pytest
from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    AssetOut,
    AssetsDefinition,
    AssetSpec,
    AutomationCondition,
    DagsterInstance,
    DailyPartitionsDefinition,
    DataVersion,
    Definitions,
    DynamicPartitionsDefinition,
    Output,
    PartitionsDefinition,
    StaticPartitionsDefinition,
    asset,
    build_sensor_context,
    multi_asset,
)
from dagster._core.definitions.instigation_logger import (
    InstigationLogger,
    get_instigation_log_records,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.automation.conditions import reuse_condition, reuse_sensor
from mlops_assets_tests.automation.conftest import World, made

DAYS = DailyPartitionsDefinition("2026-03-01", end_offset=0)
THREE_DAYS = {"2026-03-01", "2026-03-02", "2026-03-03"}
NOTHING: dict[str, set[str | None]] = {}


# --- missing ------------------------------------------------------------------------------------


def test_everything_is_requested_at_once_on_an_empty_instance_and_then_nothing(
    world: World,
) -> None:
    world.assets = [made("raw"), made("model", deps=["raw"]), made("metrics", deps=["model"])]

    assert world.run_what_is_requested() == {"raw": {None}, "model": {None}, "metrics": {None}}
    assert world.tick() == NOTHING


def test_what_was_made_before_the_condition_is_first_evaluated_is_not_requested(
    world: World,
) -> None:
    world.assets = [made("raw"), made("model", deps=["raw"])]
    world.run()

    assert world.tick() == NOTHING


def test_what_was_stale_before_the_condition_is_first_evaluated_is_requested(world: World) -> None:
    world.assets = [made("raw"), made("model", deps=["raw"])]
    world.run()
    world.assets = [made("raw"), made("model", deps=["raw"], code="2")]

    assert world.tick() == {"model": {None}}


def test_an_asset_that_stays_without_a_value_is_requested_once(world: World) -> None:
    @asset(output_required=False, automation_condition=reuse_condition(), deps=["model"])
    def champion():
        yield from ()

    world.assets = [made("model"), champion]
    assert world.run_what_is_requested() == {"model": {None}, "champion": {None}}
    assert world.tick() == NOTHING

    world.assets = [made("model", "better", code="2"), champion]
    assert world.run_what_is_requested() == {"model": {None}}
    assert world.run_what_is_requested() == {"champion": {None}}
    assert world.tick() == NOTHING


def test_a_materialisation_that_was_reported_by_hand_is_taken_for_fresh(world: World) -> None:
    world.assets = [made("raw", code="2"), made("model", deps=["raw"])]
    for name in ("raw", "model"):
        world.instance.report_runless_asset_event(AssetMaterialization(name))

    assert world.tick() == NOTHING


def test_what_is_wiped_is_requested_again(world: World) -> None:
    world.assets = [made("raw")]
    world.run_what_is_requested()
    assert world.tick() == NOTHING
    world.instance.wipe_assets([AssetKey("raw")])

    assert world.tick() == {"raw": {None}}


# --- code ---------------------------------------------------------------------------------------


def test_changed_code_is_requested_alone_and_what_is_below_only_if_the_content_changes(
    world: World,
) -> None:
    world.assets = [made("raw"), made("model", deps=["raw"]), made("metrics", deps=["model"])]
    world.run_what_is_requested()

    world.assets[0] = made("raw", code="2")
    assert world.run_what_is_requested() == {"raw": {None}}
    assert world.tick() == NOTHING

    world.assets[0] = made("raw", "other", code="3")
    assert world.run_what_is_requested() == {"raw": {None}}
    assert world.run_what_is_requested() == {"model": {None}}
    assert world.tick() == NOTHING


def test_code_that_changes_back_before_it_is_run_is_not_requested(world: World) -> None:
    world.assets = [made("raw")]
    world.run()
    world.tick()
    world.assets = [made("raw", code="2")]
    world.assets = [made("raw")]

    assert world.tick() == NOTHING


def test_an_asset_without_a_code_version_is_not_stale_by_its_code(world: World) -> None:
    world.assets = [made("raw", code=None)]
    assert world.run_what_is_requested() == {"raw": {None}}
    assert world.tick() == NOTHING


def test_a_deploy_during_a_run_is_not_forgotten_when_the_run_ends_with_the_old_code(
    world: World,
) -> None:
    deployed = made("raw", "new", code="2")
    during = []

    def deploy() -> None:
        world.assets = [deployed]
        during.append(world.tick())

    world.assets = [made("raw", "old", meanwhile=deploy)]
    world.run()

    assert during == [NOTHING]
    assert world.run_what_is_requested() == {"raw": {None}}
    assert world.tick() == NOTHING


def test_a_run_with_other_code_than_the_evaluated_one_is_not_repeated_for_ever(
    world: World,
) -> None:
    """A code server that was not reloaded launches runs, which import the code on disk."""
    loaded, on_disk = made("raw"), made("raw", code="2")
    world.assets = [loaded]
    assert world.tick() == {"raw": {None}}
    for _ in range(3):
        world.assets = [on_disk]
        world.run()
        world.assets = [loaded]
        assert world.tick() == NOTHING


# --- content ------------------------------------------------------------------------------------


def test_content_that_goes_back_and_forth_is_followed(world: World) -> None:
    model = made("model", deps=["raw"])
    world.assets = [made("raw", "a"), model]
    world.run_what_is_requested()

    for content in ("b", "a", "b"):
        world.assets = [made("raw", content), model]
        world.run("raw")
        assert world.run_what_is_requested() == {"model": {None}}
        assert world.tick() == NOTHING


def test_content_that_is_back_before_the_next_tick_is_no_change(world: World) -> None:
    model = made("model", deps=["raw"])
    world.assets = [made("raw", "a"), model]
    world.run_what_is_requested()
    for content in ("b", "a"):
        world.assets = [made("raw", content), model]
        world.run("raw")

    assert world.tick() == NOTHING


def test_an_input_that_changes_during_a_run_is_seen_after_it(world: World) -> None:
    raw = made("raw", "b")

    def change() -> None:
        world.assets = [raw, made("model", deps=["raw"])]
        world.run("raw")
        assert world.tick() == NOTHING

    world.assets = [made("raw", "a")]
    world.run()
    world.assets = [made("raw", "a"), made("model", deps=["raw"], meanwhile=change)]
    world.run("model")

    assert world.tick() == {"model": {None}}


def test_one_multi_asset_is_requested_as_a_whole(world: World) -> None:
    @multi_asset(
        outs={
            name: AssetOut(code_version="1", automation_condition=reuse_condition())
            for name in ("train", "test")
        },
        deps=["raw"],
    )
    def split():
        yield Output(None, "train", data_version=DataVersion("same"))
        yield Output(None, "test", data_version=DataVersion(world.assets[0].op.description or "1"))

    world.assets = [made("raw"), split, made("model", deps=["train"])]
    world.run_what_is_requested()
    world.assets[0] = made("raw", "other", code="2")
    world.run("raw")

    assert world.run_what_is_requested() == {"train": {None}, "test": {None}}
    assert world.tick() == NOTHING


# --- sources ------------------------------------------------------------------------------------


def test_a_new_observation_of_a_source_is_a_change_and_an_equal_one_is_not(world: World) -> None:
    world.assets = [made("raw", deps=[AssetSpec("source")])]
    world.observe("source", "monday")
    assert world.run_what_is_requested() == {"raw": {None}}
    world.observe("source", "monday")
    assert world.tick() == NOTHING
    world.observe("source", "tuesday")
    assert world.run_what_is_requested() == {"raw": {None}}
    assert world.tick() == NOTHING


def test_a_source_that_was_never_observed_hinders_nothing(world: World) -> None:
    world.assets = [made("raw", deps=[AssetSpec("source")])]

    assert world.run_what_is_requested() == {"raw": {None}}
    assert world.tick() == NOTHING


def test_a_dependency_that_is_added_or_removed_is_a_change(world: World) -> None:
    source = AssetSpec("source")
    world.assets = [made("raw")]
    world.run()
    world.assets = [made("raw", deps=[source])]
    assert world.run_what_is_requested() == {"raw": {None}}
    world.assets = [made("raw")]
    assert world.run_what_is_requested() == {"raw": {None}}
    assert world.tick() == NOTHING


# --- failures -----------------------------------------------------------------------------------


def test_a_failure_is_not_requested_again_until_its_code_changes(world: World) -> None:
    world.assets = [made("raw"), made("model", deps=["raw"], fails=True)]
    assert world.run_what_is_requested() == {"raw": {None}, "model": {None}}
    assert [world.tick() for _ in range(3)] == [NOTHING] * 3

    world.assets[1] = made("model", deps=["raw"], fails=True, code="2")
    assert world.run_what_is_requested() == {"model": {None}}
    assert [world.tick() for _ in range(3)] == [NOTHING] * 3

    world.assets[1] = made("model", deps=["raw"], code="3")
    assert world.run_what_is_requested() == {"model": {None}}
    assert world.tick() == NOTHING


def test_what_was_skipped_because_of_a_failure_above_is_requested_once_that_is_mended(
    world: World,
) -> None:
    world.assets = [made("raw", fails=True), made("model", deps=["raw"])]
    assert world.run_what_is_requested() == {"raw": {None}, "model": {None}}
    assert world.tick() == NOTHING

    world.assets[0] = made("raw", code="2")
    assert world.run_what_is_requested() == {"raw": {None}}
    assert world.run_what_is_requested() == {"model": {None}}
    assert world.tick() == NOTHING


def test_what_was_skipped_is_requested_also_when_the_mended_input_has_its_old_content(
    world: World,
) -> None:
    world.assets = [made("raw"), made("model", deps=["raw"])]
    world.run()
    world.assets = [made("raw", code="2", fails=True), made("model", deps=["raw"], code="2")]
    assert world.run_what_is_requested() == {"raw": {None}, "model": {None}}
    assert world.tick() == NOTHING

    world.assets[0] = made("raw", code="3")
    world.run("raw")
    assert world.run_what_is_requested() == {"model": {None}}


def test_a_source_that_a_failing_step_observes_itself_is_no_news_to_it(world: World) -> None:
    source = AssetSpec("source")

    @asset(deps=[source], code_version="1", automation_condition=reuse_condition())
    def raw(context: AssetExecutionContext) -> None:
        context.log_event(AssetObservation("source", tags={"dagster/data_version": "half a file"}))
        raise RuntimeError("half a file")

    world.assets = [raw]
    assert world.run_what_is_requested() == {"raw": {None}}
    assert world.tick() == NOTHING

    world.observe("source", "a whole file")
    assert world.run_what_is_requested() == {"raw": {None}}
    assert world.tick() == NOTHING


def test_a_cancelled_run_is_not_launched_again(world: World) -> None:
    world.assets = [made("raw")]
    world.tick()
    job = Definitions(world.assets).resolve_implicit_global_asset_job_def()
    run = world.instance.create_run_for_job(job, asset_selection=frozenset({AssetKey("raw")}))
    assert world.tick() == NOTHING

    world.instance.report_run_canceled(run)
    assert [world.tick() for _ in range(2)] == [NOTHING] * 2


def test_nothing_is_made_from_what_did_not_pass_a_blocking_check(world: World) -> None:
    rule = AssetCheckSpec("rule", asset="raw", blocking=True)

    def raw_that(passes: bool):
        @asset(check_specs=[rule], code_version=str(passes), automation_condition=reuse_condition())
        def raw():
            yield Output(None, data_version=DataVersion(str(passes)))
            yield AssetCheckResult(passed=passes)

        return raw

    world.assets = [raw_that(passes=True), made("model", deps=["raw"])]
    world.run_what_is_requested()
    world.assets[0] = raw_that(passes=False)
    assert world.run_what_is_requested() == {"raw": {None}}
    assert world.tick() == NOTHING

    world.assets[0] = raw_that(passes=True)
    assert world.run_what_is_requested() == {"raw": {None}, "model": {None}}
    assert world.tick() == NOTHING


# --- partitions ---------------------------------------------------------------------------------


def test_the_partitions_of_changed_code_are_all_requested_once(world: World) -> None:
    world.assets = [made("daily", partitions=DAYS)]
    assert world.run_what_is_requested() == {"daily": THREE_DAYS}
    assert world.tick() == NOTHING

    world.assets = [made("daily", code="2", partitions=DAYS)]
    assert world.tick() == {"daily": THREE_DAYS}
    assert world.tick() == NOTHING  # requested, and neither begun nor failed
    world.run("daily", partition="2026-03-02")
    assert world.tick() == NOTHING


def test_a_partition_that_a_run_is_at_work_on_is_not_requested(world: World) -> None:
    during = []
    world.assets = [made("daily", partitions=DAYS, meanwhile=lambda: during.append(world.tick()))]
    world.run("daily", partition="2026-03-02")

    assert during == [{"daily": THREE_DAYS - {"2026-03-02"}}]


def test_only_the_partitions_below_a_changed_one_are_requested(world: World) -> None:
    below = made("below", deps=["daily"], partitions=DAYS)
    world.assets = [made("daily", partitions=DAYS), below]
    assert world.run_what_is_requested() == {"daily": THREE_DAYS, "below": THREE_DAYS}

    world.assets = [made("daily", "other", partitions=DAYS), below]
    world.run("daily", partition="2026-03-02")
    assert world.run_what_is_requested() == {"below": {"2026-03-02"}}
    assert world.tick() == NOTHING


def test_all_partitions_below_an_unpartitioned_asset_are_requested(world: World) -> None:
    daily = made("daily", deps=["table"], partitions=DAYS)
    world.assets = [made("table"), daily]
    world.run("table")
    assert world.run_what_is_requested() == {"daily": THREE_DAYS}

    world.assets = [made("table", "other", code="2"), daily]
    world.run("table")
    assert world.run_what_is_requested() == {"daily": THREE_DAYS}
    assert world.tick() == NOTHING


def test_an_unpartitioned_asset_follows_the_content_of_all_partitions_above(world: World) -> None:
    total = made("total", deps=["daily"])
    world.assets = [made("daily", partitions=DAYS), total]
    world.run_what_is_requested()
    world.run_what_is_requested()
    assert world.tick() == NOTHING

    world.run("daily", partition="2026-03-02")
    assert world.tick() == NOTHING
    world.assets = [made("daily", "other", partitions=DAYS), total]
    world.run("daily", partition="2026-03-02")
    assert world.run_what_is_requested() == {"total": {None}}
    assert world.tick() == NOTHING


def test_more_than_a_hundred_partitions_above_are_compared_too(world: World) -> None:
    """From a hundred on Dagster records the version of the last one only."""
    many = StaticPartitionsDefinition([f"{number:03}" for number in range(101)])
    total = made("total", deps=["part"])
    world.assets = [made("part", partitions=many), total]
    for partition in many.get_partition_keys():
        world.instance.report_runless_asset_event(
            AssetMaterialization(
                "part", partition=partition, tags={"dagster/data_version": f"of {partition}"}
            )
        )
    world.run("total")
    assert world.tick() == NOTHING

    for version, requested in (("of 007", NOTHING), ("other", {"total": {None}})):
        world.instance.report_runless_asset_event(
            AssetMaterialization("part", partition="007", tags={"dagster/data_version": version})
        )
        assert world.tick() == requested


def test_the_partitions_of_one_run_over_a_range_are_not_requested_again(world: World) -> None:
    """Dagster records the same input version for all of them."""
    world.assets = [made("daily", partitions=DAYS), made("below", deps=["daily"], partitions=DAYS)]
    for partition in THREE_DAYS:
        world.run("daily", partition=partition)
    job = Definitions(world.assets).resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=world.instance,
        asset_selection=[AssetKey("below")],
        tags={
            "dagster/asset_partition_range_start": "2026-03-01",
            "dagster/asset_partition_range_end": "2026-03-03",
        },
    )
    assert result.success
    assert world.tick() == NOTHING

    world.assets[0] = made("daily", "other", partitions=DAYS)
    world.run("daily", partition="2026-03-02")
    assert world.tick() == {"below": {"2026-03-02"}}


def test_dynamic_partitions_are_requested_as_they_come(world: World) -> None:
    shops = DynamicPartitionsDefinition(name="shops")
    world.assets = [
        made("sales", partitions=shops),
        made("below", deps=["sales"], partitions=shops),
    ]
    assert world.tick() == NOTHING
    for shop in ("Zürich", "北京"):
        world.instance.add_dynamic_partitions("shops", [shop])
        assert world.run_what_is_requested() == {"sales": {shop}, "below": {shop}}
    assert world.tick() == NOTHING


def test_a_partition_that_fails_is_requested_again_only_when_its_own_input_is_made_anew(
    world: World,
) -> None:
    world.assets = [
        made("daily", partitions=DAYS),
        made("below", deps=["daily"], partitions=DAYS, fails=True),
    ]
    world.run_what_is_requested()
    assert world.tick() == NOTHING

    world.run("daily", partition="2026-03-02")
    assert world.tick() == {"below": {"2026-03-02"}}


# --- as a part of something larger --------------------------------------------------------------


def test_a_condition_around_it_can_narrow_it_and_what_it_leaves_out_is_not_forgotten(
    world: World,
) -> None:
    recent = reuse_condition() & AutomationCondition.in_latest_time_window(timedelta(days=2))
    daily = made("daily", partitions=DAYS)
    world.assets = [
        daily.map_asset_specs(lambda spec: spec.replace_attributes(automation_condition=recent))
    ]
    assert world.run_what_is_requested() == {"daily": {"2026-03-02", "2026-03-03"}}
    assert world.tick() == NOTHING

    world.assets = [daily]
    assert world.tick() == {"daily": {"2026-03-01"}}


def test_the_sensor_is_switched_off_and_evaluates_where_the_condition_is_known() -> None:
    sensor = reuse_sensor("reuse", "*")
    definitions = Definitions([made("raw")], sensors=[sensor])

    assert sensor.default_status.value == "STOPPED"
    Definitions.validate_loadable(definitions)
    assert [s.name for s in definitions.get_repository_def().sensor_defs] == ["reuse"]


def test_the_sensor_requests_many_partitions_as_one_backfill_and_remembers_them() -> None:
    sensor = reuse_sensor("reuse", "*")
    repository = Definitions(
        [made("part", partitions=StaticPartitionsDefinition(["a", "b", "c"]))], sensors=[sensor]
    ).get_repository_def()
    with DagsterInstance.local_temp() as instance:
        ticks = []
        for _ in range(2):
            cursor = ticks[-1].cursor if ticks else None
            with (
                build_sensor_context(instance, cursor, repository_def=repository) as context,
                InstigationLogger(["tick"], instance) as context._logger,
            ):
                ticks.append(sensor.evaluate_tick(context))
        logged = [record["msg"] for record in get_instigation_log_records(instance, ["tick"])]
        assert "part (3 partitions) is stale: never materialised" in logged
        [request] = ticks[0].run_requests
        assert request.asset_graph_subset.asset_keys == {AssetKey("part")}
        assert not ticks[1].run_requests


# --- anything -----------------------------------------------------------------------------------


CHANGES = st.tuples(
    st.sampled_from(["raw", "model", "metrics"]),
    st.sampled_from(["deploy", "deploy and run", "fail", "tick"]),
    st.sampled_from("12"),
    st.sampled_from("xy"),
)


@pytest.mark.parametrize("partitions", [None, StaticPartitionsDefinition(["one", "two"])])
@settings(max_examples=4)
@given(changes=st.lists(CHANGES, max_size=5))
def test_after_any_changes_it_ends_with_all_fresh_in_the_eyes_of_dagster_and_no_request(
    partitions: PartitionsDefinition | None, changes: list[tuple[str, str, str, str]]
) -> None:
    above = {"raw": [], "model": ["raw"], "metrics": ["raw", "model"]}

    def define(name: str, *args: str, fails: bool = False, code: str = "1") -> AssetsDefinition:
        return made(name, *args, code=code, deps=above[name], partitions=partitions, fails=fails)

    with DagsterInstance.ephemeral() as instance:
        assets = {name: define(name) for name in above}
        failing: set[str] = set()
        world = World(instance, [*assets.values()])
        for name, what, code, content in changes:
            if what == "tick":
                world.run_what_is_requested()
                continue
            assets[name] = define(name, content, code=code, fails=what == "fail")
            if what == "fail":  # what failed is not requested again before its code changes
                failing.add(name)
            world.assets = [*assets.values()]
            if what != "deploy":
                world.run(name, partition=partitions and "two")
        world.assets = [
            define(name, "mended", code="3") if name in failing else one
            for name, one in assets.items()
        ]
        for _ in range(4):
            world.run_what_is_requested()

        assert world.tick() == NOTHING
        assert world.stale_to_dagster() == set()
