"""A store looked at from outside: by the files alone, without the code that wrote them."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path

TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{32}")
ARTIFACT = re.compile(r"[^.].*/(?P<version>[0-9a-f]{16})\.[a-z]+")


def contents(root: Path) -> dict[str, bytes]:
    """Return all files of a store by path, leftovers of writers that were killed aside."""
    return {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in root.rglob("*")
        if file.is_file() and not TEMPORARY.fullmatch(file.name)
    }


def leftovers(root: Path) -> list[Path]:
    """Return what writers that were killed have left."""
    return [file for file in root.rglob(".tmp-*") if TEMPORARY.fullmatch(file.name)]


def artifacts(found: dict[str, bytes]) -> set[str]:
    """Return the paths of the artefacts among the files of a store."""
    return {path for path in found if ARTIFACT.fullmatch(path)}


def check(found: dict[str, bytes]) -> None:
    """Check that all that is visible is whole, and that no record points to what is not there."""
    for path, content in found.items():
        if match := ARTIFACT.fullmatch(path):
            assert sha256(content).hexdigest().startswith(match["version"]), f"{path} is damaged"
        else:
            assert path.startswith("."), f"{path} is nothing that belongs in a store"
            assert isinstance(json.loads(content), dict), f"{path} is no record"
    memos = {path: json.loads(text) for path, text in found.items() if path.startswith(".memo/")}
    for path, memo in memos.items():
        folder = "/".join(filter(None, (memo["asset"], memo["partition"])))
        name = path.rpartition("/")[2]
        assert f".events/{folder}/{name}" in found, f"{path} has no events"
        if output := memo["output"]:
            artifact = f"{folder}/{output['version']}.{output['extension']}"
            assert len(found.get(artifact, b"")) == output["size"], f"{path} points to nothing"
    champions = sorted(path for path in found if path.startswith(".champions/"))
    for number, path in enumerate(champions, 1):
        champion = json.loads(found[path])
        assert path.endswith(f"/{number:08d}.json"), f"{path}: the log has a gap"
        copy = f"{path.split('/')[1]}/champion/{champion['version']}.skops"
        assert copy in found, f"{path} points to nothing"
