"""The trials of the fault suite; every test of this folder carries its marker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops_assets_tests.faults.sites import Sites
from mlops_assets_tests.faults.trials import Trials


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def trials(record_property: Callable[[str, object], None]) -> Trials:
    return Trials(record_property)


@pytest.fixture(scope="session")
def sites(_empty_tracking_database: Path) -> Iterator[Sites]:
    made = Sites(_empty_tracking_database)
    yield made
    made.delete()
