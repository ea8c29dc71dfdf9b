"""Pipeline files: what is read, and how every kind of mistake is reported."""

import json
import os
import random
import re
import string
import subprocess
import sys
import textwrap
from datetime import date
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mlops_assets
from mlops_assets.errors import UserError
from mlops_assets.pipeline_file import (
    MAX_BYTES,
    PipelineFileError,
    json_schema,
    load_pipeline,
    load_pipelines,
)
from mlops_assets.spec import PipelineSpec

SHIPPED = Path(mlops_assets.__file__).parent / "pipelines"
MINIMAL = """\
data: {uri: a.csv, target: y}
model: {estimator: sklearn.linear_model.LogisticRegression}
"""


@pytest.fixture
def write(tmp_path):
    """Write a file; text is dedented, bytes are kept."""

    def write_file(content, name="churn.yaml"):
        path = tmp_path / name
        if isinstance(content, str):
            content = textwrap.dedent(content).encode()
        path.write_bytes(content)
        return path

    return write_file


def problems(path):
    """The problems of a file, as `line:column: message`."""
    with pytest.raises(PipelineFileError) as caught:
        load_pipeline(path)
    prefix = f"{path}:"
    lines = str(caught.value).splitlines()
    assert all(line.startswith(prefix) for line in lines)
    return [line.removeprefix(prefix) for line in lines]


# --- what is read -------------------------------------------------------------------------------


def test_the_shipped_pipelines_are_valid():
    pipelines = load_pipelines(SHIPPED)
    assert pipelines.broken == {}
    assert list(pipelines.valid) == ["churn", "greeting", "iris"]
    assert pipelines.valid["iris"].model.params == {"n_estimators": 100, "random_state": 42}
    assert pipelines.valid["iris"].metrics_for("multiclass") == [
        "accuracy",
        "f1_macro",
        "roc_auc_ovr",
    ]


def test_the_columns_that_churn_names_are_in_its_data():
    churn = load_pipeline(SHIPPED / "churn.yaml")
    with (churn.folder / churn.data.uri).open() as file:
        header = file.readline().strip().split(",")
    checks = churn.data.checks
    named = [churn.data.target, *churn.data.columns, *checks.not_null, *checks.between]
    assert set(named) <= set(header)


def test_the_name_and_the_folder_come_from_the_path(write, monkeypatch):
    path = write(MINIMAL, "my_model_2.yml")
    monkeypatch.chdir(path.parent)
    spec = load_pipeline(Path(path.name))
    assert spec.name == "my_model_2"
    assert spec.folder == path.parent


def test_a_file_and_python_make_the_same_spec(write):
    path = write(MINIMAL)
    assert load_pipeline(path) == PipelineSpec(
        name="churn",
        data={"uri": "a.csv", "target": "y"},
        model={"estimator": "sklearn.linear_model.LogisticRegression"},
        folder=path.parent,
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1_000", 1000),
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("1.5", 1.5),
        (".inf", float("inf")),
        ("0x10", 16),
        ("0x_", "0x_"),
        ("true", True),
        ("'1'", "1"),
        ("null", None),
        ("", None),
        ("[1, [a, {b: 2}]]", [1, ["a", {"b": 2}]]),
        ("{0: 1, yes: 2}", {0: 1, True: 2}),
        ("|\n      text", "text\n"),
        ("ünïcode ☃", "ünïcode ☃"),
        ("&anchor 3", 3),
        ("<<", "<<"),
        ("=", "="),
    ],
)
def test_a_parameter_has_the_value_that_its_yaml_says(write, text, value):
    path = write(
        "data: {uri: a.csv, target: y}\nmodel:\n  estimator: sklearn.svm.SVC\n  params:\n"
        f"    C: {text}\n"
    )
    read = load_pipeline(path).model.params["C"]
    assert read == value
    assert type(read) is type(value)


def test_a_file_with_a_byte_order_mark_and_windows_line_ends_is_read(write):
    path = write(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_pipeline(path).data.target == "y"


def test_loading_imports_neither_scikit_learn_nor_pandas():
    program = (
        "import sys; from mlops_assets.pipeline_file import load_pipelines\n"
        f"pipelines = load_pipelines({str(SHIPPED)!r})\n"
        "heavy = {'sklearn', 'pandas', 'numpy', 'fsspec', 'dagster'}\n"
        "print(len(pipelines.valid), sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "3 []\n", done.stderr


# --- mistakes -----------------------------------------------------------------------------------

TAIL = "\nmodel: {estimator: sklearn.svm.SVC}\n"
HEAD = "data: {uri: a.csv, target: y}\n"


def tuned(space):
    return f"{HEAD}tune: {{trials: 3, space: {{{space}}}}}{TAIL}"


CATALOGUE = [
    # YAML
    ("", "1:1: the file is empty: write fields such as data: and model:"),
    ("# nothing", "1:1: the file is empty"),
    ("- data", "1:1: the file holds a list: write fields"),
    ("text", "1:1: the file holds the text 'text'"),
    ("data:\n\turi: x", "2:1: this is not valid YAML: a tab: indent with spaces"),
    ("a: [1,\nb: 2", "2:5: this is not valid YAML: while parsing a flow sequence"),
    ("a: [1", "1:6: this is not valid YAML"),
    ("a: 'x", "1:6: this is not valid YAML: while scanning a quoted scalar"),
    ("a: b: c", "1:5: this is not valid YAML: fields of one level start in the same column"),
    ("a: >= 0.8", "1:5: this is not valid YAML: a text that begins with > or | needs quotes"),
    ("a: @daily", "1:4: this is not valid YAML: a text that begins with @ needs quotes"),
    (HEAD + "---\n" + HEAD, "3:1: a file holds one pipeline: remove this document"),
    (HEAD + HEAD + TAIL, "2:1: 'data' is given twice, first in line 1"),
    (f"data:\n  uri: a.csv\n  target: y\n  uri: b.csv{TAIL}", "4:3: 'uri' is given twice"),
    (f"{HEAD}split: &s {{seed: 1}}\ntune: *s{TAIL}", "3:7: aliases are not supported: repeat"),
    ("a: &a [*a]", "1:8: aliases are not supported"),
    ("a: !!python/object/apply:os.system [x]", "1:4: tags are not supported: remove tag:yaml"),
    ("a: !!str 1", "1:4: tags are not supported"),
    ("{[a]: 1}", "1:2: a field's name must be text, not a list, map or alias"),
    (f"{HEAD}description: 2024-01-31 12:00:00{TAIL}", "2:14: 2024-01-31 12:00:00 is a time: put "),
    ("a: " + "9" * 5000, "1:4: a number has at most 40 digits"),
    ("a: 0x" + "f" * 5000, "1:4: a number has at most 40 digits"),
    ("a: " + "x" * 20_000, "1:4: a text of 20000 characters is too long: at most 10000"),
    ("[" * 10_000, "1:34: values are nested deeper than 32 levels"),
    ("a: " + "{b: " * 10_000, "values are nested deeper than 32 levels"),
    ("a: x\0y", "1:5: the character U+0000 is not allowed in YAML: remove it"),
    ("a: é\nbb: x\x07", "2:6: the character U+0007 is not allowed"),
    (b"a: caf\xe9", "1:7: the byte 0xe9 is not UTF-8 text: save the file as UTF-8"),
    ("a: x".encode("utf-16"), "1:1: the byte 0xff is not UTF-8 text"),
    (b"#" * (MAX_BYTES + 1), "1:1: the file is larger than 256 KiB"),
    # fields
    (HEAD, "1:1: the field 'model' is missing: What is trained."),
    (f"data:\n  uri: a.csv{TAIL}", "1:1: data: the field 'target' is missing: The column"),
    (f"{HEAD}trian: {{}}{TAIL}", "2:1: unknown field 'trian' (did you mean 'train'?); allowed are"),
    (f"{HEAD}name: churn{TAIL}", "2:1: unknown field 'name': a pipeline has the name of its file"),
    (f"{HEAD}folder: /{TAIL}", "2:1: unknown field 'folder'; allowed are description, retr"),
    (f"{HEAD}3: x{TAIL}", "2:1: unknown field '3'; allowed are"),
    (f"{HEAD}split: {{sed: 1}}{TAIL}", "2:9: split: unknown field 'sed' (did you mean 'seed'?)"),
    (f"{HEAD}score: {{ur: x}}{TAIL}", "2:9: score: unknown field 'ur' (did you mean 'uri'?)"),
    (f"data: 3{TAIL}", "1:7: data: must be a map of fields, found the number 3"),
    (f"{HEAD}split:{TAIL}", "2:7: split: must be a map of fields, found nothing"),
    (f"data: {{uri: a.csv, target: 1}}{TAIL}", "1:28: data.target: must be text, found the number"),
    (f"data: {{uri: a.csv, target: no}}{TAIL}", "found false; put quotes around it"),
    (f"data: {{uri: a.csv, target: ''}}{TAIL}", "data.target: must be a text that is not empty"),
    (f"data: {{uri: a.csv, target: y, drop: id}}{TAIL}", "1:37: data.drop: must be a list, found"),
    (f"data: {{uri: a.csv, target: y, drop: [y]}}{TAIL}", "1:38: data.drop[0]: 'y' is the target"),
    (
        f"data: {{uri: a.csv, target: y, positive_class: [1]}}{TAIL}",
        "1:47: data.positive_class: must be text or a whole number or true or false, found a list",
    ),
    (
        f"data: {{uri: a.csv, target: y, columns: {{a: int}}}}{TAIL}",
        "1:44: data.columns.a: must be 'number', 'category', 'boolean', 'datetime' or 'text', "
        "found the text 'int'",
    ),
    (
        f"data: {{uri: a.csv, target: y, columns: {{1: text}}}}{TAIL}",
        "1:41: data.columns: the name 1 must be text: put quotes around it",
    ),
    (
        f"data: {{uri: a.csv, target: y, checks: {{between: {{a: [0, x]}}}}}}{TAIL}",
        "data.checks.between.a[1]: must be a number, found the text 'x'",
    ),
    (f"{HEAD}split: {{test_size: 2}}{TAIL}", "2:20: split.test_size: must be less than 1.0, found"),
    (
        f'{HEAD}split: {{seed: "1"}}{TAIL}',
        "2:15: split.seed: must be a whole number, found the text",
    ),
    (
        f"{HEAD}split: {{seed: 1.5}}{TAIL}",
        "split.seed: must be a whole number, found the number 1.5",
    ),
    (f"{HEAD}train: {{on_new_data: 1}}{TAIL}", "must be true or false, found the number 1"),
    (f"{HEAD}retries: {{backoff: 2}}{TAIL}", "must be 'exponential', 'linear' or 'constant'"),
    (f"{HEAD}retries: {{delay: [1]}}{TAIL}", "2:18: retries.delay: must be a number, found a list"),
    (f"{HEAD}timeout: soon{TAIL}", "2:10: timeout: 'soon' is not a duration: write seconds"),
    (
        f"{HEAD}tune: {{trials: -1}}{TAIL}",
        "2:16: tune.trials: must be at least 0, found the number",
    ),
    (f"{HEAD}tune: {{trials: 3}}{TAIL}", "2:1: tune.space: trials without a space: name the"),
    (f"{HEAD}tune: {{space: {{C: [1]}}}}{TAIL}", "tune.space: a space without trials: set tune.tr"),
    (tuned("gama: [1]"), "tune.space.gama: SVC has no parameter 'gama' (did you mean 'gamma'?)"),
    (tuned("C: 1"), "2:30: tune.space.C: must be a list of values, or a map such as {low: 1, high"),
    (tuned("C: []"), "2:27: tune.space.C: an empty list has nothing to try"),
    (tuned("C: [1, 2, 1]"), "2:37: tune.space.C[2]: '1' is in the list twice"),
    (tuned("C: [1, .inf]"), "2:34: tune.space.C[1]: 'inf' cannot be tried: give finite numbers"),
    (tuned("class_weight: [{0: 1}]"), "tune.space.class_weight[0]: '{0: 1}' cannot be tried"),
    (tuned("C: {low: 1, hig: 2}"), "tune.space.C: unknown field 'hig' (did you mean 'high'?)"),
    (tuned("C: {low: 1}"), "2:27: tune.space.C: the field 'high' is missing"),
    (tuned("C: {low: 2, high: 2}"), "2:45: tune.space.C.high: must be more than low, which is 2"),
    (tuned("C: {low: a, high: 2}"), "2:36: tune.space.C.low: must be a whole number or a number"),
    (tuned("C: {low: 0, high: 2, log: true}"), "2:53: tune.space.C.log: low must be more than 0"),
    (
        tuned("C: {low: 0, high: 9, step: 2}"),
        "tune.space.C.step: steps of 2 do not lead from 0 to 9",
    ),
    (tuned("C: {low: 1, high: 9, log: true, step: 2}"), "step and log exclude each other"),
    (tuned("C: [1]}, by: {r2: 1"), "tune.by: must be text, found a map of fields"),
    (f"{HEAD}{TAIL[1:]}tune: {{by: r2}}", "tune.by: 'r2' measures regression models"),
    (f"{HEAD}promote: {{min_improvement: .nan}}{TAIL}", "must be a finite number, found"),
    (f"{HEAD}owners: [me]{TAIL}", "2:10: owners[0]: 'me' is not an owner: allowed are"),
    (
        f"{HEAD}evaluate: {{gates: {{f1: 1}}}}{TAIL}",
        "2:24: evaluate.gates.f1: '1' is not a condition",
    ),
    (
        f'{HEAD}evaluate: {{gates: {{rocauc: ">= 1"}}}}{TAIL}',
        "2:20: evaluate.gates.rocauc: 'rocauc' is not a metric (did you mean 'roc_auc'?)",
    ),
    (
        f"{HEAD}evaluate: {{metrics: [r2]}}{TAIL}",
        "2:22: evaluate.metrics[0]: 'r2' measures regression",
    ),
    (
        f"{HEAD}model: {{estimator: sklearn.svm.svc}}",
        "sklearn.svm has no 'svc' (did you mean 'SVC'?)",
    ),
    (
        f"{HEAD}model:\n  estimator: sklearn.svm.SVC\n  params:\n    gama: 1\n",
        "5:5: model.params.gama: SVC has no parameter 'gama' (did you mean 'gamma'?); allowed",
    ),
    (
        f"{HEAD}model: {{estimator: sklearn.svm.SVC, task: regression}}",
        "2:20: model.estimator: 'sklearn.svm.SVC' is for classification, but model.task is",
    ),
]


@pytest.mark.parametrize(("content", "expected"), CATALOGUE)
def test_a_mistake_is_reported_at_its_place_with_what_is_allowed(write, content, expected):
    assert any(expected in problem for problem in problems(write(content)))


def test_a_required_parameter_that_is_missing_is_reported_where_parameters_belong(
    tmp_path, monkeypatch, write
):
    write(
        "class Model:\n    def __init__(self, depth): ...\n    def fit(self): ...\n"
        "    def predict(self): ...\n",
        "needs_depth.py",
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = write(f"{HEAD}model:\n  estimator: needs_depth.Model\n")
    assert problems(path) == ["2:1: model.params: needs_depth.Model needs the parameter 'depth'"]


def test_all_mistakes_of_a_file_are_reported_in_its_order(write):
    path = write(
        """\
        description: 3
        data: {uri: a.txt, target: y, target: z, positve_class: a}
        split: {seed: -1, group: a, by_time: b}
        model:
          estimator: sklearn.ensemble.RandomForestClassifier
          params: {n_estimatrs: 100, when: 2024-01-01, max_depht: 3}
          compute: {memory: 2GiB}
        evaluate: {metrics: [rocauc], gates: {roc_auc: "about 1"}}
        promote: {by: best}
        score: {uri: a.csv, schedule: "61 * * * *"}
        train: {schedule: daily, timezone: Mars}
        retries: {delay: 5 parsecs}
        owners: [bob]
        extra: 1
        """
    )
    places = [tuple(map(int, problem.split(":")[:2])) for problem in problems(path)]
    assert places == sorted(places)
    assert [line for line, _ in places] == [
        *(1, 2, 2, 2, 3, 3, 6, 6, 6, 7, 8, 8, 9, 10, 10, 11, 11, 12, 13, 14)
    ]


def test_messages_are_free_of_pydantics_words(write):
    for content, _ in CATALOGUE:
        for problem in problems(write(content)):
            for word in ("Input should", "Value error", "pydantic", "Field required", "dictionary"):
                assert word not in problem


def test_a_long_value_is_cut_in_the_message(write):
    [problem] = problems(write(f"data: {{uri: {'x' * 9000}, target: y}}{TAIL}"))
    assert len(problem) < 300


@pytest.mark.parametrize("name", ["Churn.yaml", "my model.yaml", "2nd.yaml", "a.b.yaml", "é.yaml"])
def test_a_file_name_that_cannot_name_a_pipeline_is_reported(write, name):
    [problem] = problems(write(MINIMAL, name))
    assert problem.startswith("1:1: name: ")
    assert "lower-case letters" in problem


def test_a_missing_file_is_reported(tmp_path):
    assert problems(tmp_path / "nothing.yaml") == ["1:1: the file does not exist"]
    assert problems(tmp_path / "a\0.yaml") == ["1:1: the file does not exist"]


def test_what_is_no_regular_file_is_reported(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    broken = load_pipelines(tmp_path).broken
    assert set(broken) == {"dangling", "folder", "pipe"}
    assert "is not a regular file" in str(broken["folder"])
    assert "is not a regular file" in str(broken["pipe"])
    assert "does not exist" in str(broken["dangling"])


# --- folders and globs --------------------------------------------------------------------------


def test_a_broken_file_does_not_take_the_others_with_it(write, tmp_path):
    write(MINIMAL, "b.yaml")
    write(MINIMAL, "a.yml")
    write("data: 1", "c.yaml")
    write("not a pipeline", "readme.md")
    write("#", ".hidden.yaml")
    pipelines = load_pipelines(tmp_path)
    assert list(pipelines.valid) == ["a", "b"]
    assert list(pipelines.broken) == ["c"]
    assert [problem.path for problem in pipelines.broken["c"].problems] == [tmp_path / "c.yaml"] * 2


FROM_A = MINIMAL.replace("a.csv", "'asset://a/train'")


def test_a_source_may_be_the_asset_of_another_pipeline(write, tmp_path):
    write(MINIMAL, "a.yaml")
    write(FROM_A, "b.yaml")
    write(FROM_A.replace("asset://a/train", "asset://b/raw"), "c.yaml")
    pipelines = load_pipelines(tmp_path)

    assert pipelines.broken == {}
    assert pipelines.valid["c"].data.upstream == ("b", "raw")


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("asset://aa/train", "there is no pipeline 'aa' (did you mean 'a'?); there are a, broken"),
        ("asset://a/predictions", "the pipeline a makes no predictions: give it a score section"),
        ("asset://broken/raw", "the pipeline broken is broken: mend its file first"),
        ("asset://b/raw", "'asset://b/raw' is made by this pipeline"),
    ],
)
def test_a_source_that_no_pipeline_makes_is_reported_where_it_stands(write, tmp_path, uri, why):
    write(MINIMAL, "a.yaml")
    write("nothing", "broken.yaml")
    write(FROM_A.replace("asset://a/train", uri), "b.yaml")
    pipelines = load_pipelines(tmp_path)

    assert list(pipelines.valid) == ["a"]
    assert str(pipelines.broken["b"]).startswith(f"{tmp_path / 'b.yaml'}:1:")
    assert why in str(pipelines.broken["b"])


def test_pipelines_that_are_each_others_source_are_broken_with_what_is_made_of_them(
    write, tmp_path
):
    write(MINIMAL, "a.yaml")
    for name, source in {"b": "c", "c": "d", "d": "b", "e": "d", "f": "a"}.items():
        write(FROM_A.replace("asset://a/", f"asset://{source}/"), f"{name}.yaml")
    pipelines = load_pipelines(tmp_path)

    assert list(pipelines.valid) == ["a", "f"]
    assert "each other's source: b ← c ← d ← b" in str(pipelines.broken["b"])
    assert "the pipeline d is broken" in str(pipelines.broken["e"])


# --- steps --------------------------------------------------------------------------------------


def steps(**fields):
    """A file with steps, each given by the text of its fields."""
    return "steps:\n" + "".join(f"  {name}: {{{text}}}\n" for name, text in fields.items())


STEPS_CATALOGUE = [
    (
        steps(a="command: x") + HEAD,
        "3:1: a pipeline of steps has no 'data': it either trains a mod",
    ),
    (steps(a="command: x") + "train: {}\n", "3:1: a pipeline of steps has no 'train'"),
    (
        steps(a="command: x") + "scedule: x\n",
        "3:1: unknown field 'scedule' (did you mean 'schedule'",
    ),
    (
        steps(a="command: x") + "name: p\n",
        "3:1: unknown field 'name': a pipeline has the name of its",
    ),
    (
        steps(a="comand: x"),
        "2:7: steps.a: unknown field 'comand' (did you mean 'command'?); allowed",
    ),
    (
        steps(compute="cpu: 1"),
        "2:13: steps.compute: unknown field 'cpu' (did you mean 'compute'?); allowed",
    ),
    ("steps: {}", "1:8: steps: there is no step: write at least one, with its command"),
    ("steps: [a]", "1:8: steps: must be a map of fields, found a list"),
    ("steps:\n  a: echo\n", "2:6: steps.a: must be a map of fields, found the text 'echo'"),
    (
        steps(Hello="command: x"),
        "2:3: steps.Hello: 'Hello' cannot name a step: allowed are up to 60",
    ),
    ("steps:\n  1: {command: x}\n", "steps: the name 1 must be text: put quotes around it"),
    ("steps:\n  yes: {command: x}\n", "2:3: steps: the name true must be text: put quotes"),
    (steps(a="needs: []"), "2:3: steps.a: a step needs a command, or an image that runs something"),
    (
        steps(a="command: ' '"),
        "2:16: steps.a.command: the command is empty: write what is to be run",
    ),
    (
        steps(a="command: []"),
        "2:16: steps.a.command: the list is empty: write a program and its arg",
    ),
    (
        steps(a="command: [sleep, 5]"),
        "steps.a.command: must be a text, which `sh` runs, or a list of",
    ),
    (steps(a="command: 5"), "steps.a.command: must be a text, which `sh` runs, or a list of texts"),
    (
        steps(say="command: x", a="command: x, needs: [sya]"),
        "3:27: steps.a.needs[0]: there is no step 'sya' (did you mean 'say'?); allowed are say, "
        "and assets of other pipelines as PIPELINE/ASSET",
    ),
    (steps(a="command: x, needs: [a]"), "2:27: steps.a.needs[0]: a step cannot need itself"),
    (steps(a="command: x, needs: [churn/b]"), "'churn/b' is in this file: write b"),
    (
        steps(a="command: x, needs: [b-c]"),
        "2:27: steps.a.needs[0]: 'b-c' is nothing that a step cou",
    ),
    (
        steps(a="command: x, needs: [c]", b="command: x, needs: [a]", c="command: x, needs: [b]"),
        "2:27: steps.a.needs[0]: steps wait for each other: a ← c ← b ← a",
    ),
    (
        steps(b_c="command: x", a="command: x, needs: [b_c, b/c]"),
        "steps.a.needs[1]: 'b/c' is the second one that is given in the variable B_C",
    ),
    (
        steps(path="command: x", a="command: x, needs: [path]"),
        "in the variable PATH, which programs",
    ),
    (
        steps(a="command: x, env: {1A: x}"),
        "steps.a.env.1A: '1A' is not the name of an environment va",
    ),
    (
        steps(a="command: x, env: {A: 1}"),
        "2:28: steps.a.env.A: must be text, found the number 1; put",
    ),
    (steps(a="command: x, env: {DAGSTER_PIPES_CONTEXT: x}"), "belongs to Dagster Pipes: choose"),
    (
        steps(b="command: x", a="command: x, needs: [b], env: {B: x}"),
        "steps.a.env.B: B is the variable in which b is given: choose another one",
    ),
    (
        steps(a="image: 'a b'"),
        "2:14: steps.a.image: 'a b' is not a container image: write it like do",
    ),
    (steps(a="image: -v"), "2:14: steps.a.image: '-v' is not a container image"),
    (
        steps(a="image: x, files: [y]"),
        "steps.a.files: an image has its files in it and does not see",
    ),
    (steps(a="command: x, files: [/etc/x]"), "'/etc/x' must be a path relative to this file"),
    (steps(a="command: x, checks: [a-b]"), "steps.a.checks[0]: 'a-b' cannot name a check"),
    (steps(a="command: x, checks: [a, a]"), "steps.a.checks[1]: 'a' is in the list twice"),
    (
        steps(a="command: x, timeout: soon"),
        "2:28: steps.a.timeout: 'soon' is not a duration: write",
    ),
    (
        steps(a="command: x, timeout: 0"),
        "2:28: steps.a.timeout: must be more than 0, found the numbe",
    ),
    (
        steps(a="command: x, compute: {cpus: 1}"),
        "steps.a.compute: unknown field 'cpus' (did you mean",
    ),
    (steps(a="command: x") + "recompute: [b]\n", "3:13: recompute[0]: there is no step 'b'"),
    (steps(a="command: x") + "timezone: Mars\n", "3:11: timezone: 'Mars' is not a time zone"),
]


@pytest.mark.parametrize(("content", "expected"), STEPS_CATALOGUE)
def test_a_mistake_in_steps_is_reported_at_its_place_with_what_is_allowed(write, content, expected):
    found = problems(write(content))
    assert any(expected in problem for problem in found), found


def test_steps_come_after_those_that_they_need_and_else_as_in_the_file(write):
    text = steps(
        c="command: x, needs: [b]", d="command: x", b="command: x, needs: [a]", a="image: x"
    )
    assert load_pipeline(write(text)).made_once == ["d", "a", "b", "c"]


@pytest.mark.parametrize(
    ("need", "why"),
    [
        ("lost/x", "there is no pipeline 'lost'; there are a, broken, s"),
        ("broken/raw", "the pipeline broken is broken: mend its file first"),
        (
            "a/modle",
            "the pipeline a makes no 'modle' (did you mean 'model'?); there are raw, train",
        ),
        ("a/predictions", "the pipeline a makes no predictions: give it a score section"),
        ("s/two", "the pipeline s makes no 'two'; there are one"),
    ],
)
def test_a_need_that_no_pipeline_makes_is_reported_where_it_stands(write, tmp_path, need, why):
    write(MINIMAL, "a.yaml")
    write(steps(one="command: x"), "s.yaml")
    write("nothing", "broken.yaml")
    write(steps(one="command: x", two=f"command: x, needs: [one, {need}]"), "b.yaml")
    pipelines = load_pipelines(tmp_path)

    assert list(pipelines.valid) == ["a", "s"]
    place = f"{tmp_path / 'b.yaml'}:3:34: steps.two.needs[1]: "
    assert f"{place}{why}" in str(pipelines.broken["b"])


def test_what_is_made_day_by_day_or_is_no_table_cannot_be_waited_for_or_read(write, tmp_path):
    write(MINIMAL + "score: {uri: 'x/{date}/*.csv'}\n", "a.yaml")
    write(steps(one="command: x, needs: [a/drift]"), "s.yaml")
    write(steps(raw="command: x"), "t.yaml")
    write(FROM_A.replace("asset://a/train", "asset://t/raw"), "b.yaml")
    broken = load_pipelines(tmp_path).broken

    assert "a/drift is made day by day, and a step once" in str(broken["s"])
    assert "t/raw is what a command has printed, and no table" in str(broken["b"])


def test_pipelines_whose_steps_wait_for_each_other_are_broken(write, tmp_path):
    write(steps(one="command: x, needs: [t/two]"), "s.yaml")
    write(steps(one="command: x", two="command: x, needs: [s/one]"), "t.yaml")
    broken = load_pipelines(tmp_path).broken

    assert "pipelines cannot be each other's source: s ← t ← s" in str(broken["s"])
    assert "pipelines cannot be each other's source: t ← s ← t" in str(broken["t"])


def test_a_glob_selects_files_in_several_folders(write, tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    write(MINIMAL, "x/a.yaml")
    write(MINIMAL, "x/y/b.yml")
    assert list(load_pipelines(f"{tmp_path}/**/*").valid) == ["a", "b"]
    assert list(load_pipelines(tmp_path / "x" / "a.yaml").valid) == ["a"]


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(write, tmp_path):
    (tmp_path / "[x]*").mkdir()
    write(MINIMAL, "[x]*/a.yaml")
    assert list(load_pipelines(tmp_path / "[x]*").valid) == ["a"]


def test_two_files_that_name_one_pipeline_are_both_broken(write, tmp_path):
    write(MINIMAL, "a.yaml")
    write(MINIMAL, "a.yml")
    pipelines = load_pipelines(tmp_path)
    assert pipelines.valid == {}
    assert [problem.path.name for problem in pipelines.broken["a"].problems] == ["a.yaml", "a.yml"]
    assert "is also defined by" in str(pipelines.broken["a"])


@pytest.mark.parametrize("location", ["nothing", "nothing/*.yaml", "", "\0", "**/[", "empty"])
def test_a_location_without_pipeline_files_is_named(tmp_path, monkeypatch, location):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="give a folder or a glob") as caught:
        load_pipelines(location)
    assert location in str(caught.value)


def test_a_day_needs_no_quotes(tmp_path):
    path = tmp_path / "churn.yaml"
    for start in ("2026-01-31", '"2026-01-31"'):
        path.write_text(f"{HEAD}score: {{uri: 'in/{{date}}.csv', start: {start}}}{TAIL}")
        score = load_pipeline(path).score
        assert score is not None
        assert score.start == date(2026, 1, 31)


# --- rubbish ------------------------------------------------------------------------------------

FIELDS = sorted(
    {
        name
        for schema in [json_schema(), *json_schema()["$defs"].values()]
        for name in schema.get("properties", {})
    }
)
VALUES = ["a.csv", "y", "sklearn.svm.SVC", "roc_auc", ">= 0.8", "@daily", "5s", "UTC", "team:ml"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(VALUES)
    | st.text()
    | st.dates()
    | st.binary(max_size=5)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS) | SCALARS, inner, max_size=4)
    ),
    max_leaves=20,
)


def load_anything(folder, content):
    """Load bytes as a pipeline file: nothing but a `PipelineFileError` may come out."""
    path = folder / "rubbish.yaml"
    path.write_bytes(content)
    try:
        load_pipeline(path)
    except PipelineFileError as error:
        problems = error.problems
    else:
        return
    lines = content.decode("utf-8", "replace").count("\n") + 1
    assert problems
    assert all(1 <= p.place.line <= lines and p.place.column >= 1 for p in problems)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for files that are overwritten."""
    return tmp_path_factory.mktemp("rubbish")


@given(st.binary(max_size=60))
@settings(max_examples=200)
def test_any_bytes_are_a_pipeline_or_a_reported_mistake(folder, content):
    load_anything(folder, content)


@given(st.text(alphabet=" \n\t-:,[]{}#&*!|>'\"%@`abc01_.\\é", max_size=60))
@settings(max_examples=400)
@example("? a")
@example("%YAML 1.3\n---\na: 1")
@example("a: 1\n...\nb")
@example("\N{BYTE ORDER MARK}a: 1\n\N{BYTE ORDER MARK}b: 2")
@example("a:\u2028b:\x85c: [")
def test_any_text_is_a_pipeline_or_a_reported_mistake(folder, text):
    load_anything(folder, text.encode())


@given(
    st.dictionaries(st.sampled_from(list(json_schema()["properties"])) | SCALARS, TREES, max_size=6)
)
@settings(max_examples=300)
def test_any_structure_is_a_pipeline_or_a_reported_mistake(folder, tree):
    load_anything(folder, yaml.safe_dump(tree, allow_unicode=True).encode())


def test_a_valid_file_with_random_damage_is_a_pipeline_or_a_reported_mistake(folder):
    text = (SHIPPED / "churn.yaml").read_text()
    chance = random.Random(0)
    for _ in range(300):
        at = chance.randrange(len(text))
        damage = chance.choice(["", *string.punctuation, "\n", "\t", "  ", "é"])
        load_anything(folder, (text[:at] + damage + text[at + chance.randrange(4) :]).encode())


# --- the schema for editors ---------------------------------------------------------------------


def test_the_schema_describes_the_file_and_not_the_python_object():
    schema = json_schema()
    assert "name" not in schema["properties"]
    assert "folder" not in schema["properties"]
    assert [either["required"] for either in schema["anyOf"]] == [["data", "model"], ["steps"]]
    parts = [schema, *schema["$defs"].values()]
    assert all(part["additionalProperties"] is False for part in parts)
    assert json.loads(json.dumps(schema)) == schema


def test_every_field_of_the_schema_is_described():
    schema = json_schema()
    for part in [schema, *schema["$defs"].values()]:
        for name, field in part["properties"].items():
            parts = re.findall(r"#/\$defs/(\w+)", json.dumps(field))
            described = [field, *(schema["$defs"][part] for part in parts)]
            assert any("description" in place for place in described), name
