"""What one more asset costs, counted: statements, transactions and requests instead of seconds.

Counts are the same on a busy machine. Each is the slope from a short to a long chain of assets, so
that what a run costs once does not count. A change that makes one of them smaller lowers it here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import AssetIn, AssetsDefinition, DagsterInstance, asset, materialize
from sqlalchemy import Engine, event

from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets.store.objects import LocalObjects
from mlops_assets_tests.conftest import instance_of

ROOT = Path(__file__).parents[1]
SHORT, LONG = 3, 13
LOOKS = ("look", "read", "digest", "fetch", "list")
WRITES = ("upload", "create", "delete")


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count what is asked of databases and of the store."""
    counted: Counter[str] = Counter()

    def statement(*_: object) -> None:
        counted["statements"] += 1

    def commit(*_: object) -> None:
        counted["transactions"] += 1

    def opened(*_: object) -> None:
        counted["connections"] += 1

    def count(name: str, kind: str) -> None:
        original = getattr(LocalObjects, name)

        def counting(self: LocalObjects, *arguments: object, **named: object) -> object:
            counted[kind] += 1
            return original(self, *arguments, **named)

        monkeypatch.setattr(LocalObjects, name, counting)

    for name in LOOKS:
        count(name, "looks")
    for name in WRITES:
        count(name, "writes")
    listeners = [("before_cursor_execute", statement), ("commit", commit)]
    for name, listener in listeners:
        event.listen(Engine, name, listener)
    event.listen(Engine, "engine_connect", opened)
    yield counted
    for name, listener in [*listeners, ("engine_connect", opened)]:
        event.remove(Engine, name, listener)


def chain(length: int) -> list[AssetsDefinition]:
    @asset(name=f"{length}_0", code_version="1")
    def first() -> int:
        return 1

    def after(number: int) -> AssetsDefinition:
        before = AssetIn(f"{length}_{number - 1}")

        @asset(name=f"{length}_{number}", ins={"before": before}, code_version="1")
        def one_more(before: int) -> int:
            return before + 1

        return one_more

    return [first, *(after(number) for number in range(1, length))]


def of_one_more(instance: DagsterInstance, store: Path, counts: Counter[str]) -> list[Counter[str]]:
    """Return what one more asset costs when it is executed, and when it is reused."""
    resources = {"io_manager": StoreIOManager(url=str(store))}
    totals = []
    for length in (SHORT, LONG):
        for _ in ("executed", "reused"):
            counts.clear()
            assert materialize(chain(length), instance=instance, resources=resources).success
            totals.append(Counter(counts))
    return [
        Counter({name: (long[name] - short[name]) / (LONG - SHORT) for name in long})
        for short, long in zip(totals[:2], totals[2:], strict=True)
    ]


def test_one_more_asset_costs_few_statements_and_requests(
    tmp_path: Path, counts: Counter[str]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    with instance_of(home) as instance:
        executed, reused = of_one_more(instance, tmp_path / "store", counts)
    assert within(executed, statements=17, transactions=12, connections=12, looks=8, writes=4)
    assert within(reused, statements=7, transactions=3, connections=3, looks=6, writes=0)


def within(counted: Counter[str], **most: float) -> bool:
    return {name for name in counted if counted[name] > most[name]} == set()
