"""Config: the frozen, strict tree that describes a run.

Every config of every room derives from `Config`: unknown keys are errors that name the
nearest known key, values are never coerced in silence, and nothing changes after it is
built. A tree prints itself with the meaning of every field, takes dotted overrides, and
has a fingerprint, so that a run folder can be named by what it is.

Overrides change values; recipes change structure. Validators only check: they never
download, patch or set an environment variable.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError
from pydantic_core import PydanticCustomError

from diptych import parts
from diptych.errors import ConfigError, DiptychError

SAME_RESULT: Any = {"same_result": True}
"""Mark of a field that cannot change what comes out; see `Config.deciding`."""
ADDED: Any = {"added": True}
"""Mark of a field that came later: while it is null, fingerprints are those from before."""


class Config(BaseModel):
    """A frozen, strict node of the configuration tree."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str | None = None) -> Self:
        """Build from plain data, as JSON and YAML give it.

        Raises:
            ConfigError: unknown key, missing key or wrong value; names the dotted key.
        """
        try:
            # Validated as JSON: lists become tuples, strings stay strings, nothing else bends.
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise _explain(cls, error, values, where) from None
        except (TypeError, RecursionError) as error:
            raise ConfigError(f"a value is no plain JSON: {error}", where=where) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `from_dict` gives an equal tree back."""
        return self.model_dump(mode="json", serialize_as_any=True)

    def to_json(self) -> str:
        """Indented JSON with a final newline."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def deciding(self) -> dict[str, Any]:
        """The tree as plain data, without fields that cannot change what comes out.

        Such a field is marked by `json_schema_extra=SAME_RESULT`: how a step is cut, how often a
        run is saved, how many processes decode.
        """
        return _deciding(self, self.to_dict())

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when a value changes that decides the result."""
        canonical = json.dumps(self.deciding(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def override(self, assignments: Iterable[str]) -> Self:
        """A copy with `dotted.path=value` assignments applied.

        Values are read as YAML (`2e-3`, `true`, `[1, 2]`, `null`, text). Items of a list
        are addressed by their `name` or number: `stages.align.learning_rate=2e-3`.

        Raises:
            ConfigError: no such path (with the nearest known key) or a value that does not fit.
        """
        values = self.to_dict()
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            if not equals:
                raise ConfigError(
                    f"'{assignment}' assigns nothing", fix="write it as path.to.key=value"
                )
            _assign(values, path.strip().split("."), _parse_value(text), path.strip())
        return type(self).from_dict(values)


class PartConfig(Config):
    """Config of a part: `name` is the file stem that `parts.find` looks up."""

    name: str
    """File stem of the part."""


def _deciding(node: Any, values: Any) -> Any:
    """`values`, which `node` was written as, without the fields marked by SAME_RESULT."""
    if isinstance(node, Config):
        extra = {name: f.json_schema_extra for name, f in type(node).model_fields.items()}
        return {
            key: _deciding(getattr(node, key), value)
            for key, value in values.items()
            if extra[key] != SAME_RESULT and not (extra[key] == ADDED and value is None)
        }
    if isinstance(node, tuple):
        return [_deciding(item, value) for item, value in zip(node, values, strict=True)]
    if isinstance(node, dict):
        return {key: _deciding(node[key], value) for key, value in values.items()}
    return values


T = TypeVar("T", bound=PartConfig)


_INNER = "inner_error"


def inner_error(what: str, where: str | None, fix: str | None = None) -> PydanticCustomError:
    """What a validator raises over something below its own node, named by its key from there."""
    return PydanticCustomError(_INNER, "{what}", {"what": what, "where": where, "fix": fix})


def part_field(folder: str, contract: type[T], *, default: str | None = None) -> Any:
    """Annotation for a field that holds any part of `folder`.

    Accepts `{"name": stem, ...}` and builds the `Config` class of `folder/stem.py`;
    serialises with all fields of the actual class. A mapping without `name` is the part
    `default`, where there is one.
    """

    def load(value: Any) -> Any:
        if isinstance(value, contract):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if default is not None and isinstance(value, Mapping):
            value = {"name": default, **value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ValueError(
                f"give a mapping with a 'name', one of: {', '.join(parts.names(folder))}"
            )
        try:
            chosen = getattr(parts.find(folder, value["name"]), "Config", None)
            if not (isinstance(chosen, type) and issubclass(chosen, contract)):
                raise ValueError(f"'{value['name']}' has no Config that is a {contract.__name__}")
            return chosen.from_dict(value)
        except DiptychError as error:
            # The part's own error in full; `_explain` puts its place below the part's.
            raise inner_error(error.what, error.where, error.fix) from None

    return Annotated[SerializeAsAny[contract], BeforeValidator(load)]  # type: ignore[valid-type, misc]


def read_file(path: Path) -> dict[str, Any]:
    """A YAML or JSON file as plain data.

    Raises:
        ConfigError: unreadable, not UTF-8, or not a mapping; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the file: {error}", where=str(path)) from None
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.load(text, _YamlLoader)
    except json.JSONDecodeError as error:
        raise ConfigError(f"invalid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
    except RecursionError:
        raise ConfigError("the file is nested too deeply", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(
            f"invalid YAML: {getattr(error, 'problem', error)}", where=f"{path}{line}"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError("the file holds no mapping of keys to values", where=str(path))
    return values


class _YamlLoader(yaml.SafeLoader):
    """Safe YAML 1.2: `2e-3` is a number, `off` is a word, and a key given twice is an error."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag != _MERGE and isinstance(key.value, str):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key.value}' is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_MERGE = "tag:yaml.org,2002:merge"
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?",
        list("-+0123456789."),
    ),
    (_MERGE, r"<<", ["<"]),
):
    _YamlLoader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)


def _parse_value(text: str) -> Any:
    try:
        return yaml.load(text, _YamlLoader)
    except (yaml.YAMLError, RecursionError):
        return text


def _assign(node: Any, keys: list[str], value: Any, path: str) -> None:
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            slot: Any = _item(node, key, path)
        elif isinstance(node, dict):
            if key not in node and not (last and _is_open(node)):
                raise _unknown(key, list(node), path)
            slot = key
        else:
            raise ConfigError(
                f"'{'.'.join(keys[:depth])}' is a value, it has no '{key}'", where=path
            )
        if last:
            node[slot] = value
        else:
            node = node[slot]


def _is_open(node: dict[str, Any]) -> bool:
    # Free-form mappings (a Hugging Face config) carry this key; they may grow.
    return "model_type" in node


def _item(items: list[Any], key: str, path: str) -> int:
    named = [i.get("name") for i in items if isinstance(i, dict)]
    if key in named:
        return named.index(key)
    if key.isdecimal() and int(key) < len(items):
        return int(key)
    raise _unknown(key, [str(n) for n in named if n] or [str(i) for i in range(len(items))], path)


def _unknown(key: str, known: list[str], path: str) -> ConfigError:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return ConfigError(
        f"unknown key '{key}'", where=path, fix=f"{hint}known here: {', '.join(sorted(known))}"
    )


def _explain(
    cls: type[Config], error: ValidationError, values: Any, where: str | None
) -> ConfigError:
    first = error.errors()[0]
    inner = first["ctx"] if first["type"] == _INNER else {"where": None}
    key = ".".join(k for k in (_dotted(values, first["loc"]), inner["where"]) if k)
    place = f"{where}: {key}" if where and key else (where or key or None)
    if first["type"] == "extra_forbidden":
        plain = _unknown(str(first["loc"][-1]), list(_owner(cls, first["loc"]).model_fields), "")
        return ConfigError(plain.what, where=place, fix=plain.fix)
    message = first["msg"].removeprefix("Value error, ")
    given = first.get("input")
    shown = "" if isinstance(given, dict | list) else f" (given: {given!r})"
    if first["type"] == _INNER:
        return ConfigError(str(inner["what"]), where=place, fix=inner["fix"])
    others = list(dict.fromkeys(_dotted(values, e["loc"]) for e in error.errors()[1:]))
    more = f"; wrong as well: {', '.join(others)}" if others else ""
    return ConfigError(f"{message}{shown}{more}", where=place)


def _dotted(values: Any, place: Iterable[Any]) -> str:
    """The place of an error as an override would write it: list items by name."""
    keys = []
    for step in place:
        inner = None
        if isinstance(values, Mapping):
            inner = values.get(step)
        elif isinstance(values, list | tuple) and isinstance(step, int) and step < len(values):
            inner = values[step]
        name = inner.get("name") if isinstance(step, int) and isinstance(inner, Mapping) else None
        keys.append(name if isinstance(name, str) else str(step))
        values = inner
    return ".".join(keys)


def _owner(cls: type[Config], place: tuple[Any, ...]) -> type[Config]:
    """The config class whose key stands at the end of `place`."""
    owner = cls
    for step in place[:-1]:
        field = owner.model_fields.get(str(step))
        owner = next(_configs(field.annotation), owner) if field else owner
    return owner


def _configs(annotation: Any) -> Iterator[type[Config]]:
    """Config classes inside `X | None`, `tuple[X, ...]`, `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for inner in get_args(annotation):
        yield from _configs(inner)
