"""The jobs of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster import AssetSelection, define_asset_job

from mlops_assets.assets.common import key_of

if TYPE_CHECKING:
    from dagster import UnresolvedAssetJobDefinition

    from mlops_assets.spec import PipelineSpec

TRAINING_STAGES = ("raw", "train", "test", "model", "metrics", "champion")


def training_job(spec: PipelineSpec) -> UnresolvedAssetJobDefinition:
    """Return `p_training`: from the source to the champion."""
    return define_asset_job(
        f"{spec.name}_training",
        selection=AssetSelection.assets(*(key_of(spec, stage) for stage in TRAINING_STAGES)),
        description=spec.description or None,
        tags={"mlops/pipeline": spec.name},
    )
