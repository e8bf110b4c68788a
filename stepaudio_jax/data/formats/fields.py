"""Fields of records, checked by type: what is wrong is said with the field's path, what was expected and found."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

MAX_ITEMS = 20_000
"""Messages of a dialogue, and parts of a message: a turn takes four tokens at least, so 65,536 positions hold fewer."""


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
    check_number(items, name)
    for i, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise DialogueError(f"{name}[{i}]: expected an object, found {called(type(item))}")
    return items


def check_number(items: list[Any], path: str) -> None:
    """Raises DialogueError: more messages, or parts, than any model can read."""
    if len(items) > MAX_ITEMS:
        raise DialogueError(f"{path}: expected at most {MAX_ITEMS:,} (MAX_ITEMS), found {len(items):,}")


def extra(record: Mapping[str, Any], used: Collection[str]) -> dict[str, Any]:
    """The other fields, as JSON can hold them; null is none."""
    return {str(name): plain(value) for name, value in record.items() if name not in used and value is not None}


def plain(value: Any) -> Any:
    """What parquet and TFDS have and JSON lacks: dates and decimals as text, bytes in base64, arrays as lists."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | decimal.Decimal):
        return str(value)
    return value


def from_json_text(value: Any, path: str, default: Any = ...) -> Any:
    """What a field holds that may be JSON, or the text of it.

    Args:
      default: what text that is no JSON counts as.

    Raises:
      DialogueError: text that is no JSON, without a default.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError) as error:
        if default is ...:
            raise DialogueError(f"{path}: expected JSON, found text that is none ({error})") from None
        return default


def called(kind: type) -> str:
    """What an error calls a type."""
    names = {"NoneType": "nothing", "str": "text", "bool": "true or false", "dict": "an object", "list": "a list"}
    return names.get(kind.__name__, kind.__name__)
