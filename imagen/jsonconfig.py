"""Convert frozen dataclasses to strict JSON and back."""

import dataclasses
import json
import math
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from imagen.errors import UserError, check_text, suggest

T = TypeVar("T")

_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    dict: "an object",
    types.NoneType: "null",
}


def to_json(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain dicts and lists (tuples become lists), ready for `json.dumps`."""
    return _plain(dataclasses.asdict(config))


def from_json(cls: type[T], value: Any, where: str) -> T:
    """Build the dataclass `cls` from the output of `to_json`.

    All keys must be known, and all values must have their field's type; NaN and infinity are errors. Otherwise raises
    UserError with `where` (such as a file), the field, what was expected, and the closest known name. Errors of the
    dataclass's own checks get the same prefix.
    """
    return _object(cls, value, where, "")


def _object(cls: type[T], value: Any, where: str, path: str) -> T:
    if not isinstance(value, dict):
        raise _wrong(where, path, value, f"an object ({cls.__name__})")
    kinds = get_type_hints(cls)
    fields: dict[str, Any] = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in value:
        if key not in fields:
            raise UserError(f"{where}: unknown field {_join(path, key)!r}{suggest(key, fields)}")
    for name, field in fields.items():
        if name not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: field {_join(path, name)!r} is missing")
    arguments = {key: _build(kinds[key], item, where, _join(path, key)) for key, item in value.items()}
    try:
        return cls(**arguments)
    except UserError as error:
        raise UserError(f"{where}: {path}: {error}" if path else f"{where}: {error}") from None


def _build(kind: Any, value: Any, where: str, path: str) -> Any:
    """Convert `value` to a field of type `kind`. Supports only the types in our configs."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # X | None
        (inner,) = (arg for arg in args if arg is not types.NoneType)
        return None if value is None else _build(inner, value, where, path)
    if dataclasses.is_dataclass(kind):
        return _object(kind, value, where, path)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in args:
            hint = suggest(value, args) if isinstance(value, str) else ""
            raise _wrong(where, path, value, f"one of {', '.join(map(str, args))}{hint}")
        return value
    if origin is tuple:
        each = (args[0],) * len(value) if args[-1] is Ellipsis and isinstance(value, list | tuple) else args
        if not isinstance(value, list | tuple) or len(value) != len(each):
            raise _wrong(where, path, value, "a list" if args[-1] is Ellipsis else f"a list of {len(args)}")
        pairs = enumerate(zip(each, value, strict=True))
        return tuple(_build(inner, item, where, f"{path}[{index}]") for index, (inner, item) in pairs)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(where, path, value, "a list")
        return [_build(args[0], item, where, f"{path}[{index}]") for index, item in enumerate(value)]
    if kind is Any:
        return value
    kind = origin or kind
    if kind is float and isinstance(value, int) and not isinstance(value, bool):  # many tools write 1.0 as 1
        value = float(value) if abs(value) < 2**1023 else math.inf
    # In Python True is an int; in a config it is a mistake.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _wrong(where, path, value, _WORDS[kind])
    if kind is float and not math.isfinite(value):
        raise _wrong(where, path, value, _WORDS[kind])
    if kind is str:
        check_text(f"{where}: {path}", value)
    return value


def _wrong(where: str, path: str, value: Any, wanted: str) -> UserError:
    shown = repr(value) if isinstance(value, str) else json.dumps(value, default=repr)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return UserError(f"{where}: {path} is {shown}; it must be {wanted}" if path else f"{where}: it must be {wanted}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
