"""`mlops run`: materialise pipelines in this process, in one Dagster run of the local instance."""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from time import monotonic
from typing import Any

import click
from dagster import AssetsDefinition, DagsterInstance, Definitions
from filelock import FileLock

from mlops_assets.cli.progress import progress_logger
from mlops_assets.cli.summary import summarise
from mlops_assets.definitions import defs
from mlops_assets.errors import SettingsError
from mlops_assets.pipeline_file import Pipelines, load_pipelines
from mlops_assets.settings import Settings, local_state, project_folder


def run_pipelines(names: Sequence[str]) -> dict[str, Any]:
    """Run the named pipelines, or all, and return the summary that `mlops run --json` prints.

    Raises
    ------
    UserError
        A name is not that of a pipeline, or the settings are wrong.
    """
    begun = monotonic()
    pipelines = load_pipelines(Settings.from_environment().pipelines)
    names = _chosen(names, pipelines)
    valid = [name for name in names if name in pipelines.valid]
    steps = {
        assets.op.name: sorted(assets.keys)
        for assets in defs.assets or ()
        if isinstance(assets, AssetsDefinition)
        and assets.is_executable
        and assets.is_materializable
        and next(iter(assets.keys)).path[0] in valid
    }
    result = None
    if steps:
        logger = progress_logger(steps, lambda line: click.echo(line, err=True))
        job = Definitions.merge(
            defs, Definitions(loggers={"console": logger})
        ).resolve_implicit_global_asset_job_def()
        with local_instance() as instance:
            result = job.execute_in_process(
                run_config={"loggers": {"console": {"config": {}}}},
                instance=instance,
                asset_selection=[key for keys in steps.values() for key in keys],
                tags={"mlops/command": "run"},
                raise_on_error=False,
            )
    return summarise(names, pipelines, steps, result, seconds=monotonic() - begun)


def local_instance() -> DagsterInstance:
    """Return the instance of `DAGSTER_HOME`, or the one in the checkout, which `make dev` shows."""
    if not os.environ.get("DAGSTER_HOME"):
        local = local_state("dagster")
        local.mkdir(parents=True, exist_ok=True)
        configuration, link = project_folder() / "dagster.yaml", local / "dagster.yaml"
        if configuration.is_file() and not link.exists():
            link.symlink_to(configuration)
        os.environ["DAGSTER_HOME"] = str(local)
    home = Path(os.environ["DAGSTER_HOME"])
    if not home.is_absolute():
        raise SettingsError(f"DAGSTER_HOME={str(home)!r}: an absolute path is allowed.")
    home.mkdir(parents=True, exist_ok=True)
    # Two processes that create the same database at once leave one that neither can use.
    with FileLock(home / "created.lock"):
        return DagsterInstance.get()


def _chosen(names: Sequence[str], pipelines: Pipelines) -> list[str]:
    known = sorted({*pipelines.valid, *pipelines.broken})
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise SettingsError(f"there is no pipeline {name!r}; {hint}known: {', '.join(known)}")
    return list(dict.fromkeys(names)) or known
