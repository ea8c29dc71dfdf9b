"""A pipeline's assets and checks: thin wiring from `mlops_assets.ml` to Dagster, module by stage.

A pipeline of commands has one asset for each step, by `command`. How data is read, split, learned
from and judged is `mlops_assets.ml`, how a command is run `mlops_assets.commands`; where it is kept
is `mlops_assets.store`; when it happens is `mlops_assets.automation`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlops_assets.assets.best_params import build_best_params
from mlops_assets.assets.champion import build_champion
from mlops_assets.assets.command import build_step
from mlops_assets.assets.drift import build_drift
from mlops_assets.assets.metrics import build_metrics
from mlops_assets.assets.model import build_model
from mlops_assets.assets.predictions import build_predictions
from mlops_assets.assets.raw import build_raw
from mlops_assets.assets.source import build_source
from mlops_assets.assets.split import build_split
from mlops_assets.spec import PipelineSpec, StepsSpec
from mlops_assets.stages import scoring_stages, stages

if TYPE_CHECKING:
    from dagster import AssetsDefinition

    from mlops_assets.spec import Pipeline


def build_assets(spec: Pipeline) -> list[AssetsDefinition]:
    """Return all assets of a pipeline, in order, but those of scoring.

    From its source, if that is its own, to its champion; or all its steps.
    """
    stage = stages(spec)
    if isinstance(spec, StepsSpec):
        return [build_step(spec, name, one) for name, one in stage.items()]
    assert isinstance(spec, PipelineSpec)
    return [
        *([] if spec.data.upstream else [build_source(spec)]),
        build_raw(spec, stage["raw"]),
        build_split(spec, stage["split"]),
        *([build_best_params(spec, stage["best_params"])] if spec.tune.trials else []),
        build_model(spec, stage["model"]),
        build_metrics(spec, stage["metrics"]),
        build_champion(spec, stage["champion"]),
    ]


def build_scoring_assets(spec: Pipeline) -> list[AssetsDefinition]:
    """Return the assets of batch scoring, none without `score` in the pipeline file."""
    if not isinstance(spec, PipelineSpec):
        return []
    stage = scoring_stages(spec)
    if not stage:
        return []
    return [build_predictions(spec, stage["predictions"]), build_drift(spec, stage["drift"])]
