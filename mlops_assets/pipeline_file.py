"""Reading pipeline files: YAML in, `PipelineSpec` out, every mistake with its line and column.

What a field means and allows is `mlops_assets.spec`. Here it is found where in the file a value
stands, and pydantic's findings are put into words for the person who wrote the file. Finding and
reading what a pipeline's `data.uri` names is not done here.

The YAML is a plain subset: one document without tags, anchors and aliases, a field given once.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mlops_assets.errors import UserError
from mlops_assets.spec import Location, PipelineSpec
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

    valid: dict[str, PipelineSpec]
    broken: dict[str, PipelineFileError]


def load_pipeline(path: Path) -> PipelineSpec:
    """Read one pipeline file.

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
        Problem(path, document.keys[(key,)], _unknown_field((key,)))
        for key in _FROM_PATH
        if key in document.fields
    ]
    try:
        spec = PipelineSpec.model_validate({**fields, **from_path})
    except ValidationError as error:
        problems += [Problem(path, *mistake) for mistake in _in_words(error, document)]
    if problems:
        raise PipelineFileError(problems)
    return spec


def load_pipelines(location: str | Path) -> Pipelines:
    """Read the pipeline files of a folder, or those that a glob matches.

    Files that end with `.yaml` or `.yml` count, except hidden ones. Two files that name the same
    pipeline are both broken, and so is one whose source is the asset of a broken one.

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
    while found := _without_source(pipelines):
        for name, why in found.items():
            [path] = by_name[name]
            problem = Problem(path, _place_of_uri(path), f"data.uri: {why}")
            pipelines.broken[name] = PipelineFileError([problem])
            del pipelines.valid[name]
    return pipelines


def _without_source(pipelines: Pipelines) -> dict[str, str]:
    """Say of each pipeline whose source is the asset of another one why there is no such asset."""
    sources = {
        name: upstream for name, spec in pipelines.valid.items() if (upstream := spec.data.upstream)
    }
    known = {*pipelines.valid, *pipelines.broken}
    found = {}
    for name, (pipeline, asset) in sources.items():
        circle = _circle(name, {name: upstream.pipeline for name, upstream in sources.items()})
        if pipeline in pipelines.broken:
            found[name] = f"the pipeline {pipeline} is broken: mend its file first"
        elif pipeline not in known:
            there_are = f"; there are {', '.join(sorted(known - {name}))}" if len(known) > 1 else ""
            found[name] = (
                f"there is no pipeline {shown(pipeline)}{nearest(pipeline, known)}{there_are}"
            )
        elif asset == "predictions" and pipelines.valid[pipeline].score is None:
            found[name] = f"the pipeline {pipeline} makes no predictions: give it a score section"
        elif circle:
            found[name] = f"pipelines cannot be each other's source: {' ← '.join(circle)}"
    return found


def _place_of_uri(path: Path) -> Place:
    try:
        return _Document(_read(path)).values["data", "uri"]
    except (_Mistake, KeyError):  # written to since it was read
        return Place(1, 1)


def _circle(name: str, sources: Mapping[str, str]) -> list[str]:
    """Return the pipelines from one over its source, and so on, back to it; none if not to it."""
    path = [name]
    while path[-1] in sources and path.count(path[-1]) == 1:
        path.append(sources[path[-1]])
    return path if len(path) > 1 and path[-1] == name else []


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a pipeline file, for editors that complete and check YAML."""
    schema = PipelineSpec.model_json_schema()
    for name in _FROM_PATH:
        del schema["properties"][name]
    schema["required"] = [name for name in schema["required"] if name not in _FROM_PATH]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


# --- files --------------------------------------------------------------------------------------


def _make_importable(folder: Path) -> None:
    """Put a folder last on the import path, where its modules hide no others."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


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
            raise _Mistake(Place(1, 1), f"{why}: write fields such as data: and model:")
        self.fields: dict[Any, Any] = root

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
        if details["type"] == "value_error" and location in self.values:
            return self.values[location]
        if details["type"] == "missing" or location[-1:] == ("[key]",):
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
            yield document.place_of(details), _mistake_in_words(details)
    for location, branches in of_wrong_type.items():
        yield document.values[location], f"{_path(location)}{_wrong_type_in_words(branches)}"


def _mistake_in_words(details: ErrorDetails) -> str:
    location = details["loc"]
    where, name = _path(location[:-1]), str(location[-1]) if location else ""
    match details["type"]:
        case "missing":
            purpose = _part_at(location[:-1]).model_fields[name].description
            return f"{where}the field {shown(name)} is missing: {purpose}"
        case "extra_forbidden" | "invalid_key":
            return _unknown_field(location)
        case "value_error":
            return f"{_path(location)}{details['ctx']['error']}"
        case _ if name == "[key]":
            return (
                f"{_path(location[:-2])}the name {location[-2]} must be text: put quotes around it"
            )
    return f"{_path(location)}{details['msg']}"


def _wrong_type_in_words(branches: list[ErrorDetails]) -> str:
    allowed = [_WANTED[d["type"]].format_map(d.get("ctx", {})) for d in branches]
    value = branches[0]["input"]
    unquoted = "text" in allowed and isinstance(value, int | float)
    hint = "; put quotes around it" if unquoted else ""
    return f"must be {' or '.join(dict.fromkeys(allowed))}, found {_found(value)}{hint}"


def _unknown_field(location: Location) -> str:
    part = _part_at(location[:-1])
    name = str(location[-1])
    if part is PipelineSpec and name == "name":
        return "unknown field 'name': a pipeline has the name of its file"
    allowed = [field for field in part.model_fields if field not in _FROM_PATH]
    return (
        f"{_path(location[:-1])}unknown field {shown(name)}{nearest(name, allowed)}; allowed are "
        f"{', '.join(allowed)}"
    )


def _part_at(location: Location) -> type[BaseModel]:
    """The part of the spec whose fields stand at a place."""
    part: type[BaseModel] = PipelineSpec
    for name in location:
        if field := part.model_fields.get(name):  # none for the key of a map of parts
            part = next(_parts_in(field.annotation), part)
    return part


def _parts_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _parts_in(argument)


def _path(location: Location) -> str:
    """Return `data.checks.unique[0]: ` for a location, nothing for the file as a whole."""
    parts = [part for part in location if part != "[key]"]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return f"{path.lstrip('.')}: " if path else ""


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
