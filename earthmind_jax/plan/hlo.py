"""An optimised XLA program, read from its text: operations and traffic of one device, with loops counted in full.

``compiled.cost_analysis()`` counts the body of a loop once, however often it runs, and says nothing of collectives. The
text holds what is missing: the trip count of each loop, and shape and group of each collective.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

BITS = {"pred": 8, "token": 0, "opaque": 0}  # element types whose name does not say their size

# One operation per element of the result, as XLA's own cost analysis counts.
ELEMENTWISE = {
    "abs", "add", "and", "ceil", "clamp", "compare", "convert", "divide", "floor", "is-finite", "maximum", "minimum",
    "multiply", "negate", "not", "or", "remainder", "round-nearest-afz", "round-nearest-even", "select", "shift-left",
    "shift-right-arithmetic", "shift-right-logical", "sign", "subtract", "xor",
}  # fmt: skip

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .+ \{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation)=(%[\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Instruction:
    """One line of the text; ``shapes`` are (element type, dimensions) of the result, a tuple's one by one."""

    name: str
    opcode: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def elements(self) -> int:
        return sum(math.prod(dims) for _, dims in self.shapes)

    @property
    def bytes(self) -> int:
        return sum(math.prod(dims) * _bits(kind) // 8 for kind, dims in self.shapes)

    @property
    def called(self) -> tuple[str, ...]:
        """Computations that it runs."""
        text = " ".join(one or several for one, several in _CALLED.findall(self.attributes))
        return tuple(_NAME.findall(text))

    def numbers(self, attribute: str) -> tuple[int, ...]:
        """``attribute={1,2}`` as numbers; none where it is missing."""
        found = re.search(attribute + r"=\{([\d,]*)\}", self.attributes)
        return tuple(int(n) for n in found.group(1).split(",") if n) if found else ()


@dataclass
class Traffic:
    """Of one collective kind on one device: calls, ``payload`` (bytes of the whole array that it makes or sums) and
    ``sent`` (bytes that leave the device, see :func:`sent_bytes`), of which ``across`` between hosts."""

    calls: float = 0
    payload: float = 0
    sent: float = 0
    across: float = 0


@dataclass
class Work:
    """What one device does in one run of the program.

    ``flops`` counts as XLA does (transcendental functions apart), ``products`` the share of matrix products and
    convolutions; ``senders`` are the bytes sent by the place in the model that asks for them, and ``unknown_loops``
    loops without a known trip count, counted once.
    """

    flops: float = 0
    products: float = 0
    collectives: dict[str, Traffic] = field(default_factory=lambda: {kind: Traffic() for kind in COLLECTIVES})
    senders: dict[str, float] = field(default_factory=dict)
    unknown_loops: int = 0


class Program:
    """The computations of a compiled program's text (``compiled.as_text()``)."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if not line.startswith(" "):
                header = _HEADER.match(line)
                if header:
                    current = self.computations.setdefault(header.group(2), {})
                    self.entry = header.group(2) if header.group(1) else self.entry
            elif (found := _LINE.match(line)) is not None:
                name, shape, opcode, rest = found.groups()
                operands, attributes = _split_call(rest)
                shapes = tuple((kind, _dims(dims)) for kind, dims in _SHAPE.findall(shape))
                current[name] = Instruction(name, opcode, shapes, tuple(_NAME.findall(operands)), attributes)
        if not self.entry:
            raise ValueError("The text holds no entry computation of an XLA program.")

    def work(self, *, loops: bool = True, host: int = 0) -> Work:
        """Operations and traffic of one run.

        Args:
          loops: multiply the body of each loop by its trip count; false counts each once, as ``cost_analysis`` does.
          host: consecutive devices of one host, to tell what crosses between hosts; 0: one host holds all.
        """
        total = Work()
        for instruction, computation, times in self._runs(self.entry, 1.0, loops):
            products = self._products(instruction, computation)
            total.products += times * products
            total.flops += times * (products or self._operations(instruction, computation))
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                sent = _add_traffic(total.collectives[kind], kind, instruction, times, host)
                place = f"{kind} {_place(instruction.attributes)}"
                total.senders[place] = total.senders.get(place, 0.0) + sent
            if instruction.opcode == "while" and not _TRIPS.search(instruction.attributes):
                total.unknown_loops += 1
        return total

    def _runs(
        self, name: str, times: float, loops: bool
    ) -> Iterator[tuple[Instruction, dict[str, Instruction], float]]:
        computation = self.computations[name]
        for instruction in computation.values():
            yield instruction, computation, times
            if instruction.opcode in ("fusion", "call", "while", "conditional", "async-start"):
                found = _TRIPS.search(instruction.attributes) if instruction.opcode == "while" else None
                each = times * int(found.group(1)) if found and loops else times
                for called in instruction.called:
                    yield from self._runs(called, each, loops)

    def _products(self, instruction: Instruction, computation: dict[str, Instruction]) -> float:
        """Multiplications and additions of a matrix product or convolution."""
        if instruction.opcode == "dot":
            left = computation[instruction.operands[0]].shapes[0][1]
            return 2.0 * instruction.elements * math.prod(left[i] for i in instruction.numbers("lhs_contracting_dims"))
        if instruction.opcode == "convolution":
            kernel = computation[instruction.operands[1]].shapes[0][1]
            labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.attributes)
            outputs = kernel[labels.group(1).index("o")] if labels else 1
            return 2.0 * instruction.elements * math.prod(kernel) / max(outputs, 1)
        return 0.0

    def _operations(self, instruction: Instruction, computation: dict[str, Instruction]) -> float:
        """Operations of everything else."""
        if instruction.opcode in ELEMENTWISE:
            return instruction.elements
        if instruction.opcode == "reduce":
            sources = [computation[name].elements for name in instruction.operands[: len(instruction.shapes)]]
            return (sum(sources) - instruction.elements) * self._small(instruction.called)
        if instruction.opcode == "map":
            return instruction.elements * self._small(instruction.called)
        return 0.0

    @functools.cache  # noqa: B019 - a Program lives as long as its plan
    def _small(self, names: tuple[str, ...]) -> float:
        """Operations of the scalar computations that a reduction applies to each element."""
        return sum(self._operations(i, self.computations[n]) for n in names for i in self.computations[n].values())


def sent_bytes(kind: str, payload: float, size: int) -> float:
    """Bytes that each of ``size`` devices sends in a ring, for an array of ``payload`` bytes (as a whole).

    All-gather, reduce-scatter and all-to-all pass on (size - 1) / size of it, an all-reduce is one of the first two
    after the other, a permute sends the device's own array once. Source: Thakur et al. 2005, "Optimization of
    Collective Communication Operations in MPICH", section 4 (the ring).
    """
    share = (size - 1) / size
    return payload * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)


def share_across(kind: str, size: int, hosts: int) -> float:
    """Of what a device sends in a group of ``size`` spread evenly over ``hosts``, the share that leaves its host.

    Rings run through all devices of a host before they leave it, each by another device's network link, so a device's
    own link carries one part in as many as there are members on a host. An all-to-all has no such choice.
    """
    if hosts < 2:
        return 0.0
    return (size - size / hosts) / (size - 1) if kind == "all-to-all" else hosts / size


def first_group(attributes: str) -> list[int]:
    """Device numbers of a collective's first group, from any of XLA's three ways to write groups; [] means all."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    if pairs:
        ids = [int(n) for n in re.findall(r"\d+", pairs.group(1))]
        return ids[-2:]  # one pair stands for all
    mesh = re.search(r"replica_groups=mesh\[(.*?)\](, device_ids=\((\[.*?)\))? \{(.*?)\}", attributes)
    if mesh:
        return _mesh_group(mesh.group(1), mesh.group(3), mesh.group(4))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if iota:
        return _iota(iota.group(2)).reshape(_dims(iota.group(1)))[0].tolist()
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    return [int(n) for n in listed.group(1).split(",")] if listed else []


def _mesh_group(axes: str, order: str | None, chosen: str) -> list[int]:
    """``'a'=4,'b'=2`` with groups along ``'b'``, or along part of an axis: ``'a':(2)2`` takes 2 after the first 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    shape, taken = [], []
    parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)
    for name, size in sizes.items():
        cuts = sorted((int(before), int(count)) for axis, before, count in parts if axis == name and before)
        whole = any(axis == name and not before for axis, before, _ in parts)
        done = 1
        for before, count in cuts:
            shape += [before // done, count]
            taken.append(len(shape) - 1)
            done = before * count
        shape.append(size // done)
        taken += [len(shape) - 1] if whole else []
    ids = (_iota(order).reshape(-1) if order else np.arange(math.prod(shape))).reshape(shape)
    return ids[tuple(slice(None) if axis in taken else 0 for axis in range(len(shape)))].reshape(-1).tolist()


def _iota(text: str) -> np.ndarray:
    """``[4,2]T(1,0)``: the numbers from 0 in that shape, axes permuted."""
    shape, _, order = text.partition("T")
    ids = np.arange(math.prod(_dims(shape.strip("[]")))).reshape(_dims(shape.strip("[]")))
    return ids.transpose(_dims(order.strip("()"))) if order else ids


def _add_traffic(traffic: Traffic, kind: str, instruction: Instruction, times: float, host: int) -> float:
    """Bytes sent, after they were added to ``traffic``."""
    group = first_group(instruction.attributes)
    size = max(len(group), 1)
    payload = instruction.bytes
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        payload //= 2  # the pair of operand and result
    payload *= size if kind == "reduce-scatter" else 1
    if "promoted" in instruction.attributes.partition("metadata=")[0]:
        payload //= 2  # a CPU adds bfloat16 up in float32; accelerators send it as it is
    sent = sent_bytes(kind, payload, size)
    traffic.calls += times
    traffic.payload += times * payload
    traffic.sent += times * sent
    hosts = len({device // host for device in group}) if host else 1
    traffic.across += times * sent * share_across(kind, size, hosts)
    return times * sent


def _place(attributes: str) -> str:
    """Where in the model an instruction comes from: the named parts of its ``op_name``."""
    found = re.search(r'op_name="([^"]*)"', attributes)
    noise = r"^(jit\(.*\)|jvp\(\)|while|body|closed_call|checkpoint|rematted_computation)$"
    parts = found.group(1).split("/") if found else []
    return "/".join(part for part in parts if not re.match(noise, part)) or "unnamed"


def _split_call(rest: str) -> tuple[str, str]:
    """``operands), attributes`` at the parenthesis that closes the call."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return rest[:place], rest[place + 1 :]
    return rest, ""


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _bits(kind: str) -> int:
    if kind in BITS:
        return BITS[kind]
    found = re.match(r"[a-z]+(\d+)", kind)
    return int(found.group(1)) if found else 8
