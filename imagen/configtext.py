"""Write dataclasses as TOML, YAML or JSON with an explanation of each field, and read such files.

TOML has no null: the text "null" is written in its place, and read as null where a field allows it.
"""

import dataclasses
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from imagen.errors import UserError
from imagen.fielddocs import describe_kind, explanations, inner_dataclass, is_optional
from imagen.files import open_given, parse_json
from imagen.jsonconfig import to_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUFFIXES = (".toml", ".json", ".yaml", ".yml")
MOST_BYTES = 2**20
WIDTH = 110  # columns of a line with its comment
NULL = "null"


def to_toml(config: Any) -> str:
    """Return a dataclass as TOML, each field with its explanation."""
    return "\n".join(_toml_table(config, "")) + "\n"


def to_yaml(config: Any) -> str:
    """Return a dataclass as YAML, each field with its explanation."""
    return "\n".join(_yaml_table(config, "")) + "\n"


def to_text(config: Any, suffix: str) -> str:
    """Return a dataclass in the format of a suffix in SUFFIXES. JSON has no comments, so no explanations."""
    if suffix == ".json":
        return json.dumps(to_json(config), indent=2, allow_nan=False) + "\n"
    return to_toml(config) if suffix == ".toml" else to_yaml(config)


def read_table(path: str | Path, cls: type) -> dict[str, Any]:
    """Return the content of a file in TOML, JSON or YAML, by its suffix, as plain dicts and lists.

    cls: the dataclass that it describes, in part or completely; it tells where "null" in TOML is null. Raises UserError
    with the path, and the line of what cannot be parsed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: config files end in {', '.join(SUFFIXES)}")
    with open_given(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES:,} bytes: it is no config file")
    try:
        text = data.decode("utf-8")
        if path.suffix == ".toml":
            value = _with_nulls(tomllib.loads(text), cls)
        else:
            value = parse_json(text) if path.suffix == ".json" else yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is not {path.suffix[1:].upper()}: {_one_line(error)}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no fields; `imagen config PRESET --write FILE` writes such a file")
    return value


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`: tables are merged, everything else, lists included, is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        before = merged.get(key)
        merged[key] = merge(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def _toml_table(config: Any, path: str, explained: bool = True) -> Iterator[str]:
    tables = []
    for name, value, kind, comment in _entries(config, explained):
        inner, _ = inner_dataclass(kind)
        if inner is not None and value is not None:
            tables.append((f"{path}.{name}" if path else name, value, comment))
        else:
            yield from _commented(f"{name} = {_toml_value(value)}", comment)
    for name, value, comment in tables:
        yield ""
        yield from _wrapped(comment)
        if isinstance(value, tuple):
            for number, item in enumerate(value):
                yield f"[[{name}]]"
                yield from _toml_table(item, name, explained=explained and number == 0)
        else:
            yield f"[{name}]"
            yield from _toml_table(value, name, explained)


def _yaml_table(config: Any, indent: str, explained: bool = True) -> Iterator[str]:
    for name, value, kind, comment in _entries(config, explained):
        inner, _ = inner_dataclass(kind)
        if inner is None or value is None:
            yield from _commented(f"{name}: {_json_value(value)}", comment, indent)
            continue
        yield from _wrapped(comment, indent)
        yield f"{indent}{name}:"
        if not isinstance(value, tuple):
            yield from _yaml_table(value, f"{indent}  ", explained)
            continue
        for number, item in enumerate(value):
            lines = list(_yaml_table(item, f"{indent}    ", explained and number == 0))
            first = next(index for index, line in enumerate(lines) if not line.lstrip().startswith("#"))
            lines[first] = f"{indent}  - {lines[first].lstrip()}"
            yield from lines


def _entries(config: Any, explained: bool) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield name, value, type and comment of each field. In a list, only the fields of the first item are explained."""
    cls: type = type(config)
    kinds, texts = get_type_hints(cls), explanations(cls)
    for field in dataclasses.fields(config):
        kind, text = kinds[field.name], texts[field.name]
        words = describe_kind(kind)
        if "one of" in words:
            text = f"{text} ({words})" if text else words
        yield field.name, getattr(config, field.name), kind, text if explained else ""


def _commented(line: str, comment: str, indent: str = "") -> Iterator[str]:
    """Yield a line with its comment at its end or, if that is too long, above it."""
    if comment and len(indent + line) + len(comment) + 4 <= WIDTH:
        yield f"{indent}{line}  # {comment}"
        return
    yield from _wrapped(comment, indent)
    yield indent + line


def _wrapped(comment: str, indent: str = "") -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(comment, WIDTH - len(indent) - 2)]


def _toml_value(value: Any) -> str:
    if value is None:
        return f'"{NULL}"'
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        inside = ", ".join(f"{json.dumps(key)} = {_toml_value(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    return _json_value(value, _toml_value)


def _json_value(value: Any, inner: Any = None) -> str:
    """Return a value in JSON's syntax, which is also YAML's; floats have a dot, as YAML 1.1 requires."""
    inner = inner or _json_value
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")
        return f"{mantissa}{'' if '.' in mantissa else '.0'}{e}{exponent}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(inner, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)}: {inner(item)}' for key, item in value.items())}}}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _with_nulls(value: Any, kind: Any) -> Any:
    """Return `value` with None for "null" wherever the type allows None."""
    if is_optional(kind):
        if value == NULL:
            return None
        (kind,) = (arg for arg in get_args(kind) if arg is not type(None))
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        kinds = get_type_hints(kind)
        return {key: _with_nulls(item, kinds.get(key, Any)) for key, item in value.items()}
    if get_origin(kind) is tuple and isinstance(value, list):
        return [_with_nulls(item, get_args(kind)[0]) for item in value]
    return value


class _Loader(yaml.SafeLoader):
    """Load YAML 1.1 with numbers of YAML 1.2 (1e-4), without aliases and without a key given twice.

    A few hundred bytes with aliases can expand to gigabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.YAMLError(f"{key.value!r} is given twice, in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _one_line(error: Exception) -> str:
    """Return an error's message without its excerpt of the file."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return (str(error) or type(error).__name__).splitlines()[0]
