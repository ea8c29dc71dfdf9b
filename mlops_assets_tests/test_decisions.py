"""What it costs to decide, counted: requests to a store over the network instead of seconds.

Nothing is run: the results are written as runs write them. A change that makes a plan ask for less
lowers the counts here.
"""

from __future__ import annotations

import uuid
from collections import Counter
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import obstore
import pytest

from mlops_assets.cli.planning import Project
from mlops_assets.cli.summary import reports_of_plan
from mlops_assets.dagster_internals.database import Recorded
from mlops_assets.pipeline_file import load_pipelines
from mlops_assets.plan import READERS, PipelinePlan, plan_pipelines
from mlops_assets.spec import Pipeline
from mlops_assets.stages import stages
from mlops_assets.store import ArtifactStore, Champions
from mlops_assets.store.memo import Computation, Memo, Outside
from mlops_assets_tests.conftest import DUMMY, write_customers

REQUESTS = ("head", "get", "get_range", "list", "list_with_delimiter", "put", "delete")
METRICS = {"accuracy": 0.9, "f1": 0.9, "roc_auc": 0.9}
# of each of the six assets the record and a look at the artefact; of the champions two listings,
# as each promotion has a copy, and the last record
UNCHANGED = {"get": 6 + 1, "head": 6, "list_with_delimiter": 2}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the store, by several threads."""
    asked: list[str] = []

    def listen(name: str) -> None:
        original = getattr(obstore, name)

        def asking(*arguments: Any, **named: Any) -> Any:
            asked.append(name)
            return original(*arguments, **named)

        monkeypatch.setattr(obstore, name, asking)

    for name in REQUESTS:
        listen(name)
    return asked


@pytest.fixture
def outside() -> Outside:
    """A store that is reached as those over the network are, without one."""
    return Outside(ArtifactStore(f"memory://{uuid.uuid4().hex}"), {})


def pipelines(folder: Path, count: int, text: str = DUMMY) -> list[Pipeline]:
    write_customers(folder / "customers.csv")
    for number in range(count):
        (folder / f"p{number}.yaml").write_text(text)
    return list(load_pipelines(str(folder)).valid.values())


def remember(spec: Pipeline, outside: Outside) -> dict[str, Recorded]:
    """Have a pipeline's results in the store; returns what an instance says that has made them."""
    store, memo = outside.store, Memo(outside.store)
    known: dict[str, Recorded] = {}
    versions: dict[str, str] = {}
    Champions(store, spec.name).promote(
        "0" * 16,
        expected=None,
        metrics={},
        reason="the first",
        run_id="run",
        at="2026-01-31T00:00:00+00:00",
    )
    for stage in stages(spec).values():
        seen = {name: one.version for name, one in stage.look(outside, None).items()}
        inputs = seen | {name: versions[name] for name in stage.inputs if name in versions}
        for asset in stage.outputs:
            artifact = store.write(asset.split("/"), {"made by": stage.name, "metrics": METRICS})
            computation = Computation(asset, None, stage.code, None, inputs)
            memo.put(computation, artifact, {}, run_id="run", seconds=1)
            versions[asset] = artifact.version
            known[asset] = Recorded(
                artifact.version, stage.code.version, inputs, computation.fingerprint
            )
    return known


def planned(*arguments: Any) -> PipelinePlan:
    (plan,) = plan_pipelines(*arguments).values()
    assert plan.error is None
    return plan


@pytest.mark.parametrize("is_known", [False, True], ids=["to another instance", "to this one"])
def test_a_pipeline_of_which_nothing_changed_is_decided_with_few_requests(
    tmp_path: Path, outside: Outside, requests: list[str], is_known: bool
) -> None:
    (spec,) = pipelines(tmp_path, 1)
    recorded = remember(spec, outside)
    requests.clear()
    plan = planned([spec], outside, recorded if is_known else {})

    assert len(plan.reuse) == 6
    assert plan.is_empty == is_known
    assert Counter(requests) == UNCHANGED


def test_more_pipelines_than_are_looked_up_at_once_cost_no_more_each(
    tmp_path: Path, outside: Outside, requests: list[str]
) -> None:
    count = READERS + 3
    specs = pipelines(tmp_path, count)
    for spec in specs:
        remember(spec, outside)
    requests.clear()
    plans = plan_pipelines(specs, outside, {})

    assert [len(plan.reuse) for plan in plans.values()] == [6] * count
    assert Counter(requests) == {name: number * count for name, number in UNCHANGED.items()}


def test_what_a_change_executes_is_looked_up_only_to_say_why(
    tmp_path: Path, outside: Outside, requests: list[str]
) -> None:
    (spec,) = pipelines(tmp_path, 1)
    recorded = remember(spec, outside)
    (spec,) = pipelines(tmp_path, 1, DUMMY + "split: {seed: 7}\n")
    requests.clear()
    plan = planned([spec], outside, recorded)

    assert plan.reuse == ["p0/raw"]
    # the six records before, those of the new split that are not there, and the champion
    assert Counter(requests) == {"get": 6 + 2 + 1, "head": 1, "list_with_delimiter": 2}


def test_everything_that_is_to_be_computed_anew_is_not_looked_for(
    tmp_path: Path, outside: Outside, requests: list[str]
) -> None:
    (spec,) = pipelines(tmp_path, 1)
    remember(spec, outside)
    requests.clear()
    plan = planned([spec], outside, {}, ["true"])

    assert len(plan.execute) == 6
    assert Counter(requests) == {"get": 1, "list_with_delimiter": 2}


def test_the_records_of_a_pipeline_are_asked_for_at_the_same_time(
    tmp_path: Path, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spec,) = pipelines(tmp_path, 1)
    recorded = remember(spec, outside)
    all_six, get = Barrier(6, timeout=30), Memo.get

    def get_with_the_others(self: Memo, fingerprint: str) -> Any:
        all_six.wait()
        return get(self, fingerprint)

    monkeypatch.setattr(Memo, "get", get_with_the_others)
    try:
        assert planned([spec], outside, recorded).is_empty
    except BrokenBarrierError:
        pytest.fail("one record was waited for before another was asked for")


def test_an_unchanged_run_tells_the_metrics_and_the_champion_with_one_request_each(
    tmp_path: Path, outside: Outside, requests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (spec,) = pipelines(tmp_path, 1)
    recorded = remember(spec, outside)
    monkeypatch.setenv("MLOPS_PIPELINES", str(tmp_path))
    monkeypatch.setenv("MLOPS_STORE_URL", outside.store.url)
    project = Project.load()
    plans = project.plan(recorded)
    requests.clear()
    told = reports_of_plan(project, plans)["p0"]

    assert told["metrics"] == METRICS
    assert told["champion"] == {"version": "0" * 16, "changed": False, "reason": "the first"}
    assert requests == ["get", "get"]


def test_a_small_artefact_is_loaded_in_one_request(outside: Outside, requests: list[str]) -> None:
    artifact = outside.store.write(["p0", "metrics"], {"accuracy": 0.9})
    requests.clear()

    assert outside.store.read(artifact) == {"accuracy": 0.9}
    assert requests == ["get"]
