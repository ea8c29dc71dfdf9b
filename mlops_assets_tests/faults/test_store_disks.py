"""Disks that are full, read-only, closed, failing or gone, and clocks that are wrong."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from mlops_assets.errors import StoreError
from mlops_assets.store import ArtifactStore, Champions
from mlops_assets.store.memo import Memo
from mlops_assets.store.objects import StoreUnavailableError
from mlops_assets_tests.faults.effects import Effects, in_child
from mlops_assets_tests.faults.outside import artifacts, check, contents, leftovers
from mlops_assets_tests.faults.test_store_kills import (
    WORKS,
    Work,
    grow_old,
    prune_all,
    train,
)
from mlops_assets_tests.faults.trials import Trial, Trials

WRITES = [work for work in WORKS if work.name != "a damaged frame again"]
TOLD = (StoreError, StoreUnavailableError)


@contextmanager
def disk(folder: Path, *options: str) -> Iterator[Path]:
    """Mount an empty disk of its own at `folder`."""
    folder.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a small disk needs root, also in a container: {done.stderr.strip()}")


def expected_of(work: Work, folder: Path) -> dict[str, bytes]:
    work.after(ArtifactStore(str(folder)))
    work.does(ArtifactStore(str(folder)))
    return contents(folder)


def recovers(work: Work, root: Path, expected: dict[str, bytes]) -> None:
    """Check that the fault has left nothing half done, and that the same work succeeds now."""
    check(contents(root))
    assert leftovers(root) == []
    work.does(ArtifactStore(str(root)))
    found = contents(root)
    check(found)
    assert {it: found.get(it) for it in artifacts(expected)} == {
        it: expected[it] for it in artifacts(expected)
    }
    assert found.keys() == expected.keys()


def attempt(trial: Trial, work: Work, root: Path, *words: str) -> None:
    """Do something on a disk that may fail, and check that it says so in the promised words."""
    try:
        work.does(ArtifactStore(str(root)))
        trial.outcome = "done"
    except StoreError as error:
        trial.outcome = "refused, with what to do"
        told = str(error)
        assert any(word in told for word in words), told


@pytest.mark.parametrize(
    ("options", "filled"), [(("size=256k",), "bytes"), (("size=8m", "nr_inodes=40"), "files")]
)
def test_a_full_disk_is_told_and_once_there_is_room_the_same_succeeds(
    options: tuple[str, ...], filled: str, trials: Trials, tmp_path: Path
) -> None:
    expected = {work.name: expected_of(work, tmp_path / work.name) for work in WRITES}
    with disk(tmp_path / "disk", *options) as place:
        for trial in trials(f"a disk that has no room for more {filled}", 33):
            with trial:
                work = WRITES[trial.number % len(WRITES)]
                trial.facts["work"] = work.name
                root = place / "store"
                root.mkdir()
                work.after(ArtifactStore(str(root)))
                fill(place, filled, trial)
                attempt(trial, work, root, "the disk is full")
                for file in place.glob("ballast*"):
                    file.unlink()
                recovers(work, root, expected[work.name])
                shutil.rmtree(root)


def fill(place: Path, filled: str, trial: Trial) -> None:
    """Leave little room: none at all in every third trial."""
    room = trial.random.choice([0, 1, 2, 3, 5, 8, 13])
    trial.facts[f"room for {filled}"] = room * 4096 if filled == "bytes" else room
    if filled == "bytes":
        with suppress(OSError), (place / "ballast").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        size = (place / "ballast").stat().st_size
        os.truncate(place / "ballast", max(0, size - room * 4096))
        return
    made = []
    with suppress(OSError):
        for number in range(1000):
            made.append(place / f"ballast-{number}")
            made[-1].touch()
    for file in made[-1 - room :]:
        file.unlink(missing_ok=True)


def test_a_read_only_disk_is_told_and_what_is_there_is_read(trials: Trials, tmp_path: Path) -> None:
    expected = {work.name: expected_of(work, tmp_path / work.name) for work in WRITES}
    for trial in trials("a disk that becomes read-only", 11):
        with trial, disk(tmp_path / "disk", "size=8m") as place:
            work = WRITES[trial.number % len(WRITES)]
            trial.facts["work"] = work.name
            root = place / "store"
            old = ArtifactStore(str(root)).write(["p", "old"], [1])
            work.after(ArtifactStore(str(root)))
            _mount("-o", "remount,ro", str(place))
            with pytest.raises(StoreError, match=f"^{root}.* the file system is read-only"):
                work.does(ArtifactStore(str(root)))
            assert ArtifactStore(str(root)).read(old) == [1]
            trial.outcome = "refused, with what to do"
            _mount("-o", "remount,rw", str(place))
            ArtifactStore(str(root)).delete(old)
            recovers(work, root, expected[work.name])


def test_a_folder_that_may_not_be_written_is_told_and_what_is_there_is_read(
    trials: Trials, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user; the store's own tests do it by permissions")
    expected = {work.name: expected_of(work, tmp_path / work.name) for work in WRITES}
    for folder in (tmp_path, *tmp_path.parents):
        with suppress(OSError):
            folder.chmod(folder.stat().st_mode | 0o055)
    for trial in trials("a folder that may not be written", 11):
        with trial:
            work = WRITES[trial.number % len(WRITES)]
            trial.facts["work"] = work.name
            root = tmp_path / "store"
            root.mkdir()
            work.after(ArtifactStore(str(root)))

            def as_nobody(work: Work = work, root: Path = root) -> None:
                os.seteuid(65534)
                with pytest.raises(StoreError, match=r"may not do that; change the permissions"):
                    work.does(ArtifactStore(str(root)))

            assert os.waitpid(in_child(as_nobody), 0)[1] == 0
            trial.outcome = "refused, with what to do"
            recovers(work, root, expected[work.name])
            shutil.rmtree(root)


FAILURES = {
    errno.EIO: StoreUnavailableError,
    errno.ESTALE: StoreUnavailableError,
    errno.ETIMEDOUT: StoreUnavailableError,
    errno.ENOSPC: StoreError,
    errno.EDQUOT: StoreError,
    errno.EROFS: StoreError,
    errno.EACCES: StoreError,
}


def failing(number: int) -> Callable[[], None]:
    def fail() -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_call_of_the_file_system_that_fails_is_told_as_what_it_is(
    trials: Trials, tmp_path: Path
) -> None:
    expected, names = {}, {}
    for work in WRITES:
        expected[work.name] = expected_of(work, tmp_path / work.name)
        with Effects() as effects:
            work.does(ArtifactStore(str(tmp_path / work.name)))
        shutil.rmtree(tmp_path / work.name)
        work.after(ArtifactStore(str(tmp_path / work.name)))
        with Effects() as effects:
            work.does(ArtifactStore(str(tmp_path / work.name)))
        names[work.name] = effects.names
    for trial in trials("one call of the file system fails (EIO, ESTALE, ENOSPC, …)", 66):
        with trial:
            work = WRITES[trial.number % len(WRITES)]
            chance = trial.random
            point = chance.randrange(len(names[work.name]))
            number = chance.choice(list(FAILURES))
            call = names[work.name][point]
            trial.facts |= {"work": work.name, "fault": f"{call}: {os.strerror(number)}"}
            root = tmp_path / f"trial-{trial.number}"
            work.after(ArtifactStore(str(root)))
            with Effects(failing(number), point):
                try:
                    work.does(ArtifactStore(str(root)))
                    trial.outcome = "done all the same"
                    assert call not in ("fsync", "replace", "link", "write")
                except FAILURES[number] as error:
                    transient = isinstance(error, StoreUnavailableError)
                    trial.outcome = "worth a retry" if transient else "refused, with what to do"
            for file in leftovers(root):  # it could not be deleted either
                assert call == "unlink"
                file.unlink()
            recovers(work, root, expected[work.name])
            shutil.rmtree(root)


@pytest.mark.parametrize("instead", ["nothing", "a file"])
def test_a_store_that_is_deleted_while_it_is_written_is_told_and_written_again(
    instead: str, trials: Trials, tmp_path: Path
) -> None:
    alone = [work for work in WRITES if work.after is Work.after]  # looks nothing up before
    for trial in trials(f"the store is deleted under a writer, {instead} in its place", 22):
        with trial:
            work = alone[trial.number % len(alone)]
            root = tmp_path / f"trial-{trial.number}"
            with Effects() as counted:
                work.does(ArtifactStore(str(root)))
            expected = contents(root)
            shutil.rmtree(root)
            point = trial.random.randrange(len(counted.names))
            trial.facts |= {"work": work.name, "deleted": f"before {counted.names[point]}"}

            def delete(root: Path = root) -> None:
                shutil.rmtree(root, ignore_errors=True)
                if instead == "a file":
                    root.write_text("")

            with Effects(delete, point):
                try:
                    work.does(ArtifactStore(str(root)))
                    trial.outcome = "done all the same"
                except TOLD as error:
                    told = isinstance(error, StoreUnavailableError)
                    trial.outcome = "worth a retry" if told else "refused, with what to do"
            if root.is_file():
                with pytest.raises(StoreError, match="is a file where a folder is needed"):
                    ArtifactStore(str(root)).write(["a"], [1])
                root.unlink()
            shutil.rmtree(root, ignore_errors=True)
            recovers(work, root, expected)
            shutil.rmtree(root)


def test_files_whose_times_are_wrong_are_pruned_as_little_as_needed(
    trials: Trials, tmp_path: Path
) -> None:
    for trial in trials("clocks that differ by up to 400 days", 20):
        with trial:
            root = tmp_path / f"trial-{trial.number}"
            store = ArtifactStore(str(root))
            grow_old(store)
            train(store)
            needed = {
                computed.artifact
                for path, _ in store.records(".latest")
                if (record := store.get_record(path))
                and (computed := Memo(store).get(record["fingerprint"]))
            }
            skew(root, trial.random)
            prune_all(store)
            assert all(one is None or store.verify(one) for one in needed)
            [champion] = Champions(store, "p").history()
            assert store.find(["p", "champion"], champion.version)
            check(contents(root))
            before = contents(root)
            train(store)
            check(contents(root))
            trial.outcome = "all that is needed is there"
            trial.facts |= {"kept": len(before)}
            shutil.rmtree(root)


def skew(root: Path, chance: Random) -> None:
    """Let every file have been written by a machine with another wrong clock."""
    for file in sorted(root.rglob("*.*")):
        if file.is_file():
            moment = file.stat().st_mtime + chance.uniform(-400, 400) * 24 * 3600
            os.utime(file, (moment, moment))
