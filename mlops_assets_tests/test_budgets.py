"""What things may cost, as exact counts: requests to the store, processes, imported modules.

Counts are the same on a busy machine, so nothing here is timed. Every budget is a constant of this
module, and a test that fails says what has grown or shrunk and which constant holds it. The other
budgets: statements and transactions of Dagster's databases for each asset are in `test_costs`, what
grows with the number of pipelines in `test_load`, which processes single steps have in
`execution.test_executors`, what a plan asks the store in `test_decisions`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from shutil import copy
from typing import Any, NamedTuple

import pytest

from benchmarks.reuse import ROOT
from benchmarks.s3 import BUCKET, moto
from mlops_assets.code_version import Code
from mlops_assets.store.artifacts import ArtifactStore
from mlops_assets.store.champions import Champion, Champions
from mlops_assets.store.memo import Computation, Memo
from mlops_assets.store.objects import LocalObjects, open_objects
from mlops_assets.store.prune import prune
from mlops_assets_tests.assets.test_predictions import DAY, SCORE, put
from mlops_assets_tests.conftest import DUMMY, Project, instance_of, write_customers
from mlops_assets_tests.store.computations import age, compute

CALLS = ("look", "read", "digest", "fetch", "list", "upload", "create", "delete", "tidy")
"""What the place is asked for where a store lies; a call that makes another counts as both."""

OPERATIONS: dict[str, dict[str, int]] = {
    "save": {"upload": 1, "look": 1},
    "save_the_same_again": {"upload": 1, "look": 1, "digest": 1},
    "load": {"fetch": 1, "digest": 1},
    "remember": {"upload": 2, "look": 1},
    "reuse": {"read": 1, "look": 1},
    "promote": {"create": 1, "upload": 2},
    "promote_another": {"list": 2, "read": 1, "create": 1, "upload": 2},
    "look_up_the_champion": {"list": 2, "read": 1},
}
"""Calls of a store in a folder."""

OPERATIONS_ON_S3 = {
    "save": 1,
    "save_the_same_again": 2,
    "load": 1,
    "remember": 3,
    "reuse": 2,
    "promote": 2,
    "promote_another": 5,
    "look_up_the_champion": 3,
}
"""Requests that a server gets."""

SCORED = {"read": 7, "look": 13, "fetch": 6, "digest": 6, "upload": 9, "list": 4}
SCORED_AGAIN = {"read": 6, "look": 2, "fetch": 2, "digest": 2}
"""Calls of the store for a day's predictions and drift, and when nothing has changed."""

PRUNED = {"list": 9, "delete": 3, "tidy": 1}
PRUNED_READS = 5
"""Calls of the store, however many versions there are (up to 1,000 objects); the most reads."""

PROCESSES: dict[str, list[str]] = {
    "mlops --help": [],
    "unchanged mlops run": [],
    "unchanged job, in_process": ["tail", "tail", "watch_orphans.py", "watch_orphans.py"],
    "unchanged job, forkserver": [],
    "first mlops run": ["git", "tail", "tail", "watch_orphans.py", "watch_orphans.py"],
}
"""Processes that are started, but those by which Python asks what system this is. Dagster has a
`tail` and one that watches it for each stream that a step prints to; MLflow asks for the commit."""

ASKS_FOR_THE_SYSTEM = ("file", "uname")

PIPELINES = {"annotated_types", "pydantic", "pydantic_core", "typing_extensions"}
PIPELINES |= {"typing_inspection", "yaml"}

PACKAGES: dict[str, set[str]] = {
    "mlops --help": {"click", "mlops_assets"},
    "unchanged mlops run": {"click", "mlops_assets", *PIPELINES},
    "import mlops_assets.definitions": {
        *("click", "coloredlogs", "dagster", "dagster_pipes", "dagster_shared"),
        *("docstring_parser", "filelock", "humanfriendly", "mlops_assets", "packaging"),
        *("pytz", "six", "toposort", *PIPELINES),
    },
}
"""Packages that are imported, beside Python's own and modules written in C."""

OURS: dict[str, set[str]] = {
    "mlops --help": {"cli", "errors"},
    "unchanged mlops run": {
        *("cli", "cli.planning", "cli.summary", "code_version", "cron", "dagster_internals"),
        *("dagster_internals.database", "durations", "errors", "estimators", "ml"),
        *("ml.files", "pipeline_file", "plan", "processes", "scorers", "settings", "source"),
        *("spec", "stages", "store", "store.artifacts", "store.boosters", "store.champions"),
        *("store.codecs", "store.layout", "store.memo", "store.models"),
        *("store.objects", "store.records", "store.tables", "store.trusted_types", "wording"),
    },
}
"""Modules of this package that are imported."""


def within(what: str, found: Mapping[str, int], budget: Mapping[str, int], constant: str) -> None:
    """Fail with what has grown or shrunk, and where its budget is."""
    differing = [
        f"{one}: {found.get(one, 0)} instead of {budget.get(one, 0)}"
        for one in sorted({*found, *budget})
        if found.get(one, 0) != budget.get(one, 0)
    ]
    where = f"If that is meant, change {constant} in {Path(__file__).name}."
    assert not differing, f"{what}: {', '.join(differing)}. {where}"


# --- requests to the store ----------------------------------------------------------------------


class Operations:
    """What is done to a store, each by its name in `OPERATIONS`, in that order."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store, self.memo, self.champions = store, Memo(store), Champions(store, "p")
        self.computation = Computation("p/metrics", None, Code({}, {"m": "1"}, {}), None, {})

    def save(self) -> None:
        self.artifact = self.store.write(["p", "metrics"], {"accuracy": 1})

    save_the_same_again = save

    def load(self) -> None:
        self.store.read(self.artifact)

    def remember(self) -> None:
        self.memo.put(self.computation, self.artifact, {}, run_id="r", seconds=1.0)

    def reuse(self) -> None:
        assert self.memo.find(self.computation) is not None

    def promote(self, expected: Champion | None = None) -> None:
        self.champions.promote(
            self.artifact.version, expected=expected, metrics={}, reason="", run_id="r", at=""
        )

    def promote_another(self) -> None:
        self.promote(self.champions.current())

    def look_up_the_champion(self) -> None:
        assert self.champions.current() is not None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stores in local folders are asked for, as it comes, by any thread."""
    made: list[str] = []

    def count(name: str) -> None:
        original = getattr(LocalObjects, name)

        def counting(self: LocalObjects, *arguments: Any, **named: Any) -> Any:
            made.append(name)
            return original(self, *arguments, **named)

        monkeypatch.setattr(LocalObjects, name, counting)

    for name in CALLS:
        count(name)
    return made


@pytest.fixture
def server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Callable[[], int]]]:
    """URL of an S3-compatible server, and how many requests it has got."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")  # so that it is forgotten afterwards
    log = tmp_path / "requests.log"
    with moto(log) as endpoint:
        yield endpoint, lambda: len(re.findall('"(?:GET|HEAD|PUT|POST) ', log.read_text()))


def test_an_operation_asks_a_folder_for_this_much(tmp_path: Path, calls: list[str]) -> None:
    operations = Operations(ArtifactStore(str(tmp_path)))
    for name, budget in OPERATIONS.items():
        calls.clear()
        getattr(operations, name)()
        within(name, Counter(calls), budget, "OPERATIONS")


def test_an_operation_sends_this_many_requests_to_a_bucket(
    server: tuple[str, Callable[[], int]],
) -> None:
    endpoint, requests = server
    operations, found = Operations(ArtifactStore(f"s3://{BUCKET}/store", endpoint)), {}
    for name in OPERATIONS_ON_S3:
        before = requests()
        getattr(operations, name)()
        found[name] = requests() - before

    within("requests to S3", found, OPERATIONS_ON_S3, "OPERATIONS_ON_S3")
    objects = open_objects(f"s3://{BUCKET}/store", endpoint_url=endpoint)
    before = requests()
    objects.delete([f"p/metrics/{number}.json" for number in range(1000)])
    assert requests() - before == 1, "a thousand objects are deleted in one request"


def test_pruning_asks_for_no_more_when_there_are_more_versions(
    tmp_path: Path, calls: list[str]
) -> None:
    for count in (10, 60):
        store = ArtifactStore(str(tmp_path / str(count)))
        for number in range(count):
            compute(store, "p/metrics", {"n": number}, code=str(number))
        age(store)
        calls.clear()

        [report] = prune(store, keep=2, older_than=timedelta(days=30)).folders

        assert report.deleted == count - 2
        found = Counter(calls)
        assert found.pop("read") <= PRUNED_READS  # two threads may read the same
        within(f"pruning {count} versions", found, PRUNED, "PRUNED")


# --- processes and modules ----------------------------------------------------------------------

WATCHED = """
import _posixsubprocess, json, os, sys
from importlib import import_module

started, really = [], _posixsubprocess.fork_exec


def counting(arguments, *others):
    started.append([os.path.basename(os.fsdecode(one)) for one in arguments])
    return really(arguments, *others)


_posixsubprocess.fork_exec = counting  # what subprocess and multiprocessing start processes by
code, answer, module, function, *arguments = 0, *sys.argv[1:]
sys.argv[1:] = arguments
try:
    found = import_module(module)
    getattr(found, function)() if function else None
except SystemExit as end:
    code = end.code
with open(answer, "w") as file:
    json.dump({"code": code, "started": started, "modules": sorted(sys.modules)}, file)
"""


class Watched(NamedTuple):
    """What a process did that ended well."""

    started: list[str]
    modules: list[str]

    @property
    def packages(self) -> set[str]:
        """The packages that are written in Python and not Python's own."""
        names = {name.partition(".")[0] for name in self.modules} - sys.stdlib_module_names
        return {name for name in names if not name.startswith(("_", "cython"))}

    @property
    def ours(self) -> set[str]:
        return {name.partition(".")[2] for name in self.modules if name.startswith("mlops_assets.")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, _empty_tracking_database: Path) -> Path:
    """Where a pipeline is that is new at first, and an instance in `home`."""
    folder = tmp_path_factory.mktemp("watched")
    for name in ("pipelines", "home"):
        (folder / name).mkdir()
    copy(_empty_tracking_database, folder / "mlflow.db")
    copy(ROOT / "dagster.yaml", folder / "home")
    (folder / "pipelines" / "customers.yaml").write_text(DUMMY + SCORE)
    write_customers(folder / "pipelines" / "customers.csv")
    return folder


@pytest.fixture(scope="module")
def watched(folder: Path) -> dict[str, Watched]:
    """What commands do, one after the other, by what they are."""
    for executor in ("in_process", "forkserver"):
        config = {"execution": {"config": {executor: {}}}}
        (folder / f"{executor}.yaml").write_text(json.dumps(config))
    with instance_of(folder / "home") as instance:
        environment = Project(folder, instance).environment(folder / "home")

    def watch(module: str, function: str = "", *arguments: str) -> Watched:
        answer = folder / "answer.json"
        command = [sys.executable, "-c", WATCHED, str(answer), module, function, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        told = json.loads(answer.read_text())
        assert not done.returncode, done.stderr
        assert not told["code"], done.stderr
        names = [
            one[1] if one[0].startswith("python") and not one[1].startswith("-") else one[0]
            for one in told["started"]
        ]
        started = sorted(name for name in names if name not in ASKS_FOR_THE_SYSTEM)
        return Watched(started, told["modules"])

    job = ["job", "execute", "-m", "mlops_assets.definitions", "-j", "customers_training", "-c"]
    return {
        "mlops --help": watch("mlops_assets.cli", "main", "--help"),
        "first mlops run": watch("mlops_assets.cli", "main", "run"),
        "unchanged mlops run": watch("mlops_assets.cli", "main", "run"),
        "import mlops_assets.definitions": watch("mlops_assets.definitions"),
        **{
            f"unchanged job, {executor}": watch(
                "dagster._cli", "main", *job, str(folder / f"{executor}.yaml")
            )
            for executor in ("in_process", "forkserver")
        },
    }


def test_these_processes_are_started(watched: dict[str, Watched]) -> None:
    for command, budget in PROCESSES.items():
        within(command, Counter(watched[command].started), Counter(budget), "PROCESSES")


def test_these_packages_are_imported(watched: dict[str, Watched]) -> None:
    for command, budget in PACKAGES.items():
        within(command, Counter(watched[command].packages), Counter(budget), "PACKAGES")


def test_these_modules_of_ours_are_imported(watched: dict[str, Watched]) -> None:
    for command, budget in OURS.items():
        within(command, Counter(watched[command].ours), Counter(budget), "OURS")


def test_a_day_is_scored_with_this_many_requests(
    folder: Path, watched: dict[str, Watched], calls: list[str]
) -> None:
    assert watched["first mlops run"].started, "the run has left a champion"
    with instance_of(folder / "home") as instance:
        project = Project(folder, instance)
        put(project, f"{DAY}/a.csv", "age,plan\n60,plus\n")
        job = project.definitions().resolve_job_def("customers_scoring")
        for constant, budget in (("SCORED", SCORED), ("SCORED_AGAIN", SCORED_AGAIN)):
            calls.clear()
            assert job.execute_in_process(instance=instance, partition_key=DAY).success
            within("scoring a day", Counter(calls), budget, constant)
