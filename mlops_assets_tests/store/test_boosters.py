"""XGBoost's models there and back, and nothing in a file that XGBoost would follow into a crash."""

from __future__ import annotations

import functools
import io
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
import xgboost
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.errors import StoreError
from mlops_assets.store.boosters import checked, load_booster
from mlops_assets.store.models import SkopsCodec

from .test_models import content_of, load, replaced

X = np.random.default_rng(0).random((80, 4))
NUMBERS = X[:, 0] + X[:, 1]
CLASSES = (X[:, 0] * 3).astype(int)
FRAME = pd.DataFrame(
    {
        "shop": pd.Categorical(np.where(X[:, 0] > 0.3, "north", "south")),
        "size": X[:, 1],
        "step": pd.Categorical((X[:, 2] * 6).astype(int)),
    }
)
SMALL: dict[str, Any] = {"n_estimators": 3, "max_depth": 3, "n_jobs": 1}

MODELS = {
    "classes": lambda: xgboost.XGBClassifier(**SMALL).fit(X, CLASSES),
    "two classes": lambda: xgboost.XGBClassifier(**SMALL).fit(X, CLASSES > 0),
    "numbers": lambda: xgboost.XGBRegressor(**SMALL).fit(X, NUMBERS),
    "pruned": lambda: xgboost.XGBRegressor(tree_method="exact", gamma=1, **SMALL).fit(X, NUMBERS),
    "forest": lambda: xgboost.XGBRFClassifier(**SMALL).fit(X, CLASSES),
    "forest of numbers": lambda: xgboost.XGBRFRegressor(**SMALL).fit(X, NUMBERS),
    "dart": lambda: xgboost.XGBRegressor(booster="dart", rate_drop=0.5, **SMALL).fit(X, NUMBERS),
    "linear": lambda: xgboost.XGBRegressor(booster="gblinear", n_estimators=3).fit(X, NUMBERS),
    "quantiles": lambda: xgboost.XGBRegressor(
        objective="reg:quantileerror", quantile_alpha=[0.1, 0.5], **SMALL
    ).fit(X, NUMBERS),
    "early stopping": lambda: xgboost.XGBRegressor(
        n_estimators=50, early_stopping_rounds=2, n_jobs=1
    ).fit(X[:40], NUMBERS[:40], eval_set=[(X[40:], NUMBERS[40:])], verbose=False),
    "categories": lambda: xgboost.XGBRegressor(
        enable_categorical=True, max_cat_to_onehot=1, **SMALL
    ).fit(FRAME, NUMBERS),
    "coded categories": lambda: xgboost.XGBRegressor(
        enable_categorical=True, feature_types=["c", "q", "q", "q"], **SMALL
    ).fit(np.column_stack([CLASSES, X[:, 1:]]), NUMBERS),
}


def features_of(name: str) -> Any:
    if name == "coded categories":
        return np.column_stack([CLASSES, X[:, 1:]])
    return FRAME if name == "categories" else X


@functools.cache
def raw(name: str) -> bytes:
    return bytes(MODELS[name]().get_booster().save_raw("ubj"))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_with_the_very_same_predictions(name: str, tmp_path: Path) -> None:
    model, features = MODELS[name](), features_of(name)
    content = content_of(model)
    back = load(content, tmp_path)
    assert content_of(back) == content
    np.testing.assert_array_equal(back.predict(features), model.predict(features))
    assert back.get_params().keys() == model.get_params().keys()


def test_where_training_stopped_comes_back(tmp_path: Path) -> None:
    model = MODELS["early stopping"]()
    back = load(content_of(model), tmp_path)
    assert back.best_iteration == model.best_iteration < 49
    assert back.evals_result() == model.evals_result()


def test_categories_keep_their_names(tmp_path: Path) -> None:
    model = MODELS["categories"]()
    back = load(content_of(model), tmp_path)
    other_codes = FRAME.assign(shop=FRAME["shop"].cat.reorder_categories(["south", "north"]))
    np.testing.assert_array_equal(back.predict(other_codes), model.predict(FRAME))


def test_a_booster_that_two_attributes_share_is_stored_once(tmp_path: Path) -> None:
    booster = MODELS["numbers"]().get_booster()
    one, other = load_all([booster, booster], tmp_path)
    assert one is other


def load_all(values: list[Any], folder: Path) -> Any:
    file = io.BytesIO()
    SkopsCodec().write(values, file)
    return load(file.getvalue(), folder)


FIT_AND_DIGEST = """
import hashlib, io, numpy as np, xgboost
from mlops_assets.store.models import SkopsCodec

X = np.random.default_rng(0).random((500, 6))
model = xgboost.XGBClassifier(n_estimators=20, subsample=0.7, random_state=1)
file = io.BytesIO()
SkopsCodec().write(model.fit(X, X[:, 0] > X[:, 1]), file)
print(hashlib.sha256(file.getvalue()).hexdigest())
"""


def test_equal_models_give_equal_bytes_in_every_process() -> None:
    digests = set()
    for seed, fill, threads in (("1", "7", "1"), ("2", "165", "2")):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "MALLOC_PERTURB_": fill,
            "OMP_NUM_THREADS": threads,
        }
        command = [sys.executable, "-c", FIT_AND_DIGEST]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_a_stored_booster_says_nothing_of_the_machine(tmp_path: Path) -> None:
    threads = xgboost.XGBRegressor(**{**SMALL, "n_jobs": 2}).fit(X, NUMBERS).get_booster()
    (back,) = load_all([threads], tmp_path)
    (other,) = load_all([MODELS["numbers"]().get_booster()], tmp_path)
    assert back.save_config() == other.save_config()
    assert '"device":"cpu"' in back.save_config()


# ------------------------------------------------------------------------------ what is refused --


def test_xgboosts_own_state_of_a_booster_is_never_read(tmp_path: Path) -> None:
    crafted = skops.io.dumps(MODELS["numbers"]())
    with pytest.raises(StoreError, match=r"Untrusted types found.*xgboost\.core\.Booster"):
        load(crafted, tmp_path)


def test_trees_with_several_outputs_are_refused_when_they_are_written() -> None:
    model = xgboost.XGBClassifier(multi_strategy="multi_output_tree", **SMALL).fit(X, CLASSES)
    with pytest.raises(StoreError, match="multi_strategy"):
        content_of(model)


def test_a_function_as_objective_is_refused_when_it_is_written() -> None:
    def squared(truth: Any, found: Any) -> Any:
        return found - truth, np.ones(len(truth))

    model = xgboost.XGBRegressor(objective=squared, **SMALL).fit(X, NUMBERS)
    with pytest.raises(StoreError, match="squared"):
        content_of(model)


def test_a_pickle_in_the_place_of_a_booster_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    honest = content_of(MODELS["numbers"]())
    for member in (pickle.dumps(Bomb()), b"", b"{}", b'{"learner": {}}', b"binf"):
        with pytest.raises(StoreError, match="XGBoost model that cannot be loaded"):
            load(replaced(honest, ".ubj", member), tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_booster_that_was_cut_off_is_refused() -> None:
    content = raw("categories")
    for end in range(len(content)):
        with pytest.raises(StoreError, match="cannot be loaded"):
            checked(content[:end])
    with pytest.raises(StoreError, match="not one UBJSON object"):
        checked(content + b"{}")


def item(name: str, number: int, value: Any) -> Callable[[bytes], bytes]:
    """Put a number into the first array of a name."""

    def change(content: bytes) -> bytes:
        found = re.search(name.encode() + rb"\[\$([UildL])#L", content)
        assert found is not None
        kind = found[1].decode()
        layout = {"U": ">B", "i": ">b", "l": ">i", "L": ">q", "d": ">f"}[kind]
        at = found.end() + 8 + number * struct.calcsize(layout)
        packed = struct.pack(layout, value)
        return content[:at] + packed + content[at + len(packed) :]

    return change


def text(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    assert len(old) == len(new)

    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return change


def length(of: bytes) -> bytes:
    return b"L" + struct.pack(">q", len(of)) + of


def parameter(name: bytes, value: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        old = length(name) + b"S" + length(value)
        assert old in content
        return content.replace(old, length(name) + b"S" + length(new))

    return change


CRAFTED = {
    "a child that is no node": ("numbers", item("left_children", 0, 10**6)),
    "a child below zero": ("numbers", item("right_children", 0, -7)),
    "a circle": ("numbers", item("left_children", 1, 0)),
    "a node below two others": ("numbers", item("right_children", 0, 1)),
    "half a leaf": ("numbers", item("left_children", 0, -1)),
    "a parent that is no node": ("pruned", item("parents", 1, -1)),
    "a root below a node": ("numbers", item("parents", 0, 2)),
    "a feature that is none": ("numbers", item("split_indices", 0, 4)),
    "a feature below zero": ("numbers", item("split_indices", 0, -1)),
    "a split of no type": ("numbers", item("split_type", 0, 9)),
    "a categorical split without categories": ("numbers", item("split_type", 0, 1)),
    "categories of no node": ("categories", item("categories_nodes", 0, 10**6)),
    "categories beyond the end": ("categories", item("categories_segments", 0, 10**12)),
    "more categories than there are": ("categories", item("categories_sizes", 0, 10**12)),
    "a category below zero": ("categories", item("categories", 0, -3)),
    "a huge category": ("categories", item("categories", 0, 2**31 - 1)),
    "names beyond the end": ("categories", item("offsets", 1, 10**6)),
    "names that go back": ("categories", item("offsets", 0, 4)),
    "an order of no category": ("categories", item("sorted_idx", 0, 10**6)),
    "columns that overlap": ("categories", item("feature_segments", 1, 1)),
    "a tree of a class that is none": (
        "classes",
        lambda content: re.sub(rb"(tree_info\[#L.{8}i)\x00", rb"\1" + b"\x09", content, flags=re.S),
    ),
    "rounds that go back": (
        "classes",
        lambda content: re.sub(
            rb"(indptr\[#L.{8}i\x00i)\x03", rb"\1" + b"\x7f", content, flags=re.S
        ),
    ),
    "more classes than trees tell": ("classes", parameter(b"num_class", b"3", b"9")),
    "no number of classes": ("classes", parameter(b"num_class", b"3", b"x")),
    "more features than memory": ("numbers", parameter(b"num_feature", b"4", b"4294967295")),
    "fewer features than splits": ("numbers", parameter(b"num_feature", b"4", b"0")),
    "more trees than there are": ("numbers", parameter(b"num_trees", b"3", b"4")),
    "more nodes than there are": (
        "numbers",
        lambda content: re.sub(rb"(num_nodesSL.{8})\d", rb"\g<1>9", content, flags=re.S, count=1),
    ),
    "several outputs": ("numbers", parameter(b"size_leaf_vector", b"1", b"8")),
    "a start without end": (
        "numbers",
        lambda content: re.sub(rb"(base_scoreSL.{8}\[).", rb"\1N", content, flags=re.S),
    ),
    "a best round that is none": (
        "early stopping",
        lambda content: re.sub(rb"(best_iterationSL.{8})\d", rb"\1-", content, flags=re.S),
    ),
    "another kind of booster": ("numbers", text(b"gbtree", b"gbtrex")),
    "fewer weights than features": ("linear", parameter(b"num_feature", b"4", b"9")),
    "a name twice": (
        "numbers",
        lambda content: content.replace(
            length(b"attributes") + b"{}", (length(b"attributes") + b"{}") * 2
        ),
    ),
    "an array of another type": (
        "numbers",
        lambda content: content.replace(b"left_children[$l#", b"left_children[$d#", 1),
    ),
    "an endless array": (
        "numbers",
        lambda content: re.sub(
            rb"(left_children\[\$l#L).{8}", rb"\1" + b"\x7f" * 8, content, flags=re.S, count=1
        ),
    ),
    "too deep": ("numbers", lambda content: content[:-1] + length(b"x") + b"[" * 10_000),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_crafted_booster_is_refused_before_xgboost_sees_it(what: str) -> None:
    name, change = CRAFTED[what]
    honest = raw(name)
    crafted = change(honest)
    assert checked(honest) == honest
    assert crafted != honest
    with pytest.raises(StoreError, match="XGBoost model that cannot be loaded"):
        load_booster(crafted)


def test_what_xgboost_itself_refuses_is_a_documented_error() -> None:
    crafted = raw("numbers").replace(b"reg:squarederror", b"reg:squarederrox")
    with pytest.raises(StoreError, match="that XGBoost refuses"):
        load_booster(crafted)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_booster_are_refused(content: bytes) -> None:
    with pytest.raises(StoreError):
        checked(content)


DAMAGE = """
import random, sys
import numpy as np, xgboost
from mlops_assets.errors import StoreError
from mlops_assets_tests.store.test_boosters import MODELS, features_of, raw
from mlops_assets.store.boosters import load_booster

xgboost.set_config(verbosity=0)
refused = predicted = 0
for name in ("classes", "pruned", "dart", "categories", "linear"):
    honest, features, model = raw(name), features_of(name), MODELS[name]()
    for number in range(400):
        chance, content = random.Random(number), bytearray(honest)
        at = chance.randrange(len(content))
        width = chance.choice([1, 4])
        content[at : at + width] = chance.choice([bytes(width), b"\\xff" * width, b"\\x02" * width])
        try:
            model._Booster = load_booster(bytes(content))
            model.predict(features)
            predicted += 1
        except StoreError:
            refused += 1
        except ValueError:  # XGBoost's own errors, at prediction
            pass
print(refused, predicted)
"""


def test_a_damaged_booster_is_refused_or_predicts_and_never_ends_the_process() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DAMAGE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    refused, predicted = map(int, done.stdout.split())
    assert refused > 500
    assert predicted > 100


def test_a_model_of_a_package_that_is_not_installed_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of(MODELS["numbers"]())
    for name in [name for name in sys.modules if name.partition(".")[0] == "xgboost"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(StoreError, match="a model of xgboost, which is not installed here"):
        load(content, tmp_path)
