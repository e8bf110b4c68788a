"""Is a value of the type and in the range that its field asks for?

Each check returns what is wrong in words, to be put behind the field's name, or None. Values come out of JSON: a bool
is never taken for a number, and NaN, infinities and integers of any length are among them.
"""

from __future__ import annotations

import numbers
import reprlib
from typing import Any

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlong = 30


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, text in double quotes, cut where it is long or deep."""
    return f'"{printable(value[:60])}"' if isinstance(value, str) else _short.repr(value)


def printable(text: str) -> str:
    """Text without what would break a line or steer a terminal."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def integer_problem(value: Any, least: int, most: int) -> str | None:
    """What keeps a value from being an integer from `least` to `most`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        return f"expected an integer, found {shown(value)}"
    return _range_problem(value, least, most)


def number_problem(value: Any, least: float, most: float) -> str | None:
    """What keeps a value from being a number from `least` to `most`."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return f"expected a number, found {shown(value)}"
    return _range_problem(value, least, most)


def flag_problem(value: Any) -> str | None:
    """What keeps a value from being true or false."""
    return None if isinstance(value, bool) else f"expected true or false, found {shown(value)}"


def field_problem(value: Any, kind: str, least: float, most: float) -> str | None:
    """What keeps a value from being a dataclass's field that is declared as `int`, `float` or `bool`, or None where
    `kind` ends in `| None`. Fields of other types are not looked at."""
    if value is None and kind.endswith("| None"):
        return None
    match kind.split()[0]:
        case "int":
            return integer_problem(value, int(least), int(most))
        case "float":
            return number_problem(value, least, most)
        case "bool":
            return flag_problem(value)
    return None


def _range_problem(value: Any, least: float, most: float) -> str | None:
    # Comparisons only: an integer of 400 digits has no float, and NaN lies in no range.
    if value <= 0 < least:
        return f"expected a positive number, found {shown(value)}"
    if not least <= value <= most:
        return f"expected a number from {least:,} to {most:,}, found {shown(value)}"
    return None
