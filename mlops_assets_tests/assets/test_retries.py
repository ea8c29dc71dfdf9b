"""What is tried again and what is not."""

from __future__ import annotations

import pytest
from dagster import Backoff, Jitter

from mlops_assets.assets.common import retry_policy
from mlops_assets.spec import RetrySpec
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
