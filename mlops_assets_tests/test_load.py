"""What grows with the number of pipelines and of versions, and how: counted, never timed."""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from dagster import AutomationConditionSensorDefinition
from dagster._core.definitions.automation_condition_sensor_definition import MAX_ENTITIES

from mlops_assets import pipeline_file
from mlops_assets.cli.planning import Project as PlannedProject
from mlops_assets.cli.summary import reports_of_plan
from mlops_assets.code_version import Code, look_again
from mlops_assets.definitions import build_defs
from mlops_assets.plan import PipelinePlan
from mlops_assets.store.champions import Champions
from mlops_assets.store.memo import Computed
from mlops_assets_tests.conftest import DUMMY, Project
from mlops_assets_tests.counting import calls_of

SCORED = 'score: {uri: "inbox/{date}.csv", start: 2026-11-01}\n'


def add_pipelines(project: Project, count: int) -> None:
    for number in range(count):
        project.add(f"p{number:02}", DUMMY + SCORED * (number % 2))


def load(project: Project) -> None:
    """Do what a code location does when it is loaded."""
    build_defs(project.settings).get_repository_def().load_all_definitions()


def test_loading_costs_in_proportion_to_the_number_of_pipelines(project: Project) -> None:
    calls = {}
    for count in (4, 4, 12, 20):  # the first time also finds what is found once per process
        add_pipelines(project, count)
        calls[count] = calls_of(lambda: load(project))

    assert calls[20] - calls[12] < 1.05 * (calls[12] - calls[4])


def test_a_pipeline_file_is_read_once_and_a_module_parsed_once(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    add_pipelines(project, 8)
    monkeypatch.setattr("mlops_assets.code_version._cache_file", lambda: tmp_path / "modules.json")
    look_again()
    read: Counter[str] = Counter()
    parsed: Counter[Any] = Counter()

    def reading(path: Path) -> str:
        read[path.name] += 1
        return really_read(path)

    def parsing(source: Any, *args: Any, **kwargs: Any) -> Any:
        parsed[source] += 1
        return really_parse(source, *args, **kwargs)

    really_read, really_parse = pipeline_file._read, ast.parse
    monkeypatch.setattr(pipeline_file, "_read", reading)
    monkeypatch.setattr(ast, "parse", parsing)
    load(project)

    assert set(read.values()) == {1}
    assert len(read) == 8
    assert set(parsed.values()) <= {1}


def test_what_is_known_of_many_pipelines_is_read_several_at_a_time_over_the_network(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_pipelines(project, 4)
    monkeypatch.setenv("MLOPS_PIPELINES", project.settings.pipelines)
    monkeypatch.setenv("MLOPS_STORE_URL", "memory://known-of-many")
    both_there = Barrier(2, timeout=60)

    def waiting(self: Champions) -> None:
        both_there.wait()

    monkeypatch.setattr(Champions, "current", waiting)
    chosen = PlannedProject.load()
    computed = Computed("0" * 64, "a", None, Code({}, {}, {}), None, {}, None, None, "r", "", 0)
    plans = {
        name: PipelinePlan(name, computed={f"{name}/champion": computed}) for name in chosen.names
    }

    assert list(reports_of_plan(chosen, plans)) == chosen.names


def test_a_pipeline_of_many_steps_is_divided_among_sensors_as_dagster_can_evaluate_them(
    project: Project,
) -> None:
    steps = {f"s{number}": {"command": "true"} for number in range(MAX_ENTITIES + 1)}
    path = project.add("long", "retries:")
    path.write_text(json.dumps({"steps": steps}))
    definitions = build_defs(project.settings)
    graph = definitions.resolve_asset_graph()

    sensors = {
        sensor.name: sensor.asset_selection.resolve(graph)
        for sensor in definitions.get_repository_def().sensor_defs
        if isinstance(sensor, AutomationConditionSensorDefinition)
    }

    assert {name: len(keys) for name, keys in sensors.items()} == {
        "long_automation_sensor": MAX_ENTITIES,
        "long_automation_sensor_2": 1,
    }
    assert set().union(*sensors.values()) == graph.materializable_asset_keys
