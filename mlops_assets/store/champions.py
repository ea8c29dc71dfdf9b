"""The champions of a pipeline: which model was promoted when, by whom and why.

An append-only log of numbered records; the highest number is the champion. Whether a model deserves
it is decided elsewhere, and its bytes are an artefact like any other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple

from mlops_assets.errors import StoreError
from mlops_assets.store.artifacts import ArtifactStore, CorruptArtifactError, MissingArtifactError
from mlops_assets.store.records import Shape, require

_RECORD: Shape = {
    "number": int,
    "version": str,
    "metrics": dict,
    "reason": str,
    "run_id": str | None,
    "at": str,
    "restores": int | None,
    "passed_over": list | tuple,
}
_ADDED: Mapping[str, Any] = {"restores": None, "passed_over": ()}
"""What earlier versions did not write."""

READERS = 16
"""Requests at once: a store far away answers each in tens of milliseconds."""


_NUMBER = re.compile(r"/([0-9]{8})\.json$")


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
    machine, end in one order with one champion. Each has a copy below ``.copies``, as nothing else
    knows what was decided: of the two, one that is missing or damaged is made again from the other.
    """

    store: ArtifactStore
    pipeline: str

    def current(self) -> Champion | None:
        """The champion; None before the first promotion."""
        numbers = self._recorded() | self._copied()
        return self.numbered(max(numbers)) if numbers else None

    def numbered(self, number: int) -> Champion:
        """A promotion of which the number is known, in one request.

        Raises
        ------
        StoreError
            Its record and its copy are missing or damaged.
        """
        path = self._path(number)
        try:
            record, champion = self._read(path)
        except (MissingArtifactError, CorruptArtifactError) as error:
            try:
                record, champion = self._read(self._copy(number))
            except (MissingArtifactError, CorruptArtifactError):
                raise error from None
            with suppress(StoreError, OSError):  # where nothing may be written, the copy will do
                self.store.put_record(path, record)
        return champion

    def history(self) -> list[Champion]:
        """All promotions, the first one first."""
        recorded, copied = self._recorded(), self._copied()
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(self.numbered, sorted(recorded | copied)))
        for one in found:
            if one.number not in copied:  # whoever made it died before that
                self._keep_copy(one)
        return found

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
        found = self.numbered(number)
        return self.numbered(found.restores) if found.restores else found

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
                f"promotion {number} of {self.pipeline} was made by somebody else meanwhile"
            )
        self._keep_copy(champion)
        return champion

    def _keep_copy(self, champion: Champion) -> None:
        with suppress(StoreError, OSError):  # where nothing may be written, there is none
            self.store.put_record(self._copy(champion.number), asdict(champion))

    def _path(self, number: int) -> str:
        return f".champions/{self.pipeline}/{number:08d}.json"

    def _copy(self, number: int) -> str:
        return f".copies/{self.pipeline}/{number:08d}.json"

    def _recorded(self) -> set[int]:
        return _numbers(self.store.list_records(f".champions/{self.pipeline}"))

    def _copied(self) -> set[int]:
        return _numbers(self.store.list_records(f".copies/{self.pipeline}"))

    def _read(self, path: str) -> tuple[dict[str, Any], Champion]:
        record = self.store.get_record(path)
        if record is None:
            raise MissingArtifactError(
                f"{path} is missing from {self.store.url}: the log of promotions has a gap"
            )
        try:
            return record, _decode(record)
        except (KeyError, TypeError) as error:
            raise CorruptArtifactError(
                f"{path} of {self.store.url} is damaged: delete it"
            ) from error


def _numbers(paths: Iterable[str]) -> set[int]:
    return {int(match[1]) for path in paths if (match := _NUMBER.search(path))}


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
    complete = {**_ADDED, **record}
    require(complete, _RECORD)
    require(complete["metrics"], dict.fromkeys(complete["metrics"], int | float))
    if not all(isinstance(version, str) for version in complete["passed_over"]):
        raise TypeError("passed_over holds no versions")
    known = {field.name: complete[field.name] for field in fields(Champion)}
    return Champion(**known | {"passed_over": tuple(complete["passed_over"])})
