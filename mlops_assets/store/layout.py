"""Which path of the store an artefact or a record has. Only names: nothing is read or written here.

::

    <asset key…>[/<partition>]/<version>.<extension>
    .<kind>/…/<name>.json
    .memo/<fingerprint>.json
    .events/<asset key…>[/<partition>]/<fingerprint>.json
    .trials/<pipeline>/<version of its training set>/<study>/<number>.json
    .references/<pipeline>/<version of its model>-<format>.json
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from mlops_assets.errors import StoreError

VERSION_LENGTH = 16  # hexadecimal digits of a SHA-256, hence 64 bits: collisions need ~4e9 versions

_KEY_PART = re.compile(r"[A-Za-z0-9_-]+")
_VERSION = re.compile(rf"[0-9a-f]{{{VERSION_LENGTH}}}")
_EXTENSION = re.compile(r"[a-z]+")
_FOLDER = r"(?!\.)[A-Za-z0-9_.~%-]+"  # part of a key, or a partition
_OBJECT = re.compile(rf"({_FOLDER}/)+(?P<version>{_VERSION.pattern})\.(?P<extension>[a-z]+)")
_RECORD = re.compile(rf"\.[a-z]+(/{_FOLDER})+\.json")
_COMPUTATION = re.compile(
    r"\.(?P<kind>memo|events)/(?:(?P<folder>.+)/)?(?P<fingerprint>[0-9a-f]{64})\.json"
)
_TRIAL = re.compile(
    rf"\.trials/(?P<pipeline>{_FOLDER})/(?P<version>{_VERSION.pattern})/{_FOLDER}/[0-9]+\.json"
)
_REFERENCE = re.compile(
    rf"\.references/(?P<pipeline>{_FOLDER})/(?P<version>{_VERSION.pattern})-[0-9]+\.json"
)
_LONGEST_NAME = 200  # bytes; file systems allow 255


def folder_of(key: Sequence[str], partition: str | None = None) -> str:
    """Folder that holds all versions of an asset, or of one partition of it.

    Partitions may be any text: what isn't a letter, a digit or one of ``_.-~`` is
    percent-encoded, and so is a dot in front. Key ``a/b`` and partition ``b`` of key ``a`` share a
    folder; versions being digests of content, neither can change what the other reads.

    Raises
    ------
    StoreError
        When a part of the key isn't made of letters, digits, ``_`` and ``-``, or the partition is
        empty or too long.
    """
    if isinstance(key, str) or not key:
        raise StoreError(f"asset key {key!r}: give its parts, such as ['churn', 'model']")
    for part in key:
        if not isinstance(part, str) or not _KEY_PART.fullmatch(part) or len(part) > _LONGEST_NAME:
            raise StoreError(
                f"asset key {'/'.join(map(str, key))!r}: the part {part!r} cannot be a folder of "
                f"the store; use letters, digits, _ and -, at most {_LONGEST_NAME}"
            )
    return "/".join(key if partition is None else (*key, _partition_folder(key, partition)))


def object_path(folder: str, version: str, extension: str) -> str:
    """Path of one version; raises `StoreError` when it could not be the name of one."""
    if not _VERSION.fullmatch(version):
        raise StoreError(
            f"{folder}: {version!r} is no version; versions are {VERSION_LENGTH} hexadecimal digits"
        )
    if not _EXTENSION.fullmatch(extension):
        raise StoreError(
            f"{folder}: {extension!r} is no extension; extensions are lower-case letters"
        )
    return f"{folder}/{version}.{extension}"


def parse_object_path(path: str) -> tuple[str, str] | None:
    """(version, extension) of an object's path; None when it isn't the path of a version."""
    match = _OBJECT.fullmatch(path)
    return (match["version"], match["extension"]) if match else None


def parse_computation_path(path: str) -> tuple[str, str, str] | None:
    """(kind, folder, fingerprint) of a record in ``.memo``, without a folder, or in ``.events``.

    None when it is the path of anything else.
    """
    match = _COMPUTATION.fullmatch(path)
    return (match["kind"], match["folder"] or "", match["fingerprint"]) if match else None


def trial_path(pipeline: str, train_version: str, study: str, number: int) -> str:
    """Path of what a trial of a search for parameters has found."""
    return f".trials/{pipeline}/{train_version}/{study}/{number:04d}.json"


def parse_trial_path(path: str) -> tuple[str, str] | None:
    """(pipeline, version of its training set) of a trial; None for the path of anything else."""
    match = _TRIAL.fullmatch(path)
    return (match["pipeline"], match["version"]) if match else None


def reference_path(pipeline: str, model_version: str, format_: int) -> str:
    """Path of what the scored days of a model are compared with."""
    return f".references/{pipeline}/{model_version}-{format_}.json"


def parse_reference_path(path: str) -> tuple[str, str] | None:
    """(pipeline, version of its model) of a reference; None for the path of anything else."""
    match = _REFERENCE.fullmatch(path)
    return (match["pipeline"], match["version"]) if match else None


def record_path(path: str) -> str:
    """`path` itself when it can be a record's, such as ``.champions/churn/00000001.json``.

    Raises
    ------
    StoreError
        When it isn't a JSON file below a folder whose name begins with a dot.
    """
    if not _RECORD.fullmatch(path):
        raise StoreError(f"{path!r} cannot be a record; give a path such as .kind/name.json")
    return path


def _partition_folder(key: Sequence[str], partition: str) -> str:
    name = quote(partition, safe="", errors="surrogatepass")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if not name or len(name) > _LONGEST_NAME:
        raise StoreError(
            f"asset {'/'.join(key)}: the partition {partition[:50]!r} cannot be a folder of the "
            f"store; give it 1 to {_LONGEST_NAME} bytes, percent-encoded"
        )
    return name
