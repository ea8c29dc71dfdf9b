"""What was computed before, from what, by which run: computations are found by their fingerprint.

::

    .memo/<fingerprint>.json                                what a computation produced
    .events/<asset key…>[/<partition>]/<fingerprint>.json   what Dagster was told of it
    .latest/<instance>/<asset key…>[/<partition>].json      what an instance holds as the latest

Whether a step is a computation that can be reused, and how Dagster is told, is `reuse`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

from mlops_assets.code_version import Code, digest_of
from mlops_assets.errors import StoreError
from mlops_assets.store.artifacts import Artifact, ArtifactStore
from mlops_assets.store.codecs import CODECS
from mlops_assets.store.layout import folder_of, parse_object_path
from mlops_assets.store.records import Shape, require


class Seen(NamedTuple):
    """What a stage reads that no upstream asset of Dagster's gives it, as it is now."""

    version: str
    run_id: str | None = None
    """The run that made it so, where that is known."""


class Outside(NamedTuple):
    """Where stages look for what is no upstream asset."""

    store: ArtifactStore
    source_options: Mapping[str, str]
    """How sources are reached; see `mlops_assets.ml.files.find`."""

    @classmethod
    def of(cls, store: ArtifactStore, endpoint_url: str | None) -> Outside:
        """Look for sources on the same S3-compatible server as the store, if one is set."""
        return cls(store, {"endpoint": endpoint_url} if endpoint_url else {})


@dataclass(frozen=True)
class Computation:
    """One asset, or one partition of it, computed in one way from one set of inputs.

    Parameters
    ----------
    asset : str
        Parts of the asset key, joined by `/`.
    partition : str or None
        The partition's key.
    code : Code
        What is run.
    config : JSON value
        Configuration of the op, as it is resolved. Only its digest is kept: it may hold secrets.
    inputs : mapping of str to str
        Data versions by upstream asset, and of anything else that is read.
    """

    asset: str
    partition: str | None
    code: Code
    config: Any
    inputs: Mapping[str, str]

    @cached_property
    def config_digest(self) -> str | None:
        """Digest of the configuration; None when there is none."""
        return digest_of(self.config)[:16] if self.config else None

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits; equal for equal computations, on whatever machine."""
        return digest_of(
            {
                "asset": self.asset,
                "code": self.code.version,
                "parameters": self.code.parameters,
                "config": self.config or None,
                "partition": self.partition,
                "inputs": self.inputs,
            }
        )


@dataclass(frozen=True)
class Computed:
    """What a computation produced."""

    fingerprint: str
    asset: str
    partition: str | None
    code: Code
    config_digest: str | None
    inputs: Mapping[str, str]
    artifact: Artifact | None
    """None for an asset that stayed without a value."""
    tag: str | None
    """What the store itself said of the object, so that a look is enough to know it is intact."""
    run_id: str
    at: str
    """When it was finished, ISO 8601 with time zone."""
    seconds: float


class Memo:
    """The computations that a store knows."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store

    def get(self, fingerprint: str) -> Computed | None:
        """Return what a computation produced; None if it was never made or its record is damaged.

        Whether its artefact is still there is `is_intact`.
        """
        with suppress(StoreError, KeyError, TypeError):
            record = self._store.get_record(_memo_path(fingerprint))
            return _decode(fingerprint, record) if record is not None else None
        return None

    def is_intact(self, computed: Computed) -> bool:
        """Whether the artefact is in the store and undamaged.

        One look at the store. Only an object that was written again since, or copied with the
        store, is read and its digest checked; if it is right, the next look is enough again.
        """
        if computed.artifact is None:
            return True
        tag = self._store.tag(computed.artifact)
        if tag is None:
            return False
        if tag == computed.tag:
            return True
        if not self._store.verify(computed.artifact):
            return False
        with suppress(StoreError, OSError):
            path = _memo_path(computed.fingerprint)
            record = self._store.get_record(path)
            if record is not None and record["output"] is not None:
                record["output"]["tag"] = tag
                self._store.put_record(path, record)
        return True

    def find(self, computation: Computation) -> Computed | None:
        """Return what the computation produced, if that is still there in full."""
        computed = self.get(computation.fingerprint)
        return computed if computed is not None and self.is_intact(computed) else None

    def put(
        self,
        computation: Computation,
        artifact: Artifact | None,
        events: Mapping[str, Any],
        *,
        run_id: str,
        seconds: float,
    ) -> None:
        """Remember a computation; the last thing to do about it, when all else is in the store."""
        fingerprint = computation.fingerprint
        self._store.put_record(_events_path(computation, fingerprint), events)
        record = {
            "asset": computation.asset,
            "partition": computation.partition,
            "code": {
                "version": computation.code.version,
                "parameters": computation.code.parameters,
                "modules": computation.code.modules,
                "libraries": computation.code.libraries,
            },
            "config": computation.config_digest,
            "inputs": computation.inputs,
            "output": artifact
            and {
                "version": artifact.version,
                "extension": artifact.extension,
                "size": artifact.size,
                "tag": self._store.tag(artifact),
            },
            "run_id": run_id,
            "at": datetime.now(UTC).isoformat(),
            "seconds": round(seconds, 3),
        }
        self._store.put_record(_memo_path(fingerprint), record)

    def events(self, computed: Computed) -> dict[str, Any] | None:
        """Return what Dagster was told of a computation; None if that is lost."""
        with suppress(StoreError):
            return self._store.get_record(_events_path(computed, computed.fingerprint))
        return None

    def newest(self, asset: str, partition: str | None) -> str | None:
        """Return the fingerprint of the newest computation of an asset by anybody."""
        folder = f".events/{folder_of(asset.split('/'), partition)}"
        found = [
            (modified, path)
            for path, modified in self._store.records(folder)
            if path.rpartition("/")[0] == folder  # no partition, nor an asset with a longer key
        ]
        return max(found)[1].rpartition("/")[2].removesuffix(".json") if found else None

    def held(self, asset: str) -> set[str]:
        """Return the versions of an unpartitioned asset that instances hold as the latest."""
        path = f"{folder_of(asset.split('/'))}.json"
        versions = set()
        for latest, _ in self._store.records(".latest"):
            if latest.split("/", 2)[2] == path:
                with suppress(StoreError, KeyError):  # damaged: nobody's latest
                    record = self._store.get_record(latest) or {}
                    versions.add(str(record["version"]))
        return versions

    def set_latest(
        self,
        instance: str,
        asset: str,
        partition: str | None,
        *,
        version: str | None,
        fingerprint: str | None,
        run_id: str,
    ) -> None:
        """Say what an instance holds as the latest of an asset, so that it is not pruned."""
        path = f".latest/{instance}/{folder_of(asset.split('/'), partition)}.json"
        with suppress(StoreError):  # damaged: written again
            held = self._store.get_record(path) or {}
            if (held.get("version"), held.get("fingerprint")) == (version, fingerprint):
                return
        latest = {
            "version": version,
            "fingerprint": fingerprint,
            "run_id": run_id,
            "at": datetime.now(UTC).isoformat(),
        }
        self._store.put_record(path, latest)


def differences(before: Computed | None, now: Computation | Computed) -> list[str]:
    """Say why a computation is another one than the one before, in words for people.

    Each names the field with its old and new value, the module, the library or the input. Empty
    when nothing differs.
    """
    if before is None:
        return ["never materialised"]
    old, new = before.code, now.code
    reasons = [
        f"parameters changed: {name} {_shown(old.parameters, name)} → "
        f"{_shown(new.parameters, name)}"
        for name in _changed(old.parameters, new.parameters)
    ]
    if modules := _changed(old.modules, new.modules):
        reasons.append(f"code changed: {', '.join(modules)}")
    elif not old.modules and not new.modules and old.version != new.version:
        reasons.append(f"code changed: version {old.version} → {new.version}")
    reasons += [
        f"library changed: {name} {old.libraries.get(name, 'none')} → "
        f"{new.libraries.get(name, 'none')}"
        for name in _changed(old.libraries, new.libraries)
    ]
    if before.config_digest != now.config_digest:
        reasons.append("configuration changed")
    reasons += [
        f"input content changed: {name}" for name in _by_asset(_changed(before.inputs, now.inputs))
    ]
    return reasons


def _by_asset(inputs: Sequence[str]) -> list[str]:
    """Name one partition of an asset as it is, and of several only their number."""
    counts = Counter(name.partition("[")[0] for name in inputs)
    return [
        f"{asset} ({count} partitions)" if count > 1 else name
        for asset, count in counts.items()
        for name in [next(name for name in inputs if name.partition("[")[0] == asset)]
    ]


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    missing = object()
    return [
        name for name in sorted({*old, *new}) if old.get(name, missing) != new.get(name, missing)
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "not set"
    text = str(values[name])
    return text if len(text) <= 80 else f"{text[:79]}…"


def _memo_path(fingerprint: str) -> str:
    return f".memo/{fingerprint}.json"


def _events_path(computation: Computation | Computed, fingerprint: str) -> str:
    folder = folder_of(computation.asset.split("/"), computation.partition)
    return f".events/{folder}/{fingerprint}.json"


_RECORD: Shape = {
    "asset": str,
    "partition": str | None,
    "code": {"version": str, "parameters": dict, "modules": dict, "libraries": dict},
    "config": str | None,
    "inputs": dict,
    "output": dict | None,
    "run_id": str,
    "at": str,
    "seconds": int | float,
}
_OUTPUT: Shape = {"version": str, "extension": str, "size": int, "tag": str | None}


def _decode(fingerprint: str, record: Mapping[str, Any]) -> Computed:
    require(record, _RECORD)
    code, output = record["code"], record["output"]
    require(record["inputs"], dict.fromkeys(record["inputs"], str))
    artifact = None
    if output is not None:
        require(output, _OUTPUT)
        artifact = Artifact(
            tuple(record["asset"].split("/")),
            record["partition"],
            output["version"],
            output["extension"],
            output["size"],
        )
        if parse_object_path(artifact.path) is None or artifact.extension not in CODECS:
            raise TypeError(f"{artifact.path} is no path of a version")
    return Computed(
        fingerprint=fingerprint,
        asset=record["asset"],
        partition=record["partition"],
        code=Code(code["parameters"], code["modules"], code["libraries"], code["version"]),
        config_digest=record["config"],
        inputs=record["inputs"],
        artifact=artifact,
        tag=output and output["tag"],
        run_id=record["run_id"],
        at=record["at"],
        seconds=record["seconds"],
    )
