"""Names of folders, objects and records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.errors import StoreError
from mlops_assets.store.layout import (
    folder_of,
    object_path,
    parse_computation_path,
    parse_object_path,
    record_path,
)

VERSION = "0123456789abcdef"


def test_a_version_lies_below_its_key_and_partition() -> None:
    folder = folder_of(["churn", "predictions"], "2024-01-31")
    assert folder == "churn/predictions/2024-01-31"
    assert object_path(folder, VERSION, "parquet") == f"{folder}/{VERSION}.parquet"
    assert parse_object_path(f"{folder}/{VERSION}.parquet") == (VERSION, "parquet")


@pytest.mark.parametrize(
    ("partition", "folder"),
    [
        ("a/b", "a%2Fb"),
        (".", "%2E"),
        ("..", "%2E."),
        (".memo", "%2Ememo"),
        ("2024-01-31-05:00", "2024-01-31-05%3A00"),
        ("de|2024", "de%7C2024"),
        ("ü\0", "%C3%BC%00"),
    ],
)
def test_a_partition_is_always_one_folder_with_a_harmless_name(partition: str, folder: str) -> None:
    assert folder_of(["a"], partition) == f"a/{folder}"


@given(st.text(max_size=20), st.text(max_size=20))
def test_different_partitions_never_share_a_folder(one: str, other: str) -> None:
    folders = set()
    for partition in {one, other} - {""}:
        folder = folder_of(["a"], partition)
        name = folder.removeprefix("a/")
        assert "/" not in name
        assert not name.startswith(".")
        assert name.isascii()
        assert name.isprintable()
        folders.add(folder)
    assert len(folders) == len({one, other} - {""})


@pytest.mark.parametrize("partition", ["", "x" * 300, "ü" * 50])
def test_a_partition_without_a_possible_name_is_refused(partition: str) -> None:
    with pytest.raises(StoreError, match="asset churn/scores: the partition"):
        folder_of(["churn", "scores"], partition)


@pytest.mark.parametrize(
    "key",
    [[], [""], ["."], [".."], ["a", "../b"], [".memo"], ["a/b"], ["a\0"], ["x" * 300], "churn"],
)
def test_a_key_that_could_leave_its_folder_is_refused(key: list[str]) -> None:
    with pytest.raises(StoreError, match="asset key"):
        folder_of(key)


@pytest.mark.parametrize(
    "version", ["", "abc", "0123456789ABCDEF", "../../etc/passwd", VERSION * 2]
)
def test_what_is_no_digest_is_no_version(version: str) -> None:
    with pytest.raises(StoreError, match="is no version"):
        object_path("a", version, "json")


@pytest.mark.parametrize(
    "name", [".tmp-1", "notes.txt", f"{VERSION}", f"{VERSION}.json.bak", "x.json"]
)
def test_other_files_are_no_versions(name: str) -> None:
    assert parse_object_path(f"a/{name}") is None


@pytest.mark.parametrize(
    "path", [f"{VERSION}.json", f".git/{VERSION}.json", f"my files/{VERSION}.json"]
)
def test_versions_only_lie_in_folders_of_assets(path: str) -> None:
    assert parse_object_path(path) is None


def test_records_of_computations_are_told_from_others() -> None:
    fingerprint = VERSION * 4
    assert parse_computation_path(f".memo/{fingerprint}.json") == ("memo", "", fingerprint)
    for folder in ("a", "churn/predictions/2024-01-31", "a/b/x%2Fy"):
        path = f".events/{folder}/{fingerprint}.json"
        assert parse_computation_path(path) == ("events", folder, fingerprint)
    for path in (f".memo/{VERSION}.json", f"a/{fingerprint}.json", f".latest/i/{fingerprint}.json"):
        assert parse_computation_path(path) is None


@given(st.text(min_size=1, max_size=20))
def test_a_record_may_lie_in_the_folder_of_any_partition(partition: str) -> None:
    path = f".events/{folder_of(['a'], partition)}/{VERSION}.json"
    assert record_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a/b.json",
        ".a/../b.json",
        ".a/.b.json",
        "/.a/b.json",
        ".a/b.txt",
        ".a//b.json",
        "..a/b.json",
    ],
)
def test_records_only_lie_in_folders_with_a_dot(path: str) -> None:
    with pytest.raises(StoreError, match="cannot be a record"):
        record_path(path)
