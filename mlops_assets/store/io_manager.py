"""The store as Dagster's IO manager: outputs become versions, inputs are read by their version.

The version that Dagster recorded as a step's input is the one that is loaded, whatever has been
materialised since. What bytes are and where they lie is the rest of this folder, without Dagster.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import Any

from dagster import (
    AssetKey,
    ConfigurableIOManager,
    Failure,
    InputContext,
    MetadataValue,
    OutputContext,
    TableColumn,
    TableRecord,
    TableSchema,
)
from pydantic import Field

from mlops_assets.dagster_internals import is_in_step, record_data_version, recorded_input_version
from mlops_assets.errors import StoreError
from mlops_assets.failures import explained
from mlops_assets.store.artifacts import Artifact, ArtifactStore

LOAD_AS = "mlops/load_as"
"""Metadata of an input that says in which form a step wants it: "frame", "table" or "batches" for
tables, "artifact" for the reference alone, which reads no content."""


class StoreIOManager(ConfigurableIOManager):
    """Keeps every asset of the project as immutable versions in one store.

    A step may return a value of a kind that the store knows, or the `Artifact` that it has written
    by itself under the asset's own key.
    """

    url: str = Field(description="A folder, or the URL of a bucket and prefix.")
    endpoint_url: str | None = Field(default=None, description="Of an S3-compatible server.")

    @cached_property
    def artifacts(self) -> ArtifactStore:
        """The store itself, for what is not an asset's value."""
        return ArtifactStore(self.url, self.endpoint_url)

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        """Write the value, and record its digest as the asset's data version."""
        key = _asset_key(context)
        partition = context.partition_key if context.has_asset_partitions else None
        with explained():
            artifact = obj if isinstance(obj, Artifact) else self._write(key, obj, partition)
            if artifact.key != tuple(key.path) or artifact.partition != partition:
                raise StoreError(
                    f"{key.to_user_string()} returned an artefact of {'/'.join(artifact.key)}; "
                    "copy it under its own key first"
                )
        record_data_version(context, key, artifact.version)
        context.add_output_metadata(
            {
                "location": MetadataValue.path(self.artifacts.url_of(artifact)),
                "dagster/uri": self.artifacts.url_of(artifact),
                "size_bytes": artifact.size,
                **table_metadata(artifact.facts),
            }
        )

    def load_input(self, context: InputContext) -> Any:
        """Read the version that this step's input was recorded with; by hand, the latest one."""
        key = _asset_key(context)
        form = (context.definition_metadata or {}).get(LOAD_AS)
        with explained() if is_in_step(context) else nullcontext():
            artifact = self._find(context, key)
            return artifact if form == "artifact" else self.artifacts.read(artifact, form)

    def _write(self, key: AssetKey, value: object, partition: str | None) -> Artifact:
        try:
            return self.artifacts.write(key.path, value, partition)
        except StoreError as error:
            raise StoreError(f"{key.to_user_string()} cannot be stored: {error}") from error

    def _find(self, context: InputContext, key: AssetKey) -> Artifact:
        partition = context.asset_partition_key if context.has_asset_partitions else None
        if is_in_step(context) and partition is None:
            version = recorded_input_version(context, key)
        else:
            version = _latest_version(context, key, partition)
        if version is None:
            raise StoreError(
                f"{key.to_user_string()} has never been materialised in this Dagster instance; "
                "materialise it first"
            )
        return self.artifacts.find(key.path, version, partition)


def table_metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Translate what a codec says of a table to what Dagster's UI shows; empty for other values."""
    if "columns" not in facts:
        return {}
    schema = TableSchema([TableColumn(name, type_) for name, type_ in facts["columns"].items()])
    metadata: dict[str, Any] = {
        "dagster/row_count": facts["rows"],
        "dagster/column_schema": schema,
        "column_count": len(schema.columns),
    }
    if facts.get("preview"):
        records = [TableRecord(row) for row in facts["preview"]]
        metadata["preview"] = MetadataValue.table(records, schema)
    return metadata


def _asset_key(context: InputContext | OutputContext) -> AssetKey:
    if not context.has_asset_key:
        raise Failure(
            description=f"{context.name!r} is not an asset; the store keeps assets only",
            allow_retries=False,
        )
    return context.asset_key


def _latest_version(context: InputContext, key: AssetKey, partition: str | None) -> str | None:
    from dagster import AssetRecordsFilter

    records = context.instance.fetch_materializations(
        AssetRecordsFilter(key, asset_partitions=[partition] if partition else None), limit=1
    ).records
    event = records[0].asset_materialization if records else None
    return (event.tags or {}).get("dagster/data_version") if event else None
