"""The three places a store can be at: a local folder, memory, and a real S3-compatible server.

``MLOPS_TEST_S3_ENDPOINT_URL`` runs the S3 cases against a server of your own, with the credentials
of the environment; without it moto's server is started on a free port.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.store import ArtifactStore
from mlops_assets_tests.servers import moto_server

BUCKET = "mlops-assets-tests"
# Read at import: other fixtures clear the environment.
GIVEN_ENDPOINT = os.environ.get("MLOPS_TEST_S3_ENDPOINT_URL")
ACCESS_KEY = os.environ.get("AWS_ACCESS_KEY_ID", "testing")
SECRET_KEY = os.environ.get("AWS_SECRET_ACCESS_KEY", "testing")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3-compatible server that has the bucket `BUCKET`."""
    if GIVEN_ENDPOINT:
        make_bucket(GIVEN_ENDPOINT)
        yield GIVEN_ENDPOINT
        return
    with moto_server() as endpoint:
        make_bucket(endpoint)
        yield endpoint


@pytest.fixture
def s3_endpoint(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of the server, with the credentials for it in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    return s3_server


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """An empty store in each of the three places."""
    if request.param == "local":
        return ArtifactStore(str(tmp_path / "store"))
    if request.param == "memory":
        return ArtifactStore(f"memory://{uuid.uuid4().hex}")
    endpoint: str = request.getfixturevalue("s3_endpoint")
    return ArtifactStore(f"s3://{BUCKET}/{uuid.uuid4().hex}", endpoint)


@pytest.fixture
def local(tmp_path: Path) -> ArtifactStore:
    """An empty store in a local folder."""
    return ArtifactStore(str(tmp_path / "store"))


def s3_client(endpoint: str) -> Any:
    """Amazon's own client of the server, to look at the store from outside."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )


def make_bucket(endpoint: str) -> None:
    """Create `BUCKET` unless it exists."""
    client = s3_client(endpoint)
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
