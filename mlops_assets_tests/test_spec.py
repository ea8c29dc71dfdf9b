"""The rules of a pipeline's fields, for specs made in Python."""

import datetime
import json
import math
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mlops_assets.spec import ComputeSpec, Gate, PipelineSpec, in_bytes

CHURN = {
    "name": "churn",
    "data": {"uri": "churn.csv", "target": "churn"},
    "model": {"estimator": "sklearn.linear_model.LogisticRegression"},
}
PRICES = {
    "name": "prices",
    "data": {"uri": "prices.parquet", "target": "price"},
    "model": {"estimator": "sklearn.linear_model.Ridge"},
}
LINEAR_SVC = {"model.estimator": "sklearn.svm.LinearSVC"}


def with_fields(base, fields):
    """A pipeline's fields with some replaced, named by dotted path."""
    changed = deepcopy(base)
    for path, value in fields.items():
        *parents, last = path.split(".")
        part = changed
        for parent in parents:
            part = part.setdefault(parent, {})
        part[last] = value
    return changed


def make(base=CHURN, **fields):
    """A spec with some fields replaced; `__` stands for the dot."""
    return PipelineSpec(
        **with_fields(base, {name.replace("__", "."): value for name, value in fields.items()})
    )


def mistakes(base, fields):
    """What is said of a spec, by dotted place."""
    with pytest.raises(ValidationError) as caught:
        PipelineSpec(**with_fields(base, fields))
    return {".".join(map(str, e["loc"])): e["msg"] for e in caught.value.errors()}


def test_everything_but_data_and_estimator_has_a_default():
    spec = make()
    assert spec.split.test_size == 0.2
    assert spec.retries.delay == 5.0
    assert spec.model.known_task == "classification"


def test_a_spec_survives_a_round_trip_through_its_fields():
    spec = make(
        data__checks={"between": {"a": (0, math.inf)}}, split__by_time="day", retries__delay="2m"
    )
    assert PipelineSpec(**spec.model_dump()) == spec


def test_numbers_that_json_lacks_stay_apart_in_json():
    def as_json(value):
        return make(model__params={"class_weight": value}).model_dump_json()

    assert len({as_json(v) for v in (None, math.nan, math.inf, -math.inf)}) == 4
    assert json.loads(as_json(math.inf))


SCORED = {"score": {"uri": "{date}.csv"}}
LABELLED = {"score": {"uri": "{date}.csv", "labels": "labels/{date}.csv", "id": ["id"]}}


@pytest.mark.parametrize(
    ("fields", "place", "why"),
    [
        ({"name": "Churn"}, "name", "lower-case letters"),
        ({"name": ""}, "name", "beginning with a letter"),
        ({"name": "a" * 61}, "name", "up to 60"),
        ({"name": "churn\n"}, "name", "cannot name a pipeline"),
        ({"data.target": ""}, "data.target", "at least 1 character"),
        ({"data.uri": "asset://a/predictons"}, "data.uri", "did you mean 'predictions'"),
        ({"data.uri": "asset://a/model"}, "data.uri", "allowed are raw, train, test"),
        ({"data.uri": "asset://raw"}, "data.uri", "'' is no table"),
        ({"data.uri": "asset:///raw"}, "data.uri", "like asset://churn/predictions"),
        ({"data.uri": "asset://churn/raw"}, "data.uri", "made by this pipeline"),
        ({"train.fresh_within": "soon"}, "train.fresh_within", "is no duration"),
        ({"train.fresh_within": 59.0}, "train.fresh_within", "greater than or equal to 60"),
        ({"score": {"uri": "asset://a/{date}"}}, "score.uri", "is an asset"),
        ({"data.drop": ["id", "churn"]}, "data.drop.1", "'churn' is the target"),
        ({"data.checks": {"between": {"a": [2, 1]}}}, "data.checks.between.a", "2.0 is above"),
        ({"data.checks": {"between": {"a": [math.nan, 1]}}}, "data.checks.between.a", "above"),
        ({"data.checks": {"between": {"a": [1]}}}, "data.checks.between.a", "[lowest, highest]"),
        ({"split.test_size": "0.2"}, "split.test_size", "valid number"),
        ({"split.test_size": math.nan}, "split.test_size", "finite"),
        ({"split.seed": True}, "split.seed", "valid integer"),
        ({"split.by_time": "a", "split.group": "b"}, "split.group", "exclude each other"),
        ({"split.by_time": "churn"}, "split.by_time", "'churn' is the target"),
        ({"split.group": "churn"}, "split.group", "'churn' is the target"),
        ({"model.estimator": "os.system"}, "model.estimator", "a part of Python itself"),
        ({"model.task": "regression"}, "model.estimator", "is for classification, but model.task"),
        ({"model.params": {"max_itr": 1}}, "model.params.max_itr", "did you mean 'max_iter'?"),
        ({"model.params": {"C": {1, 2}}}, "model.params.C", "not set"),
        ({"model.params": {"C": [1, {"a": object()}]}}, "model.params.C.1.a", "not object"),
        ({"model.params": {"C": datetime.date.min}}, "model.params.C", "not date"),
        ({"model.params": {"C": {(): 1}}}, "model.params.C.[key]", "not tuple"),
        ({"model.features": "json:loads"}, "model.features", "json is a library"),
        ({"model.compute": {"memory": "2 GB"}}, "model.compute.memory", "like 512Mi or 2Gi"),
        ({"model.compute": {"cpu": math.inf}}, "model.compute.cpu", "finite"),
        (
            {"model.compute": {"memory": "2Gi", "max_memory": "1024Mi"}},
            "model.compute.max_memory",
            "less than memory, which is 2Gi",
        ),
        ({"model.compute": {"gpu": "maybe"}}, "model.compute.gpu", "0 to 64, and required"),
        ({"model.compute": {"gpu": True}}, "model.compute.gpu", "0 to 64, and required"),
        ({"model.compute": {"gpu_type": "NVIDIA-L4"}}, "model.compute.gpu_type", "set gpu to 1"),
        (
            {"model.compute": {"node_selector": {"disk": "a b"}}},
            "model.compute.node_selector.disk",
            "not a value of a label",
        ),
        (
            {"model.compute": {"tolerations": [{"key": "spot", "value": "yes"}]}},
            "model.compute.tolerations.0.value",
            "operator: Equal",
        ),
        ({"evaluate.metrics": ["auc"]}, "evaluate.metrics.0", "'auc' is not a metric"),
        ({"evaluate.metrics": ["roc_auc", "r2"]}, "evaluate.metrics.1", "measures regression"),
        ({"evaluate.gates": {"r2": ">= 0.5"}}, "evaluate.gates.r2", "measures regression"),
        ({"promote.by": "r2"}, "promote.by", "measures regression"),
        ({"promote.by": "rocauc"}, "promote.by", "did you mean 'roc_auc'?"),
        ({"score": {"uri": "in/*.csv"}}, "score.uri", "must contain {date}"),
        ({"score": {"uri": "{date}/{date}.csv"}}, "score.uri", "must contain {date}, once"),
        ({"score": {"uri": "{day}/{date}.csv"}}, "score.uri", "must contain {date}, once"),
        ({"score": {"uri": "{date}"}}, "score.uri", "must end with"),
        ({"score": {"uri": "sklearn://{date}"}}, "score.uri", "fixed data set"),
        ({"score": {"uri": "{date}.csv", "schedule": "x"}}, "score.schedule", "five fields"),
        ({"drift": {"min_rows": 5}}, "drift", "without score there are no predictions to watch"),
        ({**SCORED, "drift": {"psi": {"warn": 0.2, "error": 0.1}}}, "drift.psi.error", "is 0.2"),
        (
            {**SCORED, "drift": {"psi": {"warn": -1}}},
            "drift.psi.warn",
            "greater than or equal to 0",
        ),
        ({**SCORED, "drift": {"p_value": 0}}, "drift.p_value", "greater than 0"),
        ({**SCORED, "drift": {"columns": {"a": {"psi": 1}}}}, "drift.columns.a.psi", "Levels"),
        ({**SCORED, "drift": {"min_rows": 0}}, "drift.min_rows", "greater than or equal to 1"),
        ({**SCORED, "drift": {"metrics": {"auc": {}}}}, "drift.metrics.auc.[key]", "not a metric"),
        (
            {
                **LABELLED,
                "evaluate": {"metrics": ["accuracy"]},
                "drift": {"metrics": {"roc_auc": {"warn": 0.1}}},
            },
            "drift.metrics.roc_auc",
            "'roc_auc' is not measured before promotion: add it to evaluate.metrics",
        ),
        (
            {**LABELLED, "drift": {"metrics": {"r2": {"warn": 0.1}}}},
            "drift.metrics.r2",
            "measures regression",
        ),
        (
            {**SCORED, "drift": {"metrics": {"roc_auc": {"warn": 0.1}}}},
            "drift.metrics",
            "need the labels of score.labels",
        ),
        ({"score": {"uri": "s3://{date}/a.csv"}}, "score.uri", "after the bucket or host"),
        (
            {"score": {**SCORED["score"], "start": "2026-1-1"}},
            "score.start",
            "write it like 2026-01-01",
        ),
        ({"score": {**SCORED["score"], "start": "2026-02-30"}}, "score.start", "is not a day"),
        ({"score": {**SCORED["score"], "start": 20260101}}, "score.start", "is not a day"),
        ({"score": {**SCORED["score"], "id": ["a", "a"]}}, "score.id.1", "is given twice"),
        (
            {"score": {**SCORED["score"], "id": ["prediction"]}},
            "score.id.0",
            "column of the output",
        ),
        (
            {"score": {**SCORED["score"], "labels": "{date}.csv"}},
            "score.labels",
            "list at least one",
        ),
        ({"train.schedule": "* * * *"}, "train.schedule", "five fields"),
        ({"train.timezone": "Europe/Pariss"}, "train.timezone", "did you mean 'Europe/Paris'?"),
        ({"train.timezone": "../../etc/passwd"}, "train.timezone", "is not a time zone"),
        ({"train.timezone": "Europe"}, "train.timezone", "is not a time zone"),
        ({"train.timezone": ""}, "train.timezone", "is not a time zone"),
        ({"train.timezone": "a\0"}, "train.timezone", "is not a time zone"),
        ({"timeout": "soon"}, "timeout", "is not a duration"),
        ({"timeout": 0}, "timeout", "greater than 0"),
        ({"timeout": "9000h"}, "timeout", "less than or equal to 31622400"),
        ({"retries.delay": "5"}, "retries.delay", "is not a duration"),
        ({"retries.delay": "-5s"}, "retries.delay", "is not a duration"),
        ({"retries.delay": "5d"}, "retries.delay", "is not a duration"),
        ({"retries.delay": -1}, "retries.delay", "greater than or equal to 0"),
        ({"retries.delay": "25h"}, "retries.delay", "less than or equal to 86400"),
        ({"retries.max": 101}, "retries.max", "less than or equal to 100"),
        ({"owners": ["team:ml", "bob"]}, "owners.1", "'bob' is not an owner"),
        ({"owners": ["team:"]}, "owners.0", "allowed are an e-mail address and team:NAME"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused_at_its_place(fields, place, why):
    assert why in mistakes(CHURN, fields)[place]


@pytest.mark.parametrize(
    ("base", "fields", "place", "why"),
    [
        (PRICES, {"data.positive_class": "Yes"}, "model.estimator", "remove data.positive_class"),
        (PRICES, {"evaluate.metrics": ["roc_auc"]}, "evaluate.metrics.0", "this is regression"),
        (
            CHURN,
            {"data.positive_class": "Yes", "promote.by": "top_k_accuracy"},
            "promote.by",
            "measures multiclass models, and this is binary",
        ),
        (
            CHURN,
            {**LINEAR_SVC, "evaluate.metrics": ["neg_log_loss"]},
            "evaluate.metrics.0",
            "needs predict_proba, which sklearn.svm.LinearSVC does not have",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(base, fields, place, why):
    assert why in mistakes(base, fields)[place]


def test_all_mistakes_of_a_spec_are_found_at_once():
    fields = {
        "data.target": 1,
        "split.group": "a",
        "split.by_time": "b",
        "model.params": {"a": 1, "b": 2},
        "model.compute": {"gpu": -1},
        "evaluate.gates": {"accuracy": "= 1", "acc": "> 1"},
        "owners": ["a", "b"],
        "surplus": 1,
    }
    assert len(mistakes(CHURN, fields)) == 10


@pytest.mark.parametrize(
    "uri",
    [
        "a.csv",
        "../data/*.CSV",
        "/data/**/part-?.jsonl.gz",
        "s3://bucket/a b/*.parquet",
        "gs://b/x.jsonl",
        "https://example.org/data.csv?raw=1&x=y",
        "file:///tmp/x.csv.gz",
        "hdfs://node/x.parquet",
        *(f"sklearn://{name}" for name in ("iris", "wine", "breast_cancer", "diabetes", "digits")),
    ],
)
def test_a_source_that_can_be_read_is_accepted(uri):
    assert make(data__uri=uri).data.uri == uri


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("", "must end with one of .csv, .csv.gz"),
        ("folder", "must end with"),
        ("model.pkl", "must end with"),
        ("s3://bucket/prefix/", "must end with"),
        ("s33://bucket/a.csv", "'s33://' is not a known kind of address (did you mean 's3'?)"),
        ("://a.csv", "is not a known kind of address"),
        ("sklearn://irish", "no data set 'irish' (did you mean 'iris'?)"),
        ("sklearn://linnerud", "no data set 'linnerud'"),
        ("a\0.csv", "invisible characters"),
        ("a.csv\n", "invisible characters"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(uri, why):
    assert why in mistakes(CHURN, {"data.uri": uri})["data.uri"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("5s", 5), ("1.5 m", 90), ("1h", 3600), (7, 7), (0.5, 0.5)],
)
def test_a_duration_is_read_as_seconds(text, seconds):
    assert make(retries__delay=text).retries.delay == seconds


@pytest.mark.parametrize(
    ("condition", "value", "passes"),
    [
        (">= 0.80", 0.8, True),
        ("> 0.80", 0.8, False),
        ("<=-1e-3", -0.001, True),
        (" < .5 ", 0.5, False),
        (">= 0", math.nan, False),
        ("<= 0", math.nan, False),
    ],
)
def test_a_gate_compares_a_metric_with_its_threshold(condition, value, passes):
    assert Gate.parse("accuracy", condition).passes(value) is passes


@given(
    st.sampled_from([">=", ">", "<=", "<"]),
    st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_gate_reads_as_it_was_written(operator, threshold):
    gate = Gate.parse("r2", f"{operator} {threshold}")
    assert gate == Gate("r2", operator, threshold)
    assert Gate.parse("r2", str(gate).removeprefix("r2")) == gate


@pytest.mark.parametrize(
    "condition", ["", "0.8", "= 0.8", "== 0.8", ">= x", ">= nan", ">= inf", ">= 1e999", "≥ 1", 0.8]
)
def test_a_condition_that_is_none_is_refused(condition):
    why = mistakes(CHURN, {"evaluate.gates": {"accuracy": condition}})["evaluate.gates.accuracy"]
    assert 'such as ">= 0.80"' in why


def test_the_metrics_are_those_listed_and_those_that_decide():
    spec = make(
        evaluate={"metrics": ["accuracy", "f1_macro"], "gates": {"roc_auc": ">= 0.8"}},
        promote__by="recall_macro",
    )
    assert spec.metrics_for("binary") == ["recall_macro", "accuracy", "f1_macro", "roc_auc"]
    assert [str(gate) for gate in spec.evaluate.conditions] == ["roc_auc >= 0.8"]


def test_the_default_metrics_suit_the_problem_and_the_estimator():
    assert make().metrics_for("binary")[0] == "roc_auc"
    assert make().metrics_for("multiclass")[0] == "accuracy"
    assert make(PRICES).metrics_for("regression")[0] == "r2"


def test_the_same_spec_is_equal_and_cannot_be_changed():
    assert make() == make()
    with pytest.raises(ValidationError, match="frozen"):
        make().name = "other"


@pytest.mark.parametrize(
    ("value", "level"), [(0.0, "ok"), (0.0999, "ok"), (0.1, "warn"), (0.25, "error"), (9, "error")]
)
def test_a_stability_index_means_what_is_usual_unless_the_file_says_otherwise(value, level):
    assert make().drift.psi.level(value) == level
    spec = make(**LABELLED, drift={"psi": {"warn": 10}, "metrics": {"roc_auc": {"warn": 0.02}}})
    assert spec.drift.psi.level(value) == "ok"
    assert spec.drift.metrics["roc_auc"].level(0.02) == "warn"


def test_memory_is_written_as_kubernetes_writes_it() -> None:
    assert [in_bytes(text) for text in ("1500", "1k", "512Mi", "2Gi")] == [
        1500,
        1000,
        512 * 2**20,
        2 * 2**30,
    ]


def test_a_step_may_be_given_four_times_its_memory_unless_the_file_says_otherwise() -> None:
    assert ComputeSpec(memory="2Gi").memory_limit == 8 * 2**30
    assert ComputeSpec(memory="2Gi", max_memory="3G").memory_limit == 3 * 10**9


def test_a_required_gpu_is_one_gpu() -> None:
    assert [ComputeSpec(gpu=gpu).gpus for gpu in (0, 2, "required")] == [0, 2, 1]
