"""Read the explanations of dataclass fields from the comments beside them.

A field is explained once, in its class: by the comment lines directly above it, the comment at its end, or both. Config
files (`imagen config --write`), help (`imagen config --explain`) and the page docs/reference/fields.md repeat them.
"""

import ast
import dataclasses
import functools
import inspect
import io
import re
import textwrap
import tokenize
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


@dataclass(frozen=True)
class FieldDoc:
    """One field of a tree of dataclasses."""

    path: str  # "optim.lr", "stage.unet.levels[].channels"
    kind: str  # "number", "one of a, b", "whole number or null"
    default: Any  # `dataclasses.MISSING` if a value is required
    explanation: str  # "" if there is none
    section: bool  # whether the field is a dataclass with fields of its own


@functools.cache
def explanations(cls: type) -> dict[str, str]:
    """Return the explanation of each field of a dataclass; "" where there is none, or where sources are missing."""
    found = {field.name: "" for field in dataclasses.fields(cls)}
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # a program packed without its sources
        return found
    beside, alone = _comments(source)
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name) or node.target.id not in found:
            continue
        first = node.lineno
        while first - 1 in alone:
            first -= 1
        lines = [alone[line] for line in range(first, node.lineno)]
        lines += [beside[line] for line in range(node.lineno, (node.end_lineno or node.lineno) + 1) if line in beside]
        text = " ".join(" ".join(lines).split())
        found[node.target.id] = re.sub(r"\bNone\b", "null", text)  # as config files spell it
    return found


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Return the comments that follow code, and those with a line of their own, by line number."""
    beside, alone = dict[int, str](), dict[int, str]()
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            target = alone if lines[line - 1].lstrip().startswith("#") else beside
            target[line] = token.string.lstrip("#").strip()
    return beside, alone


def field_docs(cls: type, prefix: str = "") -> Iterator[FieldDoc]:
    """Yield the fields of a dataclass and, after each, the fields of the dataclass that it holds."""
    kinds, texts = get_type_hints(cls), explanations(cls)
    for field in dataclasses.fields(cls):
        inner, suffix = inner_dataclass(kinds[field.name])
        path = f"{prefix}{field.name}"
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield FieldDoc(path, describe_kind(kinds[field.name]), default, texts[field.name], inner is not None)
        if inner is not None:
            yield from field_docs(inner, f"{path}{suffix}.")


def inner_dataclass(kind: Any) -> tuple[type | None, str]:
    """Return the dataclass that a type holds, and "[]" if it is a tuple of them: of X, X | None, or tuple[X, ...]."""
    if dataclasses.is_dataclass(kind):
        return cast(type, kind), ""
    args = [arg for arg in get_args(kind) if arg is not types.NoneType]
    if args and dataclasses.is_dataclass(args[0]):
        return cast(type, args[0]), "[]" if get_origin(kind) is tuple else ""
    return None, ""


def is_optional(kind: Any) -> bool:
    """Whether None is a value of the type."""
    return get_origin(kind) in (Union, types.UnionType) and types.NoneType in get_args(kind)


def describe_kind(kind: Any) -> str:
    """Return a field's type in words: "whole number or null", "one of adamw, adam", "list of numbers"."""
    origin, args = get_origin(kind), get_args(kind)
    if is_optional(kind):
        (inner,) = (arg for arg in args if arg is not types.NoneType)
        return f"{describe_kind(inner)} or null"
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple and args[-1] is not Ellipsis:
        return f"list of {len(args)} {_plural(args[0])}"
    if origin in (tuple, list):
        return f"list of {_plural(args[0])}"
    if dataclasses.is_dataclass(kind):
        return "section"
    return _WORDS.get(kind, "table" if (origin or kind) is dict else str(kind))


def _plural(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"{', '.join(map(str, get_args(kind)))}"
    words = describe_kind(kind)
    if words.startswith("list "):
        return words.replace("list", "lists", 1)
    return words if kind in (str, bool) else f"{words}s"
