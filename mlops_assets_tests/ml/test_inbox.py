"""Which days have files, and which files those are."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import fsspec
import pytest

from mlops_assets.errors import DataError
from mlops_assets.ml.inbox import days, files_of_day, identity_of, identity_of_day
from mlops_assets_tests.store.conftest import BUCKET, s3_client

DAY, NEXT = "2026-01-05", "2026-01-06"


def put(folder: Path, name: str, text: str = "x\n1\n") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("inbox/{date}/*.csv", "inbox/2026-01-05/a.csv"),
        ("inbox/{date}.csv", "inbox/2026-01-05.csv"),
        ("{date}.csv", "2026-01-05.csv"),
        ("inbox/day={date}/part-?.csv", "inbox/day=2026-01-05/part-1.csv"),
        ("inbox/*/{date}/**/*.csv", "inbox/eu/2026-01-05/x/y/a.csv"),
        ("inbox/{date}/[ab].csv", "inbox/2026-01-05/b.csv"),
        ("inbox/{date}/*.csv", "inbox/2026-01-05/größe 1.csv"),
        ("_in/{date}/_x/*.csv", "_in/2026-01-05/_x/a.csv"),
    ],
)
def test_a_day_is_found_by_its_date_wherever_the_uri_has_it(
    tmp_path: Path, uri: str, name: str
) -> None:
    put(tmp_path, name)
    assert list(days(uri, tmp_path)) == [DAY]
    [file] = files_of_day(uri, tmp_path, DAY)
    assert file.name == str(tmp_path / name)
    assert file.open().read() == b"x\n1\n"
    assert days(uri, tmp_path) == {DAY: identity_of_day(uri, tmp_path, DAY)}


def test_what_is_hidden_unfinished_or_no_day_is_left_out(tmp_path: Path) -> None:
    for name in (
        f"{DAY}/.a.csv",
        f"{DAY}/a.csv.tmp",
        f"{DAY}/a.csv.part",
        f"{DAY}/_SUCCESS",
        f"{DAY}/_temporary/a.csv",
        f"{DAY}/.x/a.csv",
        "2026-02-30/a.csv",
        "latest/a.csv",
        "2026-1-5/a.csv",
    ):
        put(tmp_path, name)
    (tmp_path / NEXT / "folder.csv").mkdir(parents=True)
    (tmp_path / NEXT / "gone.csv").symlink_to(tmp_path / "nowhere")
    assert days("{date}/**/*.csv", tmp_path) == {}
    with pytest.raises(DataError, match=rf"no file matches {DAY}/\*\*/\*\.csv for {DAY}"):
        files_of_day("{date}/**/*.csv", tmp_path, DAY)


def test_a_folder_that_is_not_there_yet_has_no_days(tmp_path: Path) -> None:
    assert days("nowhere/{date}/*.csv", tmp_path) == {}


def test_the_identity_follows_names_sizes_and_times_and_not_the_place(tmp_path: Path) -> None:
    uri = "{date}/*.csv"
    for place in ("here", "there"):
        os.utime(put(tmp_path / place, f"{DAY}/a.csv"), ns=(1, 10**18))
    before = identity_of_day(uri, tmp_path / "here", DAY)
    assert before == identity_of_day(uri, tmp_path / "there", DAY)
    assert len(before) == 16

    seen = {before}
    for change in (
        lambda: os.utime(tmp_path / "here" / DAY / "a.csv", ns=(1, 10**18 + 1)),
        lambda: put(tmp_path / "here", f"{DAY}/a.csv", "longer\n"),
        lambda: put(tmp_path / "here", f"{DAY}/b.csv"),
        lambda: (tmp_path / "here" / DAY / "a.csv").unlink(),
    ):
        change()
        seen.add(identity_of_day(uri, tmp_path / "here", DAY))
    assert len(seen) == 5


def test_a_day_with_a_file_that_may_still_be_written_is_left_for_later(tmp_path: Path) -> None:
    old = put(tmp_path, f"{DAY}/a.csv")
    os.utime(old, (time.time() - 100,) * 2)
    put(tmp_path, f"{NEXT}/a.csv")
    assert list(days("{date}/*.csv", tmp_path, quiet_seconds=60)) == [DAY]
    put(tmp_path, f"{DAY}/late.csv")
    assert list(days("{date}/*.csv", tmp_path, quiet_seconds=60)) == []
    assert list(days("{date}/*.csv", tmp_path)) == [DAY, NEXT]


def test_any_file_system_of_fsspec_can_hold_an_inbox(tmp_path: Path) -> None:
    root = f"memory://{uuid.uuid4().hex}"
    for day in (DAY, NEXT):
        fsspec.filesystem("memory").pipe(f"{root}/in/{day}/a.csv", b"x\n1\n")
    uri = f"{root}/in/{{date}}/*.csv"
    found = days(uri, tmp_path)
    assert list(found) == [DAY, NEXT]
    [file] = files_of_day(uri, tmp_path, DAY)
    assert file.name == f"{root}/in/{DAY}/a.csv"
    assert file.open().read() == b"x\n1\n"
    assert identity_of([file]) == found[DAY]


def test_a_bucket_is_listed_once_for_all_its_days(s3_endpoint: str, tmp_path: Path) -> None:
    client, prefix = s3_client(s3_endpoint), uuid.uuid4().hex
    for name in (f"{DAY}/a.csv", f"{DAY}/_SUCCESS", f"{NEXT}/x/a.csv", f"{NEXT}/b.csv"):
        client.put_object(Bucket=BUCKET, Key=f"{prefix}/in/{name}", Body=b"x\n1\n")
    options = {"endpoint": s3_endpoint}
    uri = f"s3://{BUCKET}/{prefix}/in/{{date}}/*.csv"
    found = days(uri, tmp_path, options)
    assert list(found) == [DAY, NEXT]
    [file] = files_of_day(uri, tmp_path, NEXT, options)
    assert file.name == f"s3://{BUCKET}/{prefix}/in/{NEXT}/b.csv"
    assert file.open().read() == b"x\n1\n"
    assert identity_of([file]) == found[NEXT]

    client.put_object(Bucket=BUCKET, Key=f"{prefix}/in/{NEXT}/b.csv", Body=b"x\n2\n")
    assert days(uri, tmp_path, options)[NEXT] != found[NEXT]
    with pytest.raises(DataError, match="no such bucket"):
        days("s3://nowhere-at-all/{date}.csv", tmp_path, options)


def test_what_cannot_be_listed_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be listed"):
        days("https://example.org/{date}.csv", tmp_path)
    with pytest.raises(DataError, match="is no glob"):
        days("{date}/a**/*.csv", tmp_path)
