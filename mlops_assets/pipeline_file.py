"""Reading pipeline files: YAML in, a pipeline out, every mistake with its line and column.

What a field means and allows is `mlops_assets.spec`. Here it is found where in the file a value
stands, and pydantic's findings are put into words for the person who wrote the file. Finding and
reading what a pipeline's `data.uri` names, or running its commands, is not done here.

The YAML is a plain subset: one document without tags, anchors and aliases, a field given once.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mlops_assets.errors import UserError
from mlops_assets.spec import (
    Location,
    Pipeline,
    PipelineSpec,
    StepsSpec,
    Upstream,
    circle_of,
    dotted,
)
from mlops_assets.wording import nearest, shown

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_TEXT = 10_000
MAX_DIGITS = 40

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Any = yaml.resolver.Resolver()
_CONSTRUCTOR: Any = yaml.constructor.SafeConstructor()
_PLAIN_TYPES = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str")}
# YAML 1.1 takes 1e-3 for text because it has no point; everybody else takes it for a number.
_EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")
# YAML 1.1 makes a date of it, which no field is: the fields that mean a day read the text.
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_CONTROL_CHARACTER = yaml.reader.Reader.NON_PRINTABLE
# Not fields of the file: they follow from where it is.
_FROM_PATH = ("name", "folder")


class Place(NamedTuple):
    """A position in a file; line and column count from 1."""

    line: int
    column: int


class Problem(NamedTuple):
    """A mistake in a pipeline file."""

    path: Path
    place: Place
    message: str

    def __str__(self) -> str:
        """Return `file:line:column: message`."""
        return f"{self.path}:{self.place.line}:{self.place.column}: {self.message}"


class PipelineFileError(UserError):
    """A pipeline file has mistakes; `problems` holds all that were found, in the file's order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Say every problem on a line of its own."""
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(map(str, self.problems)))


class Pipelines(NamedTuple):
    """The pipelines of a folder by name: those that can run, and the mistakes of the others."""

    valid: dict[str, Pipeline]
    broken: dict[str, PipelineFileError]


def load_pipeline(path: Path) -> Pipeline:
    """Read one pipeline file: a `StepsSpec` if it has `steps`, else a `PipelineSpec`.

    Modules beside it can be imported from then on, so that `model.features` and `model.estimator`
    can name code of the pipeline's author.

    Parameters
    ----------
    path
        A YAML file; its name without the ending is the pipeline's name.

    Raises
    ------
    PipelineFileError
        With every mistake in the file, its place and what is allowed there.
    """
    try:
        document = _Document(_read(path))
    except _Mistake as mistake:
        raise PipelineFileError([Problem(path, mistake.place, mistake.why)]) from None
    folder = Path(os.path.abspath(path)).parent
    _make_importable(folder)
    from_path = {"name": path.stem, "folder": folder}
    fields = {key: value for key, value in document.fields.items() if key not in _FROM_PATH}
    problems = [Problem(path, *mistake) for mistake in document.mistakes]
    problems += [
        Problem(path, document.keys[(key,)], _unknown_field((key,), document.kind))
        for key in _FROM_PATH
        if key in document.fields
    ]
    try:
        spec = document.kind.model_validate({**fields, **from_path})
    except ValidationError as error:
        problems += [Problem(path, *mistake) for mistake in _in_words(error, document)]
    if problems:
        raise PipelineFileError(problems)
    return spec


def load_pipelines(location: str | Path) -> Pipelines:
    """Read the pipeline files of a folder, or those that a glob matches.

    Files that end with `.yaml` or `.yml` count, except hidden ones. Two files that name the same
    pipeline are both broken, and so is one that is made from an asset of a broken one.

    Raises
    ------
    UserError
        There is no such folder, or no pipeline file.
    """
    by_name: dict[str, list[Path]] = {}
    for path in _pipeline_files(location):
        by_name.setdefault(path.stem, []).append(path)
    pipelines = Pipelines({}, {})
    for name, paths in sorted(by_name.items()):
        try:
            if len(paths) > 1:
                raise PipelineFileError(_same_name(name, paths))
            pipelines.valid[name] = load_pipeline(paths[0])
        except PipelineFileError as error:
            pipelines.broken[name] = error
    while found := _without_upstream(pipelines):
        for name, mistakes in found.items():
            [path] = by_name[name]
            pipelines.broken[name] = PipelineFileError(
                Problem(path, _place_in_file(path, location), f"{_path(location)}{why}")
                for location, why in mistakes
            )
            del pipelines.valid[name]
    return pipelines


def _without_upstream(pipelines: Pipelines) -> dict[str, list[tuple[Location, str]]]:
    """Say of each pipeline that is made from assets of others which of them there are not."""
    above = {
        name: [upstream.pipeline for upstream in spec.upstreams.values()]
        for name, spec in pipelines.valid.items()
    }
    found: dict[str, list[tuple[Location, str]]] = {}
    for name, spec in pipelines.valid.items():
        circle = circle_of(name, lambda other: above.get(other, []))
        for location, upstream in spec.upstreams.items():
            why = _why_not(name, spec, upstream, pipelines)
            if why is None and upstream.pipeline in circle[1:2]:
                why = f"pipelines cannot be each other's source: {' ← '.join(circle)}"
            if why is not None:
                found.setdefault(name, []).append((location, why))
    return found


def _why_not(name: str, spec: Pipeline, upstream: Upstream, pipelines: Pipelines) -> str | None:
    """Say why a pipeline cannot be made from the asset of another one; None if it can."""
    known = {*pipelines.valid, *pipelines.broken} - {name}
    if upstream.pipeline in pipelines.broken:
        return f"the pipeline {upstream.pipeline} is broken: mend its file first"
    if upstream.pipeline not in known:
        there_are = f"; there are {', '.join(sorted(known))}" if known else ""
        near = nearest(upstream.pipeline, known)
        return f"there is no pipeline {shown(upstream.pipeline)}{near}{there_are}"
    other = pipelines.valid[upstream.pipeline]
    if isinstance(other, PipelineSpec) and upstream.is_daily and other.score is None:
        return f"the pipeline {upstream.pipeline} makes no predictions: give it a score section"
    if isinstance(spec, PipelineSpec) and not isinstance(other, PipelineSpec):
        return f"{upstream.name} is what a command has printed, and no table"
    if isinstance(spec, PipelineSpec):
        return None
    if isinstance(other, PipelineSpec) and upstream.asset in ("predictions", "drift"):
        return f"{upstream.name} is made day by day, and a step once: it cannot wait for it"
    assets = other.made_once
    if upstream.asset not in assets:
        return (
            f"the pipeline {upstream.pipeline} makes no {shown(upstream.asset)}"
            f"{nearest(upstream.asset, assets)}; there are {', '.join(assets)}"
        )
    return None


def _place_in_file(path: Path, location: Location) -> Place:
    try:
        return _Document(_read(path)).values[location]
    except (_Mistake, KeyError):  # written to since it was read
        return Place(1, 1)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a pipeline file, for editors that complete and check YAML.

    All fields are at the top, so that editors offer them; `anyOf` says which go together.
    """
    kinds = [kind.model_json_schema() for kind in (PipelineSpec, StepsSpec)]
    fields = [
        {name: field for name, field in schema["properties"].items() if name not in _FROM_PATH}
        for schema in kinds
    ]
    every = {name: field for own in fields for name, field in own.items()}
    different = {name for own in fields for name, field in own.items() if field != every[name]}
    either = [
        {
            "title": schema["title"],
            "description": schema["description"],
            "required": [name for name in schema["required"] if name not in _FROM_PATH],
            "properties": {
                name: own.get(name, False) for name in every if name in different or name not in own
            },
        }
        for schema, own in zip(kinds, fields, strict=True)
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {name: part for schema in kinds for name, part in schema["$defs"].items()},
        "title": "Pipeline",
        "description": "What a pipeline file holds: a model to train, or steps to run.",
        "type": "object",
        "properties": {
            name: {"description": field["description"]} if name in different else field
            for name, field in every.items()
        },
        "additionalProperties": False,
        "anyOf": either,
    }


# --- files --------------------------------------------------------------------------------------


def _make_importable(folder: Path) -> None:
    """Put a folder last on the import path, where its modules hide no others, to stay."""
    finder = _Beside(str(folder))
    if finder not in sys.meta_path:
        sys.meta_path.append(finder)


@dataclass(frozen=True)
class _Beside(MetaPathFinder):
    """Finds the modules beside pipeline files after all others.

    Once Dagster has loaded a code location it restores `sys.path`, and a folder that was added
    meanwhile would be missing when steps run.
    """

    folder: str

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None:  # in a package
            return None
        if self.folder not in sys.path:  # which joblib hands to its processes
            sys.path.append(self.folder)
        return PathFinder.find_spec(fullname, [self.folder], target)


def _pipeline_files(location: str | Path) -> list[Path]:
    try:
        if os.path.isdir(location):
            paths = [Path(location, name) for name in os.listdir(location)]
        else:
            paths = [Path(name) for name in glob.glob(str(location), recursive=True)]
    except (OSError, ValueError) as error:
        raise UserError(f"Pipeline files cannot be looked up in {location}: {error}") from None
    files = [path for path in paths if path.suffix in SUFFIXES and path.name[0] != "."]
    if not files:
        exists = "has no pipeline files" if paths else "is empty or does not exist"
        raise UserError(f"{location} {exists}: give a folder or a glob of *.yaml or *.yml files")
    return sorted(files)


def _same_name(name: str, paths: list[Path]) -> Iterator[Problem]:
    for path in paths:
        others = ", ".join(str(other) for other in paths if other != path)
        why = f"the pipeline {shown(name)} is also defined by {others}: rename one of the files"
        yield Problem(path, Place(1, 1), why)


def _read(path: Path) -> str:
    start = Place(1, 1)
    try:
        if not path.is_file():
            kind = "is not a regular file" if path.exists() else "does not exist"
            raise _Mistake(start, f"the file {kind}")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _Mistake(start, f"the file cannot be read: {error}") from None
    if len(content) > MAX_BYTES:
        raise _Mistake(start, f"the file is larger than {MAX_BYTES // 1024} KiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place_in(content[: error.start].decode("utf-8-sig"))
        why = f"the byte 0x{content[error.start]:02x} is not UTF-8 text: save the file as UTF-8"
        raise _Mistake(place, why) from None
    if bad := _CONTROL_CHARACTER.search(text):
        why = f"the character U+{ord(bad[0]):04X} is not allowed in YAML: remove it"
        raise _Mistake(_place_in(text[: bad.start()]), why)
    return text


def _place_in(text_before: str) -> Place:
    lines = text_before.split("\n")
    return Place(len(lines), len(lines[-1]) + 1)


# --- YAML with places ---------------------------------------------------------------------------


class _Mistake(Exception):
    """A mistake after which the rest of the file cannot be understood."""

    def __init__(self, place: Place, why: str) -> None:
        super().__init__(why)
        self.place = place
        self.why = why


class _Document:
    """The values of a YAML text, the places of all keys and values, and mistakes of the YAML.

    Made from the parser's events rather than from `yaml.load`, which keeps no places, lets a key
    given twice win silently and follows aliases and tags.
    """

    def __init__(self, text: str) -> None:
        self.keys: dict[Location, Place] = {}
        self.values: dict[Location, Place] = {}
        self.mistakes: list[tuple[Place, str]] = []
        self.refused: set[Location] = set()
        self._events: Iterator[Any] = yaml.parse(text, Loader=_Loader)
        try:
            root = self._root()
        except yaml.MarkedYAMLError as error:
            raise _syntax_mistake(error, text) from None
        if not isinstance(root, dict):
            why = "the file is empty" if root is None else f"the file holds {_found(root)}"
            raise _Mistake(Place(1, 1), f"{why}: write fields such as data: and model:, or steps:")
        self.fields: dict[Any, Any] = root
        self.kind: type[Pipeline] = StepsSpec if "steps" in root else PipelineSpec

    def _root(self) -> object:
        root = None
        for event in self._events:
            if isinstance(event, yaml.NodeEvent):
                if self.values:
                    raise _Mistake(_start(event), "a file holds one pipeline: remove this document")
                root = self._value(event, ())
        return root

    def _value(self, event: Any, location: Location) -> Any:
        self.values[location] = _start(event)
        if len(location) > MAX_DEPTH:
            raise _Mistake(_start(event), f"values are nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._refuse(event, location, "aliases are not supported: repeat the value")
        if event.tag is not None:
            self._refuse(event, location, f"tags are not supported: remove {event.tag}")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(location)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(location)
        return self._scalar(event, location)

    def _mapping(self, location: Location) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            place = _start(event)
            if not isinstance(event, yaml.ScalarEvent):
                raise _Mistake(place, "a field's name must be text, not a list, map or alias")
            key = self._value(event, (*location, "[key]"))
            key = event.value if key is None else key
            if key in mapping:
                first = self.keys[*location, key].line
                self.mistakes.append((place, f"{shown(key)} is given twice, first in line {first}"))
                self._value(next(self._events), (*location, "[again]"))
            else:
                self.keys[*location, key] = place
                mapping[key] = self._value(next(self._events), (*location, key))
        return mapping

    def _sequence(self, location: Location) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, (*location, len(items))))
        return items

    def _scalar(self, event: Any, location: Location) -> Any:
        text: str = event.value
        if len(text) > MAX_TEXT:
            why = f"a text of {len(text)} characters is too long: at most {MAX_TEXT} are allowed"
            return self._refuse(event, location, why)
        if not event.implicit[0] or _DAY.fullmatch(text):  # quoted, a block or a day
            return text
        if _EXPONENT.fullmatch(text):
            return float(text)
        tag: str = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))
        if tag not in _PLAIN_TYPES:
            if tag.endswith(("merge", "value")):
                return text
            return self._refuse(
                event, location, f'{text} is a time: put quotes around it, "{text}"'
            )
        if not tag.endswith("str") and len(text) > MAX_DIGITS:
            return self._refuse(event, location, f"a number has at most {MAX_DIGITS} digits")
        try:
            node = yaml.ScalarNode(tag, text)
            return _CONSTRUCTOR.yaml_constructors[tag](_CONSTRUCTOR, node)
        except ValueError:  # such as 0x_
            return text

    def _refuse(self, event: Any, location: Location, why: str) -> None:
        self.mistakes.append((_start(event), why))
        self.refused.add(location)

    def place_of(self, details: ErrorDetails) -> Place:
        """Where a mistake is: at the value if that is wrong, else at the nearest name above."""
        location = details["loc"]
        is_key = location[-1:] == ("[key]",)
        if details["type"] == "value_error" and location in self.values and not is_key:
            return self.values[location]
        if details["type"] == "missing" or is_key:
            location = location[:-1]
        for n in range(len(location), 0, -1):
            place = self.keys.get(location[:n]) or self.values.get(location[:n])
            if place:
                return place
        return Place(1, 1)


def _start(event: Any) -> Place:
    return Place(event.start_mark.line + 1, event.start_mark.column + 1)


def _syntax_mistake(error: yaml.MarkedYAMLError, text: str) -> _Mistake:
    mark = error.problem_mark or error.context_mark
    lines = text.split("\n")
    if mark is None or mark.line >= len(lines):  # the end of a file without a last line break
        place, rest = _place_in(text), ""
    else:
        place, rest = Place(mark.line + 1, mark.column + 1), lines[mark.line][mark.column :]
    problem = error.problem or "unreadable"
    if rest.startswith("\t"):
        hint = "a tab: indent with spaces"
    elif "cannot start any token" in problem:
        hint = f"a text that begins with {rest[:1]} needs quotes"
    elif "block scalar" in (error.context or ""):
        hint = 'a text that begins with > or | needs quotes, such as ">= 0.80"'
    elif "mapping values are not allowed" in problem:
        hint = "fields of one level start in the same column, and a text with ': ' needs quotes"
    else:
        hint = " ".join(filter(None, (error.context, problem)))
    return _Mistake(place, f"this is not valid YAML: {hint}")


# --- pydantic's findings in words ---------------------------------------------------------------

# What a value must be, by the type of pydantic's error; braces take the error's own context.
_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a map of fields",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_type": "a map of fields",
    "string_too_short": "a text that is not empty",
    "string_type": "text",
}


def _in_words(error: ValidationError, document: _Document) -> Iterator[tuple[Place, str]]:
    """Say what pydantic found, at its place in the file."""
    of_wrong_type: dict[Location, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        location = details["loc"]
        if any(location[:n] in document.refused for n in range(1, len(location) + 1)):
            continue
        if details["type"] in _WANTED and location[-1] != "[key]":
            # Branches of a union end in parts that tell them apart and are not in the file.
            while location not in document.values:
                location = location[:-1]
            of_wrong_type.setdefault(location, []).append(details)
        else:
            yield document.place_of(details), _mistake_in_words(details, document.kind)
    for location, branches in of_wrong_type.items():
        yield document.values[location], f"{_path(location)}{_wrong_type_in_words(branches)}"


def _mistake_in_words(details: ErrorDetails, kind: type[Pipeline]) -> str:
    location = details["loc"]
    where, name = _path(location[:-1]), str(location[-1]) if location else ""
    match details["type"]:
        case "missing":
            purpose = _part_at(location[:-1], kind).model_fields[name].description
            return f"{where}the field {shown(name)} is missing: {purpose}"
        case "extra_forbidden" | "invalid_key":
            return _unknown_field(location, kind)
        case "value_error":
            return f"{_path(location)}{details['ctx']['error']}"
        case _ if name == "[key]":
            given = details["input"]  # of `yes` and `on`, which YAML reads as true, as of `true`
            read = str(given).lower() if isinstance(given, bool) else location[-2]
            return f"{_path(location[:-2])}the name {read} must be text: put quotes around it"
    return f"{_path(location)}{details['msg']}"


def _wrong_type_in_words(branches: list[ErrorDetails]) -> str:
    allowed = [_WANTED[d["type"]].format_map(d.get("ctx", {})) for d in branches]
    value = branches[0]["input"]
    unquoted = "text" in allowed and isinstance(value, int | float)
    hint = "; put quotes around it" if unquoted else ""
    return f"must be {' or '.join(dict.fromkeys(allowed))}, found {_found(value)}{hint}"


def _unknown_field(location: Location, kind: type[Pipeline]) -> str:
    part = _part_at(location[:-1], kind)
    name = str(location[-1])
    if part is kind and name == "name":
        return "unknown field 'name': a pipeline has the name of its file"
    if part is StepsSpec and name in PipelineSpec.model_fields and name not in _FROM_PATH:
        return f"a pipeline of steps has no {shown(name)}: it either trains a model or runs steps"
    allowed = [field for field in part.model_fields if field not in _FROM_PATH]
    return (
        f"{_path(location[:-1])}unknown field {shown(name)}{nearest(name, allowed)}; allowed are "
        f"{', '.join(allowed)}"
    )


def _part_at(location: Location, kind: type[Pipeline]) -> type[BaseModel]:
    """The part of the spec whose fields stand at a place."""
    part: type[BaseModel] = kind
    names = iter(location)
    for name in names:
        if field := part.model_fields.get(name):
            part = next(_parts_in(field.annotation), part)
            if get_origin(field.annotation) is dict:
                next(names, None)  # the key of a map, which may have the name of a field
    return part


def _parts_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _parts_in(argument)


def _path(location: Location) -> str:
    """Return `data.checks.unique[0]: ` for a location, nothing for the file as a whole."""
    path = dotted(location)
    return f"{path}: " if path else ""


def _found(value: object) -> str:
    """Show a value as the file has it, briefly."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case dict():
            return "a map of fields"
        case list():
            return "a list"
        case str():
            return f"the text {shown(value)}"
    return f"the number {value}"
