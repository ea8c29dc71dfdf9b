"""The champions of a pipeline: which model was promoted when, by whom and why.

An append-only log of numbered records; the highest number is the champion. Whether a model deserves
it is decided elsewhere, and its bytes are an artefact like any other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

from mlops_assets.store.artifacts import ArtifactStore, CorruptArtifactError, MissingArtifactError

READERS = 16
"""Requests at once: a store far away answers each in tens of milliseconds."""


class ChampionChangedError(Exception):
    """Somebody else promoted a model meanwhile: compare with the new champion, then try again."""


@dataclass(frozen=True)
class Champion:
    """One promotion."""

    number: int  # 1, 2, 3, … without gaps
    version: str  # of the model
    metrics: Mapping[str, float]
    reason: str
    run_id: str | None  # None by hand
    at: str  # ISO 8601 with time zone
    restores: int | None = None  # of a rollback: the promotion that it went back to
    passed_over: tuple[str, ...] = ()  # by hand: models that were there, and not chosen

    @property
    def by(self) -> Literal["run", "hand", "rollback"]:
        """Who promoted; a rollback is by hand, too."""
        if self.restores is not None:
            return "rollback"
        return "hand" if self.run_id is None else "run"


class Standing(NamedTuple):
    """What became of a model that was champion at some time."""

    status: Literal["promoted", "rolled back"]
    by: Champion
    """The last promotion that made it champion, or the rollback that ended that."""


@dataclass(frozen=True)
class Champions:
    """The log of one pipeline, ``.champions/<pipeline>/00000001.json`` and so on.

    Records are created, never overwritten, so that promotions at the same time, by whatever
    machine, end in one order with one champion.
    """

    store: ArtifactStore
    pipeline: str

    def current(self) -> Champion | None:
        """The champion; None before the first promotion."""
        paths = self.store.list_records(self._folder)
        return self._load(paths[-1]) if paths else None

    def history(self) -> list[Champion]:
        """All promotions, the first one first."""
        paths = self.store.list_records(self._folder)
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self._load, paths))

    def before(self, champion: Champion) -> Champion | None:
        """The promotion that a rollback of this one goes back to; None if it was the first.

        Of a rollback it is the one before the champion that it restored, so that a second rollback
        goes further back.

        Raises
        ------
        StoreError
            The record of that promotion is missing or damaged.
        """
        number = (champion.restores or champion.number) - 1
        if not number:
            return None
        found = self._load(self._path(number))
        return self._load(self._path(found.restores)) if found.restores else found

    def promote(
        self,
        version: str,
        *,
        expected: Champion | None,
        metrics: Mapping[str, float],
        reason: str,
        run_id: str | None,
        at: str,
        restores: int | None = None,
        passed_over: Collection[str] = (),
    ) -> Champion:
        """Make a model the champion, if the champion is still the one it was compared with.

        Parameters
        ----------
        version
            Version of the model, or of the one to go back to.
        expected
            What `current` returned when the decision was made.
        metrics, reason, run_id
            What the decision was made from, and by which run; None by hand.
        at
            Time of the promotion, ISO 8601 with time zone.
        restores
            For a rollback: number of the promotion that it goes back to.
        passed_over
            By hand: models that no run may promote from now on.

        Raises
        ------
        ChampionChangedError
            When `expected` is no longer the champion.
        """
        number = expected.number + 1 if expected else 1
        over = tuple(sorted(passed_over))
        champion = Champion(number, version, dict(metrics), reason, run_id, at, restores, over)
        if not self.store.create_record(self._path(number), asdict(champion)):
            raise ChampionChangedError(
                f"promotion {number} in {self._folder} was made by somebody else meanwhile"
            )
        return champion

    @property
    def _folder(self) -> str:
        return f".champions/{self.pipeline}"

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"

    def _load(self, path: str) -> Champion:
        record = self.store.get_record(path)
        if record is None:
            raise MissingArtifactError(
                f"{path} is missing from {self.store.url}: the log of promotions has a gap"
            )
        try:
            return _decode(record)
        except (KeyError, TypeError) as error:
            raise CorruptArtifactError(
                f"{path} of {self.store.url} is damaged: delete it"
            ) from error


def passed_over(history: Collection[Champion]) -> dict[str, Champion]:
    """Models that no run may promote, each with the decision by hand that passed it over.

    A model that was promoted by hand after that is none of them.
    """
    found: dict[str, Champion] = {}
    for record in history:
        if record.by != "run":
            found |= dict.fromkeys(record.passed_over, record)
            found.pop(record.version, None)
    return found


def standings(history: Collection[Champion]) -> dict[str, Standing]:
    """What became of every model that was ever champion, by version."""
    found: dict[str, Standing] = {}
    before = None
    for record in history:
        if before is not None and record.by == "rollback":
            found[before.version] = Standing("rolled back", record)
        found[record.version] = Standing("promoted", record)
        before = record
    return found


def _decode(record: Mapping[str, Any]) -> Champion:
    """Read a record of this or an earlier version, which lacks what was added since."""
    known = {
        field.name: record[field.name]
        for field in fields(Champion)
        if field.default is MISSING or field.name in record
    }
    champion = Champion(**known | {"passed_over": tuple(known.get("passed_over", ()))})
    if not isinstance(champion.number, int) or not isinstance(champion.version, str):
        raise TypeError("a number and the version of a model are needed")
    return champion
