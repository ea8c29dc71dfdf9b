"""The `mlops` command as a person uses it: another process, its output, its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from dagster import AssetKey

from mlops_assets_tests.conftest import CUSTOMERS, DUMMY, Project, instance_of, write_customers
from mlops_assets_tests.warm import warm

MLOPS = str(Path(sys.executable).with_name("mlops"))


def environment(project: Project) -> dict[str, str]:
    home = project.folder / "dagster"
    home.mkdir(exist_ok=True)
    return project.environment(home)


def start(project: Project, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env=environment(project),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=project.folder,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def mlops(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `mlops …` to its end, in a process that need not import anything."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        command = warm().start(
            ["mlops", *arguments], environment(project), out, project.folder, err
        )
        code = command.wait()
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def summary(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout.splitlines()[-1])


def test_run_materialises_every_pipeline_and_says_what_came_out(customers: Project) -> None:
    done = finish(start(customers, MLOPS, "run", "--json"))
    report = summary(done)

    assert done.returncode == 0
    assert report["status"] == "success"
    customer = report["pipelines"]["customers"]
    assert sorted(customer["executed"]) == sorted(
        f"customers/{stage}" for stage in ("raw", "train", "test", "model", "metrics", "champion")
    )
    assert customer["failed"] == customer["skipped"] == customer["reused"] == []
    assert 0.5 < customer["metrics"]["accuracy"] <= 1
    assert customer["champion"]["changed"] is True
    assert len(customer["champion"]["version"]) == 16
    assert "champion  new" in done.stdout
    assert "customers/raw, 120 rows" in done.stderr
    assert "Traceback" not in done.stderr
    with instance_of(customers.folder / "dagster") as instance:
        run = instance.get_run_by_id(report["run_id"])
        assert run is not None
        assert run.is_success
        assert instance.get_latest_materialization_event(AssetKey(["customers", "champion"]))


def test_a_search_is_one_asset_of_the_summary_and_every_trial_a_line_of_the_progress(
    customers: Project,
) -> None:
    search = "tune: {trials: 2, folds: 2, space: {strategy: [prior, most_frequent]}}\n"
    customers.add("customers", DUMMY + search)
    customers.add("refused", DUMMY + search.replace("[prior, most_frequent]", "[wrong, worse]"))
    done = mlops(customers, "run", "--json")
    pipelines = summary(done)["pipelines"]

    assert "customers/best_params" in pipelines["customers"]["executed"]
    assert pipelines["customers"]["failed"] == pipelines["customers"]["skipped"] == []
    assert "customers/best_params\n" in done.stderr
    for number in (0, 1):
        assert f"        trial {number} with strategy=" in done.stderr
    assert done.stderr.count("/best_params\n") == 2
    assert pipelines["refused"]["failed"] == ["refused/best_params"]
    assert "refused/model" in pipelines["refused"]["skipped"]
    assert "all 2 trials failed" in pipelines["refused"]["error"]


def test_every_trial_that_was_finished_before_is_told_and_none_that_never_began(
    customers: Project,
) -> None:
    search = "tune: {trials: 2, parallel: 1, folds: 2, space: {strategy: [prior, uniform]}}\n"
    customers.add("customers", DUMMY + search)
    mlops(customers, "run")
    customers.add("customers", DUMMY + search.replace("trials: 2", "trials: 3"))
    customers.add("plans", DUMMY + search + "split: {group: plan}\n")
    done = mlops(customers, "run")

    for number in (0, 1):
        assert f"        reused: trial_00{number} was finished before" in done.stderr
    assert "        trial 2 with strategy=" in done.stderr
    assert "FAILED: tune.folds: the training set has no 2 folds" in done.stderr
    assert "Not executing" not in done.stderr


def test_run_goes_on_with_the_others_when_one_pipeline_fails_and_one_file_is_broken(
    customers: Project,
) -> None:
    rule = "target: left\n  checks: {between: {age: [0, 60]}}"
    customers.add("strict", CUSTOMERS.replace("target: left", rule))
    customers.add("missing", CUSTOMERS.replace("customers.csv", "nowhere.csv"))
    broken = customers.add("broken", CUSTOMERS.replace("target: left", "targt: left"))
    done = mlops(customers, "run", "--json")
    pipelines = summary(done)["pipelines"]

    assert done.returncode == 1
    assert summary(done)["status"] == "failure"
    assert len(pipelines["customers"]["executed"]) == 6
    assert pipelines["missing"]["failed"] == ["missing/raw"]
    assert len(pipelines["missing"]["skipped"]) == 5
    assert "nowhere.csv" in pipelines["missing"]["error"]
    assert f"{broken}:3:3" in pipelines["broken"]["error"]
    assert "target" in pipelines["broken"]["error"]
    assert f"{broken}:3:3" in done.stderr
    assert "age" in pipelines["strict"]["error"]
    assert "60" in pipelines["strict"]["error"]
    assert "error: declared_rules: " in done.stderr
    assert "Dependencies for step" not in done.stderr
    assert "Traceback" not in done.stderr


def test_run_of_a_named_pipeline_runs_only_that_one(customers: Project) -> None:
    customers.add("others", DUMMY)
    report = summary(mlops(customers, "run", "others", "--json"))

    assert list(report["pipelines"]) == ["others"]
    assert not (customers.folder / "store" / "customers").exists()


def test_a_name_that_is_no_pipeline_is_refused_with_the_nearest_one(customers: Project) -> None:
    done = mlops(customers, "run", "customer")

    assert done.returncode == 1
    assert "did you mean 'customers'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_below_its_gate_is_reported_as_no_champion(customers: Project) -> None:
    customers.add("customers", CUSTOMERS + "evaluate: {gates: {accuracy: '>= 0.999'}}\n")
    done = mlops(customers, "run", "--json")

    champion = summary(done)["pipelines"]["customers"]["champion"]
    assert done.returncode == 0
    assert champion["version"] is None
    assert champion["changed"] is False
    assert "0.999" in champion["reason"]


def test_two_first_runs_at_once_leave_one_champion_and_usable_databases(
    customers: Project,
) -> None:
    (customers.folder / "mlflow.db").unlink()
    both = [start(customers, MLOPS, "run", "--json") for _ in range(2)]
    done = [finish(process) for process in both]

    assert [one.returncode for one in done] == [0, 0], done[0].stderr + done[1].stderr
    assert not any("warning" in one.stderr for one in done)
    changed = [summary(one)["pipelines"]["customers"]["champion"]["changed"] for one in done]
    assert sorted(changed) == [False, True]


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_at_once_and_the_next_one_succeeds(
    customers: Project, signal_number: signal.Signals
) -> None:
    (customers.folder / "pipelines" / "slow_features_of_customers.py").write_text(
        "import time\ndef slow(frame):\n    time.sleep(600)\n"
    )
    customers.add("customers", CUSTOMERS + "  features: slow_features_of_customers:slow\n")
    process = start(customers, MLOPS, "run")
    assert process.stderr is not None
    while "] customers/model" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(8)
    process.send_signal(signal_number)
    done = finish(process)

    assert done.returncode == 1
    assert "retried" not in done.stderr
    assert "customers__model: interrupted" in done.stdout
    customers.add("customers", CUSTOMERS)
    assert mlops(customers, "run").returncode == 0


def test_a_second_run_reports_the_champion_as_unchanged(customers: Project) -> None:
    first = summary(mlops(customers, "run", "--json"))["pipelines"]["customers"]["champion"]
    second = summary(mlops(customers, "run", "--json"))["pipelines"]["customers"]["champion"]

    assert (first["changed"], second["changed"]) == (True, False)
    assert first["version"] == second["version"]


@pytest.mark.parametrize("variable", ["MLOPS_DEPLOYMENT", "MLOPS_STORE_URL"])
def test_a_wrong_setting_is_one_clear_line(customers: Project, variable: str) -> None:
    done = subprocess.run(
        [MLOPS, "run"], env={**os.environ, variable: "x://y"}, capture_output=True, text=True
    )

    assert done.returncode == 1
    assert variable in done.stderr
    assert "Traceback" not in done.stderr


def test_schema_is_a_json_schema_that_knows_the_fields(customers: Project) -> None:
    schema = json.loads(mlops(customers, "schema").stdout)

    assert {"data", "model", "evaluate"} <= set(schema["properties"])


def test_dagster_job_execute_does_the_same(customers: Project) -> None:
    write_customers(customers.folder / "pipelines" / "customers.csv", rows=60)
    dagster = str(Path(sys.executable).with_name("dagster"))
    job = ("job", "execute", "-m", "mlops_assets.definitions", "-j", "customers_training")
    done = finish(start(customers, dagster, *job))

    assert done.returncode == 0, done.stderr
    assert len(list((customers.folder / "store" / "customers" / "champion").iterdir())) == 1


@pytest.mark.parametrize("database", ["runs.db", "runs/index.db"])
def test_a_damaged_instance_is_named_with_the_remedy_which_helps(
    customers: Project, database: str
) -> None:
    assert mlops(customers, "run").returncode == 0
    home = customers.folder / "dagster"
    damaged = home / "history" / database
    for log in damaged.parent.glob(f"{damaged.name}-*"):
        log.unlink()
    damaged.write_bytes(b"no database at all" * 1000)
    write_customers(customers.folder / "pipelines" / "customers.csv", rows=121)
    refused = mlops(customers, "run")

    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    last = refused.stderr.splitlines()[-1]
    assert str(home) in last
    assert "move that folder away" in last
    home.rename(customers.folder / "moved away")
    assert mlops(customers, "run").returncode == 0
