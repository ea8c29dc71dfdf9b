"""`kill -9` of processes that write to a store or delete from it, at every effect they have."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.code_version import Code
from mlops_assets.store import Artifact, ArtifactStore, ChampionChangedError, Champions
from mlops_assets.store.history import history
from mlops_assets.store.memo import Computation, Memo
from mlops_assets.store.prune import prune
from mlops_assets.store.trials import Trials as Study
from mlops_assets_tests.faults.effects import effects_of, in_child, kill_at
from mlops_assets_tests.faults.outside import artifacts, check, contents, leftovers
from mlops_assets_tests.faults.trials import Trials
from mlops_assets_tests.store.computations import age, compute

KEY = ["p", "a"]
DAMAGED = b"damaged"


@dataclass(frozen=True)
class Work:
    """Something that a process does to a store."""

    name: str
    does: Callable[[ArtifactStore], object]
    after: Callable[[ArtifactStore], object] = lambda store: None
    """What was done to the store before."""


def batches(rows: int = 3000, number: int = 4) -> Iterator[Any]:
    import pyarrow as pa

    return (pa.record_batch({"x": [0.5 + batch] * rows}) for batch in range(number))


@cache
def frame() -> Any:
    import pandas as pd

    return pd.DataFrame({"x": range(3000), "y": ["a", "b", "c"] * 1000})


@cache
def model() -> Any:
    from sklearn.dummy import DummyClassifier

    return DummyClassifier().fit([[0], [1]], [0, 1])


@cache
def figure() -> bytes:
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    return file.getvalue()


def computation(asset: str) -> Computation:
    return Computation(asset, None, Code({}, {"module": "1"}, {}), None, {})


def remember(store: ArtifactStore, artifact: Artifact) -> None:
    made = computation("/".join(artifact.key))
    Memo(store).put(made, artifact, {"checks": []}, run_id="run", seconds=1)


def hold(store: ArtifactStore, artifact: Artifact) -> None:
    asset = "/".join(artifact.key)
    made = computation(asset).fingerprint
    Memo(store).set_latest(
        "laptop", asset, None, version=artifact.version, fingerprint=made, run_id="run"
    )


def make(store: ArtifactStore, asset: str, value: object) -> Artifact:
    """As a step does."""
    artifact = store.write(asset.split("/"), value)
    hold(store, artifact)
    remember(store, artifact)
    return artifact


def only_version(store: ArtifactStore, asset: str) -> Artifact:
    [artifact] = store.versions(asset.split("/"))
    return artifact


def promote(store: ArtifactStore, trained: Artifact) -> None:
    """As `p/champion` does, which looks whether the model is the champion already."""
    champions = Champions(store, "p")
    if not champions.history():
        store.copy(trained, ["p", "champion"])
        at = "2024-01-31T00:00:00+00:00"
        champions.promote(
            trained.version, expected=None, metrics={}, reason="better", run_id="run", at=at
        )


def train(store: ArtifactStore) -> None:
    make(store, "p/raw", frame())
    promote(store, make(store, "p/model", model()))
    make(store, "p/metrics", {"roc_auc": 0.5})


def grow_old(store: ArtifactStore) -> None:
    for code in "123":
        raw = compute(store, "p/raw", [code], code=code, latest_of="laptop")
        trained = compute(store, "p/model", [0, code], raw, code=code, latest_of="laptop")
        compute(store, "p/predictions", [1, code], trained, partition="2024-01-31", code=code)
    age(store)


def damage(store: ArtifactStore) -> None:
    artifact = store.write(KEY, frame())
    Path(store.url, artifact.path).write_bytes(DAMAGED)


def prune_all(store: ArtifactStore) -> None:
    prune(store, keep=1, older_than=timedelta(days=30))


WORKS = [
    Work("a frame", lambda store: store.write(KEY, frame())),
    Work("a streamed table", lambda store: store.write(KEY, batches())),
    Work("a JSON value", lambda store: store.write(KEY, {"n": list(range(1000))})),
    Work("a model", lambda store: store.write(KEY, model())),
    Work("a figure", lambda store: store.write(KEY, figure())),
    Work("a partition", lambda store: store.write(KEY, frame(), "2024-01-31")),
    Work("a damaged frame again", lambda store: store.write(KEY, frame()), damage),
    Work(
        "the records of a computation",
        lambda store: remember(store, only_version(store, "p/a")),
        lambda store: store.write(KEY, frame()),
    ),
    Work(
        "the record of the latest",
        lambda store: hold(store, only_version(store, "p/a")),
        lambda store: store.write(KEY, frame()),
    ),
    Work(
        "a promotion",
        lambda store: promote(store, only_version(store, "p/model")),
        lambda store: store.write(["p", "model"], model()),
    ),
    Work("a trial", lambda store: Study(store, "p", "0" * 16, "study").put(0, {"score": 0.5})),
    Work("all of a training", train),
]


def whole(root: Path) -> dict[str, bytes]:
    """Check a store after a process was killed, and return what is visible of it."""
    found = contents(root)
    check({path: content for path, content in found.items() if content != DAMAGED})
    assert len(leftovers(root)) <= 1
    return found


def tidied(root: Path) -> None:
    store = ArtifactStore(str(root))
    store.tidy(datetime.now(UTC) + timedelta(seconds=5))
    assert leftovers(root) == []


def outcome(found: set[str], before: set[str], reference: set[str]) -> str:
    if found == reference:
        return "complete"
    return "absent" if found == before else "partly done, all of it whole"


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_a_process_that_is_killed_at_any_effect_leaves_whole_objects_or_none(
    work: Work, trials: Trials, tmp_path: Path
) -> None:
    template, reference = tmp_path / "template", tmp_path / "reference"
    template.mkdir()
    work.after(ArtifactStore(str(template)))
    before = contents(template)
    shutil.copytree(template, reference)
    work.does(ArtifactStore(str(reference)))
    expected = contents(reference)
    check(expected)
    names = effects_of(lambda: work.does(ArtifactStore(str(template))))
    shutil.rmtree(template)
    template.mkdir()
    work.after(ArtifactStore(str(template)))

    for trial in trials(f"kill -9 while writing {work.name}", 1 + min(len(names), 24)):
        with trial:
            root = tmp_path / f"trial-{trial.number}"
            shutil.copytree(template, root)
            point = trial.number * (len(names) // 24 or 1) % (len(names) + 1)
            trial.facts["killed"] = f"before {[*names, 'its end'][point]}, effect {point}"
            kill_at(lambda root=root: work.does(ArtifactStore(str(root))), point)
            found = whole(root)
            trial.outcome = outcome({*found}, {*before}, {*expected})
            if work.after is damage:
                trial.outcome = "absent" if DAMAGED in found.values() else "complete"
            work.does(ArtifactStore(str(root)))
            again = contents(root)
            check(again)
            assert again.keys() == expected.keys()
            assert {it: again[it] for it in artifacts(again)} == {
                it: expected[it] for it in artifacts(expected)
            }
            tidied(root)
            shutil.rmtree(root)


def test_a_prune_that_is_killed_at_any_effect_leaves_nothing_that_points_to_nothing(
    trials: Trials, tmp_path: Path
) -> None:
    template, reference = tmp_path / "template", tmp_path / "reference"
    grow_old(ArtifactStore(str(template)))
    (template / "p" / "raw" / f".tmp-{'0' * 32}").touch()
    os.utime(template / "p" / "raw" / f".tmp-{'0' * 32}", (0, 0))
    shutil.copytree(template, reference)
    names = effects_of(lambda: prune_all(ArtifactStore(str(reference))))
    points = [n for n, name in enumerate(names) if name in ("unlink", "rmdir")] + [len(names)]
    expected = contents(reference)
    assert leftovers(reference) == []

    for trial in trials("kill -9 while pruning", len(points)):
        with trial:
            root = tmp_path / f"trial-{trial.number}"
            shutil.copytree(template, root)
            point = points[trial.number % len(points)]
            kill_at(lambda root=root: prune_all(ArtifactStore(str(root))), point)
            found = whole(root)
            assert expected.keys() <= found.keys()
            before = {*contents(template)}
            trial.outcome = outcome({*found}, before, {*expected})
            trial.facts["deleted"] = len(before) - len(found)
            prune_all(ArtifactStore(str(root)))
            assert contents(root) == expected
            assert leftovers(root) == []
            shutil.rmtree(root)


def write_on(root: Path, seed: int) -> None:
    """Write one version after another, large and small, until somebody ends this."""
    import pyarrow as pa

    store = ArtifactStore(str(root))
    for number in count(seed):
        stream = (pa.record_batch({"x": [0.5 + number + batch] * 50_000}) for batch in range(8))
        large = store.write(["p", "large"], stream)
        small = store.write(["p", "small"], [large.version])
        Memo(store).put(
            Computation("p/small", None, Code({}, {"module": str(number)}, {}), None, {}),
            small,
            {"checks": []},
            run_id="run",
            seconds=1,
        )


def test_a_writer_that_is_killed_at_any_time_leaves_whole_objects_or_none(
    trials: Trials, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    killed = 0
    for trial in trials("kill -9 of a writer at a random time", 40):
        with trial:
            child = in_child(lambda number=trial.number: write_on(root, 1000 * number))
            delay = trial.random.uniform(0, 0.15)
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
            found = contents(root)
            check(found)
            cut = len(leftovers(root)) - killed
            killed += cut
            assert cut in (0, 1)
            trial.facts |= {"killed after": delay, "artefacts": len(artifacts(found))}
            trial.outcome = "in the middle of an artefact" if cut else "between artefacts"
            if trial.number % 10 == 9:
                tidied(root)
                shutil.rmtree(root)
                killed = 0
    store = ArtifactStore(str(root))
    assert not history(store, ["p", "small"]).notes


def test_of_two_writers_of_the_same_one_is_killed_and_the_other_finishes(
    trials: Trials, tmp_path: Path
) -> None:
    names = effects_of(lambda: train(ArtifactStore(str(tmp_path / "reference"))))
    expected = contents(tmp_path / "reference")
    for trial in trials("kill -9 of one of two that train the same at once", 20):
        with trial:
            root = tmp_path / f"trial-{trial.number}"
            point = trial.random.randrange(len(names))
            trial.facts["killed"] = f"before {names[point]}, effect {point}"
            other = in_child(lambda root=root: train_or_follow(ArtifactStore(str(root))))
            kill_at(lambda root=root: train_or_follow(ArtifactStore(str(root))), point)
            assert os.waitpid(other, 0)[1] == 0
            found = contents(root)
            check(found)
            assert found.keys() == expected.keys()
            trial.outcome = "complete by the other"
            tidied(root)
            shutil.rmtree(root)


def train_or_follow(store: ArtifactStore) -> None:
    """As two runs do at once: what the other has promoted meanwhile is the champion."""
    try:
        train(store)
    except ChampionChangedError:
        train(store)
