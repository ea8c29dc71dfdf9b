"""Searching for parameters: every trial is a step, is kept, and is never made twice."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance, ExecuteInProcessResult
from mlflow import MlflowClient

from mlops_assets.store.prune import prune
from mlops_assets_tests.automation.test_pipelines import Automated
from mlops_assets_tests.conftest import Project, write_customers

MLOPS = str(Path(sys.executable).with_name("mlops"))

TUNED = """\
data:
  uri: customers.csv
  target: left
model:
  estimator: sklearn.tree.DecisionTreeClassifier
  params: {min_samples_leaf: 2}
tune:
  trials: 5
  parallel: 2
  folds: 3
  space:
    max_depth: {low: 1, high: 8}
    criterion: [gini, entropy, log_loss]
evaluate: {metrics: [roc_auc]}
"""


@pytest.fixture
def tuned(customers: Project) -> Project:
    customers.add("customers", TUNED)
    return customers


def trials(project: Project) -> list[dict[str, Any]]:
    """Return what the store keeps of all trials of the only study, by number."""
    (study,) = studies(project)
    records = [json.loads(path.read_text()) for path in sorted(study.iterdir())]
    return [{name: it for name, it in one.items() if name != "sha256"} for one in records]


def studies(project: Project) -> list[Path]:
    return list((project.folder / "store" / ".trials" / "customers").glob("*/*"))


def found(project: Project) -> list[dict[str, Any]]:
    """Return the trials without who made them and when."""
    own = ("run_id", "at", "seconds", "message")
    return [{name: it for name, it in one.items() if name not in own} for one in trials(project)]


def search(project: Project, refresh: str | None = None) -> ExecuteInProcessResult:
    """Run the pipeline as far as the search."""
    return project.train("customers", "raw", "train", "test", "best_params", refresh=refresh)


def made(result: ExecuteInProcessResult, stage: str) -> Any:
    """Return the materialisation of a stage."""
    (event,) = result.asset_materializations_for_node(f"customers__{stage}")
    return event


def best(project: Project) -> Any:
    """Return the latest `p/best_params`."""
    artifact, *_ = project.store.versions(["customers", "best_params"])
    return project.store.read(artifact)


def failure(result: ExecuteInProcessResult) -> str:
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    data = failed.step_failure_data
    assert data.user_failure_data is not None
    return str(data.user_failure_data.description)


def test_the_model_is_trained_with_the_best_parameters_of_the_search(tuned: Project) -> None:
    result = tuned.train("customers")

    assert result.success
    steps = [event.step_key for event in result.all_events if event.is_step_success]
    assert [step for step in steps if step and "best_params" in step] == [
        *(f"customers__best_params.trial_{number:03d}" for number in range(5)),
        "customers__best_params.choose",
    ]
    chosen = result.output_for_node("customers__best_params")
    values = {trial["number"]: trial["folds"] for trial in trials(tuned)}
    assert chosen["value"] == max(sum(folds) / 3 for folds in values.values() if len(folds) == 3)
    assert chosen["by"] == "roc_auc"
    (model,) = tuned.store.versions(["customers", "model"])
    tree = tuned.store.read(model).pipeline[-1]
    assert tree.get_params().items() >= {**chosen["params"], "min_samples_leaf": 2}.items()
    facts = made(result, "best_params").metadata
    assert facts["best_params"].value == chosen["params"]
    assert [record.data["trial"] for record in facts["trials"].records] == list(range(5))
    assert "data:image/png" in facts["search"].value
    card = made(result, "metrics").metadata["model_card"].value
    assert f"`max_depth={chosen['params']['max_depth']}`" in card


def test_nothing_is_searched_again_when_nothing_changed(tuned: Project) -> None:
    first, again = search(tuned), search(tuned)

    assert "memoized" in made(again, "best_params").metadata
    assert {trial["run_id"] for trial in trials(tuned)} == {first.run_id}


def test_of_more_trials_only_the_new_ones_run_and_the_model_stays_if_none_is_better(
    tuned: Project,
) -> None:
    first = tuned.train("customers")
    before = best(tuned)
    tuned.add("customers", TUNED.replace("trials: 5", "trials: 8"))
    second = tuned.train("customers")

    assert [trial["run_id"] for trial in trials(tuned)] == [first.run_id] * 5 + [second.run_id] * 3
    assert "memoized" not in made(second, "best_params").metadata
    assert best(tuned) == before
    assert "memoized" in made(second, "model").metadata
    assert len(made(second, "best_params").metadata["trials"].records) == 8


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("high: 8", "high: 9"),
        ("min_samples_leaf: 2", "min_samples_leaf: 3"),
        ("folds: 3", "folds: 4"),
    ],
)
def test_another_space_model_or_way_to_measure_is_another_search(
    tuned: Project, old: str, new: str
) -> None:
    search(tuned)
    tuned.add("customers", TUNED.replace(old, new))

    assert search(tuned).success
    assert [len(list(study.iterdir())) for study in studies(tuned)] == [5, 5]


def test_a_refresh_makes_every_trial_again_with_the_same_result(tuned: Project) -> None:
    search(tuned)
    before, value = found(tuned), best(tuned)
    again = search(tuned, refresh="customers/best_params")

    assert {trial["run_id"] for trial in trials(tuned)} == {again.run_id}
    assert (found(tuned), best(tuned)) == (before, value)


def test_a_trial_that_is_lost_or_damaged_is_made_again_when_others_need_it(
    tuned: Project,
) -> None:
    search(tuned)
    before, (study,) = found(tuned), studies(tuned)
    (study / "0000.json").unlink()
    (study / "0001.json").write_text("{")
    (study / "0003.json").write_text('{"number": 3}')
    tuned.add("customers", TUNED.replace("trials: 5", "trials: 6"))

    assert search(tuned).success
    assert found(tuned)[:5] == before


def test_a_trial_that_fails_stops_nothing_and_all_of_them_are_an_error(tuned: Project) -> None:
    some = TUNED.replace("[gini, entropy, log_loss]", "[gini, nonsense]")
    tuned.add("customers", some)
    assert search(tuned).success
    assert {trial["state"] for trial in trials(tuned)} >= {"failed", "complete"}
    assert best(tuned)["params"]["criterion"] == "gini"

    tuned.add("customers", TUNED.replace("[gini, entropy, log_loss]", "[nonsense]"))
    result = tuned.train("customers", "best_params", "model")
    assert "tune: all 5 trials failed:\n- model.params.criterion" in failure(result)
    assert "nonsense" in failure(result)
    client = MlflowClient(tuned.settings.tracking_uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == "customers"]
    states = client.search_runs([experiment.experiment_id], "attributes.status = 'FAILED'")
    assert len([run for run in states if "mlops.study" in run.data.tags]) == 1


def test_a_failure_that_may_pass_is_tried_again_and_never_kept_as_what_a_trial_found(
    tuned: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlops_assets.ml import tune
    from mlops_assets.ml.evaluate import score

    calls = []

    def flaky(*arguments: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise ConnectionError("the network is down")
        return score(*arguments)

    monkeypatch.setattr(tune, "score", flaky)
    result = search(tuned)

    assert result.success
    retried = [event.step_key for event in result.all_events if event.is_step_up_for_retry]
    assert retried == ["customers__best_params.trial_000"]
    assert "failed" not in {trial["state"] for trial in trials(tuned)}


def test_a_search_is_one_run_of_mlflow_with_a_run_for_each_trial(tuned: Project) -> None:
    search(tuned)
    tuned.add("customers", TUNED.replace("trials: 5", "trials: 12"))
    search(tuned)

    client = MlflowClient(tuned.settings.tracking_uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == "customers"]
    runs = client.search_runs([experiment.experiment_id])
    (study,) = [run for run in runs if "mlops.study" in run.data.tags]
    assert study.info.status == "FINISHED"
    assert study.data.metrics["best_roc_auc"] == pytest.approx(best(tuned)["value"])
    assert study.data.tags["best.max_depth"] == str(best(tuned)["params"]["max_depth"])
    below = {
        int(run.data.tags["mlops.trial"]): run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == study.info.run_id
    }
    kept = trials(tuned)
    assert sorted(below) == list(range(12))
    assert "pruned" in {trial["state"] for trial in kept}
    for trial in kept:
        run = below[trial["number"]]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlops.state"] == trial["state"]
        assert run.data.params == {name: str(it) for name, it in trial["params"].items()}
        measured = client.get_metric_history(run.info.run_id, "roc_auc")
        assert [one.value for one in sorted(measured, key=lambda one: one.step)] == trial["folds"]
        assert ("mean_roc_auc" in run.data.metrics) == (trial["state"] == "complete")


def test_a_search_needs_no_mlflow(tuned: Project) -> None:
    (tuned.folder / "mlflow.db").write_text("this is no database")

    assert search(tuned).success
    assert best(tuned)["params"]


def test_a_pipeline_without_a_search_has_no_such_asset(customers: Project) -> None:
    keys = customers.definitions().resolve_asset_graph().get_all_asset_keys()
    assert AssetKey(["customers", "model"]) in keys
    assert AssetKey(["customers", "best_params"]) not in keys


def test_trials_are_pruned_with_the_training_set_that_they_are_about(tuned: Project) -> None:
    home = tuned.folder / "home"
    home.mkdir()
    with DagsterInstance.local_temp(str(home)) as instance:
        tuned.instance = instance
        search(tuned)
        prune(tuned.store, keep=0, older_than=timedelta(0))
        assert len(trials(tuned)) == 5

        write_customers(tuned.folder / "pipelines" / "customers.csv", rows=130)
        search(tuned)
    prune(tuned.store, keep=0, older_than=timedelta(days=1))
    assert [len(list(study.iterdir())) for study in studies(tuned)] == [5, 5]
    prune(tuned.store, keep=0, older_than=timedelta(0))
    assert sum(len(list(study.iterdir())) for study in studies(tuned)) == 5


# --- in processes of their own ------------------------------------------------------------------

KILLER = """\
import os
import signal
from pathlib import Path

from sklearn.compose import make_column_transformer
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent


def features(frame):
    # three models for each trial: this is the second fold of the third one
    if (HERE / "armed").exists():
        (HERE / "armed").open("a").write("x")
        if (HERE / "armed").stat().st_size == 8:
            (HERE / "armed").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    return make_column_transformer((StandardScaler(), ["age"]))
"""


def test_a_search_that_was_killed_goes_on_where_it_was_and_ends_with_the_same_result(
    tuned: Project,
) -> None:
    tuned.add("customers", TUNED.replace("model:", "model:\n  features: killer:features"))
    (tuned.folder / "pipelines" / "killer.py").write_text(KILLER)
    (tuned.folder / "pipelines" / "armed").touch()
    assert in_process_of_its_own(tuned, [MLOPS, "run"]).returncode == -signal.SIGKILL
    kept = trials(tuned)
    assert [trial["number"] for trial in kept] == [0, 1]

    assert search(tuned).success
    assert trials(tuned)[:2] == kept
    resumed, value = found(tuned), best(tuned)
    forget(tuned)
    assert search(tuned).success
    assert (found(tuned), best(tuned)) == (resumed, value)


WITH_FORKSERVER = """\
from dagster import AssetKey, DagsterInstance, execute_job
from dagster._core.definitions.reconstruct import ReconstructableRepository

repository = ReconstructableRepository.for_module("mlops_assets.definitions", "defs")
job = repository.get_reconstructable_job("customers_training")
stages = ("raw", "train", "test", "best_params")
with DagsterInstance.get() as instance:
    for tags in ({"mlops/refresh": "customers/best_params"}, {}):
        result = execute_job(
            job,
            instance,
            run_config={"execution": {"config": {"forkserver": {"max_concurrent": 2}}}},
            asset_selection=[AssetKey(["customers", stage]) for stage in stages],
            tags=tags,
        )
        events = [one.dagster_event for one in instance.all_logs(result.run_id)]
        started = [e.step_key for e in events if e and e.event_type_value == "STEP_WORKER_STARTING"]
        print(result.success, *sorted(started))
"""


def test_trials_in_processes_of_their_own_find_the_same_and_finished_ones_start_none(
    tuned: Project,
) -> None:
    tuned.add("customers", TUNED.replace("trials: 5", "trials: 3"))
    here = search(tuned)
    wanted, value = found(tuned), best(tuned)

    done = in_process_of_its_own(tuned, [sys.executable, "-c", WITH_FORKSERVER])
    parts = ("choose", "trial_000", "trial_001", "trial_002")
    steps = [f"customers__best_params.{part}" for part in parts]
    assert done.stdout.splitlines() == [" ".join(["True", *steps]), "True"]
    assert here.run_id not in {trial["run_id"] for trial in trials(tuned)}
    assert (found(tuned), best(tuned)) == (wanted, value)


def forget(project: Project) -> None:
    """Delete all trials and what came of them."""
    for name in (".trials", ".memo", ".events", "customers/best_params"):
        shutil.rmtree(project.folder / "store" / name)


def in_process_of_its_own(project: Project, command: list[str]) -> subprocess.CompletedProcess[str]:
    home = project.folder / "home"
    home.mkdir()
    return subprocess.run(command, env=project.environment(home), capture_output=True, text=True)


def test_a_search_is_requested_like_any_asset_when_its_data_change(tuned: Project) -> None:
    pipeline = Automated(tuned)
    stages = {"raw", "train", "test", "best_params", "model", "metrics", "champion"}
    assert pipeline.layer() == stages
    assert pipeline.layer() == set()

    write_customers(tuned.folder / "pipelines" / "customers.csv", rows=130)
    assert [pipeline.layer() for _ in range(2)] == [{"raw"}, {"train", "test"}]
    assert "best_params" in pipeline.layer()
