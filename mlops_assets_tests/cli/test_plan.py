"""`mlops plan`, and `mlops run` after something was edited or nothing was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey

from mlops_assets_tests.cli.test_run import finish, mlops, start, summary
from mlops_assets_tests.conftest import CUSTOMERS, DUMMY, Project, instance_of, write_customers

ASSETS = ["raw", "train", "test", "model", "metrics", "champion"]
ALL = [f"customers/{name}" for name in ASSETS]


def planned(project: Project, *arguments: str) -> tuple[int, Any]:
    done = mlops(project, "plan", "--json", *arguments)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)["pipelines"]


def test_plan_runs_nothing_and_says_what_a_run_would_do(customers: Project) -> None:
    code, pipelines = planned(customers)

    assert code == 2
    assert pipelines == {
        "customers": {
            "execute": [{"asset": name, "reason": "never materialised"} for name in ALL],
            "reuse": [],
            "error": None,
        }
    }
    assert not (customers.folder / "store").exists()
    text = mlops(customers, "plan")
    assert "customers: 6 to execute, 0 to reuse" in text.stdout
    assert text.returncode == 2


def test_an_unchanged_run_does_nothing_imports_nothing_heavy_and_says_what_is_there(
    customers: Project,
) -> None:
    first = summary(mlops(customers, "run", "--json"))
    before = {path: path.stat().st_mtime_ns for path in customers.folder.rglob("*")}
    program = (
        "import sys, json\nfrom mlops_assets.cli import main\n"
        "try:\n    main(['run', '--json'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'dagster', 'sklearn', 'pandas', 'numpy', 'pyarrow', 'mlflow', 'matplotlib'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))\n"
    )
    done = finish(start(customers, sys.executable, "-c", program))
    *_, text, heavy = done.stdout.splitlines()
    second = json.loads(text)

    assert json.loads(heavy) == [], done.stderr
    assert second["run_id"] is None
    report, was = second["pipelines"]["customers"], first["pipelines"]["customers"]
    assert report["reused"] == ALL
    assert report["executed"] == report["failed"] == report["skipped"] == []
    assert report["metrics"] == was["metrics"]
    assert report["champion"] == {**was["champion"], "changed": False}
    changed = [path for path, time in before.items() if path.stat().st_mtime_ns != time]
    assert [path for path in changed if path.is_file()] == []
    assert planned(customers)[0] == 0


def test_a_run_executes_what_an_edit_needs_and_tells_why_first(customers: Project) -> None:
    mlops(customers, "run")
    customers.add("customers", CUSTOMERS.replace("500", "400"))
    code, pipelines = planned(customers)
    done = mlops(customers, "run", "--json")
    report = summary(done)["pipelines"]["customers"]

    assert code == 2
    assert [one["asset"] for one in pipelines["customers"]["execute"]] == ALL[3:]
    assert report["executed"][0] == "customers/model"
    assert report["reused"] == ALL[:3]
    said = done.stderr.index("parameters changed: model.params.max_iter 500 → 400")
    assert said < done.stderr.index("] customers/model")
    assert "[1/3] customers/model" in done.stderr
    assert planned(customers)[0] == 0


def test_going_back_reuses_and_tells_this_instance(customers: Project) -> None:
    first = summary(mlops(customers, "run", "--json"))["pipelines"]["customers"]
    customers.add("customers", DUMMY)
    mlops(customers, "run")
    customers.add("customers", CUSTOMERS)
    done = mlops(customers, "run", "--json")
    report = summary(done)["pipelines"]["customers"]

    assert "customers/model" in report["reused"]
    assert report["metrics"] == first["metrics"]
    with instance_of(customers.folder / "dagster") as instance:
        event = instance.get_latest_materialization_event(AssetKey(["customers", "model"]))
        assert event is not None
        assert event.asset_materialization is not None
        assert event.asset_materialization.metadata["memoized"].value is True


def test_a_second_instance_on_the_same_store_executes_nothing(customers: Project) -> None:
    mlops(customers, "run")
    (customers.folder / "dagster").rename(customers.folder / "first")
    assert planned(customers)[0] == 0
    done = mlops(customers, "run", "--json")
    report = summary(done)

    assert report["run_id"] is not None
    assert sorted(report["pipelines"]["customers"]["reused"]) == sorted(ALL)
    assert report["pipelines"]["customers"]["executed"] == []
    assert report["pipelines"]["customers"]["champion"]["changed"] is False
    assert "reused: customers/model" in done.stderr
    assert summary(mlops(customers, "run", "--json"))["run_id"] is None


def test_refresh_computes_what_is_named(customers: Project) -> None:
    mlops(customers, "run")
    one = summary(mlops(customers, "run", "--json", "--refresh", "customers/model"))
    two = summary(
        mlops(customers, "run", "customers", "--json", "--refresh", "customers/raw", ALL[3])
    )
    everything = summary(mlops(customers, "run", "--json", "--refresh"))

    def executed(report: Any) -> list[str]:
        return sorted(report["pipelines"]["customers"]["executed"])

    assert executed(one) == ["customers/model"]
    assert executed(two) == ["customers/model", "customers/raw"]
    assert executed(everything) == sorted(ALL)
    assert [report["status"] for report in (one, two, everything)] == ["success"] * 3


def test_an_asset_to_refresh_that_does_not_exist_is_refused_with_the_nearest(
    customers: Project,
) -> None:
    done = mlops(customers, "run", "--refresh", "customers/modle")

    assert done.returncode == 1
    assert "did you mean 'customers/model'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_user_module_two_imports_away_retrains_the_model_and_a_comment_does_not(
    customers: Project,
) -> None:
    folder = customers.folder / "pipelines"
    (folder / "plan_features.py").write_text(
        '"""Features."""\nfrom plan_helpers import scaler\n\n\ndef features(frame):\n'
        "    return scaler()\n"
    )
    (folder / "plan_helpers.py").write_text(
        "def scaler():\n    from plan_deep import columns\n"
        "    from sklearn.compose import ColumnTransformer\n"
        "    from sklearn.preprocessing import StandardScaler\n"
        "    return ColumnTransformer([('n', StandardScaler(), columns)])\n"
    )
    deep = folder / "plan_deep.py"
    deep.write_text("columns = ['age']\n")
    customers.add("customers", CUSTOMERS + "  features: plan_features:features\n")
    first = summary(mlops(customers, "run", "--json"))
    assert first["status"] == "success"

    deep.write_text("# which columns\ncolumns = [\n    'age',\n]\n")
    assert planned(customers)[0] == 0
    deep.write_text("columns = ['age'] * 1\n")
    code, pipelines = planned(customers)
    assert code == 2
    assert pipelines["customers"]["execute"][0] == {
        "asset": "customers/model",
        "reason": "code changed: plan_deep",
    }
    executed = summary(mlops(customers, "run", "--json"))["pipelines"]["customers"]["executed"]
    assert "customers/model" in executed
    deep.write_text("columns = ['age']\n")
    assert planned(customers)[1]["customers"]["execute"] in (
        [],
        [{"asset": "customers/champion", "reason": "input content changed: customers/champion"}],
    )


def test_a_broken_file_and_a_missing_source_are_errors_of_the_plan_and_the_rest_is_planned(
    customers: Project,
) -> None:
    customers.add("broken", CUSTOMERS.replace("target: left", "targt: left"))
    customers.add("missing", CUSTOMERS.replace("customers.csv", "nowhere.csv"))
    code, pipelines = planned(customers)

    assert code == 1
    assert "unknown field 'targt'" in pipelines["broken"]["error"]
    assert "nowhere.csv does not exist" in pipelines["missing"]["error"]
    assert len(pipelines["customers"]["execute"]) == 6


def test_a_store_that_cannot_be_read_is_explained(customers: Project) -> None:
    (customers.folder / "store").write_text("a file where a folder belongs")
    done = mlops(customers, "plan")

    assert done.returncode == 1
    assert "customers" in done.stdout
    assert "a part of the path is a file" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_data_being_replaced_by_other_data_and_back_is_seen(customers: Project) -> None:
    data = customers.folder / "pipelines" / "customers.csv"
    original = data.read_bytes()
    mlops(customers, "run")
    write_customers(data, rows=150)
    code, pipelines = planned(customers)
    assert code == 2
    assert pipelines["customers"]["execute"][0]["reason"] == (
        "input content changed: customers/source"
    )
    mlops(customers, "run")
    data.write_bytes(original)
    os.utime(data)

    execute = planned(customers)[1]["customers"]["execute"]
    assert [one["asset"] for one in execute] in ([], ["customers/champion"])


@pytest.mark.parametrize("way", ["job", "asset"])
def test_the_ways_of_dagster_reuse_what_mlops_run_computed(customers: Project, way: str) -> None:
    mlops(customers, "run")
    dagster = str(Path(sys.executable).with_name("dagster"))
    commands = {
        "job": ("job", "execute", "-m", "mlops_assets.definitions", "-j", "customers_training"),
        "asset": ("asset", "materialize", "-m", "mlops_assets.definitions", "--select", "*"),
    }
    done: subprocess.CompletedProcess[str] = finish(start(customers, dagster, *commands[way]))

    assert done.returncode == 0, done.stderr
    log = done.stdout + done.stderr
    assert log.count("reused: run ") == 5
    assert "computed, because" not in log


def test_mlops_run_reuses_what_a_job_of_dagster_computed(customers: Project) -> None:
    dagster = str(Path(sys.executable).with_name("dagster"))
    job = ("job", "execute", "-m", "mlops_assets.definitions", "-j", "customers_training")
    assert finish(start(customers, dagster, *job)).returncode == 0

    assert summary(mlops(customers, "run", "--json"))["run_id"] is None
