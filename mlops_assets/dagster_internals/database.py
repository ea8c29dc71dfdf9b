"""What the sqlite instance in `DAGSTER_HOME` holds as the latest of its assets, without Dagster.

Importing Dagster takes longer than everything else that an unchanged `mlops run` does. Whatever is
not as expected here counts as not known, and Dagster itself is asked then.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from mlops_assets.processes import is_gone

FINGERPRINT = "mlops/fingerprint"
"""Metadata of a materialisation: what it was computed from."""

_SQLITE = {
    "custom": {
        "module": "mlops_assets.dagster_internals.sqlite_storage",
        "class": "SqliteStorage",
        "config": {"base_dir": {"env": "DAGSTER_HOME"}},
    }
}
"""The `storage` of the shipped `dagster.yaml`, which keeps the files where Dagster does."""

PROCESS = "mlops/process"
"""Tag of a run: its id, and the process that runs it; see `mlops_assets.processes`."""

UNFINISHED = ("NOT_STARTED", "STARTING", "STARTED", "CANCELING")
"""Statuses of runs that a process is at work on, or should be."""

LONGEST_BEGINNING = timedelta(minutes=10)
"""How long after it was made a run may take to begin; milliseconds on an idle machine."""

_ANEW = (
    "move that folder away and run again: the results are in the store, and a new instance records "
    "them without computing anything"
)
_REMEDY = "see that its database answers, and run again: what was finished is reused"
_REMEDIES = {
    "malformed": _ANEW,
    "not a database": _ANEW,
    "no such table": _ANEW,
    "locked": "another process holds its database; run again when that has ended",
    "readonly": "the user who runs this may not write there; change the permissions",
    "unable to open": "see that the folder is there and can be written by who runs this",
    "full": "the disk is full; free some space, and run again",
    "disk I/O": "see whether the disk is full or broken, and run again",
}

_VERSION, _CODE = "dagster/data_version", "dagster/code_version"
_INPUT = "dagster/input_data_version/"


class Recorded(NamedTuple):
    """The latest materialisation of an asset in a Dagster instance."""

    version: str | None
    code_version: str | None
    inputs: Mapping[str, str]
    """Data versions by upstream asset, as in `churn/train`."""
    fingerprint: str | None

    @classmethod
    def of(cls, tags: Mapping[str, str], fingerprint: object) -> Recorded:
        """Read the tags that Dagster gives a materialisation."""
        return cls(
            tags.get(_VERSION),
            tags.get(_CODE),
            {
                name.removeprefix(_INPUT): value
                for name, value in tags.items()
                if name.startswith(_INPUT)
            },
            fingerprint if isinstance(fingerprint, str) else None,
        )


def name_of_partition(asset: str, partition: str) -> str:
    """Name a partition as the inputs of a computation do: `churn/predictions[2026-01-31]`."""
    return f"{asset}[{partition}]"


def recorded_in(
    home: Path, assets: Collection[str], daily: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Recorded] | None:
    """Return the latest materialisation of each of the assets that has one.

    And of each partition, by `name_of_partition`, of the assets in `daily`, from the day on that is
    given there; only the version is known of those.

    None when this is not known: the instance is no sqlite one, or its database is not as expected.
    """
    try:
        if _stores_elsewhere(home):
            return None
        database = home / "history" / "runs" / "index.db"
        if not database.is_file():
            return {}
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute(
                "SELECT last_materialization FROM asset_keys WHERE last_materialization IS NOT NULL"
                " AND (wipe_timestamp IS NULL OR last_materialization_timestamp > wipe_timestamp)"
                " AND asset_key IN (SELECT value FROM json_each(?))",
                [json.dumps([json.dumps(asset.split("/")) for asset in assets])],
            ).fetchall()
            recorded = dict(_decode(json.loads(row)) for (row,) in rows)
            for asset, first in daily.items():
                recorded |= _days_in(connection, asset, first)
        return recorded
    except (OSError, sqlite3.Error, ValueError, LookupError, TypeError, AttributeError):
        return None


def may_have_gone_runs(home: Path) -> bool:
    """Say whether a run's process is gone, as far as that is known without Dagster; else True."""
    try:
        if _stores_elsewhere(home):
            return True
        database = home / "history" / "runs.db"
        if not database.is_file():
            return False
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute(
                "SELECT runs.run_id, run_tags.value FROM runs JOIN run_tags USING (run_id)"
                " WHERE run_tags.key = ? AND runs.status IN (SELECT value FROM json_each(?))",
                [PROCESS, json.dumps(UNFINISHED)],
            ).fetchall()
            waiting = connection.execute(
                "SELECT count(*) FROM runs WHERE status = 'NOT_STARTED' AND create_timestamp < ?",
                [f"{datetime.now(UTC) - LONGEST_BEGINNING:%Y-%m-%d %H:%M:%S}"],
            ).fetchone()
        return waiting != (0,) or any(names_gone_process(run_id, tag) for run_id, tag in rows)
    except (OSError, sqlite3.Error):
        return True


def names_gone_process(run_id: str, tag: str) -> bool:
    """Say whether the tag `PROCESS` of a run means this very run, and a process that is gone."""
    of_run, _, process = tag.partition(" ")
    return of_run == run_id and is_gone(process)


def _days_in(connection: sqlite3.Connection, asset: str, first: str) -> dict[str, Recorded]:
    rows = connection.execute(
        "SELECT latest.partition, tags.value FROM asset_event_tags AS tags JOIN"
        " (SELECT partition, max(id) AS id FROM event_logs WHERE asset_key = ?"
        " AND dagster_event_type = 'ASSET_MATERIALIZATION' AND partition >= ?"
        " GROUP BY partition) AS latest ON tags.event_id = latest.id WHERE tags.key = ?",
        [json.dumps(asset.split("/")), first, _VERSION],
    )
    return {
        name_of_partition(asset, partition): Recorded(version, None, {}, None)
        for partition, version in rows
    }


def _stores_elsewhere(home: Path) -> bool:
    configuration = home / "dagster.yaml"
    if not configuration.is_file():
        return False
    import yaml

    try:
        fields = yaml.safe_load(configuration.read_text()) or {}
    except yaml.YAMLError:  # Dagster will say so
        return True
    return not isinstance(fields, dict) or any(
        "storage" in name and name != "local_artifact_storage" and storage != _SQLITE
        for name, storage in fields.items()
    )


def _decode(record: Mapping[str, Any]) -> tuple[str, Recorded]:
    event = record["event_log_entry"]["dagster_event"]
    made = event["event_specific_data"]["materialization"]
    values = _texts(made["metadata_entries"])
    return "/".join(made["asset_key"]["path"]), Recorded.of(
        made["tags"], dict(values).get(FINGERPRINT)
    )


def _texts(entries: list[dict[str, Any]]) -> Iterator[tuple[str, object]]:
    for entry in entries:
        yield entry["label"], entry["entry_data"].get("text")


def refusal_of(error: BaseException | None, home: Path) -> str | None:
    """Say what is wrong with the instance's database and what to do; None for any other error."""
    while error is not None and not _is_of_a_database(error):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    what = str(error).strip()
    remedy = next((remedy for words, remedy in _REMEDIES.items() if words in what), _REMEDY)
    return f"Dagster's instance in {home}: {what}; {remedy}"


def _is_of_a_database(error: BaseException) -> bool:
    return isinstance(error, sqlite3.DatabaseError) or type(error).__module__ == "psycopg2"
