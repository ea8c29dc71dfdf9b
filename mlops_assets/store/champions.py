"""The champions of a pipeline: which model was promoted when, by which run and why.

An append-only log of numbered records; the highest number is the champion. Whether a model deserves
it is decided elsewhere, and its bytes are an artefact like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from mlops_assets.store.artifacts import ArtifactStore, CorruptArtifactError


class ChampionChangedError(Exception):
    """Somebody else promoted a model meanwhile: compare with the new champion, then try again."""


@dataclass(frozen=True)
class Champion:
    """One promotion."""

    number: int  # 1, 2, 3, … without gaps
    version: str  # of the model
    metrics: Mapping[str, float]
    reason: str
    run_id: str | None
    at: str  # ISO 8601 with time zone


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
        return [self._load(path) for path in self.store.list_records(self._folder)]

    def promote(
        self,
        version: str,
        *,
        expected: Champion | None,
        metrics: Mapping[str, float],
        reason: str,
        run_id: str | None,
        at: str,
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

        Raises
        ------
        ChampionChangedError
            When `expected` is no longer the champion.
        """
        number = expected.number + 1 if expected else 1
        champion = Champion(number, version, dict(metrics), reason, run_id, at)
        path = f"{self._folder}/{number:08d}.json"
        if not self.store.create_record(path, asdict(champion)):
            raise ChampionChangedError(
                f"promotion {number} in {self._folder} was made by somebody else meanwhile"
            )
        return champion

    @property
    def _folder(self) -> str:
        return f".champions/{self.pipeline}"

    def _load(self, path: str) -> Champion:
        record = self.store.get_record(path)
        if record is None or set(record) != {field.name for field in fields(Champion)}:
            raise CorruptArtifactError(f"{path} of {self.store.url} is damaged: delete it")
        return Champion(**record)
