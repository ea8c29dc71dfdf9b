"""The `mlops` command. What it does is done by the definitions; here are arguments and output."""

from __future__ import annotations

import gc
import json
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from mlops_assets.errors import UserError

if TYPE_CHECKING:
    from mlops_assets.cli.planning import Project
    from mlops_assets.dagster_internals.database import Recorded


def _explained(command: Callable[..., None]) -> Callable[..., None]:
    """Show a user's mistake, or that of a database, as a message without a stack trace."""

    @wraps(command)
    def run_it(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            raise click.ClickException(str(error)) from error
        except Exception as error:
            from mlops_assets.cli.planning import dagster_home
            from mlops_assets.dagster_internals.database import refusal_of

            if refusal := refusal_of(error, dagster_home()):
                raise click.ClickException(refusal) from error
            raise

    return run_it


def _recorded(project: Project) -> dict[str, Recorded]:
    """Return what the instance has as the latest; Dagster is imported if only it knows."""
    recorded = project.recorded()
    if recorded is None:
        from mlops_assets.cli.run import recorded as ask_dagster

        recorded = ask_dagster(project)
    return recorded


def _end_gone_runs(project: Project) -> None:
    """End the runs whose process was killed; Dagster is imported if there may be one."""
    from mlops_assets.cli.planning import dagster_home
    from mlops_assets.dagster_internals.database import may_have_gone_runs

    if may_have_gone_runs(dagster_home()):
        from mlops_assets.cli.run import end_gone_runs

        end_gone_runs(project)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Train, judge and promote models, and run commands: one YAML file per pipeline.

    \b
    mlops plan              what a run would execute, what it would reuse, and why
    mlops run               materialise what is needed, and say what came out
    mlops run churn         only the pipeline of pipelines/churn.yaml
    mlops run --refresh churn/model
                            compute the model anew, whatever is known of it
    mlops history churn/model
                            its versions: when, by which run, from what
    mlops promote churn     make its latest model the champion; --version for another one
    mlops rollback churn    back to the champion before
    mlops prune --dry-run   which versions nothing needs any more
    mlops new NAME --data URI --target COLUMN
                            a first pipeline file, made from the data
    mlops schema            JSON Schema of a pipeline file, for editors

    The same pipelines run from Dagster's UI (dagster dev) and its commands (dagster job execute -j
    churn_training). Where data, models and runs are kept is set by environment variables:
    MLOPS_STORE_URL, MLOPS_PIPELINES, MLFLOW_TRACKING_URI, DAGSTER_HOME.
    """


_pipelines = click.argument("pipelines", nargs=-1, metavar="[PIPELINE]...")


@main.command()
@_pipelines
@click.option("--json", "in_json", is_flag=True, help="Print the plan as one JSON object.")
@_explained
def plan(pipelines: tuple[str, ...], in_json: bool) -> None:
    """Say what a run would execute, what it would reuse, and why; run nothing.

    Exit code 0 when nothing is to be executed, 2 when something is, 1 when a pipeline cannot be
    planned: its file is broken, or its source or the store cannot be looked at.
    """
    from mlops_assets.cli.planning import Project, as_json, as_text

    project = Project.load(pipelines)
    plans = project.plan(_recorded(project))
    report = as_json(project, plans)
    click.echo(json.dumps(report, sort_keys=True) if in_json else as_text(project, plans))
    if any(one["error"] for one in report["pipelines"].values()):
        sys.exit(1)
    sys.exit(2 if any(one["execute"] for one in report["pipelines"].values()) else 0)


@main.command()
@_pipelines
@click.option(
    "--refresh",
    multiple=True,
    is_flag=False,
    flag_value="true",
    metavar="[ASSET]...",
    help="Compute assets (churn/model) or pipelines (churn) whatever is known of them; without a "
    "name, everything.",
)
@click.option("--json", "in_json", is_flag=True, help="End with the summary as one line of JSON.")
@_explained
def run(pipelines: tuple[str, ...], refresh: tuple[str, ...], in_json: bool) -> None:
    """Materialise what is needed of pipelines, all of them if none is named.

    What was computed before, from the same code, parameters and content, is reused. Progress goes
    to stderr, the summary to stdout. Exit code 1 when anything failed or a pipeline file is broken;
    the other pipelines are run all the same.
    """
    from time import monotonic

    from mlops_assets.cli.planning import Project, as_text, to_refresh
    from mlops_assets.cli.summary import as_text as summary_as_text
    from mlops_assets.cli.summary import reports_of_plan, summary

    begun = monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a run as Ctrl-C does
    assets = [name for name in pipelines if refresh and "/" in name]
    project = Project.load([name for name in pipelines if name not in assets])
    anew = to_refresh(project, [*refresh, *assets])
    _end_gone_runs(project)
    plans = project.plan(_recorded(project), anew)
    reports = reports_of_plan(project, plans)
    result = None
    if not all(one.is_empty for one in plans.values()):
        click.echo(as_text(project, plans), err=True)
        # What is imported from here on stays: looking through it for garbage took 1.4 s of 10.
        gc.set_threshold(50_000, 20, 1000)
        from mlops_assets.cli.run import run_needed

        result = run_needed(project, reports, plans.values(), anew)
    report = summary(
        reports,
        succeeded=result is None or result.success,
        run_id=result.run_id if result is not None else None,
        seconds=monotonic() - begun,
    )
    click.echo(summary_as_text(report))
    if in_json:
        click.echo(json.dumps(report, sort_keys=True))
    sys.exit(0 if report["status"] == "success" else 1)


@main.command()
@click.argument("asset")
@click.option("--partition", help="Of a partitioned asset; all of them if none is given.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True)
@click.option("--json", "in_json", is_flag=True, help="Print the entries as one JSON list.")
@_explained
def history(asset: str, partition: str | None, limit: int, in_json: bool) -> None:
    """List the versions of an asset: when, by which run, from what, size, metrics."""
    from mlops_assets.cli.versions import history_as_json, history_as_text

    entries = history_as_json(asset, partition, limit)
    click.echo(json.dumps(entries, sort_keys=True) if in_json else history_as_text(entries))


@main.command()
@click.argument("pipeline")
@click.option("--version", help="Of the model; default: the latest one of this Dagster instance.")
@click.option("--force", is_flag=True, help="Also a model that does not pass its gates.")
@click.option("--json", "in_json", is_flag=True, help="End with the outcome as one line of JSON.")
@_explained
def promote(pipeline: str, version: str | None, force: bool, in_json: bool) -> None:
    """Make a model the champion by hand.

    Gates must pass, unless --force is given; whether it is better than the champion is not asked.
    The model that it replaces, and one that is waiting, are not promoted by any run from then on.
    `mlops history PIPELINE/model` lists the versions.
    """
    from mlops_assets.cli.promotion import as_json, as_text
    from mlops_assets.cli.promotion import promote as promote_by_hand

    moved = promote_by_hand(pipeline, version, force=force)
    click.echo(as_text(pipeline, moved))
    if in_json:
        click.echo(json.dumps(as_json(pipeline, moved), sort_keys=True))


@main.command()
@click.argument("pipeline")
@click.option("--json", "in_json", is_flag=True, help="End with the outcome as one line of JSON.")
@_explained
def rollback(pipeline: str, in_json: bool) -> None:
    """Go back to the champion before the current one; once more, to the one before that.

    The model that is taken back is not promoted by any run from then on; `mlops promote` can.
    `mlops history PIPELINE/champion` lists the champions.
    """
    from mlops_assets.cli.promotion import as_json, as_text, roll_back

    moved = roll_back(pipeline)
    click.echo(as_text(pipeline, moved))
    if in_json:
        click.echo(json.dumps(as_json(pipeline, moved), sort_keys=True))


@main.command()
@click.option(
    "--keep",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    help="How many of the newest versions of each asset or partition stay in any case.",
)
@click.option(
    "--older-than",
    default="30d",
    show_default=True,
    metavar="DURATION",
    help="What was written later than this ago stays in any case: 12h, 30d, 2w.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@_explained
def prune(keep: int, older_than: str, dry_run: bool) -> None:
    """Delete the versions that nothing needs any more.

    Kept is what is the latest in any Dagster instance that uses the store, every champion that ever
    was, what runs in progress may load, and all that these were made from.
    """
    from mlops_assets.cli.planning import Project
    from mlops_assets.cli.versions import pruned

    _end_gone_runs(Project.load())
    click.echo(pruned(keep, older_than, dry_run=dry_run))


@main.command()
@click.argument("name")
@click.option(
    "--data", "uri", required=True, metavar="URI", help="A path, a URL or a glob; as data.uri."
)
@click.option("--target", required=True, metavar="COLUMN", help="The column to predict.")
@_explained
def new(name: str, uri: str, target: str) -> None:
    """Write a first pipeline file from the data: task, columns, model, gates."""
    from mlops_assets.cli.new import new_pipeline

    path = new_pipeline(name, uri, target)
    click.echo(f"{path}\nrun it: mlops run {name}")


@main.command()
def schema() -> None:
    """Print the JSON Schema of a pipeline file.

    Editors with YAML support complete and check pipeline files when they are given this schema.
    """
    from mlops_assets.pipeline_file import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
