"""`mlops run` where something is to be done: one run of the local instance, in this process."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import click
from dagster import (
    AssetKey,
    AssetsDefinition,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
)
from filelock import FileLock

from mlops_assets.automation.staleness import recorded_in
from mlops_assets.cli.outcome import add_result
from mlops_assets.cli.planning import Project, dagster_home
from mlops_assets.cli.progress import progress_logger
from mlops_assets.dagster_internals import gone_runs
from mlops_assets.dagster_internals.database import Recorded
from mlops_assets.dagster_internals.sqlite_storage import instance_in
from mlops_assets.definitions import defs
from mlops_assets.plan import PipelinePlan
from mlops_assets.settings import local_state, project_folder
from mlops_assets.store.reuse import COMMAND, REFRESH
from mlops_assets.tracking import MlflowTracking

log = logging.getLogger(__name__)


def recorded(project: Project) -> dict[str, Recorded]:
    """Ask Dagster what the instance has as the latest of the project's assets."""
    keys = [AssetKey.from_user_string(asset) for asset in [*project.assets, *project.sources]]
    with local_instance() as instance:
        return recorded_in(instance, keys, project.daily_sources)


def run_needed(
    project: Project,
    reports: Mapping[str, dict[str, Any]],
    plans: Iterable[PipelinePlan],
    refresh: frozenset[str],
) -> ExecuteInProcessResult | None:
    """Materialise what the plans have to execute or to record, and add the outcome to the reports.

    Returns
    -------
    dagster.ExecuteInProcessResult or None
        None when there was nothing to run.
    """
    needed = {
        asset
        for plan in plans
        for asset in (
            plan.assets if plan.error else [*(asset for asset, _ in plan.execute), *plan.unrecorded]
        )
    }
    steps = steps_of(needed)
    if not steps:
        return None
    with local_instance() as instance:
        tags = {COMMAND: "run", **({REFRESH: ",".join(sorted(refresh))} if refresh else {})}
        result = run_steps(instance, steps, tags)
    add_result(reports, project.trained, steps, result)
    return result


def end_gone_runs(project: Project) -> None:
    """End the runs whose process was killed, in Dagster and in MLflow, and say so on stderr."""
    with local_instance() as instance:
        ended = gone_runs.end_gone_runs(instance)
    for run in ended:
        click.echo(f"run {run.run_id} failed: {gone_runs.WHY}", err=True)
    made = {key.path[0] for run in ended for key in run.asset_selection or ()}
    tracking = MlflowTracking(mlflow_tracking_uri=project.settings.tracking_uri)
    tracking.close_killed(log, made & {*project.trained}, [run.run_id for run in ended])


def steps_of(assets: Container[str]) -> dict[str, list[AssetKey]]:
    """Return the steps that make any of these assets, each with all that it makes."""
    return {
        step.node_def.name: sorted(step.keys)
        for step in defs.assets or ()
        if isinstance(step, AssetsDefinition)
        and step.is_materializable
        and any(key.to_user_string() in assets for key in step.keys)
    }


def run_steps(
    instance: DagsterInstance, steps: Mapping[str, Sequence[AssetKey]], tags: Mapping[str, str]
) -> ExecuteInProcessResult:
    """Run some steps of the project in this process, with progress on stderr."""
    logger = progress_logger(steps, lambda line: click.echo(line, err=True))
    run_id = str(uuid4())
    job = Definitions.merge(
        defs, Definitions(loggers={"console": logger})
    ).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        run_config={"loggers": {"console": {"config": {}}}},
        instance=instance,
        asset_selection=[key for keys in steps.values() for key in keys],
        run_id=run_id,
        tags={**tags, **gone_runs.process_tags(run_id)},
        raise_on_error=False,
    )


def local_instance() -> DagsterInstance:
    """Return the instance of `DAGSTER_HOME`, or the one in the checkout, which `make dev` shows."""
    home = dagster_home()
    home.mkdir(parents=True, exist_ok=True)
    if home == local_state("dagster"):
        configuration, link = project_folder() / "dagster.yaml", home / "dagster.yaml"
        if configuration.is_file() and not link.exists():
            link.symlink_to(configuration)
        os.environ["DAGSTER_HOME"] = str(home)
    # Two processes that create the same database at once leave one that neither can use.
    with FileLock(home / "created.lock"):
        return instance_in(home)
