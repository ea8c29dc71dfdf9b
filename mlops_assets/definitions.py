"""The one place where everything meets: what Dagster loads.

Importing this module reads the settings and the pipeline files, and imports neither scikit-learn
nor pandas nor MLflow: steps import them when they run.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
from collections.abc import Mapping
from typing import Any

from dagster import AssetSpec, Definitions, EnvVar, MetadataValue

from mlops_assets.assets import build_assets, build_scoring_assets
from mlops_assets.assets.common import MLFLOW, STORE
from mlops_assets.automation.alerts import alert_sensors
from mlops_assets.automation.conditions import automated
from mlops_assets.automation.freshness import with_freshness
from mlops_assets.automation.jobs import main_job, scoring_job
from mlops_assets.automation.schedules import main_schedule
from mlops_assets.automation.scoring import scoring_schedule
from mlops_assets.automation.sensors import pipeline_sensors
from mlops_assets.execution.executors import local_executor
from mlops_assets.execution.kubernetes import kubernetes_executor
from mlops_assets.pipeline_file import PipelineFileError, load_pipelines
from mlops_assets.settings import Settings
from mlops_assets.spec import PipelineSpec
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets.tracking import MlflowTracking

log = logging.getLogger(__name__)

BROKEN = "broken_pipeline_files"
"""Group of the assets that stand for pipeline files with a mistake."""


def build_defs(
    settings: Settings | None = None, overrides: Mapping[str, Any] | None = None
) -> Definitions:
    """Assemble the project.

    Parameters
    ----------
    settings : Settings, optional
        Default: from the environment.
    overrides : mapping of str to resource, optional
        Resources to use in place of the usual ones: `store`, `mlflow`.

    Raises
    ------
    UserError
        The settings are wrong, or no pipeline file is where they point. A broken pipeline file
        raises nothing: it is logged, and shown as an asset in the group `broken_pipeline_files`.
    """
    settings = settings or Settings.from_environment()
    pipelines = load_pipelines(settings.pipelines)
    for error in pipelines.broken.values():
        log.error("%s", error)
    specs = list(pipelines.valid.values())
    trained = [spec for spec in specs if isinstance(spec, PipelineSpec)]
    jobs = {spec.name: main_job(spec) for spec in specs}
    scoring = {spec.name: job for spec in trained if (job := scoring_job(spec)) is not None}
    schedules = [
        *(main_schedule(spec, jobs[spec.name]) for spec in specs),
        *(scoring_schedule(spec, scoring.get(spec.name)) for spec in trained),
    ]
    return Definitions(
        assets=[
            *(
                with_freshness(automated(asset), spec)
                for spec in specs
                for asset in build_assets(spec)
            ),
            # without a condition: a new champion must not score all days again by itself
            *(
                with_freshness(asset, spec)
                for spec in specs
                for asset in build_scoring_assets(spec)
            ),
            *(_broken(name, error) for name, error in pipelines.broken.items()),
        ],
        jobs=[*jobs.values(), *scoring.values()],
        schedules=[schedule for schedule in schedules if schedule is not None],
        sensors=[
            *(
                sensor
                for spec in specs
                for sensor in pipeline_sensors(spec, jobs[spec.name], scoring.get(spec.name))
            ),
            *alert_sensors([spec.name for spec in trained], settings.alert_urls, settings.ui_url),
        ],
        resources={**_resources(settings), **(overrides or {})},
        executor=kubernetes_executor if settings.deployment == "k8s" else local_executor,
    )


def _resources(settings: Settings) -> dict[str, Any]:
    return {
        STORE: StoreIOManager(url=settings.store_url, endpoint_url=settings.s3_endpoint_url),
        MLFLOW: MlflowTracking(mlflow_tracking_uri=_shown_by_name(settings.tracking_uri)),
    }


def _shown_by_name(tracking_uri: str) -> Any:
    """Keep a value of the environment, which may hold a password, out of the UI's config view."""
    variable = "MLFLOW_TRACKING_URI"
    return EnvVar(variable) if os.environ.get(variable) == tracking_uri else tracking_uri


def _broken(name: str, error: PipelineFileError) -> AssetSpec:
    return AssetSpec(
        [BROKEN, name],
        group_name=BROKEN,
        description=f"This pipeline file cannot be used until it is mended:\n\n```\n{error}\n```",
        metadata={"error": MetadataValue.text(str(error))},
        kinds={"yaml"},
    )


def _build_lasting_defs() -> Definitions:
    """Build what stays as long as the process: looking through it for garbage was a quarter.

    At the end of the process it would be looked through again, for a second with all that was
    imported meanwhile.
    """
    atexit.register(gc.freeze)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return build_defs()
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


defs = _build_lasting_defs()
