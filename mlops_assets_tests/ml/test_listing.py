"""A listing of a source: the same objects as are read, in a few numbers that any change alters."""

from __future__ import annotations

import os
import random
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.errors import DataError
from mlops_assets.ml import listing
from mlops_assets.ml.files import find
from mlops_assets.ml.listing import Object, look
from mlops_assets_tests.store.conftest import BUCKET

NAMES = st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=8)


def listed(objects: list[Object], monkeypatch: pytest.MonkeyPatch) -> listing.Listing:
    monkeypatch.setattr(listing, "_objects", lambda *_: iter(objects))
    return look("", Path())


def files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x\n1\n")


@given(names=NAMES, seed=st.integers())
def test_the_order_of_a_listing_does_not_matter_and_every_object_does(
    names: list[str], seed: int
) -> None:
    objects = [Object(name, str(size), size, may_grow=False) for size, name in enumerate(names)]
    mixed = random.Random(seed).sample(objects, len(objects))
    with pytest.MonkeyPatch.context() as patch:
        first = listed(objects, patch)
        assert listed(mixed, patch) == first._replace(examples=listed(mixed, patch).examples)
        for one in objects:
            rest = [other for other in objects if other != one]
            assert listed(rest, patch).digest != first.digest
            assert listed([*rest, one._replace(mark="other")], patch).digest != first.digest
            assert listed([*objects, one], patch).digest != first.digest


@pytest.mark.parametrize(
    "pattern",
    [
        "*.csv",
        "**/*.csv",
        "*/a.csv",
        "[ab].csv",
        "?.csv",
        "2026-*/**/*.csv",
        "a.csv",
        "**/in/*.csv",
    ],
)
def test_the_objects_are_those_that_are_read(tmp_path: Path, pattern: str) -> None:
    # of a pipeline file's folder no character is a wildcard
    tmp_path /= "[x] {y} *"
    files(
        tmp_path,
        *("a.csv", "b.csv", "é.csv", ".hidden.csv", "a.csv.tmp", "[ab].txt"),
        *("2026-01/a.csv", "2026-01/in/b.csv", ".git/a.csv", "in/.x/a.csv"),
    )
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "gone.csv").symlink_to("nowhere")
    found = [one.name for one in listing._objects(pattern, tmp_path, {})]

    assert found
    assert sorted(found) == sorted(file.part for file in find(pattern, tmp_path))


def test_a_name_that_is_no_text_is_listed(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.csv")).write_text("x\n1\n")

    assert look("*.csv", tmp_path).objects == 1


def test_what_is_newer_than_a_mark_is_counted_and_some_of_it_named(tmp_path: Path) -> None:
    files(tmp_path, "a.csv")
    first = look("*.csv", tmp_path)
    files(tmp_path, "b.csv", "c.csv", "d.csv", "e.csv")
    second = look("*.csv", tmp_path, after=first.newest)

    assert second.news == 4
    assert set(second.examples) < {"b.csv", "c.csv", "d.csv", "e.csv"}
    assert look("*.csv", tmp_path, after=second.newest).news == 0


def test_a_file_that_was_just_written_may_be_incomplete_and_an_older_one_not(
    tmp_path: Path,
) -> None:
    files(tmp_path, "a.csv")
    written = (tmp_path / "a.csv").stat().st_ctime

    assert look("a.csv", tmp_path, settled_before=written - 1).unsettled == "a.csv"
    assert look("a.csv", tmp_path, settled_before=written + 1).unsettled is None


def test_a_folder_or_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv does not exist"):
        look("a.csv", tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        look("nowhere/*.csv", tmp_path)


def test_a_long_listing_needs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def many(*_: object):
        return (Object(f"part-{n}.csv", f"{n} tag", n, may_grow=False) for n in range(50_000))

    monkeypatch.setattr(listing, "_objects", many)
    tracemalloc.start()
    assert look("", Path()).objects == 50_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000  # bytes


def test_objects_of_a_bucket_are_listed_without_a_look_at_each(s3_endpoint: str) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    options = {"endpoint": s3_endpoint}
    for name in ("a b.csv", "b.csv", "deep/c.csv", "d.txt"):
        client.put_object(Bucket=BUCKET, Key=f"listed/{name}", Body=b"x\n1\n")

    def names(uri: str) -> list[str]:
        return sorted(one.name for one in listing._objects(uri, Path(), options))

    assert names(f"s3://{BUCKET}/listed/*.csv") == ["listed/a b.csv", "listed/b.csv"]
    assert len(names(f"s3://{BUCKET}/listed/**/*.csv")) == 3
    assert names(f"s3://{BUCKET}/listed/b.csv") == ["listed/b.csv"]
    first = look(f"s3://{BUCKET}/listed/*.csv", Path(), options, settled_before=0)
    assert first.unsettled is None
    client.put_object(Bucket=BUCKET, Key="listed/b.csv", Body=b"x\n2\n")
    second = look(f"s3://{BUCKET}/listed/*.csv", Path(), options)
    assert (second.objects, second.digest == first.digest) == (2, False)
    with pytest.raises(DataError, match="does not exist"):
        look(f"s3://{BUCKET}/listed/none.csv", Path(), options)
    with pytest.raises(DataError, match="no such bucket"):
        look("s3://no-such-bucket-here/*.csv", Path(), options)
