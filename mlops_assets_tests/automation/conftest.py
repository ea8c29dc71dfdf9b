"""Assets whose content and code are at hand, ticked as the daemon would, and the daemon itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetKey,
    AssetObservation,
    AssetsDefinition,
    AutomationCondition,
    DagsterInstance,
    DataVersion,
    Definitions,
    ExecuteInProcessResult,
    Output,
    PartitionsDefinition,
    asset,
    evaluate_automation_conditions,
    materialize,
)
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

from mlops_assets.automation.conditions import reuse_condition
from mlops_assets_tests.conftest import Project
from mlops_assets_tests.servers import stop_group

ROOT = Path(__file__).parents[2]
REUSE = reuse_condition()
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


@dataclass
class World:
    """A code location that changes, on an instance that remembers."""

    instance: DagsterInstance
    assets: list[AssetsDefinition] = field(default_factory=list)
    cursor: Any = None
    resources: dict[str, Any] = field(default_factory=dict)

    @property
    def definitions(self) -> Definitions:
        return Definitions(self.assets, resources=self.resources)

    def tick(self) -> dict[str, set[str | None]]:
        """Evaluate the conditions once; return what they request, partitions by asset."""
        result = evaluate_automation_conditions(
            self.definitions,
            self.instance,
            cursor=self.cursor,
            evaluation_time=NOON,
        )
        self.cursor = result.cursor
        keys = [key for one in self.assets for key in one.keys]
        requested = {
            key.to_user_string(): set(result.get_requested_partitions(key)) for key in keys
        }
        return {name: partitions for name, partitions in requested.items() if partitions}

    def run(self, *names: str, partition: str | None = None) -> ExecuteInProcessResult:
        return materialize(
            self.assets,
            instance=self.instance,
            selection=[AssetKey.from_user_string(name) for name in names] or None,
            partition_key=partition,
            resources=self.resources,
            raise_on_error=False,
        )

    def run_what_is_requested(self) -> dict[str, set[str | None]]:
        """Tick, and run what is requested, one run for each partition."""
        requested = self.tick()
        for partition in sorted({p for group in requested.values() for p in group}, key=str):
            self.run(
                *(name for name, group in requested.items() if partition in group),
                partition=partition,
            )
        return requested

    def stale_to_dagster(self) -> set[str]:
        """Return what Dagster's UI shows as missing or stale."""
        view = AssetGraphView.for_test(self.definitions, self.instance, NOON)
        status = CachingStaleStatusResolver(
            self.instance, view.asset_graph, view, view.get_inner_queryer_for_back_compat()
        )
        return {
            key.to_user_string()
            for one in self.assets
            for key in one.keys
            for partition in (
                one.partitions_def.get_partition_keys(NOON) if one.partitions_def else [None]
            )
            if status.get_status(key, partition) != StaleStatus.FRESH
        }

    def observe(self, name: str, version: str) -> None:
        self.instance.report_runless_asset_event(
            AssetObservation(name, tags={"dagster/data_version": version})
        )


@pytest.fixture
def world() -> Iterator[World]:
    with DagsterInstance.ephemeral() as instance:
        yield World(instance)


def made(
    name: str,
    content: str = "same",
    *,
    code: str | None = "1",
    deps: Sequence[Any] = (),
    partitions: PartitionsDefinition | None = None,
    condition: AutomationCondition | None = REUSE,
    fails: bool = False,
    meanwhile: Callable[[], object] = lambda: None,
) -> AssetsDefinition:
    """Return an asset whose content is `content`, in each of its partitions.

    `meanwhile` is called while it is being made.
    """

    @asset(
        name=name,
        deps=deps,
        code_version=code,
        partitions_def=partitions,
        automation_condition=condition,
    )
    def computed() -> Output[None]:
        meanwhile()
        if fails:
            raise RuntimeError(f"{name} fails")
        return Output(None, data_version=DataVersion(content))

    return computed


StartDaemon = Callable[[str], None]


@pytest.fixture
def home(customers: Project) -> Path:
    home = customers.folder / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home)
    return home


@pytest.fixture
def daemon(customers: Project, home: Path) -> Iterator[StartDaemon]:
    """Return what starts `dagster-daemon run` on this test's project, with a module beside this."""
    started: list[subprocess.Popen[bytes]] = []

    def start(module: str) -> None:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("dagster-daemon")),
                *("run", "--module-name", f"{__package__}.{module}"),
            ],
            env=customers.environment(home),
            cwd=ROOT,  # where the tests can be imported
            stdout=(customers.folder / "daemon.log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append(process)

    yield start
    for process in started:
        stop_group(process)


def ticks(instance: DagsterInstance, name: str) -> list[InstigatorTick]:
    """Return the ticks of a schedule or sensor that are over, the first one first."""
    return [
        tick
        for state in instance.all_instigator_state()
        if state.name == name
        for tick in reversed(
            instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=100)
        )
        if tick.status != TickStatus.STARTED
    ]
