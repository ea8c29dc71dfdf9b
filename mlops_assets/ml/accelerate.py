"""Telling an estimator which device to train on, and taking that back when it is trained.

An estimator can use a GPU if it has a parameter `device`, as those of XGBoost have. Which devices
there are is `device`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlops_assets.errors import DeviceError
from mlops_assets.ml.device import Device, Devices, Load, visible_devices, watched
from mlops_assets.ml.estimators import parameters_of
from mlops_assets.spec import ModelSpec
from mlops_assets.wording import shown

CPU, GPU = "cpu", "cuda"


class Used:
    """What a model was trained on."""

    def __init__(self) -> None:
        self.device: Device | None = None
        """None: the processor."""
        self.load = Load()

    @property
    def name(self) -> str:
        """For people: `NVIDIA L4, 23 GiB`, or `processor`."""
        return "processor" if self.device is None else str(self.device)

    @property
    def facts(self) -> dict[str, float]:
        """As of `device.Load`; empty for the processor."""
        return self.load.facts


@contextmanager
def accelerated(estimator: Any, model: ModelSpec) -> Iterator[Used]:
    """Have an estimator fitted on a GPU, if it asks for one and there is one.

    Afterwards the estimator predicts on the processor, and its `device` is what it was, so that
    where a model was trained does not decide where it can be loaded.

    Parameters
    ----------
    estimator
        Unfitted; it is changed in place.
    model
        Asks for a GPU by `compute.gpu`, or itself by the parameter `device`.

    Raises
    ------
    DeviceError
        `compute.gpu` is required, and the estimator cannot be given one.
    """
    used = Used()
    before = parameters_of(estimator).get("device")
    used.device = _choose(estimator, model)
    with watched(used.device) as used.load:
        yield used
    if _is_gpu(parameters_of(estimator).get("device")):
        estimator.set_params(device=CPU)  # a fitted booster of XGBoost follows
        estimator.set_params(device=CPU if _is_gpu(before) else before)


def _choose(estimator: Any, model: ModelSpec) -> Device | None:
    """Tell the estimator what to use; returns the device, None for the processor."""
    asked, own = model.compute.gpus, model.params.get("device")
    if not asked and not _is_gpu(own):
        return None
    devices = visible_devices()
    problem = _problem(estimator, own, devices)
    if problem is None:
        if asked > 1:
            warnings.warn(
                f"model.compute.gpu is {asked}, but a model is trained on one device: the others "
                "are idle",
                stacklevel=2,
            )
        if own is None:
            estimator.set_params(device=GPU)
        return devices.found[_number(own)]
    if model.compute.gpu == "required":
        raise DeviceError(
            f"model.compute.gpu is required, but {problem}; mend that, or write gpu: 1, which "
            "trains on the processor where it has to"
        )
    if asked:
        warnings.warn(
            f"model.compute.gpu is {asked}, but {problem}: trained on the processor", stacklevel=2
        )
        if _is_gpu(own):
            estimator.set_params(device=CPU)
    return None


def _problem(estimator: Any, own: object, devices: Devices) -> str | None:
    """Why an estimator cannot be trained on a GPU."""
    if "device" not in parameters_of(estimator):
        return f"{type(estimator).__name__} cannot use one: it has no parameter 'device'"
    if own is not None and not _is_gpu(own):
        return f"model.params.device is {shown(own)}"
    if not devices.found:
        return f"no NVIDIA device is visible ({devices.why_none})"
    if _number(own) >= len(devices.found):
        return f"model.params.device is {shown(own)}, and {len(devices.found)} are visible"
    xgboost: Any = sys.modules.get("xgboost")
    is_of_xgboost = xgboost is not None and isinstance(estimator, xgboost.XGBModel)
    if is_of_xgboost and not xgboost.build_info()["USE_CUDA"]:
        return "this XGBoost is built without CUDA (xgboost-cpu? the extra [gpu] has xgboost)"
    return None


def _is_gpu(device: object) -> bool:
    return isinstance(device, str) and device.startswith(("cuda", "gpu"))


def _number(device: object) -> int:
    """Of `cuda:1`, 1."""
    number = str(device).partition(":")[2]
    return int(number) if number.isdecimal() else 0
