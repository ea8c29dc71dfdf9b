"""Secrets are planted wherever the project takes them, and everything is run.

Then all that was said or left behind is searched for them: logs, metadata, databases, the store,
MLflow, outputs, and what the UI is answered.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest

from mlops_assets_tests.conftest import DUMMY, write_customers
from mlops_assets_tests.servers import free_port, stop_group, wait_for

ROOT = Path(__file__).parents[2]
DAY = "2026-01-31"

PLACES = (
    "data-password",
    "data-signature",
    "score-password",
    "score-signature",
    "tracking-password",
    "alerts-password",
    "aws-key",
    "aws-secret",
    "environment-of-a-command",
)
SECRETS = {place: f"planted-{place}-hunter2" for place in PLACES}


def address(port: int, path: str, of: str) -> str:
    user, query = SECRETS[f"{of}-password"], SECRETS[f"{of}-signature"]
    return f"http://me:{user}@127.0.0.1:{port}/{path}?X-Amz-Signature={query}"


class Source(BaseHTTPRequestHandler):
    """Gives the customers to those who know the password, and errors for other names."""

    content = b""
    seen: ClassVar[list[str]] = []
    status: ClassVar[dict[str, int]] = {"/gone.csv": 404, "/refused.csv": 403, "/broken.csv": 500}

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.seen.append(f"{self.path} {self.headers.get('Authorization')}")
        status = self.status.get(self.path.partition("?")[0], 200)
        body = self.content if status == 200 else b"no"
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def source(folder: Path) -> Iterator[int]:
    write_customers(folder / "customers.csv")
    Source.content = (folder / "customers.csv").read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Source) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def started(port: int, command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        env=env,
        cwd=log.parent,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(port, seconds=300)
        yield
    finally:
        stop_group(process)


@dataclass
class Told:
    """What was said, by whom, and the folder with all that was left behind."""

    folder: Path
    said: dict[str, str] = field(default_factory=dict)
    listens_on: set[str] = field(default_factory=set)
    """Addresses of the web server, which was started as `make dev` does, without naming one."""

    def texts(self) -> Iterator[tuple[str, bytes]]:
        for name, text in self.said.items():
            yield name, text.encode()
        left = [self.folder / name for name in ("dagster", "store", "mlflow", "ui.log")]
        files = [file for path in left for file in [path, *path.rglob("*")] if file.is_file()]
        for file in files:
            yield str(file.relative_to(self.folder)), file.read_bytes()
            if file.suffix == ".parquet":  # its text is compressed
                rows = pq.ParquetFile(file).read().to_pylist()
                yield f"rows of {file.relative_to(self.folder)}", repr(rows).encode()


def pipelines(folder: Path, port: int) -> None:
    """Write pipelines that work, and some for each way in which their source does not."""
    here = address(port, "customers.csv", "data")
    scored = DUMMY.replace("customers.csv", here) + (
        f"score: {{uri: '{address(port, '{date}/customers.csv', 'score')}', start: {DAY}}}\n"
    )
    dead = free_port()
    sources = {
        "gone": address(port, "gone.csv", "data"),
        "refused": address(port, "refused.csv", "data"),
        "broken_server": address(port, "broken.csv", "data"),
        "away": address(dead, "customers.csv", "data"),
        "away_unsigned": address(dead, "customers.csv", "data").partition("?")[0],
        "bucket": "s3://bucket/customers.csv",
        "no_table": address(port, "customers.parquet", "data"),
    }
    texts = {name: DUMMY.replace("customers.csv", uri) for name, uri in sources.items()}
    texts["wrong"] = DUMMY.replace("customers.csv", address(port, "customers.xls", "data"))
    texts["command"] = "steps: {call: {command: 'test -n \"$SERVICE_TOKEN\" && echo done'}}"
    for name, text in {"customers": scored, **texts}.items():
        retries = "retries: {max: 0, delay: 0}\n"
        (folder / f"{name}.yaml").write_text(f"{text.rstrip()}\n{retries}")


QUERIES = {
    "resources": """{ allTopLevelResourceDetailsOrError(repositorySelector: {
        repositoryName: "__repository__", repositoryLocationName: "mlops_assets"}) {
        ... on ResourceDetailsList { results { name description
          configFields { name description defaultValueAsJson }
          configuredValues { key value type } } } } }""",
    "runs": """{ runsOrError { ... on Runs { results { runId status runConfigYaml
        tags { key value } } } } }""",
    "assets": """{ assetNodes { id description
        metadataEntries { __typename label description ... on TextMetadataEntry { text } }
        assetMaterializations { metadataEntries { __typename label description
          ... on TextMetadataEntry { text } ... on UrlMetadataEntry { url }
          ... on MarkdownMetadataEntry { mdStr } ... on PathMetadataEntry { path }
          ... on JsonMetadataEntry { jsonString } } } } }""",
    "instance": "{ instance { info } }",
    "jobs": """{ workspaceOrError { ... on Workspace { locationEntries {
        locationOrLoadError { ... on RepositoryLocation { repositories {
          displayMetadata { key value }
          jobs { name description } sensors { name description metadata { assetKeys { path } } }
          schedules { name description } } } ... on PythonError { message } } } } } }""",
}
LOGS = """query($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events {
    __typename ... on MessageEvent { message }
    ... on ExecutionStepFailureEvent { error { ...error errorChain { error { ...error } } }
      failureMetadata { description } } } } } }
    fragment error on PythonError { message stack className }"""
TICK = """mutation { sensorDryRun(selectorData: { sensorName: "run_failure_alerts",
    repositoryName: "__repository__", repositoryLocationName: "mlops_assets" }, cursor: null) {
    ... on DryRunInstigationTick { evaluationResult { cursor skipReason
      error { message stack } runRequests { runKey } } }
    ... on PythonError { message stack } ... on SensorNotFoundError { message } } }"""


def asked(port: int, query: str, **variables: str) -> str:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        text: str = answer.read().decode()
    assert '"errors"' not in text, text
    return text


def listens_on(port: int) -> set[str]:
    """Return the addresses, of IPv4 and IPv6, on which a port is open."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, number = local.partition(":")
            if state == "0A" and int(number, 16) == port:
                packed = b"".join(
                    bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)
                )
                found.add(str(ip_address(packed)))
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, _empty_tracking_database: Path) -> Told:
    told = Told(tmp_path_factory.mktemp("secrets"))
    folder = told.folder
    for name in ("dagster", "pipelines", "mlflow"):
        (folder / name).mkdir()
    shutil.copy(ROOT / "dagster.yaml", folder / "dagster")
    shutil.copy(_empty_tracking_database, folder / "mlflow" / "mlflow.db")
    tracking, dead = free_port(), free_port()
    ours = ("MLOPS_", "MLFLOW_", "DAGSTER_", "AWS_")
    outside = {name: it for name, it in os.environ.items() if not name.startswith(ours)}
    env = {
        **outside,
        "DAGSTER_HOME": str(folder / "dagster"),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "MLOPS_PIPELINES": str(folder / "pipelines"),
        "MLOPS_STORE_URL": str(folder / "store"),
        "MLOPS_S3_ENDPOINT_URL": f"http://127.0.0.1:{dead}",
        "MLOPS_ALERT_URLS": f"json://me:{SECRETS['alerts-password']}@127.0.0.1:{dead}/path",
        "MLFLOW_TRACKING_URI": f"http://me:{SECRETS['tracking-password']}@127.0.0.1:{tracking}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "AWS_ACCESS_KEY_ID": SECRETS["aws-key"],
        "AWS_SECRET_ACCESS_KEY": SECRETS["aws-secret"],
        "SERVICE_TOKEN": SECRETS["environment-of-a-command"],
    }

    def run(*command: str, name: str = "", code: int = 0) -> str:
        program = str(Path(sys.executable).with_name(command[0]))
        done = subprocess.run(
            [program, *command[1:]], env=env, cwd=folder, capture_output=True, text=True
        )
        told.said[name or " ".join(command)] = done.stdout + done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    with source(folder) as port:
        pipelines(folder / "pipelines", port)
        server = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--workers",
            "1",
            "--port",
            str(tracking),
        ]
        database = ["--backend-store-uri", f"sqlite:///{folder}/mlflow/mlflow.db"]
        artifacts = ["--artifacts-destination", str(folder / "mlflow" / "artifacts")]
        log = folder / "mlflow.log"
        run("mlops", "plan", "--json", name="plan before", code=1)
        with started(tracking, [*server, *database, *artifacts], outside, log):
            run("mlops", "run", "customers", "command", "--json")
        # and once with MLflow away
        summary = json.loads(run("mlops", "run", "--refresh", "--json", code=1).splitlines()[-1])
        for pipeline in ("gone", "refused", "broken_server", "away", "away_unsigned", "bucket"):
            assert summary["pipelines"][pipeline]["failed"], summary
        assert not summary["pipelines"]["customers"]["failed"], summary
        day = json.dumps({"dagster/partition": DAY})
        job = ("-m", "mlops_assets.definitions", "-j", "customers_scoring", "--tags", day)
        run("dagster", "job", "execute", *job)
        run("mlops", "plan", "--json", name="plan after", code=1)
        run("mlops", "history", "customers/metrics")
        run("mlops", "schema")

        ui = free_port()
        web = [str(Path(sys.executable).with_name("dagster-webserver")), "--port", str(ui)]
        workspace = ["--workspace", str(ROOT / "workspace.yaml")]
        with started(ui, [*web, *workspace], env, folder / "ui.log"):
            told.listens_on = listens_on(ui)
            for name, query in QUERIES.items():
                told.said[f"UI: {name}"] = asked(ui, query)
            found = json.loads(told.said["UI: runs"])["data"]["runsOrError"]["results"]
            for one in found:
                told.said[f"UI: log of {one['runId']}"] = asked(ui, LOGS, run=one["runId"])
            told.said["UI: tick"] = asked(ui, TICK)
    return told


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_is_nowhere_but_where_it_was_given(told: Told, place: str) -> None:
    secret = SECRETS[place].encode()
    assert [name for name, text in told.texts() if secret in text] == []


def test_the_secrets_were_used_and_the_search_would_find_them(told: Told) -> None:
    names = {name for name, _ in told.texts()}
    assert {"mlflow/mlflow.db", "UI: resources", "UI: tick"} <= names
    assert any(name.startswith("dagster/history/runs") for name in names)
    assert any(name.startswith("dagster/storage") for name in names), "no compute logs"
    assert any(name.startswith("store/.memo/") for name in names)
    assert any(name.startswith("rows of store/customers/predictions/") for name in names)
    assert "MLFLOW_TRACKING_URI" in told.said["UI: resources"]
    assert "127.0.0.1" in told.said["UI: assets"]
    logs = "".join(text for name, text in told.said.items() if name.startswith("UI: log of"))
    for said in ("does not exist", "may not be read", "500", "Cannot connect", "customers.parquet"):
        assert said in logs
    assert told.listens_on == {"127.0.0.1"}
    used = "\n".join(Source.seen)
    assert SECRETS["data-signature"] in used
    assert SECRETS["score-signature"] in used
    planted = told.folder / "pipelines" / "customers.yaml"
    assert SECRETS["data-password"] in planted.read_text()
