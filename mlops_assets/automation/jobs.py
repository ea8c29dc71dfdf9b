"""The jobs of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster import AssetKey

from mlops_assets.assets.common import key_of
from mlops_assets.dagster_internals.many_assets import asset_job
from mlops_assets.stages import scoring_stages

if TYPE_CHECKING:
    from dagster import UnresolvedAssetJobDefinition

    from mlops_assets.spec import Pipeline, PipelineSpec


def main_job(spec: Pipeline) -> UnresolvedAssetJobDefinition:
    """Return `p_training`, from the source to the champion, or `p_steps`."""
    return asset_job(
        spec.job,
        [key_of(spec, asset) for asset in spec.made_once],
        description=spec.description or None,
        tags={"mlops/pipeline": spec.name},
    )


def scoring_job(spec: PipelineSpec) -> UnresolvedAssetJobDefinition | None:
    """Return `p_scoring`, a day at a time; None without `score` in the pipeline file."""
    made = [asset for stage in scoring_stages(spec).values() for asset in stage.outputs]
    if not made:
        return None
    return asset_job(
        f"{spec.name}_scoring",
        [AssetKey(asset.split("/")) for asset in made],
        description=f"Scores the files of a day with the champion of {spec.name}.",
        tags={"mlops/pipeline": spec.name},
    )
