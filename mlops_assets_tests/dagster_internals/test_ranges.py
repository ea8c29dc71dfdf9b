"""What a step over a range of partitions takes of Dagster that is not public."""

from pathlib import Path

from dagster import (
    AssetExecutionContext,
    AssetMaterialization,
    DagsterEventType,
    DagsterInstance,
    Definitions,
    MultiPartitionsDefinition,
    StaticPartitionsDefinition,
    asset,
    in_process_executor,
)
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator

from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets_tests.ranges import materialize_range, range_tags

HIDDEN = (DagsterEventType.HANDLED_OUTPUT, DagsterEventType.STEP_RESTARTED)
LETTERS = StaticPartitionsDefinition(["a", "b", "c"])


def definitions(folder: Path, *assets: object) -> Definitions:
    return Definitions(
        assets,
        resources={"io_manager": StoreIOManager(url=str(folder))},
        executor=in_process_executor,
    )


def test_a_step_is_told_once_and_its_messages_name_the_partition(tmp_path: Path) -> None:
    @asset(partitions_def=LETTERS)
    def letters(context: AssetExecutionContext) -> dict[str, str]:
        context.log.info("100%% of %s", context.partition_key)
        return {"letter": context.partition_key}

    with DagsterInstance.ephemeral() as instance:
        defs = definitions(tmp_path, letters)
        result = materialize_range(defs, instance, [letters.key], "a", "c")
        logs = instance.all_logs(result.run_id)

    told = [event.event_type for event in result.events_for_node("letters")]
    assert told == [
        DagsterEventType.STEP_START,
        *[DagsterEventType.ASSET_MATERIALIZATION] * 3,
        DagsterEventType.STEP_OUTPUT,
        DagsterEventType.STEP_SUCCESS,
    ]
    recorded = [entry.dagster_event for entry in logs if entry.step_key == "letters"]
    assert [event for event in recorded if event and event.event_type in HIDDEN] == []
    said = [e.user_message for e in logs if e.step_key == "letters" and not e.dagster_event]
    assert said == [f"{letter}: 100% of {letter}" for letter in "abc"]


def test_events_are_kept_in_memory_for_nobody_who_does_not_ask_for_them(tmp_path: Path) -> None:
    @asset(partitions_def=LETTERS)
    def letters(context: AssetExecutionContext) -> dict[str, str]:
        return {"letter": context.partition_key}

    with DagsterInstance.ephemeral() as instance:
        job = definitions(tmp_path, letters).resolve_implicit_global_asset_job_def()
        run = instance.create_run_for_job(job, tags=range_tags("a", "c"))
        given = [
            event.event_type for event in execute_run_iterator(InMemoryJob(job), run, instance)
        ]
        made = instance.get_materialized_partitions(letters.key)
    assert made == {"a", "b", "c"}
    assert DagsterEventType.STEP_SUCCESS in given
    assert DagsterEventType.ASSET_MATERIALIZATION not in given


def test_inputs_without_partitions_are_those_of_when_the_step_began(tmp_path: Path) -> None:
    @asset
    def up() -> dict[str, int]:
        return {"value": 1}

    @asset(partitions_def=LETTERS)
    def down(context: AssetExecutionContext, up: dict[str, int]) -> dict[str, int]:
        other = AssetMaterialization("up", tags={"dagster/data_version": "meanwhile"})
        context.instance.report_runless_asset_event(other)
        return up

    with DagsterInstance.ephemeral() as instance:
        defs = definitions(tmp_path, up, down)
        result = materialize_range(defs, instance, [up.key, down.key], "a", "c")
    assert result.success
    first, *made = [
        event.step_materialization_data.materialization.tags or {}
        for event in result.get_asset_materialization_events()
    ]
    assert len(made) == 3
    for tags in made:
        assert tags["dagster/input_data_version/up"] == first["dagster/data_version"]


def test_partitions_of_two_dimensions_are_gone_through_too(tmp_path: Path) -> None:
    both = MultiPartitionsDefinition(
        {"letter": LETTERS, "number": StaticPartitionsDefinition("12")}
    )

    @asset(partitions_def=both)
    def pairs(context: AssetExecutionContext) -> dict[str, str]:
        return dict(context.partition_key.keys_by_dimension)  # type: ignore[attr-defined]

    with DagsterInstance.ephemeral() as instance:
        defs = definitions(tmp_path, pairs)
        result = materialize_range(defs, instance, [pairs.key], "a|1", "b|2")
        made = instance.get_materialized_partitions(pairs.key)
    assert result.success
    assert made == {"a|1", "a|2", "b|1", "b|2"}
