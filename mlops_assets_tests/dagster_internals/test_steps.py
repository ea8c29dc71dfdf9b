"""Each use of Dagster that is not public: these fail loudly when a new version moves one."""

import pytest
from dagster import (
    AllPartitionMapping,
    AssetDep,
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    AssetSpec,
    DagsterInstance,
    DailyPartitionsDefinition,
    DataVersion,
    InputContext,
    IOManager,
    Output,
    OutputContext,
    asset,
    build_input_context,
    io_manager,
    materialize,
)

from mlops_assets.dagster_internals.steps import (
    is_in_step,
    observe_input,
    record_data_version,
    recorded_input_version,
    recorded_input_versions,
)

UP = AssetKey("up")


class Recording(IOManager):
    def __init__(self) -> None:
        self.seen: list[tuple[bool, str | None]] = []

    def handle_output(self, context: OutputContext, obj: object) -> None:
        record_data_version(context, context.asset_key, f"version-{obj}")

    def load_input(self, context: InputContext) -> object:
        self.seen.append((is_in_step(context), recorded_input_version(context, context.asset_key)))
        return None


def test_an_io_manager_can_set_the_data_version_and_read_that_of_an_input() -> None:
    recording = Recording()

    @asset
    def up() -> int:
        return 1

    @asset
    def down(context, up) -> int:
        assert recorded_input_version(context, UP) == "version-1"
        return 2

    with DagsterInstance.ephemeral() as instance:
        result = materialize(
            [up, down],
            instance=instance,
            resources={"io_manager": io_manager(lambda _: recording)},
        )
        assert result.success
        event = instance.get_latest_materialization_event(UP)
        assert event is not None
        assert event.asset_materialization is not None
        tags = event.asset_materialization.tags or {}
        assert DataVersion(tags["dagster/data_version"]) == DataVersion("version-1")
    assert recording.seen == [(True, "version-1")]


def test_a_step_can_observe_its_source_and_is_recorded_with_what_it_saw() -> None:
    source = AssetSpec("up")

    @asset(deps=[source])
    def down(context: AssetExecutionContext) -> int:
        observe_input(context, UP, "seen-in-the-step")
        return 1

    with DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(
            AssetObservation("up", tags={"dagster/data_version": "seen-before"})
        )
        assert materialize([source, down], instance=instance).success
        event = instance.get_latest_materialization_event(AssetKey("down"))
        assert event is not None
        assert event.asset_materialization is not None
        tags = event.asset_materialization.tags or {}
        assert tags["dagster/input_data_version/up"] == "seen-in-the-step"


def test_an_input_loaded_by_hand_is_told_from_one_of_a_step() -> None:
    assert not is_in_step(build_input_context(asset_key=UP))


@pytest.mark.parametrize("count", [3, 120])
def test_the_versions_of_a_daily_input_are_those_of_when_the_step_began(count: int) -> None:
    days = DailyPartitionsDefinition("2025-01-01")
    keys = days.get_partition_keys()[:count]
    seen: list[object] = []

    @asset(partitions_def=days)
    def daily() -> Output[None]:
        return Output(None, data_version=DataVersion("first"))

    @asset(deps=[AssetDep(daily, partition_mapping=AllPartitionMapping())])
    def total(context: AssetExecutionContext) -> None:
        key = AssetKey("daily")
        for version in ("meanwhile", "later"):
            seen.append(recorded_input_versions(context, key))
            context.instance.report_runless_asset_event(
                AssetMaterialization(key, partition=keys[0], tags={"dagster/data_version": version})
            )

    with DagsterInstance.ephemeral() as instance:
        for day in keys:
            instance.report_runless_asset_event(
                AssetMaterialization(
                    "daily", partition=day, tags={"dagster/data_version": f"of {day}"}
                )
            )
        assert materialize([daily, total], instance=instance, selection=[total]).success

    first = {day: f"of {day}" for day in keys}
    assert seen == [first, first]
