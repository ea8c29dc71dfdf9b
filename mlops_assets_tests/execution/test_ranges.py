"""Runs over a range of partitions in several processes: launched once, killed, and told again."""

from __future__ import annotations

from dagster import DagsterEventType

from mlops_assets_tests.execution.conftest import FORKSERVER, Location, Result

ALL = ("one", "three")


def partitions(result: Result, asset: str) -> list[str | None]:
    return [
        event.partition
        for event in result.events
        if event.event_type is DagsterEventType.ASSET_MATERIALIZATION and event.step_key == asset
    ]


def test_a_range_is_launched_once_and_not_at_all_when_it_is_known(location: Location) -> None:
    first = location.run("parts_elsewhere", parts=ALL)
    assert first.success
    assert first.launched == ["below", "parts"]
    assert len(first.ran) == 6

    second = location.run("parts_elsewhere", parts=ALL)
    assert second.success
    assert second.launched == second.ran == []
    assert second.reused == ["below"] * 3 + ["parts"] * 3
    assert second.initialised == []
    assert partitions(second, "parts") == partitions(second, "below") == ["one", "two", "three"]


def test_a_range_with_an_unknown_partition_is_launched_and_computes_that_one(
    location: Location,
) -> None:
    location.run("parts_elsewhere", parts=ALL)
    location.put("code/parts_two", "2")

    result = location.run("parts_elsewhere", parts=ALL)

    assert result.success
    assert result.launched == ["below", "parts"]
    assert result.ran == ["below_two", "parts_two"]
    assert partitions(result, "parts") == ["one", "two", "three"]


def test_under_forkserver_a_range_is_one_process_for_each_step(location: Location) -> None:
    first = location.run("parts", FORKSERVER, ALL)
    assert first.success
    assert first.processes_started == ["below", "parts"]
    assert len(first.ran) == 6
    assert location.run("parts", FORKSERVER, ALL).processes_started == []


def test_a_killed_process_goes_on_with_the_partitions_that_it_had_not_finished(
    location: Location,
) -> None:
    location.put("killing/parts_three")
    result = location.run("parts", FORKSERVER, ALL)

    assert result.success
    assert result.steps(DagsterEventType.STEP_UP_FOR_RETRY) == ["parts"]
    assert [name for name in result.ran if name.startswith("parts")] == [
        "parts_one",
        "parts_three",
        "parts_three",
        "parts_two",
    ]
    assert partitions(result, "parts")[-1] == "three"
    assert set(partitions(result, "below")) == {"one", "two", "three"}
