"""The benchmark of other tools, without any of them: what is compared, left out and told."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from benchmarks import peers
from benchmarks.peer_jobs import work
from benchmarks.peers import BARE, NAMES, OURS, ROOT, TRACKED, Peer, iris, measure, report

TOOL = """
import json, os, pathlib, sys

way, path = sys.argv[1], pathlib.Path(os.environ["IRIS_CSV"])
content = path.read_text()
accuracy = content.count("virginica") / 100
key = {"existence": "there", "time": str(path.stat().st_mtime_ns), "content": content}.get(way)
known = pathlib.Path("known")
ran = key is None or not known.exists() or known.read_text() != key
known.write_text(str(key))
if way == "ours":
    summary = {"executed": ["iris/model"], "metrics": {"accuracy": accuracy}}
    print(json.dumps({"pipelines": {"iris": summary}}))
elif way == "tracked":
    print(json.dumps({"accuracy": accuracy}))
elif ran:
    steps = [{"step": "train"}, {"step": "evaluate", "accuracy": accuracy}]
    with open(os.environ["PEERS_TRACE"], "w") as trace:
        trace.writelines(json.dumps(step) + "\\n" for step in steps)
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What is reported of tools that reuse in several ways, and of one that is not installed."""
    folder = tmp_path_factory.mktemp("peers")
    (folder / "tool.py").write_text(TOOL)

    def way(name: str) -> Peer:
        return Peer(first=f"{{bin}}/python {folder}/tool.py {name}")

    ways = {name: way(name) for name in ("existence", "time", "content")}
    mine = {BARE: way("all"), TRACKED: way("tracked"), OURS: way("ours")}
    absent = {"absent": Peer(first="absent", environment="kedro")}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(peers, "PEERS", {**mine, **ways, **absent})
        patched.setattr(peers, "ENVIRONMENTS", folder / "environments")
        told = report(measure(1, ["kedro"])).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in told]
    return {line[0]: line[1:] for line in cells}


def test_a_tool_is_told_to_notice_and_to_reuse_what_it_does(rows: dict[str, list[str]]) -> None:
    assert rows[BARE] == ["all", "all", "all", "yes", ""]
    assert rows["existence"] == ["nothing", "nothing", "nothing", "no", "existence"]
    assert rows["time"] == ["nothing", "all", "all", "yes", "time"]
    assert rows["content"] == ["nothing", "nothing", "all", "yes", "content"]


def test_a_tool_that_is_not_installed_is_left_out_and_named(rows: dict[str, list[str]]) -> None:
    assert "absent" not in rows
    assert any(row.startswith("Not installed, and left out: kedro.") for row in rows)


def test_a_tool_that_computes_something_else_ends_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = """sh -c 'echo "{{\\"step\\": \\"evaluate\\", \\"accuracy\\": %s}}" > $PEERS_TRACE'"""
    found = {BARE: Peer(first=trace % 0.9), "other": Peer(first=trace % 0.8)}
    monkeypatch.setattr(peers, "PEERS", {**found, TRACKED: Peer("-"), OURS: Peer("-")})
    with pytest.raises(SystemExit, match=r"other: an accuracy of 0\.8 .* script has 0\.9"):
        measure(1, [])


def test_all_do_the_work_of_the_plain_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mlflow", "mlflow.entities"):  # slow to import, and not asked for anything here
        monkeypatch.setitem(sys.modules, name, Mock())
    bare_iris = SimpleNamespace(**run_path(str(ROOT / "benchmarks" / "bare_iris.py")))
    (tmp_path / "iris.csv").write_text(iris())
    training, test = work.split(work.load(str(tmp_path / "iris.csv")))
    ours = work.evaluate(work.train(training), test, tmp_path / "figures")

    training, test = bare_iris.split(bare_iris.load())
    theirs = bare_iris.evaluate(bare_iris.fit(training), test)
    for same in ("metrics", "classes", "confusion_matrix"):
        assert ours[same] == theirs[same]
    assert list(ours["feature_importance"]) == [
        one["column"] for one in theirs["feature_importance"]
    ]
    for curve in ("roc", "precision_recall", "calibration"):
        assert ours[curve] == {one["class"]: [one["x"], one["y"]] for one in theirs[curve]}
    bare_iris.draw(theirs, tmp_path / "theirs")
    drawn, expected = (
        {file.name for file in (tmp_path / folder).iterdir()} for folder in ("figures", "theirs")
    )
    assert drawn == expected


def test_changed_data_change_the_model(tmp_path: Path) -> None:
    (tmp_path / "iris.csv").write_text(iris(peers.MISNAMED))
    training, test = work.split(work.load(str(tmp_path / "iris.csv")))
    assert work.train(training).score(test.drop(columns="species"), test["species"]) < 0.9


@pytest.mark.parametrize("name", NAMES)
def test_every_tool_works_with_the_same_libraries(name: str) -> None:
    def pins(file: Path) -> dict[str, str]:
        lines = re.findall(r"^(\S+)==([^\s;]+)", file.read_text(), re.MULTILINE)
        return dict(reversed(lines))  # the first pin is the one of the oldest Python

    shared = pins(peers.JOBS / "requirements" / "shared.in")
    assert shared.items() <= pins(ROOT / "requirements.lock").items()
    assert shared.items() <= pins(peers.requirements(name)).items()
    assert all(peer.package in pins(peers.requirements(name)) for peer in _of(name))


def _of(environment: str) -> list[Peer]:
    return [peer for peer in peers.PEERS.values() if peer.environment == environment]
