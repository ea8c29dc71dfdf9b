"""Versioned artefacts, free of Dagster and of machine learning.

What a step produced is kept under the digest of its content, checked when it is loaded, and never
pickled. `ArtifactStore` is the way in; `Champions` is a pipeline's log of promoted models. What is
computed, when, and which version a step needs is decided elsewhere.
"""

from mlops_assets.store.artifacts import (
    Artifact,
    ArtifactStore,
    CorruptArtifactError,
    MissingArtifactError,
)
from mlops_assets.store.champions import Champion, ChampionChangedError, Champions
from mlops_assets.store.objects import StoreUnavailableError

__all__ = [
    "Artifact",
    "ArtifactStore",
    "Champion",
    "ChampionChangedError",
    "Champions",
    "CorruptArtifactError",
    "MissingArtifactError",
    "StoreUnavailableError",
]
