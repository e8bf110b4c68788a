"""What a compiled program multiplies, what it moves to and from memory, and what its loops leave behind.

Each instruction counts as often as it runs; kernels, which the compiler does not look into, by the cost they state. All
figures are per device and for one call of the program.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from stepaudio_jax.plan.hlo import ARRAY, Hlo, Instruction, array_bytes, dims


def product_flops(hlo: Hlo) -> float:
    """Operations of every matrix product and convolution."""
    total = 0.0
    for computation, instruction, count in hlo.each():
        if instruction.opcode == "convolution":
            total += count * convolution_flops(instruction, hlo.types[computation])
        elif instruction.opcode == "dot":
            total += count * dot_flops(instruction, hlo.types[computation])
    return total


def kernels(hlo: Hlo) -> dict[str, tuple[int, float]]:
    """Of each kernel: how often it runs, and the operations it states, of all its runs."""
    found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for _, instruction, count in hlo.each():
        if instruction.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.attributes:
            stated = instruction.attribute(r'"cost_estimate":(\{[^}]*\})')
            name = re.sub(r"\.[\d.]+(clone.*)?$", "", instruction.name)
            found[name][0] += count
            found[name][1] += count * (float(json.loads(stated)["flops"]) if stated else 0.0)
    return {name: (int(count), stated) for name, (count, stated) in found.items()}


def flops(hlo: Hlo) -> float:
    """Products and kernels together."""
    return product_flops(hlo) + sum(stated for _, stated in kernels(hlo).values())


def dot_flops(instruction: Instruction, types: Mapping[str, str]) -> float:
    left = dims(types.get(instruction.operands[0], ""))
    contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
    size = math.prod(left[int(d)] for d in contracted.split(",") if d)
    return 2.0 * math.prod(dims(instruction.type)) * size


def convolution_flops(instruction: Instruction, types: Mapping[str, str]) -> float:
    """Of a convolution, which is how the TPU compiler writes a product: taps that fall into padding do no work."""
    labels = instruction.attribute(r"dim_labels=(\S+?)(?:,|$)") or ""
    left, right, out = (re.sub(r"\?", "", part) for part in re.split(r"_|->", labels))
    lhs, rhs = (dims(types.get(operand, "")) for operand in instruction.operands[:2])
    result = dims(instruction.type)
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


def memory_traffic(hlo: Hlo) -> float:
    """Bytes that go to and from memory: every operand read and every result written once by each
    instruction outside fusions; of a fusion that slices an operand, the slice. Arrays in VMEM are not counted."""
    total = 0.0
    fused = {called for _, i, _ in hlo.each() if i.opcode == "fusion" for called, _ in hlo.calls(i)}
    free = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
            "after-all", "async-done", "opt-barrier", "partition-id", "replica-id", "iota"}  # fmt: skip
    for computation, instruction, count in hlo.each():
        if computation in fused or instruction.opcode in free or instruction.opcode.endswith("-done"):
            continue
        if "AllocateBuffer" in instruction.attributes:
            continue
        types = hlo.types[computation]
        if instruction.opcode == "fusion":
            total += count * _fusion_traffic(hlo, instruction, types)
        elif instruction.opcode in ("dynamic-slice", "gather"):
            total += count * 2 * array_bytes(instruction.type)
        elif instruction.opcode == "dynamic-update-slice":
            total += count * 2 * array_bytes(types.get(instruction.operands[1], ""))
        elif instruction.name.startswith(PAGED_ATTENTION):
            total += count * (_pages_read(instruction, types) + array_bytes(instruction.type))
        else:
            operands = sum(array_bytes(types.get(operand, "")) for operand in instruction.operands)
            total += count * (operands + array_bytes(instruction.type))
    return total


PAGED_ATTENTION = "ragged_paged_attention"
"""JAX's kernel states no cost, and its operand is the whole pool of all layers."""


def _pages_read(kernel: Instruction, types: Mapping[str, str]) -> float:
    """Of attention over pages: its other operands, and as many pages as its page table, [rows, pages], names."""
    kinds = [types.get(operand, "") for operand in kernel.operands]
    pool = max(kinds, key=lambda kind: len(dims(kind)))
    tables = [math.prod(dims(kind)) for kind in kinds if "s32" in kind and len(dims(kind)) == 2]
    rest = sum(array_bytes(kind) for kind in kinds if kind is not pool)
    return rest + max(tables, default=0) * array_bytes(pool) / dims(pool)[0]


def _fusion_traffic(hlo: Hlo, fusion: Instruction, types: Mapping[str, str]) -> float:
    """What a fusion reads and writes: of an operand that is only sliced the slices, of an array that is updated in
    place the update."""
    body = hlo.computations.get(fusion.attribute(r"calls=%([\w.\-]+)") or "", [])
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
            whole = min(whole, _read(hlo, body, parameters[position]))
        moved += whole
    return moved


def _read(hlo: Hlo, body: list[Instruction], name: str) -> float:
    """Bytes of a value that a fusion's instructions read, through reshapes and fusions within."""
    total = 0.0
    for user in body:
        if name not in user.operands:
            continue
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            total += array_bytes(user.type, on_chip=True)
        elif user.opcode in ("dynamic-update-slice", "scatter") and user.operands[0] == name:
            continue
        elif user.opcode in LAID_OUT:
            total += _read(hlo, body, user.name)
        elif user.opcode == "fusion":
            called = hlo.computations.get(user.attribute(r"calls=%([\w.\-]+)") or "", [])
            at = str(user.operands.index(name))
            inner = next(i for i in called if i.opcode == "parameter" and i.operands[0] == at)
            # A fusion that only lays its operand out anew reads what is read of its result.
            total += _read(hlo, body, user.name) if _same_values(called, inner.name) else _read(hlo, called, inner.name)
        else:
            return math.inf
    return total


LAID_OUT = ("bitcast", "reshape", "transpose", "copy")


def _same_values(body: list[Instruction], name: str) -> bool:
    """Whether a fusion's result is one of its parameters in another layout."""
    users = [i for i in body if name in i.operands]
    while len(users) == 1 and users[0].opcode in LAID_OUT:
        if users[0].root:
            return True
        name = users[0].name
        users = [i for i in body if name in i.operands]
    return False


def stacked(hlo: Hlo) -> dict[str, float]:
    """Bytes that loops leave behind, step by step, in new arrays: by the loops of the forward pass ("forward",
    what the backward pass finds saved) and of the backward ("backward", gradients)."""
    found = {"forward": 0.0, "backward": 0.0}
    for computation in hlo.times:
        around = {i.name: i for i in hlo.computations.get(computation, ())}
        for loop in around.values():
            if loop.opcode == "while":
                kind = "backward" if "transpose" in loop.op_name else "forward"
                found[kind] += _left_behind(hlo, loop, around)
    return found


def _left_behind(hlo: Hlo, loop: Instruction, around: Mapping[str, Instruction]) -> float:
    """Bytes of the new arrays with a place for each run of a loop."""
    trips, total = hlo.trip_count(loop), 0.0
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
