"""The schedules of a pipeline; all of them start switched off, as Dagster's do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster import ScheduleDefinition

if TYPE_CHECKING:
    from dagster import UnresolvedAssetJobDefinition

    from mlops_assets.spec import PipelineSpec


def training_schedule(
    spec: PipelineSpec, job: UnresolvedAssetJobDefinition
) -> ScheduleDefinition | None:
    """Return `p_training_schedule`; None when the pipeline file has no `train.schedule`."""
    if spec.train.schedule is None:
        return None
    return ScheduleDefinition(
        name=f"{spec.name}_training_schedule",
        job=job,
        cron_schedule=spec.train.schedule,
        execution_timezone=spec.train.timezone,
    )
