"""Files as an attacker would make them: refused in words, within little memory, and nothing runs.

The attacker is somebody who may write to the store, or to where a pipeline reads its data. What
damage by chance does is in `mlops_assets_tests.fuzz`; one crafted booster more in
`mlops_assets_tests.store.test_boosters`.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import skops.io
from scipy import sparse
from sklearn.preprocessing import FunctionTransformer

from mlops_assets.errors import DataError
from mlops_assets.ml.read import read
from mlops_assets.spec import DataSpec

MINUTE = 60  # far more than any case takes; those that go on and on would take hours

Make = Callable[[Path], bytes]


def node(loader: str, module: str, name: str, **content: Any) -> dict[str, Any]:
    """Return an object of a skops schema as its loader wants it."""
    return {"__class__": name, "__module__": module, "__loader__": loader, **content}


def text(value: Any) -> dict[str, Any]:
    return node("JsonNode", "builtins", "str", content=json.dumps(value), is_json=True)


def in_list(*parts: Any) -> dict[str, Any]:
    return node("ListNode", "builtins", "list", content=list(parts))


def in_tuple(*parts: Any) -> dict[str, Any]:
    return node("TupleNode", "builtins", "tuple", content=list(parts))


def in_dict(**parts: Any) -> dict[str, Any]:
    keys = in_list(*(node("TypeNode", "builtins", "str") for _ in parts))
    return node("DictNode", "builtins", "dict", content=parts, key_types=keys)


def skops_file(schema: Any, members: dict[str, bytes] | None = None) -> bytes:
    """Return a skops file with any schema."""
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        for name, content in (members or {}).items():
            archive.writestr(name, content)
        archive.writestr(
            "schema.json", json.dumps({**schema, "protocol": 2, "_skops_version": "0.16"})
        )
    return output.getvalue()


def touch(folder: Path) -> tuple[str, str]:
    """Return the module and name of what runs a shell's command, and the command."""
    return "posix", f"touch {folder / 'exploded'}"


class Pickled:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def array_of_objects(folder: Path) -> bytes:
    array = np.empty(1, dtype=object)
    array[0] = Pickled(folder / "exploded")
    content = io.BytesIO()
    np.save(content, array, allow_pickle=True)
    return content.getvalue()


def header(**fields: Any) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "<f8", "fortran_order": False, "shape": (2,), **fields}
    )
    return content.getvalue()


def array(file: str = "0.npy") -> dict[str, Any]:
    return node("NdArrayNode", "numpy", "ndarray", type="numpy", file=file)


def matrix(file: str = "0.npz") -> dict[str, Any]:
    of = {"__class__": "csr_matrix", "__module__": "scipy.sparse._csr"}
    return {**of, "__loader__": "SparseMatrixNode", "type": "scipy", "file": file}


def in_bytes(file: str = "0.bin") -> dict[str, Any]:
    return node("BytesNode", "builtins", "bytes", file=file)


def calling(folder: Path, loader: str = "ConstructorFromReduceNode") -> bytes:
    module, command = touch(folder)
    return skops_file(node(loader, module, "system", content=in_tuple(text(command))))


def function(module: str = "posix", name: str = "system") -> dict[str, Any]:
    return node("FunctionNode", module, name, content={"module_path": module, "function": name})


def partial(folder: Path) -> bytes:
    _, command = touch(folder)
    parts = {
        "func": function(),
        "args": in_tuple(text(command)),
        "kwds": in_dict(),
        "namespace": in_dict(),
    }
    return skops_file(node("PartialNode", "functools", "partial", content=parts))


def disguised_partial(folder: Path) -> bytes:
    content = json.loads(zipfile.ZipFile(io.BytesIO(partial(folder))).read("schema.json"))
    trusted = {"__class__": "TrainedModel", "__module__": "mlops_assets.ml.model"}
    return skops_file({**content, **trusted})


def method(_: Path) -> bytes:
    bound = {"func": "__reduce__", "obj": text("a")}
    return skops_file(node("MethodNode", "builtins", "str", content=bound))


def method_caller(_: Path, module: str = "operator") -> bytes:
    attrs = in_tuple(text("system"), text("id"))
    return skops_file(node("OperatorFuncNode", module, "methodcaller", attrs=attrs))


def in_a_transformer(_: Path) -> bytes:
    """An estimator that skops trusts, with a function that it does not."""
    content = skops.io.dumps(FunctionTransformer(func=np.sqrt))
    schema = json.loads(zipfile.ZipFile(io.BytesIO(content)).read("schema.json"))
    schema["content"]["content"]["func"] = function()
    return skops_file(schema)


def renamed_member(name: str) -> Make:
    return lambda _: skops_file(array(name), {name: header(shape=(2**40,))})


def encrypted(_: Path) -> bytes:
    content = bytearray(skops_file(text("a")))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    return bytes(content)


def twice(_: Path) -> bytes:
    """Two schemas: what one program checks is not what another one reads."""
    output = io.BytesIO(skops_file(text("a")))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(output, "a") as archive:
        archive.writestr("schema.json", json.dumps({**function(), "protocol": 2}))
    return output.getvalue()


def bomb(_: Path) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.bin", bytes(400 * 1024**2))
        archive.writestr("schema.json", json.dumps({**in_bytes(), "protocol": 2}))
    return output.getvalue()


def overlapping(_: Path) -> bytes:
    """Many members that are all the same compressed bytes, each of which counts for itself."""
    size, members = 60 * 1024**2, 64
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = deflate.compress(bytes(size)) + deflate.flush()
    crc = zlib.crc32(bytes(size))
    schema = json.dumps(
        {**in_list(*(in_bytes(f"{i}.bin") for i in range(members))), "protocol": 2}
    ).encode()
    # what makes the rest look little compressed, however often it is counted
    filler = np.random.default_rng(0).bytes(1024**2)
    body, directory = b"", b""

    def put(name: str, content: bytes, how: int, crc: int, size: int, at: int | None) -> int:
        nonlocal body, directory
        fields = (20, 0, how, 0, 33, crc, len(content), size, len(name), 0)
        if at is None:
            at = len(body)
            body += b"PK\x03\x04" + struct.pack("<HHHHHIIIHH", *fields) + name.encode() + content
        directory += b"PK\x01\x02" + struct.pack(
            "<HHHHHHIIIHHHHHII", 20, *fields[:-1], 0, 0, 0, 0, 0, at
        )
        directory += name.encode()
        return at

    at = put("00.bin", packed + filler, 8, crc, size, None)
    for i in range(members):
        put("00.bin" if i == 0 else f"{i}.bin", packed + filler, 8, crc, size, at)
    put("schema.json", schema, 0, zlib.crc32(schema), len(schema), None)
    count = members + 2
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


def mentioned_often(_: Path) -> bytes:
    """One member that fits, and is asked for again and again."""
    members = {"0.bin": np.random.default_rng(0).bytes(1024**2)}
    return skops_file(in_list(*(in_bytes() for _ in range(2000))), members)


def bomb_in_an_array(_: Path) -> bytes:
    """The zip of a sparse matrix, stored as it is in the other one."""
    output = io.BytesIO()
    zeros = sparse.csr_matrix(
        (np.zeros(50 * 1024**2), np.zeros(50 * 1024**2, "i4"), [0, 50 * 1024**2])
    )
    sparse.save_npz(output, zeros, compressed=True)
    return skops_file(in_list(*(matrix() for _ in range(3))), {"0.npz": output.getvalue()})


def large_matrix(_: Path) -> bytes:
    shape = in_tuple(in_tuple(*(node("JsonNode", "builtins", "int", content=str(2**40)),) * 2))
    return skops_file(
        node("ConstructorFromReduceNode", "scipy.sparse._csr", "csr_matrix", content=shape)
    )


def ubj_length(_: Path) -> bytes:
    content = b"{L" + struct.pack(">q", 7) + b"learner[$d#L" + struct.pack(">q", 2**62)
    call = node(
        "ConstructorFromReduceNode",
        "mlops_assets.store.boosters",
        "load_booster",
        content=in_tuple(in_bytes("0.ubj")),
    )
    return skops_file(call, {"0.ubj": content})


MODELS: dict[str, tuple[Make, str]] = {
    "a pickle": (lambda folder: pickle.dumps(Pickled(folder / "exploded")), "not a zip"),
    "a pickle in an array": (
        lambda folder: skops_file(array(), {"0.npy": array_of_objects(folder)}),
        "allow_pickle",
    ),
    "os.system": (calling, "posix.system"),
    "os.system as a function": (lambda _: skops_file(function()), "posix.system"),
    "os.system as a type": (
        lambda _: skops_file(node("TypeNode", "posix", "system")),
        "posix.system",
    ),
    "eval": (lambda _: skops_file(function("builtins", "eval")), "builtins.eval"),
    "joblib.load": (lambda _: skops_file(function("joblib", "load")), "joblib.load"),
    "a function that loads pickles": (
        lambda _: skops_file(function("pandas", "read_pickle")),
        "read_pickle",
    ),
    "a partial": (partial, "functools.partial"),
    "a partial that looks like a model": (disguised_partial, "posix.system"),
    "a method": (method, "str.__reduce__"),
    "a method caller": (method_caller, "operator.methodcaller"),
    "a method caller of another module": (lambda _: method_caller(_, "posix"), "Expected module"),
    "a list that is made by os.system": (
        lambda folder: skops_file(
            node("ListNode", "posix", "system", content=[text(touch(folder)[1])])
        ),
        "posix.system",
    ),
    "a dict that is made by os.system": (
        lambda _: skops_file({**in_dict(), "__module__": "posix", "__class__": "system"}),
        "posix.system",
    ),
    "in an estimator": (in_a_transformer, "posix.system"),
    "in a list in a dict in a tuple": (
        lambda _: skops_file(in_tuple(in_dict(a=in_list(function())))),
        "posix.system",
    ),
    "in an array of objects": (
        lambda _: skops_file(
            {
                **array(),
                "type": "json",
                "content": in_list(function()),
                "shape": text([1]),
                "file": None,
            }
        ),
        "",
    ),
    "a name outside of the zip": (renamed_member("../../../../etc/passwd"), ""),
    "an absolute name": (renamed_member("/etc/passwd"), ""),
    "a member that is not there": (lambda _: skops_file(in_bytes("/etc/passwd")), "/etc/passwd"),
    "an array of absurd length": (
        lambda _: skops_file(array(), {"0.npy": header(shape=(2**50,))}),
        "",
    ),
    "an array of absurd shape": (
        lambda _: skops_file(array(), {"0.npy": header(shape=(-1, 2**70))}),
        "",
    ),
    "an array of objects by its header": (
        lambda _: skops_file(array(), {"0.npy": header(descr="|O")}),
        "allow_pickle",
    ),
    "an array with a header of code": (
        lambda _: skops_file(
            array(),
            {"0.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 20) + b"__import__('os').abc"},
        ),
        "",
    ),
    "a matrix of absurd shape": (large_matrix, ""),
    "a booster of absurd length": (ubj_length, "ends too early"),
    "encrypted": (encrypted, "encrypted"),
    "two schemas": (twice, "posix.system"),
    "a bomb": (bomb, "would inflate"),
    "overlapping members": (overlapping, "would inflate"),
    "a member that is mentioned often": (mentioned_often, "would inflate"),
    "a bomb in a sparse matrix": (bomb_in_an_array, "would inflate"),
}
"""How a model is crafted, and what is said of it."""


def wide_and_long(_: Path) -> bytes:
    """Rows that take no space in the file, and a megabyte each in memory."""
    output = io.BytesIO()
    schema = pa.schema([pa.field("y", pa.binary(1024**2))])
    nothing = pa.table([pa.nulls(8, pa.binary(1024**2))], schema)
    with pq.ParquetWriter(output, schema) as writer:
        for _ in range(6 * 1024 // 8):
            writer.write_table(nothing)
    assert output.tell() < 1024**2
    return output.getvalue()


def long_text_again_and_again(_: Path) -> bytes:
    """One text of a dictionary, in every row: nothing in the footer tells what it comes to."""
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(4096, "i4")), ["x" * 1024**2])
    output = io.BytesIO()
    pq.write_table(pa.table({"y": words}), output, store_schema=False)
    assert output.tell() < 3 * 1024**2
    return output.getvalue()


def plain_table(**metadata: bytes) -> bytes:
    table = pa.table({"y": [1, 2, 3], "x": ["a", "b", "c"]})
    output = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**metadata}), output)
    return output.getvalue()


def footer(change: Callable[[bytes], bytes]) -> Make:
    """Return a table with another footer, which is where the sizes are."""

    def made(_: Path) -> bytes:
        content = plain_table()
        (length,) = struct.unpack("<I", content[-8:-4])
        changed = change(content[-8 - length : -8])
        return content[: -8 - length] + changed + struct.pack("<I", len(changed)) + b"PAR1"

    return made


def claims(length: int) -> Make:
    return lambda _: plain_table()[:-8] + struct.pack("<I", length) + b"PAR1"


def varint(number: int) -> bytes:
    """Return a whole number as thrift's compact protocol has it."""
    number, parts = number << 1, bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def rows(number: int) -> Callable[[bytes], bytes]:
    """Change how many rows the footer says there are."""

    def change(content: bytes) -> bytes:
        at = content.index(b"\x16\x06\x19")  # 3 rows, before the list of row groups
        return content[: at + 1] + varint(number) + content[at + 2 :]

    return change


TABLES: dict[str, tuple[Make, str]] = {
    "a pickle": (lambda folder: pickle.dumps(Pickled(folder / "exploded")), ""),
    "more memory than there is": (wide_and_long, "memory"),
    "a long text again and again": (long_text_again_and_again, ""),
    "2^62 rows": (footer(rows(2**62)), "memory"),
    "a footer longer than the file": (claims(2**31 - 1), ""),
    "a footer without end": (claims(2**32 - 1), ""),
    "lists in the footer of absurd length": (
        footer(lambda it: it.replace(b"\x19", b"\x19\xfc\xff\xff\xff\xff\x07", 1)),
        "",
    ),
    "structures in the footer without end": (footer(lambda _: b"\x1c" * 1_000_000), ""),
    "a text in the footer of absurd length": (
        footer(lambda it: it.replace(b"\x18", b"\x18\xff\xff\xff\xff\x07", 1)),
        "",
    ),
}


OTHERS: dict[str, tuple[Make, str]] = {
    "absurdly nested.json": (lambda _: b"[" * 1_000_000, "no JSON"),
    "a number of a million digits.json": (lambda _: b"1" * 1_000_000, "no JSON"),
    "a picture that is a page.png": (lambda _: b"<script>alert(1)</script>", "PNG"),
    "a page.svg": (lambda _: b"<html><script>alert(1)</script></html>", "SVG"),
}


def crafted() -> dict[str, tuple[Make, str]]:
    """Return all cases by the path of their file."""
    return {
        **{f"{name}.skops": case for name, case in MODELS.items()},
        **{f"{name}.parquet": case for name, case in TABLES.items()},
        **{f"source/{name}.parquet": case for name, case in TABLES.items()},
        **OTHERS,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crafted")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, dict[str, Any]]:
    """What came of every file; a file that ends the process that reads it has none."""
    (folder / "source").mkdir()
    (folder / "honest.parquet").write_bytes(plain_table())
    for name, (make, _) in crafted().items():
        (folder / name).write_bytes(make(folder))
    found: dict[str, dict[str, Any]] = {}
    left = [*crafted()]
    while left:
        command = [sys.executable, "-m", "mlops_assets_tests.security.reader", str(folder), *left]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        lines = done.stdout.splitlines()
        found.update(zip(left, map(json.loads, lines), strict=False))
        assert lines or done.returncode < 0, done.stderr
        left = left[len(lines) + 1 :]  # and one that ended the process
    return found


@pytest.mark.parametrize("name", crafted())
def test_a_crafted_file_is_refused_in_words(
    name: str, outcomes: dict[str, dict[str, Any]], folder: Path
) -> None:
    assert name in outcomes, "the process that read it is dead"
    outcome = outcomes[name]
    assert outcome["refused"] in ("StoreError", "DataError"), outcome
    assert crafted()[name][1] in outcome["said"]
    assert outcome["seconds"] < MINUTE
    assert not (folder / "exploded").exists()


def test_a_compressed_file_is_refused_before_all_of_it_is_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "houses.csv.gz"
    path.write_bytes(gzip.compress(b"price\n" + b"1\n" * 20_000_000))
    monkeypatch.setattr("mlops_assets.ml.tables.limit", lambda: 10_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"holds more than 5\.0 MB"):
            read(DataSpec(uri=str(path), target="price"), tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()
