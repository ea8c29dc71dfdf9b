"""An object store that fails 10, 50 or 90 % of the requests: timeouts, errors, cut-off answers.

A real S3-compatible server is behind the fault. The client makes as many attempts as always, with
shorter waits unless a test says otherwise.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from time import perf_counter
from typing import Any
from unittest.mock import patch

import pytest

from mlops_assets.definitions import build_defs
from mlops_assets.errors import StoreError
from mlops_assets.store import (
    ArtifactStore,
    ChampionChangedError,
    Champions,
    CorruptArtifactError,
    remote_objects,
)
from mlops_assets.store.objects import StoreUnavailableError
from mlops_assets_tests.conftest import DUMMY, Project
from mlops_assets_tests.faults import test_store_kills as works
from mlops_assets_tests.faults.flaky_server import FlakyServer
from mlops_assets_tests.faults.outside import artifacts, check
from mlops_assets_tests.faults.trials import LONGER, Trials
from mlops_assets_tests.store.computations import compute
from mlops_assets_tests.store.conftest import BUCKET, s3_client, s3_endpoint, s3_server

__all__ = ["s3_endpoint", "s3_server"]

SHARES = [0.1, 0.5, 0.9]


@dataclass
class Bucket:
    """A store behind a server that fails, and the same by a way that does not."""

    endpoint: str
    direct: str
    flaky: FlakyServer
    client: Any
    prefix: str = ""
    patience: float = 30
    """Seconds that the client waits for an answer of the server that fails."""

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}"

    def another(self, patience: float = 30) -> Bucket:
        return replace(self, prefix=uuid.uuid4().hex, patience=patience)

    @property
    def store(self) -> ArtifactStore:
        """The store as it is tried: its client is kept, and used by whoever asks for this URL."""
        waits = {"connect_timeout": "5s", "timeout": f"{self.patience * 1000:.0f}ms"}
        pauses = {
            "init_backoff": timedelta(milliseconds=1),
            "max_backoff": timedelta(milliseconds=50),
        }
        retries = remote_objects._RETRIES | {"backoff": pauses}
        with (
            patch.object(remote_objects, "_TIMEOUTS", waits),
            patch.object(remote_objects, "_RETRIES", retries),
        ):
            return ArtifactStore(self.url, self.endpoint)

    @property
    def healthy(self) -> ArtifactStore:
        return ArtifactStore(self.url, self.direct)

    def contents(self) -> dict[str, bytes]:
        pages = self.client.get_paginator("list_objects_v2")
        keys = [
            item["Key"]
            for page in pages.paginate(Bucket=BUCKET, Prefix=f"{self.prefix}/")
            for item in page.get("Contents", ())
        ]
        return {
            key.removeprefix(f"{self.prefix}/"): self.client.get_object(Bucket=BUCKET, Key=key)[
                "Body"
            ].read()
            for key in keys
        }


def patience(share: float) -> float:
    """Where little fails, what succeeds must not be taken for no answer on a busy machine."""
    return 3 if share < 0.5 else 0.4


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    flaky = FlakyServer(s3_endpoint, hold=5)
    with flaky.started() as endpoint:
        yield Bucket(endpoint, s3_endpoint, flaky, s3_client(s3_endpoint), uuid.uuid4().hex)


def read_all(store: ArtifactStore) -> object:
    [artifact] = store.versions(["p", "raw"])
    assert store.read(artifact).equals(works.frame())
    assert store.verify(artifact)
    return store.get_record(".trials/p/0000000000000000/study/0000.json")


def prepare(store: ArtifactStore) -> None:
    compute(store, "p/raw", works.frame())


WORKS = [
    works.Work("write a frame", lambda store: store.write(works.KEY, works.frame())),
    works.Work("write a stream", lambda store: store.write(works.KEY, works.batches())),
    works.Work("write a model", lambda store: store.write(works.KEY, works.model())),
    works.Work("read, verify, list", read_all, prepare),
    works.Work("compute", lambda store: works.make(store, "p/a", works.frame())),
    works.Work("train and promote", works.train),
    works.Work("prune", works.prune_all, prepare),
]


@pytest.mark.parametrize("share", SHARES)
def test_a_store_that_fails_is_read_and_written_right_or_given_up(
    share: float, trials: Trials, bucket: Bucket
) -> None:
    expected = {}
    for work in WORKS:
        reference = bucket.another()
        work.after(reference.healthy)
        work.does(reference.healthy)
        expected[work.name] = reference.contents()
    for trial in trials(f"the store fails {share:.0%} of the requests of an operation", 28):
        with trial:
            work, here = WORKS[trial.number % len(WORKS)], bucket.another(patience(share))
            trial.facts["operation"] = work.name
            work.after(here.healthy)
            here.flaky.be_bad(share, Random(f"{share}:{trial.number}"))
            try:
                work.does(here.store)
                trial.outcome = "done"
            except StoreUnavailableError as error:
                trial.outcome = "given up with the transient error"
                trial.facts["error"] = str(error)[:300]
            finally:
                here.flaky.be_good()
            trial.facts |= {"requests": here.flaky.requests, "failed": dict(here.flaky.injected)}
            check(here.contents())
            work.does(here.healthy)
            found = here.contents()
            check(found)
            assert found.keys() == expected[work.name].keys()
            assert {found[it] for it in artifacts(found)} == {
                expected[work.name][it] for it in artifacts(found)
            }


@pytest.mark.parametrize("again", [False, True])
def test_what_is_damaged_on_its_way_is_read_again_before_it_is_called_damaged(
    again: bool, trials: Trials, bucket: Bucket
) -> None:
    name = "always" if again else "once"
    for trial in trials(f"the store's answer is damaged {name}", 6):
        with trial:
            here = bucket.another()
            artifact = here.store.write(works.KEY, works.frame())
            here.store.put_record(".memo/a.json", {"n": 1})
            reads: list[Callable[[], object]] = [
                lambda store=here.store, one=artifact: store.read(one),
                lambda store=here.store: store.get_record(".memo/a.json"),
                lambda store=here.store, one=artifact: store.verify(one) or None,
            ]
            read = reads[trial.number % 3]
            right = read()
            here.flaky.be_bad(1, trial.random, ("damaged",), times=None if again else 1)
            try:
                assert str(read()) == str(None if again else right)
                trial.outcome = "refused" if again else "read right"
            except CorruptArtifactError:
                assert again
                trial.outcome = "refused"
            here.flaky.be_good()
            assert str(read()) == str(right)


def test_a_promotion_whose_answer_is_lost_is_made_once_and_told(
    trials: Trials, bucket: Bucket
) -> None:
    for trial in trials("the answer to a promotion is lost", 20):
        with trial:
            here = bucket.another()
            trained = here.store.write(["p", "model"], works.model())
            here.store.copy(trained, ["p", "champion"])
            champions = Champions(here.store, "p")
            here.flaky.be_bad(
                0.5, Random(trial.number), ("500 after it was done", "answer lost", "500", "reset")
            )
            try:
                made = champions.promote(
                    trained.version,
                    expected=None,
                    metrics={},
                    reason="better",
                    run_id="run",
                    at="now",
                )
                trial.outcome = "promoted, and told so"
            except StoreUnavailableError:
                made = None
                trial.outcome = "given up with the transient error"
            finally:
                here.flaky.be_good()
            trial.facts["failed"] = dict(here.flaky.injected)
            history = champions.history()
            assert len(history) == 1 if made else len(history) <= 1
            assert made in (None, *history)


def test_of_two_that_promote_over_a_bad_line_exactly_one_is_told_so(
    trials: Trials, bucket: Bucket
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for trial in trials("two promote at once, and answers are lost", 10):
        with trial:
            here = bucket.another()
            for version in "ab":
                here.store.write(["p", "model"], [version])
            versions = [one.version for one in here.store.versions(["p", "model"])]
            here.flaky.be_bad(0.4, Random(trial.number), ("500 after it was done", "answer lost"))

            def promote(version: str, store: ArtifactStore = here.store) -> str:
                try:
                    Champions(store, "p").promote(
                        version, expected=None, metrics={}, reason="better", run_id=None, at="now"
                    )
                except ChampionChangedError:
                    return "refused"
                except StoreUnavailableError:
                    return "given up"
                return version

            with ThreadPoolExecutor(2) as pool:
                told = list(pool.map(promote, versions))
            here.flaky.be_good()
            trial.facts |= {"told": told, "failed": dict(here.flaky.injected)}
            [champion] = Champions(here.store, "p").history()
            winners = [version for version in told if version in versions]
            assert winners in ([champion.version], [])
            assert winners or "given up" in told
            trial.outcome = "one promoted, one refused" if winners else "given up"


def test_an_upload_in_parts_that_is_cut_off_leaves_nothing(
    trials: Trials, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_objects, "_PART", 5 * 1024 * 1024)  # the smallest that S3 allows
    rows = 400_000
    for trial in trials("an upload in parts, half or all of its requests fail", 8):
        with trial:
            here = bucket.another()
            share = (0.5, 1)[trial.number % 2]
            here.flaky.be_bad(share, Random(trial.number), ("500", "reset", "answer lost"))
            try:
                large = here.store.write(works.KEY, works.batches(rows, 4))
                trial.outcome = "complete"
                assert here.store.verify(large)
            except StoreUnavailableError:
                trial.outcome = "absent"
                assert here.contents() == {}
            finally:
                here.flaky.be_good()
            trial.facts["failed"] = dict(here.flaky.injected)
            uploads = here.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
            trial.facts["parts left"] = sum(it["Key"].startswith(here.prefix) for it in uploads)
            assert here.store.verify(here.store.write(works.KEY, works.batches(rows, 4)))


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("403 clock skew", StoreError, "the clock of this machine"),
        ("400 RequestTimeout", StoreUnavailableError, "the store does not answer"),
    ],
)
def test_what_the_server_says_of_clocks_and_idle_uploads_is_told_right(
    fault: str, error: type[Exception], words: str, trials: Trials, bucket: Bucket
) -> None:
    def look(store: ArtifactStore) -> object:
        return store.get_record(".memo/a.json")

    attempts: list[Callable[[ArtifactStore], object]] = [
        look,
        lambda store: store.put_record(".memo/a.json", {}),
        lambda store: store.create_record(".memo/a.json", {}),
        lambda store: store.versions(["a"]),
    ]
    for trial in trials(f"the store answers every request with {fault}", 4):
        with trial:
            here = bucket.another()
            here.flaky.be_bad(1, trial.random, (fault,))
            with pytest.raises(error, match=words):
                attempts[trial.number % 4](here.store)
            here.flaky.be_good()
            attempts[trial.number % 4](here.store)
            trial.outcome = f"told: {words}"


@pytest.mark.parametrize("share", SHARES)
def test_a_training_on_a_store_that_fails_succeeds_or_fails_and_the_next_one_succeeds(
    share: float, trials: Trials, bucket: Bucket, customers: Project
) -> None:
    customers.add("customers", DUMMY)

    def train(here: Bucket, endpoint: str) -> Any:
        settings = replace(customers.settings, store_url=here.url, s3_endpoint_url=endpoint)
        job = build_defs(settings).resolve_job_def("customers_training")
        return job.execute_in_process(instance=customers.instance, raise_on_error=False)

    reference = bucket.another()
    assert train(reference, reference.direct).success
    expected = artifacts(reference.contents())
    for trial in trials(f"the store fails {share:.0%} of the requests of a training", 2):
        with trial:
            here = bucket.another(patience(share))
            assert here.store
            here.flaky.be_bad(share, trial.random)
            begun = perf_counter()
            result = train(here, here.endpoint)
            trial.facts["seconds of the run"] = round(perf_counter() - begun, 2)
            here.flaky.be_good()
            trial.facts |= {"requests": here.flaky.requests, "failed": dict(here.flaky.injected)}
            retries = [event for event in result.all_events if event.is_step_up_for_retry]
            trial.facts["steps tried again"] = len(retries)
            trial.outcome = "succeeded" if result.success else "failed"
            check(here.contents())
            assert result.success or share > 0.1, [
                event.step_failure_data for event in result.all_events if event.is_step_failure
            ]
            if result.success:
                assert expected <= here.contents().keys()
            assert train(here, here.direct).success
            found = here.contents()
            check(found)
            assert artifacts(found) == expected


@pytest.mark.skipif(LONGER == 1, reason="takes minutes: MLOPS_TEST_FAULTS=2 for the long mode")
def test_the_clients_real_waits_are_bounded(
    trials: Trials, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = FlakyServer(s3_endpoint, hold=600)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with flaky.started() as endpoint:
        faults = ("no answer", "503 SlowDown", "reset", "500")
        name = "the store fails all requests, the client as it is"
        for trial, fault in zip(trials(name, 1), faults, strict=False):
            with trial:
                store = ArtifactStore(f"s3://{BUCKET}/{uuid.uuid4().hex}", endpoint)
                flaky.be_bad(1, trial.random, (fault,))
                begun = perf_counter()
                with pytest.raises(StoreUnavailableError):
                    store.get_record(".memo/a.json")
                trial.facts |= {"fault": fault, "requests": flaky.requests}
                trial.outcome = f"{fault}: given up"
                assert perf_counter() - begun < 180
                flaky.be_good()
