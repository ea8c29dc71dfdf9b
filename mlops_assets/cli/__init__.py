"""The `mlops` command. What it does is done by the definitions; here are arguments and output."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from mlops_assets.errors import UserError


def _explained(command: Callable[..., None]) -> Callable[..., None]:
    """Show a user's mistake as a message, without a stack trace."""

    @wraps(command)
    def run_it(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            raise click.ClickException(str(error)) from error

    return run_it


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train, judge and promote models: one YAML file per pipeline.

    \b
    mlops run               materialise every pipeline, and say what came out
    mlops run churn         only the pipeline of pipelines/churn.yaml
    mlops schema            JSON Schema of a pipeline file, for editors

    The same pipelines run from Dagster's UI (dagster dev) and its commands (dagster job execute -j
    churn_training). Where data, models and runs are kept is set by environment variables:
    MLOPS_STORE_URL, MLOPS_PIPELINES, MLFLOW_TRACKING_URI, DAGSTER_HOME.
    """


@main.command()
@click.argument("pipelines", nargs=-1, metavar="[PIPELINE]...")
@click.option("--json", "as_json", is_flag=True, help="End with the summary as one line of JSON.")
@_explained
def run(pipelines: tuple[str, ...], as_json: bool) -> None:
    """Materialise pipelines, all of them if none is named.

    Progress goes to stderr, the summary to stdout. Exit code 1 when anything failed or a pipeline
    file is broken; the other pipelines are run all the same.
    """
    from mlops_assets.cli.run import run_pipelines
    from mlops_assets.cli.summary import as_text

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a run as Ctrl-C does
    summary = run_pipelines(pipelines)
    click.echo(as_text(summary))
    if as_json:
        click.echo(json.dumps(summary, sort_keys=True))
    sys.exit(0 if summary["status"] == "success" else 1)


@main.command()
def schema() -> None:
    """Print the JSON Schema of a pipeline file.

    Editors with YAML support complete and check pipeline files when they are given this schema.
    """
    from mlops_assets.pipeline_file import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
