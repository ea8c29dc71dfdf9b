"""A stand-in for `pynvml` and the devices behind it, for machines that have none."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

GIB = 1024**3


class NVMLError(Exception):
    """As NVML's errors, which are all of this kind."""


@dataclass
class Card:
    """A device, or a part of one."""

    uuid: str
    name: str = "NVIDIA L4"
    memory: int = 23 * GIB
    parts: list[Card | None] = field(default_factory=list)
    used: list[int] = field(default_factory=lambda: [GIB])
    """Bytes, one look after the other; the last one stays."""
    reserved: int = 0
    """Bytes that the driver keeps for itself; the first version of NVML's answer adds them."""
    busy: list[int] | None = field(default_factory=lambda: [50])
    """Percent; None where the device does not tell."""


class Nvml(ModuleType):
    """The functions that are called of it. `open` counts the calls of init not shut down."""

    NVMLError = NVMLError
    nvmlMemory_v2 = 2

    def __init__(self, *cards: Card, broken: str = "") -> None:
        super().__init__("pynvml")
        self.cards = list(cards)
        self.broken = broken
        self.is_old = False  # a driver before 510
        self.open = 0
        self.looks = 0
        self.enough = threading.Event()
        self.enough_after = 0

    def nvmlInit(self) -> None:
        if self.broken:
            raise NVMLError(self.broken)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:
        every = [*self.cards, *(part for card in self.cards for part in card.parts if part)]
        return next(card for card in every if card.uuid == uuid)

    def nvmlDeviceGetName(self, card: Card) -> str:
        return card.name

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        return card.uuid

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:
        if card.parts:
            return [1, 1]
        raise NVMLError("Not Supported")

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:
        return len(card.parts)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, number: int) -> Card:
        part = card.parts[number]
        if part is None:
            raise NVMLError("Not Found")
        return part

    def nvmlDeviceGetMemoryInfo(self, card: Card, version: int | None = None) -> Any:
        if version is not None and self.is_old:
            raise NVMLError("Function Not Found")
        used = card.used.pop(0) if len(card.used) > 1 else card.used[0]
        reserved = 0 if version == self.nvmlMemory_v2 else card.reserved
        return SimpleNamespace(total=card.memory, used=used + reserved)

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:
        self.looks += 1
        if self.enough_after and self.looks >= self.enough_after:
            self.enough.set()
        if card.busy is None:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=card.busy.pop(0) if len(card.busy) > 1 else card.busy[0])


def install(monkeypatch: pytest.MonkeyPatch, *cards: Card, broken: str = "") -> Nvml:
    """Put the stand-in where `import pynvml` finds it, and forget what the environment says."""
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    nvml = Nvml(*cards, broken=broken)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml
