"""What a compiled TPU program costs, read from its text: the compiler's own cycles per operation, summed.

Every scheduled fusion, convolution and copy of a TPU program carries the compiler's `estimated_cycles`. Loops are
multiplied by the constant of their condition. What carries no estimate is costed here and marked so: collectives by
bytes over link bandwidth, custom kernels by their own schedule, the rest (sorts, a few copies) by the bytes they move.
docs/plan.md says how far to trust the sum. Pure text in, numbers out: no JAX here.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_BYTES = {"pred": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
          "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(?P<name>[\w.-]+) = (?P<rest>.*)$")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[\w.-]+) \(.*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_OPCODE = re.compile(r"([a-z][\w-]*)\(")
_FRAME = re.compile(r"stack_frame_id=(\d+)")

_LIBRARY = "site-packages"
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Names for data that is already there, or work that other entries hold.
_FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "optimization-barrier", "while", "conditional", "call",
})  # fmt: skip

# Calls of the compiler's own that say something and do nothing.
_FREE_CALLS = frozenset({"ConcatBitcast", "AssumeGatherIndicesInBound"})


@dataclass(frozen=True)
class Instruction:
    """One line of the program."""

    name: str
    opcode: str
    text: str
    result: str
    """The result's type, as written: one shape or a tuple of them."""

    @property
    def op_name(self) -> str:
        """Return the JAX primitive's path through the modules: jit(train_step)/jvp(...)/.../dot_general."""
        match = _OP_NAME.search(self.text)
        return match[1] if match else ""

    @property
    def estimated_cycles(self) -> int | None:
        match = _CYCLES.search(self.text)
        return int(match[1]) if match else None

    @property
    def operands(self) -> tuple[str, ...]:
        start = self.text.index(f"{self.opcode}(") + len(self.opcode) + 1
        return tuple(re.findall(r"%([\w.-]+)", self.text[start : self.text.index(")", start)]))

    def attribute(self, name: str) -> str | None:
        """Return the computation that `name=` points to: calls, body, condition."""
        match = re.search(rf"\b{name}=%([\w.-]+)", self.text)
        return match[1] if match else None


@dataclass(frozen=True)
class Program:
    """The text of a compiled program, taken apart."""

    computations: dict[str, list[Instruction]]
    entry: str
    frames: dict[int, str]
    """Stack frame id -> "file:line" of the innermost frame outside installed libraries."""

    def source(self, instruction: Instruction) -> str:
        match = _FRAME.search(instruction.text)
        return self.frames.get(int(match[1]), "") if match else ""


def parse(text: str) -> Program:
    """Take `compiled.as_text()` apart."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header["name"], [])
            entry = header["name"] if header["entry"] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (match := _INSTRUCTION.match(line)):
            result, opcode = _split_type(match["rest"])
            current.append(Instruction(match["name"], opcode, match["rest"], result))
    return Program(computations, entry, _frames(text))


def _split_type(rest: str) -> tuple[str, str]:
    """Return type and opcode; a tuple type holds parentheses of its own (tilings), so its end is found by depth."""
    depth = end = 0
    while depth or rest[end] != " ":
        depth += (rest[end] == "(") - (rest[end] == ")")
        end += 1
    match = _OPCODE.match(rest, end + 1)
    return rest[:end], match[1] if match else ""


def _frames(text: str) -> dict[int, str]:
    tables: dict[str, dict[int, str]] = {}
    table: dict[int, str] | None = None
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif table is not None and (row := re.match(r"(\d+) (.*)", line)):
            table[int(row[1])] = row[2]
        elif line.startswith(("%", "ENTRY")):
            break

    def number(row: str, key: str) -> int:
        match = re.search(rf"\b{key}=(\d+)", row)
        return int(match[1]) if match else 0

    locations = {
        id_: f"{tables['FileNames'][number(row, 'file_name_id')].strip(chr(34))}:{number(row, 'line')}"
        for id_, row in tables.get("FileLocations", {}).items()
    }

    def source(frame: int) -> str:
        # The first caller that is no installed library. Parents are counted from 1, where 1 is none.
        here = locations[number(frames[frame], "file_location_id")]
        parent = number(frames[frame], "parent_frame_id") - 1
        return source(parent) if _LIBRARY in here and parent > 0 else here

    frames = tables.get("StackFrames", {})
    return {frame: source(frame) for frame in frames}


def shape_bytes(result: str) -> int:
    """Return bytes of a type as written, tuples included; tiling padding is not counted."""
    return sum(
        _BYTES[kind] * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _SHAPE.findall(result)
        if kind in _BYTES
    )


@dataclass(frozen=True)
class Hardware:
    """What is needed to cost the operations that the compiler does not."""

    clock_hz: float
    hbm_bytes_per_second: float
    link_bytes_per_second: float
    """One link, one direction: what a ring moves through each device."""
    collective_latency_seconds: float
    kernel_cycles: Mapping[str, int] = field(default_factory=dict)
    """Custom kernel, as kernel_name names it -> cycles of its whole grid, from the compiler's schedule."""


@dataclass(frozen=True)
class Cost:
    """One scheduled operation, times the trips of the loops around it."""

    instruction: Instruction
    seconds: float
    trips: int
    basis: str
    """Where the time comes from: "compiler", "collective", "kernel schedule" or "bytes"."""
    source: str
    """file:line that asked for it."""


def operation_costs(program: Program, hardware: Hardware) -> list[Cost]:
    """Return every scheduled operation that takes time, in program order."""
    return list(_walk(program, program.entry, 1, hardware))


def _walk(program: Program, computation: str, trips: int, hardware: Hardware) -> Iterator[Cost]:
    instructions = program.computations[computation]
    by_name = {instruction.name: instruction for instruction in instructions}
    # The text is a schedule: instructions run in its order, one after the other. A transfer is two of them, its start
    # and its done, and moves its bytes while what lies between them runs. `elapsed` is the time of one trip so far.
    elapsed, started = 0.0, {}
    for instruction in instructions:
        if instruction.opcode == "while":
            body, condition = instruction.attribute("body"), instruction.attribute("condition")
            assert body and condition
            inner = list(_walk(program, body, trips * (trip_count(program, condition) or 1), hardware))
        elif instruction.opcode == "call":
            inner = list(_walk(program, instruction.attribute("to_apply") or "", trips, hardware))
        elif instruction.opcode == "conditional":
            # Either branch may run; the dearer one is counted.
            branches = re.findall(r"(?:true|false)_computation=%([\w.-]+)", instruction.text) + [
                name
                for group in re.findall(r"branch_computations=\{([^}]*)\}", instruction.text)
                for name in re.findall(r"%([\w.-]+)", group)
            ]
            walked = [list(_walk(program, branch, trips, hardware)) for branch in branches]
            inner = max(walked, key=lambda costs: sum(cost.seconds for cost in costs), default=[])
        elif instruction.opcode.endswith("-start"):
            started[instruction.name] = elapsed
            continue
        elif instruction.opcode.endswith("-done"):
            # What ran since the start hid that much of the transfer.
            start = by_name[instruction.operands[0]]
            seconds, basis = _asynchronous_seconds(start, hardware)
            hidden = elapsed - started.get(start.name, elapsed)
            seconds = max(0.0, seconds - hidden)
            inner = [Cost(start, seconds * trips, trips, basis, program.source(start))] if seconds else []
        elif instruction.opcode in _FREE:
            continue
        else:
            seconds, basis = _seconds(instruction, by_name, hardware)
            inner = [Cost(instruction, seconds * trips, trips, basis, program.source(instruction))] if seconds else []
        elapsed += sum(cost.seconds for cost in inner) / trips  # costs hold all trips; a transfer hides within one
        yield from inner


def unbounded_loops(program: Program) -> tuple[str, ...]:
    """Return the loops whose trips depend on data, costed as one trip: JAX's names of them, or the compiler's."""
    return tuple(
        instruction.op_name or instruction.name
        for instructions in program.computations.values()
        for instruction in instructions
        if instruction.opcode == "while" and trip_count(program, instruction.attribute("condition") or "") is None
    )


def trip_count(program: Program, condition: str) -> int | None:
    """Return the bound that a loop's condition compares its counter with; loops of lax.scan and fori_loop start at 0.

    None where it compares with no constant.
    """
    # The text has no trip count. The condition is `counter < constant`; of several constants the largest is the bound.
    bounds = [
        int(match[1])
        for instruction in program.computations[condition]
        if instruction.opcode == "constant" and (match := re.search(r"constant\((\d+)\)", instruction.text))
    ]
    return max(bounds, default=None)


def _seconds(instruction: Instruction, by_name: Mapping[str, Instruction], hardware: Hardware) -> tuple[float, str]:
    if (cycles := instruction.estimated_cycles) is not None:
        return cycles / hardware.clock_hz, "compiler"
    if instruction.opcode in COLLECTIVES:
        return collective_seconds(instruction, hardware), "collective"
    if instruction.opcode == "custom-call":
        target = re.search(r'custom_call_target="(\w+)"', instruction.text)
        if target and target[1] in _FREE_CALLS:
            return 0.0, "bytes"
        kernel = kernel_name(instruction)
        if kernel is not None:
            if kernel not in hardware.kernel_cycles:  # counted as nothing, it would make the plan too good unseen
                raise ValueError(f"no schedule of the kernel {kernel} was found")
            return hardware.kernel_cycles[kernel] / hardware.clock_hz, "kernel schedule"
    operands = sum(shape_bytes(by_name[name].result) for name in instruction.operands if name in by_name)
    moved = shape_bytes(instruction.result) + operands
    if instruction.opcode == "sort":
        # Bitonic: log2(n) (log2(n) + 1) / 2 passes, each reads and writes everything.
        longest = max(int(size) for _, sizes in _SHAPE.findall(instruction.result) for size in sizes.split(",") if size)
        stages = math.ceil(math.log2(max(longest, 2)))
        moved *= stages * (stages + 1) // 2
    return moved / hardware.hbm_bytes_per_second, "bytes"


def _asynchronous_seconds(start: Instruction, hardware: Hardware) -> tuple[float, str]:
    if start.opcode.removesuffix("-start") in COLLECTIVES:
        return collective_seconds(start, hardware), "collective"
    # The result of a start names source and destination; the transfer reads one and writes the other.
    return shape_bytes(start.result) / hardware.hbm_bytes_per_second, "bytes"


def kernel_name(instruction: Instruction) -> str | None:
    """Return name and first result's shape, "electra_attention_forward [32,768,512]"; None of other instructions."""
    if 'custom_call_target="tpu_custom_call"' not in instruction.text:
        return None
    name = re.search(r"(\w+)\)*/pallas_call", instruction.op_name)
    shape = _SHAPE.search(instruction.result)
    return f"{name[1] if name else instruction.name} [{shape[2] if shape else ''}]"


def group_size(instruction: Instruction) -> int:
    """Return how many devices take part in a collective together."""
    # The compiler writes groups in three ways: all ids, {{0,1},{2,3}}; how many groups of how many, [2,4]<=[8]; the
    # axes of a mesh, mesh['data'=4,'tensor'=2] {'tensor'}.
    text = instruction.text
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", match[2]))
    if match := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        return 2
    raise ValueError(f"no device groups in the collective {instruction.name}")


def collective_seconds(instruction: Instruction, hardware: Hardware) -> float:
    """Return the time of a ring: bytes that pass each device, over its links, plus a latency for each of its steps."""
    kind = instruction.opcode.removesuffix("-start")
    size = shape_bytes(instruction.result)
    devices = group_size(instruction)
    if devices == 1:  # an axis of the mesh that is 1 long still leaves its collectives in the text
        return 0.0
    # Around a ring of n devices each n-th of an array makes n - 1 steps to be added up (reduce-scatter), and as many to
    # be handed out (all-gather); an all-reduce is both. The size is the result's: all of it, but of a reduce-scatter,
    # which leaves a device an n-th of what went around.
    moved = {
        "all-reduce": 2 * size * (devices - 1) / devices,
        "all-gather": size * (devices - 1) / devices,
        "reduce-scatter": size * (devices - 1),
        "all-to-all": size * (devices - 1) / devices,
        "collective-permute": size,
    }
    return moved[kind] / hardware.link_bytes_per_second + devices * hardware.collective_latency_seconds
