"""Steps of any assets on our store: when they run, when they don't, and what Dagster is told."""

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetOut,
    AssetsDefinition,
    AssetSpec,
    Config,
    DagsterInstance,
    ExecuteInProcessResult,
    MaterializeResult,
    Output,
    RetryPolicy,
    StaticPartitionsDefinition,
    asset,
    graph_asset,
    materialize,
    multi_asset,
    op,
)

from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets.store.reuse import MEMOIZED, RECOMPUTE, REFRESH


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def store(tmp_path: Path) -> StoreIOManager:
    return StoreIOManager(url=str(tmp_path / "store"))


class Runs:
    """Runs assets on one store, and keeps whose functions were called."""

    def __init__(self, instance: DagsterInstance, store: StoreIOManager) -> None:
        self.instance, self.store = instance, store
        self.called: list[str] = []

    def run(self, *assets: Any, **kwargs: Any) -> ExecuteInProcessResult:
        self.called.clear()
        return materialize(
            assets,
            instance=kwargs.pop("instance", self.instance),
            resources={"io_manager": self.store},
            **kwargs,
        )

    def numbers(self, value: object = 1, code_version: str | None = "1", **kwargs: Any) -> Any:
        @asset(code_version=code_version, **kwargs)
        def numbers() -> Output[pd.DataFrame]:
            self.called.append("numbers")
            frame = pd.DataFrame({"n": [value] * 3})
            return Output(frame, metadata={"about": "it"}, tags={"team": "ml"})

        return numbers

    def total(self, code_version: str = "1") -> AssetsDefinition:
        @asset(code_version=code_version)
        def total(numbers: pd.DataFrame) -> dict[str, float]:
            self.called.append("total")
            return {"total": float(numbers["n"].sum())}

        return total


@pytest.fixture
def runs(instance: DagsterInstance, store: StoreIOManager) -> Runs:
    return Runs(instance, store)


def told(result: ExecuteInProcessResult, name: str) -> dict[str, Any]:
    (made,) = result.asset_materializations_for_node(name)
    return {key: value.value for key, value in made.metadata.items()}


def objects(store: StoreIOManager, *key: str) -> list[Path]:
    return sorted(path for path in Path(store.url, *key).iterdir() if path.is_file())


def test_an_unchanged_step_is_told_again_and_not_run(runs: Runs) -> None:
    first = runs.run(runs.numbers(), runs.total())
    assert runs.called == ["numbers", "total"]
    second = runs.run(runs.numbers(), runs.total())

    assert second.success
    assert runs.called == []
    again, original = told(second, "numbers"), told(first, "numbers")
    assert {name: again.pop(name) for name in (MEMOIZED, "produced_by_run")} == {
        MEMOIZED: True,
        "produced_by_run": first.run_id,
    }
    assert again.pop("saved_seconds") > 0
    assert again == original
    tags = [
        {
            name: value
            for name, value in (
                result.asset_materializations_for_node("total")[0].tags or {}
            ).items()
            if "event_pointer" not in name and name != "dagster/code_version"
        }
        for result in (first, second)
    ]
    assert tags[0] == tags[1]
    again_tags = second.asset_materializations_for_node("numbers")[0].tags or {}
    assert again_tags["team"] == "ml"
    assert tags[0]["dagster/input_data_version/numbers"] == objects(runs.store, "numbers")[0].stem


def test_the_values_of_a_reused_step_are_there_for_a_test_that_asks(runs: Runs) -> None:
    runs.run(runs.numbers(), runs.total())
    second = runs.run(runs.numbers(), runs.total())

    assert second.output_for_node("total") == {"total": 3.0}
    assert second.output_for_node("numbers")["n"].tolist() == [1, 1, 1]
    assert second.asset_value("total") == {"total": 3.0}


def test_a_changed_code_version_runs_its_step_and_going_back_is_a_reuse(runs: Runs) -> None:
    runs.run(runs.numbers(1, "1"), runs.total())
    runs.run(runs.numbers(2, "2"), runs.total())
    assert runs.called == ["numbers", "total"]
    back = runs.run(runs.numbers(1, "1"), runs.total())

    assert runs.called == []
    assert back.output_for_node("total") == {"total": 3.0}


def test_what_is_computed_anew_to_equal_content_leaves_all_below_fresh(runs: Runs) -> None:
    runs.run(runs.numbers(1, "1"), runs.total())
    runs.run(runs.numbers(1, "another way to the same"), runs.total())

    assert runs.called == ["numbers"]


def test_another_instance_on_the_same_store_reuses_and_gets_records_of_its_own(runs: Runs) -> None:
    runs.run(runs.numbers(), runs.total())
    with DagsterInstance.ephemeral() as other:
        result = runs.run(runs.numbers(), runs.total(), instance=other)
        assert other.get_latest_materialization_event(AssetKey("total")) is not None

    assert runs.called == []
    assert told(result, "total")[MEMOIZED] is True


def test_an_asset_without_a_code_version_is_never_reused(runs: Runs) -> None:
    runs.run(runs.numbers(code_version=None))
    runs.run(runs.numbers(code_version=None))

    assert runs.called == ["numbers"]


def test_an_input_that_nobody_versions_is_never_taken_for_unchanged(runs: Runs) -> None:
    outside = AssetSpec("outside")

    for _ in range(2):
        result = runs.run(outside, runs.numbers(deps=[outside]), selection=["numbers"])
        assert result.success
        assert runs.called == ["numbers"]


@pytest.mark.parametrize("tag", ["true", "numbers", "other, numbers"])
def test_a_refresh_runs_what_it_names_and_early_cut_off_holds(runs: Runs, tag: str) -> None:
    runs.run(runs.numbers(), runs.total())
    runs.run(runs.numbers(), runs.total(), tags={REFRESH: tag})

    assert runs.called == ["numbers", "total"] if tag == "true" else ["numbers"]


def test_an_asset_can_opt_out(runs: Runs) -> None:
    for _ in range(2):
        runs.run(runs.numbers(metadata={RECOMPUTE: True}), runs.total())
    assert runs.called == ["numbers"]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _flip_unseen(path: Path) -> None:
    """Damage as a disk does it: neither the size nor the time of change tells."""
    before = path.stat()
    _flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1]), _flip],
    ids=["deleted", "truncated", "bit flipped"],
)
def test_a_missing_or_damaged_object_is_a_miss_and_the_run_heals_it(
    runs: Runs, damage: Any
) -> None:
    runs.run(runs.numbers(), runs.total())
    (held,) = objects(runs.store, "numbers")
    intact = held.read_bytes()
    damage(held)
    result = runs.run(runs.numbers(), runs.total())

    assert result.success
    assert runs.called == ["numbers"]
    assert held.read_bytes() == intact
    runs.run(runs.numbers(), runs.total())
    assert runs.called == []


def test_damage_that_only_reading_shows_fails_the_reader_and_is_healed_by_the_next_run(
    runs: Runs,
) -> None:
    runs.run(runs.numbers(), runs.total())
    (held,) = objects(runs.store, "numbers")
    _flip_unseen(held)
    failed = runs.run(
        runs.numbers(), runs.total("2"), tags={"mlops/command": "run"}, raise_on_error=False
    )
    assert not failed.success
    assert runs.called == []
    healed = runs.run(runs.numbers(), runs.total("2"))

    assert healed.success
    assert runs.called == ["numbers", "total"]


def test_a_store_that_was_copied_is_reused_after_its_digests_were_checked(
    runs: Runs, tmp_path: Path
) -> None:
    import shutil

    runs.run(runs.numbers(), runs.total())
    shutil.copytree(runs.store.url, tmp_path / "copy", copy_function=shutil.copyfile)
    runs.store = StoreIOManager(url=str(tmp_path / "copy"))
    runs.run(runs.numbers(), runs.total())
    assert runs.called == []
    records = {path: path.read_bytes() for path in (tmp_path / "copy" / ".memo").iterdir()}
    runs.run(runs.numbers(), runs.total())

    assert {path: path.read_bytes() for path in records} == records


@pytest.mark.parametrize("folder", [".memo", ".events"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b"\xff", b'{"output": 3}'])
def test_a_lost_or_damaged_record_is_a_miss(runs: Runs, folder: str, content: bytes | None) -> None:
    runs.run(runs.numbers())
    for path in Path(runs.store.url, folder).rglob("*.json"):
        path.unlink() if content is None else path.write_bytes(content)
    result = runs.run(runs.numbers())

    assert result.success
    assert runs.called == ["numbers"]
    runs.run(runs.numbers())
    assert runs.called == []


def test_the_record_of_another_computation_is_a_miss(runs: Runs) -> None:
    runs.run(runs.numbers(), runs.total())
    one, other = sorted(Path(runs.store.url, ".memo").glob("*.json"))
    one.write_bytes(other.read_bytes())
    assert runs.run(runs.numbers(), runs.total()).success
    assert len(runs.called) == 1


class Level(Config):
    level: int = 1


class Secret(Config):
    password: str


def test_configuration_of_the_launchpad_counts_with_its_defaults(runs: Runs) -> None:
    @asset(code_version="1")
    def levelled(config: Level) -> dict[str, int]:
        runs.called.append("levelled")
        return {"level": config.level}

    def run(level: int | None) -> Any:
        config = {} if level is None else {"ops": {"levelled": {"config": {"level": level}}}}
        return runs.run(levelled, run_config=config).output_for_node("levelled")

    assert run(None) == {"level": 1}
    assert run(2) == {"level": 2}
    assert runs.called == ["levelled"]
    assert run(1) == {"level": 1}
    assert runs.called == []
    assert run(2) == {"level": 2}
    assert runs.called == []


def test_a_secret_in_the_configuration_is_not_written_to_the_store(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asset(code_version="1")
    def guarded(config: Secret) -> int:
        return len(config.password)

    monkeypatch.setenv("GUARDED_PASSWORD", "hunter2-hunter2")
    config = {"ops": {"guarded": {"config": {"password": {"env": "GUARDED_PASSWORD"}}}}}
    assert runs.run(guarded, run_config=config).success

    for path in Path(runs.store.url).rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes()


DAYS = StaticPartitionsDefinition(["mon", "tue/1", "wed"])


def partitioned(runs: Runs, code_version: str = "1") -> Sequence[AssetsDefinition]:
    @asset(partitions_def=DAYS, code_version=code_version)
    def daily(context: AssetExecutionContext) -> dict[str, str]:
        runs.called.append(f"daily {context.partition_key}")
        return {"day": context.partition_key}

    @asset(partitions_def=DAYS, code_version="1")
    def length(context: AssetExecutionContext, daily: dict[str, str]) -> int:
        runs.called.append(f"length {context.partition_key}")
        return len(daily["day"])

    return daily, length


def test_partitions_are_reused_one_by_one(runs: Runs) -> None:
    for day in ("mon", "tue/1"):
        runs.run(*partitioned(runs), partition_key=day)
        assert runs.called == [f"daily {day}", f"length {day}"]
    for day in ("mon", "tue/1"):
        result = runs.run(*partitioned(runs), partition_key=day)
        assert runs.called == []
        assert result.output_for_node("daily") == {"day": day}
        (made,) = result.asset_materializations_for_node("daily")
        assert made.partition == day
    runs.run(*partitioned(runs, "2"), partition_key="mon")
    assert runs.called == ["daily mon"]


def test_an_asset_below_several_partitions_runs_when_one_of_them_changes(runs: Runs) -> None:
    @asset(code_version="1")
    def week(daily: dict[str, Any]) -> int:
        runs.called.append("week")
        return len(daily)

    @asset(code_version="1", deps=["daily"])
    def weekly() -> int:
        runs.called.append("weekly")
        return 7

    def run() -> list[str]:
        runs.run(partitioned(runs)[0], weekly, selection=["weekly"])
        return list(runs.called)

    for day in DAYS.get_partition_keys():
        runs.run(*partitioned(runs), partition_key=day)
    assert run() == ["weekly"]
    assert run() == []
    changed = asset(partitions_def=DAYS, code_version="3", name="daily")(lambda: {"day": "new"})
    runs.run(changed, partition_key="wed")
    assert run() == ["weekly"]


def two(runs: Runs, optional: bool = False) -> AssetsDefinition:
    @multi_asset(
        outs={
            "left": AssetOut(code_version="1"),
            "right": AssetOut(code_version="1", is_required=not optional),
        },
        check_specs=[AssetCheckSpec("is_small", asset="left")],
    )
    def both() -> Iterator[Any]:
        runs.called.append("both")
        yield Output({"side": 1}, "left")
        if not optional:
            yield Output({"side": 2}, "right")
        yield AssetCheckResult(
            asset_key="left", passed=False, description="too big", metadata={"size": 9}
        )

    return both


def test_a_multi_asset_is_reused_as_a_whole_with_its_checks(runs: Runs) -> None:
    first = runs.run(two(runs))
    second = runs.run(two(runs))

    assert runs.called == []
    assert second.output_for_node("both", "right") == {"side": 2}
    (was,), (again,) = (result.get_asset_check_evaluations() for result in (first, second))
    assert (again.passed, again.severity, again.description) == (False, was.severity, "too big")
    assert again.metadata["size"] == was.metadata["size"]
    assert again.metadata[MEMOIZED].value is True
    objects(runs.store, "right")[0].unlink()
    runs.run(two(runs))
    assert runs.called == ["both"]


def test_an_output_that_was_left_out_is_left_out_again(runs: Runs) -> None:
    runs.run(two(runs, optional=True))
    again = runs.run(two(runs, optional=True))

    assert runs.called == []
    materialized = [event.asset_key for event in again.get_asset_materialization_events()]
    assert materialized == [AssetKey("left")]


def test_a_step_that_failed_is_not_remembered(runs: Runs) -> None:
    fail = [True]

    @asset(code_version="1", check_specs=[AssetCheckSpec("ok", asset="fragile", blocking=True)])
    def fragile() -> Iterator[Any]:
        runs.called.append("fragile")
        yield Output(1)
        yield AssetCheckResult(passed=not fail[0])

    assert not runs.run(fragile, raise_on_error=False).success
    fail[0] = False
    assert runs.run(fragile).success
    assert runs.called == ["fragile"]
    assert runs.run(fragile).success
    assert runs.called == []


def test_a_step_that_succeeds_at_its_second_try_is_remembered(runs: Runs) -> None:
    @asset(code_version="1", retry_policy=RetryPolicy(max_retries=1))
    def flaky(context: AssetExecutionContext) -> int:
        runs.called.append("flaky")
        if context.retry_number == 0:
            raise OSError("away")
        return 1

    assert runs.run(flaky).success
    assert runs.called == ["flaky", "flaky"]
    runs.run(flaky)
    assert runs.called == []


def test_what_the_store_does_not_keep_is_not_reused(runs: Runs) -> None:
    @asset(code_version="1")
    def elsewhere() -> MaterializeResult[None]:
        runs.called.append("elsewhere")
        return MaterializeResult(metadata={"rows": 1})

    @op
    def one() -> int:
        runs.called.append("one")
        return 1

    @graph_asset
    def graph() -> int:
        return one()

    for _ in range(2):
        assert runs.run(elsewhere).success
        assert runs.called == ["elsewhere"]
        assert runs.run(graph).success
        assert runs.called == ["one"]


def test_two_runs_of_the_same_at_once_both_succeed_and_leave_one_object(
    runs: Runs, store: StoreIOManager
) -> None:
    barrier = threading.Barrier(2, timeout=30)

    def waiting() -> AssetsDefinition:
        @asset(code_version="1")
        def slow() -> dict[str, int]:
            barrier.wait()
            return {"n": 1}

        return slow

    results: list[bool] = []

    def run() -> None:
        with DagsterInstance.ephemeral() as instance:
            done = materialize([waiting()], instance=instance, resources={"io_manager": store})
            results.append(done.success)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert results == [True, True]
    assert len(objects(store, "slow")) == 1


def test_an_instance_that_lasts_tells_the_store_what_it_holds(runs: Runs, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with DagsterInstance.local_temp(str(home)) as lasting:
        runs.run(runs.numbers(1, "1"), instance=lasting)
        runs.run(runs.numbers(2, "2"), instance=lasting)
        (pointer,) = Path(runs.store.url, ".latest").rglob("*.json")
        second = pointer.read_text()
        runs.run(runs.numbers(1, "1"), instance=lasting)

    assert pointer.name == "numbers.json"
    assert pointer.read_text() != second


def test_the_log_says_why_a_step_runs_and_what_it_reuses(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.run(runs.numbers(1, "1"), runs.total())
    first = capsys.readouterr().err
    runs.run(runs.numbers(2, "2"), runs.total())
    second = capsys.readouterr().err
    runs.run(runs.numbers(2, "2"), runs.total(), tags={REFRESH: "total"})
    third = capsys.readouterr().err

    assert "computed, because never materialised" in first
    assert "computed, because code changed: version 1 → 2" in second
    assert "computed, because input content changed: numbers" in second
    assert "reused: run " in third
    assert "computed, because a refresh was asked for" in third
