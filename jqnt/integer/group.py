"""Groups: the nodes between two encoded tensors that one integer kernel computes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jqnt.encodings import Encoding
from jqnt.errors import UnsupportedError
from jqnt.graph.ir import Node
from jqnt.graph.layout import Laid, to_last
from jqnt.graph.match import sole_reader
from jqnt.integer.arithmetic import Arithmetic
from jqnt.integer.narrow import Accumulator
from jqnt.integer.operands import Operands
from jqnt.integer.rule import Out

__all__ = ["Group", "Kernel", "Site", "chain", "clamp", "out_grid", "per_tensor"]


@dataclass(frozen=True, eq=False)
class Group:
    """A node that computes and the clamps fused behind it; only the last output leaves."""

    nodes: tuple[Node, ...]

    @property
    def head(self) -> Node:
        """The node that computes."""
        return self.nodes[0]

    @property
    def output(self) -> str:
        """The tensor that leaves."""
        return self.nodes[-1].outputs[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensor that leaves, as a node has it."""
        return (self.output,)


@dataclass(frozen=True, eq=False)
class Site:
    """Where a kernel works: the static tensors, the grid of each integer tensor, the rules."""

    operands: Operands
    grids: Mapping[str, Encoding]
    arithmetic: Arithmetic
    accumulator: Accumulator | None = None

    def where(self, group: Group) -> str:
        """The words that name a group in an error."""
        nodes = ", ".join(f"{node.op} {node.name!r}" for node in group.nodes)
        return f"{nodes} ({self.arithmetic.name})"


class Kernel(NamedTuple):
    """How one kind of head is computed.

    `ready(node, site)` says whether its operands are integers; `prepare(group, site)` makes the
    table, `run(group, site, table, values)` gives the codes in their container.
    """

    ready: Callable[[Node, Site], bool]
    prepare: Callable[[Group, Site], dict[str, Any]]
    run: Callable[[Group, Site, dict[str, Any], Sequence[Laid | None]], Laid]


def chain(head: Node, site: Site, encoded: Mapping[str, Encoding]) -> Group | None:
    """`head` and the fused nodes behind it up to an encoded tensor; None if there is none."""
    nodes = [head]
    graph, followers = site.operands.graph, site.arithmetic.fused.get(head.op, ())
    while nodes[-1].outputs[0] not in encoded:
        reader = sole_reader(graph, nodes[-1].outputs[0])
        if reader is None or (reader.op not in followers and reader.op != "Identity"):
            return None
        beside = [n for n in reader.inputs if n and n != nodes[-1].outputs[0]]
        if not site.operands.static.issuperset(beside):
            return None
        nodes.append(reader)
    return Group(tuple(nodes))


def per_tensor(encoding: Encoding, where: str) -> tuple[np.float32, int]:
    """(scale, zero point) of an activation; UnsupportedError where there are several."""
    assert encoding.scale is not None and encoding.zero_point is not None
    if encoding.scale.size != 1:
        raise UnsupportedError(
            f"{where}: integer kernels take activations with one scale, this one has "
            f"{encoding.scale.size}"
        )
    return np.float32(encoding.scale.reshape(())), int(encoding.zero_point.reshape(()))


def clamp(group: Group, site: Site) -> dict[str, np.ndarray]:
    """The output grid as a table: its zero point, and the codes that the fused clamps leave.

    Rounding is monotone, so clamping the codes is quantizing the clamped reals.
    """
    y = site.grids[group.output]
    _, zero_point = per_tensor(y, site.where(group))
    low, high = (np.asarray(v, np.int64) for v in y.format.limits)  # pyright: ignore
    for node in group.nodes:
        for lower, bound in _bounds(node, site):
            code = y.quantize(bound)
            pick = np.maximum if lower else np.minimum
            low, high = pick(low, code), pick(high, code)
    return {
        "zero_point": np.asarray(zero_point, np.int32),
        "low": low.astype(np.int32),
        "high": high.astype(np.int32),
    }


def _bounds(node: Node, site: Site) -> list[tuple[bool, np.ndarray]]:
    """(is a lower bound, its value) of a clamp, in the order they apply; [] for other nodes."""
    if node.op == "Relu":
        return [(True, np.zeros((), np.float32))]
    if node.op in ("Min", "Max"):
        static = [n for n in node.inputs if n in site.operands.static]
        return [(node.op == "Max", site.operands.value(n)) for n in static]
    if node.op != "Clip":
        return []
    given = [node.attrs.get("min"), node.attrs.get("max")]
    for i, name in enumerate(node.inputs[1:3]):
        given[i] = site.operands.value(name) if name else None
    return [(i == 0, np.asarray(v, np.float32)) for i, v in enumerate(given) if v is not None]


def out_grid(table: Mapping[str, Any], rank: int, last: bool) -> Out:
    """The clamp of a table in the layout of a result of `rank`."""

    def laid(bound: Any) -> Any:
        if np.ndim(bound) == 0:
            return bound
        value = Laid(bound.reshape((1,) * (rank - bound.ndim) + bound.shape))
        return (to_last(value) if last else value).array

    return Out(table["zero_point"], laid(table["low"]), laid(table["high"]))
