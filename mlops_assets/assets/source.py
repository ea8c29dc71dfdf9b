"""`p/source`: what lies at the pipeline's URI, observed and never written."""

import warnings

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    AssetSpec,
    BetaWarning,
    DataVersion,
    ObserveResult,
    multi_observable_source_asset,
)

from mlops_assets.assets.common import STORE, key_of, step_settings
from mlops_assets.dagster_internals.steps import with_op_tags
from mlops_assets.spec import PipelineSpec
from mlops_assets.stages import source_seen
from mlops_assets.wording import redacted


def build_source(spec: PipelineSpec) -> AssetsDefinition:
    """Return the observable source of a pipeline; its data version is the content's identity."""

    uri = redacted(spec.data.uri)

    def observe(context: AssetExecutionContext) -> ObserveResult:
        seen = source_seen(spec, context.resources.store.outside)
        return ObserveResult(data_version=DataVersion(seen.version))

    with warnings.catch_warnings():
        # Dagster marks all of its ways to define an observable source as beta.
        warnings.simplefilter("ignore", BetaWarning)
        as_asset = multi_observable_source_asset(
            name=f"{spec.name}__source",
            required_resource_keys={STORE},
            group_name=spec.name,
            specs=[
                AssetSpec(
                    key_of(spec, "source"),
                    description=f"The data at `{uri}`, owned outside of this project.",
                    owners=spec.owners,
                    kinds={"source"},
                    metadata={"uri": uri},
                )
            ],
        )
    return with_op_tags(as_asset(observe), step_settings(spec, "source")["op_tags"])
