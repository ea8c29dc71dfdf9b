"""Strange tables in whole runs: a run ends with a champion, or says in words why there is none."""

from __future__ import annotations

import warnings
from typing import Any

from dagster import DagsterEvent, ExecuteInProcessResult
from hypothesis import event, given

from mlops_assets_tests.conftest import Project

from .strategies import Dataset, datasets, examples

DAY = "2026-01-05"
PIPELINE = """\
data: {{uri: source.{suffix}, target: kind}}
split: {split}
model: {{estimator: {estimator}}}
score: {{uri: "inbox/{{date}}/*.{suffix}"}}
"""


@examples(2, shrink=False)
@given(dataset=datasets())
def test_a_run_makes_a_champion_or_says_what_to_mend(project: Project, dataset: Dataset) -> None:
    suffix, folder = dataset.suffix, project.folder / "pipelines"
    text = PIPELINE.format(suffix=suffix, split=dataset.split, estimator=dataset.estimator)
    project.add("fuzz", text)
    (folder / "inbox" / DAY).mkdir(parents=True, exist_ok=True)
    for old in (folder / "inbox" / DAY).iterdir():
        old.unlink()
    (folder / f"source.{suffix}").write_bytes(dataset.to_train)
    (folder / "inbox" / DAY / f"batch.{suffix}").write_bytes(dataset.to_score)
    with warnings.catch_warnings(action="ignore"):
        trained = project.train("fuzz")
        told(trained)
        if trained.success:
            job = project.definitions().resolve_job_def("fuzz_scoring")
            told(
                job.execute_in_process(
                    instance=project.instance, partition_key=DAY, raise_on_error=False
                )
            )


def told(result: ExecuteInProcessResult) -> None:
    """Check that every step that failed says what a user can mend, and was not tried again."""
    event(f"{result.dagster_run.job_name}: {'success' if result.success else 'failure'}")
    failures = [one for one in result.all_events if one.is_step_failure]
    assert result.success == (not failures)
    assert not any(one.is_step_up_for_retry for one in result.all_events)
    for one in failures:
        assert reason(one, result), one
        event(f"{one.step_key}: {reason(one, result)[:40]}")


def reason(failure: DagsterEvent, result: ExecuteInProcessResult) -> str:
    """Return the words of the failure, or of the check that stopped the run; none for a defect."""
    data: Any = failure.step_failure_data
    if data.user_failure_data is not None:
        return data.user_failure_data.description or ""
    checks = result.get_asset_check_evaluations()
    return "; ".join(check.description or "" for check in checks if not check.passed)
