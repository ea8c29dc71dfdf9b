"""The files of a dated URI such as `s3://bucket/inbox/{date}/*.csv`: of one day, or of all of them.

Finding and telling apart only, by names, sizes and entity tags or times of change: no content is
read here. What is in the files is `batches`, what is made of them `score`.

Files that other programs have not finished are left out: those whose name, or a folder of it,
begins with a dot or an underscore that the URI does not have itself (`.x.csv`, `_temporary/x.csv`).
What ends in `.tmp` or `.part` never fits a URI, which ends with the format.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from mlops_assets.errors import DataError
from mlops_assets.ml.files import (
    CHANGE_TIMES,
    CONTENT_TAGS,
    OBJECT_STORES,
    connection,
    file_system,
    mendable,
)
from mlops_assets.wording import redacted

QUIET_SECONDS = 10.0
"""How long the local files of a day must have been left alone for automation to act on them."""

_FIELD = "score.uri"
_DATE = "{date}"
_ANY_DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_MARKED = re.compile(r"[*?\[]|\{date\}")


class NoFilesError(DataError):
    """A day has no files."""


class InboxFile(NamedTuple):
    """One file of one day."""

    name: str
    """Path or URL, for messages; its end tells the format."""
    part: str
    """Name relative to the part of the URI without date and wildcards: the same on all machines."""
    tag: str
    """Another one when the content is: size, and entity tag or time of change."""
    changed: float
    """When it was changed, in seconds since 1970; 0 for objects, which are complete or absent."""
    open: Callable[[], IO[bytes]]


def days(
    uri: str,
    folder: Path,
    options: Mapping[str, str] | None = None,
    *,
    quiet_seconds: float = 0.0,
) -> dict[str, str]:
    """Tell the days that have files, and which ones, from one listing.

    Parameters
    ----------
    uri
        A path relative to `folder`, an fsspec URL or a glob, with `{date}` for the day.
    folder
        What a relative path is relative to.
    options
        As of `files.find`.
    quiet_seconds
        Leave out days with a local file that was changed within this time: it may still be written.

    Returns
    -------
    dict of str to str
        Identity of the files (16 hexadecimal digits) by day (`2026-01-31`), in order.

    Raises
    ------
    DataError
        Nothing can be listed there: no permission, no such bucket, or HTTP.
    OSError
        It cannot be listed now.
    """
    if uri.startswith("http"):
        raise DataError(
            f"{_FIELD}: {redacted(uri)} cannot be listed, so that nobody knows which days have "
            "files; score its days one by one, or take a folder or a bucket"
        )
    by_day: dict[str, list[InboxFile]] = defaultdict(list)
    for day, file in _files(uri, folder, dict(options or {}), None):
        by_day[day].append(file)
    now = time.time()
    return {
        day: identity_of(files)
        for day, files in sorted(by_day.items())
        if not any(0 <= now - file.changed < quiet_seconds for file in files)
    }


def files_of_day(
    uri: str, folder: Path, day: str, options: Mapping[str, str] | None = None
) -> list[InboxFile]:
    """Find the files of one day, sorted by name; parameters as of `days`.

    Raises
    ------
    NoFilesError
        There are none.
    DataError
        They may not be read.
    """
    found = [file for _, file in _files(uri, folder, dict(options or {}), day)]
    if not found:
        where = redacted(uri.replace(_DATE, day))
        raise NoFilesError(f"{_FIELD}: no file matches {where} for {day}")
    return sorted(found, key=lambda file: file.part)


def identity_of_day(
    uri: str, folder: Path, day: str, options: Mapping[str, str] | None = None
) -> str:
    """Return what `days` says of one day; raises like `files_of_day`."""
    return identity_of(files_of_day(uri, folder, day, options))


def identity_of(files: Iterable[InboxFile]) -> str:
    """Identify files by their names and tags, in 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.part):
        digest.update(f"{file.part}\0{file.tag}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _files(
    uri: str, folder: Path, options: dict[str, str], day: str | None
) -> Iterator[tuple[str, InboxFile]]:
    """Find the files of a day, or of all days for None, with the day of each."""
    root, pattern = _divided(uri)
    dated = _as_regex(pattern)
    visible = set(pattern.split("/"))
    with mendable(uri.replace(_DATE, day or _DATE), _FIELD):
        for file in _candidates(root, pattern.replace(_DATE, day or _ANY_DAY), folder, options):
            match = dated.fullmatch(file.part)
            if match is None or _is_hidden(file.part, visible):
                continue
            if match["day"] == day or (day is None and _is_day(match["day"])):
                if uri.startswith("http"):  # what follows a ? may be secret, and names no file
                    file = file._replace(part=file.part.partition("?")[0])
                yield match["day"], file


def _divided(uri: str) -> tuple[str, str]:
    """Divide a URI into the folder that it always is in, and the rest."""
    marked = _MARKED.search(uri)
    fixed = uri[: marked.start() if marked else len(uri)].rpartition("/")[0]
    return fixed, uri[len(fixed) :].lstrip("/")


def _as_regex(pattern: str) -> re.Pattern[str]:
    from fsspec.utils import glob_translate

    before, _, after = pattern.partition(_DATE)
    try:
        # a text that no glob changes, to find the place of the date again
        regex: str = glob_translate(f"{before}0DAY0{after}")
        return re.compile(regex.replace("0DAY0", r"(?P<day>\d{4}-\d{2}-\d{2})"))
    except ValueError as error:
        raise DataError(f"{_FIELD}: {pattern} is no glob: {error}") from error


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:  # the calendar has no February 30
        return False
    return True


def _is_hidden(part: str, visible: set[str]) -> bool:
    return any(name.startswith((".", "_")) and name not in visible for name in part.split("/"))


def _candidates(
    root: str, pattern: str, folder: Path, options: dict[str, str]
) -> Iterator[InboxFile]:
    scheme = urlsplit(root).scheme if "://" in root else "file"
    if scheme == "file":
        path = Path(os.path.normpath(folder / root.removeprefix("file://")))
        return _local(path, pattern)
    if scheme in OBJECT_STORES and not scheme.startswith("http"):
        return _objects(root, pattern, options)
    return _others(root, pattern, options)


def _local(root: Path, pattern: str) -> Iterator[InboxFile]:
    for path in root.glob(pattern):
        try:
            stat = path.stat()
        except FileNotFoundError:  # a broken link, or gone since its folder was read
            continue
        if path.is_file():
            part = path.relative_to(root).as_posix()
            tag = f"{stat.st_size} {stat.st_mtime_ns}"
            yield InboxFile(str(path), part, tag, stat.st_mtime, _opener(path))


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _objects(root: str, pattern: str, options: dict[str, str]) -> Iterator[InboxFile]:
    import obstore
    from obstore.store import from_url

    system, location = file_system(root, options, _FIELD)
    bucket, _, prefix = location.partition("/")
    scheme = urlsplit(root).scheme
    store: Any = from_url(f"{scheme}://{bucket}", **connection(scheme, options))
    # of one day not all the others
    fixed = "/".join(filter(None, (prefix, _divided(pattern)[0])))
    for page in obstore.list(store, fixed or None, chunk_size=1000):
        for found in page:
            part = found["path"].removeprefix(f"{prefix}/" if prefix else "")
            tag = f"{found['size']} {found['e_tag'] or found['last_modified'].isoformat()}"
            name = f"{scheme}://{bucket}/{found['path']}"
            path = f"{bucket}/{found['path']}"
            yield InboxFile(name, part, tag, 0.0, partial(system.open, path, "rb"))


def _others(root: str, pattern: str, options: dict[str, str]) -> Iterator[InboxFile]:
    """Find files with fsspec; over HTTP, which has no listing, just the one of that name."""
    system, location = file_system(f"{root}/{pattern}", options, _FIELD)
    if root.startswith("http"):
        found = {location: system.info(location)}
    else:
        found = system.glob(location, detail=True)
    start = location[: len(location) - len(pattern)]
    for path, facts in found.items():
        if facts.get("type", "file") == "file":
            marks = [facts[key] for key in (*CONTENT_TAGS, *CHANGE_TIMES) if facts.get(key)]
            tag = " ".join(str(mark) for mark in (facts.get("size"), *marks[:1]))
            name = path if "://" in path else f"{urlsplit(root).scheme}://{path.lstrip('/')}"
            part = path.removeprefix(start)
            yield InboxFile(redacted(name), part, tag, 0.0, partial(system.open, path, "rb"))
