"""What is tried again and what is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from dagster import (
    AssetsDefinition,
    Backoff,
    DagsterEvent,
    ExecuteInProcessResult,
    Failure,
    Jitter,
    RetryPolicy,
    RetryRequested,
    asset,
    materialize,
)

from mlops_assets.assets.common import retry_policy
from mlops_assets.errors import DataError
from mlops_assets.failures import reason_of
from mlops_assets.spec import PipelineSpec, RetrySpec
from mlops_assets.stages import stages
from mlops_assets.store.io_manager import StoreIOManager
from mlops_assets.time_limit import TIMEOUT
from mlops_assets_tests.conftest import CUSTOMERS, Project


def test_the_policy_is_the_one_of_the_pipeline_file() -> None:
    policy = retry_policy(RetrySpec(max=5, delay=2, backoff="exponential", jitter=True))

    assert (policy.max_retries, policy.delay) == (5, 2)
    assert (policy.backoff, policy.jitter) == (Backoff.EXPONENTIAL, Jitter.PLUS_MINUS)
    plain = retry_policy(RetrySpec(backoff="constant", jitter=False))
    assert (plain.backoff, plain.jitter) == (None, None)


def test_every_step_of_a_pipeline_has_it(customers: Project) -> None:
    customers.add("customers", CUSTOMERS + "retries: {max: 7, delay: 1s}\n")
    policies = [
        asset.op.retry_policy for asset in customers.definitions().assets or () if asset.keys
    ]
    assert [policy.max_retries for policy in policies if policy] == [7] * 5


def test_a_failure_that_may_pass_is_tried_again_up_to_the_limit(
    customers: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlops_assets.ml.read

    attempts = []

    def flaky(*_: object, **__: object) -> None:
        attempts.append(1)
        raise ConnectionError("the network is down")

    monkeypatch.setattr(mlops_assets.ml.read, "read", flaky)
    result = customers.train("customers", "raw")

    assert not result.success
    assert len(attempts) == 1 + 2


def test_an_interrupt_ends_the_run_and_is_not_tried_again(
    customers: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlops_assets.ml.train

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mlops_assets.ml.train, "train_and_tell", interrupted)
    customers.add("others", CUSTOMERS)
    job = customers.definitions().resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(instance=customers.instance, raise_on_error=False)

    begun = [event.step_key for event in result.all_events if event.is_step_start]
    assert not result.success
    assert [event for event in result.all_events if event.is_step_up_for_retry] == []
    assert begun[-1] == "customers__model"
    assert "others__model" not in begun


def test_a_failure_that_passes_leaves_no_trace_in_the_result(
    customers: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlops_assets.ml.read

    read = mlops_assets.ml.read.read
    attempts = []

    def flaky(*args: object, **kwargs: object) -> object:
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionError("the network is down")
        return read(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(mlops_assets.ml.read, "read", flaky)

    assert customers.train("customers").success
    assert len(attempts) == 2


# --- by which error -----------------------------------------------------------------------------


FEATURES = """
from pathlib import Path

def features(train):
    with Path(__file__).with_name("attempts").open("a") as file:
        file.write("x")
    raise {error}
"""


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        ("ConnectionResetError('the network is down')", 3),
        ("MemoryError('too little')", 3),
        ("NameError('a defect')", 1),
        ("AssertionError('a defect')", 1),
        ("ValueError('what it was given')", 1),
        ("FileNotFoundError('beside.csv')", 1),
    ],
)
def test_code_of_a_users_own_is_tried_again_by_what_it_raises(
    customers: Project, error: str, attempts: int
) -> None:
    module = f"features_{abs(hash(error))}"
    path = customers.folder / "pipelines" / f"{module}.py"
    path.write_text(FEATURES.format(error=error))
    customers.add("customers", f"{CUSTOMERS}  features: {module}:features\n")

    result = customers.train("customers")

    assert not result.success
    assert path.with_name("attempts").read_text() == "x" * attempts


def attempted(
    project: Project, attempt: Callable[[], Any], retries: int = 2, **options: Any
) -> tuple[ExecuteInProcessResult, int]:
    """Run an asset of a user's own that uses the store; return how often it was executed."""
    begun = []

    @asset(io_manager_key="store", retry_policy=RetryPolicy(max_retries=retries), op_tags=options)
    def own() -> Any:
        begun.append(1)
        return attempt()

    return run(project, own), len(begun)


def run(project: Project, own: AssetsDefinition) -> ExecuteInProcessResult:
    store = StoreIOManager(url=project.settings.store_url)
    return materialize(
        [own], instance=project.instance, resources={"store": store}, raise_on_error=False
    )


def failure_of(result: ExecuteInProcessResult) -> DagsterEvent:
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    return failure


def raising(error: Exception) -> Callable[[], Any]:
    def attempt() -> Any:
        raise error

    return attempt


def test_a_defect_is_executed_once_and_shown_with_its_stack_trace(customers: Project) -> None:
    result, attempts = attempted(customers, lambda: {"a": 1}["b"])

    failure = failure_of(result)
    error = failure.step_failure_data.error
    assert attempts == 1
    assert error is not None
    assert error.cause is not None
    assert error.cause.cls_name == "KeyError"
    assert any('{"a": 1}["b"]' in line for line in error.cause.stack)
    assert reason_of(failure, []) == "KeyError: 'b'"


def test_a_mistake_is_executed_once_and_told_in_its_own_words(customers: Project) -> None:
    result, attempts = attempted(customers, raising(DataError("row 3 has no date: add it")))

    assert attempts == 1
    assert reason_of(failure_of(result), []) == "row 3 has no date: add it"


def test_what_cannot_be_stored_is_computed_once(customers: Project) -> None:
    result, attempts = attempted(customers, object)

    assert attempts == 1
    said = reason_of(failure_of(result), [])
    assert "own cannot be stored: values of type builtins.object" in said


def test_a_failure_that_code_raises_by_itself_is_obeyed(customers: Project) -> None:
    def failing(allow_retries: bool) -> Callable[[], Any]:
        return raising(Failure("by itself", allow_retries=allow_retries))

    assert attempted(customers, failing(True))[1] == 3
    assert attempted(customers, failing(False))[1] == 1


def test_a_retry_that_code_asks_for_is_obeyed(customers: Project) -> None:
    assert attempted(customers, raising(RetryRequested(max_retries=3)), retries=1)[1] == 4


def test_an_error_that_may_pass_is_shown_when_all_attempts_are_used_up(
    customers: Project,
) -> None:
    result, attempts = attempted(customers, raising(ConnectionError("the network is down")))

    assert attempts == 3
    assert reason_of(failure_of(result), []) == "ConnectionError: the network is down"


# --- by time ------------------------------------------------------------------------------------


def test_an_attempt_that_takes_too_long_is_interrupted_and_counts_as_one(
    customers: Project,
) -> None:
    result, _ = attempted(customers, lambda: time.sleep(600), 1, **{TIMEOUT: "0.3"})

    assert [event for event in result.all_events if event.is_step_up_for_retry]
    assert reason_of(failure_of(result), []) == (
        "mlops_assets.time_limit.StepTimeoutError: own took longer than the 0.3s that `timeout` in "
        "the pipeline file allows an attempt: allow more, or give it less to do"
    )


def test_code_that_catches_every_error_is_interrupted_all_the_same(customers: Project) -> None:
    def catching() -> None:
        while True:
            try:
                time.sleep(600)
            except Exception:
                continue

    result, _ = attempted(customers, catching, 0, **{TIMEOUT: "2"})

    assert "own took longer than the 2s" in reason_of(failure_of(result), [])


def test_elsewhere_than_in_the_main_thread_a_step_fails_when_it_goes_on(
    customers: Project,
) -> None:
    results = []

    def in_a_thread() -> None:
        results.append(attempted(customers, lambda: time.sleep(1) or {}, 1, **{TIMEOUT: "0.3"}))

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()

    [(result, _)] = results
    assert [event for event in result.all_events if event.is_step_up_for_retry]
    assert "took longer than the 0.3s" in reason_of(failure_of(result), [])


def test_a_step_that_is_in_time_is_left_alone(customers: Project) -> None:
    result, attempts = attempted(customers, dict, **{TIMEOUT: "60"})
    assert result.success
    assert attempts == 1
    assert [it.name for it in threading.enumerate() if "_watch" in it.name] == []


SLOW = """
import time

def features(train):
    time.sleep(600)
"""


def test_the_timeout_of_a_pipeline_file_bounds_its_steps_and_decides_nothing_else(
    customers: Project,
) -> None:
    (customers.folder / "pipelines" / "slow_features.py").write_text(SLOW)
    slow = f"{CUSTOMERS}  features: slow_features:features\nretries: {{max: 0}}\n"
    customers.add("customers", slow)
    assert customers.train("customers", "raw", "train", "test").success
    before = _code_versions(customers)

    customers.add("customers", f"{slow}timeout: 6s\n")
    result = customers.train("customers", "model")

    assert not result.success
    assert "customers__model took longer than the 6s" in reason_of(failure_of(result), [])
    assert _code_versions(customers) == before
    # none where even MLflow was not imported in time
    assert {run.info.status for run in _mlflow_runs(customers)} <= {"FAILED"}


def _code_versions(project: Project) -> dict[str, str]:
    from mlops_assets.pipeline_file import load_pipelines

    spec = load_pipelines(project.settings.pipelines).valid["customers"]
    assert isinstance(spec, PipelineSpec)
    return {name: stage.code.version for name, stage in stages(spec).items()}


def _mlflow_runs(project: Project) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(project.settings.tracking_uri)
    experiment = client.get_experiment_by_name("customers")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []
