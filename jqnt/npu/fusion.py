"""Nodes -> fusion groups: a compute operator with the bias, activation and Add that follow it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from jqnt.graph.ir import Graph, Node
from jqnt.npu.vocabulary import AFFINE, CHEAP, UNARY
from jqnt.npu.work import PRODUCT_KINDS, Tensors, Work, work_of

__all__ = ["Group", "Tail", "constants_of", "group_nodes"]


@dataclass(frozen=True)
class Tail:
    """Something fused behind a group's main operator: its operator name and kind of work.

    A constant scale or shift is a Bias whatever its operator. A function of several nodes is
    named after its transcendental operator, or Gelu, Swish, HardSwish.
    """

    op: str
    work: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Group:
    """A main node (or a composite of nodes), what is fused behind it, and its data tensors."""

    nodes: tuple[Node, ...]
    op: str
    work: Work
    tails: tuple[Tail, ...]
    inputs: tuple[str, ...]
    output: str

    @property
    def name(self) -> str:
        """The name of the main node."""
        return self.nodes[0].name


@dataclass(frozen=True)
class _Unit:
    """One node, or several that act as one; `inputs` are its data inputs."""

    nodes: tuple[Node, ...]
    op: str
    work: Work
    inputs: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(out for out in self.nodes[-1].outputs if out)


def constants_of(graph: Graph) -> frozenset[str]:
    """The tensors that do not depend on the graph's inputs."""
    known = {*graph.params, *graph.constants}
    for node in graph.nodes:
        if all(not name or name in known for name in node.inputs) and node.op != "RandomNormal":
            known.update(out for out in node.outputs if out)
    return frozenset(known)


def group_nodes(graph: Graph, tensors: Tensors) -> tuple[tuple[Group, ...], Mapping[str, str]]:
    """(groups in topological order, alias -> tensor for everything that is only a view).

    A product (convolution, dense, matmul) takes what follows as long as each result has one
    reader: constant affine operators, then an activation, or an Add of two tensors and an
    activation. Every other operator takes the activation behind it. Functions of one variable
    that are written as several nodes (GELU, SiLU, hard-swish), and layer normalizations written
    out, act as one node.
    """
    units, alias = _units(graph, tensors)
    readers: dict[str, list[int]] = {}
    for index, unit in enumerate(units):
        for name in unit.inputs:
            readers.setdefault(name, []).append(index)
    kept = {_root(alias, name) for name in graph.outputs}
    taken: set[int] = set()
    groups = []
    for index, unit in enumerate(units):
        if index in taken:
            continue
        tails, inputs, output = [], list(unit.inputs), unit.outputs[0]
        last, stage = index, 0
        while len(unit.outputs) == 1 and output not in kept:
            follower = set(readers.get(output, ()))
            if len(follower) != 1 or (follower := follower.pop()) in taken:
                break
            tail = units[follower]
            reached = _stage(unit, tail, tensors)
            if reached is None or reached < stage or len(tail.outputs) != 1:
                break
            others = [name for name in tail.inputs if name != output]
            if len(others) > 1 or any(not _made_before(units, last, name) for name in others):
                break
            stage = reached + (reached == _ACTIVATION)
            op = "Bias" if reached == _BIAS else tail.op
            tails.append(Tail(op, next(iter(tail.work.passes), "elementwise"), tail.nodes))
            taken.add(follower)
            inputs += others
            output, last = tail.outputs[0], index
        groups.append(Group(unit.nodes, unit.op, unit.work, tuple(tails), tuple(inputs), output))
    return tuple(groups), alias


_BIAS, _RESIDUAL, _ACTIVATION = 0, 1, 2


def _stage(unit: _Unit, tail: _Unit, tensors: Tensors) -> int | None:
    """How far (bias, residual Add, activation) a follower takes the group; None: not at all."""
    node = tail.nodes[0]
    if len(tail.inputs) == 1 and (len(tail.nodes) > 1 or _unary(node, tensors)):
        return _ACTIVATION
    if unit.work.kind not in PRODUCT_KINDS:
        return None
    if len(tail.inputs) == 1 and node.op in AFFINE:
        return _BIAS
    if len(tail.inputs) == 2 and node.op == "Add":
        same = {tensors.shapes[name] for name in (*tail.inputs, tail.outputs[0])}
        return _RESIDUAL if len(same) == 1 else None
    return None


def _made_before(units: list[_Unit], index: int, name: str) -> bool:
    """Whether a tensor exists before unit `index` runs (so that its group can read it there)."""
    return all(name not in unit.outputs for unit in units[index:])


def _units(graph: Graph, tensors: Tensors) -> tuple[list[_Unit], dict[str, str]]:
    alias: dict[str, str] = {}
    composite = _composites(graph, tensors)
    units = []
    for node in graph.nodes:
        if all(not out or out in tensors.constant for out in node.outputs):
            continue
        if id(node) in composite:
            nodes, last = composite[id(node)], composite[id(node)][-1]
            if node is last:
                units.append(_composite_unit(nodes, tensors, alias))
            continue
        work = work_of(node, tensors)
        inputs = tuple(dict.fromkeys(_root(alias, name) for name in tensors.data(node)))
        if work.kind == "view" and inputs:
            alias[node.outputs[0]] = inputs[0]
            continue
        units.append(_Unit((node,), node.op, work, inputs))
    return units, alias


def _composite_unit(nodes: tuple[Node, ...], tensors: Tensors, alias: Mapping[str, str]) -> _Unit:
    inner = {out for node in nodes for out in node.outputs}
    inputs = dict.fromkeys(
        _root(alias, name) for node in nodes for name in tensors.data(node) if name not in inner
    )
    ops = [node.op for node in nodes]
    last = work_of(nodes[-1], tensors)
    if "ReduceMean" in ops:
        op, kind = "LayerNormalization", "normalize"
    else:
        costly = [op for op in ops if op not in CHEAP and op not in AFFINE]
        names = {"Erf": "Gelu", "Sigmoid": "Swish", "HardSigmoid": "HardSwish"}
        several = any(op in ("Mul", "Div") for op in ops)
        op = names.get(costly[0], costly[0]) if costly and several else (costly or ops)[0]
        kind = "lookup" if len(nodes) > 1 or costly else "elementwise"
    work = Work(
        "vector",
        last.count,
        last.height,
        last.width,
        0,
        last.out_channels * last.groups,
        passes={kind: 1.0},
    )
    return _Unit(nodes, op, work, tuple(inputs))


def _composites(graph: Graph, tensors: Tensors) -> dict[int, tuple[Node, ...]]:
    """id of a node -> the nodes (in order) of the composite it belongs to."""
    found: dict[int, tuple[Node, ...]] = {}
    for nodes in (*_normalizations(graph, tensors), *_functions(graph, tensors)):
        if len(nodes) > 1 and not any(id(node) in found for node in nodes):
            found.update({id(node): nodes for node in nodes})
    return found


def _functions(graph: Graph, tensors: Tensors) -> Iterable[tuple[Node, ...]]:
    """Maximal sets of nodes that together are a function of one tensor and scalars.

    Grown from the roots; where a member that is not the last is read outside, it becomes a root
    and the growing starts again.
    """
    cut: set[str] = set()
    while True:
        root: dict[str, str] = {}
        members: dict[str, list[Node]] = {}
        for node in graph.nodes:
            data = tensors.data(node)
            roots = {root.get(name, name) for name in data}
            if len(roots) == 1 and _unary(node, tensors):
                (start,) = roots
                members.setdefault(start, []).append(node)
                if node.outputs[0] not in cut:
                    root[node.outputs[0]] = start
        leaks = set()
        for nodes in members.values():
            own = {id(node) for node in nodes}
            for node in nodes[:-1]:
                out = node.outputs[0]
                outside = [r for r in graph.readers.get(out, ()) if id(r) not in own]
                if (outside or out in graph.outputs or not graph.readers.get(out)) and (
                    out not in cut
                ):
                    leaks.add(out)
        if not leaks:
            return [tuple(part) for nodes in members.values() for part in _connected(nodes, cut)]
        cut |= leaks


def _connected(nodes: list[Node], cut: set[str]) -> list[list[Node]]:
    """Splits the members behind one root where a tensor was cut."""
    parts: list[list[Node]] = [[]]
    for node in nodes:
        parts[-1].append(node)
        if node.outputs[0] in cut:
            parts.append([])
    return [part for part in parts if part]


def _unary(node: Node, tensors: Tensors) -> bool:
    """Whether, scalars and slopes aside, the node is a function of its data inputs by element."""
    if node.op not in UNARY or len(node.outputs) != 1:
        return False
    fixed = [name for name in node.inputs if name and name in tensors.constant]
    scalars = all(prod(tensors.shapes[name]) == 1 for name in fixed) or node.op == "PRelu"
    shapes = {tensors.shapes[name] for name in (*tensors.data(node), node.outputs[0])}
    return scalars and len(shapes) == 1


def _normalizations(graph: Graph, tensors: Tensors) -> Iterable[tuple[Node, ...]]:
    """Layer normalizations written out: ReduceMean, Sub, Pow or Mul, ReduceMean, Add, Sqrt, Div,
    and the scale and shift behind them."""
    for mean in graph.nodes:
        if mean.op != "ReduceMean":
            continue
        chain, follow = [mean], ("Sub", "Pow Mul", "ReduceMean", "Add", "Sqrt", "Div Reciprocal")
        for ops in follow:
            readers = [
                r for r in graph.readers.get(chain[-1].outputs[0], ()) if r.op in ops.split()
            ]
            if not readers:
                break
            chain.append(readers[0])
        if len(chain) <= len(follow):
            continue
        while True:
            readers = graph.readers.get(chain[-1].outputs[0], ())
            if len(readers) != 1 or readers[0].op not in ("Mul", "Add"):
                break
            if len(tensors.data(readers[0])) > 1 and chain[-1].op != "Reciprocal":
                break
            chain.append(readers[0])
        order = {id(node): i for i, node in enumerate(graph.nodes)}
        yield tuple(sorted(chain, key=lambda node: order[id(node)]))


def _root(alias: Mapping[str, str], name: str) -> str:
    while name in alias:
        name = alias[name]
    return name
