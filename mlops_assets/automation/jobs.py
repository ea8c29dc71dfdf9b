"""The jobs of a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster import AssetSelection, define_asset_job

from mlops_assets.assets.common import key_of
from mlops_assets.stages import training_assets

if TYPE_CHECKING:
    from dagster import UnresolvedAssetJobDefinition

    from mlops_assets.spec import PipelineSpec


def training_job(spec: PipelineSpec) -> UnresolvedAssetJobDefinition:
    """Return `p_training`: from the source to the champion."""
    return define_asset_job(
        f"{spec.name}_training",
        selection=AssetSelection.assets(*(key_of(spec, asset) for asset in training_assets(spec))),
        description=spec.description or None,
        tags={"mlops/pipeline": spec.name},
    )
