"""The search space of a plan: which tensors' formats are chosen together, and among which."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from jqnt.errors import ConfigError, nearest
from jqnt.formats import Format, Integer, format_named
from jqnt.graph.ir import Graph, Node
from jqnt.graph.match import fuse, static_tensors
from jqnt.graph.roles import data_inputs, weight_of
from jqnt.plan import Choice, Plan, Spec
from jqnt.targets import Target, load_target

__all__ = ["with_choices"]


def with_choices(
    plan: Plan,
    graph: Graph,
    menu: Sequence[tuple[Format | str, Format | str]],
    *,
    target: str | Target = "onnxruntime",
    exclude: Collection[str] = (),
) -> Plan:
    """`plan` with a choice among the (weight, activation) formats of `menu` for every group.

    An operator runs in one pair of formats. So its weight and the activation that it reads are
    chosen together, and with them whatever shares that activation's quantizer or meets it in an
    operator of several inputs (a residual Add). A choice is named after the first activation of
    its group; activations that nothing reads are not searched. Menu entries that the target does
    not allow for one of a group's operators are left out there; an integer takes the sign and
    the symmetry that the plan has for that tensor.

    `exclude` names tensors or nodes whose groups keep the plan's formats. Raises ConfigError for
    an unknown one, an empty menu, and a group for which nothing in the menu is legal.
    """
    described = load_target(target) if isinstance(target, str) else target
    pairs = [(_format(w), _format(a)) for w, a in menu]
    if not pairs:
        raise ConfigError("the menu has no pair of formats to choose from")
    known = {*graph.tensors, *(node.name for node in graph.nodes)}
    for name in exclude:
        if name not in known:
            raise ConfigError(f"no tensor or node {name!r} to exclude{nearest(name, known)}")
    groups = _groups(plan, graph, described)
    choices: dict[str, Choice] = {}
    for name, (tensors, nodes) in groups.items():
        names = {*tensors, *(node.name for node in nodes)}
        names |= {tied for tied, leader in plan.tied.items() if leader in tensors}
        if names.isdisjoint(exclude):
            choices[name] = _choice(plan, described, name, tensors, nodes, pairs)
    return plan.replace(choices=choices)


def _groups(
    plan: Plan, graph: Graph, target: Target
) -> dict[str, tuple[tuple[str, ...], tuple[Node, ...]]]:
    """First activation -> (activations and weights, the operators that read them)."""
    static = static_tensors(graph)
    parent: dict[str, str] = {}
    readers: list[tuple[Node, list[str]]] = []

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for group in fuse(graph, target.chains):
        inside = {name for node in group.nodes for name in node.outputs}
        read = [n for node in group.nodes for n in data_inputs(node) if n not in inside]
        weight = weight_of(group.head, static)
        if weight is not None:
            read.append(_stored(graph, weight.tensor, plan))
        leaders = (plan.tied.get(name, name) for name in read)
        own = list(dict.fromkeys(name for name in leaders if name in plan.specs))
        if not own or plan.specs[own[0]].role == "weight":
            continue
        readers.append((group.head, own))
        for name in own:
            parent.setdefault(name, name)
        for name in own[1:]:
            parent[root(name)] = root(own[0])
    order = [name for name in plan.specs if name in parent]
    members: dict[str, list[str]] = {}
    for name in order:
        members.setdefault(root(name), []).append(name)
    nodes: dict[str, list[Node]] = {}
    for node, own in readers:
        nodes.setdefault(root(own[0]), []).append(node)
    return {
        next(n for n in names if plan.specs[n].role != "weight"): (tuple(names), tuple(nodes[key]))
        for key, names in members.items()
    }


def _stored(graph: Graph, weight: str, plan: Plan) -> str:
    """The tensor on the way to `weight` that carries its quantizer."""
    while weight not in plan.specs and weight in graph.producer:
        weight = graph.producer[weight].inputs[0]
    return weight


def _choice(
    plan: Plan,
    target: Target,
    name: str,
    tensors: tuple[str, ...],
    nodes: tuple[Node, ...],
    pairs: Iterable[tuple[Format, Format]],
) -> Choice:
    options: dict[tuple[Spec, ...], None] = {}
    for weight, activation in pairs:
        specs = tuple(
            _changed(plan.specs[t], weight if plan.specs[t].role == "weight" else activation)
            for t in tensors
        )
        if all(
            spec.format.name in target.legal(node.op, spec.role)
            for spec in specs
            for node in nodes
            if node.op in target.operators
        ):
            options[specs] = None
    if not options:
        ops = ", ".join(sorted({node.op for node in nodes}))
        raise ConfigError(
            f"target {target.name!r} has no format of the menu for the group of {name!r} ({ops}); "
            f"add one to the menu, or exclude the group"
        )
    return Choice(tensors, tuple(options))


def _changed(spec: Spec, fmt: Format) -> Spec:
    if isinstance(fmt, Integer) and isinstance(spec.format, Integer):
        fmt = Integer(fmt.bits, spec.format.signed, spec.format.strict)
    return replace(spec, format=fmt, rule=f"searched: {spec.rule}")


def _format(fmt: Format | str) -> Format:
    return format_named(fmt) if isinstance(fmt, str) else fmt
