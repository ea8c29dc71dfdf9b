"""Days that are, and are not, like the training data: through the job, on a real store."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dagster import AssetKey, AssetMaterialization, DagsterInstance, ExecuteInProcessResult

from mlops_assets.store.champions import Champions
from mlops_assets.store.prune import prune
from mlops_assets.store.reuse import MEMOIZED
from mlops_assets_tests.conftest import Project

DAYS = itertools.count(1)
PIPELINE = """\
data: {uri: customers.csv, target: left, drop: [customer]}
model: {estimator: sklearn.linear_model.LogisticRegression}
evaluate: {metrics: [roc_auc, accuracy]}
score:
  uri: 'inbox/{date}.csv'
  labels: 'labels/{date}.csv'
  start: 2026-01-01
  id: [customer]
"""


def people(rows: int, seed: int, older: float = 0.0) -> pd.DataFrame:
    """Return people of whom the young leave."""
    rng = np.random.default_rng(seed)
    age = np.round(rng.normal(45 + older, 12, rows), 1)
    return pd.DataFrame(
        {
            "customer": [f"c{number:05d}" for number in range(rows)],
            "age": age,
            "plan": rng.choice(["basic", "plus", "trial"], rows, p=[0.6, 0.3, 0.1]),
            "income": np.round(rng.lognormal(10, 0.5, rows)),
            "left": np.where(age + rng.normal(0, 6, rows) < 45 + older, "yes", "no"),
        }
    )


def put(project: Project, name: str, frame: pd.DataFrame) -> Path:
    path = project.folder / "pipelines" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False)
    return path


def arrive(project: Project, day: str, frame: pd.DataFrame) -> None:
    put(project, f"inbox/{day}", frame.drop(columns="left"))


@contextmanager
def configured(project: Project, text: str) -> Iterator[None]:
    """Add a section to the pipeline file for a while."""
    path = project.folder / "pipelines" / "customers.yaml"
    before = path.read_text()
    path.write_text(f"{before}{text}\n")
    try:
        yield
    finally:
        path.write_text(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, _empty_tracking_database: Path) -> Any:
    """A project with a champion of `customers`, for all tests here: each has days of its own."""
    folder = tmp_path_factory.mktemp("drift")
    shutil.copy(_empty_tracking_database, folder / "mlflow.db")
    with DagsterInstance.ephemeral() as instance:
        project = Project(folder, instance)
        project.add("customers", PIPELINE)
        put(project, "customers", people(1500, seed=0))
        assert project.train("customers").success
        yield project


@pytest.fixture
def day() -> str:
    return f"2026-02-{next(DAYS):02d}"


def score(project: Project, day: str, *assets: str) -> ExecuteInProcessResult:
    return (
        project.definitions()
        .resolve_job_def("customers_scoring")
        .execute_in_process(
            instance=project.instance,
            partition_key=day,
            raise_on_error=False,
            asset_selection=[AssetKey(["customers", asset]) for asset in assets] or None,
        )
    )


def drift(result: ExecuteInProcessResult) -> dict[str, Any]:
    assert result.success, why(result)
    return dict(result.output_for_node("customers__drift"))


def why(result: ExecuteInProcessResult) -> str:
    for event in result.get_step_failure_events():
        user = event.step_failure_data.user_failure_data
        return str(user.description if user else event.step_failure_data.error)
    return ""


def checks(result: ExecuteInProcessResult) -> dict[str, tuple[str, str]]:
    """Return "ok", "WARN" or "ERROR", and the description, by name."""
    return {
        one.check_name: ("ok" if one.passed else one.severity.value, one.description or "")
        for one in result.get_asset_check_evaluations()
        if one.asset_key.path == ["customers", "drift"]
    }


def materialization(result: ExecuteInProcessResult, asset: str) -> AssetMaterialization:
    (made,) = [
        event.step_materialization_data.materialization
        for event in result.get_asset_materialization_events()
        if event.asset_key == AssetKey(["customers", asset])
    ]
    return made


# --- shifts -------------------------------------------------------------------------------------


def test_a_day_like_the_training_data_passes_every_check(trained: Project, day: str) -> None:
    arrive(trained, day, people(400, seed=2))
    result = score(trained, day)
    found = drift(result)

    assert found["rows"] == 400
    assert found["reference_rows"] == {"features": 1200, "scores": 300}
    assert {one["column"] for one in found["features"]} == {"age", "plan", "income"}
    assert {one["column"] for one in found["scores"]} == {"probability_yes", "prediction"}
    assert {name: level for name, (level, _) in checks(result).items()} == {
        "features_drift": "ok",
        "score_drift": "ok",
        "realised_metrics": "ok",
    }
    assert checks(result)["realised_metrics"] == ("ok", "no labels yet")


def test_older_people_are_an_error_that_names_age_first(trained: Project, day: str) -> None:
    arrive(trained, day, people(400, seed=1, older=15))
    result = score(trained, day)

    level, text = checks(result)["features_drift"]
    assert level == "ERROR"
    assert text.startswith("1 of 3 columns shifted: age (index ")
    assert checks(result)["score_drift"][0] == "ERROR"
    age = drift(result)["features"][0]
    assert age["column"] == "age"
    assert age["level"] == "error"
    assert age["psi"] > 0.25
    assert age["kolmogorov_smirnov"]["p_value"] < 1e-10


def test_a_category_that_training_never_saw_is_named_with_its_rows(
    trained: Project, day: str
) -> None:
    frame = people(400, seed=2)
    frame.loc[:59, "plan"] = "gold"
    arrive(trained, day, frame)
    result = score(trained, day)

    level, text = checks(result)["features_drift"]
    assert level == "ERROR"
    assert text.endswith("never seen in training: plan 'gold' (60 rows)")
    assert drift(result)["features"][0]["new"] == {
        "rows": 60,
        "categories": 1,
        "examples": ["gold"],
    }


def test_of_many_categories_that_training_never_saw_all_are_counted(
    trained: Project, day: str
) -> None:
    arrive(trained, day, people(300, seed=2).assign(plan=[f"p{n}" for n in range(300)]))

    _, text = checks(score(trained, day))["features_drift"]
    assert text.endswith("'p3', 'p4' and 295 more (300 rows)")


def test_missing_values_where_there_were_none_are_an_error(trained: Project, day: str) -> None:
    frame = people(400, seed=2)
    frame.loc[:99, "income"] = np.nan
    arrive(trained, day, frame)
    result = score(trained, day)

    level, text = checks(result)["features_drift"]
    assert level == "ERROR"
    assert text.startswith("1 of 3 columns shifted: income (index ")
    assert "missing 0.0% → 25.0%, error)" in text


def test_a_small_shift_is_a_warning(trained: Project, day: str) -> None:
    arrive(trained, day, people(3000, seed=1, older=4.5))
    result = score(trained, day)

    assert checks(result)["features_drift"][0] == "WARN"
    assert drift(result)["features"][0]["level"] == "warn"


def test_of_few_rows_nothing_is_said(trained: Project, day: str) -> None:
    arrive(trained, day, people(20, seed=1, older=30))
    result = score(trained, day)

    few = ("ok", "20 rows are too few to tell: at least 100 are needed")
    assert checks(result)["features_drift"] == checks(result)["score_drift"] == few
    assert drift(result)["features"][0]["psi"] > 0.25


def test_the_ui_is_given_figures_and_a_table(trained: Project, day: str) -> None:
    arrive(trained, day, people(400, seed=1, older=15))
    metadata: Mapping[str, Any] = materialization(score(trained, day), "drift").metadata

    for figure in ("stability", "age", "plan", "probability_yes"):
        assert f"![{figure}](data:image/png;base64," in str(metadata["figures"].value)
    records = metadata["columns"].records
    assert [record.data["column"] for record in records][2] == "age"
    assert metadata["largest_feature_psi"].value > 0.25


def test_what_drift_names_must_be_a_feature(trained: Project, day: str) -> None:
    arrive(trained, day, people(200, seed=1))
    with configured(trained, "drift: {ignore: [agee], columns: {plan: {psi: {warn: 0.2}}}}"):
        result = score(trained, day)

    assert not result.success
    assert why(result) == "drift.ignore: the model has no feature agee (did you mean 'age'?)"


def test_limits_of_a_column_and_columns_to_ignore(trained: Project, day: str) -> None:
    arrive(trained, day, people(400, seed=2, older=15).assign(plan="basic"))
    with configured(trained, "drift: {ignore: [age], columns: {plan: {psi: {warn: 0.2}}}}"):
        result = score(trained, day)

    assert {one["column"] for one in drift(result)["features"]} == {"plan", "income"}
    level, text = checks(result)["features_drift"]
    assert level == "WARN"
    assert text.startswith("1 of 2 columns shifted: plan (index ")


# --- labels -------------------------------------------------------------------------------------


def test_labels_that_come_late_change_drift_alone(trained: Project, day: str) -> None:
    frame = people(400, seed=2)
    arrive(trained, day, frame)
    score(trained, day)
    put(trained, f"labels/{day}", frame[["customer", "left"]])
    result = score(trained, day)

    assert MEMOIZED in materialization(result, "predictions").metadata
    assert MEMOIZED not in materialization(result, "drift").metadata
    realised = drift(result)["realised"]
    promoted = Champions(trained.store, "customers").current()
    assert promoted is not None
    assert realised["rows"] == 400
    assert realised["without_label"] == realised["without_answer"] == 0
    assert realised["metrics"]["roc_auc"]["at_promotion"] == promoted.metrics["roc_auc"]
    assert realised["metrics"]["roc_auc"]["now"] == pytest.approx(
        promoted.metrics["roc_auc"], abs=0.05
    )
    assert MEMOIZED in materialization(score(trained, day), "drift").metadata


def test_realised_metrics_are_those_of_scikit_learn(trained: Project, day: str) -> None:
    from sklearn.metrics import accuracy_score, roc_auc_score

    frame = people(300, seed=3)
    arrive(trained, day, frame)
    put(trained, f"labels/{day}", frame[["customer", "left"]].sample(frac=0.5, random_state=0))
    result = score(trained, day)

    predictions = result.output_for_node("customers__predictions")
    joined = trained.store.read(predictions) if hasattr(predictions, "path") else predictions
    joined = pd.DataFrame(joined).merge(
        pd.read_csv(trained.folder / "pipelines" / "labels" / f"{day}.csv"), on="customer"
    )
    metrics = {name: one["now"] for name, one in drift(result)["realised"]["metrics"].items()}
    assert len(joined) == 150
    assert metrics == pytest.approx(
        {
            "roc_auc": roc_auc_score(joined["left"] == "yes", joined["probability_yes"]),
            "accuracy": accuracy_score(joined["left"], joined["prediction"].astype(str)),
        },
        rel=1e-5,
    )


def test_a_model_that_turns_out_worse_than_at_promotion_is_an_error(
    trained: Project, day: str
) -> None:
    frame = people(400, seed=2)
    arrive(trained, day, frame)
    turned = (
        frame["left"].map({"yes": "no", "no": "yes"}).where(frame.index % 3 == 0, frame["left"])
    )
    put(trained, f"labels/{day}", frame.assign(left=turned)[["customer", "left"]])
    limits = "drift: {metrics: {roc_auc: {warn: 0.02, error: 0.05}}}"
    with configured(trained, limits):
        result = score(trained, day)

    level, text = checks(result)["realised_metrics"]
    assert level == "ERROR"
    assert "400 predictions have a label" in text
    assert "(error)" in text
    assert result.success


@pytest.mark.parametrize(
    ("labels", "level", "text"),
    [
        ("customer,left\nc00001,maybe\n", "ERROR", "the class 'maybe'"),
        ("customer,left\nx1,yes\nx2,no\n", "WARN", "0 predictions have a label"),
    ],
)
def test_labels_that_do_not_fit_are_told_and_leave_the_rest_of_the_result(
    trained: Project, day: str, labels: str, level: str, text: str
) -> None:
    arrive(trained, day, people(120, seed=2))
    path = trained.folder / "pipelines" / "labels" / f"{day}.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text(labels)
    result = score(trained, day)

    assert drift(result)["rows"] == 120
    assert checks(result)["features_drift"][0] == "ok"
    found = checks(result)["realised_metrics"]
    assert found[0] == level
    assert text in found[1]


# --- the right reference ------------------------------------------------------------------------


def test_the_reference_is_made_once_for_each_model(trained: Project, day: str) -> None:
    arrive(trained, day, people(200, seed=2))
    score(trained, day)
    records = list((trained.folder / "store" / ".references" / "customers").iterdir())
    changed = [record.stat().st_mtime_ns for record in records]
    another = f"2026-03-{day[-2:]}"
    arrive(trained, another, people(200, seed=2))
    score(trained, another)

    assert len(records) == 1
    assert [record.stat().st_mtime_ns for record in records] == changed


def test_files_that_changed_since_they_were_scored_are_not_compared(
    trained: Project, day: str
) -> None:
    arrive(trained, day, people(200, seed=2))
    score(trained, day, "predictions")
    arrive(trained, day, people(150, seed=2))
    result = score(trained, day, "drift")

    assert not result.success
    assert "materialise customers/predictions of this day again" in why(result)


def test_a_day_is_compared_with_the_model_that_scored_it_after_a_prune_too(
    project: Project,
) -> None:
    project.add("customers", PIPELINE.replace("[roc_auc, accuracy]", "[accuracy]"))
    for seed, older in enumerate((0, 20)):
        put(project, "customers", people(600, seed=seed, older=older))
        assert project.train("customers").success
        arrive(project, f"2026-01-0{seed + 1}", people(300, seed=9, older=older))
        score(project, f"2026-01-0{seed + 1}", "predictions")
    versions = [one.version for one in Champions(project.store, "customers").history()]
    assert len(set(versions)) == 2
    scored = [
        (
            ("customers", "predictions"),
            day,
            project.store.versions(("customers", "predictions"), day),
        )
        for day in ("2026-01-01", "2026-01-02")
    ]
    needed = [(key, day, found[0].version) for key, day, found in scored]
    prune(project.store, keep=0, older_than=timedelta(0), protected=needed)

    first, second = (score(project, f"2026-01-0{day}", "drift") for day in (1, 2))

    assert [drift(first)["model_version"], drift(second)["model_version"]] == versions
    assert checks(first)["features_drift"][0] == checks(second)["features_drift"][0] == "ok"


def test_without_what_the_model_was_trained_on_the_error_says_so(project: Project) -> None:
    project.add("customers", PIPELINE)
    put(project, "customers", people(300, seed=0))
    project.train("customers")
    arrive(project, "2026-01-05", people(200, seed=1))
    score(project, "2026-01-05", "predictions")
    for record in (project.folder / "store" / ".events" / "customers" / "metrics").iterdir():
        record.unlink()
    result = score(project, "2026-01-05", "drift")

    assert not result.success
    assert "was judged on" in why(result)
    assert "mlops run customers --refresh customers/metrics" in why(result)


# --- other kinds of models ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "target", "scores"),
    [
        ("Ridge", "income", {"prediction"}),
        ("LogisticRegression", "rooms", {f"probability_{n}" for n in (1, 2, 3)} | {"prediction"}),
    ],
)
def test_a_regression_and_many_classes_are_watched_too(
    project: Project, estimator: str, target: str, scores: set[str]
) -> None:
    def homes(rows: int, seed: int) -> pd.DataFrame:
        frame = people(rows, seed).drop(columns="left")
        return frame.assign(rooms=1 + (frame["age"] > 40) + (frame["age"] > 52))

    text = PIPELINE.replace("left", target).replace(
        "evaluate: {metrics: [roc_auc, accuracy]}\n", ""
    )
    project.add("customers", text.replace("LogisticRegression", estimator))
    put(project, "customers", homes(600, seed=0))
    assert project.train("customers").success
    day = homes(300, seed=1)
    put(project, "inbox/2026-01-05", day.drop(columns=target))
    put(project, "labels/2026-01-05", day[["customer", target]])
    result = score(project, "2026-01-05")

    found = drift(result)
    assert {one["column"] for one in found["scores"]} == scores
    assert found["realised"]["rows"] == 300
    assert found["realised"]["undefined"] == {}
    assert {level for level, _ in checks(result).values()} == {"ok"}
