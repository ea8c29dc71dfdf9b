"""What is read from Dagster's own tables: these fail loudly when a new version moves something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    DailyPartitionsDefinition,
    DataVersion,
    Output,
    asset,
    materialize,
)

from mlops_assets.automation.staleness import recorded_in as recorded_by_dagster
from mlops_assets.dagster_internals.database import recorded_in
from mlops_assets.store.io_manager import StoreIOManager

ROOT = Path(__file__).parents[2]
ASSETS = ["up", "down", "never"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def instance(home: Path, tmp_path: Path) -> Iterator[DagsterInstance]:
    @asset(code_version="1")
    def up() -> int:
        return 1

    @asset(code_version="2")
    def down(up: int) -> int:
        return up + 1

    with DagsterInstance.from_config(str(home)) as instance:
        store = StoreIOManager(url=str(tmp_path / "store"))
        assert materialize([up, down], instance=instance, resources={"io_manager": store}).success
        yield instance


def test_the_tables_say_the_same_as_dagster(home: Path, instance: DagsterInstance) -> None:
    recorded = recorded_in(home, ASSETS)

    assert recorded == recorded_by_dagster(instance, [AssetKey(name) for name in ASSETS])
    assert recorded is not None
    assert set(recorded) == {"up", "down"}
    assert recorded["down"].code_version == "2"
    assert recorded["down"].inputs == {"up": recorded["up"].version}
    assert len(recorded["up"].fingerprint or "") == 64


def test_the_days_of_an_asset_are_told_with_their_latest_version(
    home: Path, instance: DagsterInstance
) -> None:
    days = DailyPartitionsDefinition("2026-01-01")
    content = ["one"]

    @asset(partitions_def=days, code_version="1")
    def daily() -> Output[None]:
        return Output(None, data_version=DataVersion(content[-1]))

    for day in ("2026-01-01", "2026-01-02", "2026-01-03"):
        assert materialize([daily], instance=instance, partition_key=day).success
    content.append("two")
    assert materialize([daily], instance=instance, partition_key="2026-01-03").success
    recorded = recorded_in(home, ASSETS, {"daily": "2026-01-02", "never": ""})
    keys = [AssetKey(name) for name in ASSETS]

    assert recorded == recorded_by_dagster(instance, keys, {"daily": "2026-01-02", "never": ""})
    assert recorded is not None
    assert {name: one.version for name, one in recorded.items() if "[" in name} == {
        "daily[2026-01-02]": "one",
        "daily[2026-01-03]": "two",
    }


def test_wiped_assets_are_not_recorded(home: Path, instance: DagsterInstance) -> None:
    instance.wipe_assets([AssetKey("up")])
    recorded = recorded_in(home, ASSETS)

    assert recorded is not None
    assert set(recorded) == {"down"}


def test_an_instance_that_was_never_used_has_recorded_nothing(home: Path) -> None:
    assert recorded_in(home, ASSETS) == {}


@pytest.mark.parametrize(
    "configuration",
    [
        "storage: {postgres: {postgres_db: {hostname: db}}}",
        "event_log_storage: {module: a, class: B}",
        "- no map",
        "a: [",
    ],
)
def test_an_instance_that_stores_elsewhere_or_is_unreadable_is_not_known(
    home: Path, instance: DagsterInstance, configuration: str
) -> None:
    (home / "dagster.yaml").write_text(configuration)

    assert recorded_in(home, ASSETS) is None


def test_the_instance_of_the_shipped_configuration_is_known(
    home: Path, instance: DagsterInstance
) -> None:
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())

    assert set(recorded_in(home, ASSETS) or ()) == {"up", "down"}


def test_a_database_that_is_none_is_not_known(home: Path) -> None:
    database = home / "history" / "runs" / "index.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"no database")

    assert recorded_in(home, ASSETS) is None
