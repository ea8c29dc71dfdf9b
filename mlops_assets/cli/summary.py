"""What came out of a run, per pipeline: for people as text, for programs as one dictionary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mlops_assets.cli.planning import Project
from mlops_assets.plan import PipelinePlan, readers_of
from mlops_assets.spec import Pipeline, PipelineSpec
from mlops_assets.store.artifacts import ArtifactStore
from mlops_assets.store.champions import Champions
from mlops_assets.store.memo import Memo

LISTS = ("executed", "reused", "failed", "skipped")


def reports_of_plan(project: Project, plans: Mapping[str, PipelinePlan]) -> dict[str, Any]:
    """Return what is known of each pipeline before anything runs: all that is reused."""
    store, valid, broken = project.store, project.pipelines.valid, project.pipelines.broken

    def known(name: str) -> dict[str, Any]:
        return _known(store, valid.get(name), plans.get(name) or PipelinePlan(name))

    with readers_of(store) as pool:
        return {
            name: {
                **{outcome: [] for outcome in LISTS},
                **found,
                "error": str(broken[name]) if name in broken else None,
            }
            for name, found in zip(project.names, pool.map(known, project.names), strict=True)
        }


def summary(
    reports: Mapping[str, Mapping[str, Any]], *, succeeded: bool, run_id: str | None, seconds: float
) -> dict[str, Any]:
    """Return the summary of a run, in the form that `mlops run --json` prints.

    Parameters
    ----------
    reports : mapping of str to mapping
        By pipeline: as `reports_of_plan` returned, with what a run added.
    succeeded : bool
        Whether the Dagster run did; True when there was none.
    run_id : str or None
        None when nothing had to run.
    seconds : float
        Time from the command's start.
    """
    failed = any(report["error"] for report in reports.values())
    return {
        "status": "success" if succeeded and not failed else "failure",
        "run_id": run_id,
        "seconds": round(seconds, 2),
        "pipelines": dict(reports),
    }


def _known(store: ArtifactStore, spec: Pipeline | None, plan: PipelinePlan) -> dict[str, Any]:
    known: dict[str, Any] = {"reused": list(plan.reuse), "metrics": {}, "champion": None}
    if not isinstance(spec, PipelineSpec):
        return known
    metrics = plan.computed.get(f"{plan.pipeline}/metrics")
    if metrics is not None and metrics.artifact is not None:
        listed = spec.evaluate.metrics
        values = store.read(metrics.artifact)["metrics"]
        known["metrics"] = {name: values[name] for name in dict.fromkeys([*listed, *values])}
    champion = plan.computed.get(f"{plan.pipeline}/champion")
    if champion is not None:
        number = champion.inputs.get(f"{plan.pipeline}/champion", "")  # as the plan has seen it
        promotions = Champions(store, plan.pipeline)
        current = promotions.numbered(int(number)) if number.isdecimal() else None
        known["champion"] = {
            "version": current.version if current else None,
            "changed": False,
            "reason": current.reason if current else _said(Memo(store).events(champion)),
        }
    return known


def _said(events: Mapping[str, Any] | None) -> str:
    """Return what the last comparison said, which made no champion."""
    try:
        return str(json.loads((events or {})["checks"][0])["description"])
    except (LookupError, ValueError, TypeError):
        return "no model has passed its gates"


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
