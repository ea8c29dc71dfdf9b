"""Damaged files: each is accepted or refused in words, and none ends the process that reads it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.store.artifacts import Artifact, ArtifactStore, CorruptArtifactError
from mlops_assets.store.codecs import CODECS

from .sandbox import made
from .strategies import SECONDS
from .targets import TARGETS


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    """What all targets ended with, run in one process, as importing takes longer than they do."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"{__package__}.sandbox", "--seconds", str(SECONDS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    if SECONDS:
        print(done.stdout)
    found = map(json.loads, done.stdout.splitlines())
    return {result["target"]: result for result in found}


@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_file_is_accepted_or_refused_in_words(
    target: str, results: dict[str, dict[str, Any]]
) -> None:
    result = results[target]
    assert result["undocumented"] == {}
    assert result["died"] == {}
    assert result["accepted"] + sum(result["documented"].values()) == result["cases"]
    assert result["cases"] >= TARGETS[target].cases
    assert result["accepted"]
    assert result["documented"]


class Unreachable:
    """A codec that must not be asked."""

    def read(self, file: Path, as_: Any) -> Any:
        pytest.fail(f"{file} was parsed")


@pytest.mark.parametrize("extension", CODECS)
def test_what_is_damaged_in_a_store_is_refused_before_it_is_parsed(
    extension: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = TARGETS[extension].seeds()
    folder = tmp_path / "a"
    folder.mkdir()
    store = ArtifactStore(str(tmp_path))
    monkeypatch.setitem(CODECS, extension, Unreachable())
    for number in range(len(seeds), len(seeds) + 50):
        version = hashlib.sha256(seeds[number % len(seeds)]).hexdigest()[:16]
        content = made(TARGETS[extension], seeds, number)
        (folder / f"{version}.{extension}").write_bytes(content)
        artifact = Artifact(("a",), None, version, extension, len(content))
        if content not in seeds:
            with pytest.raises(CorruptArtifactError, match="its SHA-256 should begin with"):
                store.read(artifact)
