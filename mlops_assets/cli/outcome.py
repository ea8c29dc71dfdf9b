"""What Dagster's events say of the pipelines of a run."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dagster import DagsterEventType

from mlops_assets.assets.champion import EXISTS
from mlops_assets.failures import reason_of
from mlops_assets.store.reuse import MEMOIZED

if TYPE_CHECKING:
    from dagster import AssetCheckEvaluation, AssetKey, ExecuteInProcessResult


def add_result(
    reports: Mapping[str, dict[str, Any]],
    trained: Container[str],
    steps: Mapping[str, Sequence[AssetKey]],
    result: ExecuteInProcessResult,
) -> None:
    """Add what a run did to the reports of its pipelines.

    Parameters
    ----------
    reports : mapping of str to dict
        By pipeline; see `mlops_assets.cli.summary`.
    trained : container of str
        The pipelines that train a model, and have metrics and a champion.
    steps : mapping of str to sequence of AssetKey
        The assets of every step of the run.
    result : ExecuteInProcessResult
        The run.
    """
    outcomes = _outcomes(result)
    for step, keys in steps.items():
        outcome, reason = outcomes.get(step, ("skipped", None))
        report = reports[keys[0].path[0]]
        names = [key.to_user_string() for key in keys]
        report["reused"] = [name for name in report["reused"] if name not in names]
        report[outcome] += names
        report["error"] = "\n".join(filter(None, (report["error"], reason))) or None
    _add_values({name: it for name, it in reports.items() if name in trained}, result)


def _outcomes(result: ExecuteInProcessResult) -> dict[str, tuple[str, str | None]]:
    outcomes: dict[str, tuple[str, str | None]] = {}
    broken: dict[str, list[AssetCheckEvaluation]] = {}
    made: set[str] = set()
    reused: set[str] = set()
    for event in result.all_events:
        if event.step_key is None:
            continue
        step, _, part = event.step_key.partition(".")
        if event.is_step_success:
            if not part or step in made:  # a graph is done when its asset is made
                outcomes[step] = ("reused" if step in reused else "executed", None)
        elif event.is_step_materialization:
            made.add(step)
            if MEMOIZED in event.step_materialization_data.materialization.metadata:
                reused.add(step)
        elif event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            if MEMOIZED in check.metadata:
                reused.add(step)
            elif not check.passed:
                broken.setdefault(step, []).append(check)
        elif event.is_step_failure:
            outcomes[step] = (
                "failed",
                f"{event.step_key}: {reason_of(event, broken.get(step, ()))}",
            )
    return outcomes


def _add_values(reports: Mapping[str, dict[str, Any]], result: ExecuteInProcessResult) -> None:
    for event in result.all_events:
        if event.is_step_materialization:
            made = event.step_materialization_data.materialization
            pipeline, stage = made.asset_key.path[0], made.asset_key.path[-1]
            if stage == "metrics" and pipeline in reports:
                reports[pipeline]["metrics"] = made.metadata["metrics"].value
        elif event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION:
            check = event.asset_check_evaluation_data
            pipeline = check.asset_key.path[0]
            if check.check_name == EXISTS and pipeline in reports:
                facts = {name: value.value for name, value in check.metadata.items()}
                reports[pipeline]["champion"] = {
                    "version": facts.get("version"),
                    "changed": facts.get("promoted_by_run") == result.run_id,
                    "reason": facts["reason"],
                }
