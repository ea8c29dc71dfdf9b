"""A store in which anything is damaged: every command speaks, and the next run mends it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import event, given
from hypothesis import strategies as st

from mlops_assets.cli import main
from mlops_assets_tests.conftest import CUSTOMERS, Project, train_once

from .strategies import as_json, changed, examples

Damage = Callable[[Path, st.DataObject, list[Path]], None]

running = import_module("mlops_assets.cli.run")  # the package has a command of that name


@pytest.fixture
def trained(customers: Project, trained_store: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with two models, the second of which is the champion."""
    train_once(customers, trained_store)
    customers.add("customers", CUSTOMERS.replace("500", "400"))
    assert customers.train("customers").success
    home = customers.folder / "dagster"
    home.mkdir()
    (home / "dagster.yaml").touch()
    for name, value in customers.environment(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(running, "defs", customers.definitions())
    shutil.copytree(customers.folder / "store", customers.folder / "intact")
    return customers


def restore(project: Project) -> list[Path]:
    """Take back all damage; returns all that is in the store."""
    store = project.folder / "store"
    shutil.rmtree(store)
    shutil.copytree(project.folder / "intact", store)
    return sorted(path for path in store.rglob("*") if path.is_file())


def speaks(*arguments: str) -> Result:
    """Run a command; it may fail in words only."""
    done = CliRunner().invoke(main, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert "Traceback" not in done.output
    assert done.output.strip()
    return done


def _replaced_by_folder(path: Path, _: st.DataObject, __: list[Path]) -> None:
    path.unlink()
    path.mkdir()
    (path / "x.json").write_text("{}")


def _replaced_by_link(path: Path, data: st.DataObject, files: list[Path]) -> None:
    path.unlink()
    other = data.draw(st.sampled_from(files))
    path.symlink_to("nowhere" if other == path else other)


def _replaced_by_other(path: Path, data: st.DataObject, files: list[Path]) -> None:
    other = data.draw(st.sampled_from([file for file in files if file.is_file()]))
    path.write_bytes(other.read_bytes())


def _cut(path: Path, data: st.DataObject, _: list[Path]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])


def _flipped(path: Path, data: st.DataObject, _: list[Path]) -> None:
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)


def _rubbish(path: Path, data: st.DataObject, _: list[Path]) -> None:
    path.write_bytes(data.draw(st.binary(max_size=20)))


def _other_values(path: Path, data: st.DataObject, _: list[Path]) -> None:
    """Exchange some value of a record for one of another type."""
    if path.suffix == ".json":
        tree = data.draw(changed(json.loads(path.read_bytes())))
        path.write_bytes(as_json(tree))


def _removed(path: Path, _: st.DataObject, __: list[Path]) -> None:
    path.unlink()


DAMAGE: list[Damage] = [
    *[_other_values] * 6,
    _removed,
    _cut,
    _flipped,
    _rubbish,
    _replaced_by_other,
    _replaced_by_folder,
    _replaced_by_link,
]


MENDABLE = [how for how in DAMAGE if how is not _replaced_by_folder]
"""Nobody but a person removes a folder that somebody has put into a store."""


def damage(project: Project, data: st.DataObject, ways: Sequence[Damage] = DAMAGE) -> None:
    """Damage one to three files of a store, records more often than artefacts."""
    files = restore(project)
    records = [path for path in files if path.suffix == ".json"]
    damaged = data.draw(
        st.lists(
            st.sampled_from(records) | st.sampled_from(files), min_size=1, max_size=3, unique=True
        )
    )
    for path in damaged:
        how = data.draw(st.sampled_from(ways))
        event(f"{how.__name__.strip('_')} in {path.relative_to(project.folder).parts[1]}")
        how(path, data, files)


@examples(12, shrink=False)
@given(data=st.data())
def test_commands_that_only_look_speak_of_any_damage(trained: Project, data: st.DataObject) -> None:
    damage(trained, data)
    assert speaks("plan").exit_code in (0, 1, 2)
    for asset in ("model", "metrics", "champion"):
        speaks("history", f"customers/{asset}")
    speaks("prune", "--keep", "0", "--older-than", "0s", "--dry-run")


@examples(2, shrink=False)
@given(data=st.data())
def test_a_run_mends_what_is_damaged(trained: Project, data: st.DataObject) -> None:
    damage(trained, data, MENDABLE)
    command = data.draw(st.sampled_from(["promote", "rollback", "prune"]))
    arguments = ["--keep", "0", "--older-than", "0s"] if command == "prune" else ["customers"]
    event(f"{command} {speaks(command, *arguments).exit_code}")
    done = speaks("run", "--json")
    assert done.exit_code == 0, done.output
    assert speaks("plan").exit_code == 0
