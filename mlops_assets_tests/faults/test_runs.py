"""Two runs of one pipeline at the same time: no harm, one object, one champion, one entry."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance, asset, materialize

from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets_tests.conftest import CUSTOMERS, write_customers
from mlops_assets_tests.faults.sites import JOB, RUN, STAGES, Site, Sites
from mlops_assets_tests.faults.trials import Trials
from mlops_assets_tests.warm import Command

WAYS = {
    "two mlops run": (RUN, RUN),
    "mlops run and dagster job execute": (RUN, JOB),
    "two mlops run --refresh": ((*RUN, "--refresh"), (*RUN, "--refresh")),
}


def both_succeed(commands: list[Command]) -> None:
    codes = [command.wait() for command in commands]
    assert codes == [0, 0], "\n\n".join(command.output for command in commands)
    assert not any("Traceback" in command.output for command in commands)


def were_tracked(commands: list[Command]) -> bool:
    return not any("is not tracked" in command.output for command in commands)


@pytest.mark.parametrize("way", WAYS)
def test_two_runs_of_the_same_at_once_leave_one_of_everything(
    trials: Trials, sites: Sites, way: str
) -> None:
    for trial in trials(f"at once: {way}", 3):
        with trial, sites.copy() as site:
            site.edit(rows=121 + trial.number)
            before = {stage: objects(site, stage) for stage in STAGES}
            pause = trial.random.uniform(0, sites.usual / 2)
            trial.facts["second after"] = pause
            first, second = WAYS[way]
            commands = [site.start(*first)]
            time.sleep(pause)
            commands.append(site.start(*second))
            both_succeed(commands)
            new = {stage: objects(site, stage) - before[stage] for stage in STAGES}
            assert len(new.pop("champion")) <= 1  # none where the new model is no better
            assert all(len(found) == 1 for found in new.values()), f"{new}"
            site.store_is_whole()
            trial.outcome = "one of everything"
            if were_tracked(commands):
                report = site.recovers()
                assert report["run_id"] is None  # there is nothing left to do
            else:  # its sqlite file was busy for too long
                trial.outcome += ", MLflow told later"
                assert site.start(*RUN, "--refresh").wait() == 0
                site.tracking_is_consistent()


def test_runs_at_once_with_other_parameters_or_data_do_not_mix(
    trials: Trials, sites: Sites
) -> None:
    for trial in trials("at once: other parameters, other data", 4):
        with trial, sites.copy() as site:
            other = site.folder / "other"
            shutil.copytree(site.folder / "pipelines", other)
            if trial.number % 2:
                write_customers(other / "customers.csv", rows=140 + trial.number)
                site.edit(rows=121 + trial.number)
            else:
                text = CUSTOMERS.replace("max_iter: 500", "max_iter: 3")
                (other / "customers.yaml").write_text(text)
            trial.facts["other"] = "data" if trial.number % 2 else "parameters"
            commands = [site.start(*RUN), site.start(*RUN, MLOPS_PIPELINES=str(other))]
            both_succeed(commands)
            for run in site.runs()[:2]:
                with site.instance() as instance:
                    assert_unmixed(instance, run.run_id)
            site.store_is_whole()
            site.tracking_is_consistent(alias=False)
            site.recovers(again={"customers/champion"})  # it depends on the champion before it
            trial.outcome = "two whole runs"


def test_a_step_is_given_what_its_own_run_has_made_though_another_run_made_it_since(
    tmp_path: Path,
) -> None:
    content = ["of this run"]
    resources = {"io_manager": StoreIOManager(url=str(tmp_path))}

    @asset
    def first() -> dict[str, str]:
        return {"made": content[0]}

    @asset(deps=[first])
    def meanwhile(context) -> None:
        content[0] = "of another run"
        materialize([first], instance=context.instance, resources=resources)

    @asset(deps=[meanwhile])
    def last(first: Any) -> Any:
        return first

    with DagsterInstance.ephemeral() as instance:
        result = materialize([first, meanwhile, last], instance=instance, resources=resources)
        assert result.output_for_node("last") == {"made": "of this run"}
        assert_unmixed(instance, result.run_id)


def assert_unmixed(instance: DagsterInstance, run_id: str) -> None:
    """Check that whatever a run has made was made from what the same run has made."""
    made: dict[AssetKey, str] = {}
    for entry in instance.all_logs(run_id):
        event = entry.dagster_event
        if event is None or not event.is_step_materialization or event.asset_key is None:
            continue
        tags = event.step_materialization_data.materialization.tags or {}
        for key, version in made.items():
            read = tags.get(f"dagster/input_data_version/{key.to_user_string()}")
            assert read in (None, version), (event.asset_key, key, read, version)
        made[event.asset_key] = tags["dagster/data_version"]


def objects(site: Site, stage: str) -> set[str]:
    return {path.name for path in (site.store / "customers" / stage).glob("[!.]*")}
