"""The log of promoted models."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.store import (
    ArtifactStore,
    Champion,
    ChampionChangedError,
    Champions,
    CorruptArtifactError,
    MissingArtifactError,
)
from mlops_assets.store.champions import passed_over, standings


def promote(
    champions: Champions,
    version: str,
    expected: Champion | None,
    *,
    by_hand: bool = False,
    restores: int | None = None,
    over: tuple[str, ...] = (),
) -> Champion:
    return champions.promote(
        version,
        expected=expected,
        metrics={"roc_auc": 0.84},
        reason="better",
        run_id=None if by_hand or restores else "run",
        at="2024-01-31T00:00:00+00:00",
        restores=restores,
        passed_over=over,
    )


def roll_back(champions: Champions) -> str | None:
    """Go back as `mlops rollback` does; None when there is nothing to go back to."""
    current = champions.current()
    assert current is not None
    target = champions.before(current)
    if target is None:
        return None
    over = (current.version,)
    promote(champions, target.version, current, restores=target.number, over=over)
    return target.version


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


def test_each_rollback_goes_further_back_and_never_forth(local: ArtifactStore) -> None:
    champions = Champions(local, "churn")
    for version in "abc":
        promote(champions, version, champions.current())

    assert [roll_back(champions) for _ in range(3)] == ["b", "a", None]
    promote(champions, "d", champions.current())
    promote(champions, "b", champions.current(), by_hand=True)
    assert [roll_back(champions) for _ in range(3)] == ["d", "a", None]
    assert [one.by for one in champions.history()] == [
        *["run"] * 3, *["rollback"] * 2, "run", "hand", *["rollback"] * 2,
    ]  # fmt: skip


@given(st.lists(st.sampled_from(["a", "b", "c", "rollback"]), max_size=25))
def test_promotions_and_rollbacks_behave_like_a_pile(actions: list[str]) -> None:
    champions = Champions(ArtifactStore(f"memory://{uuid4()}"), "churn")
    pile: list[str] = []
    for action in actions:
        if action != "rollback":
            if pile[-1:] != [action]:
                promote(champions, action, champions.current())
                pile.append(action)
        elif len(pile) > 1:
            pile.pop()
            assert roll_back(champions) == pile[-1]
        elif pile:
            assert roll_back(champions) is None
        current = champions.current()
        assert (current.version if current else None) == (pile[-1] if pile else None)


def test_a_model_that_was_passed_over_by_hand_stays_so_until_a_hand_promotes_it(
    local: ArtifactStore,
) -> None:
    champions = Champions(local, "churn")
    for version in "abc":
        promote(champions, version, champions.current())
    roll_back(champions)
    assert set(passed_over(champions.history())) == {"c"}
    roll_back(champions)
    assert set(passed_over(champions.history())) == {"b", "c"}
    promote(champions, "d", champions.current())
    assert set(passed_over(champions.history())) == {"b", "c"}
    promote(champions, "c", champions.current(), by_hand=True, over=("d", "e"))
    found = passed_over(champions.history())
    assert {version: one.number for version, one in found.items()} == {"b": 5, "d": 7, "e": 7}


def test_the_log_tells_what_became_of_every_champion(local: ArtifactStore) -> None:
    champions = Champions(local, "churn")
    for version in "abc":
        promote(champions, version, champions.current())
    roll_back(champions)

    assert {
        version: (status, by.number)
        for version, (status, by) in standings(champions.history()).items()
    } == {"a": ("promoted", 1), "b": ("promoted", 4), "c": ("rolled back", 4)}


def test_a_log_that_an_earlier_version_wrote_is_read_and_gone_on_with(
    local: ArtifactStore,
) -> None:
    old = {
        "version": "a",
        "metrics": {"roc_auc": 0.8},
        "reason": "the first champion",
        "run_id": "run",
        "at": "2024-01-31T00:00:00+00:00",
    }
    for number in (1, 2):
        path = f".champions/churn/{number:08d}.json"
        local.put_record(path, {**old, "number": number, "version": "ab"[number - 1]})
    champions = Champions(local, "churn")

    assert [one.by for one in champions.history()] == ["run", "run"]
    assert passed_over(champions.history()) == {}
    assert roll_back(champions) == "a"


def test_a_record_of_a_later_version_is_read_as_far_as_it_is_known(local: ArtifactStore) -> None:
    champions = Champions(local, "churn")
    promote(champions, "a", None, over=("b",))
    path = ".champions/churn/00000001.json"
    local.put_record(path, {**(local.get_record(path) or {}), "approved_by": "somebody"})

    assert champions.current() == champions.history()[0]
    assert champions.history()[0].passed_over == ("b",)


@pytest.mark.parametrize("damage", [{"number": "two"}, {"version": 5}, {"passed_over": 7}])
def test_a_record_with_a_value_of_another_type_is_named(
    local: ArtifactStore, damage: dict[str, Any]
) -> None:
    champions = Champions(local, "churn")
    promote(champions, "a", None)
    for path in (".champions/churn/00000001.json", ".copies/churn/00000001.json"):
        local.put_record(path, {**(local.get_record(path) or {}), **damage})

    with pytest.raises(CorruptArtifactError, match=r"\.champions/churn/00000001\.json"):
        champions.current()


@pytest.mark.parametrize("damage", [None, b"", b'{"number": 2}', b"\xff"])
def test_a_promotion_whose_record_is_lost_is_restored_from_its_copy(
    local: ArtifactStore, damage: bytes | None
) -> None:
    champions = Champions(local, "churn")
    for version in "ab":
        promote(champions, version, champions.current())
    history = champions.history()
    record = Path(local.url, ".champions/churn/00000002.json")
    content = record.read_bytes()
    record.unlink() if damage is None else record.write_bytes(damage)

    assert champions.current() == history[-1]
    assert record.read_bytes() == content
    assert champions.history() == history


def test_a_promotion_without_a_copy_gets_one_when_the_log_is_read(local: ArtifactStore) -> None:
    champions = Champions(local, "churn")
    promote(champions, "a", None)
    local.discard([".copies/churn/00000001.json"])  # the process was killed between the two
    before = champions.history()
    local.discard([".champions/churn/00000001.json"])

    assert champions.history() == before


def test_a_gap_in_the_log_is_named_when_a_rollback_comes_to_it(local: ArtifactStore) -> None:
    champions = Champions(local, "churn")
    for version in "abc":
        promote(champions, version, champions.current())
    local.discard([".champions/churn/00000002.json", ".copies/churn/00000002.json"])

    with pytest.raises(MissingArtifactError, match=r"00000002\.json is missing"):
        roll_back(champions)
