"""Deletes the versions that nothing needs any more.

Kept are, each with everything that it was made from:

- what any Dagster instance that uses the store holds as the latest of an asset or partition,
- every champion that ever was,
- what runs in progress may load, as far as the caller knows of them (see `running`),
- the newest versions of each asset or partition, and everything written recently.

The trials of a search for parameters stay as long as the training set that they are about, and what
the scored days of a model are compared with as long as the model.

Of the computations that gave equal content, the one closest to the content is kept; the others are
forgotten, unless they are recent or somebody's latest.

What may happen beside it. Records are deleted before the objects they name, so that a prune that is
killed leaves nothing behind that points to nothing, and the next one goes on. A run that begins
while versions are deleted may reuse an old one: it then says so in `.latest`, which is read again
before every batch of deletions. Not guaranteed is therefore:

- a version that a run takes up between that look and the end of the batch, some seconds at most,
- an old version that a run in progress of *another* Dagster instance has taken up and that another
  run of that instance has already replaced as the latest,
- content that an asset without a code version writes again while it is being deleted.

Such a run fails with an error that names the version and, started again, computes it anew; nothing
wrong is ever loaded. Whatever is younger than `older_than` is never touched.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple, TypeVar

from mlops_assets.errors import StoreError
from mlops_assets.store.artifacts import ArtifactStore
from mlops_assets.store.codecs import CODECS
from mlops_assets.store.history import READERS
from mlops_assets.store.layout import (
    folder_of,
    object_path,
    parse_computation_path,
    parse_object_path,
    parse_reference_path,
    parse_trial_path,
)
from mlops_assets.store.memo import Computed, Memo
from mlops_assets.store.objects import ObjectInfo

BATCH = 1000  # objects that S3 deletes with one request
_LEFTOVERS = timedelta(days=1)  # an upload that wrote nothing for so long is none
_LATEST = ".latest"
_CHAMPIONS = ".champions"
_ROOT = re.compile(r"\.latest/[^/]+/.+\.json|\.champions/[^/]+/[^/]+\.json")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Protected = tuple[Sequence[str], str | None, str]
"""Key, partition and version of an artefact that has to stay."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Version(NamedTuple):
    """A version of an asset, or of a partition of it: what lies at one place of the store."""

    folder: str
    version: str


@dataclass(frozen=True)
class Kept:
    """A version that stays."""

    version: str
    size: int  # bytes
    modified: datetime
    reason: str


@dataclass(frozen=True)
class FolderReport:
    """What becomes of the versions of an asset, or of a partition of it."""

    folder: str
    kept: list[Kept]
    """The newest first."""
    deleted: int
    freed: int  # bytes


@dataclass(frozen=True)
class PruneReport:
    """What was deleted and what was not, or with `dry_run` what would be."""

    folders: list[FolderReport]
    forgotten: int
    """Computations whose records were deleted."""
    notes: list[str]
    """What could not be read, and what was kept for that reason; in words for people."""


def prune(
    store: ArtifactStore,
    *,
    keep: int,
    older_than: timedelta,
    protected: Iterable[Protected] = (),
    since: datetime | None = None,
    dry_run: bool = False,
    told: Callable[[int], None] = lambda deleted: None,
) -> PruneReport:
    """Delete the versions that nothing needs any more, and the records that name them.

    The store is listed once. Records are read of what is kept alone.

    Parameters
    ----------
    keep
        How many of the newest versions of each asset or partition stay, needed or not.
    older_than
        Whatever was written less than this ago stays. Below an hour only for a store that nobody
        else uses: an artefact is written shortly before it is recorded as the latest.
    protected, since
        What runs in progress may load: these versions, and everything written since then.
    dry_run
        Delete nothing.
    told
        Is told now and then how many objects, records included, have been deleted so far.

    Raises
    ------
    StoreError, StoreUnavailableError
        When the store cannot be read or changed; what was deleted by then was not needed.
    ValueError
        When `keep` or `older_than` is negative.
    """
    if keep < 0 or older_than < timedelta(0):
        raise ValueError(f"keep={keep} and older_than={older_than} must not be negative")
    now = datetime.now(UTC)
    recent = now - min(older_than, now - _EPOCH)
    listing = _Listing(store.contents())
    needed = _Needed(store, listing)
    needed.look_at_roots()
    in_use = (Version(folder_of(key, partition), version) for key, partition, version in protected)
    needed.add(dict.fromkeys(in_use, "the latest here, or a run in progress may load it"), {})
    needed.add(dict.fromkeys(listing.newest(keep), f"among the {keep} newest"), {})
    if since:
        needed.add(*listing.written_since(since, "written since the oldest run began"))
    needed.add(*listing.written_since(recent, "written recently"))
    if not dry_run:
        _delete(store, listing, needed, told)
        store.tidy(now - _LEFTOVERS)
    return _report(listing, needed)


class _Listing:
    """What is in a store, from one listing."""

    def __init__(self, contents: Iterable[ObjectInfo]) -> None:
        self.objects: dict[str, dict[str, ObjectInfo]] = defaultdict(dict)  # by folder and version
        self.memos: dict[str, datetime] = {}  # by fingerprint
        self.events: dict[str, dict[str, datetime]] = defaultdict(dict)  # by folder and fingerprint
        self.about: dict[str, datetime] = {}  # records about a version, by path
        for info in contents:
            artifact = parse_object_path(info.path)
            match parse_computation_path(info.path):
                case "memo", "", fingerprint:
                    self.memos[fingerprint] = info.modified
                case "events", folder, fingerprint:
                    self.events[folder][fingerprint] = info.modified
                case None if artifact and artifact[1] in CODECS:
                    folder = info.path.rpartition("/")[0]
                    self.objects[folder][artifact[0]] = info
                case None if _subjects(info.path):
                    self.about[info.path] = info.modified

    def has(self, version: Version) -> bool:
        return version.version in self.objects.get(version.folder, {})

    def versions(self, folder: str) -> list[Version]:
        """Versions in a folder, the newest first."""
        infos = self.objects.get(folder, {})
        newest = sorted(infos, key=lambda it: (infos[it].modified, it), reverse=True)
        return [Version(folder, version) for version in newest]

    def newest(self, count: int) -> Iterator[Version]:
        for folder in self.objects:
            yield from self.versions(folder)[:count]

    def written_since(
        self, moment: datetime, reason: str
    ) -> tuple[dict[Version, str], dict[str, str]]:
        """Versions and computations, each with the reason."""
        versions = {
            Version(folder, version): reason
            for folder, infos in self.objects.items()
            for version, info in infos.items()
            if info.modified >= moment
        }
        versions |= {
            version: f"{path} is about it: {reason}"
            for path, modified in self.about.items()
            if modified >= moment
            for version in _subjects(path)
        }
        computations = {
            fingerprint: reason
            for records in (self.memos, *self.events.values())
            for fingerprint, modified in records.items()
            if modified >= moment
        }
        return versions, computations

    def computations_around(self, version: Version) -> list[str]:
        """Computations that may have made a version, the one recorded closest to it first."""
        written = self.objects[version.folder][version.version].modified
        recorded = {
            fingerprint: self.memos[fingerprint]
            for fingerprint in self.events.get(version.folder, {})
            if fingerprint in self.memos
        }
        return sorted(recorded, key=lambda it: (abs(recorded[it] - written), it))

    def paths(self) -> Iterator[Iterator[str]]:
        """All paths, in the order in which they may be deleted."""
        yield (f".memo/{fingerprint}.json" for fingerprint in self.memos)
        yield (
            f".events/{folder}/{fingerprint}.json"
            for folder, fingerprints in self.events.items()
            for fingerprint in fingerprints
        )
        yield iter(self.about)
        yield (info.path for infos in self.objects.values() for info in infos.values())


class _Made(NamedTuple):
    """What is to be known of a computation."""

    folder: str
    output: Version | None
    inputs: list[Version]


class _Needed:
    """What has to stay, with the reason; grows with every root that is found."""

    def __init__(self, store: ArtifactStore, listing: _Listing) -> None:
        self.versions: dict[Version, str] = {}
        self.computations: set[str] = set()
        self.notes: list[str] = []
        self._store = store
        self._memo = Memo(store)
        self._listing = listing
        self._roots: dict[str, str] = {}
        self._made: dict[str, _Made | None] = {}
        self._makers: dict[Version, str] = {}

    def keeps(self, path: str) -> bool:
        if subjects := _subjects(path):
            return any(version in self.versions for version in subjects)
        folder, _, name = path.rpartition("/")
        name = name.partition(".")[0]
        return name in self.computations or Version(folder, name) in self.versions

    def look_at_roots(self) -> None:
        """Add what is the latest somewhere, and all champions, as far as they have changed."""
        roots = {
            info.path: info.tag
            for folder in (_LATEST, _CHAMPIONS)
            for info in self._store.contents(folder)
            if _ROOT.fullmatch(info.path)
        }
        changed = [path for path, tag in roots.items() if self._roots.get(path) != tag]
        self._roots = roots
        versions: dict[Version, str] = {}
        computations: dict[str, str] = {}
        for found in _in_parallel(self._root, changed):
            versions.update(found[0])
            computations.update(found[1])
        self.add(versions, computations)

    def add(self, versions: Mapping[Version, str], computations: Mapping[str, str]) -> None:
        """Keep versions and computations, and all that they were made from; with the reasons."""
        while versions or computations:
            new = {it: why for it, why in computations.items() if it not in self.computations}
            self.computations.update(new)
            reached = dict(versions)
            for fingerprint, made in zip(new, _in_parallel(self._read, new), strict=True):
                if made is None:
                    continue
                if made.output:
                    self._makers.setdefault(made.output, fingerprint)
                    reached.setdefault(made.output, new[fingerprint])
                for version in made.inputs:
                    reached.setdefault(version, f"{made.folder} was made from it")
            fresh = {
                it: why
                for it, why in reached.items()
                if it not in self.versions and self._listing.has(it)
            }
            self.versions.update(fresh)
            makers = zip(_in_parallel(self._maker, fresh), fresh.values(), strict=True)
            versions, computations = {}, {maker: why for maker, why in makers if maker}

    def _root(self, path: str) -> tuple[dict[Version, str], dict[str, str]]:
        """Versions and computations that a root keeps, each with the reason."""
        kind, owner, name = path.removesuffix(".json").split("/", 2)
        if kind == _CHAMPIONS:
            folders, why = [f"{owner}/champion", f"{owner}/model"], f"champion {name} of {owner}"
        else:
            folders, why = [name], f"the latest of instance {owner}"
        try:
            record = self._store.get_record(path)
            if record is None:  # deleted since it was listed
                return {}, {}
            if kind == _CHAMPIONS:
                object_path(path, record["version"], "skops")  # refuses what is no version
                return {Version(folder, record["version"]): why for folder in folders}, {}
            computed = record["fingerprint"]
            made = {computed: why} if computed is not None and self._read(computed) else {}
            if record["version"] is None:
                return {}, made
            object_path(name, record["version"], "json")
            return {Version(name, record["version"]): why}, made
        except (StoreError, KeyError, TypeError):
            self.notes.append(
                f"{path} is damaged: every version in {' and '.join(folders)} is kept"
            )
        versions = [version for folder in folders for version in self._listing.versions(folder)]
        return dict.fromkeys(versions, f"{path} is damaged"), {}

    def _maker(self, version: Version) -> str | None:
        """Computation that made a version; None when there is no record of it."""
        if version in self._makers:
            return self._makers[version]
        for fingerprint in self._listing.computations_around(version):
            made = self._read(fingerprint)
            if made and made.output == version:
                return fingerprint
        return None

    def _read(self, fingerprint: str) -> _Made | None:
        """What a computation made from what; None when its record is damaged or missing."""
        if fingerprint not in self._made:
            computed = self._memo.get(fingerprint)
            self._made[fingerprint] = _made(computed) if computed else None
        return self._made[fingerprint]


def _subjects(path: str) -> list[Version]:
    """Return what a trial or a reference is about; nothing for the path of anything else."""
    if trial := parse_trial_path(path):
        pipeline, version = trial
        return [Version(f"{pipeline}/train", version)]
    if reference := parse_reference_path(path):
        pipeline, version = reference
        return [Version(f"{pipeline}/{asset}", version) for asset in ("champion", "model")]
    return []


def _made(computed: Computed) -> _Made | None:
    try:
        folder = folder_of(computed.asset.split("/"), computed.partition)
        output = Version(folder, str(computed.artifact.version)) if computed.artifact else None
        return _Made(folder, output, list(_inputs(computed.inputs)))
    except (AttributeError, TypeError, StoreError):
        return None


def _inputs(inputs: Mapping[str, str]) -> Iterator[Version]:
    """Where inputs lie: `churn/train`, or `churn/predictions[2024-01-31]` for a partition."""
    for name, version in inputs.items():
        asset, bracket, partition = name.partition("[")
        with suppress(StoreError):  # nothing that a store can hold
            folder = folder_of(asset.split("/"), partition[:-1] if bracket else None)
            yield Version(folder, str(version))


def _delete(
    store: ArtifactStore, listing: _Listing, needed: _Needed, told: Callable[[int], None]
) -> None:
    deleted = 0
    for paths in listing.paths():
        for batch in _batches(path for path in paths if not needed.keeps(path)):
            needed.look_at_roots()
            unneeded = [path for path in batch if not needed.keeps(path)]
            store.discard(unneeded)
            deleted += len(unneeded)
            told(deleted)


def _report(listing: _Listing, needed: _Needed) -> PruneReport:
    folders = []
    for folder in sorted(listing.objects):
        infos = listing.objects[folder]
        kept = [
            Kept(it.version, infos[it.version].size, infos[it.version].modified, why)
            for it in listing.versions(folder)
            if (why := needed.versions.get(it))
        ]
        freed = sum(info.size for info in infos.values()) - sum(it.size for it in kept)
        folders.append(FolderReport(folder, kept, len(infos) - len(kept), freed))
    forgotten = len(listing.memos.keys() - needed.computations)
    return PruneReport(folders, forgotten, sorted(needed.notes))


def _in_parallel(function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    with ThreadPoolExecutor(READERS) as pool:
        for batch in _batches(items):
            yield from pool.map(function, batch)


def _batches(items: Iterable[_In]) -> Iterator[list[_In]]:
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH)):
        yield batch
