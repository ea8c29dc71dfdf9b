"""Finished trials of a search are found again, and damaged ones are as good as none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlops_assets.store.artifacts import ArtifactStore
from mlops_assets.store.layout import parse_trial_path, trial_path
from mlops_assets.store.trials import Trials

TRAIN = "0123456789abcdef"


def test_what_was_put_is_found_by_its_number_in_its_own_study_alone(tmp_path: Path) -> None:
    trials = Trials(ArtifactStore(str(tmp_path)), "iris", TRAIN, "a")
    assert trials.get(0) is None
    trials.put(0, {"value": 1.5})
    trials.put(2, {"value": None})

    assert trials.get_all(range(4)) == [{"value": 1.5}, None, {"value": None}, None]
    assert replace(trials, study="b").get(0) is None
    assert replace(trials, train_version=TRAIN[::-1]).get(0) is None
    trials.put(0, {"value": 2.0})
    assert trials.get(0) == {"value": 2.0}


def test_a_damaged_record_is_none(tmp_path: Path) -> None:
    trials = Trials(ArtifactStore(str(tmp_path)), "iris", TRAIN, "a")
    trials.put(0, {"value": 1.5})
    (tmp_path / trial_path("iris", TRAIN, "a", 0)).write_bytes(b"\x00{")

    assert trials.get(0) is None


def test_the_path_of_a_trial_says_which_training_set_it_is_about() -> None:
    assert parse_trial_path(trial_path("iris", TRAIN, "a", 1000)) == ("iris", TRAIN)
    assert parse_trial_path(f"iris/train/{TRAIN}.parquet") is None
    assert parse_trial_path(".trials/iris/0000.json") is None
