"""What an estimator is told to train on, and what is left of that in the model."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost

from mlops_assets.errors import DeviceError, ModelError
from mlops_assets.ml.device import visible_devices
from mlops_assets.ml.model import TrainedModel
from mlops_assets.ml.train import train_and_tell
from mlops_assets.ml.tune import run_trial
from mlops_assets.spec import ModelSpec, PipelineSpec

from .nvml import GIB, Card, install

RECORDING = '''
from sklearn.base import ClassifierMixin
from sklearn.tree import DecisionTreeClassifier


class Recording(DecisionTreeClassifier):
    """A tree that keeps what it was told, as estimators that use a GPU are told it."""

    told = []

    def __init__(self, device=None, *, random_state=None, breaks=""):
        super().__init__(random_state=random_state)
        self.device = device
        self.breaks = breaks

    def fit(self, X, y):
        self.told.append(self.device)
        if self.breaks:
            raise ValueError(self.breaks)
        return super().fit(X, y)
'''
LOGISTIC = "sklearn.linear_model.LogisticRegression"
XGB = "xgboost.XGBClassifier"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What `acc_recording.Recording` was told, each time it was fitted."""
    (tmp_path / "acc_recording.py").write_text(RECORDING)
    monkeypatch.syspath_prepend(tmp_path)
    import acc_recording  # type: ignore[import-not-found]

    yield acc_recording.Recording.told
    sys.modules.pop("acc_recording")


def spec(gpu: int | str, estimator: str = "acc_recording.Recording", **params: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {"estimator": estimator, "params": params, "compute": {"gpu": gpu}}
    )


def trained(
    frame: pd.DataFrame, model: ModelSpec
) -> tuple[TrainedModel, str, dict[str, float], list[str]]:
    """Train; returns the model, what it was trained on with the facts, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made, used = train_and_tell(frame, model, target="level", drop=["amount"])
    return made, used.name, used.facts, [str(one.message) for one in caught]


def test_a_device_is_used_and_named_and_the_estimator_is_on_the_processor_again(
    mixed: pd.DataFrame, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = install(monkeypatch, Card("GPU-1a", used=[0, 9 * GIB], busy=[71]))
    model, name, facts, warned = trained(mixed, spec(1))
    assert told == ["cuda"]
    assert model.pipeline[-1].device is None
    assert name == "NVIDIA L4, 23 GiB"
    assert facts == {
        "gpu_memory_peak": 9 * GIB,
        "gpu_utilization_mean": 71,
        "gpu_utilization_max": 71,
    }
    assert warned == []
    assert nvml.open == 0


def test_a_required_device_is_used_too(
    mixed: pd.DataFrame, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Card("GPU-1a"))
    assert trained(mixed, spec("required"))[1] == "NVIDIA L4, 23 GiB"
    assert told == ["cuda"]


def test_nobody_looks_for_a_device_that_is_not_asked_for(
    mixed: pd.DataFrame, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = install(monkeypatch, Card("GPU-1a"))
    monkeypatch.setattr(nvml, "nvmlInit", None)
    _, name, facts, warned = trained(mixed, spec(0))
    assert (told, name, facts, warned) == ([None], "processor", {}, [])


def test_without_a_device_it_is_trained_on_the_processor_with_a_warning(
    mixed: pd.DataFrame, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, broken="Driver Not Loaded")
    _, name, facts, warned = trained(mixed, spec(1))
    assert (told, name, facts) == ([None], "processor", {})
    assert warned == [
        "model.compute.gpu is 1, but no NVIDIA device is visible (NVML: Driver Not Loaded): "
        "trained on the processor"
    ]


def test_a_required_device_that_is_not_there_is_an_error_that_says_what_was_looked_for(
    mixed: pd.DataFrame, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, broken="Driver Not Loaded")
    with pytest.raises(DeviceError, match=r"gpu is required, but no NVIDIA.*Driver Not Loaded"):
        trained(mixed, spec("required"))
    assert told == []


def test_an_estimator_without_the_parameter_cannot_use_a_device(
    mixed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Card("GPU-1a"))
    _, name, _, warned = trained(mixed, spec(1, LOGISTIC, max_iter=1000))
    assert name == "processor"
    assert "LogisticRegression cannot use one: it has no parameter 'device'" in warned[0]
    with pytest.raises(DeviceError, match="LogisticRegression cannot use one"):
        trained(mixed, spec("required", LOGISTIC))


@pytest.mark.parametrize(("own", "number"), [("cuda", 0), ("cuda:1", 1), ("gpu", 0)])
def test_the_users_own_device_is_kept_for_training_and_not_in_the_model(
    own: str, number: int, mixed: pd.DataFrame, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = [Card("GPU-1a"), Card("GPU-2b", "NVIDIA A100", 80 * GIB)]
    install(monkeypatch, *cards)
    for gpu in (0, 1):
        model, name, _, warned = trained(mixed, spec(gpu, device=own))
        assert told.pop() == own
        assert model.pipeline[-1].device == "cpu"
        assert name.startswith(cards[number].name)
        assert warned == []


def test_the_users_own_device_gives_way_where_there_is_none(
    mixed: pd.DataFrame, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    _, name, _, warned = trained(mixed, spec(1, device="cuda"))
    assert (told, name) == (["cpu"], "processor")
    assert "no NVIDIA device is visible" in warned[0]


@pytest.mark.parametrize(
    ("own", "words"), [("cpu", "device is 'cpu'"), ("cuda:4", "'cuda:4', and 1 are visible")]
)
def test_a_device_that_contradicts_what_is_asked_for_is_explained(
    own: str,
    words: str,
    mixed: pd.DataFrame,
    told: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, Card("GPU-1a"))
    _, name, _, warned = trained(mixed, spec(2, device=own))
    assert (told, name) == (["cpu"], "processor")
    assert words in warned[0]
    with pytest.raises(DeviceError, match=words):
        trained(mixed, spec("required", device=own))


def test_one_of_several_devices_is_used_and_that_is_said(
    mixed: pd.DataFrame, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Card("GPU-1a"), Card("GPU-2b", "NVIDIA A100"))
    _, name, _, warned = trained(mixed, spec(2))
    assert (told, name) == (["cuda"], "NVIDIA L4, 23 GiB")
    assert "gpu is 2, but a model is trained on one device" in warned[0]


def test_a_failure_of_the_device_may_pass_and_is_not_blamed_on_the_parameters(
    mixed: pd.DataFrame, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = install(monkeypatch, Card("GPU-1a"))
    for message in ("x.cuh:1: cudaErrorMemoryAllocation: out of memory", "CUDA error: ECC"):
        with pytest.raises(ValueError, match=message) as error:
            trained(mixed, spec(1, breaks=message))
        assert not isinstance(error.value, ModelError)
    with pytest.raises(ModelError, match="not today"):
        trained(mixed, spec(1, breaks="not today"))
    assert nvml.open == 0


def test_trials_use_the_device_as_the_model_does(
    mixed: pd.DataFrame, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Card("GPU-1a"))
    trial = run_trial(0, mixed, tuned(1), [])
    assert trial.state == "complete"
    assert told == ["cuda"] * 3


def test_a_trial_without_its_required_device_is_not_a_failed_trial(
    mixed: pd.DataFrame, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    with pytest.raises(DeviceError, match="gpu is required"):
        run_trial(0, mixed, tuned("required"), [])
    assert told == []


def tuned(gpu: int | str) -> PipelineSpec:
    return PipelineSpec.model_validate(
        {
            "name": "mixed",
            "data": {"uri": "mixed.csv", "target": "level", "drop": ["amount"]},
            "model": {"estimator": "acc_recording.Recording", "compute": {"gpu": gpu}},
            "tune": {"trials": 1, "folds": 3, "space": {"random_state": [1, 2]}},
            "evaluate": {"metrics": ["accuracy"]},
        }
    )


# ------------------------------------------------------------------------------------ XGBoost ----


def test_xgboost_is_trained_on_the_processor_where_there_is_no_device(
    mixed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    model, name, _, warned = trained(mixed, spec(1, XGB, n_estimators=5))
    assert name == "processor"
    assert len(warned) == 1
    assert (model.predict(mixed) == mixed["level"].astype(str)).mean() > 0.7


def test_xgboost_without_cuda_says_so_where_there_is_a_device(
    mixed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Card("GPU-1a"))
    monkeypatch.setattr(xgboost, "build_info", lambda: {"USE_CUDA": False})
    _, name, _, warned = trained(mixed, spec(1, XGB, n_estimators=2))
    assert name == "processor"
    assert len(warned) == 1
    assert "this XGBoost is built without CUDA" in warned[0]
    with pytest.raises(DeviceError, match="built without CUDA"):
        trained(mixed, spec("required", XGB))


def test_xgboost_with_cuda_is_told_to_use_it_and_its_booster_follows_back_to_the_processor(
    mixed: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def set_params(self: xgboost.XGBClassifier, **params: Any) -> Any:
        told.append((params, self.__sklearn_is_fitted__()))
        return xgboost.XGBModel.set_params(self, **params)

    install(monkeypatch, Card("GPU-1a"))
    monkeypatch.setattr(xgboost, "build_info", lambda: {"USE_CUDA": True})
    monkeypatch.setattr(xgboost.XGBClassifier, "set_params", set_params)
    # XGBoost itself falls back to the processor where there is no device in truth
    model, name, _, _ = trained(mixed, spec(1, XGB, n_estimators=2, random_state=1))
    assert told == [
        ({"device": "cuda"}, False),
        ({"device": "cpu"}, True),
        ({"device": None}, True),
    ]
    assert name == "NVIDIA L4, 23 GiB"
    assert '"device":"cpu"' in model.pipeline[-1].get_booster().save_config()


def test_xgboost_is_given_the_seed_of_the_pipeline(mixed: pd.DataFrame) -> None:
    model, *_ = trained(mixed, spec(0, XGB, n_estimators=1))
    assert model.pipeline[-1].random_state == 42
    model, *_ = trained(mixed, spec(0, XGB, n_estimators=1, random_state=7))
    assert model.pipeline[-1].random_state == 7


@pytest.mark.skipif(
    not visible_devices().found or not xgboost.build_info()["USE_CUDA"],
    reason=f"needs a GPU and XGBoost with CUDA; {visible_devices().why_none or 'no CUDA'}",
)
def test_a_real_device_trains_a_model_that_predicts_the_same_on_the_processor(
    tmp_path: Path,
) -> None:
    from mlops_assets.store.models import SkopsCodec

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"x{i}": rng.normal(size=200_000) for i in range(20)})
    frame["level"] = np.where(frame["x0"] + frame["x1"] ** 2 > 1, "high", "low")
    frame["amount"] = 0.0
    model, name, facts, warned = trained(frame, spec("required", XGB, n_estimators=300))
    assert name == str(visible_devices().found[0])
    assert warned == []
    assert 0 < facts["gpu_memory_peak"] <= visible_devices().found[0].memory
    assert facts.get("gpu_utilization_max", 1) > 0
    with (tmp_path / "model.skops").open("wb") as file:
        SkopsCodec().write(model, file)
    back = SkopsCodec().read(tmp_path / "model.skops", None)
    assert (back.predict(frame) == frame["level"]).mean() > 0.95
    assert '"device":"cpu"' in back.pipeline[-1].get_booster().save_config()
    np.testing.assert_allclose(back.predict_proba(frame), model.predict_proba(frame), rtol=1e-5)
