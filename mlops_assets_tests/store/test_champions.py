"""The log of promoted models."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from mlops_assets.store import (
    ArtifactStore,
    Champion,
    ChampionChangedError,
    Champions,
    CorruptArtifactError,
)


def promote(champions: Champions, version: str, expected: Champion | None) -> Champion:
    return champions.promote(
        version,
        expected=expected,
        metrics={"roc_auc": 0.84},
        reason="better",
        run_id="run",
        at="2024-01-31T00:00:00+00:00",
    )


def test_the_latest_promotion_is_the_champion(store: ArtifactStore) -> None:
    champions = Champions(store, "churn")
    assert champions.current() is None
    assert champions.history() == []
    first = promote(champions, "a", None)
    second = promote(champions, "b", first)
    assert champions.current() == second
    assert champions.history() == [first, second]
    assert second == Champion(
        2, "b", {"roc_auc": 0.84}, "better", "run", "2024-01-31T00:00:00+00:00"
    )
    assert Champions(store, "iris").current() is None


def test_a_promotion_decided_against_an_old_champion_is_refused(store: ArtifactStore) -> None:
    champions = Champions(store, "churn")
    first = promote(champions, "a", None)
    second = promote(champions, "b", first)
    for expected in (None, first):
        with pytest.raises(ChampionChangedError, match="churn"):
            promote(champions, "c", expected)
    assert champions.current() == second


def test_promotions_at_once_end_in_one_order_with_one_champion(store: ArtifactStore) -> None:
    champions = Champions(store, "churn")

    def insist(number: int) -> None:
        while True:
            try:
                promote(champions, str(number), champions.current())
            except ChampionChangedError:
                continue
            return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(insist, range(8)))
    history = champions.history()
    assert [champion.number for champion in history] == list(range(1, 9))
    assert {champion.version for champion in history} == set("01234567")
    assert champions.current() == history[-1]


def test_a_record_of_another_shape_is_named(local: ArtifactStore) -> None:
    local.put_record(".champions/churn/00000001.json", {"version": "a"})
    with pytest.raises(CorruptArtifactError, match=r"\.champions/churn/00000001\.json"):
        Champions(local, "churn").current()
