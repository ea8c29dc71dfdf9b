"""What somebody achieves who may write to the store, or to MLflow, and may not write code.

They decide what is computed and predicted, since stores are shared so that others' results are
believed (docs/security.md). They run nothing, and reach nothing outside of the store.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import skops.io
from dagster import AssetKey, AssetMaterialization, MetadataValue, serialize_value
from sklearn.dummy import DummyClassifier

import mlops_assets
from mlops_assets.errors import StoreError
from mlops_assets.ml import model_card
from mlops_assets.store import ArtifactStore
from mlops_assets.store.champions import Champions
from mlops_assets.store.history import history
from mlops_assets.store.layout import folder_of, object_path
from mlops_assets.store.memo import Computation, Computed, Memo
from mlops_assets.store.prune import prune
from mlops_assets.store.reuse import harmless
from mlops_assets_tests.store.computations import compute

PASSWORDS = b'{"root": "x"}'


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file beside the store, under a name that a path out of the store could have."""
    path = tmp_path / "secret" / "passwords.json"
    path.parent.mkdir()
    path.write_bytes(PASSWORDS)
    return path


def plant(store: ArtifactStore, computed: Computed, **output: Any) -> None:
    """Change what the record of a computation says of its output."""
    path = f".memo/{computed.fingerprint}.json"
    record = store.get_record(path)
    assert record is not None
    record["output"] |= output
    record |= {name: output[name] for name in ("asset", "partition") if name in output}
    store.put_record(path, record)


@pytest.mark.parametrize(
    "planted",
    [
        {"extension": "/../../../../secret/passwords.json"},
        {"extension": "json/../../../../secret/passwords.json"},
        {"version": "../../../secret/passwords"},
        {"version": "../../../secret/passwords.json\0"},
        {"asset": "../secret"},
        {"asset": "/etc"},
        {"size": "many"},
        {"size": -1},
    ],
    ids=str,
)
def test_a_record_that_leads_out_of_the_store_is_no_result(
    store: ArtifactStore, outside: Path, planted: dict[str, Any]
) -> None:
    computed = compute(store, "a/b", {"x": 1})
    digest = hashlib.sha256(PASSWORDS).hexdigest()[:16]
    plant(store, computed, **{"version": digest, "size": len(PASSWORDS), **planted})
    computation = Computation("a/b", None, computed.code, None, {})
    assert computation.fingerprint == computed.fingerprint
    found: list[Computed | None] = []
    try:
        found.append(Memo(store).find(computation))
    except StoreError:
        found.append(None)
    assert found == [None]
    history(store, ["a", "b"])
    prune(store, keep=0, older_than=timedelta(0))
    assert outside.read_bytes() == PASSWORDS


@pytest.mark.parametrize("extension", ["", "/x", "../x", "json/../x", "JSON", "j\0", "a.b", "j\n"])
def test_what_is_no_extension_has_no_path(extension: str) -> None:
    with pytest.raises(StoreError):
        object_path("a/b", "0" * 16, extension)


@pytest.mark.parametrize(
    "partition",
    [
        "../../secret",
        "/etc/passwd",
        "..",
        ".",
        "a/../../b",
        "%2e%2e%2f",
        "..\\..\\x",
        "C:\\x",
        "a\0b",
    ],
)
def test_a_partition_is_one_folder_inside_of_its_asset(partition: str, tmp_path: Path) -> None:
    folder = tmp_path / folder_of(["a", "b"], partition)
    assert Path(os.path.normpath(folder)).parent == tmp_path / "a" / "b"


@pytest.mark.parametrize(
    "part", ["..", ".", "../x", "/etc", "a/b", "a\\b", "a\0", "%2e%2e", "", "a\n"]
)
def test_a_key_that_could_lead_elsewhere_is_refused(part: str) -> None:
    with pytest.raises(StoreError):
        folder_of(["a", part])


def test_pruning_follows_no_link_out_of_the_store(store: ArtifactStore, tmp_path: Path) -> None:
    compute(store, "a/b", {"x": 1})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = elsewhere / f"{'0' * 16}.json"
    file.write_text("{}")
    root = Path(store.url)
    (root / "a" / "c").symlink_to(elsewhere)
    (root / "d").symlink_to(elsewhere)
    (root / "a" / "b" / f"{'1' * 16}.json").symlink_to(file)
    prune(store, keep=0, older_than=timedelta(0))
    assert file.read_text() == "{}"


def test_a_planted_champion_of_other_types_is_refused(store: ArtifactStore) -> None:
    """Its digest is right and it is in the log; what is in it is looked at all the same."""
    content = skops.io.dumps({"model": os.system})
    version = hashlib.sha256(content).hexdigest()[:16]
    path = Path(store.url, "p", "champion", f"{version}.skops")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    planted = Champions(store, "p").promote(
        version, expected=None, metrics={}, reason="", run_id=None, at="2026-01-01T00:00:00+00:00"
    )
    artifact = store.find(["p", "champion"], planted.version)
    with pytest.raises(StoreError, match=r"posix\.system"):
        store.read(artifact)


def test_a_planted_result_is_believed_and_can_be_anything_that_is_stored(
    store: ArtifactStore,
) -> None:
    """The known limit: who writes to the store is trusted with what is computed and predicted."""
    computed = compute(store, "p/model", DummyClassifier(strategy="constant", constant=0))
    evil = store.write(["p", "model"], DummyClassifier(strategy="constant", constant=1))
    plant(store, computed, version=evil.version, size=evil.size, tag=store.tag(evil))
    found = Memo(store).find(Computation("p/model", None, computed.code, None, {}))
    assert found is not None
    assert found.artifact == evil


def modules() -> Iterator[tuple[str, ast.Module]]:
    root = Path(mlops_assets.__file__).parent
    for path in sorted(root.rglob("*.py")):
        yield path.relative_to(root).as_posix(), ast.parse(path.read_text())


FORBIDDEN = {
    "load_model",
    "pyfunc",
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "read_pickle",
    "unsafe_load",
    "full_load",
    "eval",
    "exec",
    "allow_pickle",
    "shell",
}
"""What would run what a file says, MLflow's loader with its list of trusted types included."""


def names_in(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return [name]
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            module = getattr(node, "module", None) or ""
            return [part for it in [module, *(it.name for it in names)] for part in it.split(".")]
        case ast.keyword(arg=str(name), value=ast.Constant(value=False)):
            return []
        case ast.keyword(arg=str(name)):
            return [name]
    return []


def test_nothing_is_ever_loaded_by_pickle_or_by_mlflow() -> None:
    used = [
        f"{path}: {name}"
        for path, module in modules()
        for node in ast.walk(module)
        for name in names_in(node)
        if name in FORBIDDEN
    ]
    assert used == []


def test_the_name_of_a_column_is_neither_a_link_nor_a_tag_in_the_model_card() -> None:
    planted = "![x](https://example.org/seen.png)<img src=x onerror=alert(1)>|`"
    cell = model_card._plain(planted)
    assert "[" not in cell.replace("\\[", "")
    assert not set("<`") & set(cell)


def test_what_dagster_is_told_again_has_no_link_that_runs_a_script() -> None:
    made = AssetMaterialization(
        AssetKey(["a"]),
        metadata={
            "script": MetadataValue.url("javascript:alert(1)"),
            "page": MetadataValue.url("https://mlflow.example.org/#/experiments/1"),
            "rows": 3,
        },
    )
    metadata = harmless(made.metadata)
    assert metadata["script"] == MetadataValue.text("javascript:alert(1)")
    assert metadata["page"] == made.metadata["page"]
    assert metadata["rows"] == made.metadata["rows"]
    assert json.loads(serialize_value(made))
