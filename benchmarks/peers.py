"""The same iris job in other tools, beside the bare script and this project.

    python -m benchmarks.peers --install            # all of them, or some by name
    python -m benchmarks.peers --rounds 3 --only kedro prefect

Each tool does the work of `peer_jobs/work.py` on the same file, in an environment of its own and as
its users would write it: `peer_jobs/`. A command is measured as a whole process, from nothing and
again right afterwards. What is created once on a machine, such as a tool's database, is there
before. One more time, not timed, each is watched: which processes it starts, what memory they take,
and which steps run again when the file's time or its content has changed.

What is not installed is left out; nothing is installed but by `--install`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import Cost, Spread, cost_of, table, timed, watched

ROOT = Path(__file__).resolve().parent.parent
JOBS = ROOT / "benchmarks" / "peer_jobs"
ENVIRONMENTS = ROOT / ".mlops" / "peers"
BARE, TRACKED, OURS = "bare script", "bare script with MLflow", "this project, with MLflow"
FIRST, UNCHANGED, TOUCHED, CHANGED = "first", "unchanged", "touched", "changed"
MISNAMED = 3  # in the changed file every third versicolor is called virginica


@dataclass(frozen=True)
class Peer:
    """How the job is run by one tool.

    In commands and variables ``{bin}`` is where the tool's programs are, ``{home}`` the folder in
    which commands run, ``{jobs}`` and ``{root}`` where the jobs and this project are.
    """

    first: str
    """What a user types."""
    again: str = ""
    """What a user types when it ran before; by default the same."""
    environment: str = ""
    """The tool's environment and list of requirements; by default those of this project."""
    package: str = ""
    """The distribution whose version is shown."""
    prepare: tuple[str, ...] = ()
    """What is done once, and not measured."""
    variables: Mapping[str, str] = field(default_factory=dict)


_MLFLOW = """{bin}/python -c 'import mlflow; mlflow.MlflowClient().search_experiments()'"""
_TRACKING = {"MLFLOW_TRACKING_URI": "sqlite:///{home}/mlflow.db"}
_DAGSTER = {"DAGSTER_HOME": "{home}/dagster", "DAGSTER_DISABLE_TELEMETRY": "yes"}
_KEDRO = Peer(
    first="{bin}/kedro run",
    environment="kedro",
    package="kedro",
    prepare=("cp -r {jobs}/kedro_project/. .",),
    variables={"KEDRO_DISABLE_TELEMETRY": "1"},
)
_METAFLOW = Peer(
    first="{bin}/python metaflow_flow.py run",
    environment="metaflow",
    package="metaflow",
    prepare=("cp {jobs}/metaflow_flow.py .",),
    variables={"USERNAME": "benchmark"},
)

PEERS = {
    BARE: Peer(
        first="{bin}/python bare.py",
        prepare=("cp {jobs}/bare.py .", "{bin}/python -c 'import matplotlib.font_manager'"),
    ),
    TRACKED: Peer(
        first="{bin}/python {root}/benchmarks/bare_iris.py results",
        prepare=(_MLFLOW,),
        variables=_TRACKING,
    ),
    OURS: Peer(
        first="{bin}/mlops run iris --json",
        prepare=(
            "cp {jobs}/iris.yaml .",
            "mkdir dagster",
            "cp {root}/dagster.yaml dagster",
            "{bin}/dagster run list",
            _MLFLOW,
        ),
        variables={
            **_TRACKING,
            **_DAGSTER,
            "MLOPS_PIPELINES": "{home}/iris.yaml",
            "MLOPS_STORE_URL": "{home}/store",
        },
    ),
    "Dagster, in-process": Peer(
        first="{bin}/dagster job execute -f dagster_job.py -j iris",
        environment="dagster",
        package="dagster",
        prepare=(
            "cp {jobs}/dagster_job.py .",
            "mkdir dagster",
            "touch dagster/dagster.yaml",
            "{bin}/dagster run list",
        ),
        variables=_DAGSTER,
    ),
    "Kedro": _KEDRO,
    "Kedro, `--only-missing-outputs`": replace(
        _KEDRO, again="{bin}/kedro run --only-missing-outputs"
    ),
    "Airflow, `dags test`": Peer(
        first="{bin}/airflow dags test iris",
        environment="airflow",
        package="apache-airflow",
        prepare=("cp {jobs}/airflow_dag.py .", "{bin}/airflow db migrate"),
        variables={
            "AIRFLOW_HOME": "{home}/airflow",
            "AIRFLOW__CORE__DAGS_FOLDER": "{home}",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "false",
        },
    ),
    "Kubeflow Pipelines, local": Peer(
        first="{bin}/python kubeflow_pipeline.py",
        environment="kubeflow",
        package="kfp",
        prepare=("cp {jobs}/kubeflow_pipeline.py .",),
    ),
    "Metaflow": _METAFLOW,
    "Metaflow, `resume`": replace(_METAFLOW, again="{bin}/python metaflow_flow.py resume"),
    "Prefect": Peer(
        first="{bin}/python prefect_flow.py",
        environment="prefect",
        package="prefect",
        prepare=("cp {jobs}/prefect_flow.py .", "{bin}/prefect server database upgrade -y"),
        variables={
            "PREFECT_HOME": "{home}/prefect",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        },
    ),
    "ZenML": Peer(
        first="{bin}/python zenml_pipeline.py",
        environment="zenml",
        package="zenml",
        prepare=("cp {jobs}/zenml_pipeline.py .", "{bin}/zenml init"),
        variables={"ZENML_CONFIG_PATH": "{home}/zenml", "ZENML_ANALYTICS_OPT_IN": "false"},
    ),
}
NAMES = sorted({peer.environment for peer in PEERS.values()} - {""})


def main() -> None:
    """Install, or measure and print the tables, as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--install", nargs="*", choices=NAMES, metavar="NAME")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: 1 or more is allowed")
    if options.install is not None:
        for name in options.install or NAMES:
            install(name)
    else:
        print(report(measure(options.rounds, options.only)))


# --- environments -------------------------------------------------------------------------------


def install(name: str) -> None:
    """Make a tool's environment from its pinned requirements."""
    folder, wanted = ENVIRONMENTS / name, requirements(name)
    print(f"installing {name} into {folder}", file=sys.stderr)
    uv = [sys.executable, "-m", "uv"]
    packages = ["--compile-bytecode", "--requirement", str(wanted)]
    for command in (
        [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [*uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), *packages],
    ):
        subprocess.run(command, check=True)
    shutil.copy(wanted, folder / "installed.txt")


def is_installed(name: str) -> bool:
    """Whether an environment has all that is required now."""
    installed = ENVIRONMENTS / name / "installed.txt"
    return installed.exists() and installed.read_text() == requirements(name).read_text()


def requirements(name: str) -> Path:
    """Return a tool's list of pinned packages."""
    return JOBS / "requirements" / f"{name}.txt"


def title(name: str) -> str:
    """Return a tool's name with its version."""
    peer = PEERS[name]
    if not peer.package:
        return name
    pin = rf"^{peer.package}==(\S+)"
    [version] = re.findall(pin, requirements(peer.environment).read_text(), re.MULTILINE)
    first, comma, more = name.partition(",")
    return f"{first} {version}{comma}{more}"


# --- measuring ----------------------------------------------------------------------------------


def measure(rounds: int, environments: Iterable[str] = NAMES) -> dict[str, Any]:
    """Watch each tool once, then time all of them in turn, round by round.

    Returns
    -------
    dict
        ``missing`` tools; ``costs`` by tool and run; ``watched``, the processes and the memory of a
        first run by tool; ``ran``, the steps by tool and run.
    """
    here = {name for name in environments if is_installed(name)}
    flowers = iris()
    costs: dict[str, dict[str, list[Cost]]] = {}
    places: dict[str, Place] = {}
    seen: dict[str, Any] = {}
    ran: dict[str, dict[str, Ran]] = {}
    with TemporaryDirectory(prefix="peers-") as folder:
        for name, peer in PEERS.items():
            if peer.environment and peer.environment not in here:
                continue
            place = places[name] = Place.new(peer, Path(folder, f"{len(places)}"))
            seen[name], ran[name] = place.watch(flowers)
            _require_the_same(name, ran)
            costs[name] = {FIRST: [], UNCHANGED: []}
            print(f"{name}: watched", file=sys.stderr)
        for number in range(rounds):
            for name in sorted(places, key=list(places).index, reverse=number % 2 == 1):
                place = places[name]
                place.begin(flowers)
                for run in (FIRST, UNCHANGED):
                    cost, ran[name][run] = place.run(again=run == UNCHANGED)
                    costs[name][run].append(cost)
                _require_the_same(name, ran)
                print(f"peers, round {number + 1} of {rounds}, {name}: done", file=sys.stderr)
    missing = [name for name in environments if name not in here]
    return {"missing": missing, "costs": costs, "watched": seen, "ran": ran}


def iris(misnamed: int = 0) -> str:
    """Return the flowers as CSV; of versicolor one in `misnamed` is called virginica."""
    from sklearn.datasets import load_iris

    bunch = load_iris()
    names = [name.removesuffix(" (cm)").replace(" ", "_") for name in bunch.feature_names]
    lines = [",".join([*names, "species"])]
    for row, (numbers, kind) in enumerate(zip(bunch.data, bunch.target, strict=True)):
        other = misnamed and kind == 1 and row % misnamed == 0
        lines.append(",".join([*map(str, numbers), bunch.target_names[2 if other else kind]]))
    return "\n".join(lines) + "\n"


def _require_the_same(name: str, ran: Mapping[str, Mapping[str, Ran]]) -> None:
    """End the benchmark when a tool has computed something else than the script."""
    mine, expected = ran[name][FIRST].accuracy, ran[BARE][FIRST].accuracy
    if mine != expected:
        raise SystemExit(f"{name}: an accuracy of {mine} where the bare script has {expected}")


@dataclass(frozen=True)
class Ran:
    """What a run has done."""

    steps: list[str]
    accuracy: float | None
    """Of the model; None when nothing was told of it."""


@dataclass(frozen=True)
class Place:
    """Where one tool works: always the same path, as absolute ones get into its database."""

    peer: Peer
    folder: Path
    """Has ``home``, and ``prepared``: what ``home`` is at the beginning."""

    @classmethod
    def new(cls, peer: Peer, folder: Path) -> Place:
        """Have everything done that is not measured."""
        place = cls(peer, folder)
        place.home.mkdir(parents=True)
        for command in ("cp {jobs}/work.py .", *peer.prepare):
            cost_of(place.words(command), place.environment, place.home)
        shutil.copytree(place.home, folder / "prepared")
        return place

    @property
    def home(self) -> Path:
        """Folder in which commands run."""
        return self.folder / "home"

    @property
    def environment(self) -> dict[str, str]:
        """All variables: those of the tool, and what every process needs."""
        return {
            "PATH": self.fill("{bin}:") + os.defpath,
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(self.home),
            "MPLCONFIGDIR": str(self.folder.parent / "matplotlib"),  # where its list of fonts is
            "DO_NOT_TRACK": "1",
            "IRIS_CSV": str(self.home / "iris.csv"),
            "PEERS_TRACE": str(self.home / "trace.jsonl"),
            **{name: self.fill(value) for name, value in self.peer.variables.items()},
        }

    def begin(self, flowers: str) -> None:
        """Forget all runs."""
        shutil.rmtree(self.home)
        shutil.copytree(self.folder / "prepared", self.home)
        (self.home / "iris.csv").write_text(flowers)

    def watch(self, flowers: str) -> tuple[dict[str, Any], dict[str, Ran]]:
        """See what a first run takes, and what runs again when the input changes."""
        self.begin(flowers)
        first = watched(self.words(self.peer.first), self.environment, self.home)
        ran = {FIRST: self.ran(first.output)}
        (self.home / "iris.csv").touch()
        ran[TOUCHED] = self.run(again=True)[1]
        (self.home / "iris.csv").write_text(iris(MISNAMED))
        ran[CHANGED] = self.run(again=True)[1]
        return {"started": first.started, "peak": first.peak}, ran

    def run(self, *, again: bool) -> tuple[Cost, Ran]:
        """Run the job, for the first time or again."""
        command = self.peer.again if again and self.peer.again else self.peer.first
        cost, output = timed(self.words(command), self.environment, self.home)
        return cost, self.ran(output)

    def ran(self, output: str) -> Ran:
        """Return what has run since this was asked last, by its trace or by our own summary."""
        trace = self.home / "trace.jsonl"
        if self.peer is PEERS[OURS]:
            told = json.loads(output.splitlines()[-1])["pipelines"]["iris"]
            return Ran(told["executed"], told["metrics"]["accuracy"])
        if self.peer is PEERS[TRACKED]:
            return Ran([], json.loads(output.splitlines()[0])["accuracy"])
        lines = trace.read_text().splitlines() if trace.exists() else []
        trace.unlink(missing_ok=True)
        steps = [json.loads(line) for line in lines]
        accuracy = next((step["accuracy"] for step in steps if "accuracy" in step), None)
        return Ran([step["step"] for step in steps], accuracy)

    def words(self, command: str) -> list[str]:
        """Return the words of a command of the table."""
        return [self.fill(word) for word in shlex.split(command)]

    def fill(self, text: str) -> str:
        """Put the paths into a text of the table."""
        environment = self.peer.environment
        programs = (
            ENVIRONMENTS / environment / "bin" if environment else Path(sys.executable).parent
        )
        return text.format(bin=programs, home=self.home, jobs=JOBS, root=ROOT)


# --- telling ------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    costs, ran = results["costs"], results["ran"]
    wall = {
        name: {run: Spread.of(cost.wall for cost in taken) for run, taken in runs.items()}
        for name, runs in costs.items()
    }
    cpu = {
        name: {run: Spread.of(cost.cpu for cost in taken) for run, taken in runs.items()}
        for name, runs in costs.items()
    }

    def ratios(name: str, run: str, to: str = BARE) -> str:
        of_wall = wall[name][run].median / wall[to][run].median
        return f"{of_wall:.2f}, {cpu[name][run].median / cpu[to][run].median:.2f}"

    times = [
        (
            title(name),
            *(wall[name][FIRST], cpu[name][FIRST], ratios(name, FIRST)),
            *(wall[name][UNCHANGED], cpu[name][UNCHANGED], ratios(name, UNCHANGED)),
            f"{results['watched'][name]['peak']:,.0f}",
            len(results["watched"][name]["started"]),
        )
        for name in costs
    ]
    of_a_run = ("wall s", "CPU s", "both / bare")
    told = [
        table(
            [
                "",
                *(f"first: {one}" for one in of_a_run),
                *(f"unchanged: {one}" for one in of_a_run),
                "first: peak MB",
                "first: processes started",
            ],
            times,
        ),
        f"This project to the bare script with MLflow (wall, CPU): {ratios(OURS, FIRST, TRACKED)} "
        f"first, {ratios(OURS, UNCHANGED, TRACKED)} unchanged.",
        table(
            [
                "what runs again",
                "nothing changed",
                "only the file's time changed",
                "the file's content changed",
                "notices changed data",
                "reuses by",
            ],
            [(title(name), *_told_of(ran, name)) for name in costs if name != TRACKED],
        ),
    ]
    if missing := ", ".join(results["missing"]):
        install = "`python -m benchmarks.peers --install` installs them"
        told.append(f"Not installed, and left out: {missing}. {install}.")
    return "\n\n".join(told)


def _told_of(ran: Mapping[str, Mapping[str, Ran]], name: str) -> tuple[str, ...]:
    """Return the cells of a tool in the table of what runs again."""
    runs = ran[name]

    def steps(run: str) -> str:
        mine, all_of_them = runs[run].steps, runs[FIRST].steps
        return "all" if len(mine) == len(all_of_them) else ", ".join(mine) or "nothing"

    notices = runs[CHANGED].accuracy == ran[BARE][CHANGED].accuracy
    reuses = "content" if notices else "existence"
    if steps(TOUCHED) != steps(UNCHANGED):
        reuses = "time"
    if steps(UNCHANGED) == "all":
        reuses = ""
    told = (steps(run) for run in (UNCHANGED, TOUCHED, CHANGED))
    return (*told, "yes" if notices else "no", reuses)


if __name__ == "__main__":
    main()
