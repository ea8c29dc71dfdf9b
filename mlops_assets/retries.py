"""Which errors are worth another try: one table for every step, whoever wrote its code.

Classes are named, so that nothing is imported to tell. `mlops_assets.failures` acts on it, and
docs/retries.md prints it.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from operator import attrgetter
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What is done about errors of some classes, and of those derived from them."""

    what: str
    errors: tuple[str, ...]
    """Full names of classes, those of Python itself without `builtins`."""
    retried: bool


TABLE = (
    Rule(
        "a mistake that says what to mend: bad data, a bad file or pipeline file, a missing or "
        "damaged object, a type that is never stored",
        ("mlops_assets.errors.UserError",),
        retried=False,
    ),
    Rule(
        "an attempt took longer than `timeout`",
        ("mlops_assets.time_limit.StepTimeoutError",),
        retried=True,
    ),
    Rule(
        "the network, a server or a disk fails; a time-out",
        (
            "OSError",
            "aiohttp.client_exceptions.ClientError",
            "azure.core.exceptions.ServiceRequestError",
            "azure.core.exceptions.ServiceResponseError",
            "botocore.exceptions.ConnectionError",
            "botocore.exceptions.HTTPClientError",
            "google.api_core.exceptions.RetryError",
            "google.auth.exceptions.TransportError",
            "http.client.HTTPException",
            "httpx.TransportError",
            "obstore.exceptions.GenericError",
            "urllib3.exceptions.HTTPError",
        ),
        retried=True,
    ),
    Rule(
        "a database is locked or away",
        (
            "optuna.exceptions.StorageInternalError",
            "psycopg2.InterfaceError",
            "psycopg2.OperationalError",
            "sqlalchemy.exc.InterfaceError",
            "sqlalchemy.exc.OperationalError",
            "sqlalchemy.exc.TimeoutError",
            "sqlite3.OperationalError",
        ),
        retried=True,
    ),
    Rule(
        "out of memory, on the GPU too; a process of the step's own was lost",
        (
            "MemoryError",
            "concurrent.futures._base.BrokenExecutor",
            "xgboost.core.XGBoostError",
        ),
        retried=True,
    ),
    Rule(
        "a file or object that is not there, or that this user may not use",
        (
            "FileExistsError",
            "FileNotFoundError",
            "IsADirectoryError",
            "NotADirectoryError",
            "PermissionError",
            "botocore.exceptions.NoCredentialsError",
            "obstore.exceptions.NotFoundError",
            "obstore.exceptions.PermissionDeniedError",
            "obstore.exceptions.UnauthenticatedError",
        ),
        retried=False,
    ),
    Rule(
        "a file that is not what it says, an address that is none, a certificate that is refused",
        (
            "_lzma.LZMAError",
            "aiohttp.client_exceptions.InvalidURL",
            "gzip.BadGzipFile",
            "http.client.InvalidURL",
            "requests.exceptions.InvalidSchema",
            "requests.exceptions.InvalidURL",
            "requests.exceptions.MissingSchema",
            "ssl.SSLCertVerificationError",
            "yaml.error.YAMLError",
            "zipfile.BadZipFile",
            "zlib.error",
        ),
        retried=False,
    ),
    Rule(
        "a database refuses what is asked",
        (
            "sqlalchemy.exc.DataError",
            "sqlalchemy.exc.IntegrityError",
            "sqlalchemy.exc.ProgrammingError",
            "sqlite3.IntegrityError",
            "sqlite3.ProgrammingError",
        ),
        retried=False,
    ),
    Rule(
        "a defect of the code, or values that it does not take",
        (
            "ArithmeticError",
            "AssertionError",
            "AttributeError",
            "ImportError",
            "LookupError",
            "NameError",
            "NotImplementedError",
            "RecursionError",
            "SyntaxError",
            "TypeError",
            "ValueError",
        ),
        retried=False,
    ),
)
"""What counts is the class of an error, or else the nearest of those that it is derived from.
An error in no row may pass, and is tried again."""

STATUS_OF = {
    "aiohttp.client_exceptions.ClientResponseError": "status",
    "azure.core.exceptions.HttpResponseError": "status_code",
    "botocore.exceptions.ClientError": "response",
    "gcsfs.retry.HttpError": "code",
    "google.api_core.exceptions.GoogleAPICallError": "code",
    "httpx.HTTPStatusError": "response.status_code",
    "kubernetes.client.exceptions.ApiException": "status",
    "mlflow.exceptions.MlflowException": "get_http_status_code",
    "requests.exceptions.HTTPError": "response.status_code",
    "urllib.error.HTTPError": "code",
}
"""Where errors that a server answered with have its HTTP status, by class."""

RETRIED_STATUSES = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
"""HTTP statuses of what may pass: throttling, time-outs, conflicts, servers in trouble. So may
those from 506 on, which some providers have."""

THROTTLED = frozenset(
    (
        "BandwidthLimitExceeded",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    )
)
"""Codes of AWS for what may pass, some of which come with the status 400."""

_BY_NAME = {name: rule.retried for rule in TABLE for name in rule.errors}


def may_pass(error: BaseException) -> bool:
    """Say whether what raised this error may succeed when it is tried again.

    A mistake that was explained is one whatever it was raised from. Of another error and those that
    it was raised from, one that may pass is enough.
    """
    from mlops_assets.errors import UserError

    if isinstance(error, UserError):
        return False
    verdicts = [_verdict(one) for one in _chain(error)]
    return True in verdicts or False not in verdicts


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, as a stack trace shows them."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _verdict(error: BaseException) -> bool | None:
    """Return whether an error by itself may pass; None for one that is in no row."""
    for kind in type(error).__mro__:
        name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        if name in STATUS_OF and (passes := _status_passes(error, STATUS_OF[name])) is not None:
            return passes
        if name in _BY_NAME:
            return _BY_NAME[name]
    return None


def _status_passes(error: BaseException, where: str) -> bool | None:
    """Return whether the status that a server answered with may pass; None without a status."""
    try:
        found: Any = attrgetter(where)(error)
        found = found() if callable(found) else found
        if isinstance(found, dict):  # of AWS
            if found["Error"]["Code"] in THROTTLED:
                return True
            found = found["ResponseMetadata"]["HTTPStatusCode"]
        status = int(found)
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
    return status in RETRIED_STATUSES or status > HTTPStatus.HTTP_VERSION_NOT_SUPPORTED
