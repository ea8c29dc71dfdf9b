"""Searching for better parameters: which ones a trial tries, and what they are worth.

Trials run in rounds. Those of a round may run at the same time, wherever: each knows the trials of
the rounds before and nothing else, and draws from the seed and its round. What a trial tries and
finds is therefore the same in one process or in twenty, and after a search that was interrupted.
Keeping the trials, and starting them, is not done here.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from mlops_assets.errors import DataError, DeviceError, ModelError, UserError
from mlops_assets.ml.evaluate import score
from mlops_assets.ml.model import TrainedModel, problem_kind
from mlops_assets.ml.task import suited_task
from mlops_assets.ml.train import train
from mlops_assets.spec import ParameterRange, PipelineSpec, Search

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from optuna.distributions import BaseDistribution

_State = Literal["complete", "pruned", "failed"]

_ENOUGH_TO_COMPARE = 10
"""Trials from which on importances are given: they compare the best tenth with the rest."""


@dataclass(frozen=True)
class Trial:
    """One set of parameters, and how good models with it are."""

    number: int
    state: _State
    params: Mapping[str, Any]
    """Parameter -> value that was tried."""
    by: str | None
    """Metric; None when not even one fold was trained."""
    folds: Sequence[float]
    """Value of the metric on each fold that was measured."""
    message: str | None = None
    """Why it failed."""

    @property
    def value(self) -> float | None:
        """Mean of the folds; None unless all of them were measured."""
        return fmean(self.folds) if self.state == "complete" else None

    def __str__(self) -> str:
        """Return what it tried and found, for people."""
        tried = ", ".join(f"{name}={_shown(value)}" for name, value in self.params.items())
        if self.state == "failed":
            found = f"failed: {self.message}"
        else:
            pruned = f", pruned after fold {len(self.folds)}" if self.state == "pruned" else ""
            found = f"{self.by} {fmean(self.folds):.4g}{pruned}"
        return f"trial {self.number} with {tried}: {found}"


def run_trial(
    number: int, frame: pd.DataFrame, spec: PipelineSpec, before: Sequence[Trial]
) -> Trial:
    """Measure one set of parameters by cross-validation on the training set.

    Parameters that an earlier trial has tried are not measured again.

    Parameters
    ----------
    number
        Of the trial, from 0.
    frame
        Training rows, as for `mlops_assets.ml.train.train`.
    spec
        The pipeline, with the search in `tune`.
    before
        All trials of the rounds before.

    Returns
    -------
    Trial
        Also when the estimator refuses the parameters or the time was up.

    Raises
    ------
    DataError
        The training set cannot be divided into folds.
    DeviceError
        A GPU is required, and the estimator cannot be given one.
    """
    parts = folds(frame, spec)
    proposal = _propose(number, spec, before)
    space = spec.tune.space
    params = {name: _value(space[name], tried) for name, tried in proposal.params.items()}
    for trial in before:
        if _text(trial.params) == _text(params):
            return replace(trial, number=number)
    found: list[float] = []
    by = None
    try:
        with _time_limit(spec.tune.timeout) as check_time:
            for fold, (learned, judged) in enumerate(parts):
                trained = _trained(frame.iloc[learned], spec, params)
                by = (
                    spec.tune.by or spec.metrics_for(problem_kind(trained.task, trained.classes))[0]
                )
                found.append(score(trained, frame.iloc[judged], by))
                check_time()
                proposal.report(fmean(found), fold)
                if spec.tune.prune and fold + 1 < len(parts) and proposal.should_prune():
                    return Trial(number, "pruned", params, by, found)
    except DeviceError:  # of this machine, not of the parameters: elsewhere the trial succeeds
        raise
    except (UserError, _TimeIsUp) as error:
        return Trial(number, "failed", params, by, found, str(error))
    return Trial(number, "complete", params, by, found)


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the complete trial with the highest value, of equal ones the first.

    Raises
    ------
    ModelError
        None is complete.
    """
    complete = [trial for trial in trials if trial.value is not None]
    if not complete:
        messages = dict.fromkeys(str(trial.message) for trial in trials if trial.message)
        listed = "".join(f"\n- {message}" for message in [*messages][:5])
        more = f"\n- and {len(messages) - 5} other reasons" if len(messages) > 5 else ""
        raise ModelError(f"tune: all {len(trials)} trials failed:{listed}{more}")
    return max(complete, key=lambda trial: (trial.value, -trial.number))


def importances(spec: PipelineSpec, trials: Sequence[Trial]) -> dict[str, float]:
    """Say how much of the differences between trials is due to each parameter.

    By PED-ANOVA (Watanabe, Bansal and Hutter, 2023).

    Returns
    -------
    dict
        Parameter -> share of 1, the largest first; empty when there are too few trials to tell.
    """
    from optuna.importance import get_param_importances

    complete = [trial for trial in trials if trial.value is not None]
    if len(complete) < _ENOUGH_TO_COMPARE or len({trial.value for trial in complete}) < 2:
        return {}
    shares = get_param_importances(_study(spec, complete, seed=0))
    return dict(sorted(shares.items(), key=lambda share: (-share[1], share[0])))


def distributions(spec: PipelineSpec) -> dict[str, BaseDistribution]:
    """Return what Optuna draws the parameters from, always in the same order.

    Of a list it draws the position.
    """
    space = spec.tune.space
    return {name: _distribution(space[name]) for name in sorted(space)}


def folds(frame: pd.DataFrame, spec: PipelineSpec) -> list[tuple[Any, Any]]:
    """Divide the training set for cross-validation, in the way in which the test set was divided.

    With `split.by_time` every part is judged by models of earlier rows alone; with `split.group` no
    group is on both sides; of a stratified classification every part has its share of each class.

    Returns
    -------
    list of (numpy.ndarray, numpy.ndarray)
        Positions of the rows to learn from, and of those to be judged on.

    Raises
    ------
    DataError
        There are too few rows, groups or points in time for so many folds.
    """
    import numpy as np
    from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold, TimeSeriesSplit

    split, count, seed = spec.split, spec.tune.folds, _seed(spec)
    target = frame[spec.data.target]
    is_classification = suited_task(target, spec.model.known_task) == "classification"
    rows = np.arange(len(frame))
    try:
        if split.by_time is not None:
            times = frame[split.by_time].to_numpy()
            rows = np.argsort(times, kind="stable")
            parts = [(rows[a], rows[b]) for a, b in TimeSeriesSplit(count).split(rows)]
            # rows of the same time are on one side, as they are in the test set
            parts = [(a[times[a] < times[b].min()], b) for a, b in parts]
        elif split.group is not None:
            parts = list(GroupKFold(count).split(rows, groups=frame[split.group].astype(str)))
        elif split.stratify and is_classification:
            folding = StratifiedKFold(count, shuffle=True, random_state=seed)
            parts = list(folding.split(rows, target.astype(str)))
        else:
            parts = list(KFold(count, shuffle=True, random_state=seed).split(rows))
    except ValueError as error:
        raise DataError(f"tune.folds: the training set has no {count} folds: {error}") from error
    if not all(len(learned) and len(judged) for learned, judged in parts):
        raise DataError(
            f"tune.folds: too few different {split.by_time} in the training set for {count} folds"
        )
    return parts


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _trained(frame: pd.DataFrame, spec: PipelineSpec, params: Mapping[str, Any]) -> TrainedModel:
    return train(
        frame,
        spec.model.model_copy(update={"params": {**spec.model.params, **params}}),
        target=spec.data.target,
        positive_class=spec.data.positive_class,
        drop=[*spec.data.drop, *([spec.split.group] if spec.split.group else [])],
        seed=spec.split.seed,
    )


# --- Optuna -------------------------------------------------------------------------------------


def _propose(number: int, spec: PipelineSpec, before: Sequence[Trial]) -> optuna.Trial:
    """Ask for the proposals of the round up to the trial's own: each avoids those before it."""
    import numpy as np

    first = spec.tune.first_of_round(number)
    seed = np.random.SeedSequence([_seed(spec), first]).generate_state(1)
    study = _study(spec, before, int(seed[0]))
    return [study.ask(distributions(spec)) for _ in range(first, number + 1)][-1]


def _study(spec: PipelineSpec, trials: Sequence[Trial], seed: int) -> optuna.Study:
    """Return a study in memory that knows the trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize",  # all scikit-learn scorers are greater-is-better
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(),
    )
    space = distributions(spec)
    states = optuna.trial.TrialState
    state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
    for trial in trials:
        means = (fmean(trial.folds[: fold + 1]) for fold in range(len(trial.folds)))
        known = optuna.trial.create_trial(
            state=state[trial.state],
            value=trial.value,
            params={
                name: _as_tried(spec.tune.space[name], it) for name, it in trial.params.items()
            },
            distributions=space,
            intermediate_values=dict(enumerate(means)),
        )
        study.add_trial(known)
    return study


def _distribution(search: Search) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(search, ParameterRange):
        return CategoricalDistribution(range(len(search)))
    if search.is_whole:
        low, high = int(search.low), int(search.high)
        return IntDistribution(low, high, search.log, int(search.step or 1))
    return FloatDistribution(search.low, search.high, search.log, search.step)


def _value(search: Search, tried: Any) -> Any:
    return tried if isinstance(search, ParameterRange) else search[tried]


def _as_tried(search: Search, value: Any) -> Any:
    if isinstance(search, ParameterRange):
        return value
    return [_text(choice) for choice in search].index(_text(value))


def _text(value: Any) -> str:
    """Write a value so that equal texts mean the same value: 1, 1.0 and true differ."""
    return json.dumps(value, sort_keys=True)


def _seed(spec: PipelineSpec) -> int:
    return spec.split.seed if spec.tune.seed is None else spec.tune.seed


# --- time ---------------------------------------------------------------------------------------


class _TimeIsUp(Exception):
    """A trial took longer than it may."""


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[Callable[[], None]]:
    """Raise `_TimeIsUp` when the time is up, or when the function that is given is called then.

    Compiled code is interrupted only when it returns, and a thread other than the main one only
    when it asks.
    """
    if seconds is None:
        yield lambda: None
        return
    end = monotonic() + seconds

    def check_time(*_: object) -> None:
        if monotonic() >= end:
            raise _TimeIsUp(f"tune.timeout: it took longer than {seconds:g} seconds")

    if threading.current_thread() is not threading.main_thread():
        yield check_time
        return
    before = signal.signal(signal.SIGALRM, check_time)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # and again, where somebody caught the first
    try:
        yield check_time
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
