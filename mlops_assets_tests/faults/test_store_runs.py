"""Whole runs that are killed at an effect of the store: between an artefact and its event, too."""

from __future__ import annotations

import json

from mlops_assets.store import ArtifactStore
from mlops_assets.store.history import history
from mlops_assets_tests.faults.effects import KILL_AT
from mlops_assets_tests.faults.outside import artifacts, check, contents, leftovers
from mlops_assets_tests.faults.sites import PIPELINE, RUN, STAGES, Site, Sites
from mlops_assets_tests.faults.test_store_damage import run
from mlops_assets_tests.faults.trials import Trials


def is_whole(site: Site) -> dict[str, bytes]:
    found = contents(site.store)
    check(found)
    assert len(leftovers(site.store)) <= 1
    return found


def test_a_run_that_is_killed_at_an_effect_of_the_store_is_finished_by_the_next(
    trials: Trials, sites: Sites
) -> None:
    with sites.copy() as site:
        site.edit(rows=130)
        counted = site.start(*RUN, **{KILL_AT: "-1"})
        assert counted.wait() == 0, counted.output
        names = json.loads(counted.output.splitlines()[-1])
        expected = artifacts(is_whole(site))
    for trial in trials("kill -9 of mlops run at an effect of the store", 12):
        with trial, sites.copy() as site:
            site.edit(rows=130)
            before = artifacts(contents(site.store))
            point = trial.random.randrange(len(names))
            command = site.start(*RUN, **{KILL_AT: str(point)})
            assert command.wait() == -9, command.output
            command.kill_all()
            made = len(artifacts(is_whole(site)) - before)
            trial.facts |= {"killed": f"before {names[point]}, effect {point}", "made": made}
            trial.outcome = f"{made} of {len(expected - before)} artefacts made"
            trial.facts["executed then"] = run(site)["executed"]
            site.tracking_is_consistent()
            found = is_whole(site)
            assert artifacts(found) == expected
            assert sum(path.startswith(".champions/") for path in found) <= 2
            for stage in STAGES:
                told = history(ArtifactStore(str(site.store)), [PIPELINE, stage])
                assert not told.notes
                assert all(entry.present and entry.computed for entry in told.entries)
