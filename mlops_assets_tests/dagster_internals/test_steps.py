"""Each use of Dagster that is not public: these fail loudly when a new version moves one."""

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetObservation,
    AssetSpec,
    DagsterInstance,
    DataVersion,
    InputContext,
    IOManager,
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
