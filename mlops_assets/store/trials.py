"""The trials of a search for parameters: each is kept when it is finished, and not made again.

What a trial is, and which parameters it tries, is `mlops_assets.ml.tune`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mlops_assets.store.artifacts import ArtifactStore, CorruptArtifactError
from mlops_assets.store.history import READERS
from mlops_assets.store.layout import trial_path


@dataclass(frozen=True)
class Trials:
    """The finished trials of one study, by number from 0."""

    store: ArtifactStore
    pipeline: str
    train_version: str
    study: str  # digest of everything else that decides a trial

    def get(self, number: int) -> dict[str, Any] | None:
        """Return what a trial found; None if it is not finished, or its record is damaged."""
        try:
            return self.store.get_record(self._path(number))
        except CorruptArtifactError:
            return None

    def get_all(self, numbers: Iterable[int]) -> list[dict[str, Any] | None]:
        """Return what each of several trials found."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self.get, numbers))

    def put(self, number: int, found: Mapping[str, Any]) -> None:
        """Keep what a trial found."""
        self.store.put_record(self._path(number), found)

    def _path(self, number: int) -> str:
        return trial_path(self.pipeline, self.train_version, self.study, number)
