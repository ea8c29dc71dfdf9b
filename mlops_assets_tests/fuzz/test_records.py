"""Records of the store with values of other types: damaged for whoever reads them, and no more."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from mlops_assets.cli.versions import _as_json, _promotions, history_as_text
from mlops_assets.errors import StoreError
from mlops_assets.store.artifacts import ArtifactStore
from mlops_assets.store.champions import Champions, passed_over, standings
from mlops_assets.store.history import history
from mlops_assets.store.memo import Computed, Memo, differences
from mlops_assets.store.prune import prune
from mlops_assets.store.trials import Trials
from mlops_assets_tests.store.computations import be_latest, compute

from .strategies import as_json, changed, examples

NO_TIME = timedelta(0)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def computed(store: ArtifactStore) -> Computed:
    raw = compute(store, "p/raw", {"rows": 3})
    found = compute(store, "p/metrics", {"metrics": {"r2": 0.5}}, raw, latest_of="one")
    be_latest(store, found, "another")
    return found


def other_values(data: st.DataObject, store: ArtifactStore, path: str) -> None:
    """Exchange some values of a record, with or without a digest that fits them."""
    file = Path(store.url) / path
    intact = file.with_suffix(".intact")
    if not intact.exists():
        intact.write_bytes(file.read_bytes())
    tree = json.loads(intact.read_bytes())
    for _ in range(data.draw(st.integers(1, 2))):
        tree = data.draw(changed(tree))
    file.write_bytes(as_json(tree))
    if isinstance(tree, dict) and data.draw(st.booleans()):
        with suppress(StoreError):  # numbers that JSON lacks
            store.put_record(path, json.loads(as_json(tree)))


@examples(80)
@given(data=st.data())
def test_a_record_of_a_computation_is_right_or_damaged(
    data: st.DataObject, store: ArtifactStore, computed: Computed
) -> None:
    other_values(data, store, f".memo/{computed.fingerprint}.json")
    memo = Memo(store)
    found = memo.get(computed.fingerprint)
    event("damaged" if found is None else "read")
    if found is not None:
        memo.is_intact(found)
        memo.events(found)
        assert isinstance(differences(found, computed), list)
        assert isinstance(differences(computed, found), list)
    _look(store)


@examples(80)
@given(data=st.data())
def test_what_an_instance_holds_is_right_or_damaged(
    data: st.DataObject, store: ArtifactStore, computed: Computed
) -> None:
    other_values(data, store, ".latest/one/p/metrics.json")
    assert computed.artifact is not None
    assert computed.artifact.version in Memo(store).held("p/metrics")
    _look(store)


def _look(store: ArtifactStore) -> None:
    found = history(store, ["p", "metrics"])
    rows: list[dict[str, Any]] = [
        _as_json(entry, before)
        for entry, before in zip(found.entries, [*found.entries[1:], None], strict=True)
    ]
    json.dumps(rows)
    history_as_text(rows)
    report = prune(store, keep=0, older_than=NO_TIME, dry_run=True)
    kept = {version.version for folder in report.folders for version in folder.kept}
    assert store.versions(["p", "metrics"])[0].version in kept  # the other instance's latest


@examples(80)
@given(data=st.data())
def test_a_promotion_is_right_or_damaged(data: st.DataObject, store: ArtifactStore) -> None:
    log = Champions(store, "p")
    if not log.current():
        first = _promoted(log, None, "0" * 16)
        _promoted(log, _promoted(log, first, "1" * 16), "2" * 16)
    other_values(data, store, f".champions/p/{data.draw(st.integers(1, 3)):08d}.json")
    with suppress(StoreError):
        promotions = log.history()
        current = log.current()
        assert current is not None
        log.before(current)
        passed_over(promotions)
        standings(promotions)
        rows = _promotions(store, "p")
        json.dumps(rows)
        history_as_text(rows)
        event("read")
    prune(store, keep=0, older_than=NO_TIME, dry_run=True)


def _promoted(log: Champions, expected: Any, version: str) -> Any:
    return log.promote(
        version,
        expected=expected,
        metrics={"r2": 0.5},
        reason="better",
        run_id="run",
        at="2026-01-01T00:00:00+00:00",
        passed_over=["3" * 16],
    )


@examples(80)
@given(data=st.data())
def test_a_trial_is_right_or_damaged(data: st.DataObject, store: ArtifactStore) -> None:
    trials = Trials(store, "p", "0" * 16, "study")
    trials.put(0, {"value": 0.5, "params": {"C": 1}})
    other_values(data, store, f".trials/p/{'0' * 16}/study/0000.json")
    assert trials.get(0) is None or isinstance(trials.get(0), dict)
