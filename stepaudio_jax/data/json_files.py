"""JSON to records: an object a line, or one list of objects.

Of a file of lines only where they begin is kept in memory; a list is kept whole.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

from etils import epath

from stepaudio_jax.data.samples import RecordError

MAX_JSON = 64 << 20
"""Bytes of a record in JSON, which takes several times as many to parse: 25 minutes of 16 kHz sound in base64, the
only thing in a record that is ever so long."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def from_json(data: bytes | str, where: str) -> tuple[str, dict[str, Any] | RecordError]:
    """One JSON object, or why it is none. A key that stands twice in an object is refused: only one could be kept."""
    if len(data) > MAX_JSON:
        return where, RecordError(
            f"{where}: more than {MAX_JSON >> 20} MiB of JSON in one record (MAX_JSON); sound of that size "
            "belongs in a file beside it, or in parquet"
        )
    try:
        record = json.loads(data, object_pairs_hook=_object)
        if isinstance(data, bytes) and _SURROGATE.search(data):
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return where, RecordError(f"{where}: not Unicode text, half of a surrogate pair stands alone in it")
    except json.JSONDecodeError as error:
        return where, RecordError(f"{where}: not JSON ({error.msg}, at character {error.pos})")
    except _Twice as error:
        return where, RecordError(f"{where}: {error}")
    except (ValueError, RecursionError) as error:
        return where, RecordError(f"{where}: not JSON ({error})")
    if not isinstance(record, dict):
        return where, RecordError(f"{where}: expected a JSON object, found {type(record).__name__}")
    return where, record


class _Twice(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
        raise _Twice(f'the key "{twice[:100]}" stands twice in one object, expected it once')
    return found


def first_letter(path: str) -> bytes:
    """Of a text file, behind blank lines and the mark that some begin with."""
    with epath.Path(path).open("rb") as stream:
        piece = stream.read(3)
        piece = b"" if piece == b"\xef\xbb\xbf" else piece
        while not piece.strip() and (more := stream.read(1 << 16)):
            piece = more
    return piece.lstrip()[:1]


class JsonLines:
    """One JSON object a line; blank lines are none."""

    def __init__(self, path: str):
        self._path = path
        self._starts, self._numbers = array("q"), array("q")
        at = 0
        with epath.Path(path).open("rb") as stream:
            number, begun, blank = 1, 0, True
            while piece := stream.readline(1 << 20):  # a line in pieces, since it may be longer than memory
                at += len(piece)
                blank = blank and not piece.strip()
                if piece.endswith(b"\n"):
                    if not blank:
                        self._starts.append(begun)
                        self._numbers.append(number)
                    number, begun, blank = number + 1, at, True
            if not blank:
                self._starts.append(begun)
                self._numbers.append(number)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, start: int, stop: int) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        with epath.Path(self._path).open("rb") as stream:
            for i in range(start, stop):
                stream.seek(self._starts[i])
                yield from_json(stream.readline(MAX_JSON + 1), f"{self._path}:{self._numbers[i]}")


class JsonList:
    """One JSON list of objects. Where it stops being that, the rest of the file is one bad record."""

    def __init__(self, path: str):
        self._path = path
        self._text = epath.Path(path).read_bytes().decode("utf-8-sig", errors="surrogateescape")
        self._items = list(_items(self._text))

    def __len__(self) -> int:
        return len(self._items)

    def read(self, start: int, stop: int) -> Iterator[tuple[str, dict[str, Any] | RecordError]]:
        for first, end, line in self._items[start:stop]:
            data = self._text[first:end].encode("utf-8", errors="surrogateescape")
            where, record = from_json(data, f"{self._path}:{line}")
            if isinstance(record, RecordError) and end == len(self._text):
                record = RecordError(f"{record}; the list is broken off here, nothing behind it is read")
            yield where, record


def _items(text: str) -> Iterator[tuple[int, int, int]]:
    """(first character, the one after the last, line) of each item of a JSON list, and of what breaks it off."""
    decoder, space = json.JSONDecoder(), re.compile(r"[\s,]*")
    at, seen, line = text.index("[") + 1, 0, 1
    while True:
        first = space.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]
        line += text.count("\n", seen, first)
        seen = first
        if text[first : first + 1] == "]" and not text[first + 1 :].strip():
            return
        try:
            at = decoder.raw_decode(text, first)[1]
        except (ValueError, RecursionError):
            yield first, len(text), line
            return
        yield first, at, line
