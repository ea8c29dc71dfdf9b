"""What is left when a process dies, the disk is full or the folder is closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from mlops_assets.store import ArtifactStore, MissingArtifactError


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    """Run a script in a process of its own; it finds the store's folder in `folder`."""
    code = f"folder = {str(folder)!r}\n{dedent(script)}"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_process_killed_while_it_writes_leaves_nothing_to_read(tmp_path: Path) -> None:
    process = start(
        """
        import time, pyarrow as pa
        from mlops_assets.store import ArtifactStore

        def batches():
            for _ in range(40):
                yield pa.record_batch({"x": [0.5] * 100_000})
            print("midway", flush=True)
            time.sleep(600)

        ArtifactStore(folder).write(["a"], batches())
        """,
        tmp_path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "midway\n"
    process.kill()
    process.wait()
    store = ArtifactStore(str(tmp_path))
    assert [path.name[:5] for path in (tmp_path / "a").iterdir()] == [".tmp-"]
    assert store.versions(["a"]) == []
    with pytest.raises(MissingArtifactError):
        store.find(["a"], "0" * 16)
    assert store.read(store.write(["a"], [1])) == [1]


def test_processes_that_write_the_same_at_once_leave_one_object(tmp_path: Path) -> None:
    script = """
        from mlops_assets.store import ArtifactStore
        store = ArtifactStore(folder)
        for number in range(50):
            artifact = store.write(["a"], {"n": number, "text": "x" * 10_000})
            assert store.read(artifact)["n"] == number
        """
    processes = [start(script, tmp_path) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert (
        len(list((tmp_path / "a").iterdir()))
        == len(ArtifactStore(str(tmp_path)).versions(["a"]))
        == 50
    )


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    process = start(
        """
        import resource, numpy as np, pandas as pd
        from mlops_assets.errors import StoreError
        from mlops_assets.store import ArtifactStore

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        values = [
            pd.DataFrame({"x": np.random.default_rng(0).random(100_000)}),
            {"x": "y" * 1_000_000},
        ]
        for value in values:
            try:
                ArtifactStore(folder).write(["a"], value)
            except StoreError as error:
                print("ulimit" in str(error))
        """,
        tmp_path,
    )
    assert process.communicate()[0] == "True\nTrue\n"
    assert list((tmp_path / "a").iterdir()) == []


def test_a_folder_that_may_not_be_changed_is_named_with_the_remedy(tmp_path: Path) -> None:
    artifact = ArtifactStore(str(tmp_path)).write(["a"], [1])
    process = start(
        """
        import json, os
        from mlops_assets.errors import StoreError
        from mlops_assets.store import ArtifactStore

        if os.geteuid() == 0:  # root may write anywhere
            os.seteuid(65534)
        else:
            os.chmod(folder, 0o555)
            os.chmod(folder + "/a", 0o555)
        store = ArtifactStore(folder)
        for attempt in (
            lambda: store.write(["a"], [2]),
            lambda: store.write(["b"], [2]),
            lambda: store.create_record(".memo/a.json", {}),
        ):
            try:
                attempt()
            except StoreError as error:
                print(str(error).startswith(folder) and "permissions" in str(error))
        """,
        tmp_path,
    )
    assert process.communicate()[0] == "True\nTrue\nTrue\n"
    (tmp_path / "a").chmod(0o755)
    tmp_path.chmod(0o755)
    assert ArtifactStore(str(tmp_path)).versions(["a"]) == [artifact]


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path) -> None:
    from mlops_assets.errors import StoreError

    (tmp_path / "store").write_text("")
    store = ArtifactStore(str(tmp_path / "store"))
    with pytest.raises(StoreError, match="is a file where a folder is needed"):
        store.write(["a"], [1])


def test_importing_the_store_imports_nothing_heavy() -> None:
    script = """
        import sys, mlops_assets.store
        print(*sorted({name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names))
        """
    modules = start(script, Path()).communicate()[0].split()
    assert {"pandas", "numpy", "pyarrow", "sklearn", "skops", "obstore", "dagster"}.isdisjoint(
        modules
    )
