"""What `mlops run` says while it runs, of steps that are retried or fail before they begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, Definitions, RetryPolicy, RetryRequested, asset

from mlops_assets.cli.progress import progress_logger
from mlops_assets.store import io_manager
from mlops_assets.store.io_manager import StoreIOManager

STEPS = {"first": [AssetKey("first")], "second": [AssetKey("second")]}


def run(
    store: Path,
    *,
    failures: int = 0,
    retries: int = 2,
    echo: Callable[[str], None] | None = None,
) -> tuple[bool, list[str]]:
    """Run two steps, the first of which fails that often; return what was printed, but times."""
    outcomes = iter([*[ConnectionError("the server is away")] * failures])

    @asset(retry_policy=RetryPolicy(max_retries=retries))
    def first() -> int:
        if error := next(outcomes, None):
            raise RetryRequested(max_retries=retries) from error
        return 1

    @asset
    def second(first: int) -> int:
        return first + 1

    said: list[str] = []
    job = Definitions(
        [first, second],
        resources={"io_manager": StoreIOManager(url=str(store))},
        loggers={"console": progress_logger(STEPS, echo or said.append)},
    ).resolve_implicit_global_asset_job_def()
    config = {"loggers": {"console": {"config": {}}}}
    done = job.execute_in_process(run_config=config, raise_on_error=False)
    return done.success, [line.partition(" in ")[0].partition(", ")[0] for line in said]


@pytest.fixture
def unreachable_before_a_step_begins(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Have the instance fail as often as the list has items, when a step looks at its inputs."""
    failures: list[Any] = []
    prefer_own_run = io_manager.prefer_own_run

    def looking(step: Any) -> None:
        if failures:
            failures.pop()
            raise ConnectionError("the database is away")
        prefer_own_run(step)

    monkeypatch.setattr(io_manager, "prefer_own_run", looking)
    return failures


def test_a_step_that_is_retried_is_announced_again_under_its_number(tmp_path: Path) -> None:
    succeeded, said = run(tmp_path, failures=1)

    assert succeeded
    assert [line for line in said if line.startswith("[")] == [
        "[1/2] first", "[1/2] first", "[2/2] second",
    ]  # fmt: skip


def test_a_retry_of_a_step_that_failed_before_it_began_succeeds(
    tmp_path: Path, unreachable_before_a_step_begins: list[Any]
) -> None:
    unreachable_before_a_step_begins.append(1)

    succeeded, said = run(tmp_path)

    assert succeeded
    assert said == [
        "[1/2] first", "        retried: ConnectionError: the database is away",
        "[1/2] first", "        first", "        done",
        "[2/2] second", "        second", "        done",
    ]  # fmt: skip


def test_a_step_that_fails_for_good_before_it_begins_is_named(
    tmp_path: Path, unreachable_before_a_step_begins: list[Any]
) -> None:
    unreachable_before_a_step_begins.extend([1, 1])

    succeeded, said = run(tmp_path, retries=1)

    assert not succeeded
    assert said[-2] == "[1/2] first"
    assert said[-1].startswith("        FAILED: ")
    assert "the database is away" in said[-1]


def test_a_terminal_that_went_away_fails_no_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def echo(_: str) -> None:
        raise BrokenPipeError

    succeeded, _ = run(tmp_path, echo=echo)

    assert succeeded
    assert "BrokenPipeError" in capsys.readouterr().err  # said by `logging`, where that can be read
