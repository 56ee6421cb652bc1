"""Which tensors carry quantizers, and why: a target's description, and rules on top of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jqnt.block_axes import block_axis, in_blocks, scale_grid
from jqnt.errors import ConfigError, UnsupportedError
from jqnt.formats import FP32, Format, Integer, Microscaling, Minifloat
from jqnt.granularity import PER_TENSOR, Granularity
from jqnt.graph.ir import Graph, Node
from jqnt.graph.match import Group, fuse, sole_reader, static_tensors
from jqnt.graph.roles import Weight, data_inputs, float_tensors, softmax_axis, weight_of
from jqnt.plan import Plan, Spec
from jqnt.rules import Rule, placed, unused
from jqnt.scales import ScaleFormat
from jqnt.targets import Operator, Target, load_target
from jqnt.types import Symmetry

__all__ = ["plan"]


def plan(graph: Graph, rules: Sequence[Rule] = (), *, target: str | Target = "onnxruntime") -> Plan:
    """The plan of `target` for `graph`, changed by `rules`: the first rule that matches wins.

    - What an operator on grids reads as data, and what leaves its fusion group, carries an
      activation quantizer, graph inputs included; what lies inside a group carries none.
    - An operator whose encoding is shared or tied joins the tensors that it moves.
    - A weight carries its own, on the axis of the node that reads it, at the param itself where
      only Identity and Transpose lie between. Constant operands of Add and its like count as
      activations whose values are known.
    - A bias follows from its input's scale and its weight's.
    - A rule that names an operator which the target computes in float may give it a float format.

    Every spec's `rule` says where it comes from. Raises ConfigError for a rule that applies to
    nothing or asks for a format that the target does not have there, and UnsupportedError for a
    weight or bias whose readers need different scales.
    """
    described = load_target(target) if isinstance(target, str) else target
    layout = _lay_out(graph, described)
    draft = _Draft(described, placed(rules, graph), {}, {}, set())
    leaders: dict[str, str] = {}
    for members in layout.sets:
        sites = [layout.activations[name] for name in members]
        spec = _activation_spec(draft, sites)
        if spec is not None and isinstance(spec.format, Microscaling):
            draft.specs.update(in_blocks(spec, graph, members))
        elif spec is not None:
            draft.specs[members[0]] = replace(spec, softmax_axis=softmax_axis(graph, members))
            leaders.update((name, members[0]) for name in members[1:])
    for site in layout.weights.values():
        if (spec := _weight_spec(draft, site)) is not None:
            draft.specs[site.tensor] = spec
    for site in layout.floats:
        if (found := _first(draft, [site])) is not None:
            _add_float(draft, site, *found)
    for site, x, weight in layout.biases:
        _add_bias(draft, site, leaders.get(x, x), weight, x)
    unused(rules, draft.used, [*graph.tensors, *(node.name for node in graph.nodes)])
    order = {name: i for i, name in enumerate(graph.tensors)}
    specs = {name: draft.specs[name] for name in sorted(draft.specs, key=order.__getitem__)}
    return Plan(specs, leaders, draft.biases)


@dataclass(frozen=True)
class _Site:
    """A tensor that may carry a quantizer; `names` are what rules know it by."""

    tensor: str
    role: str
    op: str
    names: tuple[str, ...]
    why: str
    operator: Operator
    channel_axis: int | None = None
    input_axis: int | None = None


@dataclass(frozen=True)
class _Layout:
    """All sites: activations in sets that share one quantizer, weights, biases with the input
    and weight that scale them, and outputs of operators that run in float."""

    activations: dict[str, _Site]
    sets: list[list[str]]
    weights: dict[str, _Site]
    biases: list[tuple[_Site, str, str]]
    floats: list[_Site]


@dataclass(frozen=True)
class _Draft:
    """What fills up while rules are applied."""

    target: Target
    rules: tuple[Rule, ...]
    specs: dict[str, Spec]
    biases: dict[str, tuple[str, str]]
    used: set[int]


def _lay_out(graph: Graph, target: Target) -> _Layout:
    groups = fuse(graph, target.chains)
    static, floats = static_tensors(graph), float_tensors(graph)
    maker = {group.output: group for group in groups}
    on_grid = {
        group: target.operators[group.head.op]
        for group in groups
        if group.head.op in target.operators and group.output not in static
    }
    why: dict[str, str] = {}
    weights: dict[str, _Site] = {}
    biases: list[tuple[_Site, str, str]] = []
    for group, operator in on_grid.items():
        if operator.encoding == "shared":
            continue
        weight = weight_of(group.head, static)
        for name in _reads(group, static):
            carries = name in floats and name not in graph.constants
            if operator.inputs and carries and (weight is None or name != weight.tensor):
                why.setdefault(name, f"input of {_label(group.head)}")
        if operator.output and group.output in floats:
            why[group.output] = f"output of {_label(group.head)}"
        if weight is not None and weight.tensor not in graph.constants:
            site = _weight_site(graph, group, weight, operator)
            _add_weight(weights, site)
            biases.extend(_bias_sites(graph, group, weight, operator, site.tensor))
    edges = [*(graph.inputs * target.graph_inputs), *(graph.outputs * target.graph_outputs)]
    for name in edges:
        if name in floats - static:
            why.setdefault(name, "edge of the graph")
    _spread(on_grid, static, floats, why)
    activations = {
        name: _activation_site(name, reason, maker.get(name), target)
        for name, reason in why.items()
    }
    order = [name for name in graph.tensors if name in activations]
    rest = [
        _activation_site(group.output, f"output of {_label(group.head)}", group, target)
        for group in groups
        if group not in on_grid and group.output in floats - static and group.output not in why
    ]
    return _Layout(activations, _sets(on_grid, order, static), weights, biases, rest)


def _reads(group: Group, static: frozenset[str]) -> Iterator[str]:
    """The data that enters a group: at its head, and activations that a later node joins."""
    yield from data_inputs(group.head)
    inside = {name for node in group.nodes for name in node.outputs}
    for node in group.nodes[1:]:
        for name in data_inputs(node):
            if name not in inside and name not in static:
                yield name


def _spread(
    on_grid: dict[Group, Operator],
    static: frozenset[str],
    floats: frozenset[str],
    why: dict[str, str],
) -> None:
    """Carries quantizers along operators that share their input's encoding, both ways."""
    shared = [group for group, operator in on_grid.items() if operator.encoding == "shared"]
    changed = True
    while changed:
        changed = False
        for group in shared:
            source, outputs = _moved(group, static, floats)
            if source is None or not ({source, *outputs} & why.keys()):
                continue
            for name in (source, *outputs):
                if name not in why:
                    why[name], changed = f"moved by {_label(group.head)}", True


def _moved(
    group: Group, static: frozenset[str], floats: frozenset[str]
) -> tuple[str | None, list[str]]:
    """(the input, the outputs) of an operator that only moves values; None for a static input."""
    inputs = data_inputs(group.head)
    if not inputs or inputs[0] in static or inputs[0] not in floats:
        return None, []
    return inputs[0], [name for name in group.head.outputs if name and name in floats]


def _sets(
    on_grid: dict[Group, Operator], order: list[str], static: frozenset[str]
) -> list[list[str]]:
    """The carriers in sets that share one quantizer, each led by its first tensor."""
    leader = {name: name for name in order}
    position = {name: i for i, name in enumerate(order)}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for group, operator in on_grid.items():
        if operator.encoding == "own":
            continue
        inputs = data_inputs(group.head)
        moved = inputs[:1] if operator.encoding == "shared" else inputs
        if operator.encoding == "shared" and moved and moved[0] in static:
            continue
        names = [n for n in (*moved, *group.head.outputs, group.output) if n in leader]
        for name in names[1:]:
            first, second = sorted((find(names[0]), find(name)), key=position.__getitem__)
            leader[second] = first
    sets: dict[str, list[str]] = {}
    for name in order:
        sets.setdefault(find(name), []).append(name)
    return list(sets.values())


def _label(node: Node) -> str:
    return f"{node.op} {node.name!r}"


def _activation_site(name: str, why: str, maker: Group | None, target: Target) -> _Site:
    if maker is None:
        return _Site(name, "activation", "", (name,), why, Operator())
    names, op = (name, *(node.name for node in maker.nodes)), maker.head.op
    return _Site(name, "activation", op, names, why, target.operators.get(op, Operator()))


def _weight_site(graph: Graph, group: Group, weight: Weight, operator: Operator) -> _Site:
    """The site of a weight: its param, if only Identity and Transpose lie on the way to it."""
    tensor, channel, inputs = weight.tensor, weight.channel_axis, weight.input_axis
    names = [tensor, *(node.name for node in group.nodes)]
    while (node := graph.producer.get(tensor)) is not None:
        if node.op not in ("Identity", "Transpose") or sole_reader(graph, node.inputs[0]) is None:
            break
        if node.op == "Transpose":
            perm = node.attrs.get("perm")
            if perm is None:
                break
            channel = None if channel is None else int(perm[channel])
            inputs = int(perm[inputs])
        tensor = node.inputs[0]
        names.append(tensor)
    why = f"weight of {_label(group.head)}"
    return _Site(tensor, "weight", group.head.op, tuple(names), why, operator, channel, inputs)


def _add_weight(weights: dict[str, _Site], site: _Site) -> None:
    known = weights.setdefault(site.tensor, site)
    if (known.channel_axis, known.input_axis) != (site.channel_axis, site.input_axis):
        raise UnsupportedError(
            f"weight {site.tensor!r} is the {known.why} on axis {known.channel_axis} and the "
            f"{site.why} on axis {site.channel_axis}; put an Identity before one of them"
        )
    if known is not site:
        weights[site.tensor] = replace(known, names=(*known.names, *site.names))


def _bias_sites(
    graph: Graph, group: Group, weight: Weight, operator: Operator, weight_tensor: str
) -> Iterator[tuple[_Site, str, str]]:
    """The bias that the head adds, or the one that an Add fused to a MatMul does."""
    head = group.head
    bias = weight.bias
    if head.op == "MatMul" and len(group.nodes) > 1 and group.nodes[1].op == "Add":
        bias = next((n for n in group.nodes[1].inputs if n not in head.outputs), None)
    if bias is None or bias not in graph.params:
        return
    where = f"bias {bias!r} of {_label(head)}"
    if len(graph.readers[bias]) > 1:
        raise UnsupportedError(f"{where} has another reader; run transforms.cleanup first")
    if head.op == "Gemm" and (head.attrs.get("alpha", 1.0), head.attrs.get("beta", 1.0)) != (1, 1):
        raise UnsupportedError(f"{where} has an alpha or beta; run transforms.cleanup first")
    names = (bias, *(node.name for node in group.nodes))
    site = _Site(bias, "bias", head.op, names, f"bias of {_label(head)}", operator)
    yield site, weight.data, weight_tensor


def _first(draft: _Draft, sites: Sequence[_Site]) -> tuple[Rule, str] | None:
    """The first rule that matches one of the sites, and what to call it; it counts as used."""
    for i, rule in enumerate(draft.rules):
        if any(rule.matches(site.names, site.op, site.role) for site in sites):
            draft.used.add(i)
            return rule, f"rule {i + 1}: {rule}"
    return None


def _activation_spec(draft: _Draft, sites: Sequence[_Site]) -> Spec | None:
    """The spec of a set, or None where a rule leaves it float."""
    maker = next((s for s in sites if s.operator.encoding == "own" and s.op), sites[0])
    default = draft.target.tensors(maker.op, "activation")
    rule, why = _first(draft, sites) or (Rule(), f"{draft.target.name}: {sites[0].why}")
    fmt = _format(rule, default.format)
    _check_legal(draft, sites, fmt, why)
    if fmt == FP32:
        return None
    if isinstance(fmt, Microscaling):
        axis = block_axis(rule, fmt, why)
        blocks = PER_TENSOR if axis is None else Granularity(axis, fmt.block)
        return _spec(fmt, blocks, True, "activation", why, None)
    granularity = PER_TENSOR if rule.granularity in (None, "tensor") else rule.granularity
    if not isinstance(granularity, Granularity):
        where = f"{why}: activation {sites[0].tensor!r}"
        raise ConfigError(f"{where} has no reader's axis; give a Granularity")
    # A fixed range is one for all that share the quantizer, or it is none.
    fixed = {site.operator.limits for site in sites if site.operator.encoding == "own"}
    limits = rule.limits or (fixed.pop() if len(fixed) == 1 else None)
    symmetric = default.symmetric if rule.symmetric is None else rule.symmetric
    scales = scale_grid(rule, granularity, None, symmetric, why)
    return _spec(fmt, granularity, symmetric, sites[0].role, why, limits, scales)


def _weight_spec(draft: _Draft, site: _Site) -> Spec | None:
    default = draft.target.tensors(site.op, "weight")
    rule, why = _first(draft, [site]) or (Rule(), f"{draft.target.name}: {site.why}")
    fmt, scales = _format(rule, default.format), rule.granularity or default.granularity
    _check_legal(draft, [site], fmt, why)
    if fmt == FP32:
        return None
    if isinstance(fmt, Microscaling):
        axis = block_axis(rule, fmt, why)
        granularity = Granularity(site.input_axis if axis is None else axis, fmt.block)
    elif isinstance(scales, Granularity):
        granularity = scales
    elif isinstance(scales, int):
        granularity = Granularity(site.input_axis, scales)
    else:
        granularity = Granularity(site.channel_axis if scales == "channel" else None)
    symmetric = default.symmetric if rule.symmetric is None else rule.symmetric
    scale_format = scale_grid(rule, granularity, site.channel_axis, symmetric, why)
    return _spec(fmt, granularity, symmetric, "weight", why, rule.limits, scale_format)


def _spec(
    fmt: Format,
    granularity: Granularity,
    symmetric: Symmetry,
    role: str,
    why: str,
    limits: tuple[float, float] | None,
    scale_format: ScaleFormat | None = None,
) -> Spec:
    """A wide minifloat has no scale, so nothing but the format is left of its spec."""
    if isinstance(fmt, Minifloat) and not fmt.scaled:
        return Spec(fmt, role=role, rule=why)
    even = symmetric if isinstance(fmt, Integer) and not fmt.even else True
    if scale_format is not None and not isinstance(fmt, Integer):
        raise ConfigError(f"{why}: scales of {fmt.name} lie on no grid")
    return Spec(fmt, granularity, even, role, why, limits, scale_format)


def _format(rule: Rule, default: Format) -> Format:
    """The rule's format; one that is given by name keeps the target's strictness."""
    fmt = rule.number_format
    if fmt is None:
        return default
    strict = isinstance(default, Integer) and default.strict
    named = isinstance(rule.format, str)
    if strict and named and isinstance(fmt, Integer) and fmt.signed and not fmt.shifted:
        return Integer(fmt.bits, signed=True, strict=True)
    return fmt


def _check_legal(draft: _Draft, sites: Sequence[_Site], fmt: Format, why: str) -> None:
    for site in sites:
        legal = draft.target.legal(site.op, site.role)
        if not legal.intersection((fmt.name, "*")):
            raise ConfigError(
                f"{why}: {draft.target.name} has no {fmt.name} {site.role}s "
                f"({site.why}, tensor {site.tensor!r}); legal: {', '.join(sorted(legal))}"
            )


def _add_float(draft: _Draft, site: _Site, rule: Rule, why: str) -> None:
    """An operator that runs in float: a rule that names it may choose the float format."""
    fmt = rule.number_format
    if rule.op == "*" or fmt is None or fmt == FP32:
        return
    if isinstance(fmt, Integer):
        raise ConfigError(
            f"{why}: {draft.target.name} computes {site.op} in float (tensor {site.tensor!r}), so "
            f"a {fmt.name} output is not possible; a float format is"
        )
    _check_legal(draft, [site], fmt, why)
    draft.specs[site.tensor] = Spec(fmt, rule=why)


def _add_bias(draft: _Draft, site: _Site, leader: str, weight: str, x: str) -> None:
    """On the grid of input times weight, in a format of its own, or float."""
    found = _first(draft, [site])
    rule, why = found or (Rule(), f"{draft.target.name}: {site.why}")
    default = site.operator.bias or draft.target.bias
    fmt = _format(rule, default)
    if fmt == FP32:
        return
    if rule.limits or rule.symmetric is not None or rule.granularity is not None:
        raise ConfigError(f"{why}: of a bias only the format can be set")
    if fmt != default:
        draft.specs[site.tensor] = _spec(fmt, PER_TENSOR, True, "bias", why, None)
        return
    scaled = (draft.specs.get(leader), draft.specs.get(weight))
    if all(spec is not None and isinstance(spec.format, Integer) for spec in scaled):
        draft.biases[site.tensor] = (x, weight)
