"""Versioned artefacts: what a step produced, named by what it contains, checked when it is loaded.

Here values become objects and objects become values. Which file format a value has is `codecs`,
where an object lies is `layout`, how bytes are kept is `objects`. Which version a step needs is not
known here: the store keeps all of them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast

from mlops_assets.errors import StoreError
from mlops_assets.store.codecs import CODECS, Kind, codec_for, codec_of_extension
from mlops_assets.store.layout import (
    VERSION_LENGTH,
    folder_of,
    object_path,
    parse_object_path,
    record_path,
)
from mlops_assets.store.objects import ObjectInfo, ObjectMissingError, Upload, open_objects

_CHUNK = 4 * 1024 * 1024  # bytes
_READS = 2  # before something is called damaged: what was damaged on its way is right the next time
_DIGEST = "sha256"  # field of a record: the beginning of the digest of its path and all others


class MissingArtifactError(StoreError):
    """An artefact that should be in the store isn't there."""


class CorruptArtifactError(StoreError):
    """The content of an artefact isn't what its version says."""


@dataclass(frozen=True)
class Artifact:
    """One version of an asset, or of a partition of it, in a store."""

    key: tuple[str, ...]
    partition: str | None
    version: str  # the first 16 hexadecimal digits of the SHA-256 of the bytes
    extension: str
    size: int  # bytes
    modified: datetime | None = field(default=None, compare=False)  # known to `versions` only
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False)  # known to `write` only

    @property
    def path(self) -> str:
        """Path relative to the root of the store."""
        return object_path(folder_of(self.key, self.partition), self.version, self.extension)


class ArtifactStore:
    """Artefacts and small JSON records under one root URL.

    Parameters
    ----------
    url
        Root of the store: see `mlops_assets.store.objects.open_objects`.
    endpoint_url
        Where an S3-compatible server answers, for ``s3://`` only.

    Raises
    ------
    StoreError
        Here when the URL is no place for a store; in every method when a person has to mend
        something: permissions, credentials, a bucket that isn't there, a full disk.
    StoreUnavailableError
        In every method, when an object store does not answer: a retry may mend that.
    """

    def __init__(self, url: str, endpoint_url: str | None = None) -> None:
        """See the class; nothing is read or written yet."""
        self.url = url
        self._objects = open_objects(url, endpoint_url=endpoint_url)

    def write(self, key: Sequence[str], value: object, partition: str | None = None) -> Artifact:
        """Store a value under the digest of its content; equal content is stored once.

        An object that exists is read and kept if it is intact, and replaced if it isn't: this is
        how a damaged artefact is mended by computing it again.

        Raises
        ------
        StoreError
            When the value is of a kind that is never stored; nothing is left in the store then.
        """
        codec = codec_for(value)
        folder = folder_of(key, partition)
        with self._objects.upload(folder) as upload, ThreadPoolExecutor(1) as thread:
            writer = _HashingWriter(upload, thread)
            facts = codec.write(value, cast("IO[bytes]", writer))
            version = writer.digest[:VERSION_LENGTH]
            path = object_path(folder, version, codec.extension)
            if not self._is_intact(path, writer.size, version):
                upload.publish(path)
        return Artifact(tuple(key), partition, version, codec.extension, writer.size, facts=facts)

    def read(self, artifact: Artifact, as_: Kind | None = None) -> Any:
        """Value of an artefact, after its digest was checked.

        Parameters
        ----------
        artifact
            As `write`, `find` or `versions` returned it.
        as_
            For tables: ``"frame"`` for a pandas DataFrame (the default), ``"table"`` for a
            pyarrow.Table, ``"batches"`` for a pyarrow.RecordBatchReader, which keeps memory flat.

        Raises
        ------
        MissingArtifactError, CorruptArtifactError
            When the object isn't there, or its content isn't what the version says.
        StoreError
            When the content isn't what the extension says or holds types that are not trusted.
        """
        codec = codec_of_extension(artifact.extension)
        with self._fetch(artifact) as file:
            try:
                return codec.read(file, as_)
            except StoreError as error:
                raise StoreError(f"{self.url_of(artifact)}: {error}") from error

    def find(self, key: Sequence[str], version: str, partition: str | None = None) -> Artifact:
        """Artefact of a version, whatever its extension: one look at the store for each of them.

        Raises
        ------
        MissingArtifactError
            When there is none.
        """
        folder = folder_of(key, partition)
        for extension in CODECS:
            info = self._objects.look(object_path(folder, version, extension))
            if info is not None:
                return Artifact(tuple(key), partition, version, extension, info.size)
        raise self._missing(key, self._objects.url_of(f"{folder}/{version}.*"))

    def exists(self, artifact: Artifact) -> bool:
        """Whether the object is there in its full size; `read` and `verify` check its digest."""
        return self.tag(artifact) is not None

    def tag(self, artifact: Artifact) -> str | None:
        """What tells, without reading an artefact, that it is the same object as at another time.

        Locally the time of its last change, remotely its entity tag: one look at the store. Equal
        tags mean that nothing was written or damaged through the store in between; a disk that
        changes bits by itself shows only in `read` and `verify`.

        Returns
        -------
        str or None
            None when the object is missing or hasn't its full size.
        """
        info = self._objects.look(artifact.path)
        return info.tag if info is not None and info.size == artifact.size else None

    def verify(self, artifact: Artifact) -> bool:
        """Whether the object is there with the content that its version says; reads all of it."""
        return self._is_intact(artifact.path, artifact.size, artifact.version)

    def distrust(self, artifact: Artifact) -> None:
        """Make sure that `tag` differs from what it was before an artefact was found damaged.

        `read` and `copy` do so before they raise `CorruptArtifactError`. Remotely nothing is to be
        done: there another content has another entity tag.
        """
        self._objects.distrust(artifact.path)

    def versions(self, key: Sequence[str], partition: str | None = None) -> list[Artifact]:
        """Versions of an asset, or of one partition of it, the latest written first."""
        found = []
        for info in self._objects.list(folder_of(key, partition)):
            parsed = parse_object_path(info.path)
            if parsed and parsed[1] in CODECS:
                found.append(Artifact(tuple(key), partition, *parsed, info.size, info.modified))
        return sorted(found, key=lambda artifact: (artifact.modified, artifact.path), reverse=True)

    def copy(
        self, artifact: Artifact, key: Sequence[str], partition: str | None = None
    ) -> Artifact:
        """The same bytes under another key, checked on the way.

        Raises
        ------
        MissingArtifactError, CorruptArtifactError
            As `read`.
        """
        target = replace(artifact, key=tuple(key), partition=partition)
        if self._is_intact(target.path, artifact.size, artifact.version):
            return target
        with (
            self._fetch(artifact) as file,
            file.open("rb") as content,
            self._objects.upload(folder_of(key, partition)) as upload,
            ThreadPoolExecutor(1) as thread,
        ):
            writer = _HashingWriter(upload, thread)
            while chunk := content.read(_CHUNK):
                writer.write(chunk)
            self._check_digest(artifact, writer.digest)  # it may have changed since it was fetched
            upload.publish(target.path)
        return target

    def delete(self, artifact: Artifact) -> None:
        """Remove a version; nothing happens when there is none."""
        self._objects.delete([artifact.path])

    def url_of(self, artifact: Artifact) -> str:
        """Absolute path or URL of an artefact's object, for people."""
        return self._objects.url_of(artifact.path)

    def create_record(self, path: str, record: Mapping[str, Any]) -> bool:
        """Write a small JSON record unless there is one; whether it was written.

        Of several writers at once exactly one gets True. `path` is below a folder whose name begins
        with a dot: ``.champions/churn/00000001.json``.
        """
        return self._objects.create(record_path(path), _encode_record(path, record))

    def put_record(self, path: str, record: Mapping[str, Any]) -> None:
        """Write a small JSON record in place of what may be there."""
        with self._objects.upload(record_path(path).rpartition("/")[0]) as upload:
            upload.write(_encode_record(path, record))
            upload.publish(path)

    def get_record(self, path: str) -> dict[str, Any] | None:
        """A JSON record; None when there is none.

        Raises
        ------
        CorruptArtifactError
            When it isn't a JSON object, or not the one that was written.
        """
        for _ in range(_READS):
            try:
                content = self._objects.read(record_path(path))
            except ObjectMissingError:
                return None
            with suppress(ValueError, RecursionError):
                return _decode_record(path, content)
        raise CorruptArtifactError(
            f"{self._objects.url_of(path)} is damaged: it is not the JSON object that was written; "
            "delete it"
        )

    def list_records(self, folder: str) -> list[str]:
        """Sorted paths of the records directly in a folder such as ``.champions/churn``."""
        paths = (info.path for info in self._objects.list(folder))
        return sorted(path for path in paths if path.endswith(".json"))

    def records(self, folder: str) -> Iterator[tuple[str, datetime]]:
        """Path and time of the last change of all records below a folder, in one listing.

        In no particular order; `folder` is such as ``.events/churn/model``.
        """
        for info in self.contents(folder):
            if info.path.endswith(".json"):
                yield info.path, info.modified

    def contents(self, folder: str = "") -> Iterator[ObjectInfo]:
        """Everything below a folder, artefacts and records alike, in one listing without order."""
        return self._objects.list(folder, recursive=True)

    def discard(self, paths: Sequence[str]) -> None:
        """Remove artefacts and records by their paths; those that aren't there don't matter."""
        if paths:
            self._objects.delete(paths)

    def tidy(self, before: datetime) -> None:
        """Remove what writers that were killed have left, if untouched since `before`."""
        self._objects.tidy(before)

    @contextmanager
    def _fetch(self, artifact: Artifact) -> Iterator[Path]:
        """Give a local file with the content of an artefact, after its digest was checked."""
        with ExitStack() as files:
            for _ in range(_READS):
                files.close()
                try:
                    file, digest = files.enter_context(self._objects.fetch(artifact.path))
                except ObjectMissingError as error:
                    raise self._missing(artifact.key, self.url_of(artifact)) from error
                if digest.startswith(artifact.version):
                    break
            self._check_digest(artifact, digest)
            yield file

    def _is_intact(self, path: str, size: int, version: str) -> bool:
        info = self._objects.look(path)
        if info is None or info.size != size:
            return False
        with suppress(ObjectMissingError):
            return any(self._objects.digest(path).startswith(version) for _ in range(_READS))
        return False

    def _check_digest(self, artifact: Artifact, digest: str) -> None:
        if not digest.startswith(artifact.version):
            self.distrust(artifact)
            raise CorruptArtifactError(
                f"{self.url_of(artifact)} is damaged: its SHA-256 should begin with "
                f"{artifact.version} and is {digest}; {_remedy(artifact.key)}"
            )

    def _missing(self, key: Sequence[str], url: str) -> MissingArtifactError:
        return MissingArtifactError(f"{url} is missing from the store; {_remedy(key)}")


class _HashingWriter(io.RawIOBase):
    """The file that codecs write to: counts and digests the bytes on their way to an upload.

    Large ones are digested in a thread, while the next ones are encoded and written.
    """

    def __init__(self, upload: Upload, thread: ThreadPoolExecutor) -> None:
        self._upload = upload
        self._thread = thread
        self._sha256 = hashlib.sha256()
        self._ahead: list[bytes] = []  # not digested yet
        self._ahead_size = 0
        self._digesting: Future[None] | None = None
        self.size = 0

    @property
    def digest(self) -> str:
        self._wait()
        self._update(self._ahead)
        self._ahead, self._ahead_size = [], 0
        return self._sha256.hexdigest()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        content = data if isinstance(data, bytes) else bytes(data)  # the caller may change it
        self._upload.write(content)
        self.size += len(content)
        self._ahead.append(content)
        self._ahead_size += len(content)
        if self._ahead_size >= _CHUNK:
            self._wait()
            self._digesting = self._thread.submit(self._update, self._ahead)
            self._ahead, self._ahead_size = [], 0
        return len(content)

    def _wait(self) -> None:
        if self._digesting is not None:
            self._digesting.result()

    def _update(self, parts: list[bytes]) -> None:
        for part in parts:
            self._sha256.update(part)


def _remedy(key: Sequence[str]) -> str:
    return f"materialise the asset {'/'.join(key)} again"


def _encode_record(path: str, record: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(record, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"a record must be plain JSON: {error}") from error
    plain = json.loads(text)  # keys that were numbers are text from here on, in another order
    return json.dumps({**plain, _DIGEST: _digest_of(path, plain)}, sort_keys=True).encode()


def _decode_record(path: str, content: bytes) -> dict[str, Any]:
    """Return a record without its digest; `ValueError` if it isn't what was written."""
    record = json.loads(content)
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    digest = record.pop(_DIGEST, None)  # records of earlier versions have none
    if digest is not None and digest != _digest_of(path, record):
        raise ValueError("another digest")
    return record


def _digest_of(path: str, record: Mapping[str, Any]) -> str:
    """Digest a record with its path, as the record of something else is wrong, however intact."""
    text = json.dumps([path, record], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:VERSION_LENGTH]
