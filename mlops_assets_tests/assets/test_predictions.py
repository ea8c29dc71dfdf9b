"""Scoring a day's files: what is written, what is reused, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dagster import AssetKey, AssetMaterialization, ExecuteInProcessResult

from mlops_assets.assets.predictions import INBOX
from mlops_assets.store.reuse import MEMOIZED, REFRESH
from mlops_assets_tests.conftest import CUSTOMERS, Project, train_once

DAY, NEXT = "2026-01-05", "2026-01-06"
SCORE = "score: {uri: 'inbox/{date}/*.csv', start: 2026-01-01}\n"
WITH_ID = "score: {uri: 'inbox/{date}/*.csv', start: 2026-01-01, id: [customer]}\n"


def put(project: Project, name: str, text: str) -> Path:
    path = project.folder / "pipelines" / "inbox" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def score(project: Project, day: str = DAY, refresh: bool = False) -> ExecuteInProcessResult:
    job = project.definitions().resolve_job_def("customers_scoring")
    return job.execute_in_process(
        instance=project.instance,
        partition_key=day,
        raise_on_error=False,
        tags={REFRESH: "true"} if refresh else None,
        asset_selection=[AssetKey(["customers", "predictions"])],
    )


def made(result: ExecuteInProcessResult) -> AssetMaterialization:
    assert result.success, why(result)
    [event] = result.get_asset_materialization_events()
    return event.step_materialization_data.materialization


def why(result: ExecuteInProcessResult) -> str:
    data = result.failure_data_for_node("customers__predictions")
    assert data is not None
    if data.user_failure_data is not None:
        return data.user_failure_data.description or ""
    return str(data.error)


def version(result: ExecuteInProcessResult) -> str:
    return (made(result).tags or {})["dagster/data_version"]


def is_reuse(result: ExecuteInProcessResult) -> bool:
    return MEMOIZED in made(result).metadata


def frame(project: Project, result: ExecuteInProcessResult, day: str = DAY) -> Any:
    store = project.store
    return store.read(store.find(["customers", "predictions"], version(result), day))


@pytest.fixture
def trained(customers: Project, trained_store: Path) -> Project:
    customers.add("customers", CUSTOMERS + SCORE)
    train_once(customers, trained_store)
    return customers


def test_a_day_is_scored_row_by_row_with_the_champion_that_did_it(trained: Project) -> None:
    put(trained, f"{DAY}/b.csv", "age,plan\n25,basic\n")
    put(trained, f"{DAY}/a.csv", "age,plan\n60,plus\n,basic\n")
    result = score(trained)
    found = frame(trained, result)

    assert list(found) == ["source_file", "row", "prediction", "probability_yes", "model_version"]
    assert found["source_file"].tolist() == [f"{DAY}/a.csv"] * 2 + [f"{DAY}/b.csv"]
    assert found["row"].tolist() == [0, 1, 0]
    assert found["prediction"].tolist()[::2] == ["no", "yes"]
    assert ((found["probability_yes"] > 0.5) == (found["prediction"] == "yes")).all()
    [champion] = trained.store.versions(["customers", "champion"])
    assert set(found["model_version"]) == {champion.version}
    metadata = {name: value.value for name, value in made(result).metadata.items()}
    assert metadata["dagster/row_count"] == 3
    assert metadata["files"] == 2
    assert metadata["model_version"] == champion.version
    assert metadata["share_no"] + metadata["share_yes"] == 1
    assert len((made(result).tags or {})[INBOX]) == 16


def test_the_predictions_are_those_of_the_model_itself(trained: Project) -> None:
    asked = pd.DataFrame({"age": range(20, 70), "plan": ["basic", "plus"] * 25})
    path = put(trained, f"{DAY}/a.csv", "")
    asked[["plan", "age"]].to_csv(path, index=False)
    found = frame(trained, score(trained))
    [champion] = trained.store.versions(["customers", "champion"])
    model = trained.store.read(champion)

    assert found["prediction"].tolist() == model.predict(asked).tolist()
    assert found["probability_yes"].tolist() == model.predict_proba(asked)["yes"].tolist()


# --- reuse --------------------------------------------------------------------------------------


def test_a_day_is_scored_once_and_reused_until_its_files_change(trained: Project) -> None:
    put(trained, f"{DAY}/a.csv", "age,plan\n25,basic\n")
    put(trained, f"{NEXT}/a.csv", "age,plan\n25,basic\n")
    first, other = score(trained), score(trained, NEXT)
    again = score(trained)
    assert not is_reuse(first)
    assert is_reuse(again)
    assert version(first) == version(again)
    assert (made(again).tags or {})[INBOX] == (made(first).tags or {})[INBOX]

    put(trained, f"{DAY}/late.csv", "age,plan\n60,basic\n")
    late = score(trained)
    assert not is_reuse(late)
    assert len(frame(trained, late)) == 2
    assert is_reuse(score(trained, NEXT))
    assert version(other) != version(first), "the name of a row's file has its day in it"


def test_scoring_again_gives_the_very_same_object(trained: Project) -> None:
    put(trained, f"{DAY}/a.csv", "age,plan\n25,basic\n60,plus\n")
    first, second = score(trained), score(trained, refresh=True)
    assert not is_reuse(second)
    assert version(first) == version(second)
    assert len(trained.store.versions(["customers", "predictions"], DAY)) == 1


def test_a_new_champion_makes_other_predictions(trained: Project) -> None:
    put(trained, f"{DAY}/a.csv", "age,plan\n25,basic\n60,plus\n")
    first = score(trained)
    trained.add("customers", CUSTOMERS.replace("500", "500, C: 0.5") + SCORE)
    assert trained.train("customers").success
    assert version(score(trained)) != version(first)


# --- ids ----------------------------------------------------------------------------------------


def test_ids_are_copied_as_they_are_written_and_repeated_ones_are_a_warning(
    trained: Project,
) -> None:
    trained.add("customers", CUSTOMERS + WITH_ID)
    put(trained, f"{DAY}/a.csv", "customer,age,plan\n007,25,basic\n8,60,plus\n007,61,plus\n")
    result = score(trained)
    found = frame(trained, result)

    assert list(found)[:2] == ["customer", "prediction"]
    assert found["customer"].tolist() == ["007", "8", "007"]
    [check] = result.get_asset_check_evaluations()
    assert not check.passed
    assert check.severity.value == "WARN"
    assert "1 of 3 rows" in (check.description or "")

    put(trained, f"{DAY}/a.csv", "customer,age,plan\n007,25,basic\n8,60,plus\n")
    [check] = score(trained).get_asset_check_evaluations()
    assert check.passed


# --- what is refused ----------------------------------------------------------------------------


def test_a_day_without_files_says_so_and_is_not_tried_again(trained: Project) -> None:
    put(trained, f"{DAY}/.a.csv", "age,plan\n25,basic\n")
    result = score(trained)
    assert f"no file matches inbox/{DAY}/*.csv for {DAY}" in why(result)
    assert not any(event.is_step_up_for_retry for event in result.all_events)


def test_without_a_champion_scoring_says_what_is_missing(customers: Project) -> None:
    customers.add("customers", CUSTOMERS + SCORE)
    put(customers, f"{DAY}/a.csv", "age,plan\n25,basic\n")
    assert "customers/champion has never been materialised" in why(score(customers))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("age\n25\n", ["lacks the column plan that the model was trained on"]),
        ("Age,plan\n25,basic\n", ["lacks the column age (did you mean 'Age'?)"]),
        ("age,plan,city\n25,basic,Rome\n", ["not trained on: city", "score.id"]),
        ("age,plan\n25,basic\nabc,basic\n", ["column age is not a number", "'abc' in row 1"]),
        ("age,plan\n1e200,basic\n", ["column age is infinite or beyond"]),
        ("age,plan\n25,basic,1\n", ["row 0 has 3 values"]),
        ("age,plan\n", ["there is no row in"]),
        ("", ["is empty"]),
        ("PAR1", ["is not what its name says: it is a Parquet file"]),
    ],
)
def test_a_bad_file_fails_its_day_by_name_and_leaves_nothing(
    trained: Project, text: str, told: list[str]
) -> None:
    put(trained, f"{NEXT}/a.csv", "age,plan\n25,basic\n")
    good = score(trained, NEXT)
    put(trained, f"{DAY}/bad.csv", text)
    if text != "age,plan\n":
        put(trained, f"{DAY}/good.csv", "age,plan\n25,basic\n")
    result = score(trained)

    message = why(result)
    assert all(part in message for part in [*told, f"{DAY}/bad.csv"]), message
    assert not any(event.is_step_up_for_retry for event in result.all_events)
    assert trained.store.versions(["customers", "predictions"], DAY) == []
    assert not list((trained.folder / "store").rglob(".tmp-*"))
    assert version(score(trained, NEXT)) == version(good)


def test_the_target_and_dropped_columns_may_be_in_the_files(trained: Project) -> None:
    put(trained, f"{DAY}/a.csv", "age,plan,left\n25,basic,yes\n60,plus,\n")
    assert "left" not in frame(trained, score(trained))
