"""What is in MLflow after training: against the real client and a real database."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from dagster import ExecuteInProcessResult
from mlflow import MlflowClient
from mlflow.entities import Run

from mlops_assets.definitions import build_defs
from mlops_assets.tracking import (
    DECIDED_AT,
    MODEL_VERSION,
    REASON,
    STATUS,
    MlflowTracking,
    Verdicts,
    git_tags,
)
from mlops_assets_tests.conftest import CUSTOMERS, DUMMY, Project
from mlops_assets_tests.servers import mlflow_server


def client(project: Project) -> MlflowClient:
    return MlflowClient(project.settings.tracking_uri)


def runs(project: Project) -> list[Run]:
    experiments = [e.experiment_id for e in client(project).search_experiments()]
    return list(client(project).search_runs(experiments, order_by=["start_time ASC"]))


def aliases(project: Project) -> dict[str, str]:
    pointed = client(project).get_registered_model("customers").aliases
    return {
        alias: client(project).get_model_version("customers", number).tags[MODEL_VERSION]
        for alias, number in pointed.items()
    }


def model_version(result: ExecuteInProcessResult) -> str:
    return next(
        (event.step_materialization_data.materialization.tags or {})["dagster/data_version"]
        for event in result.all_events
        if event.is_step_materialization
        and event.asset_key is not None
        and event.asset_key.path[-1] == "model"
    )


def test_a_trained_model_has_one_finished_run_with_what_made_it(customers: Project) -> None:
    result = customers.train("customers")
    (run,) = runs(customers)

    assert run.info.status == "FINISHED"
    assert run.data.params["max_iter"] == "500"
    assert run.data.params["estimator"] == "sklearn.linear_model.LogisticRegression"
    assert 0.5 < run.data.metrics["accuracy"] <= 1
    assert run.data.tags[MODEL_VERSION] == model_version(result)
    assert run.data.tags["dagster_run_id"] == result.run_id
    assert len(run.data.tags["mlops.train_version"]) == 16
    assert len(run.data.tags["mlops.test_version"]) == 16
    assert run.data.tags.items() >= git_tags().items()
    files = {item.path for item in client(customers).list_artifacts(run.info.run_id)}
    assert {"model_card.md", "pipeline.json", "figures"} <= files
    figures = client(customers).list_artifacts(run.info.run_id, "figures")
    assert "figures/roc.png" in {item.path for item in figures}
    assert (customers.folder / "mlartifacts" / "customers").is_dir()


def test_the_champion_is_a_registered_model_version_with_an_alias(customers: Project) -> None:
    version = model_version(customers.train("customers"))
    entry = client(customers).get_model_version_by_alias("customers", "champion")

    assert entry.tags[MODEL_VERSION] == version
    assert entry.tags["mlops.url"].endswith(f"{version}.skops")
    assert entry.source.startswith("runs:/") or "mlartifacts" in entry.source


def test_a_worse_model_becomes_the_challenger_and_the_champion_keeps_its_alias(
    customers: Project,
) -> None:
    first = model_version(customers.train("customers"))
    customers.add("customers", DUMMY)
    second = model_version(customers.train("customers"))

    assert aliases(customers) == {"champion": first, "challenger": second}


def test_training_that_fails_leaves_a_failed_run_and_no_running_one(customers: Project) -> None:
    customers.add("customers", CUSTOMERS.replace("{max_iter: 500}", "{max_iter: -1}"))
    result = customers.train("customers")

    assert not result.success
    assert [run.info.status for run in runs(customers)] == ["FAILED"]


def test_evaluation_that_fails_makes_the_run_failed_and_its_success_finished_again(
    customers: Project,
) -> None:
    customers.train("customers", "raw", "train", "test", "model")
    tracking = MlflowTracking(mlflow_tracking_uri=customers.settings.tracking_uri)
    (run,) = runs(customers)
    log = logging.getLogger("test")
    with (
        pytest.raises(ZeroDivisionError),
        tracking.trained(log, "customers", run.data.tags[MODEL_VERSION]),
    ):
        raise ZeroDivisionError
    assert [run.info.status for run in runs(customers)] == ["FAILED"]

    assert customers.train("customers", "metrics").success
    assert [run.info.status for run in runs(customers)] == ["FINISHED"]


def test_two_pipelines_in_one_run_have_runs_and_parameters_of_their_own(
    customers: Project,
) -> None:
    customers.add("others", CUSTOMERS.replace("{max_iter: 500}", "{max_iter: 300}"))
    job = customers.definitions().resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(instance=customers.instance).success

    assert {
        run.data.tags["mlops.pipeline"]: run.data.params["max_iter"] for run in runs(customers)
    } == {
        "customers": "500",
        "others": "300",
    }


def test_what_a_killed_attempt_left_open_is_closed_as_killed(customers: Project) -> None:
    tracking = MlflowTracking(mlflow_tracking_uri=customers.settings.tracking_uri)
    log = logging.getLogger("test")
    killed = tracking.training(log, "customers", "run-1")
    killed.__enter__()
    assert [run.info.status for run in runs(customers)] == ["RUNNING"]

    with tracking.training(log, "customers", "run-1"):
        pass
    assert [run.info.status for run in runs(customers)] == ["KILLED", "FINISHED"]


def test_what_another_run_that_is_over_left_open_is_closed_and_what_goes_on_is_not(
    customers: Project,
) -> None:
    tracking = MlflowTracking(mlflow_tracking_uri=customers.settings.tracking_uri)
    log = logging.getLogger("test")
    left = [
        tracking.training(log, "customers", "over"),
        tracking.searching(log, "customers", "a-study", "over"),
        tracking.training(log, "customers", "alive"),
    ]
    for run in left:
        run.__enter__()

    with tracking.training(log, "customers", "next", is_over=lambda one: one == "over"):
        pass
    statuses = {run.data.tags["dagster_run_id"]: run.info.status for run in runs(customers)}
    assert statuses == {"over": "KILLED", "alive": "RUNNING", "next": "FINISHED"}
    assert [run.info.status for run in runs(customers)].count("KILLED") == 2


def test_an_interrupted_step_leaves_a_killed_run(customers: Project) -> None:
    tracking = MlflowTracking(mlflow_tracking_uri=customers.settings.tracking_uri)
    log = logging.getLogger("test")
    with pytest.raises(KeyboardInterrupt), tracking.training(log, "customers", "run-1"):
        raise KeyboardInterrupt

    assert [run.info.status for run in runs(customers)] == ["KILLED"]


def test_a_server_that_is_away_costs_a_warning_and_not_the_model(customers: Project) -> None:
    settings = replace(customers.settings, tracking_uri="http://user:hunter2@127.0.0.1:9")
    job = build_defs(settings).resolve_job_def("customers_training")
    result = job.execute_in_process(instance=customers.instance)

    assert result.success
    stored = customers.folder / "store" / "customers" / "champion"
    assert len(list(stored.iterdir())) == 1

    again = customers.train("customers", "metrics", "champion", refresh="true")
    (run,) = runs(customers)
    assert run.data.tags[MODEL_VERSION] == model_version(result)
    assert again.success
    assert run.data.metrics["accuracy"] > 0.5


def test_the_configuration_is_that_of_dagster_mlflow() -> None:
    from dagster_mlflow.resources import CONFIG_SCHEMA

    ours = set(MlflowTracking.model_fields) - {"mlflow_tracking_uri"}
    assert ours <= set(CONFIG_SCHEMA)


@pytest.fixture
def server(customers: Project) -> Iterator[str]:
    with mlflow_server(customers.settings.tracking_uri, customers.folder / "served") as port:
        yield f"http://127.0.0.1:{port}"


def test_a_tracking_server_shows_the_run_and_the_asset_links_to_it(
    customers: Project, server: str
) -> None:
    settings = replace(customers.settings, tracking_uri=server)
    job = build_defs(settings).resolve_job_def("customers_training")
    result = job.execute_in_process(instance=customers.instance)
    (materialization,) = result.asset_materializations_for_node("customers__model")
    (run,) = MlflowClient(server).search_runs(
        [MlflowClient(server).get_experiment_by_name("customers").experiment_id]
    )

    assert materialization.metadata["mlflow_run"].value == (
        f"{server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    )
    entry = MlflowClient(server).get_model_version_by_alias("customers", "champion")
    assert entry.tags[MODEL_VERSION] == run.data.tags[MODEL_VERSION]
    downloaded = MlflowClient(server).download_artifacts(run.info.run_id, "model/model.json")
    assert run.data.tags[MODEL_VERSION] in Path(downloaded).read_text()


def test_the_registry_tells_of_every_model_what_was_decided_why_and_when(
    customers: Project,
) -> None:
    first = model_version(customers.train("customers"))
    customers.add("customers", DUMMY)
    second = model_version(customers.train("customers"))
    entries = client(customers).search_model_versions("name = 'customers'")
    told = {entry.tags[MODEL_VERSION]: entry.tags for entry in entries}

    assert told[first][STATUS] == "promoted"
    assert told[first][REASON].startswith("the first champion")
    assert told[second][STATUS] == "refused"
    assert "95 % interval" in told[second][REASON]
    assert told[first][DECIDED_AT] < told[second][DECIDED_AT]
    (run,) = [one for one in runs(customers) if one.data.tags[MODEL_VERSION] == second]
    assert run.data.metrics["promotion_lower"] < run.data.metrics["promotion_difference"]
    assert run.data.metrics["promotion_resamples"] == 1000
    figures = client(customers).list_artifacts(run.info.run_id, "figures")
    assert "figures/promotion.png" in {item.path for item in figures}


def test_a_model_that_is_promoted_after_all_is_the_challenger_no_longer(
    customers: Project,
) -> None:
    demanding = CUSTOMERS.replace("500", "400") + "promote: {min_improvement: 0.5}\n"
    first = model_version(customers.train("customers"))
    customers.add("customers", demanding)
    second = model_version(customers.train("customers"))
    assert aliases(customers) == {"champion": first, "challenger": second}

    customers.add("customers", CUSTOMERS.replace("500", "400"))
    customers.train("customers")
    assert aliases(customers) == {"champion": second}


def test_an_alias_follows_a_champion_that_changes_while_it_is_set(customers: Project) -> None:
    first = model_version(customers.train("customers"))
    customers.add("customers", DUMMY)
    second = model_version(customers.train("customers"))
    before, after = (
        Verdicts({"champion": version}, {version: _promoted(version)})
        for version in (first, second)
    )
    looks = iter([before, after, after])
    tracking = MlflowTracking(mlflow_tracking_uri=customers.settings.tracking_uri)
    with tracking.trained(logging.getLogger("test"), "customers", first) as run:
        run.follow("customers", lambda: next(looks))

    assert aliases(customers) == {"champion": second}
    assert list(looks) == []


def test_an_older_decision_does_not_overwrite_a_newer_one(customers: Project) -> None:
    version = model_version(customers.train("customers"))
    tracking = MlflowTracking(mlflow_tracking_uri=customers.settings.tracking_uri)
    with tracking.trained(logging.getLogger("test"), "customers", version) as run:
        for at in ("2999-01-01T00:00:00+00:00", "2000-01-01T00:00:00+00:00"):
            told = {version: {STATUS: "refused", REASON: at, DECIDED_AT: at}}
            run.follow("customers", partial(Verdicts, {}, told))

    entry = client(customers).get_model_version_by_alias("customers", "champion")
    assert entry.tags[REASON].startswith("2999")


def _promoted(version: str) -> dict[str, str]:
    return {STATUS: "promoted", REASON: version, DECIDED_AT: "2999-01-01T00:00:00+00:00"}
