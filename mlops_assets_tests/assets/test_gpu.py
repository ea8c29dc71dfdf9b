"""A GPU in a pipeline file: what `p/model` says of it, and what becomes of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dagster import ExecuteInProcessResult
from mlflow import MlflowClient

from mlops_assets.store.trusted_types import TRUSTED_TYPES
from mlops_assets_tests.conftest import CUSTOMERS, Project
from mlops_assets_tests.ml.nvml import GIB, Card, install

XGBOOST = CUSTOMERS.replace("sklearn.linear_model.LogisticRegression", "xgboost.XGBClassifier")
XGBOOST = XGBOOST.replace("{max_iter: 500}", "{n_estimators: 5, max_depth: 2}")
OWN = CUSTOMERS.replace("sklearn.linear_model.LogisticRegression", "gpu_model.OnDevice")
OWN = OWN.replace("params: {max_iter: 500}", "compute: {gpu: 1}")
OWN_CODE = """
from sklearn.linear_model import LogisticRegression

class OnDevice(LogisticRegression):
    def __init__(self, device="cpu"):
        super().__init__()
        self.device = device
"""


def metadata(result: ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node("customers__model")
    return {name: value.value for name, value in event.metadata.items()}


def stored(project: Project) -> Path:
    (file,) = (project.folder / "store" / "customers" / "model").iterdir()
    return file


def test_the_device_and_its_load_are_in_the_metadata_and_in_mlflow(
    customers: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    (customers.folder / "pipelines" / "gpu_model.py").write_text(OWN_CODE)
    trusted = (*TRUSTED_TYPES, "gpu_model.OnDevice")
    monkeypatch.setattr("mlops_assets.store.models.TRUSTED_TYPES", trusted)
    install(monkeypatch, Card("GPU-1a", used=[0, 9 * GIB], busy=[71]))
    customers.add("customers", OWN)
    result = customers.train("customers")
    assert result.success
    facts = metadata(result)
    assert facts["device"] == "NVIDIA L4, 23 GiB"
    assert facts["gpu_memory_peak"] == 9 * GIB
    assert facts["gpu_utilization_mean"] == facts["gpu_utilization_max"] == 71
    client = MlflowClient(customers.settings.tracking_uri)
    experiment = client.get_experiment_by_name("customers")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`mlops.device` != ''")
    assert run.data.tags["mlops.device"] == "NVIDIA L4, 23 GiB"
    assert run.data.metrics["gpu_memory_peak"] == 9 * GIB
    assert (
        customers.store.read(customers.store.versions(["customers", "model"])[0])
        .pipeline[-1]
        .device
        == "cpu"
    )


def test_xgboost_goes_through_the_pipeline_and_predicts_from_the_store(
    customers: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    customers.add("customers", XGBOOST)
    result = customers.train("customers")
    assert result.success
    assert metadata(result)["device"] == "processor"
    assert "gpu_memory_peak" not in metadata(result)
    store = customers.store
    model = store.read(store.versions(["customers", "model"])[0])
    train = store.read(store.versions(["customers", "train"])[0])
    assert (model.predict(train) == train["left"]).mean() > 0.8


def test_a_model_without_a_gpu_is_reused_where_one_is_asked_for(
    customers: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    customers.add("customers", XGBOOST)
    assert customers.train("customers").success
    before = stored(customers)
    customers.add("customers", f"{XGBOOST}  compute: {{gpu: required}}\n")
    result = customers.train("customers")  # no device is there: training would fail
    assert result.success
    assert stored(customers) == before


def test_a_required_device_that_is_not_there_ends_the_step_for_good(
    customers: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, broken="Driver Not Loaded")
    customers.add("customers", f"{XGBOOST}  compute: {{gpu: required}}\n")
    result = customers.train("customers")
    assert not result.success
    failure = result.failure_data_for_node("customers__model")
    assert failure is not None
    assert failure.user_failure_data is not None
    assert "model.compute.gpu is required, but no NVIDIA device is visible (NVML: Driver" in str(
        failure.user_failure_data.description
    )
    assert [e for e in result.all_events if e.is_step_up_for_retry] == []
