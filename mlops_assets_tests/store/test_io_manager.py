"""The store as Dagster's IO manager, with assets that a user might write."""

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from dagster import (
    AssetExecutionContext,
    AssetIn,
    AssetKey,
    AssetsDefinition,
    AssetSpec,
    ConfigurableIOManager,
    DagsterInstance,
    DailyPartitionsDefinition,
    Definitions,
    ExecuteInProcessResult,
    InputContext,
    Output,
    OutputContext,
    RetryPolicy,
    asset,
    materialize,
)

from mlops_assets.definitions import build_defs
from mlops_assets.errors import StoreError
from mlops_assets.store import Artifact
from mlops_assets.store.io_manager import LOAD_AS, StoreIOManager
from mlops_assets_tests.conftest import Project, write_customers
from mlops_assets_tests.store.conftest import BUCKET, s3_client


@pytest.fixture
def io_manager(tmp_path: Path) -> StoreIOManager:
    return StoreIOManager(url=str(tmp_path / "store"))


@asset
def numbers() -> pd.DataFrame:
    return pd.DataFrame({"x": [1.5, None], "y": ["a", "b"]})


def run(
    io_manager: StoreIOManager, *assets: AssetsDefinition, **options: Any
) -> ExecuteInProcessResult:
    return materialize(
        assets, resources={"io_manager": io_manager}, raise_on_error=False, **options
    )


def failure(result: ExecuteInProcessResult) -> str:
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert failed.step_failure_data.user_failure_data is not None
    return failed.step_failure_data.user_failure_data.description or ""


def test_a_whole_pipeline_runs_with_its_data_and_its_store_on_s3(
    customers: Project, s3_endpoint: str
) -> None:
    prefix = uuid.uuid4().hex
    local = customers.folder / "pipelines" / "customers.csv"
    client = s3_client(s3_endpoint)
    client.upload_file(str(local), BUCKET, f"{prefix}/in/customers.csv")
    local.unlink()
    file = customers.folder / "pipelines" / "customers.yaml"
    file.write_text(
        file.read_text().replace("uri: customers.csv", f"uri: s3://{BUCKET}/{prefix}/in/*.csv")
    )
    settings = replace(
        customers.settings, store_url=f"s3://{BUCKET}/{prefix}/store", s3_endpoint_url=s3_endpoint
    )
    job = build_defs(settings).resolve_job_def("customers_training")
    first = job.execute_in_process(instance=customers.instance)
    second = job.execute_in_process(instance=customers.instance)

    assert first.success
    assert second.success
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/store/customers/")
    assert sorted(item["Key"].split("/")[3] for item in listed["Contents"]) == [
        "champion", "metrics", "model", "raw", "test", "train",
    ]  # fmt: skip


def test_a_frame_of_a_users_asset_has_its_digest_as_data_version(
    io_manager: StoreIOManager, tmp_path: Path
) -> None:
    result = run(io_manager, numbers)
    (materialization,) = result.asset_materializations_for_node("numbers")
    version = (materialization.tags or {})["dagster/data_version"]

    assert (tmp_path / "store" / "numbers" / f"{version}.parquet").is_file()
    assert materialization.metadata["dagster/row_count"].value == 2
    schema = materialization.metadata["dagster/column_schema"].value
    assert {column.name: column.type for column in schema.columns} == {
        "x": "float64",
        "y": "object",
    }


def test_an_input_comes_in_the_form_that_its_metadata_ask_for(io_manager: StoreIOManager) -> None:
    seen: dict[str, str] = {}

    def reader(form: str) -> AssetsDefinition:
        @asset(name=form, ins={"numbers": AssetIn("numbers", metadata={LOAD_AS: form})})
        def read(numbers: Any) -> None:
            seen[form] = type(numbers).__name__

        return read

    forms = ("frame", "table", "batches", "artifact")
    run(io_manager, numbers, *(reader(form) for form in forms))

    assert seen == {
        "frame": "DataFrame",
        "table": "Table",
        "batches": "RecordBatchReader",
        "artifact": "Artifact",
    }


def test_an_asset_may_stream_batches_and_read_them_back(io_manager: StoreIOManager) -> None:
    @asset
    def stream() -> Output[Any]:
        return Output(pa.record_batch({"x": [number] * 1000}) for number in range(50))

    @asset(ins={"stream": AssetIn("stream", metadata={LOAD_AS: "batches"})})
    def total(stream: pa.RecordBatchReader) -> int:
        return sum(batch.num_rows for batch in stream)

    result = run(io_manager, stream, total)
    assert result.output_for_node("total") == 50_000


def test_partitions_are_kept_and_read_apart(io_manager: StoreIOManager, tmp_path: Path) -> None:
    days = DailyPartitionsDefinition("2024-01-01", end_date="2024-01-04")

    @asset(partitions_def=days)
    def daily(context: AssetExecutionContext) -> dict[str, str]:
        return {"day": context.partition_key}

    @asset(partitions_def=days)
    def copy_of(daily: dict[str, str]) -> dict[str, str]:
        return daily

    with DagsterInstance.ephemeral() as instance:
        for day in ("2024-01-02", "2024-01-01"):
            run(io_manager, daily, instance=instance, partition_key=day)
        result = run(
            io_manager, daily, copy_of, instance=instance, partition_key="2024-01-02",
            selection=[copy_of],
        )  # fmt: skip

    assert result.output_for_node("copy_of") == {"day": "2024-01-02"}
    folders = {path.name for path in (tmp_path / "store" / "daily").iterdir()}
    assert folders == {"2024-01-01", "2024-01-02"}


def test_a_step_loads_the_version_of_a_partition_that_it_was_recorded_with(
    io_manager: StoreIOManager,
) -> None:
    days = DailyPartitionsDefinition("2024-01-01", end_date="2024-01-04")
    content = {"now": "first"}

    @asset(partitions_def=days)
    def daily() -> dict[str, str]:
        return dict(content)

    def make(text: str, day: str = "2024-01-02") -> None:
        content["now"] = text
        assert run(io_manager, daily, instance=instance, partition_key=day).success

    class MeanwhileMadeAgain(ConfigurableIOManager):
        def load_input(self, context: InputContext) -> str:
            make("second")
            make("of another day", "2024-01-03")
            return "made again"

        def handle_output(self, context: OutputContext, obj: object) -> None: ...

    @asset(
        ins={"before": AssetIn("trigger", input_manager_key="trigger"), "daily": AssetIn("daily")},
        partitions_def=days,
    )
    def copy_of(before: str, daily: dict[str, str]) -> dict[str, str]:
        return daily

    with DagsterInstance.ephemeral() as instance:
        make("first")
        result = materialize(
            [AssetSpec("trigger", partitions_def=days), daily, copy_of],
            selection=[copy_of],
            instance=instance,
            partition_key="2024-01-02",
            resources={"io_manager": io_manager, "trigger": MeanwhileMadeAgain()},
        )
    assert result.output_for_node("copy_of") == {"now": "first"}


def test_several_partitions_come_by_name_and_a_missing_one_is_named(
    io_manager: StoreIOManager,
) -> None:
    days = DailyPartitionsDefinition("2024-01-01", end_date="2024-01-03")

    @asset(partitions_def=days)
    def daily(context: AssetExecutionContext) -> str:
        return context.partition_key

    @asset
    def both(daily: dict[str, str]) -> list[str]:
        return [f"{day}: {text}" for day, text in sorted(daily.items())]

    with DagsterInstance.ephemeral() as instance:
        run(io_manager, daily, instance=instance, partition_key="2024-01-01")
        result = run(io_manager, daily, both, instance=instance, selection=[both])
        assert "daily of 2024-01-02 has never been materialised" in failure(result)
        run(io_manager, daily, instance=instance, partition_key="2024-01-02")
        result = run(io_manager, daily, both, instance=instance, selection=[both])
        assert result.output_for_node("both") == [
            "2024-01-01: 2024-01-01",
            "2024-01-02: 2024-01-02",
        ]


def test_a_kind_of_value_that_is_never_stored_fails_once_and_leaves_nothing(
    io_manager: StoreIOManager, tmp_path: Path
) -> None:
    @asset(retry_policy=RetryPolicy(max_retries=3))
    def anything() -> Any:
        return object()

    result = run(io_manager, anything)
    assert "anything cannot be stored" in failure(result)
    assert "DataFrame" in failure(result)
    assert [event for event in result.all_events if event.is_step_up_for_retry] == []
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_an_input_that_was_never_materialised_is_named(io_manager: StoreIOManager) -> None:
    @asset
    def down(numbers: Any) -> None: ...

    result = run(io_manager, numbers, down, selection=[down])
    assert "numbers has never been materialised" in failure(result)


def test_an_artefact_of_another_asset_is_refused(io_manager: StoreIOManager) -> None:
    other = io_manager.artifacts.write(["other"], {"a": 1})

    @asset
    def mine() -> Artifact:
        return other

    assert "copy it under its own key" in failure(run(io_manager, mine))


def test_by_hand_the_latest_version_is_loaded(customers: Project) -> None:
    customers.train("customers", "raw")
    write_customers(customers.folder / "pipelines" / "customers.csv", rows=90)
    customers.train("customers", "raw")
    definitions = customers.definitions()

    frame = definitions.load_asset_value(["customers", "raw"], instance=customers.instance)
    assert len(frame) == 90


def test_by_hand_a_damaged_object_is_an_error_of_the_store(customers: Project) -> None:
    customers.train("customers", "raw")
    (path,) = (customers.folder / "store" / "customers" / "raw").iterdir()
    path.write_bytes(b"PAR1")
    definitions: Definitions = customers.definitions()

    with pytest.raises(StoreError, match="materialise the asset customers/raw again"):
        definitions.load_asset_value(AssetKey(["customers", "raw"]), instance=customers.instance)
