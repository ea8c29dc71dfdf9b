"""`p/raw`: the source read once, typed, checked against the declared rules, and kept.

The source is files, which `p/source` stands for, or the asset of another pipeline.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dagster import (
    AllPartitionMapping,
    AssetCheckResult,
    AssetCheckSpec,
    AssetDep,
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    MetadataValue,
    Output,
    asset,
)

from mlops_assets.assets.common import STORE, key_of, step_settings
from mlops_assets.dagster_internals.automation import TAKES_WHAT_IS_THERE
from mlops_assets.dagster_internals.steps import observe_input, recorded_input_versions
from mlops_assets.errors import StoreError
from mlops_assets.spec import PipelineSpec, Upstream
from mlops_assets.stages import Stage, source_seen
from mlops_assets.store.artifacts import ArtifactStore
from mlops_assets.store.reuse import defined_by
from mlops_assets.wording import redacted

if TYPE_CHECKING:
    import pandas as pd

    from mlops_assets.ml.tables import Source

RULES = "declared_rules"


def build_raw(spec: PipelineSpec, stage: Stage) -> AssetsDefinition:
    """Return the asset `p/raw` with its blocking check of `data.checks` and the types."""
    key = key_of(spec, "raw")

    @asset(
        key=key,
        deps=[_dependency(spec)],
        metadata={TAKES_WHAT_IS_THERE: True} if spec.data.upstream else None,
        io_manager_key=STORE,
        required_resource_keys={STORE},
        description=(
            f"The rows of `{redacted(spec.data.uri)}` as they came, with a type for every column."
        ),
        owners=spec.owners,
        kinds={"pandas", "parquet"},
        check_specs=[
            AssetCheckSpec(
                RULES,
                asset=key,
                blocking=True,
                description="The columns' types and the rules of `data.checks` hold.",
            )
        ],
        group_name=spec.name,
        **step_settings(spec, "raw"),
        code_version=stage.code.version,
    )
    @defined_by(stage)
    def raw(context: AssetExecutionContext) -> Iterator[Output[Any] | AssetCheckResult]:
        from mlops_assets.ml.checks import broken_rules

        frame = _frame(context, spec)
        broken = broken_rules(frame, spec.data)
        context.log.info("read %d rows, %d columns", len(frame), frame.shape[1])
        missing = {column: int(count) for column, count in frame.isna().sum().items() if count}
        yield Output(frame, metadata={"missing_values": missing} if missing else {})
        yield AssetCheckResult(
            check_name=RULES,
            passed=not broken,
            description="\n".join(rule.message for rule in broken) or "every rule holds",
            metadata={
                f"{rule.rule}: {rule.column}": MetadataValue.text(rule.message) for rule in broken
            },
        )

    return raw


def _dependency(spec: PipelineSpec) -> AssetDep:
    if upstream := spec.data.upstream:
        every_day = AllPartitionMapping() if upstream.is_daily else None
        return AssetDep(_key_of(upstream), partition_mapping=every_day)
    return AssetDep(key_of(spec, "source"))


def _key_of(upstream: Upstream) -> AssetKey:
    return AssetKey([upstream.pipeline, upstream.asset])


def _frame(context: AssetExecutionContext, spec: PipelineSpec) -> "pd.DataFrame":
    from mlops_assets.ml.read import read, typed

    outside = context.resources.store.outside
    if spec.data.upstream:
        return typed(_made_by(context, spec.data.upstream, outside.store), spec.data)
    # Looked at before it is read: a change in between is then seen as one by the next run.
    observe_input(context, key_of(spec, "source"), source_seen(spec, outside).version)
    return read(spec.data, spec.folder, outside.source_options)


def _made_by(context: AssetExecutionContext, upstream: Upstream, store: ArtifactStore) -> "Source":
    """Read the very versions of another pipeline's asset that Dagster records for this step."""
    import pyarrow as pa

    from mlops_assets.ml.tables import source_of_days, source_of_table

    key = _key_of(upstream)
    versions = recorded_input_versions(context, key)
    if isinstance(versions, dict):
        days = {
            day: store.read(store.find(key.path, version, day), "table")
            for day, version in versions.items()
        }
        return source_of_days(upstream.name, days)
    if versions is None:
        raise StoreError(
            f"data.uri: {upstream.name} has never been materialised in this Dagster instance; "
            f"run the pipeline {upstream.pipeline} first"
        )
    # the index of a frame says where its rows come from, and is no column
    frame = store.read(store.find(key.path, versions))
    return source_of_table(upstream.name, pa.Table.from_pandas(frame, preserve_index=False))
