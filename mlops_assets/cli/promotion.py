"""`mlops promote` and `mlops rollback`: the champion moved by hand.

The log of champions is what counts. Dagster and MLflow are told of it afterwards, by the step
`p/champion` itself, which promotes nothing then: the models that it could promote were passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlops_assets.cli.planning import Project
from mlops_assets.errors import StoreError, UserError
from mlops_assets.ml.promote import failed_gates
from mlops_assets.store.champions import Champion, ChampionChangedError, Champions
from mlops_assets.store.history import history
from mlops_assets.store.memo import Memo
from mlops_assets.wording import nearest, shown

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from mlops_assets.spec import PipelineSpec
    from mlops_assets.store.artifacts import Artifact, ArtifactStore

_LISTED = 5


class PromotionError(UserError):
    """The champion cannot be moved as it was asked for; it stays what it was."""


@dataclass
class Moved:
    """What a command has done."""

    champion: Champion
    before: Champion | None
    run_id: str | None = None
    """The Dagster run that told of it."""
    warnings: list[str] = field(default_factory=list)


def promote(pipeline: str, version: str | None = None, *, force: bool = False) -> Moved:
    """Make a model the champion.

    Parameters
    ----------
    pipeline
        Name of the pipeline.
    version
        Of the model; by default the latest one of this Dagster instance, or if it has none, the
        newest one in the store.
    force
        Promote a model that does not pass its gates.

    Raises
    ------
    UserError
        There is no such pipeline or version, its object is missing or damaged, it is the champion
        already, or it does not pass its gates. The champion is what it was.
    """
    with _move(pipeline) as move:
        return move.promote(version, force=force)


def roll_back(pipeline: str) -> Moved:
    """Go back to the champion before the current one; once more, to the one before that.

    Raises
    ------
    UserError
        There is no such pipeline or nothing to go back to, or the object of that champion is
        missing or damaged. The champion is what it was.
    """
    with _move(pipeline) as move:
        return move.roll_back()


def as_json(pipeline: str, moved: Moved) -> dict[str, Any]:
    """Return what `--json` prints."""
    champion, before = moved.champion, moved.before
    return {
        "pipeline": pipeline,
        "champion": {
            "version": champion.version,
            "number": champion.number,
            "by": champion.by,
            "reason": champion.reason,
            "at": champion.at,
        },
        "before": before and {"version": before.version, "number": before.number},
        "run_id": moved.run_id,
        "warnings": moved.warnings,
    }


def as_text(pipeline: str, moved: Moved) -> str:
    """Return the same for people."""
    champion, before = moved.champion, moved.before
    instead = f", instead of {before.version}" if before else ""
    return "\n".join(
        [
            f"{pipeline}: {champion.version} is the champion{instead}",
            f"  promotion {champion.number}: {champion.reason}",
            *(f"  warning: {warning}" for warning in moved.warnings),
        ]
    )


@contextmanager
def _move(pipeline: str) -> Iterator[_Move]:
    project = Project.load([pipeline])
    if pipeline in project.pipelines.broken:
        raise project.pipelines.broken[pipeline]
    if (spec := project.trained.get(pipeline)) is None:
        raise PromotionError(f"{pipeline} is a pipeline of steps: it trains no model to promote")
    from mlops_assets.cli.run import local_instance

    champions = Champions(project.store, pipeline)
    with local_instance() as instance:
        yield _Move(project, spec, champions, champions.history(), instance)


@dataclass(frozen=True)
class _Move:
    """One change of a champion, from what it was when the command began."""

    project: Project
    spec: PipelineSpec
    champions: Champions
    past: list[Champion]
    instance: DagsterInstance

    @property
    def store(self) -> ArtifactStore:
        return self.champions.store

    @property
    def current(self) -> Champion | None:
        return self.past[-1] if self.past else None

    def promote(self, version: str | None, *, force: bool) -> Moved:
        version = version or self._latest_model()
        self._require_known(version)
        if self.current is not None and self.current.version == version:
            raise PromotionError(
                f"{version} is the champion of {self.spec.name} already "
                f"(promotion {self.current.number}, {self.current.at}): {self.current.reason}"
            )
        metrics = self._metrics(version)
        failed = failed_gates(metrics, self.spec.evaluate.conditions)
        if failed and not force:
            raise PromotionError(
                f"{version} is not promoted: {'; '.join(failed)}; --force promotes it all the same"
            )
        overridden = f"; overridden: {'; '.join(failed)}" if failed else ""
        return self._make_champion(version, metrics, f"promoted by hand{overridden}")

    def roll_back(self) -> Moved:
        if self.current is None:
            raise PromotionError(f"{self.spec.name} has no champion: nothing to go back to")
        target = self.champions.before(self.current)
        if target is None:
            raise PromotionError(
                f"before {self.current.version} {self.spec.name} had no other champion: nothing to "
                f"go back to; `mlops history {self.spec.name}/champion` lists all"
            )
        reason = (
            f"rolled back by hand from {self.current.version}, promotion {self.current.number}, to "
            f"promotion {target.number}"
        )
        return self._make_champion(target.version, target.metrics, reason, restores=target.number)

    def _make_champion(
        self, version: str, metrics: Mapping[str, float], reason: str, restores: int | None = None
    ) -> Moved:
        from mlops_assets.assets.champion import champion_artifact, now

        try:
            artifact = champion_artifact(self.spec, self.store, version)
            self.store.read(artifact)  # what cannot be loaded here would serve nobody
        except StoreError as error:
            raise PromotionError(
                f"{version} cannot become the champion of {self.spec.name}: {error}"
            ) from error
        replaced = {self.current.version} if self.current else set()
        try:
            champion = self.champions.promote(
                version,
                expected=self.current,
                metrics=metrics,
                reason=reason,
                run_id=None,
                at=now(),
                restores=restores,
                passed_over=(replaced | self._waiting()) - {version},
            )
        except ChampionChangedError as error:
            raise PromotionError(
                f"the champion of {self.spec.name} was changed meanwhile by somebody else, and is "
                f"left so: see `mlops history {self.spec.name}/champion`, and try again"
            ) from error
        moved = Moved(champion, self.current)
        self._tell(moved, artifact)
        return moved

    def _latest_model(self) -> str:
        latest, newest = self._recorded("model"), self._newest_model()
        if latest is None and newest is None:
            raise PromotionError(
                f"{self.spec.name} has no model: `mlops run {self.spec.name}` trains one"
            )
        return str(latest or newest)

    def _newest_model(self) -> str | None:
        models = self.store.versions([self.spec.name, "model"])
        return models[0].version if models else None

    def _recorded(self, stage: str) -> str | None:
        """Return what this Dagster instance has as the latest version of an asset."""
        from dagster import AssetKey

        from mlops_assets.store.reuse import latest_materialization

        made = latest_materialization(self.instance, AssetKey([self.spec.name, stage]), None)
        return (made.tags or {}).get("dagster/data_version") if made else None

    def _waiting(self) -> set[str]:
        """Return the models that some instance's next run would compare with the champion."""
        held = Memo(self.store).held(f"{self.spec.name}/model")
        latest = self._recorded("model") or (None if held else self._newest_model())
        return {*held, *([latest] if latest else [])}

    def _require_known(self, version: str) -> None:
        newest_first = [
            *(one.version for one in self.store.versions([self.spec.name, "model"])),
            *(one.version for one in reversed(self.past)),
        ]
        if version not in newest_first:
            listed = ", ".join(list(dict.fromkeys(newest_first))[:_LISTED]) or "none"
            raise PromotionError(
                f"{self.spec.name} has no model {shown(version)}{nearest(version, newest_first)}; "
                f"the newest are {listed}; `mlops history {self.spec.name}/model` lists all"
            )

    def _metrics(self, version: str) -> Mapping[str, float]:
        """Return what a model was last measured to be worth; empty if that is not known."""
        name = self.spec.name
        measured = [
            entry.metrics
            for entry in history(self.store, [name, "metrics"]).entries
            if entry.metrics and entry.computed
            if entry.computed.inputs.get(f"{name}/model") == version
        ]
        promoted = [one.metrics for one in reversed(self.past) if one.version == version]
        return next(iter([*measured, *promoted]), {})

    # --- telling the others ---------------------------------------------------------------------

    def _tell(self, moved: Moved, artifact: Artifact) -> None:
        """Let Dagster and MLflow know, by the champion's own step wherever it can run."""
        from mlops_assets.cli.run import run_steps, steps_of
        from mlops_assets.store.reuse import COMMAND

        name = self.spec.name
        if all(self._recorded(stage) for stage in ("model", "test", "metrics")):
            steps = steps_of([f"{name}/champion"])
            result = run_steps(self.instance, steps, {COMMAND: "promote"})
            moved.run_id = result.run_id
            if result.success:
                return
            why = f"the step {name}/champion failed in run {result.run_id}"
        else:
            why = f"this Dagster instance has not trained {name}"
        moved.warnings.append(f"{why}: Dagster and MLflow were told of the champion alone")
        self._report(self.champions.current() or moved.champion)
        self._register(artifact)

    def _report(self, champion: Champion) -> None:
        from dagster import AssetKey, AssetMaterialization

        self.instance.report_runless_asset_event(
            AssetMaterialization(
                AssetKey([self.spec.name, "champion"]),
                metadata={
                    "reason": champion.reason,
                    "version": champion.version,
                    "promotion": champion.number,
                    "promoted_by": champion.by,
                },
                tags={"dagster/data_version": champion.version},
            )
        )

    def _register(self, artifact: Artifact) -> None:
        from mlops_assets.assets.champion import registered
        from mlops_assets.tracking import MlflowTracking

        tracking = MlflowTracking(mlflow_tracking_uri=self.project.settings.tracking_uri)
        log = logging.getLogger("mlops")
        with tracking.trained(log, self.spec.name, artifact.version) as run:
            registered(run, self.spec, self.store, [artifact])
