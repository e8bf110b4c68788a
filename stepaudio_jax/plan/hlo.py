"""Reads a compiled program's text: its instructions, the types of their results, and how often each runs.

The compiler's own cost analysis counts a loop's body once. Here an instruction is counted as often as it runs (loops
with known trip counts). What that costs is in `hlo_costs.py`, what is sent in `hlo_collectives.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator

ITEM_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32,
             "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128}  # fmt: skip
ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
ON_CHIP = "S(1)"
"""How a layout says that an array lies in VMEM."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """name = type opcode(operands), attributes."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    root: bool = False

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    @property
    def op_name(self) -> str:
        return self.attribute(r'op_name="([^"]*)"') or ""


class Hlo:
    """A module, from the text of `compiled.as_text()`."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            if line.endswith("{") and (header := re.match(r"(ENTRY )?%([\w.\-]+) \(", line)):
                current = self.computations[header[2]] = []
                if header[1]:
                    self.entry = header[2]
            elif instruction := parse(line):
                current.append(instruction)
        self.types = {name: {i.name: i.type for i in instructions} for name, instructions in self.computations.items()}

    @functools.cached_property
    def times(self) -> dict[str, int]:
        """How often each computation runs in one call. Of a conditional's branches all are counted as taken."""
        runs: dict[str, int] = defaultdict(int)

        def visit(computation: str, count: int):
            runs[computation] += count
            for instruction in self.computations.get(computation, ()):
                for called, factor in self.calls(instruction):
                    visit(called, count * factor)

        visit(self.entry, 1)
        return dict(runs)

    @functools.cached_property
    def loops(self) -> dict[str, int]:
        """Of each computation within a loop: how often the innermost loop around it runs."""
        found: dict[str, int] = {}

        def visit(computation: str, loop: int):
            if loop:
                found[computation] = loop
            for instruction in self.computations.get(computation, ()):
                for called, trips in self.calls(instruction):
                    visit(called, trips if instruction.opcode == "while" else loop)

        visit(self.entry, 0)
        return found

    def calls(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        """The computations that an instruction runs, and how often each time."""
        if instruction.opcode == "while":
            body = instruction.attribute(r"body=%([\w.\-]+)")
            if body:
                yield body, self.trip_count(instruction)
        elif instruction.opcode == "conditional":
            listed = instruction.attribute(r"branch_computations=\{([^}]*)\}")
            branches = [name.strip().lstrip("%") for name in listed.split(",")] if listed else []
            branches += [b for k in ("true", "false") if (b := instruction.attribute(rf"{k}_computation=%([\w.\-]+)"))]
            yield from ((branch, 1) for branch in branches)
        elif instruction.opcode in ("fusion", "call", "async-start", "call-start", "map"):
            called = instruction.attribute(r"(?:calls|to_apply)=%([\w.\-]+)")
            if called:
                yield called, 1

    def trip_count(self, loop: Instruction) -> int:
        """How often a loop runs: its counter goes up to the constant that its condition compares it with; 1 where the
        condition is of another kind (a loop until all have ended)."""
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"\}'):
            return int(known)
        condition = self.computations.get(loop.attribute(r"condition=%([\w.\-]+)") or "", ())
        by_name = {i.name: i for i in condition}
        for instruction in condition:
            if instruction.root and instruction.opcode == "compare" and "direction=LT" in instruction.attributes:
                limit = by_name.get(instruction.operands[1])
                if limit is not None and limit.opcode == "constant":
                    return int(limit.operands[0])
            if instruction.root and instruction.opcode == "fusion":  # the comparison, fused
                constants = [i for i in condition if i.opcode == "constant" and i.type.startswith("s32")]
                if len(constants) == 1 and constants[0].operands[0].isdigit():
                    return int(constants[0].operands[0])
        return 1

    def each(self) -> Iterator[tuple[str, Instruction, int]]:
        """Every instruction that runs: its computation, itself, how often."""
        for computation, count in self.times.items():
            for instruction in self.computations.get(computation, ()):
                yield computation, instruction, count


def parse(line: str) -> Instruction | None:
    """An instruction from its line, or None for a line that holds none."""
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    names = tuple(re.findall(r"%([\w.\-]+)", inside)) or tuple(part.strip() for part in inside.split(","))
    return Instruction(found[2], kind, opcode, names, rest[close + 1 :], bool(found[1]))


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)


def array_bytes(kind: str, *, on_chip: bool = False) -> float:
    """Bytes of a type's arrays; of those in memory only, unless `on_chip`."""
    total = 0.0
    for dtype, sides, layout in ARRAY.findall(kind):
        if dtype in ITEM_BITS and (on_chip or ON_CHIP not in layout):
            total += math.prod(int(d) for d in sides.split(",") if d) * ITEM_BITS[dtype] / 8
    return total


def dims(kind: str) -> list[int]:
    """Of a type's first array."""
    found = ARRAY.search(kind)
    return [int(d) for d in found[2].split(",") if d] if found else []
