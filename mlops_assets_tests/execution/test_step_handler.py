from __future__ import annotations

import pytest
from dagster import DagsterEventType

from mlops_assets.execution.step_handler import memoising
from mlops_assets_tests.execution.code_location import elsewhere
from mlops_assets_tests.execution.conftest import Location

CHAIN = ["first", "second", "third"]


def test_a_first_run_launches_all_steps_and_a_second_one_none(location: Location) -> None:
    first = location.run("chain_elsewhere")
    second = location.run("chain_elsewhere")

    assert first.success
    assert first.launched == first.ran == CHAIN
    assert second.success
    assert second.launched == []
    assert second.reused == second.succeeded == CHAIN
    assert second.initialised == []


def test_a_change_launches_what_it_concerns(location: Location) -> None:
    location.run("chain")
    location.put("code/second", "2")

    result = location.run("chain_elsewhere")

    assert result.success
    assert result.launched == result.ran == ["second", "third"]
    assert result.reused == ["first"]


def test_a_step_whose_telling_breaks_off_fails(location: Location) -> None:
    location.run("chain")
    location.put("broken")

    result = location.run("chain_elsewhere")

    assert not result.success
    assert result.launched == result.succeeded == []
    assert result.steps(DagsterEventType.STEP_FAILURE) == ["first"]


def test_a_told_step_is_healthy_before_the_executor_has_read_that_it_is_over(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.run("chain")
    monkeypatch.setenv("DAGSTER_EXECUTOR_POP_EVENTS_LIMIT", "1")

    result = location.run("chain_elsewhere")

    assert result.success
    assert result.steps(DagsterEventType.STEP_FAILURE) == []


def test_a_told_step_is_not_terminated_when_the_run_breaks_down(location: Location) -> None:
    location.run("chain")
    location.put("no_cluster")

    result = location.run("roots_elsewhere")

    assert not result.success
    assert result.reused == ["first"]
    assert location.noted("terminated") == ["slow"]


def test_name_and_configuration_of_the_executor_stay_what_they_are() -> None:
    wrapped = memoising(elsewhere)

    assert wrapped.name == elsewhere.name
    assert wrapped.config_schema is elsewhere.config_schema
    assert wrapped.get_requirements({}) == elsewhere.get_requirements({})


def test_an_executor_without_a_step_handler_is_refused(location: Location) -> None:
    with pytest.raises(TypeError, match="InProcessExecutor has no step handler"):
        location.run("nothing_to_delegate_to")
