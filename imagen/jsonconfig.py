"""Frozen dataclasses to strict JSON and back."""

import dataclasses
from typing import Any, TypeVar

import dacite

from imagen.errors import UserError, suggest

T = TypeVar("T")


def to_json(config: Any) -> dict[str, Any]:
    """A dataclass as plain dicts and lists (tuples become lists), ready for `json.dumps`."""
    return _plain(dataclasses.asdict(config))


def from_json(cls: type[T], value: Any, where: str) -> T:
    """Build the dataclass `cls` from what `to_json` made.

    Every key must be known and every value of the field's type; otherwise UserError
    names `where` (a file, say), the field, and the nearest known one.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object for {cls.__name__}, found {type(value).__name__}")
    strict = dacite.Config(strict=True, type_hooks={float: _float, int: _int}, cast=[tuple])
    try:
        return dacite.from_dict(cls, value, strict)
    except dacite.UnexpectedDataError as error:
        key = sorted(error.keys)[0]
        raise UserError(f"{where}: unknown field {key!r}{suggest(key, _field_names(cls))}") from None
    except dacite.DaciteFieldError as error:
        raise UserError(f"{where}: field {error.field_path!r}: {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def _float(value: Any) -> Any:
    """JSON writes 1.0 as 1 in many tools: an int is a fine float, a bool is not."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _int(value: Any) -> Any:
    """To Python True is an int; in a config it is a mistake."""
    if isinstance(value, bool):
        raise TypeError(f"expected a whole number, found {str(value).lower()}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _field_names(cls: type) -> set[str]:
    """Names of the fields of `cls` and of every dataclass inside it."""
    names: set[str] = set()
    for field in dataclasses.fields(cls):
        names.add(field.name)
        for part in (field.type, *getattr(field.type, "__args__", ())):
            if dataclasses.is_dataclass(part):
                names |= _field_names(part)  # type: ignore[arg-type]
    return names
