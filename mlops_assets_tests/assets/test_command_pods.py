"""Steps with an image on a cluster: what pod they make, what comes back, and that none is left."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from mlops_assets_tests.assets.test_commands import (
    REPORT,
    attempts,
    executed,
    failure,
    logged,
    metadata,
    run,
    value,
)
from mlops_assets_tests.conftest import Project
from mlops_assets_tests.kubernetes import KubernetesDouble

STEPS = """\
steps:
  say: {{command: echo hello}}
  inside:
    needs: [say]
    image: example.org/tools:1
    command: {command}
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesDouble]:
    images = {"example.org/tools:1"}
    with KubernetesDouble(tmp_path / "cluster", images=images, longest_grace=0.5) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig()))
        monkeypatch.setenv("MLOPS_DEPLOYMENT", "k8s")
        yield cluster


def add(project: Project, command: str, more: str = "") -> None:
    project.add("p", STEPS.format(command=json.dumps(command)) + more)


def test_an_image_is_run_in_a_pod_that_is_given_what_it_needs_and_deleted(
    project: Project, cluster: KubernetesDouble
) -> None:
    add(
        project,
        "echo \"$SAY $A $(echo there) $$\" | sed 's/[0-9]*$/pid/'",
        "    env: {A: '$(SAY)'}\n",
    )
    result = run(project)

    assert executed(result) == ["say", "inside"]
    assert value(project, "inside") == {"output": "hello $(SAY) there pid\n"}
    assert "hello $(SAY) there pid" in logged(project, result)
    assert cluster.pods() == []
    assert executed(run(project)) == []


def test_the_pod_asks_for_the_compute_of_the_step_and_may_do_as_little_as_possible(
    project: Project, cluster: KubernetesDouble
) -> None:
    compute = "    compute: {cpu: 0.5, memory: 64Mi, node_selector: {kubernetes.io/os: linux}}\n"
    more = compute + "    timeout: 90s\n"
    add(
        project,
        "while test ! -e $GO; do sleep 0.1; done",
        f"    env: {{GO: {project.folder}/go}}\n{more}",
    )
    thread = Thread(target=run, args=(project,))
    thread.start()
    cluster.wait(cluster.pods)
    (pod,) = cluster.pods()
    (project.folder / "go").touch()
    thread.join()
    spec, (container,) = pod["spec"], pod["spec"]["containers"]

    assert (
        pod["metadata"]["labels"].items()
        >= {
            "mlops/pipeline": "p",
            "mlops/asset": "inside",
        }.items()
    )
    for kind in ("requests", "limits"):
        assert container["resources"][kind] == {"cpu": "500m", "memory": str(64 * 2**20)}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["activeDeadlineSeconds"] == 90
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}


def test_a_script_in_a_pod_reports_metadata_and_checks(
    project: Project, cluster: KubernetesDouble, tmp_path: Path
) -> None:
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    add(project, f"{sys.executable} {script}", "    checks: [enough_rows, on_time]\n")
    result = run(project)
    checks = {one.check_name: one.passed for one in result.get_asset_check_evaluations()}

    assert executed(result) == ["say", "inside"]
    assert metadata(result, "inside")["rows"] == 3
    assert value(project, "inside")["output"] == "done\n"
    assert checks == {"enough_rows": True, "on_time": False}


@pytest.mark.parametrize(
    ("command", "more", "said", "tries"),
    [
        ("exit 3", "", "the command ended with exit code 3", 3),
        ("echo oh >&2; exit 3", "", "the command ended with exit code 3\noh", 3),
        ("echo a; sleep 2; echo b; exit 3", "", "the command ended with exit code 3\na\nb", 3),
        ("kill -SEGV $$", "", "killed by SIGSEGV (exit code 139): a crash in native code", 3),
        ("nothing_like_it", "", "exit code 127: a program was not found", 1),
        ("sleep 60", "    timeout: 1s\n", "the command took longer than 1s and was ended", 3),
    ],
)
def test_the_end_of_a_pod_is_explained_and_no_pod_is_left(
    project: Project, cluster: KubernetesDouble, command: str, more: str, said: str, tries: int
) -> None:
    add(project, command, more)
    result = run(project)

    assert said in failure(result)
    assert attempts(result) == tries
    assert cluster.pods() == []


def test_an_image_that_is_not_there_is_said(
    project: Project, cluster: KubernetesDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_assets.commands.pod.PATIENCE", timedelta(0))
    project.add("p", STEPS.format(command="x").replace("tools:1", "lost"))
    result = run(project)

    assert "the image example.org/lost cannot be run: " in failure(result)
    assert attempts(result) == 3
    assert cluster.pods() == []


def test_a_pod_that_is_killed_for_want_of_memory_gets_more_up_to_the_limit(
    project: Project, cluster: KubernetesDouble
) -> None:
    takes = "x = bytearray(150 * 2**20); import time; time.sleep(1); print(len(x) // 2**20)"
    command = f'{sys.executable} -c "{takes}"'
    add(project, command, "    compute: {memory: 64Mi, max_memory: 300Mi}\n")
    result = run(project)

    assert executed(result) == ["say", "inside"]
    assert attempts(result) == 1
    assert value(project, "inside") == {"output": "150\n"}
    assert "the command was out of memory with 67.1 MB: tried again with 134.2 MB" in logged(
        project, result
    )
    add(project, command, "    compute: {memory: 64Mi, max_memory: 100Mi}\n    env: {A: b}\n")
    result = run(project)
    assert "out of memory with 104.9 MB: `compute.max_memory` allows no more" in failure(result)
    assert attempts(result) == 1
    assert cluster.pods() == []


def test_a_pod_that_is_taken_away_is_run_again(project: Project, cluster: KubernetesDouble) -> None:
    once = project.folder / "once"
    add(project, f"test -e {once} && echo ok && exit; touch {once}; sleep 60")
    results: list[Any] = []
    thread = Thread(target=lambda: results.append(run(project)))
    thread.start()
    cluster.wait(once.exists)
    (pod,) = cluster.pods()
    cluster.preempt(pod)
    thread.join()

    assert executed(results[0]) == ["say", "inside"]
    assert attempts(results[0]) == 1
    assert "ended by the cluster: its pod was deleted: tried again" in logged(project, results[0])
    assert value(project, "inside") == {"output": "ok\n"}


def test_a_pod_outlasts_an_api_server_that_is_away_for_a_while(
    project: Project, cluster: KubernetesDouble
) -> None:
    here, go = project.folder / "here", project.folder / "go"
    add(project, f"echo one; touch {here}; while test ! -e {go}; do sleep 0.1; done; echo two")
    results: list[Any] = []
    thread = Thread(target=lambda: results.append(run(project)))
    thread.start()
    cluster.wait(here.exists)
    with cluster.away():
        time.sleep(3)
    go.touch()
    thread.join()

    assert executed(results[0]) == ["say", "inside"]
    assert attempts(results[0]) == 1
    assert value(project, "inside") == {"output": "one\ntwo\n"}
    assert cluster.pods() == []
