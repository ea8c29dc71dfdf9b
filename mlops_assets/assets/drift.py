"""`p/drift`: whether a day looks as the training data did, and its predictions turned out right.

The reference is of the model that made the predictions, so that it stays the right one after a
promotion or a rollback. It is made once for each model, when the first of its days is compared.
"""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dagster import (
    AssetCheckResult,
    AssetExecutionContext,
    AssetIn,
    AssetsDefinition,
    Output,
    asset,
)

from mlops_assets.assets.common import (
    STORE,
    check_of_partitions,
    in_one_run,
    key_of,
    step_settings,
    warnings_logged,
)
from mlops_assets.assets.drift_report import FEATURES, REALISED, SCORES, facts, reports
from mlops_assets.assets.predictions import not_asked, scoring_days
from mlops_assets.errors import DataError, StoreError
from mlops_assets.spec import PipelineSpec
from mlops_assets.stages import Stage, labels_seen
from mlops_assets.store.artifacts import Artifact, ArtifactStore, CorruptArtifactError
from mlops_assets.store.champions import Champions
from mlops_assets.store.history import history
from mlops_assets.store.io_manager import LOAD_AS, StoreIOManager
from mlops_assets.store.layout import reference_path
from mlops_assets.store.memo import Outside
from mlops_assets.store.reuse import defined_by

if TYPE_CHECKING:
    from mlops_assets.ml.drift import Profile
    from mlops_assets.ml.model import TrainedModel

LABELS = "mlops/labels"
"""Tag of a materialisation and of a run: the identity of the day's labels; "none" without any."""


def build_drift(spec: PipelineSpec, stage: Stage) -> AssetsDefinition:
    """Return the asset `p/drift`, with the same days as `p/predictions`, and its checks."""
    score = spec.score
    assert score is not None
    key = key_of(spec, "drift")
    checks = {
        FEATURES: "The rows look as those that the model was trained on.",
        SCORES: "The predictions look as those for the test set.",
    }
    if score.labels is not None:
        checks[REALISED] = "As far as labels are there, the model is as good as at its promotion."

    @asset(
        key=key,
        ins={"predictions": AssetIn(key_of(spec, "predictions"), metadata={LOAD_AS: "artifact"})},
        partitions_def=scoring_days(spec),
        io_manager_key=STORE,
        required_resource_keys={STORE},
        description="How far the day's rows and predictions are from those of the training, and "
        "how right they were.",
        owners=spec.owners,
        kinds={"json"},
        check_specs=[
            check_of_partitions(name, key, text, scoring_days(spec))
            for name, text in checks.items()
        ],
        group_name=spec.name,
        **step_settings(spec, "drift"),
        code_version=stage.code.version,
    )
    @defined_by(stage)
    def drift(
        context: AssetExecutionContext, predictions: Any
    ) -> Iterator[Output[Any] | AssetCheckResult]:
        from mlops_assets.ml.drift_figure import drift_figures

        store: StoreIOManager = context.resources.store
        with warnings_logged(context.log):
            labels = labels_seen(spec, store.outside, context.partition_key).version
            found = compared(spec, store.outside, context.partition_key, predictions)
            drawn = drift_figures(found["features"], found["scores"], spec.drift.psi)
        yield Output(found, metadata=facts(found, drawn), tags={LABELS: labels})
        yield from reports(found, spec)

    return in_one_run(drift)


def compared(
    spec: PipelineSpec, outside: Outside, day: str, predictions: Artifact
) -> dict[str, Any]:
    """Compare a day with the reference of the model that made its predictions.

    Returns
    -------
    dict
        ``date``, ``model_version``, ``rows``; ``reference_rows`` of ``features`` and ``scores``;
        ``features`` and ``scores`` as of `ml.drift.judge`; ``realised`` as of `ml.realised`, None
        without labels, or with an ``error`` that says what is wrong with them.

    Raises
    ------
    DataError, StoreError
        The day's files are not those that were scored, or what the model was trained on is gone.
    """
    from mlops_assets.ml.drift import compare, judge, profiles, require_features, stored_scores
    from mlops_assets.ml.score import MODEL_VERSION

    store = outside.store
    batches = store.read(predictions, "batches")
    first = batches.read_next_batch()
    version = first[MODEL_VERSION][0].as_py()
    model = store.read(store.find(key_of(spec, "champion").path, version))
    require_features(spec.drift, model.features)
    reference = _reference(spec, store, model, version)
    features, scores = profiles(reference, ignore=spec.drift.ignore)
    for batch in itertools.chain([first], batches):
        scores.add(stored_scores(batch, model))
    _count_features(spec, outside, day, model, features)
    if features.rows != scores.rows:
        raise DataError(
            f"score.uri: the files of {day} have {features.rows} rows, and {scores.rows} were "
            f"scored: materialise {spec.name}/predictions of this day again"
        )
    return {
        "date": day,
        "model_version": version,
        "rows": scores.rows,
        "reference_rows": {part: reference[part]["rows"] for part in ("features", "scores")},
        "features": judge(compare(reference["features"], features), spec.drift, features.rows),
        "scores": judge(compare(reference["scores"], scores), spec.drift, scores.rows),
        "realised": _realised(spec, outside, day, model, version, predictions),
    }


def _count_features(
    spec: PipelineSpec, outside: Outside, day: str, model: "TrainedModel", profile: "Profile"
) -> None:
    from mlops_assets.ml.inbox import files_of_day
    from mlops_assets.ml.score import features_of

    assert spec.score is not None
    files = files_of_day(spec.score.uri, spec.folder, day, outside.source_options)
    for frame in features_of(model, files, spec.data, ids=spec.score.id, known=not_asked(spec)):
        profile.add(frame)


def _reference(
    spec: PipelineSpec, store: ArtifactStore, model: "TrainedModel", version: str
) -> dict[str, Any]:
    """Return the reference of a model, from the store if it was made before."""
    from mlops_assets.ml.drift import FORMAT, reference

    path = reference_path(spec.name, version, FORMAT)
    known = None
    with suppress(CorruptArtifactError):  # made again
        known = store.get_record(path)
    if known is None:
        train, test = _made_from(spec, store, version)
        known = reference(model, store.read(train), store.read(test))
        store.put_record(path, known)
    return known


def _made_from(spec: PipelineSpec, store: ArtifactStore, version: str) -> tuple[Artifact, Artifact]:
    """Find what a model was trained on, and what it was judged on."""
    name = spec.name
    trained = (
        entry.computed.inputs.get(f"{name}/train")
        for entry in history(store, [name, "model"]).entries
        if entry.computed and entry.artifact and entry.artifact.version == version
    )
    judged = (
        entry.computed.inputs.get(f"{name}/test")
        for entry in history(store, [name, "metrics"]).entries
        if entry.computed and entry.computed.inputs.get(f"{name}/model") == version
    )
    train, test = next(filter(None, trained), None), next(filter(None, judged), None)
    if train is None or test is None:
        raise StoreError(
            f"{store.url} does not know what the model {version} of {name} was "
            f"{'judged' if train else 'trained'} on, so that nothing can be compared with it: "
            f"`mlops run {name} --refresh {name}/{'metrics' if train else 'model'}` tells it for "
            "the model of today"
        )
    return store.find([name, "train"], train), store.find([name, "test"], test)


def _realised(
    spec: PipelineSpec,
    outside: Outside,
    day: str,
    model: "TrainedModel",
    version: str,
    predictions: Artifact,
) -> dict[str, Any] | None:
    from mlops_assets.ml.inbox import NoFilesError, files_of_day
    from mlops_assets.ml.model import problem_kind
    from mlops_assets.ml.realised import judged, read_labels, realised

    assert spec.score is not None
    ids, metrics = spec.score.id, spec.metrics_for(problem_kind(model.task, model.classes))
    if spec.score.labels is None:
        return None
    try:
        files = files_of_day(spec.score.labels, spec.folder, day, outside.source_options)
        labels = read_labels(files, ids, model, spec.data)
        answers = outside.store.read(predictions, "batches")
        found = realised(
            model, answers, labels, ids, [*dict.fromkeys([*metrics, *spec.drift.metrics])]
        )
    except NoFilesError:
        return None
    except DataError as error:
        return {"error": str(error).replace("score.uri", "score.labels")}
    promotions = Champions(outside.store, spec.name).history()
    before = next((one.metrics for one in reversed(promotions) if one.version == version), {})
    return judged(found, before, spec.drift)
