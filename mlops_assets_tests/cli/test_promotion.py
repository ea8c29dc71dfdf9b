"""`mlops promote` and `mlops rollback`, and what runs, Dagster and MLflow make of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from dagster import AssetKey
from mlflow import MlflowClient

from mlops_assets.cli import main
from mlops_assets.store.champions import Champion, Champions
from mlops_assets.tracking import MODEL_VERSION, STATUS
from mlops_assets_tests.cli.test_run import MLOPS, finish, start
from mlops_assets_tests.conftest import CUSTOMERS, DUMMY, Project, instance_of, write_customers

running = import_module("mlops_assets.cli.run")  # the package has a command of that name

GATED = "evaluate: {gates: {accuracy: '>= 0.7'}}\n"


def variant(iterations: int) -> str:
    """Return a pipeline whose model predicts the same as the others, and is another model."""
    return CUSTOMERS.replace("500", str(iterations)) + GATED


@dataclass
class Desk:
    """A project with a Dagster instance on disk, and a person who types commands."""

    project: Project
    patch: pytest.MonkeyPatch

    @property
    def champions(self) -> list[Champion]:
        return Champions(self.project.store, "customers").history()

    @property
    def champion(self) -> str:
        return self.champions[-1].version

    def edit(self, text: str) -> None:
        self.project.add("customers", text)
        self.patch.setattr(running, "defs", self.project.definitions())

    def train(self, text: str, refresh: str | None = None) -> str:
        """Train an edited pipeline, and return the version of its model."""
        self.edit(text)
        assert self.project.train("customers", refresh=refresh).success
        return self.recorded("model")

    def recorded(self, stage: str) -> str:
        """Return what Dagster has as the latest version."""
        event = self.project.instance.get_latest_materialization_event(
            AssetKey(["customers", stage])
        )
        assert event is not None
        assert event.asset_materialization is not None
        return (event.asset_materialization.tags or {})["dagster/data_version"]

    def says(self) -> str:
        """Return what the latest check of the champion says."""
        event = self.project.instance.get_latest_materialization_event(
            AssetKey(["customers", "champion"])
        )
        assert event is not None
        assert event.asset_materialization is not None
        return str(event.asset_materialization.metadata["reason"].value)

    def aliases(self) -> dict[str, str]:
        registry = MlflowClient(self.project.settings.tracking_uri)
        pointed = registry.get_registered_model("customers").aliases
        return {
            alias: registry.get_model_version("customers", number).tags[MODEL_VERSION]
            for alias, number in pointed.items()
        }

    def statuses(self) -> dict[str, str]:
        registry = MlflowClient(self.project.settings.tracking_uri)
        entries = registry.search_model_versions("name = 'customers'")
        return {entry.tags[MODEL_VERSION]: entry.tags[STATUS] for entry in entries}

    def types(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, arguments)

    def reports(self, *arguments: str) -> Any:
        done = self.types(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout.splitlines()[-1])

    def is_refused(self, *arguments: str) -> str:
        """Return why a command was refused, after which everything is as it was."""
        before = self.champions
        done = self.types(*arguments)
        assert done.exit_code == 1
        assert isinstance(done.exception, SystemExit)
        assert self.champions == before
        return done.stderr

    def model(self, version: str, stage: str = "model") -> Path:
        return self.project.folder / "store" / "customers" / stage / f"{version}.skops"


@pytest.fixture(scope="module")
def trained_thrice(
    tmp_path_factory: pytest.TempPathFactory, _empty_tracking_database: Path
) -> tuple[Path, list[str]]:
    """Three champions, one after another; to be copied, as training takes seconds."""
    folder = tmp_path_factory.mktemp("thrice")
    shutil.copy(_empty_tracking_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch, _desk(folder, patch) as desk:
        (folder / "pipelines").mkdir()
        write_customers(folder / "pipelines" / "customers.csv")
        return folder, [desk.train(variant(iterations)) for iterations in (500, 400, 300)]


@pytest.fixture
def desk(
    trained_thrice: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Desk]:
    folder = tmp_path / "project"
    shutil.copytree(trained_thrice[0], folder)
    with _desk(folder, monkeypatch) as desk:
        desk.edit(variant(300))
        yield desk


@pytest.fixture
def versions(trained_thrice: tuple[Path, list[str]]) -> list[str]:
    return trained_thrice[1]


class _desk:
    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        home = folder / "dagster"
        home.mkdir(exist_ok=True)
        (home / "dagster.yaml").touch()
        self._instance = instance_of(home)
        project = Project(folder, self._instance)
        for name, value in project.environment(home).items():
            patch.setenv(name, value)
        self._desk = Desk(project, patch)

    def __enter__(self) -> Desk:
        return self._desk

    def __exit__(self, *_: object) -> None:
        self._instance.dispose()


# --- going back ---------------------------------------------------------------------------------


def test_a_rollback_moves_the_champion_back_in_the_log_in_dagster_and_in_mlflow(
    desk: Desk, versions: list[str]
) -> None:
    first, second, third = versions
    assert desk.aliases() == {"champion": third}
    report = desk.reports("rollback", "customers")

    assert report["champion"]["version"] == second
    assert report["champion"]["by"] == "rollback"
    assert report["before"] == {"version": third, "number": 3}
    assert report["warnings"] == []
    assert desk.champions[-1].restores == 2
    assert desk.recorded("champion") == second
    assert desk.recorded("model") == third
    run = desk.project.instance.get_run_by_id(report["run_id"])
    assert run is not None
    assert run.is_success
    assert desk.types("plan").exit_code == 0
    assert desk.aliases() == {"champion": second, "challenger": third}
    assert desk.statuses() == {first: "promoted", second: "promoted", third: "rolled back"}


def test_a_second_rollback_goes_further_back_and_a_third_has_nothing_to_go_to(
    desk: Desk, versions: list[str]
) -> None:
    desk.reports("rollback", "customers")
    report = desk.reports("rollback", "customers")

    assert report["champion"]["version"] == desk.recorded("champion") == versions[0]
    assert "nothing to go back to" in desk.is_refused("rollback", "customers")
    assert desk.recorded("champion") == versions[0]
    assert desk.aliases()["champion"] == versions[0]
    assert desk.statuses() == dict(
        zip(versions, ("promoted", "rolled back", "rolled back"), strict=True)
    )


def test_a_model_that_was_rolled_back_is_never_promoted_by_a_run_and_a_new_one_is(
    desk: Desk, versions: list[str]
) -> None:
    _, second, third = versions
    desk.reports("rollback", "customers")
    assert desk.train(variant(300), refresh="customers/champion") == third
    assert desk.champion == desk.recorded("champion") == second
    assert "rolled back by hand" in desk.says()
    assert f"mlops promote customers --version {third}" in desk.says()
    assert desk.statuses()[third] == "rolled back"

    new = desk.train(variant(200))
    assert desk.champion == desk.recorded("champion") == new
    assert desk.aliases() == {"champion": new, "challenger": third}
    desk.train(variant(300))
    assert desk.champion == new

    assert desk.reports("promote", "customers")["champion"]["by"] == "hand"
    assert desk.champion == desk.recorded("champion") == third


def test_rollback_works_after_everything_that_can_be_pruned_was(
    desk: Desk, versions: list[str]
) -> None:
    done = desk.types("prune", "--keep", "0", "--older-than", "0s")
    assert done.exit_code == 0
    assert "customers/model: 3 kept" in done.output

    for version in (versions[1], versions[0]):
        desk.reports("rollback", "customers")
        assert desk.champion == desk.recorded("champion") == version
        desk.project.store.read(desk.project.store.find(["customers", "champion"], version))


def test_history_of_the_champion_lists_promotions_with_what_they_were(
    desk: Desk, versions: list[str]
) -> None:
    desk.reports("rollback", "customers")
    desk.reports("promote", "customers", "--version", versions[0])
    entries = desk.reports("history", "customers/champion")

    assert [(one["promotion"], one["by"], one["version"]) for one in entries] == [
        (5, "hand", versions[0]),
        (4, "rollback", versions[1]),
        (3, "run", versions[2]),
        (2, "run", versions[1]),
        (1, "run", versions[0]),
    ]
    assert entries[1]["restores"] == 2
    assert all(one["present"] and one["metrics"]["accuracy"] > 0.5 for one in entries)
    text = desk.types("history", "customers/champion", "--limit", "2").output
    assert "promotion 5" in text
    assert f"rolled back by hand from {versions[2]}" in text
    assert "promotion 3\n" not in text


# --- promoting by hand --------------------------------------------------------------------------


def test_promote_makes_the_latest_model_the_champion_although_it_is_worse(desk: Desk) -> None:
    before = desk.champion
    worse = desk.train(DUMMY)
    assert desk.champion == before
    assert desk.statuses()[worse] == "refused"
    report = desk.reports("promote", "customers")

    assert report["champion"]["version"] == desk.champion == desk.recorded("champion") == worse
    assert desk.aliases() == {"champion": worse}
    assert desk.statuses()[worse] == "promoted"
    assert desk.champions[-1].metrics["accuracy"] > 0

    again = desk.train(variant(300))
    assert again == before
    assert desk.champion == worse
    assert f"mlops promote customers --version {before}" in desk.says()


def test_the_model_that_waits_does_not_replace_one_that_was_chosen_by_hand(
    desk: Desk, versions: list[str]
) -> None:
    waiting = desk.train(variant(200) + "promote: {min_improvement: 0.99}\n")
    assert desk.champion == versions[2]
    desk.reports("promote", "customers", "--version", versions[0])
    assert set(desk.champions[-1].passed_over) == {versions[2], waiting}

    assert desk.train(variant(200)) == waiting
    assert desk.champion == versions[0]
    assert "passed over by hand" in desk.says()


def test_a_gate_is_overridden_by_force_only_and_the_reason_says_so(desk: Desk) -> None:
    bad = desk.train(DUMMY + GATED)

    refused = desk.is_refused("promote", "customers")
    assert "gate accuracy >= 0.7 failed" in refused
    assert "--force" in refused
    done = desk.types("promote", "customers", "--force")
    assert done.exit_code == 0
    assert "overridden: gate accuracy >= 0.7 failed" in done.output
    assert "overridden: gate accuracy >= 0.7 failed" in desk.champions[-1].reason
    assert desk.champion == desk.recorded("champion") == bad


def test_a_model_without_known_metrics_passes_no_gate(desk: Desk, versions: list[str]) -> None:
    for path in (desk.project.folder / "store" / "customers" / "metrics").iterdir():
        path.unlink()
    for log in (".champions", ".copies"):
        shutil.rmtree(desk.project.folder / "store" / log)

    refused = desk.is_refused("promote", "customers", "--version", versions[0])
    assert "accuracy was not measured" in refused
    desk.reports("promote", "customers", "--version", versions[0], "--force")
    assert [one.version for one in desk.champions] == [versions[0]]


def test_what_cannot_be_done_is_explained(desk: Desk, versions: list[str]) -> None:
    third = versions[2]
    typo = f"{third[:-1]}{'0' if third[-1] != '0' else '1'}"

    assert "did you mean 'customers'?" in desk.is_refused("promote", "customer")
    assert "did you mean 'customers'?" in desk.is_refused("rollback", "customer")
    assert f"did you mean '{third}'?" in desk.is_refused("promote", "customers", "--version", typo)
    for rubbish in ("../../etc", "✗", "0", "x" * 5000):
        said = desk.is_refused("promote", "customers", "--version", rubbish)
        assert "has no model" in said
        assert f"the newest are {third}" in said
    assert "is the champion of customers already" in desk.is_refused("promote", "customers")


def test_a_pipeline_without_models_has_nothing_to_promote_and_nothing_to_go_back_to(
    desk: Desk,
) -> None:
    desk.project.add("others", CUSTOMERS)
    broken = desk.project.add("broken", CUSTOMERS.replace("target: left", "targt: left"))

    assert "`mlops run others` trains one" in desk.is_refused("promote", "others")
    assert "others has no champion" in desk.is_refused("rollback", "others")
    assert f"{broken}:3:3" in desk.is_refused("rollback", "broken")


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"?")])
def test_a_champion_that_is_lost_or_damaged_is_not_gone_back_to_unless_its_model_is_there(
    desk: Desk, versions: list[str], damage: Any
) -> None:
    second = versions[1]
    damage(desk.model(second, "champion"))
    kept = desk.model(second).read_bytes()
    damage(desk.model(second))
    for command in (["rollback", "customers"], ["promote", "customers", "--version", second]):
        said = desk.is_refused(*command)
        assert f"{second} cannot become the champion of customers" in said
        assert "missing or damaged under both customers/champion and customers/model" in said
    assert desk.recorded("champion") == versions[2]

    desk.model(second).write_bytes(kept)
    desk.reports("rollback", "customers")
    assert desk.champion == second
    assert desk.model(second, "champion").read_bytes() == kept


def test_a_lost_champion_whom_nobody_replaces_fails_the_step_which_says_how_to_choose_another(
    desk: Desk, versions: list[str]
) -> None:
    for stage in ("model", "champion"):
        desk.model(versions[2], stage).unlink()
    unreachable = variant(200).replace(">= 0.7", ">= 1")
    desk.edit(unreachable)
    done = desk.types("run", "customers", "--json")

    assert done.exit_code == 1
    error = json.loads(done.stdout.splitlines()[-1])["pipelines"]["customers"]["error"]
    assert f"the champion of customers is lost ({versions[2]} is missing or damaged" in error
    assert "gate accuracy >= 1.0 failed" in error
    assert "`mlops promote customers`" in error
    assert desk.reports("promote", "customers", "--force")["champion"]["number"] == 4


def test_a_damaged_log_is_named_and_nothing_is_moved(desk: Desk) -> None:
    record = desk.project.folder / "store" / ".champions" / "customers" / "00000002.json"
    copy = desk.project.folder / "store" / ".copies" / "customers" / "00000002.json"
    for file in (record, copy):
        file.write_text("{}")
    done = desk.types("rollback", "customers")

    assert done.exit_code == 1
    assert "00000002.json" in done.stderr
    assert len(list(record.parent.iterdir())) == 3


# --- the others: instances, MLflow, processes ---------------------------------------------------


def test_an_instance_that_has_trained_nothing_is_told_of_the_champion_alone(
    desk: Desk, versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = desk.project.folder / "elsewhere"
    home.mkdir()
    (home / "dagster.yaml").touch()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    report = desk.reports("rollback", "customers")

    assert "has not trained customers" in report["warnings"][0]
    assert desk.champion == versions[1]
    assert desk.aliases()["champion"] == versions[1]
    with instance_of(home) as elsewhere:
        event = elsewhere.get_latest_materialization_event(AssetKey(["customers", "champion"]))
        assert event is not None
        assert event.asset_materialization is not None
        tags = event.asset_materialization.tags or {}
        assert tags["dagster/data_version"] == versions[1]
    desk.train(variant(300))
    assert desk.champion == desk.recorded("champion") == versions[1]


def test_a_step_that_cannot_run_leaves_a_warning_and_dagster_and_mlflow_told(
    desk: Desk, versions: list[str]
) -> None:
    (read_by_the_step,) = (desk.project.folder / "store" / "customers" / "test").iterdir()
    read_by_the_step.unlink()
    report = desk.reports("rollback", "customers")

    assert f"failed in run {report['run_id']}" in report["warnings"][0]
    assert desk.champion == desk.recorded("champion") == versions[1]
    assert desk.aliases() == {"champion": versions[1]}
    assert desk.statuses()[versions[2]] == "rolled back"


def test_without_mlflow_there_is_one_warning_and_the_next_step_that_reaches_it_mends_the_aliases(
    desk: Desk, versions: list[str]
) -> None:
    reachable = desk.project.settings.tracking_uri
    away = "http://127.0.0.1:9"
    desk.patch.setenv("MLFLOW_TRACKING_URI", away)
    with desk.patch.context() as patch:
        patch.setattr(Project, "settings", _with_tracking(desk.project, away))
        desk.edit(variant(300))
        done = desk.types("rollback", "customers")
    assert done.exit_code == 0
    assert len(re.findall("cannot be used", done.stderr)) == 1
    assert desk.recorded("champion") == versions[1]
    assert desk.aliases() == {"champion": versions[2]}

    desk.patch.setenv("MLFLOW_TRACKING_URI", reachable)
    desk.train(variant(300), refresh="customers/champion")
    assert desk.aliases() == {"champion": versions[1], "challenger": versions[2]}
    assert desk.statuses()[versions[2]] == "rolled back"


def test_promotions_at_once_by_several_processes_leave_one_champion_everywhere(
    desk: Desk, versions: list[str]
) -> None:
    commands = [
        ("promote", "customers", "--version", versions[0]),
        ("rollback", "customers"),
    ]
    done = [finish(one) for one in [start(desk.project, MLOPS, *it) for it in commands]]
    moved = len(desk.champions) - 3

    assert [one.returncode for one in done].count(0) == moved >= 1, done
    assert not any("Traceback" in one.stderr for one in done), done
    for one in done:
        assert one.returncode == 0 or "meanwhile" in one.stderr or "already" in one.stderr, one
    assert [one.number for one in desk.champions] == list(range(1, moved + 4))
    assert desk.recorded("champion") == desk.champion
    assert desk.aliases()["champion"] == desk.champion
    assert desk.statuses()[desk.champion] == "promoted"


def _with_tracking(project: Project, uri: str) -> property:
    settings = replace(project.settings, tracking_uri=uri)
    return property(lambda _: settings)
