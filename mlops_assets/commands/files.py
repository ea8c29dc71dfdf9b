"""The files that a command reads, by their content."""

from __future__ import annotations

import glob
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlops_assets.errors import DataError
from mlops_assets.wording import shown


def digests(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each file that is named, by its path as in `./sql/orders.sql`.

    Parameters
    ----------
    folder : Path
        What the patterns are relative to.
    patterns : iterable of str
        Files, folders with all that is in them, and globs, where ``**`` stands for any folders.

    Raises
    ------
    DataError
        Nothing is there for one of them, or it cannot be read.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        matches = sorted(glob.glob(pattern, root_dir=folder, recursive=True))
        if not matches and os.path.lexists(folder / pattern):
            matches = [pattern]  # a name with brackets in it, which globs take for a choice
        if not matches:
            raise DataError(f"there is no {shown(pattern)} in {folder}")
        for match in matches:
            for path in _files(folder / match):
                name = Path(os.path.relpath(path, folder)).as_posix()
                found[name if name.startswith("../") else f"./{name}"] = _digest(path)
    return dict(sorted(found.items()))


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path, followlinks=True):
        # what Python compiles for itself is no content of anybody's
        folders[:] = sorted(
            name for name in folders if name != "__pycache__" and not _is_circle(Path(folder, name))
        )
        yield from (Path(folder, name) for name in sorted(names))


def _is_circle(folder: Path) -> bool:
    """Whether a folder is a link to one that it is in."""
    return folder.is_symlink() and folder.resolve() in {above.resolve() for above in folder.parents}


def _digest(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is a pipe, socket or device: its content cannot be compared")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
