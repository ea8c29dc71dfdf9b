"""`p/raw`: the source read once, typed, checked against the declared rules, and kept."""

from collections.abc import Iterator
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetsDefinition,
    MetadataValue,
    Output,
    asset,
)

from mlops_assets.assets.common import STORE, key_of, retry_policy
from mlops_assets.dagster_internals.steps import observe_input
from mlops_assets.failures import explained
from mlops_assets.spec import PipelineSpec
from mlops_assets.stages import Stage, source_seen
from mlops_assets.store.reuse import defined_by

RULES = "declared_rules"


def build_raw(spec: PipelineSpec, stage: Stage) -> AssetsDefinition:
    """Return the asset `p/raw` with its blocking check of `data.checks` and the types."""
    key = key_of(spec, "raw")

    @asset(
        key=key,
        deps=[key_of(spec, "source")],
        io_manager_key=STORE,
        required_resource_keys={STORE},
        description=f"The rows of `{spec.data.uri}` as they came, with a type for every column.",
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
        retry_policy=retry_policy(spec.retries),
        code_version=stage.code.version,
    )
    @defined_by(stage)
    def raw(context: AssetExecutionContext) -> Iterator[Output[Any] | AssetCheckResult]:
        from mlops_assets.ml.checks import broken_rules
        from mlops_assets.ml.read import read

        outside = context.resources.store.outside
        with explained():
            # Looked at before it is read: a change in between is then seen as one by the next run.
            observe_input(context, key_of(spec, "source"), source_seen(spec, outside).version)
            frame = read(spec.data, spec.folder, outside.source_options)
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
