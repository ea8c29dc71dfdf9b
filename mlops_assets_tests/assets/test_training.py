"""A pipeline from its file to its champion, on a temporary store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, AssetMaterialization, ExecuteInProcessResult, materialize

from mlops_assets.assets import champion
from mlops_assets.assets.champion import EXISTS
from mlops_assets.store.champions import Champions
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets.tracking import MlflowTracking
from mlops_assets_tests.conftest import CUSTOMERS, DUMMY, Project, write_customers


def made(result: ExecuteInProcessResult, key: str) -> AssetMaterialization:
    """Return the materialisation of an asset in a run."""
    (materialization,) = [
        event.step_materialization_data.materialization
        for event in result.all_events
        if event.is_step_materialization and event.asset_key == AssetKey(key.split("/"))
    ]
    return materialization


def metadata(result: ExecuteInProcessResult, key: str) -> dict[str, Any]:
    return {name: value.value for name, value in made(result, key).metadata.items()}


def version(result: ExecuteInProcessResult, key: str) -> str:
    return (made(result, key).tags or {})["dagster/data_version"]


def checks(result: ExecuteInProcessResult) -> dict[str, bool]:
    return {
        f"{check.asset_key.path[-1]}:{check.check_name}": check.passed
        for check in result.get_asset_check_evaluations()
    }


@pytest.fixture
def churn(project: Project) -> ExecuteInProcessResult:
    project.add_shipped("churn")
    result = project.train("churn")
    assert result.success
    return result


def test_the_shipped_churn_pipeline_makes_a_good_champion(
    churn: ExecuteInProcessResult, project: Project
) -> None:
    assert metadata(churn, "churn/metrics")["roc_auc"] >= 0.835
    assert checks(churn) == {
        "raw:declared_rules": True,
        "train:class_balance": True,
        "test:no_overlap": True,
        "test:no_repeated_rows": True,
        "metrics:gate_roc_auc": True,
        "champion:champion_exists": True,
    }
    champion = Champions(project.store, "churn").current()
    assert champion is not None
    assert champion.version == version(churn, "churn/model") == version(churn, "churn/champion")
    assert champion.metrics["roc_auc"] >= 0.835


def test_every_artefact_lies_where_its_version_says(
    churn: ExecuteInProcessResult, project: Project
) -> None:
    for stage, extension in {
        "raw": "parquet",
        "train": "parquet",
        "test": "parquet",
        "model": "skops",
        "metrics": "json",
        "champion": "skops",
    }.items():
        name = f"{version(churn, f'churn/{stage}')}.{extension}"
        assert (project.folder / "store" / "churn" / stage / name).is_file()


def test_the_ui_is_given_schema_preview_figures_and_a_model_card(
    churn: ExecuteInProcessResult,
) -> None:
    raw, metrics = metadata(churn, "churn/raw"), metadata(churn, "churn/metrics")

    assert raw["dagster/row_count"] == 7043
    assert raw["missing_values"] == {"total_charges": 11}
    types = {column.name: column.type for column in raw["dagster/column_schema"].columns}
    assert len(types) == 20
    assert len(raw["preview"].records) == 5
    assert metrics["model_card"].startswith("#")
    for figure in ("roc", "confusion_matrix", "feature_importance"):
        assert f"![{figure}](data:image/png;base64," in metrics["figures"]


def test_the_metrics_artefact_is_what_the_figures_are_drawn_from(
    churn: ExecuteInProcessResult, project: Project
) -> None:
    path = (
        project.folder / "store" / "churn" / "metrics" / f"{version(churn, 'churn/metrics')}.json"
    )
    evaluation = json.loads(path.read_text())

    assert evaluation["metrics"]["roc_auc"] == metadata(churn, "churn/metrics")["roc_auc"]
    assert evaluation["rows"] == 1409


def test_training_again_gives_the_very_same_versions(customers: Project) -> None:
    first, second = customers.train("customers"), customers.train("customers", refresh="true")

    for stage in ("raw", "train", "test", "model", "metrics", "champion"):
        key = f"customers/{stage}"
        assert version(first, key) == version(second, key)
        files = list((customers.folder / "store" / "customers" / stage).iterdir())
        assert len(files) == 1


def test_raw_is_recorded_with_what_lay_at_the_source_when_it_was_read(customers: Project) -> None:
    def seen() -> str:
        tags = made(customers.train("customers", "raw"), "customers/raw").tags or {}
        return tags["dagster/input_data_version/customers/source"]

    first, again = seen(), seen()
    write_customers(customers.folder / "pipelines" / "customers.csv", rows=90)
    changed = seen()

    assert first == again != changed


def test_the_same_champion_is_not_promoted_twice(customers: Project) -> None:
    first = customers.train("customers")
    second = customers.train("customers", refresh="true")

    assert metadata(second, "customers/champion")["promoted_by_run"] == first.run_id
    assert len(Champions(customers.store, "customers").history()) == 1


def test_a_worse_model_is_kept_and_does_not_become_champion(customers: Project) -> None:
    first = customers.train("customers")
    customers.add("customers", DUMMY)
    second = customers.train("customers")

    assert second.success
    assert version(second, "customers/model") != version(first, "customers/model")
    assert version(second, "customers/champion") == version(first, "customers/champion")
    facts = metadata(second, "customers/champion")
    assert "against the champion's" in facts["reason"]
    assert "95 % interval" in facts["reason"]
    assert facts["lower"] < facts["difference"] < facts["upper"] < 0
    assert facts["resamples"] + facts["undefined_resamples"] == 1000
    assert facts["comparison"].startswith("![promotion](data:image/png;base64,")
    (check,) = second.get_asset_check_evaluations()[-1:]
    assert check.check_name == EXISTS
    assert check.metadata["difference"].value == facts["difference"]


def test_a_champion_that_another_run_promotes_meanwhile_is_the_one_that_is_recorded(
    customers: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = customers.train("customers")
    customers.add("customers", CUSTOMERS.replace("500", "400"))
    champions = Champions(customers.store, "customers")
    draw = champion._figures

    def promote_the_first_again(decision: Any) -> Any:
        """What another run does while this one draws the comparison that has promoted its model."""
        current = champions.current()
        facts = {"metrics": {}, "reason": "", "run_id": "other", "at": champion.now()}
        champions.promote(version(first, "customers/model"), expected=current, **facts)
        return draw(decision)

    monkeypatch.setattr(champion, "_figures", promote_the_first_again)
    second = customers.train("customers")

    assert [one.run_id for one in champions.history()] == [first.run_id, second.run_id, "other"]
    facts = metadata(second, "customers/champion")
    assert version(second, "customers/champion") == version(first, "customers/model")
    assert (facts["promotion"], facts["promoted_by_run"]) == (3, "other")


@pytest.mark.parametrize("least", [0.0, 0.001])
def test_an_equally_good_model_is_promoted_unless_it_must_be_better(
    customers: Project, least: float
) -> None:
    promote = f"promote: {{by: roc_auc, min_improvement: {least}}}\n"
    customers.add("customers", CUSTOMERS + promote)
    first = customers.train("customers")
    customers.add("customers", CUSTOMERS.replace("500", "400") + promote)
    second = customers.train("customers")

    facts = metadata(second, "customers/champion")
    kept = second if least == 0 else first
    assert facts["difference"] == facts["lower"] == facts["upper"] == 0
    assert version(second, "customers/champion") == version(kept, "customers/model")
    assert ("at least 0.001 better was asked for" in facts["reason"]) is (least > 0)


def test_a_model_below_its_gate_is_kept_reported_and_never_promoted(customers: Project) -> None:
    customers.add("customers", CUSTOMERS + "evaluate: {gates: {accuracy: '>= 0.999'}}\n")
    result = customers.train("customers")

    assert result.success
    assert checks(result)["metrics:gate_accuracy"] is False
    assert checks(result)[f"champion:{EXISTS}"] is False
    assert Champions(customers.store, "customers").current() is None
    assert result.asset_materializations_for_node("customers__champion") == []
    assert (customers.folder / "store" / "customers" / "model").is_dir()


def test_a_champion_that_does_not_fit_the_new_data_gives_way(customers: Project) -> None:
    customers.train("customers")
    data = customers.folder / "pipelines" / "customers.csv"
    data.write_text(data.read_text().replace("age,plan,left", "years,plan,left"))
    result = customers.train("customers")

    facts = metadata(result, "customers/champion")
    assert facts["promoted_by_run"] == result.run_id
    assert "cannot be judged" in facts["reason"]
    assert "age" in facts["reason"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"?")])
def test_a_champion_that_is_lost_or_damaged_is_restored_from_its_model(
    customers: Project, damage: Callable[[Path], None]
) -> None:
    first = customers.train("customers")
    (held,) = (customers.folder / "store" / "customers" / "champion").iterdir()
    intact = held.read_bytes()
    damage(held)
    customers.add("customers", DUMMY)
    second = customers.train("customers")

    assert second.success
    assert version(second, "customers/champion") == version(first, "customers/champion")
    assert held.read_bytes() == intact


def test_a_champion_that_cannot_be_restored_gives_way(customers: Project) -> None:
    customers.train("customers")
    for stage in ("champion", "model"):
        (held,) = (customers.folder / "store" / "customers" / stage).iterdir()
        held.unlink()
    customers.add("customers", DUMMY)
    result = customers.train("customers")
    facts = metadata(result, "customers/champion")

    assert facts["promoted_by_run"] == result.run_id
    assert "is missing or damaged under both" in facts["reason"]


def test_a_step_reads_the_version_that_was_recorded_although_a_later_one_exists(
    customers: Project,
) -> None:
    first = customers.train("customers")
    data = customers.folder / "pipelines" / "customers.csv"
    write_customers(data, rows=90)
    customers.train("customers", "raw")
    write_customers(data, rows=120)
    again = customers.train("customers", "raw")
    split = customers.train("customers", "train", "test")

    assert version(again, "customers/raw") == version(first, "customers/raw")
    assert version(split, "customers/train") == version(first, "customers/train")


def test_code_beside_the_pipeline_file_can_make_the_features(customers: Project) -> None:
    (customers.folder / "pipelines" / "own_features_of_customers.py").write_text(
        "from sklearn.compose import make_column_transformer\n"
        "from sklearn.preprocessing import StandardScaler\n"
        "def age_only(frame):\n"
        "    return make_column_transformer((StandardScaler(), ['age']))\n"
    )
    customers.add("customers", CUSTOMERS + "  features: own_features_of_customers:age_only\n")
    result = customers.train("customers")

    assert result.success
    model = result.output_for_node("customers__model")
    trained = customers.store.read(customers.store.find(model.key, model.version))
    assert trained.pipeline[-1].n_features_in_ == 1


def test_the_assets_run_in_a_unit_test_with_materialize(customers: Project) -> None:
    definitions = customers.definitions()
    result = materialize(
        [asset for asset in definitions.assets or () if not hasattr(asset, "group_name")],
        instance=customers.instance,
        resources={
            "store": StoreIOManager(url=f"memory://{customers.folder.name}"),
            "mlflow": MlflowTracking(mlflow_tracking_uri=customers.settings.tracking_uri),
        },
        selection="key:customers/raw+",
    )

    assert result.success
    frame = result.asset_value(AssetKey(["customers", "train"]))
    assert len(frame) == 96


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("", "empty"),
        ("age,plan\n1,a\n", "left"),
        ("age,plan,left\n" + "1,a,yes\n" * 20, "class"),
        ("age,plan,left\n1,a,yes\n", "row"),
        ("age,age,left\n1,a,yes\n2,b,no\n", "age"),
        ("age,plan,left\n" + "1,a,yes\ninf,b,no\n" * 20, "infinite"),
        ("age,plan,left\n" + ",a,yes\n,b,no\n" * 20, None),
    ],
    ids=["empty", "no target", "one class", "one row", "twice", "infinite", "all missing"],
)
def test_a_mistake_in_the_data_fails_once_with_a_reason_or_is_coped_with(
    customers: Project, data: str, said: str | None
) -> None:
    (customers.folder / "pipelines" / "customers.csv").write_text(data)
    result = customers.train("customers")

    retries = [event for event in result.all_events if event.is_step_up_for_retry]
    assert retries == []
    if said is None:
        assert result.success
        return
    (failure,) = [
        event.step_failure_data
        for event in result.all_events
        if event.is_step_failure
        and event.step_failure_data.error
        and "Failure" in event.step_failure_data.error.cls_name
    ]
    assert failure.user_failure_data is not None
    assert said in (failure.user_failure_data.description or "")


def test_rows_that_are_repeated_in_both_sets_are_warned_of(customers: Project) -> None:
    data = customers.folder / "pipelines" / "customers.csv"
    header, *rows = data.read_text().splitlines()
    data.write_text("\n".join([header, *rows, *rows, *rows]))

    assert (
        checks(customers.train("customers", "raw", "train", "test"))["test:no_repeated_rows"]
        is False
    )


def test_what_a_library_warns_of_is_in_the_log_of_the_step(
    customers: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    customers.add("customers", CUSTOMERS.replace("{max_iter: 500}", "{max_iter: 1}"))
    customers.train("customers")

    logged = [line for line in capfd.readouterr().err.splitlines() if "failed to converge" in line]
    assert len(logged) == 1
    assert "customers__model" in logged[0]


def test_a_broken_rule_stops_the_pipeline_and_names_rows(customers: Project) -> None:
    customers.add(
        "customers",
        CUSTOMERS.replace("target: left", "target: left\n  checks: {between: {age: [0, 60]}}"),
    )
    result = customers.train("customers")

    assert not result.success
    (evaluation,) = result.get_asset_check_evaluations()
    assert not evaluation.passed
    assert evaluation.blocking
    assert "age" in (evaluation.description or "")
    assert result.asset_materializations_for_node("customers__split") == []


def test_a_damaged_object_is_named_and_not_retried(customers: Project) -> None:
    first = customers.train("customers")
    path = customers.folder / "store" / "customers" / "train"
    (damaged,) = path.iterdir()
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    result = customers.train("customers", "model", refresh="customers/model")

    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert str(damaged) in str(failure.step_failure_data)
    assert [event for event in result.all_events if event.is_step_up_for_retry] == []

    healed = customers.train("customers", "train", "test", "model")
    assert healed.success
    assert version(healed, "customers/train") == version(first, "customers/train")


def test_a_source_that_vanishes_while_it_is_read_costs_the_memory_and_not_the_step(
    customers: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlops_assets.ml import read as reading

    data = customers.folder / "pipelines" / "customers.csv"
    read = reading.read

    def read_and_remove(*args: Any) -> Any:
        frame = read(*args)
        data.unlink()
        return frame

    monkeypatch.setattr(reading, "read", read_and_remove)
    result = customers.train("customers", "raw")

    assert result.success
    assert not (customers.folder / "store" / ".memo").exists()


def test_data_that_change_while_they_are_read_are_not_remembered_as_what_they_were(
    customers: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlops_assets.ml import read as reading

    data = customers.folder / "pipelines" / "customers.csv"
    before, read = data.read_bytes(), reading.read

    def change_and_read(*args: Any) -> Any:
        write_customers(data, rows=90)
        return read(*args)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read", change_and_read)
        assert customers.train("customers", "raw").success
    data.write_bytes(before)

    assert (
        metadata(customers.train("customers", "raw"), "customers/raw")["dagster/row_count"] == 120
    )
