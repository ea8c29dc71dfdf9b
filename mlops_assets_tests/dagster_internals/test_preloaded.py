from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest
from dagster import Definitions, asset

from mlops_assets.dagster_internals.preloaded import make_repositories


@asset
def one() -> int:
    return 1


@pytest.fixture
def location(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module as if it had been imported."""
    module = ModuleType("a_code_location")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_a_repository_is_made_once_and_found_by_what_is_forked_later(
    location: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    really = Definitions.get_repository_def
    monkeypatch.setattr(
        Definitions, "get_repository_def", lambda self: made.append(self) or really(self)
    )
    location.defs = location.the_same = defs = Definitions(assets=[one])

    make_repositories()

    assert made.count(defs) == 1
    assert really(defs) is really(defs)


def test_definitions_that_cannot_be_used_are_left_to_the_steps_that_say_so(
    location: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    two = asset(name="two", required_resource_keys={"away"})(lambda context: 1)
    location.defs = Definitions(assets=[two])

    with caplog.at_level(logging.WARNING):
        make_repositories()

    assert "away" in caplog.text
