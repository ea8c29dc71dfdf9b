"""`mlops new` as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from hypothesis import example, given
from hypothesis import strategies as st

from mlops_assets.cli import main
from mlops_assets.cli.new import pipeline_text
from mlops_assets.errors import DataError
from mlops_assets.ml.read import read
from mlops_assets.pipeline_file import load_pipeline
from mlops_assets.spec import DataSpec
from mlops_assets_tests.conftest import Project, write_customers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLOPS_PIPELINES", str(tmp_path / "pipelines"))
    monkeypatch.chdir(tmp_path)
    write_customers(tmp_path / "customers.csv")
    (tmp_path / "pipelines").mkdir()
    return tmp_path


def new(name: str, data: str, target: str) -> Result:
    return CliRunner().invoke(main, ["new", name, "--data", data, "--target", target])


def test_a_new_pipeline_trains_and_promotes_a_model(project: Project) -> None:
    write_customers(project.folder / "customers.csv", rows=400)
    data = str(project.folder / "customers.csv")
    environment = {"MLOPS_PIPELINES": project.settings.pipelines}
    arguments = ["new", "leaving", "--data", data, "--target", "left"]

    made = CliRunner().invoke(main, arguments, env=environment)
    trained = project.train("leaving")

    assert made.exit_code == 0, made.output
    assert "mlops run leaving" in made.output
    assert trained.success
    [check] = [
        check
        for check in trained.get_asset_check_evaluations()
        if check.check_name == "champion_exists"
    ]
    assert check.passed


def test_the_file_says_what_is_in_the_data(folder: Path) -> None:
    frame = pd.read_csv(folder / "customers.csv")
    frame.insert(0, "customer_id", range(len(frame)))
    frame.to_csv(folder / "customers.csv", index=False)

    assert new("leaving", "customers.csv", "left").exit_code == 0
    spec = load_pipeline(folder / "pipelines" / "leaving.yaml")

    assert spec.data.uri == "../customers.csv"
    assert spec.data.columns == {
        "customer_id": "number",
        "age": "number",
        "plan": "category",
        "left": "category",
    }
    assert spec.data.drop == ["customer_id"]
    assert spec.data.positive_class == frame["left"].value_counts().index[-1]
    assert spec.model.task == "classification"
    assert spec.evaluate.gates == {"roc_auc": ">= 0.55"}


@pytest.mark.parametrize(
    ("data", "target", "gate"),
    [
        ("sklearn://diabetes", "target", {"r2": ">= 0.05"}),
        ("sklearn://iris", "species", {"balanced_accuracy": ">= 0.367"}),
    ],
)
def test_the_gate_suits_the_task(folder: Path, data: str, target: str, gate: object) -> None:
    assert new("bundled", data, target).exit_code == 0
    assert load_pipeline(folder / "pipelines" / "bundled.yaml").evaluate.gates == gate


@pytest.mark.parametrize(
    ("name", "data", "target", "expected"),
    [
        ("Leaving", "customers.csv", "left", "cannot name a pipeline"),
        ("leaving", "custmers.csv", "left", "did you mean 'customers.csv'?"),
        ("leaving", "customers.csv", "lefft", "did you mean 'left'?"),
        ("leaving", "customers.xlsx", "left", "must end with one of"),
        ("leaving", "constant.csv", "left", "the same value in every row"),
        ("leaving", "unlabelled.csv", "left", "left has no value in any row"),
        ("leaving", "ids.csv", "left", "nothing to predict left from (id only tells rows apart)"),
    ],
)
def test_a_mistake_is_explained_and_no_file_is_left(
    folder: Path, name: str, data: str, target: str, expected: str
) -> None:
    (folder / "constant.csv").write_text("age,left\n" + "30,no\n" * 5)
    (folder / "unlabelled.csv").write_text("age,left\n" + "30,\n" * 5)
    ids = "".join(f"{row},{'yes' if row % 2 else 'no'}\n" for row in range(20))
    (folder / "ids.csv").write_text(f"id,left\n{ids}")

    result = new(name, data, target)

    assert result.exit_code == 1
    assert expected in result.output
    assert list((folder / "pipelines").iterdir()) == []


def test_an_existing_pipeline_is_never_overwritten(folder: Path) -> None:
    mine = folder / "pipelines" / "leaving.yml"
    mine.write_text("mine")

    result = new("leaving", "customers.csv", "left")

    assert result.exit_code == 1
    assert str(mine) in result.output
    assert mine.read_text() == "mine"


@given(name=st.text(min_size=1, max_size=30), label=st.text(min_size=1, max_size=10))
@example(name=":", label=": a")  # neither is YAML by itself
@example(name="...", label="a: -")
def test_any_column_and_class_that_can_be_read_can_be_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, label: str
) -> None:
    folder = tmp_path_factory.mktemp("new")
    rows = [{name: "other", "feature ": 1}] * 12 + [{name: label, "feature ": 2}] * 8
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = DataSpec(uri="rows.jsonl", target=name)
    try:
        raw = read(data, folder)
        text = pipeline_text(data, raw)
    except DataError:  # such as a blank label, which is a missing value
        return
    (folder / "made.yaml").write_text(text)

    spec = load_pipeline(folder / "made.yaml")

    assert spec.data.target == name
    assert spec.data.positive_class in set(raw[name])
