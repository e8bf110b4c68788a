"""Fields of records, checked by type: what is wrong is said with the field's path, what was expected and found."""

from __future__ import annotations

import base64
import datetime
import decimal
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class DialogueError(ValueError):
    """A record without a usable dialogue; the message names the field, what was expected and found."""


def field(record: Mapping[str, Any], name: str, kind: type[T], path: str = "") -> T:
    """A field that must be there. Raises DialogueError otherwise; `path` is what stands before its name."""
    value = record.get(name)
    if not isinstance(value, kind):
        raise DialogueError(f"{path}{name}: expected {called(kind)}, found {called(type(value))}")
    return value


def optional(record: Mapping[str, Any], name: str, kind: type[T], path: str = "") -> T | None:
    """The same of a field that may be missing or null."""
    return None if record.get(name) is None else field(record, name, kind, path)


def objects(record: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """A list of objects, not empty."""
    items = field(record, name, list)
    if not items:
        raise DialogueError(f"{name}: expected at least one message, found an empty list")
    for i, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise DialogueError(f"{name}[{i}]: expected an object, found {called(type(item))}")
    return items


def extra(record: Mapping[str, Any], used: Collection[str]) -> dict[str, Any]:
    """The other fields, as JSON can hold them; null is none."""
    return {str(name): _plain(value) for name, value in record.items() if name not in used and value is not None}


def called(kind: type) -> str:
    """What an error calls a type."""
    names = {"NoneType": "nothing", "str": "text", "bool": "true or false", "dict": "an object", "list": "a list"}
    return names.get(kind.__name__, kind.__name__)


def _plain(value: Any) -> Any:
    """What parquet and TFDS have and JSON lacks: dates and decimals as text, bytes in base64, arrays as lists."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    return value
