"""What a compiled train step costs a device: memory, arithmetic, traffic, communication.

All numbers are of one device: a program that is split over devices is written for one of them. They
are counted in the text of the compiled program, loops as often as they run; the compiler's own
`cost_analysis` runs through a loop once, counts vector memory as memory, and its `optimal_seconds`
can be negative. Arithmetic is that of products, which a chip's peak rate is about.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "s4", "u4", "s2", "u2"), 1),
    **dict.fromkeys(("f8e4m3fn", "f8e5m2", "f8e4m3", "f8e4m3b11fnuz", "f8e5m2fnuz"), 1),
    **dict.fromkeys(("f16", "bf16", "s16", "u16"), 2),
    **dict.fromkeys(("f32", "s32", "u32"), 4),
    **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
    "c128": 16,
}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
# They name values, or end what another instruction began: nothing moves.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "add-dependency", "domain", "opt-barrier"),
    *("async-update", "async-done", "copy-done", "slice-done", "send-done", "recv-done"),
}
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.\-]+)")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A kind of communication among groups of so many devices, summed over a step.

    Attributes:
      kind: as XLA calls it: "all-reduce", "all-gather", ...
      group: devices that take part together.
      bytes: of its operands on one device; of an all-gather, of its result.
      count: how often it begins.
    """

    kind: str
    group: int
    bytes: float
    count: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends along a ring: what the links carry.

        An all-reduce passes everything twice, but for the device's own part; the others once.
        """
        passes = {"all-reduce": 2.0}.get(self.kind, 1.0)
        if self.kind.startswith("collective"):
            return self.bytes
        return passes * self.bytes * (self.group - 1) / self.group


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a step costs one device.

    Attributes:
      flops: operations of products.
      traffic: bytes that pass between the device's memory and its cores.
      state: bytes of the arguments: state and batch.
      temporary: bytes of intermediate results, at their most.
      memory: bytes in all, at their most.
      collectives: by kind and size of group.
    """

    flops: float
    traffic: float
    state: float
    temporary: float
    memory: float
    collectives: Sequence[Collective]


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
    """The compiler's own verdict: bytes used, and bytes that there are."""

    used: float
    capacity: float


def cost(compiled: Any, of_libraries: float = 0.0) -> Cost:
    """Read a compiled program's costs: `jax.stages.Compiled`.

    Args:
      of_libraries: operations to believe in on a GPU, where libraries multiply behind calls.
    """
    stats = compiled.memory_analysis()
    code = stats.generated_code_size_in_bytes
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes  # outputs that replace no argument
    held = stats.argument_size_in_bytes + new + stats.temp_size_in_bytes
    text = compiled.as_text()
    return Cost(
        flops=of_libraries if "__cu" in text else products(text),
        traffic=traffic(text),
        state=float(stats.argument_size_in_bytes),
        temporary=float(stats.temp_size_in_bytes),
        memory=float(held + code),
        collectives=collectives(text),
    )


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def out_of_memory(message: str) -> OutOfMemory | None:
    """Read the verdict in a compiler's error; None if it says no such thing.

    `Used 20.5G of 15.75G hbm`, or `temporaries (3.30T) exceeds available HBM (15.75G)`.
    """
    number = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"Used {number} of {number} hbm", message) or re.search(
        rf"\({number}B?\) exceeds available HBM \({number}B?\)", message
    )
    if found is None:
        return None
    used, unit, capacity, unit_there = found.groups()
    return OutOfMemory(float(used) * _UNITS[unit], float(capacity) * _UNITS[unit_there])


def collectives(text: str) -> list[Collective]:
    """Sum up the communication of a compiled program by kind and size of group.

    Args:
      text: HLO of one device, as `Compiled.as_text` gives it.
    """
    program = _read(text)
    total: dict[tuple[str, int], tuple[float, int]] = {}
    seen = set()
    for one, times, inside in program.run():
        kind = one.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        # One that is spread over several fusions stands in each of them, on the same channel.
        channel = re.search(r"channel_id=(\d+)", one.text)
        if channel is not None:
            key = (kind, channel.group(1), one.result)
            if key in seen and inside:
                continue
            seen.add(key)
        size = _group(one.text)
        if size == 1:
            continue
        shapes = _shapes(one.result) if kind == "all-gather" else program.operand_shapes(one)
        if kind == "all-gather" and one.opcode.endswith("-start"):
            shapes = shapes[len(shapes) // 2 :]  # a start's result is (operands, results)
        moved = sum(s.bytes for s in shapes)
        before, count = total.get((kind, size), (0.0, 0))
        total[kind, size] = before + moved * times, count + times
    return [
        Collective(kind, size, moved, count)
        for (kind, size), (moved, count) in sorted(total.items())
    ]


def traffic(text: str) -> float:
    """Bytes that a compiled program reads from and writes to a device's main memory.

    Each instruction that is run reads its operands once and writes its result once; what is inside
    a fusion stays on the chip, and so do values that lie in another memory (`S(1)` in a layout: a
    TPU's vector memory). Operands of which only a slice is read are counted as that slice where the
    fusion says so.
    """
    program = _read(text)
    total = 0.0
    for one, times, inside in program.run():
        if one.opcode in FREE or inside:
            continue
        if one.opcode in ("while", "conditional", "call", "async-start"):
            continue  # what they run is counted
        total += program.moved(one) * times
    return total


def products(text: str) -> float:
    """Operations of a compiled program's matrix products and convolutions.

    Zeros that a dilation puts in are not counted, nor is what a library does behind a call.
    """
    program = _read(text)
    return sum(
        times * program.product(one)
        for one, times, _ in program.run()
        if one.opcode in ("convolution", "dot")
    )


@dataclasses.dataclass(frozen=True)
class _Shape:
    dims: tuple[int, ...]
    bytes: int
    main: bool  # in the device's main memory


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    result: str  # text of its shape
    operands: str  # text within its brackets
    text: str
    root: bool


class _Program:
    """A compiled program: its computations, each a list of instructions."""

    def __init__(self, text: str):
        self.computations: dict[str, list[_Instruction]] = {}
        self.entry = ""
        self._by_name: dict[str, str] = {}
        current: list[_Instruction] | None = None
        for line in text.splitlines():
            if line and not line[0].isspace() and line.rstrip().endswith("{"):
                name = line.removeprefix("ENTRY ").lstrip("%").split(" ")[0].split("(")[0]
                if line.startswith("ENTRY"):
                    self.entry = name
                current = self.computations.setdefault(name, [])
            elif line.startswith("}"):
                current = None
            elif current is not None:
                one = _parsed(line)
                if one is not None:
                    current.append(one)
                    self._by_name[one.name] = one.result

    def run(self) -> Iterator[tuple[_Instruction, int, bool]]:
        """Every instruction that is run, how often, and whether inside a fusion.

        Of a conditional it is the last branch, as in `trace`: true, or what else there is.
        """
        yield from self._run(self.entry, 1, False)

    def _run(self, name: str, times: int, inside: bool) -> Iterator[tuple[_Instruction, int, bool]]:
        for one in self.computations.get(name, ()):
            yield one, times, inside
            called = _CALLED.findall(one.text)
            if one.opcode == "while":
                for inner in called:
                    yield from self._run(inner, times * self.trips(one), inside)
            elif one.opcode == "conditional":
                for inner in _branches(one.text)[-1:]:
                    yield from self._run(inner, times, inside)
            elif one.opcode == "fusion":
                for inner in called:
                    yield from self._run(inner, times, True)
            elif one.opcode in ("call", "async-start", "custom-call"):
                for inner in called:
                    yield from self._run(inner, times, inside or one.opcode == "custom-call")

    def trips(self, loop: _Instruction) -> int:
        """How often a loop runs: what it says, or the bound that its condition compares with."""
        said = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text)
        if said is not None:
            return int(said.group(1))
        found = re.search(r"condition=%?([\w.\-]+)", loop.text)
        condition = self.computations.get(found.group(1), []) if found else []
        bounds = [
            int(number)
            for one in condition
            if one.opcode == "constant"
            for number in re.findall(r"constant\((\d+)\)", one.text)
        ]
        return max(1, bounds[0]) if len(bounds) == 1 else 1

    def operand_shapes(self, one: _Instruction) -> list[_Shape]:
        """The arrays that an instruction reads."""
        found = []
        for name in re.findall(r"%([\w.\-]+)", one.operands):
            found += _shapes(self._by_name.get(name, ""))
        return found

    def moved(self, one: _Instruction) -> float:
        """Bytes of main memory that an instruction reads and writes."""
        names = re.findall(r"%([\w.\-]+)", one.operands)
        results = _shapes(one.result)
        if one.opcode.endswith("-start"):  # what is copied from one to the other; of a slice, that
            return float(min(s.bytes for s in results[:2]) * sum(s.main for s in results[:2]))
        body = self._body(one)
        written = [s for s in results if s.main]
        total = 0.0
        for place, name in enumerate(names):
            shapes = [s for s in _shapes(self._by_name.get(name, "")) if s.main]
            whole = sum(s.bytes for s in shapes)
            total += min(whole, self._read(body, place, whole)) if body else whole
        wrote = float(sum(s.bytes for s in written))
        if one.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * wrote
        updated = self._updated(body, one)
        return total + (updated if updated is not None else wrote)

    def product(self, one: _Instruction) -> float:
        """Multiplications and additions of a product."""
        names = re.findall(r"%([\w.\-]+)", one.operands)
        left, right = (_shapes(self._by_name[name])[0].dims for name in names[:2])
        if one.opcode == "dot":
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.text)
            listed = axes.group(1).split(",") if axes else []
            out = math.prod(_shapes(one.result)[0].dims)
            return 2.0 * out * math.prod(left[int(axis)] for axis in listed if axis)
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.text)
        if labels is None:
            return 0.0
        of_left, of_right, of_result = labels.groups()
        result = _shapes(one.result)[0].dims
        total = 2.0 * right[of_right.index("i")]
        for axis, label in enumerate(of_result):
            if label in "bf":
                total *= result[axis]
        window = _window(one.text)
        for label in filter(str.isdigit, of_right):
            place = int(label)
            total *= taps(
                left[of_left.index(label)],
                result[of_result.index(label)],
                right[of_right.index(label)],
                *(window[what][place] if window[what] else default for what, default in _WINDOW),
            )
        return total

    def _body(self, one: _Instruction) -> list[_Instruction]:
        if one.opcode != "fusion":
            return []
        called = _CALLED.search(one.text)
        return self.computations.get(called.group(1), []) if called else []

    @staticmethod
    def _read(body: list[_Instruction], place: int, whole: float) -> float:
        """Bytes of a fusion's operand that are read: all, or a slice if no more is used."""
        inside = [i for i in body if i.opcode == "parameter" and i.operands == str(place)]
        if not inside:
            return whole
        users = [i for i in body if re.search(rf"%{re.escape(inside[0].name)}\b", i.operands)]
        sliced = ("dynamic-slice", "slice", "gather")
        if users and all(u.opcode in sliced for u in users):
            return float(sum(s.bytes for u in users for s in _shapes(u.result)))
        if users and all(
            u.opcode == "dynamic-update-slice" and u.operands.startswith(f"%{inside[0].name}")
            for u in users
        ):
            return 0.0  # written in place
        return whole

    def _updated(self, body: list[_Instruction], one: _Instruction) -> float | None:
        """Bytes written by an update in place; None if the whole result is written."""
        last = one if one.opcode == "dynamic-update-slice" else None
        for inner in body:
            if inner.root and inner.opcode == "dynamic-update-slice":
                last = inner
        if last is None:
            return None
        names = re.findall(r"%([\w.\-]+)", last.operands)
        return float(sum(s.bytes for s in _shapes(self._by_name.get(names[1], ""))))


@functools.lru_cache(maxsize=1)
def _read(text: str) -> _Program:
    """Read once what may be many megabytes."""
    return _Program(text)


_WINDOW = (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))


def _window(text: str) -> dict[str, list[int]]:
    """A convolution's window, a number for each spatial axis; of padding, that before the first."""
    found = re.search(r"window=\{([^}]*)\}", text)
    said = dict(re.findall(r"(\w+)=([\d_x\-]+)", found.group(1))) if found else {}
    return {
        what: [int(one.split("_")[0]) for one in said[what].split("x")] if what in said else []
        for what, _ in _WINDOW
    }


@functools.lru_cache(maxsize=10_000)
def taps(
    inputs: int, outputs: int, size: int, stride: int, low: int, dilate: int, spread: int
) -> int:
    """How many pairs (output, element of the window) of one axis meet an element of the input.

    Args:
      low: padding before the first element.
      dilate, spread: distance of the input's elements, and of the window's.
    """
    at = np.arange(outputs)[:, None] * stride + np.arange(size) * spread - low
    return int(((at >= 0) & (at <= (inputs - 1) * dilate) & (at % dilate == 0)).sum())


def _parsed(line: str) -> _Instruction | None:
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    root, name, rest = found.groups()
    result, rest = _split_shape(rest)
    opened = re.match(r"\s*([a-z][\w\-]*)\(", rest)
    if opened is None:
        return None
    end = _closing(rest, opened.end() - 1)
    operands = rest[opened.end() : end]
    return _Instruction(name, opened.group(1), result, operands, rest, bool(root))


def _split_shape(text: str) -> tuple[str, str]:
    """Split `f32[2]{0} add(...)`, or a tuple's `(..., ...) while(...)`, behind the shape."""
    if text.startswith("("):
        end = _closing(text, 0) + 1
        return text[:end], text[end:]
    shape, _, rest = text.partition(" ")
    return shape, rest


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text)


@functools.lru_cache(maxsize=100_000)
def _shapes(text: str) -> list[_Shape]:
    found = []
    for kind, dims, layout in _SHAPE.findall(text):
        if kind not in BYTES:
            continue
        sizes = tuple(int(d) for d in dims.split(",") if d)
        memory = re.search(r"S\((\d+)\)", layout)
        main = memory is None or memory.group(1) == "0"
        found.append(_Shape(sizes, math.prod(sizes) * BYTES[kind], main))
    return found


def _branches(text: str) -> list[str]:
    """Computations of a conditional in JAX's order, in which false comes before true."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", text)
    if listed is not None:
        return re.findall(r"%?([\w.\-]+)", listed.group(1))
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", text)[::-1]


def _group(text: str) -> int:
    """Devices of one replica group of a collective; 1 where they do not say."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", text)
    if mesh is not None:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh.group(2)))
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]", text)
    if iota is not None:
        return int(iota.group(1))
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", text)
    if listed is not None:
        return len(listed.group(1).split(","))
    return 2 if "source_target_pairs=" in text else 1


def by_kind(found: Sequence[Collective]) -> dict[str, float]:
    """Bytes of each kind of collective."""
    total: dict[str, float] = {}
    for one in found:
        total[one.kind] = total.get(one.kind, 0.0) + one.bytes
    return total
