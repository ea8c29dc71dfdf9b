"""The NVIDIA devices of this process, and how busy one is meanwhile: what NVML tells.

Nothing here raises where there is no device, no driver or no NVML: the answer then says why. What
an estimator is told to use is `accelerate`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

_GIB = 1024**3
_NOTHING_FOR_CONTAINERS = ("", "none", "void")
_NUMBER = re.compile(r"\s*\+?(\d+)")


@dataclass(frozen=True)
class Device:
    """A device, or a part of one (MIG), that CUDA would use."""

    name: str
    """As in NVIDIA L4."""
    memory: int
    """Bytes."""
    index: int
    """Of NVML, whatever CUDA_VISIBLE_DEVICES says."""
    uuid: str
    driver: str
    """Version."""

    def __str__(self) -> str:
        """Return its name and memory, for people."""
        return f"{self.name}, {self.memory / _GIB:.0f} GiB"


@dataclass(frozen=True)
class Devices:
    """What a look for devices has found."""

    found: tuple[Device, ...] = ()
    """In CUDA's order, as far as NVML knows it: the first one is `cuda:0`."""
    why_none: str = ""


def visible_devices() -> Devices:
    """Look for the NVIDIA devices that this process may use.

    CUDA_VISIBLE_DEVICES counts as for CUDA: numbers or beginnings of UUIDs, up to the first one
    that is not there; none at all if one is named twice. NVIDIA_VISIBLE_DEVICES only explains why a
    container has none: "void" is also what it says where devices come by CDI
    (NVIDIA/nvidia-container-toolkit#395).
    """
    try:
        import pynvml
    except ImportError:
        return Devices(why_none="the package nvidia-ml-py, of the extra [gpu], is not installed")
    try:
        with _nvml(pynvml):
            found = tuple(_all_devices(pynvml))
    except pynvml.NVMLError as error:
        return Devices(why_none=f"NVML: {error}{_of_the_container()}")
    if not found:
        return Devices(why_none=f"NVML knows of none{_of_the_container()}")
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = found if allowed is None else _chosen(found, allowed)
    names = ", ".join(map(str, found))
    why_none = "" if chosen else f"CUDA_VISIBLE_DEVICES is '{allowed}', and there is {names}"
    return Devices(chosen, why_none)


class Load:
    """How busy a device was while this was watched, by all processes together."""

    def __init__(self) -> None:
        self._memory: list[int] = []
        self._utilization: list[int] = []

    def note(self, memory: int | None, utilization: int | None) -> None:
        """Take over what was seen; None where the device does not tell."""
        if memory is not None:
            self._memory.append(memory)
        if utilization is not None:
            self._utilization.append(utilization)

    @property
    def facts(self) -> dict[str, float]:
        """What is known: `gpu_memory_peak` (bytes), `gpu_utilization_mean`, `…_max` (percent)."""
        facts: dict[str, float] = {}
        if self._memory:
            facts["gpu_memory_peak"] = max(self._memory)
        if self._utilization:
            facts["gpu_utilization_mean"] = round(fmean(self._utilization), 1)
            facts["gpu_utilization_max"] = max(self._utilization)
        return facts


@contextmanager
def watched(device: Device | None, interval: float = 1.0) -> Iterator[Load]:
    """Look at a device from time to time, in a thread that ends with the block; None: do nothing.

    Parameters
    ----------
    device
        From `visible_devices`.
    interval
        Seconds between two looks. The last look is at the end, so that there is one at least.
    """
    load = Load()
    if device is None:
        yield load
        return
    is_over = threading.Event()
    watch = threading.Thread(
        target=_watch, args=(device, interval, is_over, load), name="gpu-load", daemon=True
    )
    watch.start()
    try:
        yield load
    finally:
        is_over.set()
        watch.join()


def _watch(device: Device, interval: float, is_over: threading.Event, load: Load) -> None:
    import pynvml

    def told(question: Any) -> Any:
        try:
            return question(handle)
        except pynvml.NVMLError:  # parts of a device (MIG) have no utilisation of their own
            return None

    def without_reserved(handle: Any) -> Any:  # by the driver, for itself; since driver 510
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)

    try:
        with _nvml(pynvml):
            handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
            is_last = False
            while not is_last:
                is_last = is_over.wait(interval)
                memory = told(without_reserved) or told(pynvml.nvmlDeviceGetMemoryInfo)
                utilization = told(pynvml.nvmlDeviceGetUtilizationRates)
                load.note(memory and memory.used, utilization and utilization.gpu)
    except pynvml.NVMLError:  # the device is lost: training will say so
        return


@contextmanager
def _nvml(pynvml: Any) -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _all_devices(pynvml: Any) -> Iterator[Device]:
    driver = pynvml.nvmlSystemGetDriverVersion()
    for index in range(pynvml.nvmlDeviceGetCount()):
        for handle in _parts(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)):
            yield Device(
                name=pynvml.nvmlDeviceGetName(handle),
                memory=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
                index=index,
                uuid=pynvml.nvmlDeviceGetUUID(handle),
                driver=driver,
            )


def _parts(pynvml: Any, handle: Any) -> Iterator[Any]:
    """Of a divided device its parts, which CUDA uses in its place; else the device itself."""
    try:
        is_divided = pynvml.nvmlDeviceGetMigMode(handle)[0] == 1
    except pynvml.NVMLError:  # it cannot be divided
        is_divided = False
    if not is_divided:
        yield handle
        return
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
        except pynvml.NVMLError:  # numbers have gaps
            continue


def _of_the_container() -> str:
    value = os.environ.get("NVIDIA_VISIBLE_DEVICES")
    says_none = value in _NOTHING_FOR_CONTAINERS
    return f", and NVIDIA_VISIBLE_DEVICES is '{value}'" if says_none else ""


def _chosen(devices: tuple[Device, ...], allowed: str) -> tuple[Device, ...]:
    is_named = _has_number if _NUMBER.match(allowed) else _has_uuid  # CUDA mixes them in no list
    chosen: list[Device] = []
    for name in allowed.split(","):
        named = next((device for device in devices if is_named(device, name)), None)
        if named is None:
            break
        if named in chosen:  # CUDA does not start then
            return ()
        chosen.append(named)
    return tuple(chosen)


def _has_number(device: Device, name: str) -> bool:
    number = _NUMBER.match(name)  # CUDA reads `0 ` and `0a` as 0
    return number is not None and int(number[1]) == device.index


def _has_uuid(device: Device, name: str) -> bool:
    kind, _, uuid = name[: len(device.uuid)].partition("-")  # CUDA reads no further
    own_kind, _, own_uuid = device.uuid.partition("-")
    return bool(uuid) and kind == own_kind and own_uuid.lower().startswith(uuid.lower())
