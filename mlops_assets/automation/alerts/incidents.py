"""What an incident is, and what one tick looks at to find them. Finding is `runs` and `assets`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from mlops_assets.wording import first_line, listed, redacted

if TYPE_CHECKING:
    from dagster import (
        AssetKey,
        DagsterInstance,
        DagsterRun,
        EventLogEntry,
        RepositoryDefinition,
    )

AT_ONCE = 200
"""Events of a type that one tick looks at; the rest is for the next one."""

TOO_OLD = 86_400
"""Seconds after which nobody wants to be woken: the sensor was off, or the daemon away."""

LINES, WIDTH, NAMES = 5, 300, 5
"""How much is shown of an error (lines, characters in a line) and of a list of names."""


@dataclass(frozen=True)
class Incident:
    """Something that somebody should hear of."""

    title: str
    details: str
    kind: Literal["failure", "warning", "info"]
    page: str
    """Address of the run or asset in the UI."""
    at: float
    owners: tuple[str, ...] = ()
    step: str | None = None
    partition: str | None = None
    backfill: str | None = None
    """Address of the backfill that it is a part of."""
    told_apart_by: str | None = None
    """What incidents of one title are told apart by; default: the first line of the details."""

    @property
    def key(self) -> str:
        """The same for incidents that are one trouble; within a backfill whatever the details.

        A failure is another trouble than a warning, which must not hide it.
        """
        told_apart_by = self.told_apart_by or first_line(self.details)
        text = f"{self.title}\n{self.kind}\n{self.backfill or told_apart_by}"
        return sha256(text.encode(errors="replace")).hexdigest()[:16]


@dataclass(frozen=True)
class Watch:
    """What one tick looks at.

    Parameters
    ----------
    instance : DagsterInstance
        Where it was recorded.
    repository : RepositoryDefinition or None
        The code location, which knows the owners of the assets.
    location : str or None
        Name of the code location. Runs of another one are not told; runs that were started without
        any, such as those of `mlops run`, are.
    pipelines : tuple of str
        Whose champions and drift are told.
    ui_url : str
        Address of Dagster's web server.
    now : float
        Seconds since 1970.
    """

    instance: DagsterInstance
    repository: RepositoryDefinition | None
    location: str | None
    pipelines: tuple[str, ...]
    ui_url: str
    now: float

    def is_recent(self, entry: EventLogEntry) -> bool:
        """Whether an event is worth telling still."""
        return self.now - entry.timestamp < TOO_OLD

    def is_here(self, run: DagsterRun) -> bool:
        """Whether a run is not another code location's."""
        origin = run.remote_job_origin
        return origin is None or self.location in (None, origin.location_name)

    def is_known(self, key: AssetKey) -> bool:
        """Whether an asset is this code location's."""
        return self.repository is None or self.repository.asset_graph.has(key)

    def page(self, run_id: str, key: AssetKey | None = None) -> str:
        """Return the address of a run, or of the asset when no run has done it."""
        where = f"runs/{run_id}" if run_id else f"assets/{'/'.join(key.path if key else ())}"
        return f"{self.ui_url}/{where}"

    def about(self, run: DagsterRun | None) -> dict[str, Any]:
        """Return which partition a run is for, and which backfill it is a part of."""
        tags = run.tags if run is not None else {}
        first = tags.get("dagster/asset_partition_range_start")
        last = tags.get("dagster/asset_partition_range_end")
        span = f"{first} to {last}" if first and last else None
        backfill = tags.get("dagster/backfill")
        return {
            "partition": tags.get("dagster/partition", span),
            "backfill": f"{self.ui_url}/runs/b/{backfill}" if backfill else None,
        }


Look = Callable[[Watch, int | None], tuple[list[Incident], int]]
"""Returns what is new after an event, and the event to go on from; None stands for the first time,
when only failed runs are looked back for."""


def shown(details: str) -> str:
    """Return the first lines of an error, without the passwords and signatures of URLs in it."""
    # no channel takes half a character
    text = redacted(details).encode(errors="replace").decode()
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    more = [f"… {len(lines) - LINES} more lines"] if len(lines) > LINES else []
    kept = [line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…" for line in lines[:LINES]]
    return "\n".join([*kept, *more])


def named(names: Sequence[str]) -> str:
    """Return a list of names in words, cut where it gets too long."""
    return listed(names, NAMES)
