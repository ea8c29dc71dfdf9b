"""Finding NVIDIA devices without needing one, and watching how busy one is."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from mlops_assets.ml.device import Device, visible_devices, watched

from .nvml import GIB, Card, install

L4, A100 = Card("GPU-1a"), Card("GPU-2b", "NVIDIA A100", 80 * GIB)


def names() -> list[str]:
    return [device.name for device in visible_devices().found]


def test_a_device_is_told_by_name_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = install(monkeypatch, L4, A100)
    devices = visible_devices()
    assert [str(device) for device in devices.found] == ["NVIDIA L4, 23 GiB", "NVIDIA A100, 80 GiB"]
    assert devices.found[0] == Device("NVIDIA L4", 23 * GIB, 0, "GPU-1a", "580.1")
    assert devices.why_none == ""
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("allowed", "found"),
    [
        ("0", ["NVIDIA L4"]),
        ("1,0", ["NVIDIA A100", "NVIDIA L4"]),
        ("GPU-2b", ["NVIDIA A100"]),
        ("GPU-2,GPU-1a", ["NVIDIA A100", "NVIDIA L4"]),
        ("GPU-2B", ["NVIDIA A100"]),
        ("GPU-2,0", ["NVIDIA A100"]),  # what follows one of another kind does not count
        ("1,GPU-1a", ["NVIDIA A100"]),
        ("1,7,0", ["NVIDIA A100"]),  # nor what follows an unknown one
        ("0,-1", ["NVIDIA L4"]),
        (" 01 , +0", ["NVIDIA A100", "NVIDIA L4"]),
        ("1a", ["NVIDIA A100"]),
        ("1,1", []),
        ("GPU-2b,GPU-2", []),
        ("GPU-", []),
        (" GPU-2b", []),
        ("GPU-2b ", ["NVIDIA A100"]),
        ("gpu-2b", []),
        ("2b", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_only_the_devices_that_cuda_may_use_are_found_in_its_order(
    allowed: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, L4, A100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert names() == found
    why = visible_devices().why_none
    assert (f"CUDA_VISIBLE_DEVICES is '{allowed}'" in why) == (not found)


@pytest.mark.parametrize("value", ["none", "void", ""])
def test_a_container_without_devices_is_told_apart_from_one_that_has_them_by_other_means(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, broken="NVML Shared Library Not Found")
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", value)
    why = visible_devices().why_none
    assert why == f"NVML: NVML Shared Library Not Found, and NVIDIA_VISIBLE_DEVICES is '{value}'"
    install(monkeypatch, L4)
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", value)
    assert names() == ["NVIDIA L4"]


def test_a_machine_without_a_driver_has_no_device_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, broken="NVML Shared Library Not Found")
    assert visible_devices().found == ()
    assert visible_devices().why_none == "NVML: NVML Shared Library Not Found"
    install(monkeypatch)
    assert visible_devices().why_none == "NVML knows of none"


def test_an_installation_without_nvml_has_no_device_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, L4)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert visible_devices().found == ()
    assert "nvidia-ml-py, of the extra [gpu], is not installed" in visible_devices().why_none


def test_nvidias_own_package_answers_as_the_stand_in_does() -> None:
    devices = visible_devices()
    assert bool(devices.found) != bool(devices.why_none)


ASK_CUDA = """
import ctypes
cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
print(0 if cuda.cuInit(0) else cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value)
"""


@pytest.mark.skipif(not visible_devices().found, reason=f"no GPU: {visible_devices().why_none}")
def test_cuda_itself_finds_as_many_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    uuid = visible_devices().found[0].uuid
    for allowed in (
        *("0", " 0", "0 ", "00", "+0", "0a", "0 1", "0,-1", "0,99", "0,a", "0,", "0,0"),
        *("99", "99,0", "-1", "", " ", ",0", "a", "all", "none", "GPU-", "MIG-1"),
        *(uuid, uuid[:12], f"GPU-{uuid[4:].upper()}", f"gpu-{uuid[4:]}", f" {uuid}", f"{uuid} "),
        *(f"{uuid}0", f"{uuid},{uuid}", f"{uuid},0", f"0,{uuid}"),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
        asked = subprocess.run([sys.executable, "-c", ASK_CUDA], capture_output=True, check=True)
        assert int(asked.stdout) == len(visible_devices().found), allowed


def test_a_divided_device_counts_as_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Card("MIG-3c", "NVIDIA A100 MIG 1g.10gb", 10 * GIB, busy=None)
    install(monkeypatch, Card("GPU-2b", "NVIDIA A100", 80 * GIB, parts=[None, part]), L4)
    assert names() == ["NVIDIA A100 MIG 1g.10gb", "NVIDIA L4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-3")
    (device,) = visible_devices().found
    with watched(device) as load:
        pass
    assert load.facts == {"gpu_memory_peak": GIB}  # it does not tell its utilisation


def test_a_device_is_watched_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card("GPU-1a", used=[GIB, GIB, 5 * GIB, 2 * GIB], busy=[10, 90, 20])
    nvml = install(monkeypatch, card)
    (device,) = visible_devices().found
    nvml.enough_after = 5
    with watched(device, interval=0.001) as load:
        assert nvml.enough.wait(60)
    looks = nvml.looks
    facts = load.facts
    assert facts["gpu_memory_peak"] == 5 * GIB
    assert facts["gpu_utilization_max"] == 90
    assert facts["gpu_utilization_mean"] == round((10 + 90 + 20 * (looks - 2)) / looks, 1)
    assert "gpu-load" not in [thread.name for thread in threading.enumerate()]
    assert nvml.open == 0


def test_the_shortest_fit_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = install(monkeypatch, Card("GPU-1a", used=[0, 3 * GIB], busy=[7]))
    (device,) = visible_devices().found
    with watched(device, interval=3600) as load:
        pass
    assert nvml.looks == 1
    assert load.facts == {
        "gpu_memory_peak": 3 * GIB,
        "gpu_utilization_mean": 7,
        "gpu_utilization_max": 7,
    }


def test_what_the_driver_keeps_for_itself_is_not_memory_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = install(monkeypatch, Card("GPU-1a", used=[3 * GIB], reserved=GIB))
    (device,) = visible_devices().found
    with watched(device) as load:
        pass
    assert load.facts["gpu_memory_peak"] == 3 * GIB
    nvml.is_old = True  # it does not tell them apart
    with watched(device) as load:
        pass
    assert load.facts["gpu_memory_peak"] == 4 * GIB


def test_a_fit_that_fails_ends_the_watch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = install(monkeypatch, L4)
    (device,) = visible_devices().found
    with pytest.raises(ValueError, match="no"), watched(device, interval=3600):
        raise ValueError("no")
    assert "gpu-load" not in [thread.name for thread in threading.enumerate()]
    assert nvml.open == 0


def test_a_device_that_is_lost_does_not_stop_the_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = install(monkeypatch, Card("GPU-1a", busy=[30]))
    (device,) = visible_devices().found
    nvml.broken = "GPU is lost"
    with watched(device) as load:
        pass
    assert load.facts == {}
    assert nvml.open == 0


def test_the_processor_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = install(monkeypatch, L4)
    with watched(None, interval=0) as load:
        assert "gpu-load" not in [thread.name for thread in threading.enumerate()]
    assert (load.facts, nvml.looks) == ({}, 0)
