"""Which errors are worth another try, whatever library they come from."""

from __future__ import annotations

import errno
import importlib
import io
import json
from concurrent.futures.process import BrokenProcessPool
from http.client import IncompleteRead, RemoteDisconnected
from pathlib import Path
from urllib.error import HTTPError, URLError

import pyarrow as pa
import pytest
import requests
import sqlalchemy
import urllib3
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from kubernetes.client import ApiException
from mlflow.exceptions import MlflowException
from skops.io.exceptions import UntrustedTypesFoundException

from mlops_assets.errors import DataError, ModelError, StoreError
from mlops_assets.retries import STATUS_OF, TABLE, may_pass
from mlops_assets.store.artifacts import MissingArtifactError
from mlops_assets.store.objects import StoreUnavailableError
from mlops_assets.time_limit import StepTimeoutError

NAMES = [name for rule in TABLE for name in rule.errors]
ELSEWHERE = ("azure.", "gcsfs.", "google.api_core.", "httpx.")
"""Packages that users may have and this project does not."""


def answered(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


def aws(code: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "GetObject",
    )


def raised_from(error: Exception, cause: Exception) -> Exception:
    try:
        raise error from cause
    except Exception as raised:
        return raised


def raised_while_handling(error: Exception, first: Exception) -> Exception:
    try:
        try:
            raise first
        except Exception:
            raise error  # noqa: B904 - that is the case
    except Exception as raised:
        return raised


LOCKED = sqlalchemy.exc.OperationalError("INSERT", {}, Exception("database is locked"))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        RemoteDisconnected(),
        IncompleteRead(b""),
        URLError("no route"),
        urllib3.exceptions.ProtocolError(),
        requests.ConnectionError(),
        requests.Timeout(),
        EndpointConnectionError(endpoint_url="http://localhost"),
        StoreUnavailableError(),
        OSError(errno.EIO, "input/output error"),
        TimeoutError(),
        StepTimeoutError(),
        answered(429),
        answered(408),
        answered(500),
        answered(503),
        answered(520),
        HTTPError("http://localhost", 502, "", None, io.BytesIO()),  # type: ignore[arg-type]
        ApiException(status=429),
        MlflowException("of the server"),
        aws("SlowDown", 503),
        aws("RequestTimeout", 400),
        LOCKED,
        MemoryError(),
        pa.ArrowMemoryError(),
        BrokenProcessPool(),
        RuntimeError("of a library that nobody knows"),
        raised_from(ValueError("not read"), ConnectionResetError()),
        raised_while_handling(KeyError("while cleaning up"), ConnectionResetError()),
    ],
    ids=repr,
)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        DataError("bad data"),
        ModelError("a parameter"),
        MissingArtifactError("a missing object"),
        raised_from(StoreError("explained"), ConnectionResetError()),
        FileNotFoundError(),
        PermissionError(),
        NoCredentialsError(),
        answered(401),
        answered(404),
        answered(501),
        requests.exceptions.MissingSchema(),
        aws("NoSuchKey", 404),
        ApiException(status=422),
        MlflowException.invalid_parameter_value("no"),
        sqlalchemy.exc.ProgrammingError("SELCT", {}, Exception("syntax error")),
        UntrustedTypesFoundException(["os.system"]),
        pa.ArrowInvalid(),
        json.JSONDecodeError("no", "", 0),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
        TypeError(),
        ValueError(),
        KeyError(),
        IndexError(),
        AttributeError(),
        ModuleNotFoundError(),
        AssertionError(),
        NameError(),
        ZeroDivisionError(),
        NotImplementedError(),
        RecursionError(),
        raised_from(RuntimeError("of a library"), TypeError()),
    ],
    ids=repr,
)
def test_what_is_wrong_stays_wrong_and_is_not_tried_again(error: Exception) -> None:
    assert not may_pass(error)


def test_errors_that_were_raised_from_each_other_are_looked_at_once() -> None:
    first, second = RuntimeError(), ConnectionError()
    first.__cause__, second.__cause__ = second, first
    assert may_pass(first)


@pytest.mark.parametrize(
    "name", [name for name in [*NAMES, *STATUS_OF] if not name.startswith(ELSEWHERE)]
)
def test_every_class_of_the_table_is_there_by_this_name(name: str) -> None:
    module, _, class_name = name.rpartition(".")
    found = getattr(importlib.import_module(module or "builtins"), class_name)
    assert issubclass(found, Exception)
    assert f"{found.__module__}.{found.__qualname__}".removeprefix("builtins.") == name


def test_no_class_is_in_two_rows() -> None:
    assert len(NAMES) == len({*NAMES})


def test_the_documentation_has_the_table() -> None:
    lines = [
        f"| {rule.what} | {', '.join(f'`{name}`' for name in rule.errors)} "
        f"| {'tried again' if rule.retried else 'once'} |"
        for rule in TABLE
    ]
    assert "\n".join(lines) in (Path(__file__).parents[1] / "docs" / "retries.md").read_text()
