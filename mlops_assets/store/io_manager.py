"""The store as Dagster's IO manager: outputs become versions, inputs are read by their version.

The version that Dagster recorded as a step's input is the one that is loaded, whatever has been
materialised since. What bytes are and where they lie is the rest of this folder, without Dagster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetKey,
    ConfigurableIOManager,
    DagsterEvent,
    InputContext,
    MetadataValue,
    OutputContext,
    StepLauncher,
    TableColumn,
    TableRecord,
    TableSchema,
)
from pydantic import Field, PrivateAttr

from mlops_assets.dagster_internals.database import FINGERPRINT
from mlops_assets.dagster_internals.ranges import for_partition, partitions_in_range
from mlops_assets.dagster_internals.steps import (
    instance_id,
    is_in_step,
    prefer_own_run,
    record_data_version,
    recorded_input_version,
    recorded_partition_versions,
    run_step,
)
from mlops_assets.errors import StoreError, UserError
from mlops_assets.failures import explained, silent_when_its_pod_ends
from mlops_assets.store.artifacts import Artifact, ArtifactStore
from mlops_assets.store.memo import Memo, Outside
from mlops_assets.store.ranges import one_by_one
from mlops_assets.store.reuse import StepComputation, latest_materialization, nothing_to_do
from mlops_assets.time_limit import bounded

if TYPE_CHECKING:
    from dagster._core.execution.context.system import StepExecutionContext

LOAD_AS = "mlops/load_as"
"""Metadata of an input that says in which form a step wants it: "frame", "table" or "batches" for
tables, "artifact" for the reference alone, which reads no content."""

READ_ONCE = "mlops/read_once"
"""Metadata of an input: True for a value that the step leaves as it is, a model say, so that a step
over many partitions reads it once."""


class StoreIOManager(ConfigurableIOManager, StepLauncher):
    """Keeps every asset of the project as immutable versions in one store.

    A step may return a value of a kind that the store knows, or the `Artifact` that it has written
    by itself under the asset's own key. As Dagster's step launcher it is asked to run every step
    that uses it, and runs those whose result it does not know.
    """

    url: str = Field(description="A folder, or the URL of a bucket and prefix.")
    endpoint_url: str | None = Field(default=None, description="Of an S3-compatible server.")

    @cached_property
    def artifacts(self) -> ArtifactStore:
        """The store itself, for what is not an asset's value."""
        return ArtifactStore(self.url, self.endpoint_url)

    _running: dict[tuple[str, str], StepComputation] = PrivateAttr(default_factory=dict)
    _read: dict[Artifact, Any] | None = PrivateAttr(default=None)

    @property
    def outside(self) -> Outside:
        """What stages look at beside their inputs, and how sources are reached."""
        return Outside.of(self.artifacts, self.endpoint_url)

    def launch_step(self, step_context: StepExecutionContext) -> Iterator[DagsterEvent]:
        """Tell what a step would compute if it is known, else run it.

        What it raises, and how long it may take, is decided here for every step alike.
        """
        with silent_when_its_pod_ends(step_context.log):
            if partitions_in_range(step_context):
                with explained(step_context), self._reading_once():
                    yield from one_by_one(step_context, self._attempt)
            else:
                yield from self._attempt(step_context)

    @contextmanager
    def _reading_once(self) -> Iterator[None]:
        self._read = {}
        try:
            yield
        finally:
            self._read = None

    def _attempt(self, step: StepExecutionContext) -> Iterator[DagsterEvent]:
        with explained(step):
            yield from bounded(step, self._events(step))

    def _events(self, step_context: StepExecutionContext) -> Iterator[DagsterEvent]:
        prefer_own_run(step_context)
        computation = StepComputation.of(step_context, self.outside)
        events = None
        try:
            events = self._reused(step_context, computation)
        except (UserError, OSError) as error:  # the step comes to it again, and explains it
            step_context.log.warning(f"cannot tell whether this was computed before: {error}")
        if computation is None:
            yield from run_step(step_context) if events is None else events
        else:
            known = computation.run() if events is None else events
            yield from self._telling(computation, known)

    def reused(self, step_context: StepExecutionContext) -> Iterator[DagsterEvent] | None:
        """Return the events of a step as if it had run, for executors; None if it has to run.

        Raises
        ------
        UserError, OSError
            What it depends on cannot be looked up.
        """
        partitions = partitions_in_range(step_context)
        if not partitions:
            return self._known(step_context)
        if any(self._known(for_partition(step_context, one)) is None for one in partitions):
            return None
        return _explained(step_context, one_by_one(step_context, self._still_known))

    def _known(self, step: StepExecutionContext) -> Iterator[DagsterEvent] | None:
        prefer_own_run(step)
        computation = StepComputation.of(step, self.outside)
        events = self._reused(step, computation)
        if computation and events:
            events = self._telling(computation, events)
        return events and _explained(step, events)

    def _still_known(self, step: StepExecutionContext) -> Iterator[DagsterEvent]:
        events = self._known(step)
        with explained(step):
            if events is None:  # the next attempt finds so first, and has it computed
                raise OSError("what was computed before was there a moment ago, and is gone")
        yield from events

    def _reused(
        self, step: StepExecutionContext, computation: StepComputation | None
    ) -> Iterator[DagsterEvent] | None:
        return computation.reused() if computation else nothing_to_do(step, self.outside)

    def _telling(
        self, computation: StepComputation, events: Iterator[DagsterEvent]
    ) -> Iterator[DagsterEvent]:
        """Let `handle_output` know which computation it is that Dagster is told of."""
        step = (computation.step.run_id, computation.step.step.key)
        self._running[step] = computation
        try:
            yield from events
        finally:
            del self._running[step]

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        """Write the value, and record its digest as the asset's data version."""
        key = _asset_key(context)
        partition = context.partition_key if context.has_asset_partitions else None
        artifact = obj if isinstance(obj, Artifact) else self._write(key, obj, partition)
        if artifact.key != tuple(key.path) or artifact.partition != partition:
            raise StoreError(
                f"{key.to_user_string()} returned an artefact of {'/'.join(artifact.key)}; "
                "copy it under its own key first"
            )
        step = context.step_context
        computation = self._running.get((step.run_id, step.step.key))
        fingerprint = computation.wrote(key, artifact) if computation is not None else None
        is_reused = computation is not None and key in computation.hits
        if not is_reused and (instance := instance_id(step.instance)):
            Memo(self.artifacts).set_latest(
                instance,
                key.to_user_string(),
                partition,
                version=artifact.version,
                fingerprint=fingerprint,
                run_id=step.run_id,
            )
        record_data_version(context, key, artifact.version)
        context.add_output_metadata(
            {
                "location": MetadataValue.path(self.artifacts.url_of(artifact)),
                "dagster/uri": self.artifacts.url_of(artifact),
                "size_bytes": artifact.size,
                **table_metadata(artifact.facts),
                **({FINGERPRINT: fingerprint} if fingerprint else {}),
            }
        )

    def load_input(self, context: InputContext) -> Any:
        """Read the version that this step's input was recorded with; by hand, the latest one.

        Of several partitions, a dict by partition.
        """
        key = _asset_key(context)
        metadata = context.definition_metadata or {}
        form, once = metadata.get(LOAD_AS), metadata.get(READ_ONCE) is True
        values = {}
        for partition, version in _versions(context, key).items():
            artifact = self._find(key, partition, version)
            if form == "artifact":
                values[partition] = artifact
            elif once and self._read is not None:
                if artifact not in self._read:
                    self._read = {artifact: self.artifacts.read(artifact, form)}
                values[partition] = self._read[artifact]
            else:
                values[partition] = self.artifacts.read(artifact, form)
        return next(iter(values.values())) if len(values) == 1 else values

    def _write(self, key: AssetKey, value: object, partition: str | None) -> Artifact:
        try:
            return self.artifacts.write(key.path, value, partition)
        except StoreError as error:
            raise StoreError(f"{key.to_user_string()} cannot be stored: {error}") from error

    def _find(self, key: AssetKey, partition: str | None, version: str | None) -> Artifact:
        if version is None:
            name = key.to_user_string() + (f" of {partition}" if partition else "")
            raise StoreError(
                f"{name} has never been materialised in this Dagster instance; materialise it first"
            )
        return self.artifacts.find(key.path, version, partition)


def _explained(
    step: StepExecutionContext, events: Iterator[DagsterEvent]
) -> Iterator[DagsterEvent]:
    with explained(step):
        yield from events


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
        raise StoreError(f"{context.name!r} is not an asset; the store keeps assets only")
    return context.asset_key


def _versions(context: InputContext, key: AssetKey) -> Mapping[str | None, str | None]:
    """Return the version to load by partition; the key is None for an unpartitioned input."""
    partitions = list(context.asset_partition_keys) if context.has_asset_partitions else [None]
    if not is_in_step(context):
        return {partition: _latest_version(context, key, partition) for partition in partitions}
    if not context.has_asset_partitions:
        return {None: recorded_input_version(context, key)}
    recorded = recorded_partition_versions(context, key, context.asset_partition_keys)
    return {partition: recorded.get(partition) for partition in context.asset_partition_keys}


def _latest_version(context: InputContext, key: AssetKey, partition: str | None) -> str | None:
    made = latest_materialization(context.instance, key, partition)
    return (made.tags or {}).get("dagster/data_version") if made else None
