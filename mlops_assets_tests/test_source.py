"""Finding definitions in source: against synthetic packages, and against scikit-learn itself."""

import subprocess
import sys
import textwrap

import pytest

from mlops_assets import source
from mlops_assets.source import Definition, NotFoundInSource, UnreadableSource, UnresolvedName


@pytest.fixture
def package(tmp_path, monkeypatch, request):
    """Write modules of a package that no other test uses; returns its name."""
    name = f"pkg_{abs(hash(request.node.nodeid))}"
    monkeypatch.syspath_prepend(tmp_path)

    def write(**modules):
        for module, text in modules.items():
            path = tmp_path / name / (module.replace("__", "/") + ".py")
            path = path.with_stem("__init__") if path.stem == "init" else path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text).replace("PKG", name), encoding="utf-8")
        return name

    return write


def where(dotted):
    """The module and name of a definition."""
    definition = source.resolve(dotted)
    assert isinstance(definition, Definition)
    return f"{definition.module}.{definition.name}"


@pytest.mark.parametrize(
    "text",
    [
        "from .impl import Model",
        "from .impl import Thing as Model",
        "from PKG.impl import *",
        "from . import impl\nModel = impl.Model",
        "from .impl import Model as _M\nModel = _M",
        "import PKG.impl as other\nModel: type = other.Model",
        "import PKG.impl\nModel = PKG.impl.Model",
        "try:\n    from .impl import Model\nexcept ImportError:\n    Model = object",
        "if True:\n    from .impl import Model\nelse:\n    Model = None",
        "from .more import Model",
        "with open('x'):\n    from .impl import Model",
        "class Model: ...\nfrom .impl import Model",
        "from .impl import Model\nModel.attribute = 3",
    ],
)
def test_a_name_is_followed_to_where_it_is_defined(package, text):
    name = package(init=text, impl="class Model: ...\nThing = Model", more="from .impl import *\n")
    assert where(f"{name}.Model") == f"{name}.impl.Model"
    assert name not in sys.modules


def test_relative_imports_go_up_through_packages(package):
    name = package(
        init="", sub__init="", sub__deep__m="from ...impl import f as g", impl="def f(): ..."
    )
    assert where(f"{name}.sub.deep.m.g") == f"{name}.impl.f"


def test_a_namespace_package_is_searched(package):
    name = package(a__b__init="", a__b__module="class Model: ...")
    assert where(f"{name}.a.b.module.Model") == f"{name}.a.b.module.Model"
    with pytest.raises(NotFoundInSource) as caught:
        source.resolve(f"{name}.a.c.Model")
    assert caught.value.missing == f"{name}.a.c"
    assert caught.value.known == ("b",)


def test_a_file_that_changes_is_read_again(package):
    name = package(m="class One: ...")
    assert where(f"{name}.m.One")
    package(m="class Other: ...")
    assert where(f"{name}.m.Other")


@pytest.mark.parametrize(
    ("dotted", "missing", "known"),
    [
        ("{}.m.Modell", "{}.m.Modell", "Model"),
        ("{}.mm.Model", "{}.mm", "m"),
        ("{}_.m.Model", "{}_", "numpy"),
        ("{}.m.loop", "{}.m.loop", None),
        ("{}.m.Model.inner", "{}.m.Model.inner", None),
        ("{}.m.beyond", ".beyond", None),
        ("", "", "numpy"),
        ("..", ".", None),
    ],
)
def test_a_missing_part_is_named_with_what_is_there(package, dotted, missing, known):
    name = package(init="", m="class Model: ...\nloop = loop\nfrom ....x import beyond")
    with pytest.raises(NotFoundInSource) as caught:
        source.resolve(dotted.format(name))
    assert caught.value.missing == missing.format(name)
    assert known is None or known in caught.value.known


def test_star_imports_in_a_circle_end(package):
    name = package(a="from .b import *", b="from .a import *")
    with pytest.raises(NotFoundInSource):
        source.resolve(f"{name}.a.nothing")


@pytest.mark.parametrize(
    "text",
    ["Model = make()", "Model, other = pair", "def __getattr__(name): ...", "[Model] = some"],
)
def test_a_name_that_only_running_the_module_makes_is_unresolved(package, text):
    name = package(m=text)
    with pytest.raises(UnresolvedName):
        source.resolve(f"{name}.m.Model")


@pytest.mark.parametrize("text", ["class Model(", "x = '\0'", "(" * 5000])
def test_a_module_with_a_syntax_error_is_named(package, text):
    name = package(m=text)
    with pytest.raises(UnreadableSource, match=r"m\.py cannot be read as Python"):
        source.class_facts(f"{name}.m.Model")


def test_parts_of_python_itself_are_not_looked_into():
    assert source.resolve("os.system") == "os.system"
    assert source.class_facts("subprocess.Popen") is None


def test_functions_and_modules_are_not_classes(package):
    name = package(m="def f(): ...")
    assert source.class_facts(f"{name}.m.f") is None
    assert source.class_facts(f"{name}.m") is None


CLASSES = """
    from abc import ABC
    from typing import Generic, TypeVar
    T = TypeVar("T")

    class Root(ABC):
        def __init__(self, a, /, b, c=1, *, d, e=2, **more): ...
        def fit(self): ...

    class Left(Root): ...
    class Right(Root):
        def __init__(self, right=1): ...
        predict = Root.fit
    class Both(Left, Right, Generic[T]):
        if True:
            def extra(self): ...
"""


def test_a_constructor_is_inherited_in_the_order_that_python_uses(package):
    name = package(m=CLASSES)
    both = source.class_facts(f"{name}.m.Both")
    assert both.parameters == (("right",), (), False)
    assert {"fit", "predict", "extra"} <= both.attributes
    assert {f"{name}.m.Root", "abc.ABC", "typing.Generic"} <= both.ancestors


def test_the_parameters_of_a_constructor_are_those_that_can_be_given_by_name(package):
    name = package(m=CLASSES)
    left = source.class_facts(f"{name}.m.Left")
    assert left.parameters == (("b", "c", "d", "e"), ("a", "b", "d"), True)


@pytest.mark.parametrize(
    "text",
    [
        "from dataclasses import dataclass\n@dataclass\nclass Model:\n    alpha: float = 1.0",
        "class Base:\n    def __init__(self, alpha=1.0): ...\ndef base(): return Base\n"
        "class Model(base()): ...",
        "def init(self, alpha=1.0): ...\nclass Model:\n    __init__ = init",
        "Model = type('Model', (), {'__init__': lambda self, alpha=1.0: None})",
        "def __getattr__(name):\n    class Made:\n        def __init__(self, alpha=1.0): ...\n"
        "    return Made",
    ],
)
def test_what_the_source_does_not_tell_is_found_by_importing(package, text):
    name = package(init="", m=text)
    assert source.class_facts(f"{name}.m.Model").parameters == (("alpha",), (), False)


def test_a_compiled_class_is_described_by_importing_it():
    facts = source.class_facts("numpy.random.mtrand.RandomState")
    assert "seed" in facts.parameters.names or facts.parameters.accepts_any
    assert "normal" in facts.attributes


@pytest.mark.parametrize("text", ["1 / 0", "raise SystemExit", "import nothing_of_this_name"])
def test_a_module_that_cannot_be_imported_is_named_with_its_error(package, text):
    name = package(m=f"Model = object()\n{text}")
    with pytest.raises(UnreadableSource, match=rf"{name}\.m cannot be imported: "):
        source.class_facts(f"{name}.m.Model")


def test_a_class_that_names_itself_as_its_base_does_not_loop(package):
    name = package(init="", a="class Model: ...", b="from .a import Model\nclass Model(Model): ...")
    assert source.class_facts(f"{name}.b.Model").name == f"{name}.b.Model"


def test_every_estimator_of_scikit_learn_reads_as_it_imports():
    from sklearn.utils import all_estimators

    names = {f"{cls.__module__}.{name}" for name, cls in all_estimators()}
    assert len(names) > 150
    for name in names:
        read = source._facts_from_source(source.resolve(name))
        imported = source._facts_from_import(name)
        assert read.parameters == imported.parameters, name
        assert read.ancestors == imported.ancestors - {"builtins.object"}, name


def test_reading_imports_nothing_of_what_is_read():
    program = (
        "import sys; from mlops_assets import source\n"
        "source.class_facts('sklearn.ensemble.RandomForestClassifier')\n"
        "print(sorted({'sklearn', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
