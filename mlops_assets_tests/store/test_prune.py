"""What is deleted, what stays and why, and what happens beside runs that go on."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.store import ArtifactStore, Champions, StoreUnavailableError
from mlops_assets.store.layout import folder_of, parse_object_path
from mlops_assets.store.memo import Computed, Memo
from mlops_assets.store.prune import PruneReport, prune
from mlops_assets_tests.servers import free_port
from mlops_assets_tests.store.computations import (
    age,
    all_paths_of,
    be_latest,
    compute,
    paths_in,
    paths_of,
    version_of,
)
from mlops_assets_tests.store.conftest import BUCKET
from mlops_assets_tests.store.test_crash_safety import start

NOW = timedelta(0)
MONTH = timedelta(days=30)


def prune_all(store: ArtifactStore, **options: Any) -> PruneReport:
    """Delete whatever nothing needs."""
    return prune(store, keep=0, older_than=NOW, **options)


def kept(report: PruneReport) -> dict[str, str]:
    """The reason for every version that is kept."""
    return {it.version: it.reason for folder in report.folders for it in folder.kept}


def train(store: ArtifactStore, number: int, latest_of: str | None = None) -> list[Computed]:
    """Data that are `number`, and what is made from them."""
    outside = {"iris/source": f"content {number}"}
    raw = compute(store, "iris/raw", number, outside=outside, latest_of=latest_of)
    split = compute(store, "iris/train", [number], raw, latest_of=latest_of)
    model = compute(store, "iris/model", {"n": number}, split, latest_of=latest_of)
    return [raw, split, model]


def promote(store: ArtifactStore, pipeline: str, model: Computed) -> str:
    """Make a model the champion; returns where the champion lies."""
    assert model.artifact is not None
    log = Champions(store, pipeline)
    log.promote(
        model.artifact.version,
        expected=log.current(),
        metrics={"accuracy": 0.9},
        reason="better",
        run_id=None,
        at="2024-01-31T00:00:00+00:00",
    )
    return store.copy(model.artifact, [pipeline, "champion"]).path


def test_what_no_instance_holds_as_the_latest_is_deleted_with_its_records(
    store: ArtifactStore,
) -> None:
    old, new = train(store, 1, "laptop"), train(store, 2, "laptop")
    report = prune_all(store)
    assert paths_in(store) == all_paths_of(new)
    assert report.forgotten == len(old)
    assert [(it.folder, len(it.kept), it.deleted) for it in report.folders] == [
        ("iris/model", 1, 1),
        ("iris/raw", 1, 1),
        ("iris/train", 1, 1),
    ]
    freed = sum(it.artifact.size for it in old if it.artifact)
    assert sum(it.freed for it in report.folders) == freed
    assert report.notes == []


def test_what_the_latest_was_made_from_stays_down_to_the_data(store: ArtifactStore) -> None:
    old = train(store, 1)
    be_latest(store, old[-1], "laptop")
    new = train(store, 2, "ci")
    report = prune_all(store)
    assert paths_in(store) == all_paths_of(old + new)
    assert [kept(report)[version_of(it)] for it in old] == [
        "iris/train was made from it",
        "iris/model was made from it",
        "the latest of instance laptop",
    ]


def test_every_champion_ever_stays_with_what_it_was_made_from(store: ArtifactStore) -> None:
    first, second = train(store, 1), train(store, 2)
    train(store, 3)
    champions = {promote(store, "iris", it[-1]) for it in (first, second, first)}
    report = prune_all(store)
    promotions = {
        path
        for folder in (".champions", ".copies")
        for path in store.list_records(f"{folder}/iris")
    }
    assert len(promotions) == 2 * 3
    assert paths_in(store) == all_paths_of(first + second) | champions | promotions
    assert kept(report)[version_of(second[-1])] == "champion 00000002 of iris"


def test_the_newest_versions_of_each_asset_stay_with_what_they_were_made_from(
    local: ArtifactStore,
) -> None:
    runs = [train(local, number) for number in range(4)]
    for days, run in enumerate(reversed(runs)):
        age(local, timedelta(days=days), *all_paths_of(run))
    extra = compute(local, "iris/model", "another", runs[0][1])
    report = prune(local, keep=2, older_than=NOW)
    assert paths_in(local) == all_paths_of([*runs[2], *runs[3], *runs[0][:2], extra]) - paths_of(
        runs[2][2]
    )
    assert kept(report)[version_of(extra)] == "among the 2 newest"


def test_what_was_written_recently_stays_with_what_it_was_made_from(local: ArtifactStore) -> None:
    forgotten, old = train(local, 1), train(local, 2)
    age(local)
    recent = compute(local, "iris/model", "recent", old[1])
    by_hand = local.write(["notes"], 1)
    report = prune(local, keep=0, older_than=MONTH)
    assert paths_in(local) == all_paths_of([*old[:2], recent]) | {by_hand.path}
    assert kept(report)[version_of(recent)] == "written recently"
    assert forgotten[0].fingerprint not in str(paths_in(local))


def test_a_recent_computation_keeps_an_old_artefact_that_it_produced_again(
    local: ArtifactStore,
) -> None:
    old = compute(local, "a", 1)
    age(local)
    recent = compute(local, "a", 1, code="2")
    prune(local, keep=0, older_than=MONTH)
    assert paths_in(local) == paths_of(recent)
    assert version_of(old) == version_of(recent)
    assert local.read(recent.artifact) == 1  # type: ignore[arg-type]


def test_nothing_is_too_old_or_too_young_to_count(local: ArtifactStore) -> None:
    train(local, 1)
    age(local)
    before = paths_in(local)
    prune(local, keep=0, older_than=timedelta.max)
    assert paths_in(local) == before
    for options in ({"keep": -1, "older_than": NOW}, {"keep": 0, "older_than": -MONTH}):
        with pytest.raises(ValueError, match="must not be negative"):
            prune(local, **options)  # type: ignore[arg-type]


def test_what_a_run_in_progress_may_load_stays(local: ArtifactStore) -> None:
    loaded, forgotten = train(local, 1), train(local, 2)
    age(local)
    since = datetime.now(UTC) - timedelta(minutes=1)
    written = compute(local, "iris/metrics", {"accuracy": 0.9}, loaded[-1])
    protected = [(["iris", "model"], None, version_of(loaded[-1]))]
    report = prune_all(local, protected=protected, since=since)
    assert paths_in(local) == all_paths_of([*loaded, written])
    assert version_of(forgotten[-1]) not in kept(report)
    assert (
        kept(report)[version_of(loaded[-1])] == "the latest here, or a run in progress may load it"
    )
    assert kept(report)[version_of(written)] == "written since the oldest run began"


def test_the_reference_of_a_model_stays_as_long_as_the_model(local: ArtifactStore) -> None:
    old, new = train(local, 1)[-1], train(local, 2, "laptop")[-1]
    for model in (old, new):
        local.put_record(f".references/iris/{version_of(model)}-1.json", {})
    age(local)
    prune_all(local)
    assert local.list_records(".references/iris") == [f".references/iris/{version_of(new)}-1.json"]


def test_a_dry_run_says_the_same_and_deletes_nothing(store: ArtifactStore) -> None:
    for number in range(3):
        train(store, number, "laptop")
    store.write(["iris", "model"], "by hand")
    before = paths_in(store)
    planned = prune_all(store, dry_run=True)
    assert paths_in(store) == before
    assert prune_all(store) == planned
    assert paths_in(store) < before


def test_whoever_waits_is_told_how_much_was_deleted(local: ArtifactStore) -> None:
    for number in range(3):
        train(local, number)
    before, told = len(list(local.contents())), list[int]()
    prune_all(local, told=told.append)
    assert told == sorted(told)
    assert told[-1] == before - len(list(local.contents())) > 0


def test_pruning_again_changes_nothing(store: ArtifactStore) -> None:
    for number in range(3):
        train(store, number, "laptop")
    prune_all(store)
    before = paths_in(store)
    report = prune_all(store)
    assert paths_in(store) == before
    assert (report.forgotten, sum(it.deleted for it in report.folders)) == (0, 0)


def test_the_latest_of_every_partition_stays_and_what_was_made_from_each(
    store: ArtifactStore,
) -> None:
    partitions = ["2024-01-31", "a/b", "..", "50 %[x]", "ü"]
    old = [compute(store, "scores", f"old {it}", partition=it) for it in partitions]
    used = compute(store, "report", "all", *old[:3], latest_of="laptop")
    new = [
        compute(store, "scores", f"new {it}", partition=it, code="2", latest_of="laptop")
        for it in partitions
    ]
    prune_all(store)
    assert paths_in(store) == all_paths_of([*old[:3], used, *new])


def test_a_key_and_a_partition_that_share_a_folder_keep_what_either_needs(
    store: ArtifactStore,
) -> None:
    of_key = compute(store, "a/b", "key", latest_of="laptop")
    shared = compute(store, "a/b", "shared", code="2")
    of_partition = compute(store, "a", "shared", partition="b", latest_of="ci")
    compute(store, "a", "gone", partition="b", code="2")
    assert version_of(shared) == version_of(of_partition)
    prune_all(store)
    assert paths_in(store) == paths_of(of_key) | paths_of(of_partition)


def test_versions_written_by_hand_stay_while_they_are_among_the_newest(
    local: ArtifactStore,
) -> None:
    artifacts = [local.write(["notes"], number) for number in range(3)]
    for days, artifact in enumerate(artifacts):
        age(local, timedelta(days=days), artifact.path)
    report = prune(local, keep=1, older_than=NOW)
    assert paths_in(local) == {artifacts[0].path}
    assert (report.folders[0].deleted, report.forgotten) == (2, 0)


def test_an_asset_without_a_value_is_remembered_as_long_as_it_is_the_latest(
    store: ArtifactStore,
) -> None:
    model = compute(store, "iris/model", "m")
    champion = compute(store, "iris/champion", None, model, latest_of="laptop")
    prune_all(store)
    assert paths_in(store) == paths_of(model) | paths_of(champion)
    compute(store, "iris/champion", None, code="2", latest_of="laptop")
    prune_all(store)
    assert not paths_of(champion) & paths_in(store)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (".latest/laptop/iris/model.json", b"{"),
        (".latest/laptop/iris/model.json", b"{}"),
        (".latest/laptop/iris/model.json", b'{"fingerprint": ["x"]}'),
        (".latest/laptop/iris/model.json", b'{"fingerprint": "../../etc/passwd"}'),
        (".latest/laptop/iris/model.json", b'{"fingerprint": "0123"}'),
        (".champions/iris/00000001.json", b""),
        (".champions/iris/00000001.json", b'{"version": 5}'),
        (".champions/iris/00000001.json", b'{"version": "latest"}'),
        (".champions/iris/x.json", b"[]"),
    ],
)
def test_where_a_damaged_record_hides_what_is_needed_everything_stays(
    store: ArtifactStore, path: str, content: bytes
) -> None:
    first, second = train(store, 1), train(store, 2)
    store._objects.create(path, content)
    report = prune_all(store)
    assert paths_in(store) - {path} == all_paths_of(first + second)
    assert len(report.notes) == 1
    assert path in report.notes[0]
    assert "every version in" in report.notes[0]
    assert "iris/model" in report.notes[0]


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"{",
        b"{}",
        b'{"asset": 5, "partition": null, "code": {"version": "", "parameters": {}, "modules": {},'
        b' "libraries": {}}, "config": null, "inputs": [], "output": null, "run_id": "", "at": "",'
        b' "seconds": 0}',
    ],
)
def test_the_latest_stays_although_the_record_of_its_computation_is_lost(
    store: ArtifactStore, content: bytes | None
) -> None:
    train(store, 1)
    model = train(store, 2, "laptop")[-1]
    path = f".memo/{model.fingerprint}.json"
    store.discard([path])
    if content is not None:
        store._objects.create(path, content)
    prune_all(store)
    assert store.versions(["iris", "model"]) == [model.artifact]
    assert len(store.versions(["iris", "raw"])) == 1


def test_a_lost_artefact_is_nothing_to_keep(store: ArtifactStore) -> None:
    raw, split, model = train(store, 1, "laptop")
    assert split.artifact is not None
    store.delete(split.artifact)
    prune_all(store)
    assert paths_in(store) == all_paths_of([raw, split, model]) - {split.artifact.path}


def test_files_that_are_no_versions_are_never_touched(local: ArtifactStore) -> None:
    name = "0123456789abcdef.json"
    foreign = [
        name,
        f".git/{name}",
        f"a/.cache/{name}",
        f"my files/{name}",
        f"ü/{name}",
        "a/0123456789abcdef.pkl",
        "a/notes.txt",
        "a/b/README",
        ".memo/notes.json",
        ".events/a/notes.json",
        ".latest/notes.json",
        f".other/{name}",
    ]
    for path in foreign:
        file = Path(local.url, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    compute(local, "a", 1)
    age(local)
    prune_all(local)
    assert {
        str(it.relative_to(local.url)) for it in Path(local.url).rglob("*") if it.is_file()
    } == {*foreign}


def test_folders_that_were_emptied_and_leftovers_of_killed_writers_are_removed(
    local: ArtifactStore,
) -> None:
    compute(local, "a/b", 1, partition="x")
    kept_one = local.write(["c"], 1)
    names = ["c/.tmp-" + "0" * 32, "c/.tmp-" + "1" * 32, "c/.tmp-mine"]
    for name in names:
        Path(local.url, name).write_text("")
    age(local, timedelta(hours=25), names[0], names[2])
    prune(local, keep=0, older_than=NOW, protected=[(["c"], None, kept_one.version)])
    assert {str(it.relative_to(local.url)) for it in Path(local.url).rglob("*")} == {
        "c",
        kept_one.path,
        *names[1:],
    }


def test_a_store_that_was_never_written_is_pruned(tmp_path: Path) -> None:
    report = prune_all(ArtifactStore(str(tmp_path / "never")))
    assert report == PruneReport([], 0, [])
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_does_not_answer_is_worth_a_retry(s3_endpoint: str) -> None:
    store = ArtifactStore(f"s3://{BUCKET}/x", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnavailableError):
        prune_all(store)


def test_a_store_that_may_not_be_changed_is_named_with_the_remedy(local: ArtifactStore) -> None:
    old = train(local, 1)
    process = start(
        """
        import os
        from datetime import timedelta
        from pathlib import Path
        from mlops_assets.errors import StoreError
        from mlops_assets.store import ArtifactStore
        from mlops_assets.store.prune import prune

        if os.geteuid() == 0:  # root may write anywhere
            os.seteuid(65534)
        else:
            Path(folder, ".memo").chmod(0o555)
        try:
            prune(ArtifactStore(folder), keep=0, older_than=timedelta(0))
        except StoreError as error:
            print(str(error).startswith(folder) and "permissions" in str(error))
        """,
        Path(local.url),
    )
    assert process.communicate()[0] == "True\n"
    Path(local.url, ".memo").chmod(0o755)
    assert paths_in(local) == all_paths_of(old)


# --- beside runs that go on ---------------------------------------------------------------------


class Meddled(ArtifactStore):
    """A store in which something happens just before something is deleted."""

    def __init__(self, url: str, happens: Callable[[Sequence[str]], None]) -> None:
        super().__init__(url)
        self._happens = happens

    def discard(self, paths: Sequence[str]) -> None:
        self._happens(paths)
        super().discard(paths)


def test_an_old_version_that_a_run_takes_up_meanwhile_stays(local: ArtifactStore) -> None:
    old, _ = train(local, 1), train(local, 2, "laptop")

    def reuse(paths: Sequence[str]) -> None:
        if any(path.startswith(".events/") for path in paths):
            for computed in old:
                be_latest(local, computed, "ci")

    report = prune_all(Meddled(local.url, reuse))
    for computed in old:
        assert computed.artifact is not None
        local.read(computed.artifact)
        assert kept(report)[version_of(computed)] == "the latest of instance ci"


def test_a_model_that_is_promoted_meanwhile_stays(local: ArtifactStore) -> None:
    old, _ = train(local, 1), train(local, 2, "laptop")
    champions: list[str] = []

    def promote_once(paths: Sequence[str]) -> None:
        if not champions:
            champions.append(promote(local, "iris", old[-1]))

    prune_all(Meddled(local.url, promote_once))
    assert {champions[0], f"iris/model/{version_of(old[-1])}.json"} <= paths_in(local)


def test_what_is_computed_meanwhile_stays(local: ArtifactStore) -> None:
    train(local, 1)
    new: list[Computed] = []

    def run(paths: Sequence[str]) -> None:
        if not new:
            new.extend(train(local, 2, "laptop"))

    prune_all(Meddled(local.url, run))
    assert paths_in(local) == all_paths_of(new)


def test_several_prunes_at_once_end_like_one(store: ArtifactStore) -> None:
    for number in range(3):
        train(store, number)
    new = train(store, 4, "laptop")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: prune_all(store), range(3)))
    assert paths_in(store) == all_paths_of(new)


class Killed(BaseException):
    """The process is killed."""


def test_a_prune_that_is_killed_leaves_what_is_needed_and_nothing_that_points_nowhere() -> None:
    steps = 0
    while True:
        store = ArtifactStore(f"memory://{uuid.uuid4().hex}")
        old = [*train(store, 1), *train(store, 2)]
        new = train(store, 3, "laptop")
        left = steps

        def die(paths: Sequence[str], store: ArtifactStore = store) -> None:
            nonlocal left
            if left < len(paths):
                store.discard(paths[:left])
                raise Killed
            left -= len(paths)

        with suppress(Killed):
            prune_all(Meddled(store.url, die))
            break
        memo = Memo(store)
        assert all_paths_of(new) <= paths_in(store)
        assert all(memo.is_intact(it) for it in old if memo.get(it.fingerprint))
        prune_all(store)
        assert paths_in(store) == all_paths_of(new)
        steps += 1
    assert steps == len(all_paths_of(old))


# --- whatever was computed ----------------------------------------------------------------------

ASSETS = ("p/raw", "p/train", "p/model", "p/champion", "q", "q/b")


@dataclass(frozen=True)
class Node:
    """A computation of a random graph."""

    asset: str
    partition: str | None
    value: int | None
    made_from: tuple[int, ...]  # nodes before it, counted from its own place


nodes = st.builds(
    Node,
    asset=st.sampled_from(ASSETS),
    partition=st.sampled_from([None, None, "b", "x/y"]),
    value=st.none() | st.integers(0, 5),
    made_from=st.lists(st.integers(1, 6), max_size=3).map(tuple),
)


def build(store: ArtifactStore, graph: Sequence[Node]) -> list[Computed]:
    """Compute a graph; equal nodes are told apart by their code."""
    made: list[Computed] = []
    for number, node in enumerate(graph):
        inputs = [made[number - back] for back in node.made_from if back <= number]
        made.append(
            compute(
                store,
                node.asset,
                node.value,
                *inputs,
                partition=node.partition,
                code=str(number),
            )
        )
    return made


def input_paths(computed: Computed, by_place: dict[tuple[str, str], str]) -> set[str]:
    return {by_place[it] for it in computed.inputs.items() if it in by_place}


@settings(max_examples=60)
@given(
    st.lists(nodes, max_size=20),
    st.lists(st.tuples(st.sampled_from(["laptop", "ci"]), st.integers(0, 19)), max_size=6),
    st.lists(st.integers(0, 19), max_size=2),
)
def test_what_is_needed_stays_and_all_else_goes(
    graph: list[Node], pointers: list[tuple[str, int]], promoted: list[int]
) -> None:
    store = ArtifactStore(f"memory://{uuid.uuid4().hex}")
    made = build(store, graph)
    latest = {}
    for instance, number in pointers:
        if number < len(made):
            be_latest(store, made[number], instance)
            folder = folder_of(made[number].asset.split("/"), made[number].partition)
            latest[instance, folder] = made[number].fingerprint
    champions = set()
    for number in promoted:
        if number < len(made) and (artifact := made[number].artifact):
            promote(store, "p", made[number])
            champions |= {f"p/{it}/{artifact.version}.json" for it in ("champion", "model")}
    ever = paths_in(store)
    prune_all(store)
    paths = paths_in(store)

    roots = set(latest.values())
    left = [it for it in made if f".memo/{it.fingerprint}.json" in paths]
    by_place = {
        (it.asset if it.partition is None else f"{it.asset}[{it.partition}]", version_of(it)): (
            it.artifact.path
        )
        for it in made
        if it.artifact
    }
    assert roots <= {it.fingerprint for it in left}
    for computed in left:
        assert paths_of(computed) <= paths
        assert input_paths(computed, by_place) <= paths
        assert computed.artifact is None or store.verify(computed.artifact)

    # Whatever is there is a root, or made something that is there; of the computations that made
    # the same, one is enough.
    artifacts = {path for path in paths if parse_object_path(path)}
    needed = champions & ever
    for computed in left:
        needed |= input_paths(computed, by_place)
        if computed.artifact and computed.fingerprint in roots:
            needed.add(computed.artifact.path)
    assert artifacts == needed
    makers = Counter(it.artifact and it.artifact.path for it in left if it.fingerprint not in roots)
    assert None not in makers
    assert set(makers.values()) <= {1}
    made_paths = {it.artifact.path for it in made if it.artifact}
    assert artifacts & made_paths == {it.artifact.path for it in left if it.artifact}
    assert {it for it in paths if it.startswith(".events/")} == {
        path for it in left for path in paths_of(it) if path.startswith(".events/")
    }

    prune_all(store)
    assert paths_in(store) == paths


# --- scale --------------------------------------------------------------------------------------


class Counted:
    """Passes everything on and counts it."""

    def __init__(self, objects: Any) -> None:
        self.calls: Counter[str] = Counter()
        self._objects = objects

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._objects, name)


def test_the_store_is_listed_once_and_only_what_is_kept_is_read(local: ArtifactStore) -> None:
    for number in range(30):
        train(local, number, "laptop")
    counted = Counted(local._objects)
    local._objects = counted
    report = prune(local, keep=2, older_than=NOW)
    assert sum(it.deleted for it in report.folders) == 3 * 28
    assert counted.calls["read"] <= 3 + 3 * 2 * 2  # roots; what is kept, and what is beside it
    assert counted.calls["list"] == 1 + 2 * 4  # everything; roots, and again before each deletion
    assert counted.calls["delete"] == 3
    assert set(counted.calls) == {"read", "list", "delete", "tidy"}
