"""The environment of the project, read and validated in this one place.

Every setting has a default that works on a laptop with nothing started. What a pipeline is belongs
in its pipeline file, not here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

from mlops_assets.errors import SettingsError
from mlops_assets.wording import redacted

Deployment = Literal["local", "k8s"]

PACKAGE = Path(__file__).resolve().parent
STORE_SCHEMES = ("s3", "gs", "abfs", "memory")


def project_folder() -> Path:
    """Return the checkout when the package runs from one, else the working directory."""
    checkout = PACKAGE.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


@dataclass(frozen=True)
class Settings:
    """Where the project runs, stores, tracks, and whom it alerts.

    Parameters
    ----------
    deployment : {"local", "k8s"}
        ``MLOPS_DEPLOYMENT``.
    store_url : str
        ``MLOPS_STORE_URL``: an absolute folder, or a URL of one of `STORE_SCHEMES`.
    s3_endpoint_url : str or None
        ``MLOPS_S3_ENDPOINT_URL``, for S3-compatible servers.
    tracking_uri : str
        ``MLFLOW_TRACKING_URI``.
    pipelines : str
        ``MLOPS_PIPELINES``: a folder or a glob of pipeline files.
    alert_urls : tuple of str
        ``MLOPS_ALERT_URLS``: Apprise URLs. They hold credentials: never shown.
    ui_url : str
        ``MLOPS_UI_URL``: where people reach Dagster's web server, for the links in alerts.
    """

    deployment: Deployment
    store_url: str
    s3_endpoint_url: str | None
    tracking_uri: str
    pipelines: str
    alert_urls: tuple[str, ...] = ()
    ui_url: str = "http://localhost:3000"

    def __repr__(self) -> str:
        """Show everything but the alert URLs."""
        return (
            f"Settings(deployment={self.deployment!r}, store_url={self.store_url!r}, "
            f"pipelines={self.pipelines!r}, alert_urls=<{len(self.alert_urls)}>)"
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from environment variables.

        Parameters
        ----------
        environment : mapping of str to str, optional
            Default: the process's own environment. An empty value counts as not set.

        Raises
        ------
        SettingsError
            A value is not allowed; the message names the variable, the value and what is allowed.
        """
        given = {
            name: value
            for name, value in (os.environ if environment is None else environment).items()
            if value.strip()
        }
        return cls(
            deployment=_deployment(given.get("MLOPS_DEPLOYMENT", "local")),
            store_url=_store_url(given.get("MLOPS_STORE_URL")),
            s3_endpoint_url=_endpoint_url(given.get("MLOPS_S3_ENDPOINT_URL")),
            tracking_uri=given.get("MLFLOW_TRACKING_URI", f"sqlite:///{local_state('mlflow.db')}"),
            pipelines=_pipelines(given.get("MLOPS_PIPELINES")),
            alert_urls=_alert_urls(given.get("MLOPS_ALERT_URLS", "")),
            ui_url=_ui_url(given.get("MLOPS_UI_URL", cls.ui_url)),
        )


def local_state(name: str) -> Path:
    """Return the path of something that the project keeps on this machine, ignored by git."""
    return project_folder() / ".mlops" / name


def _refuse(variable: str, value: str, allowed: str) -> SettingsError:
    return SettingsError(f"{variable}={redacted(value)!r}: {allowed}.")


def _deployment(value: str) -> Deployment:
    allowed = get_args(Deployment)
    if value not in allowed:
        near = get_close_matches(value, allowed, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise _refuse("MLOPS_DEPLOYMENT", value, f"allowed are {', '.join(allowed)}{hint}")
    return cast(Deployment, value)


def _store_url(value: str | None) -> str:
    if value is None:
        return str(local_state("store"))
    if "://" not in value:
        return str(Path(value).expanduser().absolute())
    parts = urlsplit(value)
    if parts.scheme == "file":
        return str(Path(parts.path).absolute())
    if parts.scheme not in STORE_SCHEMES:
        raise _refuse(
            "MLOPS_STORE_URL",
            value,
            f"allowed are a path or a URL of {', '.join(s + '://' for s in STORE_SCHEMES)}",
        )
    user = parts.netloc.rpartition("@")[0]
    is_container = parts.scheme == "abfs" and ":" not in user  # abfs://container@account
    if (user and not is_container) or parts.query or parts.fragment:
        raise _refuse(
            "MLOPS_STORE_URL",
            value,
            "credentials do not belong in the URL; give them the cloud's standard way",
        )
    if not parts.netloc and parts.scheme != "memory":
        raise _refuse(
            "MLOPS_STORE_URL", value, f"the bucket is missing: {parts.scheme}://bucket/prefix"
        )
    return value.rstrip("/")


def _endpoint_url(value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise _refuse(
            "MLOPS_S3_ENDPOINT_URL",
            value,
            "an http:// or https:// address is allowed, such as http://minio:9000",
        )
    if "@" in parts.netloc or parts.query:
        raise _refuse(
            "MLOPS_S3_ENDPOINT_URL",
            value,
            "credentials do not belong in the address; give them the standard AWS way",
        )
    return value.rstrip("/")


def _pipelines(value: str | None) -> str:
    return str(PACKAGE / "pipelines") if value is None else str(Path(value).expanduser().absolute())


def _alert_urls(value: str) -> tuple[str, ...]:
    urls = tuple(url.strip() for url in value.split(",") if url.strip())
    for position, url in enumerate(urls, start=1):
        if "://" not in url:
            raise SettingsError(
                f"MLOPS_ALERT_URLS: entry {position} of {len(urls)} is not a URL (its text is not "
                "shown, it may hold a password): Apprise URLs are allowed, separated by commas, "
                "such as slack://TokenA/TokenB/TokenC. A comma inside a URL is written %2C."
            )
    return urls


def _ui_url(value: str) -> str:
    allowed = "an http:// or https:// address is allowed, such as https://dagster.example.org"
    if "@" in value:
        raise _refuse("MLOPS_UI_URL", "…@…", "a link in an alert must not hold a password")
    try:
        parts = urlsplit(value)
        is_address = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise _refuse("MLOPS_UI_URL", value, f"{allowed} ({error})") from error
    if parts.scheme not in ("http", "https") or not is_address or parts.query or parts.fragment:
        raise _refuse("MLOPS_UI_URL", value, allowed)
    return value.rstrip("/")
