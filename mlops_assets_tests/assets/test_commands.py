"""Steps that are commands: what they are given, what is kept of them, how they fail and end."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dagster import AssetKey, ExecuteInProcessResult, build_schedule_context

from mlops_assets.assets.command import WAITS
from mlops_assets.automation.staleness import recorded_in
from mlops_assets.commands.files import digests
from mlops_assets.commands.lines import Lines
from mlops_assets.errors import DataError
from mlops_assets.execution.compute import K8S_CONFIG
from mlops_assets.pipeline_file import load_pipelines
from mlops_assets.plan import PipelinePlan, plan_pipelines
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets.store.memo import Outside
from mlops_assets.store.reuse import MEMOIZED
from mlops_assets_tests.conftest import CUSTOMERS, Project, instance_of, write_customers

MLOPS = str(Path(sys.executable).with_name("mlops"))

GREETING = """\
steps:
  say:
    command: echo hello
  answer:
    needs: [say]
    command: echo "I heard $SAY"
"""


def run(
    project: Project, pipeline: str = "p", *steps: str, refresh: str | None = None
) -> ExecuteInProcessResult:
    job = project.definitions().resolve_job_def(f"{pipeline}_steps")
    return job.execute_in_process(
        instance=project.instance,
        raise_on_error=False,
        asset_selection=[AssetKey([pipeline, step]) for step in steps] or None,
        tags={"mlops/refresh": refresh} if refresh else None,
    )


def executed(result: ExecuteInProcessResult) -> list[str]:
    assert result.success
    return [
        event.asset_key.path[-1]
        for event in result.get_asset_materialization_events()
        if MEMOIZED not in event.step_materialization_data.materialization.metadata
    ]


def value(project: Project, step: str, pipeline: str = "p") -> Any:
    """What is kept of the latest run of a step."""
    newest, *_ = project.store.versions([pipeline, step])
    return project.store.read(newest)


def metadata(result: ExecuteInProcessResult, step: str) -> dict[str, Any]:
    (event,) = (
        event
        for event in result.get_asset_materialization_events()
        if event.asset_key.path[-1] == step
    )
    found = event.step_materialization_data.materialization.metadata
    return {name: one.value for name, one in found.items()}


def failure(result: ExecuteInProcessResult) -> str:
    """What is said of the step that failed."""
    assert not result.success
    (event,) = (event for event in result.all_events if event.is_step_failure)
    data = event.step_failure_data
    assert data.user_failure_data is not None
    return str(data.user_failure_data.description)


def attempts(result: ExecuteInProcessResult) -> int:
    return 1 + sum(event.is_step_up_for_retry for event in result.all_events)


def plan(project: Project, pipeline: str = "p") -> PipelinePlan:
    specs = load_pipelines(project.settings.pipelines).valid
    keys = [AssetKey([name, made]) for name, spec in specs.items() for made in spec.made_once]
    recorded = recorded_in(project.instance, keys)
    return plan_pipelines(specs.values(), Outside(project.store, {}), recorded)[pipeline]


def reasons(project: Project, pipeline: str = "p") -> dict[str, str]:
    return {asset.rpartition("/")[2]: why for asset, why in plan(project, pipeline).execute}


def logged(project: Project, result: ExecuteInProcessResult) -> str:
    return "\n".join(entry.user_message for entry in project.instance.all_logs(result.run_id))


def alive(marker: str) -> list[int]:
    """Processes that have a text in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if marker.encode() in line and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def gone(marker: str) -> bool:
    """Whether all of these processes end soon: what is killed is not gone at once."""
    until = time.monotonic() + 20
    while alive(marker) and time.monotonic() < until:
        time.sleep(0.05)
    return not alive(marker)


# --- what is run, kept and reused ---------------------------------------------------------------


def test_the_shipped_greeting_says_hello_with_the_date_that_was_printed(project: Project) -> None:
    project.add_shipped("greeting")
    result = run(project, "greeting")

    date = value(project, "print_date", "greeting")["output"]
    assert executed(result) == ["print_date", "print_hello"]
    assert "UTC" in date
    assert value(project, "print_hello", "greeting") == {"output": f"Hello! It is {date}"}
    assert executed(run(project, "greeting")) == []
    assert plan(project, "greeting").is_empty


def test_a_step_is_reused_until_its_command_or_what_it_needs_changes(project: Project) -> None:
    project.add("p", GREETING)
    assert set(reasons(project).values()) == {"never materialised"}
    assert executed(run(project)) == ["say", "answer"]
    assert plan(project).is_empty

    project.add("p", GREETING.replace("echo hello", "echo bye"))
    assert reasons(project) == {
        "say": "parameters changed: steps.say.command echo hello → echo bye",
        "answer": "depends on what is executed: p/say",
    }
    assert executed(run(project)) == ["say", "answer"]
    assert value(project, "answer") == {"output": "I heard bye\n"}

    project.add("p", GREETING)
    assert plan(project).execute == []
    assert executed(run(project)) == []


def test_a_command_that_prints_the_same_leaves_all_below_as_it_is(project: Project) -> None:
    project.add("p", GREETING)
    run(project)
    project.add("p", GREETING.replace("echo hello", "echo HELLO | tr A-Z a-z"))

    assert executed(run(project)) == ["say"]


@pytest.mark.parametrize(
    ("edit", "again"),
    [
        ("    env: {WHOM: you}\n", True),
        ("    checks: [polite]\n", True),
        ("    timeout: 1h\n", False),
        ("    compute: {cpu: 2, memory: 1Gi}\n", False),
        ("    description: It says hello\n", False),
    ],
)
def test_what_decides_nothing_of_the_result_runs_nothing_again(
    project: Project, edit: str, again: bool
) -> None:
    project.add("p", "steps:\n  say:\n    command: echo hello\n")
    run(project)
    project.add("p", f"steps:\n  say:\n    command: echo hello\n{edit}")

    assert bool(plan(project).execute) is again


def test_a_file_that_a_command_reads_counts_with_its_content(project: Project) -> None:
    project.add("p", "steps:\n  show:\n    command: cat words/*.txt\n    files: [words]\n")
    words = project.folder / "pipelines" / "words"
    words.mkdir()
    (words / "a.txt").write_text("one\n")
    assert executed(run(project)) == ["show"]
    os.utime(words / "a.txt", (0, 0))
    assert plan(project).is_empty

    (words / "b.txt").write_text("two\n")
    assert reasons(project) == {"show": "input content changed: ./words/b.txt"}
    assert executed(run(project)) == ["show"]
    assert value(project, "show") == {"output": "one\ntwo\n"}
    (words / "b.txt").unlink()
    assert executed(run(project)) == []


def test_what_is_behind_a_link_counts_and_a_circle_of_links_ends(tmp_path: Path) -> None:
    words, more = tmp_path / "words", tmp_path / "elsewhere"
    words.mkdir()
    more.mkdir()
    (words / "more").symlink_to(more)
    (more / "back").symlink_to(words)
    (more / "a.txt").write_text("one\n")

    assert list(digests(tmp_path, ["words"])) == ["./words/more/a.txt"]


def test_a_pipe_among_the_files_is_a_mistake_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "queue")

    with pytest.raises(DataError, match="queue is a pipe, socket or device"):
        digests(tmp_path, ["*"])


def test_a_file_that_is_not_there_is_said_before_anything_runs(project: Project) -> None:
    project.add("p", "steps:\n  show:\n    command: touch ran\n    files: [nowhere.sql]\n")

    assert "steps.show.files: there is no 'nowhere.sql'" in str(plan(project).error)
    result = run(project)
    assert "steps.show.files: there is no 'nowhere.sql'" in failure(result)
    assert attempts(result) == 1
    assert not (project.folder / "pipelines" / "ran").exists()


def test_a_step_under_recompute_runs_every_time_and_the_rest_only_if_it_prints_another_text(
    project: Project,
) -> None:
    project.add("p", GREETING + "recompute: [say]\n")
    run(project)

    assert reasons(project)["say"] == "the pipeline file lists it under recompute"
    assert executed(run(project)) == ["say"]


def test_a_refresh_runs_a_step_again(project: Project) -> None:
    project.add("p", GREETING)
    run(project)

    assert executed(run(project, refresh="p/answer")) == ["answer"]


def test_of_much_output_the_end_is_kept_and_all_of_it_counts(project: Project) -> None:
    text = "steps:\n  many:\n    command: seq {first} 20000\n"
    project.add("p", text.format(first=1))
    run(project)
    kept = value(project, "many")
    project.add("p", text.format(first=2))
    run(project)

    assert kept["output"].endswith("\n19999\n20000\n")
    assert len(kept["output"]) == 64 * 1024
    assert kept["cut"]["bytes"] == len("".join(f"{n}\n" for n in range(1, 20001)))
    assert value(project, "many")["output"] == kept["output"]
    assert len(project.store.versions(["p", "many"])) == 2


def test_output_that_is_no_text_is_kept_as_far_as_it_can_be(project: Project) -> None:
    project.add(
        "p",
        "steps:\n"
        "  raw:\n    command: [printf, 'a\\000b\\377c']\n"
        '  after:\n    needs: [raw]\n    command: printf %s "$RAW"\n',
    )
    run(project)

    assert value(project, "raw") == value(project, "after") == {"output": "a\ufffdb\ufffdc"}


def test_the_ui_is_told_what_a_step_runs_and_what_came_of_it(project: Project) -> None:
    project.add("p", GREETING + "owners: [team:ml]\ndescription: Says hello\n")
    graph = project.definitions().resolve_asset_graph()
    result = run(project)

    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert (node.group_name, node.owners, node.kinds) == ("p", ["team:ml"], {"shell", "json"})
        assert "echo" in str(node.description)
    assert graph.get(AssetKey(["p", "answer"])).parent_keys == {AssetKey(["p", "say"])}
    told = metadata(result, "say")
    assert (told["command"], told["exit_code"], told["output"]) == ("echo hello", 0, "hello\n")
    assert told["duration_seconds"] >= 0


# --- what a command is given --------------------------------------------------------------------


def test_a_list_is_a_program_and_its_arguments_and_no_shell_reads_it(project: Project) -> None:
    project.add("p", "steps:\n  say:\n    command: [echo, '$HOME', '*', 'a  b']\n")
    run(project)

    assert value(project, "say") == {"output": "$HOME * a  b\n"}


def test_an_error_in_any_line_of_a_text_ends_it(project: Project) -> None:
    project.add("p", "steps:\n  say:\n    command: |\n      false\n      echo never\n")

    assert failure(run(project)).startswith("the command ended with exit code 1")


def test_a_command_runs_in_the_folder_of_its_file_with_its_variables_and_nothing_to_read(
    project: Project,
) -> None:
    project.add("p", "steps:\n  show:\n    env: {A_b1: 'x y'}\n    command: pwd; echo $A_b1; cat\n")
    run(project)

    assert value(project, "show") == {"output": f"{project.folder / 'pipelines'}\nx y\n"}


def test_a_step_may_have_a_name_that_means_something_in_python(project: Project) -> None:
    project.add(
        "p",
        "steps:\n  class: {command: echo 1}\n  context: {command: echo 2}\n"
        '  result: {needs: [class, context], command: echo "$CLASS $CONTEXT"}\n',
    )
    run(project)

    assert value(project, "result") == {"output": "1 2\n"}


def test_a_step_that_needs_the_asset_of_another_pipeline_is_given_its_place(
    customers: Project,
) -> None:
    customers.add(
        "p",
        "steps:\n  size:\n    needs: [customers/metrics, q/word]\n"
        "    command: cat $CUSTOMERS_METRICS; echo; cat $Q_WORD\n",
    )
    customers.add("q", "steps: {word: {command: echo hi}}\n")
    assert "never been materialised" not in str(plan(customers).error)
    job = customers.definitions().resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=customers.instance, raise_on_error=False)
    assert result.success
    metrics, word = value(customers, "size")["output"].splitlines()
    (stored,) = customers.store.versions(["customers", "metrics"])

    assert json.loads(metrics) == customers.store.read(stored)
    assert json.loads(word) == {"output": "hi\n"}
    assert plan(customers).is_empty
    customers.add("customers", CUSTOMERS + "evaluate: {gates: {accuracy: '>= 0.1'}}\n")
    assert reasons(customers) == {"size": "depends on what is executed: customers/metrics"}


def test_what_another_pipeline_has_never_made_is_said(customers: Project) -> None:
    customers.add("p", "steps: {size: {needs: [customers/model], command: 'true'}}\n")
    result = run(customers)

    assert not result.success
    assert "customers/model has never been materialised" in failure(result)
    specs = load_pipelines(customers.settings.pipelines).valid
    alone = plan_pipelines([specs["p"]], Outside(customers.store, {}), {})["p"]
    assert alone.error == (
        "steps.size.needs[0]: customers/model has never been materialised in this Dagster instance"
    )


# --- Dagster Pipes ------------------------------------------------------------------------------

REPORT = """\
import sys
from dagster_pipes import open_dagster_pipes

with open_dagster_pipes() as pipes:
    needs = pipes.extras["needs"]
    pipes.log.info(f"given {needs['say']['output']} of {needs['say']['asset']}")
    pipes.report_asset_materialization(
        metadata={
            "rows": 3,
            "share": float("nan"),
            "where": {"raw_value": "s3://b/k", "type": "url"},
        },
        data_version="v7",
    )
    pipes.report_asset_check("enough_rows", passed="few" not in sys.argv, metadata={"rows": 3})
    pipes.report_asset_check("on_time", passed=False, severity="WARN")
print("done")
"""

REPORTING = """\
steps:
  say: {command: echo hello}
  report:
    needs: [say]
    command: python report.py
    files: [report.py]
    checks: [enough_rows, on_time]
  after: {needs: [report], command: echo after}
"""


def test_a_script_reports_metadata_and_checks_and_is_told_what_its_needs_are(
    project: Project,
) -> None:
    project.add("p", REPORTING)
    (project.folder / "pipelines" / "report.py").write_text(REPORT)
    result = run(project)
    checks = {one.check_name: one for one in result.get_asset_check_evaluations()}

    assert executed(result) == ["say", "report", "after"]
    assert metadata(result, "report")["rows"] == 3
    assert metadata(result, "report")["where"] == "s3://b/k"
    assert value(project, "report") == {
        "output": "done\n",
        "reported": {"rows": 3, "share": "nan", "where": "s3://b/k"},
        "data_version": "v7",
    }
    assert {name: one.passed for name, one in checks.items()} == {
        "enough_rows": True,
        "on_time": False,
    }
    assert checks["enough_rows"].metadata["rows"].value == 3
    assert "given hello of p/say" in logged(project, result)

    again = run(project)
    told = {one.check_name: one.passed for one in again.get_asset_check_evaluations()}
    assert executed(again) == []
    assert metadata(again, "report")["rows"] == 3
    assert told == {"enough_rows": True, "on_time": False}


def test_a_check_that_fails_stops_what_is_below(project: Project) -> None:
    project.add("p", REPORTING.replace("report.py\n    files", "report.py few\n    files"))
    (project.folder / "pipelines" / "report.py").write_text(REPORT)
    result = run(project)
    made = [event.asset_key.path[-1] for event in result.get_asset_materialization_events()]

    assert not result.success
    assert made == ["say", "report"]
    assert attempts(result) == 1


def test_a_check_that_is_not_reported_has_failed_and_one_that_is_not_declared_is_a_mistake(
    project: Project,
) -> None:
    (project.folder / "pipelines").mkdir()
    (project.folder / "pipelines" / "report.py").write_text(REPORT)
    project.add("p", REPORTING.replace("on_time]", "on_time, complete]"))
    checks = {one.check_name: one for one in run(project).get_asset_check_evaluations()}
    assert checks["complete"].description == "the command did not report it"
    assert not checks["complete"].passed

    project.add("p", REPORTING.replace(", on_time]", "]"))
    result = run(project)
    assert "reported the check on_time, which the pipeline file does not have" in failure(result)
    assert attempts(result) == 1


def test_metadata_that_is_the_projects_to_say_is_left_out(project: Project) -> None:
    project.add("p", "steps: {report: {command: python report.py}}\n")
    (project.folder / "pipelines" / "report.py").write_text(
        "from dagster_pipes import open_dagster_pipes\n"
        "with open_dagster_pipes() as pipes:\n"
        "    mine = {'memoized': True, 'size_bytes': -1, 'exit_code': 77}\n"
        "    pipes.report_asset_materialization(metadata=mine)\n"
    )
    result = run(project)

    assert executed(result) == ["report"]
    assert metadata(result, "report")["size_bytes"] > 0
    assert metadata(result, "report")["exit_code"] == 0
    assert "memoized is not the command's to report" in logged(project, result)


# --- how it is logged ---------------------------------------------------------------------------


def test_what_a_command_writes_is_in_the_log_of_its_step_and_in_its_compute_logs_while_it_runs(
    project: Project, tmp_path: Path
) -> None:
    project.add(
        "p",
        "steps:\n  slow:\n    command: |\n"
        "      echo first; echo trouble >&2\n"
        "      while test ! -e go; do sleep 0.1; done\n"
        "      printf 'last, without an end'\n",
    )
    home = tmp_path / "home"
    home.mkdir()
    process = subprocess.Popen(
        [MLOPS, "run"], env=project.environment(home), stdout=subprocess.PIPE, text=True
    )
    with instance_of(home) as instance:
        until = time.monotonic() + 60
        while True:
            runs = instance.get_run_ids()
            said = [e.user_message for r in runs for e in instance.all_logs(r)]
            if "first" in "\n".join(said) and "trouble" in "\n".join(said):
                break
            assert time.monotonic() < until, said
            time.sleep(0.2)
        assert process.poll() is None
        (project.folder / "pipelines" / "go").touch()
        out, _ = process.communicate()
        said = [e.user_message for e in instance.all_logs(runs[0])]

    assert process.returncode == 0, out
    assert "last, without an end" in said
    captured = "\n".join(
        path.read_text() for path in home.rglob("*") if path.suffix in (".out", ".err")
    )
    assert "first" in captured
    assert "trouble" in captured


def test_a_log_takes_so_many_lines_and_no_more(project: Project) -> None:
    project.add("p", "steps: {many: {command: seq 1 100000}}\n")
    result = run(project)
    said = logged(project, result)

    assert executed(result) == ["many"]
    assert "\n2000\n" in said
    assert "\n2001\n" not in said
    assert "further lines are in the compute logs" in said
    assert "did not receive any messages" not in said


def test_lines_that_come_at_once_are_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    stream = SimpleNamespace(write=written.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stdout", stream)
    lines = Lines(logging.getLogger("step"))
    monkeypatch.undo()
    lines.take("stdout", b"one\ntwo\nthr")
    lines.take("stdout", b"ee\nfour")
    lines.end()

    assert written == ["one\ntwo\n", "three\n", "four"]
    assert lines.output.text == "one\ntwo\nthree\nfour"


# --- how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said", "tries"),
    [
        ("echo a >&2; echo b >&2; exit 3", "the command ended with exit code 3\na\nb", 3),
        ("echo only; exit 1", "the command ended with exit code 1\nonly", 3),
        ("kill -SEGV $$", "the command was killed by SIGSEGV: a crash in native code", 3),
        ("kill -KILL $$", "the command was killed by SIGKILL: out of memory?", 3),
        ("sh -c 'kill -KILL $$'; exit $?", "killed by SIGKILL (exit code 137): out of memory?", 3),
        ("no_such_program_at_all", "exit code 127: a program was not found\nsh:", 1),
        ("/etc/passwd", "exit code 126: a program was found that cannot be run", 1),
    ],
)
def test_the_end_of_a_command_is_explained_and_tried_again_if_it_may_pass(
    project: Project, command: str, said: str, tries: int
) -> None:
    project.add("p", f"steps:\n  fails:\n    command: {json.dumps(command)}\n")
    result = run(project)

    assert said in failure(result)
    assert attempts(result) == tries
    assert plan(project).execute == [("p/fails", "never materialised")]


def test_a_program_that_is_not_there_is_not_tried_again(project: Project) -> None:
    project.add("p", "steps: {fails: {command: [no_such_program, x]}}\n")
    result = run(project)

    assert failure(result) == (
        "'no_such_program' cannot be started: there is no such program; install it, or correct its "
        "name"
    )
    assert attempts(result) == 1


def test_what_is_too_long_for_a_variable_is_said(project: Project) -> None:
    project.add(
        "p",
        "steps:\n"
        '  say: {command: \'head -c 65536 /dev/zero | tr "\\\\0" "\\\\377"\'}\n'
        "  gets: {needs: [say], command: echo never}\n",
    )
    result = run(project)

    assert "'sh' cannot be started: its arguments and variables are longer" in failure(result)
    assert attempts(result) == 1


def test_a_command_that_fails_for_a_passing_reason_succeeds_later(project: Project) -> None:
    project.add(
        "p", "steps:\n  flaky:\n    command: test -e here || (touch here; exit 1); echo ok\n"
    )
    result = run(project)

    assert executed(result) == ["flaky"]
    assert attempts(result) == 2
    assert value(project, "flaky") == {"output": "ok\n"}


def test_a_command_that_takes_too_long_is_ended_with_its_children_even_if_it_does_not_want_to(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlops_assets.commands.process.GRACE", 1.0)
    marker = f"4{os.getpid()}.25"
    stubborn = f"trap '' TERM; sh -c \"trap '' TERM; sleep {marker}\" & sleep {marker}"
    project.add(
        "p",
        f"steps:\n  slow:\n    command: {json.dumps(stubborn)}\n    timeout: 500ms\n"
        "retries: {max: 1, delay: 0}\n",
    )
    result = run(project)

    said = "the command took longer than 0.5s and was ended, after it had ignored SIGTERM"
    assert failure(result).startswith(said)
    assert attempts(result) == 2
    assert gone(marker)


def test_what_a_command_leaves_in_the_background_ends_with_it(project: Project) -> None:
    marker = f"5{os.getpid()}.25"
    project.add("p", f"steps:\n  starts:\n    command: sleep {marker} & echo started\n")

    assert executed(run(project)) == ["starts"]
    assert value(project, "starts") == {"output": "started\n"}
    assert gone(marker)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_of_a_run_that_is_interrupted_or_killed_no_process_is_left(
    project: Project, tmp_path: Path, number: signal.Signals
) -> None:
    marker = f"6{os.getpid()}.{number:02}"
    project.add(
        "p",
        f"steps:\n  slow:\n    command: sleep {marker} & sleep {marker}\n  never: "
        "{needs: [slow], command: 'true'}\n",
    )
    home = tmp_path / "home"
    home.mkdir()
    process = subprocess.Popen(
        [MLOPS, "run"],
        env=project.environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while len(alive(marker)) < 3:  # the shell and what it has started
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate()

    assert gone(marker)
    if number is not signal.SIGKILL:
        assert process.returncode == 1
        assert "p__slow: interrupted" in out
        assert "retried" not in err


# --- images -------------------------------------------------------------------------------------

IMAGE = """\
steps:
  say: {command: echo hello}
  inside:
    needs: [say]
    image: example.org/tools:1
    command: echo "$SAY there"
    env: {WHOM: you}
    compute: {cpu: 0.5, memory: 64Mi}
"""

DOCKER = """\
#!/bin/sh
# Stands in for docker: notes what it was asked for, and runs the command here.
printf '%s\\n' "$@" > "$(dirname "$0")/asked.$1"
[ "$1" = run ] || exit 0
while [ "$1" != --entrypoint ]; do shift; done
program=$2; shift 3
"""


def fake_docker(folder: Path, monkeypatch: pytest.MonkeyPatch, last: str) -> Path:
    tools = folder / "tools"
    tools.mkdir()
    docker = tools / "docker"
    docker.write_text(DOCKER + last)
    docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tools


def test_an_image_is_run_by_docker_with_the_variables_and_the_limits(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = fake_docker(tmp_path, monkeypatch, 'exec "$program" "$@"\n')
    project.add("p", IMAGE)
    result = run(project)
    asked = (tools / "asked.run").read_text()

    assert executed(result) == ["say", "inside"]
    assert value(project, "inside") == {"output": "hello there\n"}
    assert asked.startswith("run\n--rm\n-i\n--name\nmlops-")
    for part in ("--cpus\n0.5", "--memory\n67108864", "--env\nWHOM\n", "--env\nSAY\n"):
        assert part in asked
    assert "--entrypoint\nsh\nexample.org/tools:1\n-ec\necho" in asked
    assert "hello" not in asked
    assert not (tools / "asked.rm").exists()
    assert executed(run(project)) == []


def test_a_script_in_a_container_reports_among_the_lines_of_its_standard_error(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_docker(tmp_path, monkeypatch, 'exec "$program" "$@"\n')
    script = tmp_path / "report.py"
    script.write_text(REPORT)
    command = shlex.join([sys.executable, str(script)])
    project.add(
        "p",
        "steps:\n  say: {command: echo hello}\n"
        "  report:\n    needs: [say]\n    image: an/image\n"
        f"    command: {json.dumps(command)}\n    checks: [enough_rows, on_time]\n",
    )
    result = run(project)

    assert executed(result) == ["say", "report"]
    assert metadata(result, "report")["rows"] == 3
    assert value(project, "report")["output"] == "done\n"
    assert "__dagster_pipes_version" not in logged(project, result)


def test_a_container_that_takes_too_long_is_removed_by_its_name(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = fake_docker(tmp_path, monkeypatch, "exec sleep 600\n")
    project.add("p", IMAGE + "    timeout: 300ms\nretries: {max: 0}\n")
    result = run(project)
    name = (tools / "asked.run").read_text().splitlines()[4]

    assert "took longer than 0.3s" in failure(result)
    assert (tools / "asked.rm").read_text().splitlines() == ["rm", "--force", name]


def test_an_engine_that_fails_itself_is_told_from_the_command_and_asked_again(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_docker(tmp_path, monkeypatch, "echo 'no such image' >&2; exit 125\n")
    project.add("p", IMAGE)
    result = run(project)

    assert failure(result) == ("docker could not run the image example.org/tools:1\nno such image")
    assert attempts(result) == 3


def test_without_an_engine_an_image_is_a_mistake_that_says_what_to_do(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "echo"):
        path = next(
            Path(folder, name) for folder in ("/bin", "/usr/bin") if Path(folder, name).exists()
        )
        (tools / name).symlink_to(path)
    monkeypatch.setenv("PATH", str(tools))
    project.add("p", IMAGE)
    result = run(project)

    assert "needs docker or podman" in failure(result)
    assert "remove `image`" in failure(result)
    assert attempts(result) == 1


def test_a_step_with_an_image_asks_for_little_and_may_start_pods_and_no_other_may(
    project: Project,
) -> None:
    project.add("p", IMAGE + "  trains:\n    image: a/b\n    compute: {gpu: 1, memory: 8Gi}\n")
    tags = {
        asset.key.path[-1]: json.loads(asset.op.tags[K8S_CONFIG])
        for asset in project.definitions().assets or ()
    }
    pools = {asset.key.path[-1]: asset.op.pool for asset in project.definitions().assets or ()}

    for name in ("inside", "trains"):
        pod = tags[name]["pod_spec_config"]
        assert pod["service_account_name"] == "dagster-pipes"
        assert pod["automount_service_account_token"] is True
        assert tags[name]["container_config"]["resources"]["limits"]["memory"] == WAITS.memory
        assert "nvidia.com/gpu" not in str(tags[name])
    assert "service_account_name" not in tags["say"]["pod_spec_config"]
    assert (pools["say"], pools["inside"], pools["trains"]) == (None, None, "gpu")


# --- when it runs, and the command line ---------------------------------------------------------


def test_a_schedule_launches_what_is_stale_of_the_steps(project: Project) -> None:
    project.add("p", GREETING + 'schedule: "@daily"\ntimezone: Europe/Berlin\n')
    definitions = project.definitions()
    repository = definitions.get_repository_def()
    schedule = repository.get_schedule_def("p_steps_schedule")

    def tick() -> Any:
        with build_schedule_context(
            scheduled_execution_time=datetime.now(UTC),
            repository_def=repository,
            resources={"store": StoreIOManager(url=project.settings.store_url)},
        ) as context:
            context._instance, context._instance_ref = project.instance, project.instance
            return schedule.evaluate_tick(context)

    assert (schedule.cron_schedule, schedule.execution_timezone) == ("@daily", "Europe/Berlin")
    (request,) = tick().run_requests
    assert {key.path[-1] for key in request.asset_selection} == {"say", "answer"}
    run(project)
    assert tick().run_requests == []
    graph = definitions.resolve_asset_graph()
    assert graph.get(AssetKey(["p", "answer"])).freshness_policy is not None
    assert graph.get(AssetKey(["p", "say"])).freshness_policy is None
    assert {one.name for one in definitions.sensors or ()} >= {"p_automation_sensor"}


def test_the_command_line_runs_steps_beside_models(customers: Project, tmp_path: Path) -> None:
    from mlops_assets_tests.cli.test_run import mlops, summary

    customers.add(
        "p",
        "steps:\n  metrics: {command: echo 1}\n  champion: {needs: [metrics], command: echo 2}\n",
    )
    write_customers(customers.folder / "pipelines" / "customers.csv", rows=60)
    first = summary(mlops(customers, "run", "--json"))["pipelines"]
    second = mlops(customers, "run", "--json")
    promoted = mlops(customers, "promote", "p")

    assert first["p"]["executed"] == ["p/metrics", "p/champion"]
    assert (first["p"]["metrics"], first["p"]["champion"]) == ({}, None)
    assert first["customers"]["metrics"]
    assert summary(second)["run_id"] is None
    assert summary(second)["pipelines"]["p"]["reused"] == ["p/metrics", "p/champion"]
    assert (summary(second)["pipelines"]["p"]["metrics"]) == {}
    assert promoted.returncode == 1
    assert "p is a pipeline of steps: it trains no model to promote" in promoted.stderr


def test_a_step_that_fails_says_so_on_the_command_line(project: Project) -> None:
    from mlops_assets_tests.cli.test_run import mlops, summary

    project.add("p", GREETING.replace("echo hello", "'echo broken >&2; exit 4'"))
    done = mlops(project, "run", "--json")
    report = summary(done)["pipelines"]["p"]

    assert done.returncode == 1
    assert (report["failed"], report["skipped"]) == (["p/say"], ["p/answer"])
    assert report["error"] == "p__say: the command ended with exit code 4\nbroken"
    assert done.stderr.count("retried: the command ended with exit code 4") == 2
    assert "Traceback" not in done.stderr


def test_all_steps_that_failed_are_in_the_summary_each_in_its_own_words(project: Project) -> None:
    from mlops_assets_tests.cli.test_run import mlops

    project.add(
        "p",
        "retries: {max: 0}\n"
        "steps:\n"
        "  one: {command: exit 3}\n"
        "  two: {command: exit 4}\n"
        "  report: {command: python report.py few, checks: [enough_rows, on_time]}\n"
        "  say: {command: echo hello}\n",
    )
    (project.folder / "pipelines" / "report.py").write_text(
        REPORT.replace(
            'needs = pipes.extras["needs"]', 'needs = {"say": {"output": 1, "asset": 2}}'
        )
    )
    done = mlops(project, "run")

    assert "error     p__one: the command ended with exit code 3\n" in done.stdout
    assert "error     p__two: the command ended with exit code 4\n" in done.stdout
    assert "error     p__report: enough_rows: failed\n" in done.stdout
    assert "warn: on_time: failed\n" in done.stderr
