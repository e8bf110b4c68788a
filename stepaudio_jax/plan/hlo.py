"""Reads a compiled program's text: what it multiplies, what it moves, and how often.

The compiler's own cost analysis counts a loop's body once and a kernel not at all. Here every instruction is counted
as often as it runs (loops with known trip counts), kernels by the cost they state, and collectives by the bytes that
arrive at a device, told apart by the mesh axes they run along.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

ITEM_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16, "s32": 32,
             "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128}  # fmt: skip
ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
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


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: of COLLECTIVES.
      axes: the mesh axes along which its groups run.
      bytes: that arrive at one device each time it runs.
      times: how often it runs in one call of the program.
      loop: how often the innermost loop around it runs, 0 outside of loops.
      shape: of the result.
      op_name: where in the source it comes from.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    times: int
    loop: int
    shape: str
    op_name: str


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
                for called, factor in self._calls(instruction):
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
                for called, trips in self._calls(instruction):
                    visit(called, trips if instruction.opcode == "while" else loop)

        visit(self.entry, 0)
        return found

    def _calls(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
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

    def _each(self, times: Mapping[str, int] | None = None) -> Iterator[tuple[str, Instruction, int]]:
        for computation, count in self.times.items():
            for instruction in self.computations.get(computation, ()):
                yield computation, instruction, count

    @functools.cached_property
    def product_flops(self) -> float:
        """Operations of every matrix product and convolution, per device."""
        total = 0.0
        for computation, instruction, count in self._each():
            if instruction.opcode == "convolution":
                total += count * convolution_flops(instruction, self.types[computation])
            elif instruction.opcode == "dot":
                total += count * dot_flops(instruction, self.types[computation])
        return total

    @functools.cached_property
    def kernels(self) -> dict[str, tuple[int, float]]:
        """Of each kernel: how often it runs, and the operations it states, per device and in all."""
        found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        for _, instruction, count in self._each():
            if instruction.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.attributes:
                stated = instruction.attribute(r'"cost_estimate":(\{[^}]*\})')
                name = re.sub(r"\.[\d.]+(clone.*)?$", "", instruction.name)
                found[name][0] += count
                found[name][1] += count * (float(json.loads(stated)["flops"]) if stated else 0.0)
        return {name: (int(count), flops) for name, (count, flops) in found.items()}

    @property
    def flops(self) -> float:
        """Products and kernels together."""
        return self.product_flops + sum(flops for _, flops in self.kernels.values())

    def collectives(self, mesh_shape: Mapping[str, int]) -> list[Collective]:
        """Every collective, with the mesh axes it runs along."""
        found, chains = [], set()
        for computation, instruction, count in self._each():
            kind = instruction.opcode.removesuffix("-start")
            if between := instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"'):  # slices, through the hosts
                if kind == "send":
                    found.append(self._between_slices(between, instruction, count, computation, mesh_shape))
                continue
            if kind not in COLLECTIVES:
                continue
            # One that runs beside several fusions is written into each of them, with one chain.
            if chain := instruction.attribute(r'chain_id="(\d+)"'):
                chain = (chain, self.loops.get(computation, 0), kind, re.sub(r"\{[^}]*\}", "", instruction.type))
                if chain in chains:
                    continue
                chains.add(chain)
            group = first_group(instruction.attributes)
            axes = _axes_of(group, mesh_shape)
            size = max(len(group), 1) if kind != "collective-permute" else 2
            whole = array_bytes(instruction.type, on_chip=True)
            if instruction.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
                whole = _last_bytes(instruction.type)  # a start's type holds its operands beside its results
            if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"  # a fusion of the sum and of the taking of one's part
                moved = whole * (size - 1) / size
            elif kind == "all-reduce":
                moved = 2 * whole * (size - 1) / size
            elif kind == "reduce-scatter":
                moved = whole * (size - 1)  # the type is one part of the sum
            elif kind == "collective-permute":
                moved = whole
            else:
                moved = whole * (size - 1) / size
            found.append(
                Collective(
                    kind, axes, moved, count, self.loops.get(computation, 0), instruction.type, instruction.op_name
                )
            )
        return found

    def _between_slices(
        self, transfer: str, send: Instruction, count: int, computation: str, mesh_shape: Mapping[str, int]
    ) -> Collective:
        """A collective along data over the data-centre network: hosts exchange what the device sends them."""
        parts = mesh_shape.get("data", 1)
        kind = transfer.lower().replace("_", "-")
        array = ARRAY.search(send.type)
        whole = array_bytes(array[0], on_chip=True) if array else 0.0
        moved = whole * (parts - 1) / parts * (2 if kind == "all-reduce" else 1)
        return Collective(kind, ("data",), moved, count, self.loops.get(computation, 0), send.type, send.op_name)

    @functools.cached_property
    def memory_traffic(self) -> float:
        """Bytes that go to and from memory per device: every operand read and every result written once by each
        instruction outside fusions; of a fusion that slices an operand, the slice. Arrays in VMEM are not counted."""
        total = 0.0
        fused = {called for _, i, _ in self._each() if i.opcode == "fusion" for called, _ in self._calls(i)}
        free = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
                "after-all", "async-done", "opt-barrier", "partition-id", "replica-id", "iota"}  # fmt: skip
        for computation, instruction, count in self._each():
            if computation in fused or instruction.opcode in free or instruction.opcode.endswith("-done"):
                continue
            if "AllocateBuffer" in instruction.attributes:
                continue
            types = self.types[computation]
            if instruction.opcode == "fusion":
                total += count * self._fusion_traffic(instruction, types)
            elif instruction.opcode in ("dynamic-slice", "gather"):
                total += count * 2 * array_bytes(instruction.type)
            elif instruction.opcode == "dynamic-update-slice":
                total += count * 2 * array_bytes(types.get(instruction.operands[1], ""))
            else:
                operands = sum(array_bytes(types.get(operand, "")) for operand in instruction.operands)
                total += count * (operands + array_bytes(instruction.type))
        return total

    def _fusion_traffic(self, fusion: Instruction, types: Mapping[str, str]) -> float:
        """What a fusion reads and writes: of an operand that is only sliced the slices, of an array that is updated in
        place the update."""
        body = self.computations.get(fusion.attribute(r"calls=%([\w.\-]+)") or "", [])
        inner = {i.name: i.type for i in body}
        updates = [i for i in body if i.opcode in ("dynamic-update-slice", "scatter")]
        moved = array_bytes(fusion.type)
        for update in updates:
            if array_bytes(inner[update.name]) <= moved:
                new = update.operands[1 if update.opcode == "dynamic-update-slice" else -1]
                moved += array_bytes(inner.get(new, "")) - array_bytes(inner[update.name])
        parameters = {int(i.operands[0]): i.name for i in body if i.opcode == "parameter"}
        for position, operand in enumerate(fusion.operands):
            whole = array_bytes(types.get(operand, ""))
            if whole and position in parameters:
                whole = min(whole, self._read(body, parameters[position]))
            moved += whole
        return moved

    def _read(self, body: list[Instruction], name: str) -> float:
        """Bytes of a value that a fusion's instructions read, through reshapes and fusions within."""
        total = 0.0
        for user in body:
            if name not in user.operands:
                continue
            if user.opcode in ("dynamic-slice", "slice", "gather"):
                total += array_bytes(user.type, on_chip=True)
            elif user.opcode in ("dynamic-update-slice", "scatter") and user.operands[0] == name:
                continue
            elif user.opcode in ("bitcast", "reshape", "transpose", "copy"):
                total += self._read(body, user.name)
            elif user.opcode == "fusion":
                called = self.computations.get(user.attribute(r"calls=%([\w.\-]+)") or "", [])
                at = user.operands.index(name)
                total += sum(
                    self._read(called, i.name) for i in called if i.opcode == "parameter" and i.operands[0] == str(at)
                )
            else:
                return math.inf
        return total

    @functools.cached_property
    def stacked(self) -> dict[str, float]:
        """Bytes that loops leave behind, step by step, in new arrays: by the loops of the forward pass ("forward",
        what the backward pass finds saved) and of the backward ("backward", gradients)."""
        found = {"forward": 0.0, "backward": 0.0}
        for computation in self.times:
            around = {i.name: i for i in self.computations.get(computation, ())}
            for loop in around.values():
                if loop.opcode == "while":
                    kind = "backward" if "transpose" in loop.op_name else "forward"
                    found[kind] += self._left_behind(loop, around)
        return found

    def _left_behind(self, loop: Instruction, around: Mapping[str, Instruction]) -> float:
        """Bytes of the new arrays with a place for each run of a loop."""
        trips, total = self.trip_count(loop), 0.0
        carried = around.get(loop.operands[0])
        for operand in carried.operands if carried is not None else ():
            made = _unwrapped(around, operand)
            fresh = made is not None and ("AllocateBuffer" in made.attributes or made.opcode == "broadcast")
            shape = ARRAY.search(made.type) if made is not None else None
            if fresh and shape and trips > 1 and shape[2].split(",")[0] == str(trips):
                total += array_bytes(shape[0])
        return total


def _unwrapped(instructions: Mapping[str, Instruction], name: str) -> Instruction | None:
    """The instruction that makes a value, behind copies and bitcasts."""
    made = instructions.get(name)
    while made is not None and made.opcode in ("copy", "bitcast", "copy-done") and made.operands:
        made = instructions.get(made.operands[0])
    return made


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
    for dtype, dims, layout in ARRAY.findall(kind):
        if dtype in ITEM_BITS and (on_chip or ON_CHIP not in layout):
            total += math.prod(int(d) for d in dims.split(",") if d) * ITEM_BITS[dtype] / 8
    return total


def _last_bytes(kind: str) -> float:
    """Of the results in a start's type, (operands, results, …): the larger half, results being at least as large."""
    sizes = [array_bytes(match[0], on_chip=True) for match in ARRAY.finditer(kind) if match[1] not in ("u32", "s32")]
    return (
        sum(sizes) - min(sum(sizes[: len(sizes) // 2]), sum(sizes[len(sizes) // 2 :])) if len(sizes) > 1 else sum(sizes)
    )


def _dims(kind: str) -> list[int]:
    found = ARRAY.search(kind)
    return [int(d) for d in found[2].split(",") if d] if found else []


def dot_flops(instruction: Instruction, types: Mapping[str, str]) -> float:
    left = _dims(types.get(instruction.operands[0], ""))
    contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    size = math.prod(left[int(d)] for d in contracted.split(",") if d)
    return 2.0 * math.prod(_dims(instruction.type)) * size


def convolution_flops(instruction: Instruction, types: Mapping[str, str]) -> float:
    """Of a convolution, which is how the TPU compiler writes a product: taps that fall into padding do no work."""
    labels = instruction.attribute(r"dim_labels=(\S+?)(?:,|$)") or ""
    left, right, out = (re.sub(r"\?", "", part) for part in re.split(r"_|->", labels))
    lhs, rhs = (_dims(types.get(operand, "")) for operand in instruction.operands[:2])
    result = _dims(instruction.type)
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""

    def field(name: str, default: int, count: int) -> list[str]:
        values = re.search(rf"\b{name}=(\S+)", window)
        return values[1].split("x") if values else [str(default)] * count

    spatial = [c for c in out if c.isdigit()]
    batch, features = result[out.index("b")], result[out.index("f")]
    per_tap = rhs[right.index("i")]
    total = 2.0 * batch * features * per_tap
    sizes, strides = field("size", 1, len(spatial)), field("stride", 1, len(spatial))
    pads, lhs_dilation = field("pad", 0, len(spatial)), field("lhs_dilate", 1, len(spatial))
    rhs_dilation = field("rhs_dilate", 1, len(spatial))
    for i, label in enumerate(spatial):
        low = int(pads[i].split("_")[0])
        outputs = np.arange(result[out.index(label)])[:, None] * int(strides[i])
        taps = outputs - low + np.arange(int(sizes[i])) * int(rhs_dilation[i])
        extent = (lhs[left.index(label)] - 1) * int(lhs_dilation[i])
        total *= float(((taps >= 0) & (taps <= extent) & (taps % int(lhs_dilation[i]) == 0)).sum())
    return total


def first_group(attributes: str) -> list[int]:
    """The devices of the first group of a collective, in whatever of the notations it is written."""
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return [int(found[1]), int(found[2])]
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return [int(d) for d in found[1].split(",") if d]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, reshape = ([int(d) for d in part.split(",")] for part in found.groups()[:2])
        ids = np.arange(math.prod(reshape)).reshape(reshape)
        if found[3]:
            ids = ids.transpose([int(d) for d in found[3].split(",")])
        return ids.reshape(shape)[0].tolist()
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        along = re.findall(r"'(\w+)'", found[2])
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        return ids[tuple(slice(None) if name in along else 0 for name in sizes)].reshape(-1).tolist()
    return []


def _axes_of(group: list[int], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which a group's members differ; the pieces of fsdp count as fsdp."""
    if len(group) < 2 or max(group) >= math.prod(mesh_shape.values()):
        return ()
    places = np.array(np.unravel_index(group, list(mesh_shape.values())))
    differing = [name for name, places in zip(mesh_shape, places, strict=True) if len(set(places.tolist())) > 1]
    return tuple(dict.fromkeys(name.removesuffix("_minor") for name in differing))
