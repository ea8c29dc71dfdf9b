"""Where bytes lie: one interface over a local folder and the object stores.

Here are paths, bytes and the guarantee that an object is complete or absent. What the bytes mean is
`codecs`; which path an artefact has is `layout`; the object stores themselves are `remote_objects`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path, PurePath
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from mlops_assets.errors import StoreError

REMOTE_SCHEMES = ("s3", "gs", "abfs", "abfss", "az", "memory")

_SYNC_BYTES = 64 * 1024 * 1024  # after which the disk is asked for what was written

_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{32}")

# What a person has to mend; any other OSError (EIO, ESTALE, …) may pass.
_REMEDIES = {
    errno.EACCES: "the user who runs this may not do that; change the permissions of the folder",
    errno.EPERM: "the user who runs this may not do that; change the permissions of the folder",
    errno.EROFS: "the file system is read-only; choose a writable place with MLOPS_STORE_URL",
    errno.ENOSPC: "the disk is full, or has no room for more files; free some space or choose "
    "another place with MLOPS_STORE_URL",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another place with "
    "MLOPS_STORE_URL",
    errno.EFBIG: "the file is larger than this process may write (see `ulimit -f`)",
    errno.ENOTDIR: "a part of the path is a file where a folder is needed; move it away",
    errno.EEXIST: "a part of the path is a file where a folder is needed; move it away",
    errno.EISDIR: "there is a folder where a file is needed; move it away",
    errno.ENAMETOOLONG: "the name is too long for the file system; shorten the key or partition",
    errno.EOPNOTSUPP: "the file system has no hard links, which records need to be written once; "
    "choose another place with MLOPS_STORE_URL",
}


class ObjectMissingError(StoreError):
    """There is no object at a path of the store."""


class StoreUnavailableError(ConnectionError):
    """The store, or the disk, did not do what it can do: worth trying again later."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says about an object without reading it."""

    path: str
    size: int  # bytes
    modified: datetime  # with time zone
    tag: str  # another one whenever the object is written again: time of change, or entity tag


class Upload(Protocol):
    """An object that is being written: nobody can see it before `publish`."""

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""

    def publish(self, path: str) -> None:
        """Make the complete object visible at `path`, in place of what may be there."""


class Objects(Protocol):
    """Objects under one root URL, by relative path with ``/`` between the parts.

    Every method raises `StoreError` for what a person must mend (permissions, a full disk, a bucket
    that isn't there) and `StoreUnavailableError` for what may pass.
    """

    def url_of(self, path: str) -> str:
        """Absolute path or URL of an object, for people and messages."""

    def look(self, path: str) -> ObjectInfo | None:
        """What there is at a path, in one request; None when there is nothing."""

    def distrust(self, path: str) -> None:
        """Change the tag of an object whose content changed behind the store's back."""

    def read(self, path: str) -> bytes:
        """Content of a small object; raises `ObjectMissingError`."""

    def digest(self, path: str) -> str:
        """SHA-256 of an object in hexadecimal digits; raises `ObjectMissingError`."""

    def fetch(self, path: str) -> AbstractContextManager[tuple[Path, str]]:
        """A local file with the content of an object, and its digest; raises `ObjectMissingError`.

        The file may vanish when the context ends; what has been opened until then stays readable.
        """

    def upload(self, folder: str) -> AbstractContextManager[Upload]:
        """Begin an object that will lie in `folder`; without `publish` nothing remains of it."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a small object unless there is one; whether it was written."""

    def list(self, folder: str, *, recursive: bool = False) -> Iterator[ObjectInfo]:
        """Objects directly in a folder, or below it too, in no particular order."""

    def delete(self, paths: Sequence[str]) -> None:
        """Remove objects, and folders that are empty then; what isn't there doesn't matter."""

    def tidy(self, before: datetime) -> None:
        """Remove what uploads that were killed have left, if untouched since `before`."""


def open_objects(url: str, *, endpoint_url: str | None = None) -> Objects:
    """Objects under `url`; connections are shared within a process.

    Parameters
    ----------
    url
        A path, or ``file://…``, ``s3://bucket/prefix``, ``gs://bucket/prefix``,
        ``abfs://container@account/prefix``, ``memory://name`` (lives as long as the process).
    endpoint_url
        Where an S3-compatible server answers, for ``s3://`` only.

    Raises
    ------
    StoreError
        When `url` is none of these.
    """
    scheme = urlsplit(url).scheme if "://" in url else ""
    if scheme in REMOTE_SCHEMES:
        return _remote_objects(url.rstrip("/"), endpoint_url)
    if not url or "\0" in url or scheme not in ("", "file"):
        allowed = ", ".join(f"{name}://" for name in ("file", *REMOTE_SCHEMES))
        raise StoreError(
            f"MLOPS_STORE_URL: {url!r} is no place for a store; give a path or one of {allowed}"
        )
    path = unquote(urlsplit(url).path) if scheme else url
    return LocalObjects(Path(path).expanduser().absolute())


@cache
def _remote_objects(url: str, endpoint_url: str | None) -> Objects:
    from mlops_assets.store.remote_objects import RemoteObjects

    return RemoteObjects(url, endpoint_url)


@contextmanager
def explained(place: str) -> Iterator[None]:
    """Turn the operating system's errors into those of `Objects`."""
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissingError(f"{place} does not exist") from error
    except OSError as error:
        if isinstance(error, StoreUnavailableError):
            raise
        if error.errno not in _REMEDIES:
            raise StoreUnavailableError(f"{place}: {error.strerror or error}") from error
        raise StoreError(f"{place}: {error.strerror}: {_REMEDIES[error.errno]}") from error


@dataclass(frozen=True)
class LocalObjects:
    """Objects as plain files below a folder, which is made when the first one is written."""

    root: Path

    def url_of(self, path: str) -> str:
        """See `Objects`."""
        return str(self.root / path)

    def look(self, path: str) -> ObjectInfo | None:
        """See `Objects`."""
        with suppress(ObjectMissingError), explained(self.url_of(path)):
            return _info(path, (self.root / path).stat())
        return None

    def distrust(self, path: str) -> None:
        """See `Objects`."""
        with suppress(OSError):  # a store that cannot be written has no way to remember
            os.utime(self.root / path)

    def read(self, path: str) -> bytes:
        """See `Objects`."""
        with explained(self.url_of(path)):
            return (self.root / path).read_bytes()

    def digest(self, path: str) -> str:
        """See `Objects`."""
        with explained(self.url_of(path)), (self.root / path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextmanager
    def fetch(self, path: str) -> Iterator[tuple[Path, str]]:
        """See `Objects`."""
        yield self.root / path, self.digest(path)

    @contextmanager
    def upload(self, folder: str) -> Iterator[_LocalUpload]:
        """See `Objects`."""
        with explained(self.url_of(folder)):
            file = _temporary_in(self.root / folder)
        temporary = Path(file.name)
        upload = _LocalUpload(self, file, temporary)
        try:
            yield upload
        finally:
            upload.end()
            with suppress(OSError):  # a full disk: closing writes the rest of the buffer again
                file.close()
            with suppress(OSError):  # what is published is so all the same; `tidy` removes it
                temporary.unlink()

    def create(self, path: str, data: bytes) -> bool:
        """See `Objects`."""
        with self.upload(os.path.dirname(path)) as upload:
            upload.write(data)
            return upload.publish_new(path)

    def list(self, folder: str, *, recursive: bool = False) -> Iterator[ObjectInfo]:
        """See `Objects`."""
        for parent, folders, names in os.walk(self.root / folder, onerror=self._walk_error):
            if not recursive:
                folders.clear()
            below = PurePath(parent).relative_to(self.root).as_posix()
            prefix = "" if below == "." else f"{below}/"
            for name in names:
                if not name.startswith("."):
                    with suppress(FileNotFoundError):  # deleted since its folder was read
                        yield _info(f"{prefix}{name}", os.stat(f"{parent}/{name}"))

    def delete(self, paths: Sequence[str]) -> None:
        """See `Objects`."""
        for path in paths:
            with explained(self.url_of(path)):
                (self.root / path).unlink(missing_ok=True)
        folders = {folder for path in paths for folder in PurePath(path).parents if folder.name}
        for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
            with suppress(OSError):  # not empty
                (self.root / folder).rmdir()

    def tidy(self, before: datetime) -> None:
        """See `Objects`."""
        for parent, _, names in os.walk(self.root, onerror=self._walk_error):
            for name in filter(_TEMPORARY.fullmatch, names):
                file = Path(parent, name)
                with explained(str(file)), suppress(FileNotFoundError):
                    if file.stat().st_mtime < before.timestamp():
                        file.unlink()

    def _walk_error(self, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # an empty folder and none are the same
            with explained(str(error.filename)):
                raise error


def _temporary_in(folder: Path, tries: int = 10) -> BinaryIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / f".tmp-{os.urandom(16).hex()}").open("xb")
    except (FileNotFoundError, FileExistsError):  # `delete` found the folder empty meanwhile
        if tries == 0:
            raise
        return _temporary_in(folder, tries - 1)


def _info(path: str, stat: os.stat_result) -> ObjectInfo:
    modified = datetime.fromtimestamp(stat.st_mtime, UTC)
    return ObjectInfo(path, stat.st_size, modified, str(stat.st_mtime_ns))


class _LocalUpload:
    """A temporary file beside the final one, so that publishing is a rename.

    A large one is synced while it is written, so that its end isn't waited for so long. The error
    of a sync is told once: every result is looked at.
    """

    def __init__(self, objects: LocalObjects, file: BinaryIO, temporary: Path) -> None:
        self._objects = objects
        self._file = file
        self._temporary = temporary
        self._unsynced = 0  # bytes
        self._thread: ThreadPoolExecutor | None = None
        self._syncing: Future[None] | None = None

    def write(self, data: bytes | memoryview) -> None:
        with explained(str(self._temporary)):
            self._file.write(data)
            self._unsynced += len(data)
            if self._unsynced >= _SYNC_BYTES and (self._syncing is None or self._syncing.done()):
                self._wait()
                self._unsynced = 0
                self._thread = self._thread or ThreadPoolExecutor(1)
                self._syncing = self._thread.submit(os.fsync, self._file.fileno())

    def end(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()

    def publish(self, path: str) -> None:
        with _publishing(self._objects.url_of(path)):
            self._finish()
            os.replace(self._temporary, self._objects.url_of(path))
            _sync_folder(self._temporary.parent)

    def publish_new(self, path: str) -> bool:
        with _publishing(self._objects.url_of(path)):
            self._finish()
            try:
                os.link(self._temporary, self._objects.url_of(path))
            except FileExistsError:
                return False
            _sync_folder(self._temporary.parent)
            return True

    def _finish(self) -> None:
        self._wait()
        self._file.flush()
        os.fsync(self._file.fileno())

    def _wait(self) -> None:
        if self._syncing is not None:
            self._syncing.result()
            self._syncing = None


@contextmanager
def _publishing(place: str) -> Iterator[None]:
    try:
        with explained(place):
            yield
    except ObjectMissingError as error:
        raise StoreUnavailableError(
            f"{place} was not written: somebody deleted its folder meanwhile"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut: the name is an entry of the folder, not of the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
