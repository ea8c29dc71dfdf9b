"""The files behind a `data.uri`: which they are, their bytes, and their content identity.

Only finding and fetching; what is in the files is `read`. Local files need nothing but the standard
library, so that asking for an identity is cheap; object stores and HTTP go through obstore and
everything else through fsspec.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from mlops_assets.errors import DataError
from mlops_assets.spec import DataSpec
from mlops_assets.wording import first_line, nearest, redacted

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

BUNDLED = "sklearn://"
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "http", "https"}
_SETTLED = 2 * 10**9  # nanoseconds; the coarsest clock of a file system in use, that of FAT
_REFUSED, _MISSING = (401, 403), (404, 410)  # HTTP's
_GLOB = re.compile(r"[*?\[]")
CONTENT_TAGS = ("e_tag", "ETag", "etag", "md5Hash", "sha256", "checksum")
CHANGE_TIMES = ("last_modified", "LastModified", "Last-Modified", "mtime", "updated", "created")


class SourceFile(NamedTuple):
    """One file of a source."""

    name: str
    """Path or URL, for messages; its end tells the format."""
    part: str
    """Name relative to the fixed part of the glob."""
    read: Callable[[], bytes]
    tag: Callable[[], str]
    """What changes when the content does: a digest, or what the file system has instead."""


def find(
    uri: str, folder: Path, storage_options: Mapping[str, str] | None = None
) -> list[SourceFile]:
    """Find the files that a `data.uri` means, sorted by name.

    Parameters
    ----------
    uri
        A path relative to `folder`, an fsspec URL, or a glob of either.
    folder
        What a relative path is relative to.
    storage_options
        Configuration of obstore's S3 client, such as ``{"endpoint": "http://localhost:9000"}``;
        used for ``s3://`` only. The AWS variables of the environment hold as well.

    Raises
    ------
    DataError
        Nothing lies there, or it may not be read.
    """
    if "://" in uri and not uri.startswith("file://"):
        return _find_remote(uri, dict(storage_options or {}))
    location = uri.removeprefix("file://")
    with mendable(os.path.normpath(folder / location)):
        return _find_local(location, folder)


def identity(data: DataSpec, folder: Path, storage_options: Mapping[str, str] | None = None) -> str:
    """Identify the content of what lies at the URI, without parsing it.

    Local files count with their name and the SHA-256 of their content; remote ones with their name,
    size and entity tag (or time of change, where there is no tag); a bundled data set with its name
    and scikit-learn's version.

    Returns
    -------
    str
        16 hexadecimal digits.

    Raises
    ------
    DataError
        Nothing lies at the URI, or it may not be read.
    """
    digest = hashlib.sha256()
    if data.uri.startswith(BUNDLED):
        from importlib.metadata import version

        digest.update(f"{data.uri} scikit-learn {version('scikit-learn')}".encode())
    else:
        for file in find(data.uri, folder, storage_options):
            digest.update(f"{file.part}\0{file.tag()}\n".encode())
    return digest.hexdigest()[:16]


def local_glob(location: str, folder: Path) -> tuple[Path, str] | None:
    """Divide a local glob into the folder that it always is in and the rest; None for a file.

    The folder of the pipeline file is taken as it is, whatever characters are in its name.
    """
    if not _GLOB.search(location) or (folder / location).exists():
        return None
    fixed = os.path.dirname(_GLOB.split(location)[0])
    pattern = os.path.normpath(location[len(fixed) :].lstrip("/"))
    return Path(os.path.normpath(folder / fixed)), pattern


def _find_local(location: str, folder: Path) -> list[SourceFile]:
    path = Path(os.path.normpath(folder / location))
    divided = local_glob(location, folder)
    if divided is None:
        _require_file(path)
        return [_local_file(path, path.name)]
    root, pattern = divided
    try:
        matches = sorted(root.glob(pattern))
    except ValueError as error:
        raise DataError(f"data.uri: {path} is no glob: {error}") from error
    parts = [(path, path.relative_to(root)) for path in matches if path.is_file()]
    shown = [(path, part) for path, part in parts if not re.search(r"(^|/)\.", part.as_posix())]
    if not shown:
        raise DataError(f"data.uri: no file matches {path}")
    return [_local_file(path, part.as_posix()) for path, part in shown]


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"data.uri: {path} is a folder; write {path}/*.csv, say")
    if not path.parent.is_dir():
        raise DataError(f"data.uri: {path} does not exist: there is no folder {path.parent}")
    if not path.exists():
        hint = nearest(path.name, (other.name for other in path.parent.iterdir()))
        raise DataError(f"data.uri: {path} does not exist{hint}")


def _local_file(path: Path, part: str) -> SourceFile:
    def content() -> bytes:
        with mendable(str(path)):
            return path.read_bytes()

    def tag() -> str:
        with mendable(str(path)):
            stat = path.stat()
            changed = max(stat.st_mtime_ns, stat.st_ctime_ns)
            if time.time_ns() - changed < _SETTLED:  # another write may leave the same times
                _digest.cache_clear()
            return _digest(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    return SourceFile(str(path), part, content, tag)


@lru_cache(maxsize=1024)
def _digest(path: Path, *_: int) -> str:
    """Digest a file once per process; inode, size and times are arguments to notice a change."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _find_remote(uri: str, options: dict[str, str]) -> list[SourceFile]:
    with mendable(uri):
        system, location = file_system(uri, options)
        if uri.startswith("http"):
            # has no listing; what follows a ? may be secret, and is no part of the name
            part = location.partition("?")[0].rpartition("/")[2]
            return [_remote_file(system, uri, location, part)]
        is_glob = bool(_GLOB.search(location))
        paths = sorted(str(path) for path in system.glob(location)) if is_glob else [location]
    if not paths:
        raise DataError(f"data.uri: no file matches {redacted(uri)}")
    root = _GLOB.split(location)[0].rpartition("/")[0] if is_glob else location.rpartition("/")[0]
    return [_remote_file(system, uri, path, path.removeprefix(root + "/")) for path in paths]


def file_system(
    uri: str, options: dict[str, str], field: str = "data.uri"
) -> tuple[AbstractFileSystem, str]:
    """Return what reads the files of a URL, and the URL as that wants it; `field` is for errors."""
    scheme = urlsplit(uri).scheme
    # obstore leaves the query of a URL out
    has_query = scheme.startswith("http") and "?" in uri
    if scheme not in OBJECT_STORES or has_query:
        import fsspec

        try:
            system, location = fsspec.core.url_to_fs(uri)
        except (ValueError, ImportError) as error:
            raise DataError(f"{field}: {redacted(uri)} cannot be opened: {error}") from error
        return system, location
    if not urlsplit(uri).netloc:
        raise DataError(f"{field}: {redacted(uri)} names no bucket or host after {scheme}://")
    from obstore.fsspec import FsspecStore

    # typed by an overload for each protocol
    open_store: Any = FsspecStore
    store: AbstractFileSystem = open_store(scheme, **connection(scheme, options))
    # obstore takes the host of localhost:8000/x.csv for a scheme
    return store, uri if scheme.startswith("http") else uri.partition("://")[2]


def connection(scheme: str, options: dict[str, str]) -> dict[str, Any]:
    """Return how obstore reaches the object stores of a scheme."""
    from datetime import timedelta

    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    is_s3 = scheme in {"s3", "s3a"}
    return {
        "config": {"region": region or "us-east-1", **options} if is_s3 else None,
        "client_options": {"allow_http": True, "connect_timeout": "10s"},
        "retry_config": {"max_retries": 3, "retry_timeout": timedelta(seconds=60)},
    }


def _remote_file(system: AbstractFileSystem, uri: str, path: str, part: str) -> SourceFile:
    name = redacted(f"{urlsplit(uri).scheme}://{path.partition('://')[2] or path.lstrip('/')}")

    def content() -> bytes:
        with mendable(name):
            return bytes(system.cat_file(path))

    def tag() -> str:
        with mendable(name):
            facts = system.info(path)
        marks = [facts[key] for key in (*CONTENT_TAGS, *CHANGE_TIMES) if facts.get(key)]
        # the size alone would miss an edit of equal length
        return f"{facts['size']} {marks[0]}" if marks else hashlib.sha256(content()).hexdigest()

    return SourceFile(name, part, content, tag)


@contextmanager
def mendable(name: str, field: str = "data.uri") -> Iterator[None]:
    """Turn what a person must mend into a DataError; what may pass by itself stays as it is.

    Both without the secrets of URLs: where one is quoted, the errors behind it are left out.
    """
    try:
        with _explained(redacted(name), field):
            yield
    except Exception as error:
        if not _quotes_a_secret(error):
            raise
        kind = type(error) if isinstance(error, DataError) else OSError
        raise kind(redacted(str(error))) from None


def _quotes_a_secret(error: BaseException | None) -> bool:
    while error is not None:
        if redacted(str(error)) != str(error):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


@contextmanager
def _explained(name: str, field: str) -> Iterator[None]:
    try:
        yield
    except Exception as raised:
        error = _behind(raised)
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{field}: {name} does not exist") from error
        if isinstance(error, PermissionError):
            raise DataError(f"{field}: {name} may not be read: permission denied") from error
        if isinstance(error, IsADirectoryError):
            raise DataError(f"{field}: {name} is a folder, not a file") from error
        refused = type(error).__name__ in {"PermissionDeniedError", "UnauthenticatedError"}
        if refused or getattr(error, "status", None) in _REFUSED:
            reason = "permission denied; check the credentials in the environment"
            raise DataError(f"{field}: {name} may not be read: {reason}") from error
        # what obstore asks, on a cloud's machine, when the environment has none
        if "/latest/api/token" in str(error):
            raise DataError(
                f"{field}: {name} may not be read: no credentials in the environment"
            ) from error
        if "NoSuchBucket" in str(error):
            raise DataError(f"{field}: {name}: there is no such bucket") from error
        if type(error).__module__.startswith("obstore"):
            # the lines after the first are pages of obstore's own state
            raise OSError(f"{field}: {name}: {first_line(str(error))}") from None
        if error is not raised:
            raise error from None
        raise


def _behind(error: Exception) -> Exception:
    """Return what went wrong: over HTTP, fsspec calls a file missing whatever it was."""
    cause = error.__cause__
    is_missing = getattr(cause, "status", None) in _MISSING
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, Exception) or is_missing:
        return error
    return cause if type(cause).__module__.startswith("aiohttp") else error
