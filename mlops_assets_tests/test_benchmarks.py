"""The benchmarks compare like with like; how long anything takes is not tested."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.__main__ import CASES, DOCUMENT, with_report
from benchmarks.reuse import CHEAP, ROOT, hand_on
from mlops_assets.pipeline_file import load_pipelines
from mlops_assets.plan import plan_pipelines
from mlops_assets.store.memo import Outside
from mlops_assets_tests.conftest import Project, write_customers

BARE = ROOT / "benchmarks" / "bare_iris.py"
IN_A_PROCESS = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(sorted({"dagster", "mlops_assets"} & set(sys.modules)))
"""


@pytest.fixture
def bare(tmp_path: Path, _empty_tracking_database: Path) -> tuple[Path, list[str]]:
    """Folder that the plain script has filled, and what it printed."""
    folder = tmp_path / "bare"
    folder.mkdir()
    shutil.copy(_empty_tracking_database, folder / "mlflow.db")
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS, str(BARE), str(folder)],
        env={**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout.splitlines()


def tracked(uri: str) -> dict[str, Any]:
    """What MLflow holds of the champion, apart from what differs from run to run."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run_id = client.get_model_version_by_alias("iris", "champion").run_id
    assert run_id is not None
    run = client.get_run(run_id)
    return {
        "status": run.info.status,
        "params": run.data.params,
        "metrics": run.data.metrics,
        "figures": sorted(file.path for file in client.list_artifacts(run_id, "figures")),
    }


def test_the_plain_script_makes_what_the_pipeline_makes(
    project: Project, bare: tuple[Path, list[str]]
) -> None:
    import skops.io

    from benchmarks.bare_iris import TRUSTED

    folder, printed = bare
    project.add_shipped("iris")
    assert project.train("iris").success

    def stored(name: str) -> Any:
        (artifact,) = project.store.versions(["iris", name])
        return project.store.read(artifact)

    for part in ("raw", "train", "test"):
        ours = stored(part).astype({"species": str})
        theirs = pd.read_parquet(folder / f"{part}.parquet").astype({"species": str})
        pd.testing.assert_frame_equal(theirs, ours, check_index_type=False)
    test, evaluation = stored("test"), json.loads((folder / "metrics.json").read_text())
    assert evaluation["metrics"] == stored("metrics")["metrics"]
    assert evaluation["confusion_matrix"] == stored("metrics")["confusion_matrix"]
    for name in ("model", "champion"):
        model = skops.io.load(folder / f"{name}.skops", trusted=TRUSTED)
        shares = model.predict_proba(test.drop(columns="species"))
        assert (shares == stored(name).predict_proba(test).to_numpy()).all()
    assert tracked(f"sqlite:///{folder}/mlflow.db") == tracked(project.settings.tracking_uri)
    assert json.loads(printed[0]) == evaluation["metrics"]
    assert printed[-1] == "[]", "the script imports what it is compared with"


def test_results_that_are_handed_on_are_hits_for_a_plan_and_for_a_run(project: Project) -> None:
    for number, name in enumerate(["p000", "p001"]):
        project.add(name, CHEAP % number)
    write_customers(project.folder / "pipelines" / "rows.csv")
    assert project.train("p000").success
    first, other = load_pipelines(project.settings.pipelines).valid.values()
    outside = Outside(project.store, {})
    assert plan_pipelines([other], outside, {})["p001"].reuse == []

    hand_on(first, [other], outside)

    assert len(plan_pipelines([other], outside, {})["p001"].reuse) == 6
    told = project.train("p001").get_asset_materialization_events()
    assert len(told) == 6
    assert all("memoized" in event.materialization.metadata for event in told)


def test_a_report_replaces_its_own_part_of_the_document_and_no_other() -> None:
    document = "# Title\n<!-- one -->\nold\n<!-- /one -->\ntext\n<!-- two -->\n<!-- /two -->\n"
    told = with_report(document, "one", r"new \1")
    assert told == document.replace("old", r"new \1")
    assert with_report(told, "one", "old") == document
    with pytest.raises(SystemExit, match="<!-- three -->"):
        with_report(document, "three", "new")


@pytest.mark.parametrize("case", CASES)
def test_every_case_can_be_measured_and_has_a_place_in_the_document(case: str) -> None:
    module = import_module(f"benchmarks.{case}")
    assert callable(module.measure)
    assert callable(module.report)
    assert with_report(DOCUMENT.read_text(), case, "told") != DOCUMENT.read_text()
