"""Facts about Python source, found by reading it: where a name is defined, what a class accepts.

Importing scikit-learn costs seconds and reading the few files that define an estimator costs
milliseconds, so a pipeline file is checked against the source. Only what the source cannot tell
(a compiled class, a name that a function makes) is imported, and nothing is ever called. What an
estimator must be is `mlops_assets.estimators`; nothing here knows about machine learning.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import NamedTuple

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Binding = ast.ClassDef | FunctionNode | ast.expr | str
"""What a name stands for: a definition, an assigned expression, or the dotted name imported."""


class NotFoundInSource(LookupError):
    """There is no such module or name. `missing` is the first part that isn't there."""

    def __init__(self, missing: str, known: Iterable[str] = ()) -> None:
        """Keep what is missing and the names that are there in its place."""
        super().__init__(missing)
        self.missing = missing
        self.known = tuple(known)


class UnreadableSource(Exception):
    """The source, or the module when it had to be imported, has an error of its own."""


class UnresolvedName(Exception):
    """The name is there, but only running the module tells what it is."""


class Definition(NamedTuple):
    """A class or function where it is written."""

    module: str
    name: str
    path: Path
    node: ast.ClassDef | FunctionNode


class Parameters(NamedTuple):
    """What a constructor can be given by name."""

    names: tuple[str, ...]
    required: tuple[str, ...]
    accepts_any: bool


class ClassFacts(NamedTuple):
    """A class as its users see it.

    `ancestors` holds the class and all its bases, by the names under which they are *defined*;
    `attributes` holds what they define in their bodies: methods, properties, constants.
    """

    name: str
    ancestors: frozenset[str]
    attributes: frozenset[str]
    parameters: Parameters


@dataclass(frozen=True)
class _Module:
    name: str
    path: Path
    names: Mapping[str, Binding]
    stars: tuple[str, ...]


def is_stdlib(dotted: str) -> bool:
    """Whether the name belongs to Python itself."""
    return dotted.partition(".")[0] in sys.stdlib_module_names


def is_third_party(path: Path) -> bool:
    """Whether a file was put there by a package installer (an editable install is not)."""
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def find_module(name: str) -> ModuleSpec | None:
    """The import system's answer for a module, without importing its parents.

    `importlib.util.find_spec("a.b")` imports `a`; this asks only for the top level and then looks
    into the package's folders.
    """
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ValueError, ImportError):  # an empty name; a running script without a spec
        return None
    for part in rest:
        if spec is None:
            return None
        spec = _find_child(spec, part)
    return spec


def module_path(name: str) -> Path | None:
    """The Python file of a module; None if there is no module or it is not Python source."""
    return _source_file(find_module(name))


def resolve(dotted: str) -> Definition | str:
    """Find where a class or function is written, following imports and plain assignments.

    Parameters
    ----------
    dotted
        `package.module.name`.

    Returns
    -------
    Definition or str
        The definition; a text if the name is a module or belongs to Python itself.

    Raises
    ------
    NotFoundInSource
        No such module or name.
    UnreadableSource
        A file on the way is not valid Python.
    UnresolvedName
        The source does not tell, for instance because a function makes the name.
    """
    return _resolve(dotted, frozenset())


@lru_cache(maxsize=256)
def class_facts(dotted: str) -> ClassFacts | None:
    """Describe a class from its source, or by importing it where the source does not tell.

    A class is described once per process, just as Python imports it once.

    Returns
    -------
    ClassFacts or None
        None if the name is something else than a class.

    Raises
    ------
    NotFoundInSource
        No such module or name.
    UnreadableSource
        A file on the way is not valid Python, or the module cannot be imported.
    """
    try:
        definition = resolve(dotted)
        if isinstance(definition, str) or not isinstance(definition.node, ast.ClassDef):
            return None
        return _facts_from_source(definition)
    except UnresolvedName:
        return _facts_from_import(dotted)


# --- modules ------------------------------------------------------------------------------------


def _find_child(parent: ModuleSpec, name: str) -> ModuleSpec | None:
    full_name = f"{parent.name}.{name}"
    portions: list[str] = []
    for folder in parent.submodule_search_locations or ():
        finder = pkgutil.get_importer(folder)
        spec = finder.find_spec(full_name) if finder else None
        if spec and spec.loader:
            return spec
        if spec and spec.submodule_search_locations:
            portions += spec.submodule_search_locations
    if not portions:
        return None
    namespace = ModuleSpec(full_name, None, is_package=True)
    namespace.submodule_search_locations = portions
    return namespace


def _source_file(spec: ModuleSpec | None) -> Path | None:
    if spec is None or not spec.has_location or not spec.origin or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _module(name: str) -> _Module:
    spec = find_module(name)
    path = _source_file(spec)
    if spec is None:
        raise NotFoundInSource(name)
    if spec.origin is None and spec.submodule_search_locations:
        return _Module(name, Path(), {}, ())  # a namespace package has no names of its own
    if path is None:
        raise UnresolvedName(name)
    try:
        stat = path.stat()
    except OSError as error:  # inside a zip archive
        raise UnresolvedName(name) from error
    is_package = spec.submodule_search_locations is not None
    return _parse(name, path, is_package, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _parse(name: str, path: Path, is_package: bool, mtime_ns: int, size: int) -> _Module:
    """Read a module; the time and size are arguments so that a changed file is read again."""
    try:
        tree = ast.parse(path.read_bytes(), path)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnreadableSource(f"{path} cannot be read as Python: {error}") from error
    package = name if is_package else name.rpartition(".")[0]
    pairs = list(_bindings(tree.body, package))
    stars = tuple(value for key, value in pairs if key == "*" and isinstance(value, str))
    return _Module(name, path, {key: value for key, value in pairs if key != "*"}, stars)


def _bindings(body: Iterable[ast.stmt], package: str) -> Iterator[tuple[str, Binding]]:
    """Names that statements bind, in order, so that the last one counts.

    Of alternatives, the first one written comes last: it is the one meant for an installation that
    has everything.
    """
    for statement in body:
        match statement:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield statement.name, statement
            case ast.Import(names=names):
                for alias in names:
                    top = alias.name.partition(".")[0]
                    yield (alias.asname, alias.name) if alias.asname else (top, top)
            case ast.ImportFrom(names=names):
                origin = _absolute(statement, package)
                for alias in names:
                    star = alias.name == "*"
                    yield alias.asname or alias.name, origin if star else f"{origin}.{alias.name}"
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    for node in ast.walk(target):
                        # `Name.attribute = value` loads Name, it does not bind it.
                        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                            yield node.id, value if node is target else target
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value
            case ast.If(body=first, orelse=second):
                yield from _bindings([*second, *first], package)
            case ast.Try() | ast.TryStar():
                handled = [line for handler in statement.handlers for line in handler.body]
                rest = [*statement.body, *statement.orelse, *statement.finalbody]
                yield from _bindings([*handled, *rest], package)
            case ast.With(body=inner) | ast.For(body=inner) | ast.While(body=inner):
                yield from _bindings(inner, package)


def _absolute(statement: ast.ImportFrom, package: str) -> str:
    relative = "." * statement.level + (statement.module or "")
    try:
        return importlib.util.resolve_name(relative, package)
    except ImportError:  # beyond the top: no such name, as for Python itself
        return ""


# --- names --------------------------------------------------------------------------------------


def _resolve(dotted: str, seen: frozenset[str]) -> Definition | str:
    if is_stdlib(dotted):
        return dotted
    parent, _, name = dotted.rpartition(".")
    if dotted in seen:
        raise NotFoundInSource(dotted)
    if not parent:
        if find_module(dotted) is None:
            raise NotFoundInSource(dotted, [module.name for module in pkgutil.iter_modules()])
        return dotted
    seen |= {dotted}
    holder = parent if find_module(parent) else _resolve(parent, seen)
    if isinstance(holder, Definition):
        raise NotFoundInSource(dotted)
    return f"{holder}.{name}" if is_stdlib(holder) else _look_up(holder, name, seen)


def _look_up(module_name: str, name: str, seen: frozenset[str]) -> Definition | str:
    dotted = f"{module_name}.{name}"
    if module_path(module_name) is None and find_module(dotted):
        return dotted
    module = _module(module_name)
    match module.names.get(name):
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() as node:
            return Definition(module.name, name, module.path, node)
        case str(imported):
            return _resolve(imported, seen)
        case ast.expr() as value:
            return _resolve_expression(value, module, seen)
    for star in module.stars:
        if not is_stdlib(star):
            try:
                return _resolve(f"{star}.{name}", seen)
            except NotFoundInSource:
                continue
    if find_module(dotted):
        return dotted
    if "__getattr__" in module.names:
        raise UnresolvedName(dotted)
    raise NotFoundInSource(dotted, [*module.names, *_submodules(module_name)])


def _submodules(name: str) -> list[str]:
    spec = find_module(name)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return [module.name for module in pkgutil.iter_modules(folders)]


def _resolve_expression(value: ast.expr, module: _Module, seen: frozenset[str]) -> Definition | str:
    dotted = _dotted(value)
    if dotted is None:
        raise UnresolvedName(f"{module.name}:{value.lineno}")
    if dotted not in module.names and hasattr(builtins, dotted):
        return f"builtins.{dotted}"
    return _resolve(f"{module.name}.{dotted}", seen)


def _dotted(value: ast.expr) -> str | None:
    match value:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=owner, attr=name) if outer := _dotted(owner):
            return f"{outer}.{name}"
    return None


# --- classes ------------------------------------------------------------------------------------


def _facts_from_source(definition: Definition) -> ClassFacts:
    lineage = _lineage(definition, ())
    classes = [c for c in lineage if isinstance(c, Definition)]
    bodies = [dict(_bindings(c.node.body, "")) for c in classes]
    ancestors = [c if isinstance(c, str) else f"{c.module}.{c.name}" for c in lineage]
    return ClassFacts(
        name=ancestors[0],
        ancestors=frozenset(ancestors),
        attributes=frozenset().union(*bodies),
        parameters=_constructor(classes, bodies),
    )


def _lineage(definition: Definition, below: tuple[Definition, ...]) -> list[Definition | str]:
    """The class and its bases, nearest first.

    Depth first, a class met twice counting at its last place: for the hierarchies of estimators
    that is Python's own order.
    """
    lineage: list[Definition | str] = [definition]
    module = _module(definition.module)
    assert isinstance(definition.node, ast.ClassDef)
    for base in definition.node.bases:
        named = base.value if isinstance(base, ast.Subscript) else base
        try:
            found = _resolve_expression(named, module, frozenset())
        except NotFoundInSource as error:
            raise UnresolvedName(error.missing) from error
        if isinstance(found, str):
            lineage.append(found)
        elif found in (definition, *below) or not isinstance(found.node, ast.ClassDef):
            raise UnresolvedName(f"{found.module}.{found.name}")
        else:
            lineage += _lineage(found, (definition, *below))
    return list(dict.fromkeys(reversed(lineage)))[::-1]


def _constructor(
    classes: Iterable[Definition], bodies: Iterable[Mapping[str, Binding]]
) -> Parameters:
    for found, body in zip(classes, bodies, strict=True):
        constructor = body.get("__init__")
        if isinstance(constructor, ast.FunctionDef):
            return _parameters(constructor.args)
        # A decorator such as `dataclass` may write the constructor.
        if constructor is not None or found.node.decorator_list:
            raise UnresolvedName(f"{found.module}.{found.name}.__init__")
    return Parameters((), (), accepts_any=False)


def _parameters(arguments: ast.arguments) -> Parameters:
    positional = [*arguments.posonlyargs, *arguments.args]
    by_name = [*arguments.args, *arguments.kwonlyargs]
    without_default = positional[: len(positional) - len(arguments.defaults)] + [
        argument
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is None
    ]
    instance = positional[:1]
    return Parameters(
        names=tuple(a.arg for a in by_name if a not in instance),
        required=tuple(a.arg for a in without_default if a not in instance),
        accepts_any=arguments.kwarg is not None,
    )


def _facts_from_import(dotted: str) -> ClassFacts | None:
    module_name, _, name = dotted.rpartition(".")
    if find_module(module_name) is None:
        raise NotFoundInSource(module_name, _submodules(module_name.rpartition(".")[0]))
    try:
        module = importlib.import_module(module_name)
        found = getattr(module, name, None)
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise UnreadableSource(
            f"{module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if found is None:
        raise NotFoundInSource(dotted, dir(module))
    if not isinstance(found, type):
        return None
    return ClassFacts(
        name=f"{found.__module__}.{found.__qualname__}",
        ancestors=frozenset(f"{c.__module__}.{c.__qualname__}" for c in found.__mro__),
        attributes=frozenset(dir(found)),
        parameters=_signature(found),
    )


def _signature(found: type) -> Parameters:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (ValueError, TypeError):  # compiled, without a text signature
        return Parameters((), (), accepts_any=True)
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = [p for p in parameters if p.kind in by_name]
    return Parameters(
        names=tuple(p.name for p in named),
        required=tuple(p.name for p in named if p.default is p.empty),
        accepts_any=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )
