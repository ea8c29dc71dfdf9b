"""Models as skops files: scikit-learn estimators without pickle.

skops writes a zip of ``schema.json``, the tree of objects, and a member per array. What it writes
depends on the process (memory addresses are its names for objects) and on the clock, so the file is
brought into one canonical form: equal models give equal bytes. Which types may be in a file is
`trusted_types`, never what the file itself asks for. XGBoost's boosters have a form of their own in
it, `boosters`.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mlops_assets.errors import StoreError
from mlops_assets.store.boosters import model_of
from mlops_assets.store.trusted_types import TRUSTED_TYPES

if TYPE_CHECKING:
    from zipfile import ZipFile

_SCHEMA = "schema.json"
_START_OF_ZIP = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold
_MOST_MEMBERS = 500_000  # a tree takes 5
_MOST_INFLATION = 100  # size after/before inflating; forests have 10, arrays are not deflated
_FREE_INFLATION = 64 * 1024 * 1024  # bytes that any file may inflate to

# Values that cannot change: whether two places share one of them or hold equal ones is chance.
_WITHOUT_IDENTITY = {"JsonNode", "TypeNode", "FunctionNode", "DTypeNode", "TupleNode"}

_BOOSTER_SUFFIX = "ubj"
_BOOSTER = ("xgboost.core", "Booster")  # as skops would write it, by its state
_STORED_BOOSTER = {
    "__class__": "load_booster",
    "__module__": "mlops_assets.store.boosters",
    "__loader__": "ConstructorFromReduceNode",  # calls it with the content
}

# Attributes in which scikit-learn remembers a memory address, as a cache that it checks.
_ADDRESSES = {"_stop_words_id"}


def is_model(value: object) -> bool:
    """Whether a value is a scikit-learn estimator or of a trusted class."""
    base = sys.modules.get("sklearn.base")
    return _type_name(value) in TRUSTED_TYPES or (
        base is not None and isinstance(value, base.BaseEstimator)
    )


class SkopsCodec:
    """skops files in canonical form."""

    extension = "skops"

    def write(self, value: Any, file: IO[bytes]) -> dict[str, Any]:
        """Write a model; refuses it when `read` would."""
        import skops.io

        try:
            content = _canonical(skops.io.dumps(value))
            _check_size(io.BytesIO(content))
            unknown = set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED_TYPES)
        except StoreError:
            raise
        except Exception as error:  # a model is any object: whatever its parts raise refuses it
            raise StoreError(f"a {_type_name(value)} cannot be stored: {error}") from error
        if unknown:
            raise _untrusted(f"it holds types that are not trusted: {', '.join(sorted(unknown))}")
        file.write(content)
        return {"class": _type_name(value)}

    def read(self, file: Path, as_: str | None) -> Any:
        """Read a model."""
        import skops.io
        from skops.io.exceptions import UntrustedTypesFoundException

        if as_ is not None:
            raise StoreError(f"holds a model, which cannot be loaded as {as_}: that is for tables")
        try:
            _check_size(file)
            return skops.io.load(file, trusted=TRUSTED_TYPES)
        except StoreError:
            raise
        except UntrustedTypesFoundException as error:
            raise _untrusted(str(error).partition("\n")[0]) from error
        except ModuleNotFoundError as error:
            raise StoreError(
                f"holds a model of {error.name}, which is not installed here"
            ) from error
        except Exception as error:  # a crafted file can make the parser raise anything
            raise StoreError(f"is no model that can be read: {error!r}") from error


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _untrusted(found: str) -> StoreError:
    return StoreError(
        f"the model cannot be kept in the store: {found}; if you know these types to be harmless, "
        "add their names to TRUSTED_TYPES in mlops_assets/store/trusted_types.py"
    )


def _check_size(file: Path | IO[bytes]) -> None:
    """Refuse zip bombs before anything is inflated."""
    from zipfile import ZipFile

    # of the whole file: members may lie over each other, so that their sizes add up to anything
    packed = file.stat().st_size if isinstance(file, Path) else file.seek(0, io.SEEK_END)
    with ZipFile(file) as archive:
        members = archive.infolist()
        _require_size(packed, sum(member.file_size for member in members), len(members))
        _require_size(packed, sum(_sizes_of_parts(archive)), len(members))


def _sizes_of_parts(archive: ZipFile) -> Iterator[int]:
    """Sizes of what objects are made of: a member counts for each, and so does a zip inside it."""
    from zipfile import ZipFile

    parts: list[tuple[str, object]] = []

    def note(state: dict[str, Any]) -> None:
        if isinstance(state.get("file"), str):
            parts.append((state["file"], state.get("__loader__")))

    json.loads(archive.read(_SCHEMA), object_hook=note)
    for name, loader in parts:
        yield archive.getinfo(name).file_size
        if loader == "SparseMatrixNode":
            with ZipFile(io.BytesIO(archive.read(name))) as arrays:
                yield sum(member.file_size for member in arrays.infolist())


def _require_size(packed: int, unpacked: int, members: int) -> None:
    if members > _MOST_MEMBERS or unpacked > _MOST_INFLATION * packed + _FREE_INFLATION:
        raise StoreError(
            f"the model would inflate from {packed} to {unpacked} bytes in {members} members; "
            f"at most {_MOST_INFLATION} times the size and {_MOST_MEMBERS} members are read"
        )


def _canonical(content: bytes) -> bytes:
    """The same skops file with objects and members numbered as they appear, and without dates."""
    from zipfile import ZipFile

    members: dict[str, str] = {}
    output = io.BytesIO()
    with ZipFile(io.BytesIO(content)) as old, ZipFile(output, "w") as new:
        schema = _renumbered(json.loads(old.read(_SCHEMA)), {}, members)
        for old_name, new_name in members.items():
            member = old.read(old_name)
            _add(new, new_name, _canonical_member(new_name, member))
        packed = json.dumps(schema, separators=(",", ":")).encode()
        _add(new, _SCHEMA, packed, deflated=True)
    return output.getvalue()


def _renumbered(state: Any, ids: dict[int, int], members: dict[str, str]) -> Any:
    """A part of the schema with new ids and member names; an object's second mention is a stub."""
    if isinstance(state, list):
        return [_renumbered(item, ids, members) for item in state]
    if not isinstance(state, dict):
        return state
    if not isinstance(state.get("__loader__"), str):  # not an object but its parts by name
        return {
            name: _renumbered(
                {**part, "content": "0"} if name in _ADDRESSES else part, ids, members
            )
            for name, part in state.items()
        }
    if (state["__module__"], state["__class__"]) == _BOOSTER:
        state = _stored_booster(state, members)
    loader = state["__loader__"]
    _check_keys(state)
    result = {name: part for name, part in state.items() if name != "__id__"}
    if loader not in _WITHOUT_IDENTITY:
        known = state["__id__"] in ids
        result["__id__"] = ids.setdefault(state["__id__"], len(ids) + 1)
        if known:
            return {
                name: result[name] for name in ("__class__", "__module__", "__loader__", "__id__")
            }
    if "file" in result:
        suffix = state["file"].rpartition(".")[2]
        result["file"] = members.setdefault(state["file"], f"{len(members)}.{suffix}")
    for name in sorted(result, key=lambda name: name == "__reduce__"):  # the order of loading
        if isinstance(result[name], (dict, list)):
            result[name] = _renumbered(result[name], ids, members)
    if loader == "SetNode":
        result["content"].sort(key=json.dumps)
    return result


def _stored_booster(state: dict[str, Any], members: dict[str, str]) -> dict[str, Any]:
    """A booster as a call of `load_booster` with its model; the member still has its state."""
    handle = state["content"]["content"]["handle"]
    members.setdefault(handle["file"], f"{len(members)}.{_BOOSTER_SUFFIX}")
    argument = {**handle, "__class__": "bytes", "__loader__": "BytesNode"}
    arguments = {
        "__class__": "tuple",
        "__module__": "builtins",
        "__loader__": "TupleNode",
        "content": [argument],
    }
    return {**_STORED_BOOSTER, "__id__": state["__id__"], "content": arguments}


def _check_keys(state: dict[str, Any]) -> None:
    """Refuse keys that skops changes: it makes them text, and every text is true."""
    for key_type in state.get("key_types", {}).get("content", []):
        if key_type["__class__"] in ("bool", "NoneType"):
            raise StoreError(
                "the model holds a dict with keys True, False or None, which skops would change; "
                "use numbers or text as keys, for example in class_weight"
            )


def _canonical_member(name: str, content: bytes) -> bytes:
    if name.endswith(".npz"):
        return _repacked(content)
    if name.endswith(f".{_BOOSTER_SUFFIX}"):
        return model_of(content)
    return _without_padding(content) if name.endswith(".npy") else content


def _repacked(content: bytes) -> bytes:
    """A sparse array's zip without compression, which would count as inflation."""
    from zipfile import ZipFile

    output = io.BytesIO()
    with ZipFile(io.BytesIO(content)) as old, ZipFile(output, "w") as new:
        for name in old.namelist():
            _add(new, name, old.read(name))
    return output.getvalue()


def _without_padding(content: bytes) -> bytes:
    """A .npy file with zeros between the fields of records; loaded trees have anything there."""
    import numpy as np

    array = np.load(io.BytesIO(content), allow_pickle=False)
    if array.dtype.names is None:
        return content
    clean = np.zeros(array.shape, array.dtype)
    for field in array.dtype.names:
        clean[field] = array[field]
    output = io.BytesIO()
    np.save(output, clean, allow_pickle=False)
    return output.getvalue()


def _add(archive: ZipFile, name: str, content: bytes, *, deflated: bool = False) -> None:
    from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo

    member = ZipInfo(name, _START_OF_ZIP)
    member.compress_type = ZIP_DEFLATED if deflated else ZIP_STORED
    archive.writestr(member, content)
