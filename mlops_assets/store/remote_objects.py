"""Objects on S3, Google Cloud Storage and Azure, and in memory, through obstore.

Credentials are looked for where the providers' own tools look: for S3 the environment
(``AWS_ACCESS_KEY_ID`` …), then the profile ``AWS_PROFILE`` of ``~/.aws/credentials`` and
``~/.aws/config`` (keys only; for SSO and assumed roles run ``aws configure export-credentials``),
then web identity, container and instance metadata. Google: ``GOOGLE_APPLICATION_CREDENTIALS`` or
the application default; Azure: the ``AZURE_…`` variables.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlops_assets.errors import StoreError
from mlops_assets.store.objects import (
    ObjectInfo,
    ObjectMissingError,
    StoreUnavailableError,
    explained,
)

if TYPE_CHECKING:
    from obstore import Bytes, ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

_PART = 8 * 1024 * 1024  # bytes of one request, in both directions
_AT_ONCE = 4  # parts, in both directions
_READS = 2  # of a part that comes shorter than it is
_MOST_PARTS = 10_000  # of an S3 upload
_TIMEOUTS: ClientConfig = {
    "connect_timeout": "5s",
    "timeout": "60s",
}  # of one request, hence of one part
_METADATA_SERVICE = "169.254.169.254"  # asked for credentials when there are none elsewhere
_WRITER = "writer"  # metadata of a record that is created once: tells who has created it
_RETRIES: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}


class RemoteObjects:
    """Objects below a prefix of a bucket or container."""

    def __init__(self, url: str, endpoint_url: str | None) -> None:
        """Prepare the connection; nothing is asked of the store yet."""
        self._url = url
        self._endpoint_url = endpoint_url
        self._store = _connect(url, endpoint_url)

    def url_of(self, path: str) -> str:
        """See `Objects`."""
        return f"{self._url}/{path}"

    def look(self, path: str) -> ObjectInfo | None:
        """See `Objects`."""
        import obstore

        with suppress(ObjectMissingError), self._explained(path):
            return _info(obstore.head(self._store, path))
        return None

    def distrust(self, path: str) -> None:
        """See `Objects`; there is nothing to do, as the entity tag follows the content."""

    def read(self, path: str) -> bytes:
        """See `Objects`."""
        import obstore

        with self._explained(path):
            return bytes(obstore.get(self._store, path).bytes())

    def digest(self, path: str) -> str:
        """See `Objects`."""
        sha256 = hashlib.sha256()
        for part in self._parts(path):
            sha256.update(part)
        return sha256.hexdigest()

    @contextmanager
    def fetch(self, path: str) -> Iterator[tuple[Path, str]]:
        """See `Objects`."""
        sha256 = hashlib.sha256()
        with _temporary_file() as file:
            for part in self._parts(path):
                sha256.update(part)
                with _on_local_disk():
                    file.write(part)
            with _on_local_disk():
                file.flush()
            yield Path(file.name), sha256.hexdigest()

    @contextmanager
    def upload(self, folder: str) -> Iterator[_RemoteUpload]:
        """See `Objects`."""
        with _temporary_file() as file:
            yield _RemoteUpload(self, file)

    def create(self, path: str, data: bytes) -> bool:
        """See `Objects`."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        writer = os.urandom(16).hex()
        with self._explained(path):
            try:
                obstore.put(self._store, path, data, mode="create", attributes={_WRITER: writer})
            except AlreadyExistsError:
                return self._was_created_by(writer, path)
        return True

    def list(self, folder: str, *, recursive: bool = False) -> Iterator[ObjectInfo]:
        """See `Objects`."""
        import obstore

        with self._explained(folder):
            pages = (
                obstore.list(self._store, folder or None)
                if recursive
                else [obstore.list_with_delimiter(self._store, folder or None)["objects"]]
            )
            for page in pages:
                yield from map(_info, page)

    def delete(self, paths: Sequence[str]) -> None:
        """See `Objects`."""
        import obstore

        try:
            with self._explained(paths[0] if len(paths) == 1 else ""):
                obstore.delete(self._store, paths)
        except ObjectMissingError:  # only some providers mind
            for path in paths:
                with suppress(ObjectMissingError), self._explained(path):
                    obstore.delete(self._store, path)

    def tidy(self, before: datetime) -> None:
        """See `Objects`; a rule of the bucket ends uploads in parts that were never completed."""

    def put(self, path: str, file: IO[bytes], size: int) -> None:
        """Upload a whole file: complete or absent."""
        import obstore

        with self._explained(path):
            part = max(_PART, -(-size // _MOST_PARTS))
            obstore.put(self._store, path, file, chunk_size=part, max_concurrency=_AT_ONCE)

    def _was_created_by(self, writer: str, path: str) -> bool:
        """Whether an object that exists is our own: an answer was lost, and the client asked again.

        Two that create the same at once are refused, too, while there is no object yet.
        """
        import obstore

        try:
            return bool(obstore.get(self._store, path).attributes.get(_WRITER) == writer)
        except FileNotFoundError as error:
            raise StoreUnavailableError(
                f"{self.url_of(path)}: somebody else is writing it at this moment"
            ) from error

    def _parts(self, path: str) -> Iterator[Bytes]:
        """Content in order: at once if it is small, else in ranges with the next ones under way.

        A broken connection costs one range, however large the object.
        """
        size, content = self._if_small(path)
        if content is not None:
            yield content
            return
        pool = ThreadPoolExecutor(_AT_ONCE)
        coming: deque[Future[Bytes]] = deque()
        try:
            for start in range(0, size, _PART):
                coming.append(pool.submit(self._part, path, start, min(_PART, size - start)))
                if len(coming) == _AT_ONCE:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _if_small(self, path: str) -> tuple[int, Bytes | None]:
        """Size of an object, and in the same request its content, if that is no more than a part.

        Not of one that comes shorter than it is.
        """
        import obstore

        with self._explained(path):
            found = obstore.get(self._store, path)  # of a large one nothing but this is waited for
            size = found.meta["size"]
            content = found.bytes() if size <= _PART else None
        return size, content if content is not None and len(content) == size else None

    def _part(self, path: str, start: int, length: int) -> Bytes:
        import obstore

        with self._explained(path):
            for _ in range(_READS):
                part = obstore.get_range(self._store, path, start=start, length=length)
                if len(part) == length:
                    return part
        raise StoreUnavailableError(
            f"{self.url_of(path)}: the store sent {len(part)} bytes instead of {length}"
        )

    def _explained(self, path: str) -> AbstractContextManager[None]:
        return _explained(self.url_of(path), self._endpoint_url)


def _info(meta: ObjectMeta) -> ObjectInfo:
    modified = meta["last_modified"]
    return ObjectInfo(meta["path"], meta["size"], modified, meta["e_tag"] or modified.isoformat())


class _RemoteUpload:
    """A local file until it is complete."""

    def __init__(self, objects: RemoteObjects, file: IO[bytes]) -> None:
        self._objects = objects
        self._file = file

    def write(self, data: bytes | memoryview) -> None:
        with _on_local_disk():
            self._file.write(data)

    def publish(self, path: str) -> None:
        with _on_local_disk():
            size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        self._objects.put(path, self._file, size)


@contextmanager
def _temporary_file() -> Iterator[IO[bytes]]:
    with _on_local_disk():
        file = tempfile.NamedTemporaryFile(prefix="mlops-assets-")  # noqa: SIM115
    try:
        yield file
    finally:
        with suppress(OSError):  # a full disk: closing writes the rest of the buffer again
            file.close()


def _on_local_disk() -> AbstractContextManager[None]:
    return explained(f"the folder for temporary files, {tempfile.gettempdir()}")


@contextmanager
def _explained(url: str, endpoint_url: str | None) -> Iterator[None]:
    """Tell what a person must mend from what may pass; obstore has one error for most of both."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError, ValueError) as error:
        what = " ".join(str(error).partition("Debug source:")[0].split())
        if remedy := _remedy(error, what):
            raise StoreError(f"{url}: {remedy} ({what})") from error
        if isinstance(error, FileNotFoundError):
            raise ObjectMissingError(f"{url} does not exist") from error
        server = f"; is {endpoint_url} right (MLOPS_S3_ENDPOINT_URL)?" if endpoint_url else ""
        raise StoreUnavailableError(f"{url}: the store does not answer: {what}{server}") from error


def _remedy(error: Exception, what: str) -> str | None:
    """What a person can do about an error of obstore; None when it may pass or is a missing key."""
    from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError

    if "NoSuchBucket" in what or "ContainerNotFound" in what:
        return "the bucket does not exist; create it or correct MLOPS_STORE_URL"
    if _METADATA_SERVICE in what:
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if "RequestTimeTooSkewed" in what:
        return "the clock of this machine differs from the store's by minutes; set it"
    if "ExpiredToken" in what:
        return "the credentials have expired; get new ones"
    if "RequestTimeout" in what:  # S3's 400 for an upload that stood still
        return None
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        return (
            "access was refused; check the credentials, their permissions on the bucket, and the "
            "clock of this machine"
        )
    refused = re.search(r"status code: (3\d\d|4\d\d)", what)
    if refused and refused[1] not in ("404", "408", "409", "429"):
        return "the store refused the request; check the URL and the region (AWS_REGION)"
    if not isinstance(error, (GenericError, FileNotFoundError)):
        return "the store cannot do this; check MLOPS_STORE_URL"
    return None


def _connect(url: str, endpoint_url: str | None) -> ObjectStore:
    from obstore.store import MemoryStore, from_url

    parts = urlsplit(url)
    if parts.scheme == "memory":
        return MemoryStore()
    if not parts.netloc:
        raise StoreError(f"MLOPS_STORE_URL: {url!r} names no bucket; give {parts.scheme}://bucket")
    config: Any = _s3_options(endpoint_url) if parts.scheme == "s3" else None
    endpoint = endpoint_url or os.environ.get("AWS_ENDPOINT_URL", "")
    client: ClientConfig = {**_TIMEOUTS, "allow_http": endpoint.startswith("http://")}
    with _explained(url, endpoint_url):
        return from_url(url, config=config, client_options=client, retry_config=_RETRIES)


def _s3_options(endpoint_url: str | None) -> dict[str, str]:
    options = {"endpoint": endpoint_url} if endpoint_url else {}
    if {"AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"}.isdisjoint(os.environ):
        options |= _aws_profile()
    return options


def _aws_profile() -> dict[str, str]:
    """Keys and region of the user's AWS profile, which obstore does not read by itself."""
    profile = os.environ.get("AWS_PROFILE", "default")
    folder = Path.home() / ".aws"
    files = configparser.RawConfigParser()
    files.read(
        [
            os.environ.get("AWS_CONFIG_FILE", folder / "config"),
            os.environ.get("AWS_SHARED_CREDENTIALS_FILE", folder / "credentials"),
        ]
    )
    found: dict[str, str] = {}
    for section in (f"profile {profile}", profile):
        if section in files:
            found |= files[section]
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region")
    return {name: found[name] for name in names if name in found}
