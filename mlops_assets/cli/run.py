"""`mlops run` where something is to be done: one run of the local instance, in this process."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

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
from mlops_assets.dagster_internals.database import Recorded
from mlops_assets.dagster_internals.sqlite_storage import instance_in
from mlops_assets.definitions import defs
from mlops_assets.plan import PipelinePlan
from mlops_assets.settings import local_state, project_folder
from mlops_assets.store.reuse import COMMAND, REFRESH


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
    job = Definitions.merge(
        defs, Definitions(loggers={"console": logger})
    ).resolve_implicit_global_asset_job_def()
    return job.execute_in_process(
        run_config={"loggers": {"console": {"config": {}}}},
        instance=instance,
        asset_selection=[key for keys in steps.values() for key in keys],
        tags=dict(tags),
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
