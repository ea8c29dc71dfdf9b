"""What code a computation runs: a version that counts what the code does, not how it is written.

A code version is the digest of the abstract syntax of every module that is reached by imports from
where a computation begins, of the values it was given by the pipeline file, and of the versions of
the libraries that it uses. Comments, formatting and docstrings do not count. Only source is read:
nothing is imported. Which modules a stage begins with is `mlops_assets.stages`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib.util import resolve_name
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

from mlops_assets.settings import local_state
from mlops_assets.source import find_module, is_stdlib, is_third_party

OUR_PACKAGE = __name__.partition(".")[0]

CARRIERS = tuple(
    f"{OUR_PACKAGE}.{name}"
    for name in (
        "assets.common",
        "code_version",
        "dagster_internals",
        "errors",
        "execution",
        "failures",
        "ml.device",
        "settings",
        "spec",
        "stages",
        "store",
        "tracking",
        "wording",
    )
)
"""Modules of ours that bring a computation its values, keep them or report on them, and have no
part in what they are. What `spec` reads from a pipeline file counts, by value, as a parameter."""

CARRIER_LIBRARIES = {"dagster", "fsspec", "obstore"}
"""Libraries of which the same is true."""

# Import names that are not those of the distributions; asking the installation takes 0.1 s.
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "imblearn": "imbalanced-learn"}
# Distributions of the same code, one without CUDA: the machine does not decide what is reused.
_BUILDS = {"xgboost-cpu": "xgboost"}
_FORMAT = 1  # of the syntax digests; counts as content of every module
_MOST_KEPT = 2000  # modules that are remembered from one process to the next


@dataclass(frozen=True)
class Code:
    """What decides the result of a computation, apart from its inputs.

    Parameters
    ----------
    parameters : mapping of str to JSON value
        Fields of the pipeline file, `model.params.n_estimators` for instance.
    modules : mapping of str to str
        Dotted name of a module and the digest of its syntax.
    libraries : mapping of str to str
        Distribution and version.
    """

    parameters: Mapping[str, Any]
    modules: Mapping[str, str]
    libraries: Mapping[str, str]

    name: str | None = None
    """The version itself, where somebody else has given it."""

    @classmethod
    def named(cls, version: str) -> Code:
        """Return code of which only the version is known."""
        return cls({}, {}, {}, version)

    @cached_property
    def version(self) -> str:
        """16 hexadecimal digits, unless it was given."""
        return self.name or digest_of([self.parameters, self.modules, self.libraries])[:16]


def code_of(parameters: Mapping[str, Any], names: Iterable[str]) -> Code:
    """Describe the code of a computation.

    Parameters
    ----------
    parameters : mapping of str to JSON value
        What it is given by the pipeline file.
    names : iterable of str
        Modules, or names in modules, with which it begins: `mlops_assets.ml.train`,
        `sklearn.linear_model.Ridge`. What cannot be found is left out: it fails when it runs.
    """
    modules: dict[str, str] = {}
    libraries: dict[str, str] = {}
    for name in sorted(set(names)):
        reached = _reached(name)
        modules |= reached.modules
        libraries |= reached.libraries
    return Code(_sorted(parameters), _sorted(modules), _sorted(libraries))


def _sorted(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(values.items()))


def look_again() -> None:
    """See what has changed on disk since; until then a process keeps what it has seen."""
    _reached.cache_clear()


def digest_of(value: object) -> str:
    """Return the SHA-256 of a JSON value in hexadecimal digits, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _is_carrier(name: str) -> bool:
    return any(name == carrier or name.startswith(f"{carrier}.") for carrier in CARRIERS)


class _Reached(NamedTuple):
    modules: dict[str, str]
    libraries: dict[str, str]


@cache
def _reached(first: str) -> _Reached:
    reached = _Reached({}, {})
    waiting, seen = [first], set()
    while waiting:
        name = waiting.pop()
        if name in seen or _is_carrier(name):
            continue
        seen.add(name)
        found = _look_up(name)
        if found.library:
            library = _BUILDS.get(found.library, found.library)
            reached.libraries[library] = _version_of(found.library)
        elif found.path:
            module = _read(name, found.path, found.is_package)
            reached.modules[name] = module.digest
            waiting += module.imports
        # Importing a module runs the packages around it; ours hold nothing but documentation and
        # the list of their modules.
        if "." in name and not name.startswith(f"{OUR_PACKAGE}."):
            waiting.append(name.rpartition(".")[0])
    _keep_known_modules()
    return reached


# --- where names are ----------------------------------------------------------------------------


class _Found(NamedTuple):
    path: Path | None = None
    is_package: bool = False
    library: str | None = None


def _look_up(name: str) -> _Found:
    """Find the file of one of our or the user's modules, or the library that a name belongs to."""
    top = name.partition(".")[0]
    if is_stdlib(name) or top in CARRIER_LIBRARIES:
        return _Found()
    if top != OUR_PACKAGE and (library := _library_of(top)):
        return _Found(library=library)
    spec = find_module(name)
    if spec is None or not spec.has_location or not spec.origin:
        return _Found()
    return _Found(Path(spec.origin), spec.submodule_search_locations is not None)


@cache
def _library_of(top: str) -> str | None:
    """Return the distribution that a top-level package was installed by; None for loose modules."""
    spec = find_module(top)
    if spec is None or not spec.origin or not is_third_party(Path(spec.origin)):
        return None
    for name in (_DISTRIBUTIONS.get(top, top), top.replace("_", "-")):
        with suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.distribution(name)
            return name
    return next(iter(importlib.metadata.packages_distributions().get(top, ())), None)


@cache
def _version_of(distribution: str) -> str:
    # `importlib.metadata.version` parses all of the metadata, which takes milliseconds for each.
    installed = importlib.metadata.distribution(distribution)
    text = installed.read_text("METADATA") or installed.read_text("PKG-INFO") or ""
    found = re.search(r"^Version: *(\S+)", text, re.MULTILINE)
    return found[1] if found else installed.version


# --- what is in a module ------------------------------------------------------------------------


class _Module(NamedTuple):
    digest: str
    imports: list[str]


def _read(name: str, path: Path, is_package: bool) -> _Module:
    try:
        stat = path.stat()
        return _read_file(name, path, is_package, stat.st_mtime_ns, stat.st_size)
    except OSError:  # inside an archive, or gone: it fails when it runs
        return _Module("", [])


@lru_cache(maxsize=4096)
def _read_file(name: str, path: Path, is_package: bool, mtime_ns: int, size: int) -> _Module:
    """Read a module; the time and size are arguments so that a changed file is read again."""
    content = path.read_bytes()
    if path.suffix != ".py":  # a compiled module
        return _Module(hashlib.sha256(content).hexdigest()[:16], [])
    key = hashlib.sha256(f"{_FORMAT} {name} {is_package}\0".encode() + content).hexdigest()
    known = _known_modules()
    if key not in known:
        package = name if is_package else name.rpartition(".")[0]
        known[key] = _found_now[key] = _parse(content, package)
    return _Module(*known[key])


def _parse(content: bytes, package: str) -> tuple[str, list[str]]:
    try:
        tree = ast.parse(content)
        syntax = "".join(_syntax(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it fails when it runs
        return hashlib.sha256(content).hexdigest()[:16], []
    digest = hashlib.sha256(syntax.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return digest, sorted(set(_imports(tree, package)))


def _syntax(node: ast.AST) -> Iterator[str]:
    """Write a tree without places, docstrings and what is empty.

    What is empty is left out so that a field that a new version of Python adds changes nothing.
    """
    yield f"({type(node).__name__}"
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            skipped = name == "body" and _has_docstring(node)
            for part in value[skipped:]:
                if isinstance(part, ast.AST):
                    yield from _syntax(part)
                else:
                    yield f" {part!r}"
            if value:
                yield ";"
        elif isinstance(value, ast.AST):
            yield from _syntax(value)
        elif value is not None:
            yield f" {name}={value!r}"
    yield ")"


def _has_docstring(node: ast.AST) -> bool:
    match node:
        case (
            ast.Module(body=[ast.Expr(ast.Constant(str())), *_])
            | ast.ClassDef(body=[ast.Expr(ast.Constant(str())), *_])
            | ast.FunctionDef(body=[ast.Expr(ast.Constant(str())), *_])
            | ast.AsyncFunctionDef(body=[ast.Expr(ast.Constant(str())), *_])
        ):
            return True
    return False


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Names that are imported anywhere in a module, except for the type checker alone."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        match waiting.pop():
            case ast.If(test=ast.Name("TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")) as i:
                waiting += i.orelse
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                with suppress(ImportError):  # beyond the top: it fails when it runs
                    origin = resolve_name("." * level + (module or ""), package)
                    yield origin
                    yield from (f"{origin}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(str(name)), *_],
            ) if not name.startswith("."):
                yield name
            case other:
                waiting += ast.iter_child_nodes(other)


# --- what was found before, by content: reading the syntax of all modules takes 0.1 s ------------


_found_now: dict[str, tuple[str, list[str]]] = {}


@cache
def _known_modules() -> dict[str, tuple[str, list[str]]]:
    with suppress(OSError, ValueError):
        known = json.loads(_cache_file().read_bytes())
        if isinstance(known, dict):
            return known
    return {}


def _keep_known_modules() -> None:
    if not _found_now:
        return
    _found_now.clear()
    newest = dict(list(_known_modules().items())[-_MOST_KEPT:])
    with suppress(OSError):  # a read-only project: every process reads the modules for itself
        folder = _cache_file().parent
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=folder, prefix=".tmp-", delete=False) as file:
            json.dump(newest, file)
        os.replace(file.name, _cache_file())


def _cache_file() -> Path:
    return local_state("modules.json")
