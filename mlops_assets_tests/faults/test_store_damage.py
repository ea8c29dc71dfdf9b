"""Objects and records of a trained store that others delete, cut off, change or exchange."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from dagster import AssetMaterialization, ExecuteInProcessResult

from mlops_assets.store import ArtifactStore, CorruptArtifactError
from mlops_assets.store.prune import prune
from mlops_assets.store.reuse import MEMOIZED
from mlops_assets_tests.assets.test_drift import arrive, day, drift, people, score, trained, why
from mlops_assets_tests.conftest import Project
from mlops_assets_tests.faults.outside import ARTIFACT, artifacts, contents
from mlops_assets_tests.faults.sites import PIPELINE, RUN, Site, Sites
from mlops_assets_tests.faults.trials import Trials

__all__ = ["day", "trained"]


def delete(file: Path, chance: Random) -> None:
    file.unlink()


def cut_off(file: Path, chance: Random) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size))


def flip(file: Path, chance: Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(chance.randint(1, 3)):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def append(file: Path, chance: Random) -> None:
    file.write_bytes(file.read_bytes() + chance.randbytes(chance.randint(1, 100)))


def replace(file: Path, chance: Random) -> None:
    """With the content of another file of its kind."""
    others = sorted(other for other in file.parent.parent.rglob(f"*{file.suffix}") if other != file)
    file.write_bytes(chance.choice(others).read_bytes() if others else b"{}")


DAMAGES: list[Callable[[Path, Random], None]] = [delete, cut_off, flip, append, replace]


def files_of(site: Site, kind: str) -> list[Path]:
    """Return artefacts, or the records in one of the folders that begin with a dot."""
    found = sorted(contents(site.store))
    if kind == "artefacts":
        return [site.store / path for path in found if ARTIFACT.fullmatch(path)]
    return [site.store / path for path in found if path.startswith(f".{kind}/")]


def run(site: Site) -> dict[str, Any]:
    """Run the pipeline, which succeeds, and return what is said of it."""
    command = site.start(*RUN)
    assert command.wait() == 0, command.output
    told: dict[str, Any] = json.loads(command.output.splitlines()[-1])["pipelines"][PIPELINE]
    return told


def is_refused_or_right(store: ArtifactStore, path: str, before: bytes) -> bool:
    """Whether nobody can take a record for what it was not."""
    right = {name: value for name, value in json.loads(before).items() if name != "sha256"}
    try:
        read = store.get_record(path)
    except CorruptArtifactError:
        return True
    return read is None or right.items() <= read.items()


@pytest.mark.parametrize(
    ("kind", "count"),
    [("artefacts", 9), ("memo", 3), ("events", 3), ("champions", 3), ("latest", 2), ("any", 6)],
)
def test_a_damaged_store_is_healed_by_the_next_run_and_serves_nothing_wrong(
    kind: str, count: int, trials: Trials, sites: Sites
) -> None:
    with sites.copy() as site:
        expected = run(site)
    named = {"any": "several files", "artefacts": "an artefact"}.get(kind, f"a record in .{kind}")
    for trial in trials(f"{named} damaged, then mlops plan and run", count):
        with trial, sites.copy() as site:
            store, before = ArtifactStore(str(site.store)), contents(site.store)
            chance = trial.random
            some = [site.store / path for path in before] if kind == "any" else files_of(site, kind)
            chosen = chance.sample(sorted(some), min(len(some), 4 if kind == "any" else 1))
            for file in chosen:
                damage = chance.choice(DAMAGES)
                damage(file, chance)
                path = file.relative_to(site.store).as_posix()
                trial.facts[path] = damage.__name__
            damaged = {file.relative_to(site.store).as_posix() for file in chosen}
            spoilt = contents(site.store)

            planned = site.start("mlops", "plan", "--json")
            assert planned.wait() in (0, 2), planned.output
            told = run(site)
            assert told["metrics"] == expected["metrics"]
            assert told["champion"]["version"] == expected["champion"]["version"]

            found = contents(site.store)
            assert artifacts(found) == artifacts(before)
            assert {it: found[it] for it in artifacts(found)} == {
                it: before[it] for it in artifacts(before)
            }
            for path in damaged - artifacts(before):
                if spoilt.get(path) == found.get(path):  # nothing has needed it since
                    assert is_refused_or_right(store, path, before[path]), path
            again = site.start("mlops", "plan", "--json")
            assert again.wait() == 0, again.output
            prune(store, keep=1, older_than=timedelta(0))
            assert artifacts(contents(site.store)) == artifacts(before)
            trial.facts["executed"] = told["executed"]
            trial.outcome = "made again" if told["executed"] else "not needed, or restored"


def test_bits_that_flip_without_a_trace_are_refused_where_they_are_read_and_then_healed(
    trials: Trials, sites: Sites
) -> None:
    for trial in trials("bits of an artefact flip, its time does not", 5):
        with trial, sites.copy() as site:
            before, chance = contents(site.store), trial.random
            file = chance.choice(files_of(site, "artefacts"))
            trial.facts["artefact"] = file.relative_to(site.store).as_posix()
            times = file.stat().st_mtime_ns
            flip(file, chance)
            os.utime(file, ns=(times, times))

            site.set_params(501)  # all from the model on is computed again, from what is there
            first = site.start(*RUN)
            trial.outcome = "not read" if first.wait() == 0 else "refused, then made again"
            if first.returncode:
                assert "is damaged" in first.output
                assert "materialise the asset" in first.output
                assert "Traceback" not in first.output
            run(site)
            found = contents(site.store)
            read = artifacts(before) & artifacts(found)
            wrong = [path for path in read if found[path] != before[path]]
            assert not wrong or trial.outcome == "not read"


def test_a_damaged_day_is_scored_again_and_a_damaged_champion_is_refused_until_it_is_mended(
    trained: Project, day: str, trials: Trials
) -> None:
    arrive(trained, day, people(200, seed=1))
    first = score(trained, day)
    assert first.success, why(first)
    root = Path(trained.settings.store_url)
    before = contents(root)
    folders = [f"customers/predictions/{day}", f"customers/drift/{day}", ".references", ".memo"]
    for trial in trials("predictions, drift or its reference damaged, then scored again", 8):
        with trial:
            folder = folders[trial.number % len(folders)]
            chance = trial.random
            path = chance.choice(sorted(path for path in before if path.startswith(folder)))
            damage = chance.choice([delete, cut_off, flip, append])
            damage(root / path, chance)
            trial.facts[path] = damage.__name__
            again = score(trained, day)
            if told := re.search(r"--refresh (customers/\w+)`", why(again)):
                # an earlier trial damaged the record that this one's reference is made from
                assert trained.train("customers", refresh=told[1]).success
                again = score(trained, day)
            assert again.success, why(again)
            assert drift(again) == drift(first)
            made = [not (one.metadata.keys() & {MEMOIZED}) for one in materializations(again)]
            trial.outcome = "made again" if any(made) else "not needed"
            if told:
                trial.outcome = "made again after a refresh, as was told"
            found = contents(root)
            assert {it: found[it] for it in artifacts(before)} == {
                it: before[it] for it in artifacts(before)
            }
    for trial in trials("the champion's model damaged, then a new day", 3):
        with trial:
            new = f"2026-03-{1 + trial.number % 28:02d}"
            arrive(trained, new, people(200, seed=trial.number))
            [model] = (root / "customers" / "champion").iterdir()
            damage = trial.random.choice([delete, cut_off, flip])
            damage(model, trial.random)
            trial.facts["damage"] = damage.__name__
            refused = score(trained, new)
            trial.outcome = "scored" if refused.success else "refused, mended by the training"
            if not refused.success:
                assert "customers/champion" in why(refused)
                assert trained.train("customers").success
                assert score(trained, new).success
            assert contents(root)[model.relative_to(root).as_posix()] == next(
                content
                for path, content in before.items()
                if path.startswith("customers/champion/")
            )


def materializations(result: ExecuteInProcessResult) -> list[AssetMaterialization]:
    return [
        event.step_materialization_data.materialization
        for event in result.get_asset_materialization_events()
    ]
