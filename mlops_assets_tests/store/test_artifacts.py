"""Versions in a store: the same behaviour in a folder, in memory and on S3."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pandas.testing import assert_frame_equal

from mlops_assets.errors import StoreError
from mlops_assets.store import (
    Artifact,
    ArtifactStore,
    CorruptArtifactError,
    MissingArtifactError,
    StoreUnavailableError,
    objects,
)
from mlops_assets.store.layout import folder_of
from mlops_assets_tests.servers import free_port
from mlops_assets_tests.store.conftest import BUCKET

KEY = ["churn", "metrics"]
AWKWARD_PARTITIONS = ["2024-01-31", "a/b", "..", ".a", "~", "50 %", "a|b", "ü", "a:b?c=d&e#f"]
VALUE = {"roc_auc": 0.84, "rows": 7, "names": ["ü", None]}


def damage(store: ArtifactStore, artifact: Artifact, content: bytes) -> None:
    """Put other bytes where an artefact lies."""
    with store._objects.upload(artifact.path.rpartition("/")[0]) as upload:
        upload.write(content)
        upload.publish(artifact.path)


def content_of(store: ArtifactStore, artifact: Artifact) -> bytes:
    """The bytes of an artefact."""
    return store._objects.read(artifact.path)


def test_the_version_is_the_digest_of_the_bytes(store: ArtifactStore) -> None:
    artifact = store.write(KEY, VALUE)
    content = content_of(store, artifact)
    assert hashlib.sha256(content).hexdigest().startswith(artifact.version)
    assert artifact.path == f"churn/metrics/{artifact.version}.json"
    assert artifact.size == len(content)
    assert artifact.facts == {"roc_auc": 0.84, "rows": 7}
    assert store.read(artifact) == VALUE


def test_equal_content_is_one_object_and_other_content_another(store: ArtifactStore) -> None:
    first = store.write(KEY, VALUE)
    modified = store.versions(KEY)[0].modified
    assert store.write(KEY, dict(reversed(VALUE.items()))) == first
    assert store.versions(KEY) == [first]
    assert store.versions(KEY)[0].modified == modified
    second = store.write(KEY, [1])
    assert second.version != first.version
    assert set(store.versions(KEY)) == {first, second}
    assert store.read(first) == VALUE


def test_a_version_is_found_without_knowing_its_extension(store: ArtifactStore) -> None:
    artifact = store.write(KEY, pd.DataFrame({"a": [1]}), partition="2024-01-31")
    assert store.find(KEY, artifact.version, "2024-01-31") == artifact
    with pytest.raises(MissingArtifactError):
        store.find(KEY, artifact.version)


def test_versions_are_those_of_the_key_and_partition_alone(store: ArtifactStore) -> None:
    whole = store.write(["a"], 1)
    part = store.write(["a"], 2, partition="x/y")
    other = store.write(["a", "b"], 3)
    assert store.versions(["a"]) == [whole]
    assert store.versions(["a"], "x/y") == [part]
    assert store.versions(["a", "b"]) == [other]
    assert store.versions(["never"]) == []


def test_a_missing_object_is_named_together_with_the_remedy(store: ArtifactStore) -> None:
    artifact = store.write(KEY, VALUE)
    store.delete(artifact)
    store.delete(artifact)
    assert not store.exists(artifact)
    for attempt in (
        lambda: store.read(artifact),
        lambda: store.find(KEY, artifact.version),
        lambda: store.copy(artifact, ["churn", "champion"]),
    ):
        with pytest.raises(
            MissingArtifactError, match="materialise the asset churn/metrics"
        ) as info:
            attempt()
        assert artifact.version in str(info.value)
    assert store.versions(["churn", "champion"]) == []


@pytest.mark.parametrize("kind", ["truncated", "bit flipped", "emptied", "longer"])
def test_a_damaged_object_is_refused_with_both_digests_and_mended_by_the_next_write(
    store: ArtifactStore, kind: str
) -> None:
    artifact = store.write(KEY, VALUE)
    content = content_of(store, artifact)
    damaged = {
        "truncated": content[:-3],
        "bit flipped": bytes([content[0] ^ 1]) + content[1:],
        "emptied": b"",
        "longer": content + b" ",
    }[kind]
    damage(store, artifact, damaged)
    with pytest.raises(CorruptArtifactError, match="materialise the asset churn/metrics") as info:
        store.read(artifact)
    assert artifact.version in str(info.value)
    assert hashlib.sha256(damaged).hexdigest() in str(info.value)
    assert store.url_of(artifact) in str(info.value)
    with pytest.raises(CorruptArtifactError):
        store.copy(artifact, ["churn", "champion"])
    assert store.versions(["churn", "champion"]) == []
    assert store.exists(artifact) == (kind == "bit flipped")
    assert store.write(KEY, VALUE) == artifact
    assert store.read(artifact) == VALUE


def test_the_tag_tells_an_object_that_nobody_touched_without_reading_it(
    store: ArtifactStore,
) -> None:
    artifact = store.write(KEY, VALUE)
    tag = store.tag(artifact)
    assert isinstance(tag, str)
    store.write(KEY, VALUE)
    store.read(artifact)
    assert store.tag(artifact) == tag
    damage(store, artifact, b"x" * artifact.size)
    assert store.tag(artifact) not in (None, tag)
    damage(store, artifact, b"x")
    assert store.tag(artifact) is None
    store.delete(artifact)
    assert store.tag(artifact) is None


def test_an_artefact_is_verified_by_its_content(store: ArtifactStore) -> None:
    artifact = store.write(KEY, VALUE)
    assert store.verify(artifact)
    damage(store, artifact, b"x" * artifact.size)
    assert store.exists(artifact)
    assert not store.verify(artifact)
    store.write(KEY, VALUE)
    assert store.verify(artifact)
    store.delete(artifact)
    assert not store.verify(artifact)


@pytest.mark.parametrize("load", ["read", "copy"])
def test_bits_that_flipped_on_the_disk_change_the_tag_once_somebody_noticed(
    local: ArtifactStore, load: str
) -> None:
    artifact = local.write(KEY, VALUE)
    file = Path(local.url_of(artifact))
    before = file.stat()
    file.write_bytes(b"x" * artifact.size)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert local.tag(artifact) == str(before.st_mtime_ns)
    with pytest.raises(CorruptArtifactError):
        local.read(artifact) if load == "read" else local.copy(artifact, ["other"])
    assert local.tag(artifact) not in (None, str(before.st_mtime_ns))
    assert not local.verify(artifact)


def test_distrusting_what_is_gone_or_may_not_be_changed_does_nothing(
    store: ArtifactStore,
) -> None:
    artifact = store.write(KEY, VALUE)
    store.distrust(artifact)
    assert store.verify(artifact)
    store.delete(artifact)
    store.distrust(artifact)
    assert store.versions(KEY) == []


def test_a_damaged_copy_is_mended_by_copying_again(store: ArtifactStore) -> None:
    artifact = store.write(KEY, VALUE)
    copy = store.copy(artifact, ["champion"], "de")
    damage(store, copy, b"x" * copy.size)
    assert store.copy(artifact, ["champion"], "de") == copy
    assert store.read(copy) == VALUE
    assert copy.version == artifact.version


def test_a_large_table_comes_back_whole_as_frame_table_and_batches(store: ArtifactStore) -> None:
    frame = pd.DataFrame({"x": range(400_000), "y": 0.1}).assign(z=lambda rows: rows.x**0.5)
    frame = pd.concat([frame] * 2, ignore_index=True)
    artifact = store.write(KEY, frame)
    assert artifact.size > 5 * 1024 * 1024  # more than one part of an upload
    assert_frame_equal(store.read(artifact), frame, check_exact=True)
    assert store.read(artifact, "table").num_rows == len(frame)
    batches = store.read(artifact, "batches")
    assert isinstance(batches, pa.RecordBatchReader)
    assert sum(batch.num_rows for batch in batches) == len(frame)


def test_a_write_that_fails_leaves_nothing(store: ArtifactStore) -> None:
    def batches() -> object:
        yield pa.record_batch({"x": range(100_000)})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.write(KEY, batches())
    with pytest.raises(StoreError, match="supported: tables"):
        store.write(KEY, object())
    assert list(store._objects.list("", recursive=True)) == []


def test_an_error_of_the_disk_is_told_wherever_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large object is synced while it is written, and the system tells an error once."""
    frame = pd.DataFrame(np.random.default_rng(0).random((100_000, 20)))
    frame.columns = [f"x{number}" for number in range(20)]
    monkeypatch.setattr(objects, "_SYNC_BYTES", 1024 * 1024)
    sync = os.fsync
    for failing in range(2):  # a sync meanwhile, and another one or that at the end
        left = [None] * failing

        def fails_once(file: int, left: list[None] = left) -> None:
            if left:
                left.pop()
                return
            monkeypatch.setattr(os, "fsync", sync)
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, "fsync", fails_once)
        root = tmp_path / f"failing-{failing}"
        with pytest.raises(StoreUnavailableError, match="Input/output error"):
            ArtifactStore(str(root)).write(KEY, frame)
        assert [path for path in root.rglob("*") if path.is_file()] == []


def test_reading_in_a_kind_that_only_tables_have_is_refused(store: ArtifactStore) -> None:
    artifact = store.write(KEY, VALUE)
    with pytest.raises(StoreError, match="cannot be loaded as table"):
        store.read(artifact, "table")


def test_content_of_another_format_than_the_name_says_is_refused(store: ArtifactStore) -> None:
    content = b"\x80\x04]."  # a pickle
    version = hashlib.sha256(content).hexdigest()[:16]
    for extension in ("parquet", "json", "skops", "png", "svg"):
        artifact = Artifact(("a",), None, version, extension, len(content))
        damage(store, artifact, content)
        with pytest.raises(StoreError) as info:
            store.read(artifact)
        assert store.url_of(artifact) in str(info.value)
        store.delete(artifact)
    with pytest.raises(StoreError, match=r"\.pkl is no format"):
        store.read(Artifact(("a",), None, version, "pkl", len(content)))


def test_many_writers_of_the_same_content_end_in_one_intact_object(store: ArtifactStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        artifacts = set(pool.map(lambda _: store.write(KEY, VALUE), range(16)))
    assert store.versions(KEY) == list(artifacts)
    assert store.read(artifacts.pop()) == VALUE


def test_of_many_creators_of_a_record_exactly_one_wins(store: ArtifactStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.create_record(".memo/a.json", {"n": n}), range(16)))
    assert won.count(True) == 1
    assert store.get_record(".memo/a.json") == {"n": won.index(True)}


def test_records_are_put_read_and_listed(store: ArtifactStore) -> None:
    assert store.get_record(".memo/a.json") is None
    assert store.list_records(".memo") == []
    store.put_record(".memo/b.json", {"v": 1})
    store.put_record(".memo/b.json", {"v": "ü"})
    store.put_record(".memo/a.json", {})
    store.put_record(".memo/deeper/c.json", {})
    assert store.get_record(".memo/b.json") == {"v": "ü"}
    assert store.list_records(".memo") == [".memo/a.json", ".memo/b.json"]
    with pytest.raises(StoreError, match="plain JSON"):
        store.put_record(".memo/c.json", {"v": float("nan")})


def test_all_records_below_a_folder_are_listed_with_their_time(store: ArtifactStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    paths = {f".events/a/{folder_of(['b'], partition)}/c.json" for partition in AWKWARD_PARTITIONS}
    for path in paths | {".events/a/c.json", ".memo/d.json"}:
        store.put_record(path, {"path": path})
    assert store.list_records(".events/a") == [".events/a/c.json"]
    listed = dict(store.records(".events/a"))
    assert set(listed) == paths | {".events/a/c.json"}
    assert all(before < modified < before + timedelta(minutes=1) for modified in listed.values())
    assert all(store.get_record(path) == {"path": path} for path in listed)
    assert list(store.records(".never")) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_damaged_record_is_named(store: ArtifactStore, content: bytes) -> None:
    store._objects.create(".memo/a.json", content)
    with pytest.raises(CorruptArtifactError, match=r"\.memo/a\.json is damaged"):
        store.get_record(".memo/a.json")


def test_a_record_that_was_changed_by_others_than_the_store_is_damaged(
    local: ArtifactStore,
) -> None:
    local.put_record(".kind/a.json", {"version": "0123", "n": {2: 0, 10: [1.5]}})
    record = Path(local.url, ".kind/a.json")
    right = record.read_text()

    assert local.get_record(".kind/a.json") == {"version": "0123", "n": {"2": 0, "10": [1.5]}}
    local.put_record(".kind/b.json", {"version": "0123", "n": {2: 0, 10: [1.5]}})
    for wrong in (right.replace("0123", "0133"), Path(local.url, ".kind/b.json").read_text()):
        record.write_text(wrong)
        with pytest.raises(CorruptArtifactError, match="not the JSON object that was written"):
            local.get_record(".kind/a.json")


def test_a_record_of_an_earlier_version_has_no_digest_and_is_read(local: ArtifactStore) -> None:
    local.put_record(".kind/a.json", {})
    Path(local.url, ".kind/a.json").write_text('{"version": "0123"}')
    assert local.get_record(".kind/a.json") == {"version": "0123"}


def test_many_objects_are_discarded_at_once_whether_they_are_there_or_not(
    store: ArtifactStore,
) -> None:
    artifacts = [store.write(["a"], 1, partition) for partition in AWKWARD_PARTITIONS]
    store.put_record(".memo/a.json", {})
    other = store.write(["b"], 1)
    paths = [it.path for it in artifacts]
    assert {it.path for it in store.contents()} == {*paths, ".memo/a.json", other.path}
    store.discard([*paths, "never/x.json", ".memo/a.json", paths[0]])
    store.discard(paths)
    store.discard([])
    assert [it.path for it in store.contents()] == [other.path]


def test_an_emptied_folder_is_removed_without_disturbing_who_writes_to_it(
    local: ArtifactStore,
) -> None:
    def write_and_discard(number: int) -> bool:
        artifact = local.write(["a", "b", "c"], number)
        there = local.exists(artifact)
        local.discard([artifact.path])
        return there

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(write_and_discard, range(200)))
    assert list(Path(local.url).iterdir()) == []


def test_memory_lasts_as_long_as_the_process_and_is_shared_by_url() -> None:
    artifact = ArtifactStore("memory://shared/").write(KEY, VALUE)
    assert ArtifactStore("memory://shared").read(artifact) == VALUE
    assert not ArtifactStore("memory://other").exists(artifact)


def test_a_folder_is_given_as_path_or_file_url(tmp_path: Path) -> None:
    artifact = ArtifactStore(f"file://{tmp_path}/my%20store").write(KEY, VALUE)
    assert ArtifactStore(str(tmp_path / "my store")).read(artifact) == VALUE
    assert (tmp_path / "my store" / artifact.path).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("url", ["", "ftp://host/x", "s3://", "http://host", "a\0b"])
def test_what_is_no_place_for_a_store_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="MLOPS_STORE_URL"):
        ArtifactStore(url)


def test_a_bucket_that_does_not_exist_is_named(s3_endpoint: str) -> None:
    store = ArtifactStore("s3://no-such-bucket/prefix", s3_endpoint)
    for attempt in (
        lambda: store.write(KEY, VALUE),
        lambda: store.versions(KEY),
        lambda: store.get_record(".memo/a.json"),
    ):
        with pytest.raises(StoreError, match=r"s3://no-such-bucket/prefix.*bucket does not exist"):
            attempt()


def test_a_server_that_does_not_answer_is_worth_a_retry(s3_endpoint: str) -> None:
    store = ArtifactStore(f"s3://{BUCKET}/x", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnavailableError, match="MLOPS_S3_ENDPOINT_URL") as info:
        store.write(KEY, VALUE)
    assert not isinstance(info.value, StoreError)


def test_keys_of_the_aws_profile_are_used(
    s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text("[team]\naws_access_key_id = a%b\naws_secret_access_key = c\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "team")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "config").write_text("[profile team]\nregion = eu-central-1\n")
    from mlops_assets.store.remote_objects import _aws_profile

    assert _aws_profile() == {
        "aws_access_key_id": "a%b",
        "aws_secret_access_key": "c",
        "region": "eu-central-1",
    }


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (403, StoreError, "access was refused; check the credentials"),
        (400, StoreError, "check the URL and the region"),
        (503, StoreUnavailableError, "the store does not answer"),
    ],
)
@pytest.mark.usefixtures("s3_endpoint")
def test_what_a_server_answers_decides_whether_a_retry_is_worth_it(
    status: int, error: type[Exception], words: str
) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = ArtifactStore(f"s3://{BUCKET}/x", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(error, match=words) as info:
            store.get_record(".memo/a.json")
        assert f"s3://{BUCKET}/x/.memo/a.json" in str(info.value)
        server.shutdown()
