"""`mlops history` and `mlops prune` as a person uses them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlops_assets_tests.cli.test_run import mlops, summary
from mlops_assets_tests.conftest import CUSTOMERS, Project


def objects(project: Project, stage: str) -> set[str]:
    return {path.stem for path in (project.folder / "store" / "customers" / stage).iterdir()}


@pytest.fixture
def trained_three_times(customers: Project) -> Project:
    for strength in ("1.0", "0.01", "0.0001"):  # each worse than the one before
        text = CUSTOMERS.replace("500", f"500, C: {strength}")
        customers.add("customers", text + "promote: {min_improvement: 0.5}\n")
        assert mlops(customers, "run").returncode == 0
    return customers


def test_history_lists_versions_with_what_changed_from_one_to_the_next(
    trained_three_times: Project,
) -> None:
    done = mlops(trained_three_times, "history", "customers/model", "--json")
    newest, middle, oldest = json.loads(done.stdout)
    text = mlops(trained_three_times, "history", "customers/metrics")

    assert newest["changes"] == ["parameters changed: model.params.C 0.01 → 0.0001"]
    assert middle["changes"] == ["parameters changed: model.params.C 1.0 → 0.01"]
    assert oldest["changes"] == []
    assert newest["inputs"] == oldest["inputs"]
    assert {newest["version"], middle["version"], oldest["version"]} == objects(
        trained_three_times, "model"
    )
    assert all(len(entry["run_id"]) == 36 for entry in (newest, middle, oldest))
    assert text.stdout.count("metrics  ") == 3
    assert "changed  input content changed: customers/model" in text.stdout


def test_history_of_what_does_not_exist_is_explained(customers: Project) -> None:
    done = mlops(customers, "history", "customers/modle")

    assert done.returncode == 1
    assert "holds no version of 'customers/modle'" in done.stderr
    assert "Traceback" not in done.stderr


def test_prune_deletes_what_nothing_needs_and_the_next_run_has_nothing_to_do(
    trained_three_times: Project,
) -> None:
    project = trained_three_times
    before = objects(project, "metrics")
    arguments = ("--keep", "0", "--older-than", "0s")
    would = mlops(project, "prune", *arguments, "--dry-run")
    assert objects(project, "metrics") == before
    done = mlops(project, "prune", *arguments)

    assert done.returncode == would.returncode == 0
    assert "customers/metrics: 1 kept, 2 to delete" in would.stdout
    assert "customers/metrics: 1 kept, 2 deleted" in done.stdout
    assert len(objects(project, "metrics")) == 1
    assert mlops(project, "plan").returncode == 0
    champion = summary(mlops(project, "run", "--json"))["pipelines"]["customers"]["champion"]
    assert champion["version"] in objects(project, "champion")
    assert champion["version"] in objects(project, "model")


def test_what_is_recent_is_not_pruned_unless_asked_for(trained_three_times: Project) -> None:
    before = set(Path(trained_three_times.settings.store_url).rglob("*"))
    done = mlops(trained_three_times, "prune")

    assert "0 versions, 0 B deleted" in done.stdout
    assert set(Path(trained_three_times.settings.store_url).rglob("*")) == before


@pytest.mark.parametrize("duration", ["a month", "-1d", "1e9d", ""])
def test_a_duration_that_is_none_is_refused(customers: Project, duration: str) -> None:
    done = mlops(customers, "prune", "--older-than", duration)

    assert done.returncode == 1
    assert "--older-than" in done.stderr
    assert "30d" in done.stderr
    assert "Traceback" not in done.stderr
