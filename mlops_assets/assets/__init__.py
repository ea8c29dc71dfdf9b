"""A pipeline's assets and checks: thin wiring from `mlops_assets.ml` to Dagster, module by stage.

How data is read, split, learned from and judged is `mlops_assets.ml`; where it is kept is
`mlops_assets.store`; when it happens is `mlops_assets.automation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlops_assets.assets.champion import build_champion
from mlops_assets.assets.metrics import build_metrics
from mlops_assets.assets.model import build_model
from mlops_assets.assets.raw import build_raw
from mlops_assets.assets.source import build_source
from mlops_assets.assets.split import build_split
from mlops_assets.stages import stages

if TYPE_CHECKING:
    from dagster import AssetsDefinition

    from mlops_assets.spec import PipelineSpec


def build_assets(spec: PipelineSpec) -> list[AssetsDefinition]:
    """Return all assets of a pipeline, from its source to its champion."""
    stage = stages(spec)
    return [
        build_source(spec),
        build_raw(spec, stage["raw"]),
        build_split(spec, stage["split"]),
        build_model(spec, stage["model"]),
        build_metrics(spec, stage["metrics"]),
        build_champion(spec, stage["champion"]),
    ]
