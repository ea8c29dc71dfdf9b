"""S3-compatible servers to measure against, on this machine.

moto's, which is written in Python and answers some hundreds of requests a second, and versitygw
where that is installed; or else the server of `MLOPS_TEST_S3_ENDPOINT_URL`, which has a bucket
`benchmark`, with the credentials of the environment.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mlops_assets_tests.servers import free_port, moto_server, running

BUCKET = "benchmark"
ENDPOINT = "MLOPS_TEST_S3_ENDPOINT_URL"
MOTO = "moto"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}


def s3_servers(folder: Path) -> dict[str, AbstractContextManager[str]]:
    """Return the servers that there are here, the fastest one last; each gives its URL."""
    if given := os.environ.get(ENDPOINT):
        return {_name(given): nullcontext(given)}
    servers: dict[str, AbstractContextManager[str]] = {MOTO: moto(folder / "moto.log")}
    if shutil.which("versitygw"):
        servers["versitygw"] = _versitygw(folder / "versitygw.log")
    return servers


def _name(endpoint: str) -> str:
    """Return what a server calls itself, which it does when it refuses a request, too."""
    try:
        with urlopen(endpoint) as answer:
            headers = answer.headers
    except HTTPError as error:
        headers = error.headers
    return str(headers.get("Server", endpoint))


@contextmanager
def moto(log: Path) -> Iterator[str]:
    """Start moto's server, which writes a line for each request into its log."""
    os.environ |= CREDENTIALS
    with moto_server(log) as endpoint:
        urlopen(Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
        yield endpoint


@contextmanager
def _versitygw(log: Path) -> Iterator[str]:
    """Start a gateway, in Go, to a folder: each folder in it is a bucket."""
    os.environ |= CREDENTIALS
    buckets = log.with_name("buckets")
    (buckets / BUCKET).mkdir(parents=True)
    port = free_port()
    command = ["versitygw", "--quiet", "--port", f"127.0.0.1:{port}"]
    command += ["--access", "testing", "--secret", "testing", "posix", str(buckets)]
    with running(command, port, log) as endpoint:
        yield endpoint
