"""What came out of a run, per pipeline: for people as text, for programs as one dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dagster import DagsterEventType

from mlops_assets.assets.champion import EXISTS
from mlops_assets.cli.progress import reason_of

if TYPE_CHECKING:
    from dagster import AssetCheckEvaluation, AssetKey, ExecuteInProcessResult

    from mlops_assets.pipeline_file import Pipelines

LISTS = ("executed", "reused", "failed", "skipped")


def summarise(
    names: Sequence[str],
    pipelines: Pipelines,
    steps: Mapping[str, Sequence[AssetKey]],
    result: ExecuteInProcessResult | None,
    *,
    seconds: float,
) -> dict[str, Any]:
    """Return the summary of a run, in the form that `mlops run --json` prints.

    Parameters
    ----------
    names : sequence of str
        The pipelines that were asked for.
    pipelines : Pipelines
        Those that could be read, and those that could not.
    steps : mapping of str to sequence of AssetKey
        The assets of every step of the run.
    result : ExecuteInProcessResult or None
        None when there was nothing to run.
    seconds : float
        Time from the command's start.
    """
    reports: dict[str, dict[str, Any]] = {
        name: {
            **{outcome: [] for outcome in LISTS},
            "metrics": {},
            "champion": None,
            "error": str(pipelines.broken[name]) if name in pipelines.broken else None,
        }
        for name in names
    }
    outcomes = _outcomes(result)
    for step, keys in steps.items():
        outcome, reason = outcomes.get(step, ("skipped", None))
        report = reports[keys[0].path[0]]
        report[outcome] += [key.to_user_string() for key in keys]
        report["error"] = report["error"] or reason
    if result is not None:
        _add_results(reports, result)
    succeeded = (result is None or result.success) and not any(
        report["error"] for report in reports.values()
    )
    return {
        "status": "success" if succeeded else "failure",
        "run_id": result.run_id if result is not None else None,
        "seconds": round(seconds, 2),
        "pipelines": reports,
    }


def as_text(summary: Mapping[str, Any]) -> str:
    """Return the summary for people: what ran, what was reused, the metrics, the champion."""
    lines = []
    for name, report in summary["pipelines"].items():
        counts = ", ".join(f"{len(report[o])} {o}" for o in LISTS if report[o])
        lines.append(f"{name}: {counts or 'nothing ran'}")
        if report["metrics"]:
            values = ", ".join(f"{name} {value:.4g}" for name, value in report["metrics"].items())
            lines.append(f"  metrics   {values}")
        if report["champion"]:
            champion = report["champion"]
            state = "new" if champion["changed"] else "unchanged" if champion["version"] else "none"
            lines.append(f"  champion  {state}: {champion['reason']}")
        if report["error"]:
            lines += [f"  error     {line}" for line in report["error"].splitlines()]
    run = f", run {summary['run_id']}" if summary["run_id"] else ""
    lines.append(f"{summary['status']} in {summary['seconds']:.1f} s{run}")
    return "\n".join(lines)


def _outcomes(result: ExecuteInProcessResult | None) -> dict[str, tuple[str, str | None]]:
    outcomes: dict[str, tuple[str, str | None]] = {}
    broken: dict[str, list[AssetCheckEvaluation]] = {}
    for event in result.all_events if result is not None else ():
        step = event.step_key
        if step is None:
            continue
        if event.is_step_success:
            outcomes[step] = ("executed", None)
        elif event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            broken.setdefault(step, []).extend([] if check.passed else [check])
        elif event.is_step_failure:
            outcomes[step] = ("failed", f"{step}: {reason_of(event, broken.get(step, ()))}")
    return outcomes


def _add_results(reports: dict[str, dict[str, Any]], result: ExecuteInProcessResult) -> None:
    for event in result.all_events:
        if event.is_step_materialization:
            made = event.step_materialization_data.materialization
            pipeline, stage = made.asset_key.path[0], made.asset_key.path[-1]
            if stage == "metrics":
                reports[pipeline]["metrics"] = made.metadata["metrics"].value
        elif event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if check.check_name == EXISTS:
                facts = {name: value.value for name, value in check.metadata.items()}
                reports[check.asset_key.path[0]]["champion"] = {
                    "version": facts.get("version"),
                    "changed": facts["changed"],
                    "reason": facts["reason"],
                }
