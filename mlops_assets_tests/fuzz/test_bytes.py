"""Damaged files: each is accepted or refused in words, and none ends the process that reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

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
