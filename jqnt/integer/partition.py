"""Cutting a graph into integer groups, moves of codes, and float nodes."""

from collections.abc import Iterable
from dataclasses import dataclass

from jqnt.encodings import Encoding
from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.graph.ir import Node
from jqnt.graph.roles import weight_of
from jqnt.integer.arithmetic import Arithmetic
from jqnt.integer.group import Group, Site, chain
from jqnt.integer.kernels import KERNELS, MOVES, PRODUCTS
from jqnt.integer.narrow import Accumulator
from jqnt.integer.operands import Operands

__all__ = ["Move", "Step", "partition"]


@dataclass(frozen=True, eq=False)
class Move:
    """A node whose outputs hold codes of its first input."""

    node: Node

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors it makes."""
        return self.node.outputs


Step = Group | Move | Node
"""Nodes computed as one on integers, a move of codes, or a node in float."""


def partition(
    operands: Operands,
    arithmetic: Arithmetic,
    unmatched_float: bool = False,
    accumulator: Accumulator | None = None,
) -> tuple[Site, tuple[Step, ...]]:
    """The steps in order, and the site with the grid of every tensor that holds codes.

    A moved tensor without an encoding of its own keeps its source's. Raises UnsupportedError
    for nodes between integer tensors that match no kernel, unless `unmatched_float`.
    """
    graph, encoded = operands.graph, operands.encodings.tensors
    integers = {n: e for n, e in encoded.items() if isinstance(e.format, Integer)}
    grids: dict[str, Encoding] = {n: e for n, e in integers.items() if n in graph.inputs}
    site = Site(operands, grids, arithmetic, accumulator)
    steps: list[Step] = []
    taken: set[int] = set()
    for node in graph.nodes:
        if id(node) in taken or operands.static.issuperset(o for o in node.outputs if o):
            continue
        step = _step(node, site, integers)
        steps.append(step)
        if isinstance(step, Group):
            taken.update(map(id, step.nodes))
            if step.output in integers:
                grids[step.output] = integers[step.output]
        elif isinstance(step, Move):
            source = grids[node.inputs[0]]
            grids.update((o, integers.get(o, source)) for o in node.outputs if o)
        else:
            grids.update((o, integers[o]) for o in node.outputs if o in integers)
    if not unmatched_float and not arithmetic.only_products:
        _refuse_unmatched(site, [s for s in steps if isinstance(s, Node)])
    return site, _ordered(site, steps)


def _step(node: Node, site: Site, integers: dict[str, Encoding]) -> Step:
    encoded = site.operands.encodings.tensors
    outputs = [o for o in node.outputs if o]
    picks = node.op != "Resize" or node.attrs.get("mode", "nearest") == "nearest"
    if node.op in MOVES and picks and node.inputs[0] in site.grids:
        rest = [n for n in node.inputs[1:] if n]
        source = site.grids[node.inputs[0]]
        own = any(o in integers and not integers[o].same_grid(source) for o in outputs)
        own = own and site.arithmetic.only_products
        if (
            site.operands.static.issuperset(rest)
            and all(o in integers or o not in encoded for o in outputs)
            and not own
        ):
            return Move(node)
    kernel = KERNELS.get(node.op)
    if kernel is None or node.domain or not kernel.ready(node, site):
        return node
    if node.op == "Concat" and outputs[0] not in encoded:
        return node
    product = node.op in PRODUCTS
    if site.arithmetic.only_products and not product and not _has_rule(node, site):
        return node
    group = chain(node, site, encoded)
    if group is None or group.output not in integers:
        return Group((node,)) if product and site.arithmetic.real is not None else node
    return group


def _has_rule(node: Node, site: Site) -> bool:
    """Whether a backend that runs all else in float has a kernel of its own for this operator."""
    arithmetic = site.arithmetic
    rules = {
        "Add": arithmetic.add,
        "Sub": arithmetic.sub,
        "Mul": arithmetic.mul,
        "GlobalAveragePool": arithmetic.mean,
        "AveragePool": arithmetic.window_mean,
    }
    return rules.get(node.op) is not None


def _refuse_unmatched(site: Site, nodes: list[Node]) -> None:
    """Float nodes joined by tensors without encoding, all of whose borders are integers."""
    encoded = site.operands.encodings.tensors
    for segment in _segments(nodes, encoded):
        own = {o for node in segment for o in node.outputs if o}
        read = {n for node in segment for n in node.inputs if n} - own - site.operands.static
        left = {
            o
            for o in own
            if o in site.operands.graph.outputs
            or any(r not in segment for r in site.operands.graph.readers.get(o, ()))
            or o in encoded
        }
        weights = [weight_of(node, site.operands.static) for node in segment]
        floats = any(w is not None and site.operands.coded(w.tensor) is None for w in weights)
        if not read or floats or not (read | left) <= set(site.grids):
            continue
        names = ", ".join(f"{node.op} {node.name!r}" for node in segment)
        inside = sorted(own - left)
        between = f"; give {', '.join(map(repr, inside))} encodings" if inside else ""
        raise UnsupportedError(
            f"arithmetic {site.arithmetic.name!r} has no integer kernel for {names} between "
            f"{', '.join(map(repr, sorted(read)))} and {', '.join(map(repr, sorted(left)))}"
            f"{between}, or leave them in float"
        )


def _segments(nodes: list[Node], encoded: Iterable[str]) -> list[list[Node]]:
    """Nodes joined by tensors without encoding."""
    encoded, owner = set(encoded), {}
    segments: list[list[Node]] = []
    for node in nodes:
        joined = {id(owner[n]): owner[n] for n in node.inputs if n in owner}
        merged = [n for segment in joined.values() for n in segment] + [node]
        segments = [s for s in segments if id(s) not in joined] + [merged]
        for member in merged:
            owner.update((o, merged) for o in member.outputs if o and o not in encoded)
    return segments


def _ordered(site: Site, steps: list[Step]) -> tuple[Step, ...]:
    """Groups end later than they begin: by the position of each step's last node."""
    position = {id(node): i for i, node in enumerate(site.operands.graph.nodes)}

    def last(step: Step) -> int:
        node = step.nodes[-1] if isinstance(step, Group) else step
        node = node.node if isinstance(node, Move) else node
        return position[id(node)]

    return tuple(sorted(steps, key=last))
