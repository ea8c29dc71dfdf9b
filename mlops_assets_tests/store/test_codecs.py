"""JSON and figures, and which format a value gets."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_assets.errors import StoreError
from mlops_assets.store.codecs import CODECS, codec_for, codec_of_extension

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20 + b"IEND\xaeB`\x82"
SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><g/></svg>\n'


def content_of(value: Any) -> bytes:
    """The bytes that a value is stored as."""
    file = io.BytesIO()
    codec_for(value).write(value, file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("value", "extension"),
    [
        (pd.DataFrame(), "parquet"),
        (iter([]), "parquet"),
        ({}, "json"),
        (None, "json"),
        (np.float32(1), "json"),
        (np.bool_(True), "json"),
        (PNG, "png"),
        (SVG, "svg"),
        (b"\xef\xbb\xbf <svg></svg>", "svg"),
    ],
)
def test_the_kind_of_a_value_decides_its_format(value: object, extension: str) -> None:
    assert codec_for(value).extension == extension
    assert codec_of_extension(extension) is codec_for(value)


@pytest.mark.parametrize(
    "value",
    [object(), {1}, b"", b"abc", b"\x80\x04]", np.zeros(3), pd.Series([1]), 1j, print, Path("a")],
)
def test_other_kinds_are_refused_with_what_is_supported(value: object) -> None:
    with pytest.raises(StoreError, match=r"supported: tables \(pandas.DataFrame.*PNG or SVG"):
        codec_for(value)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values)
def test_any_json_comes_back(value: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    content = content_of(value)
    file.write_bytes(content)
    back = CODECS["json"].read(file, None)
    assert back == value
    assert content_of(back) == content


def test_numpy_scalars_become_numbers_and_tuples_lists() -> None:
    value = {"a": np.float64(0.5), "b": np.int8(3), "c": np.bool_(True), "d": (np.str_("x"), 1)}
    assert json.loads(content_of(value)) == {"a": 0.5, "b": 3, "c": True, "d": ["x", 1]}


def test_the_order_of_keys_does_not_change_the_bytes() -> None:
    assert content_of({"b": 1, "a": {"d": 2, "c": 3}}) == content_of(
        {"a": {"c": 3, "d": 2}, "b": 1}
    )


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"metrics": {"roc_auc": float("nan")}}, r"metrics\.roc_auc is nan"),
        ([1, [float("inf")]], r"\[1\]\[0\] is inf"),
        ({"a": np.float32("nan")}, "a is nan"),
        ({"a": {1: 2}}, "key 1 in a must be text"),
        ({"a": {2}}, "a is of type set"),
        ({"a": np.zeros(2)}, "a is of type ndarray"),
        ({"a": b"x"}, "a is of type bytes"),
        ({"a": "\ud800"}, "Unicode"),
        pytest.param(10**5000, "does not fit", id="huge"),
        (circular(), "contains itself"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_name(value: Any, words: str) -> None:
    with pytest.raises(StoreError, match=words):
        content_of(value)


def test_the_facts_of_json_are_its_numbers_by_name() -> None:
    value = {"m": {"b": 0.5, "a": 1}, "curve": [1, 2], "flag": True, "name": "x", "n": np.int64(3)}
    assert codec_for(value).write(value, io.BytesIO()) == {"m.a": 1, "m.b": 0.5, "n": 3}


def test_a_figure_comes_back_as_its_bytes(tmp_path: Path) -> None:
    for content in (PNG, SVG):
        file = tmp_path / "figure"
        file.write_bytes(content_of(content))
        assert codec_for(content).read(file, None) == content


@pytest.mark.parametrize("content", [PNG[:-1], SVG[:-8]])
def test_half_a_figure_is_refused(content: bytes) -> None:
    with pytest.raises(StoreError, match=r"PNG|SVG"):
        content_of(content)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=100))
def test_any_other_bytes_are_refused_by_every_format(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x"
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"<svg", b"PK\x03\x04", b"PAR1", b"{"):
        file.write_bytes(start + content + b"\xff")
        for codec in CODECS.values():
            with pytest.raises(StoreError):
                codec.read(file, None)
