"""What lies at a source, in a few numbers: one listing, and no content.

However many objects there are, one is held at a time. What is in them is `files` and `read`; the
files of a dated URI are `inbox`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import translate
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mlops_assets.ml.files import (
    BUNDLED,
    OBJECT_STORES,
    connection,
    file_system,
    find,
    local_glob,
    mendable,
)

_GLOB = re.compile(r"[*?\[]")
_DIGEST_BYTES = 16
_EXAMPLES = 3


class Object(NamedTuple):
    """A file or an object, as a listing has it."""

    name: str
    """Relative to the fixed part of the URI."""
    mark: str
    """What changes when the content does: size, and entity tag or times."""
    modified: float
    """Seconds since 1970; 0 where the listing has no time."""
    may_grow: bool
    """Whether it may be listed before it is complete, as local files are."""


class Listing(NamedTuple):
    """All objects of a source at a time."""

    digest: str
    """Another one when any object appears, changes or goes; 32 hexadecimal digits."""
    objects: int
    newest: tuple[float, str]
    """Time and name of the newest object; (0, "") for none."""
    news: int
    """How many objects are newer than the mark that was given."""
    examples: tuple[str, ...]
    """Some of their names."""
    unsettled: str | None
    """Name of an object that may be incomplete."""


def look(
    uri: str,
    folder: Path,
    options: Mapping[str, str] | None = None,
    *,
    after: tuple[float, str] = (0, ""),
    settled_before: float = float("inf"),
) -> Listing:
    """List what lies at a URI.

    The digest is the sum of a digest of each object's name and mark, modulo 2^128: it does not
    depend on the order, which differs from one listing to the next, and needs no list. An object
    that is late, with a time before `after`, changes it like any other.

    Parameters
    ----------
    uri, folder, options
        As of `files.find`.
    after
        Time and name of an object; those that come later are counted as news.
    settled_before
        Seconds since 1970: an object that may grow and was changed since then may be incomplete.

    Raises
    ------
    DataError
        Nothing lies there, or it may not be listed.
    OSError
        It cannot be listed now.
    """
    total = objects = news = 0
    newest, unsettled = (0.0, ""), None
    examples: list[str] = []
    for one in _objects(uri, folder, dict(options or {})):
        # names of files may be bytes that are no text
        text = f"{one.name}\0{one.mark}".encode("utf-8", "surrogateescape")
        total += int.from_bytes(hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest())
        objects += 1
        at = (one.modified, one.name)
        newest = max(newest, at)
        if at > after:
            news += 1
            if len(examples) < _EXAMPLES:
                examples.append(one.name)
        if one.may_grow and one.modified >= settled_before:
            unsettled = one.name
    digest = f"{total % 2 ** (8 * _DIGEST_BYTES):0{2 * _DIGEST_BYTES}x}"
    return Listing(digest, objects, newest, news, tuple(examples), unsettled)


def _objects(uri: str, folder: Path, options: dict[str, str]) -> Iterator[Object]:
    scheme = urlsplit(uri).scheme if "://" in uri else "file"
    if uri.startswith(BUNDLED):
        yield Object(uri, "", 0, may_grow=False)
    elif scheme == "file":
        location = uri.removeprefix("file://")
        with mendable(os.path.normpath(folder / location)):
            yield from _local(location, folder)
    elif scheme in OBJECT_STORES and not scheme.startswith("http"):
        with mendable(uri):
            yield from _stored(uri, options)
    else:
        for file in find(uri, folder, options):
            yield Object(file.part, file.tag(), 0, may_grow=False)


def _local(location: str, folder: Path) -> Iterator[Object]:
    """List local files as `files.find` finds them, hidden ones left out."""
    divided = local_glob(location, folder)
    if divided is None:
        path = folder / location
        yield _local_object(path.name, path.stat())
        return
    root, pattern = str(divided[0]), divided[1]
    for entry in _matching(root, pattern.split(os.sep)):
        try:
            stat = entry.stat()
        except FileNotFoundError:  # a broken link, or gone since its folder was read
            continue
        yield _local_object(entry.path.removeprefix(root).lstrip(os.sep), stat)


def _local_object(name: str, stat: os.stat_result) -> Object:
    # a file that was moved here, or given an older time, has its time of change from now
    modified = max(stat.st_mtime, stat.st_ctime)
    mark = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    return Object(name, mark, modified, may_grow=True)


def _matching(folder: str, parts: list[str]) -> Iterator[os.DirEntry[str]]:
    part, *rest = parts
    if part == "**":
        yield from _matching(folder, rest)
    matches = re.compile(translate(part)).match
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if part == "**":
                if entry.is_dir(follow_symlinks=False):
                    yield from _matching(entry.path, parts)
            elif matches(entry.name):
                if rest and entry.is_dir():
                    yield from _matching(entry.path, rest)
                elif not rest and entry.is_file():
                    yield entry


def _stored(uri: str, options: dict[str, str]) -> Iterator[Object]:
    import obstore
    from fsspec.utils import glob_translate
    from obstore.store import from_url

    scheme = urlsplit(uri).scheme
    _, location = file_system(uri, options)
    bucket, _, path = location.partition("/")
    store: Any = from_url(f"{scheme}://{bucket}", **connection(scheme, options))
    if not _GLOB.search(path):
        yield _stored_object(obstore.head(store, path))
        return
    matches = re.compile(glob_translate(path)).match
    for page in obstore.list(store, _GLOB.split(path)[0].rpartition("/")[0] or None):
        for found in page:
            if matches(found["path"]):
                yield _stored_object(found)


def _stored_object(found: Any) -> Object:
    modified = found["last_modified"]
    mark = f"{found['size']} {found['e_tag'] or modified.isoformat()}"
    return Object(found["path"], mark, modified.timestamp(), may_grow=False)
