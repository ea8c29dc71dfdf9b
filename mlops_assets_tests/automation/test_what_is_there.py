"""What is made of the days that there are, of a daily asset of which most days are missing."""

from __future__ import annotations

import pytest
from dagster import AssetKey, AssetsDefinition, DailyPartitionsDefinition

from mlops_assets.automation.conditions import automated
from mlops_assets.automation.staleness import Staleness, launchable
from mlops_assets.dagster_internals.automation import TAKES_WHAT_IS_THERE, Lineage
from mlops_assets_tests.automation.conftest import World, made

DAYS = DailyPartitionsDefinition("2025-09-01")  # more than a hundred until `conftest.NOON`
TOTAL = AssetKey("total")


def total() -> AssetsDefinition:
    return automated(
        made("total", deps=["daily"], condition=None).map_asset_specs(
            lambda spec: spec.replace_attributes(metadata={TAKES_WHAT_IS_THERE: True})
        )
    )


def daily(content: str = "same") -> AssetsDefinition:
    return made("daily", content, partitions=DAYS, condition=None)


def launched(world: World) -> list[str]:
    graph = world.definitions.resolve_asset_graph()
    lineage = Lineage(world.instance, graph)
    return [key.path[-1] for key, _ in launchable(lineage, [TOTAL], Staleness(lineage).reason).now]


@pytest.fixture
def days(world: World) -> World:
    world.assets = [daily(), total()]
    return world


def test_nothing_is_made_of_no_day(days: World) -> None:
    assert days.tick() == {}
    assert launched(days) == []


def test_one_day_is_enough_and_each_new_one_is_a_change(days: World) -> None:
    for day in ("2025-09-01", "2025-12-31"):
        days.run("daily", partition=day)
        assert launched(days) == ["total"]
        assert days.run_what_is_requested() == {"total": {None}}
        assert days.tick() == {}
        assert launched(days) == []


def test_a_day_that_is_made_again_is_a_change_if_its_content_is(days: World) -> None:
    days.run("daily", partition="2025-09-01")
    days.run("daily", partition="2025-09-02")
    assert days.run_what_is_requested() == {"total": {None}}

    days.run("daily", partition="2025-09-01")
    assert days.tick() == {}
    days.assets[0] = daily("other")
    days.run("daily", partition="2025-09-01")
    assert launched(days) == ["total"]
    assert days.tick() == {"total": {None}}
