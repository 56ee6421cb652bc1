"""A network as an NPU sees it: fusion groups with loop nests, vector passes, bytes and edges."""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from flax import struct

from jqnt.errors import ModelError, nearest
from jqnt.graph.ir import Graph
from jqnt.graph.shapes import infer_shapes
from jqnt.npu.fusion import Group, constants_of, group_nodes
from jqnt.npu.geometry import channel_axes
from jqnt.npu.liveness import live_elements
from jqnt.npu.work import PRODUCT_KINDS, VECTOR_WORK, Tensors
from jqnt.types import Leaf

__all__ = ["Dims", "Workload", "workload"]


@struct.dataclass
class Dims:
    """The loop nests of all groups, float32 arrays of one entry per group.

    `count * height * width` pixels of the result, each `groups * out_channels` numbers; a product
    reduces over `in_channels * kernel_height * kernel_width` (`in_channels` is 0 without one), on
    inputs of `in_height * in_width` pixels.
    Channel counts are per convolution group. All are leaves: a gradient may touch them.
    """

    count: Leaf
    height: Leaf
    width: Leaf
    in_channels: Leaf
    out_channels: Leaf
    groups: Leaf
    kernel_height: Leaf
    kernel_width: Leaf
    stride_height: Leaf
    stride_width: Leaf
    in_height: Leaf
    in_width: Leaf

    @property
    def pixels(self) -> Any:
        """Pixels of the result."""
        return self.count * self.height * self.width

    @property
    def macs(self) -> Any:
        """Multiply-accumulates, unpadded."""
        taps = self.kernel_height * self.kernel_width
        return self.pixels * self.groups * self.out_channels * self.in_channels * taps


@struct.dataclass
class Workload:
    """The fusion groups of a network, in order of execution.

    Arrays have one entry per group, `passes` one row of `VECTOR_WORK` kinds. `in_elements` and
    `out_elements` count activations read and written, `weight_elements` and `bias_elements` the
    constants. `live_elements` counts the activations that are alive while the group runs,
    `layout_elements` those of channels-first inputs and outputs of the graph. `serial` is 1 where
    one pixel results from a reduction or a product, `starts` 1 for the first group of a network.
    `edges` are (producer, consumer) group indices of each activation, -1 for the
    graph's inputs and outputs, and `edge_elements` its size. `groups` are the names of the main
    nodes, `kinds` those of `Work`, `ops` the main operators, `nodes` all node names of a group,
    `works` the kinds of vector work of the main operator, `tails` the fused (operator, kind of
    work) pairs; `weights`, `inputs` and `outputs` name
    tensors ("" where a group has no weight). `blocks` are what `with_blocks` adds.
    """

    dims: Dims
    passes: Leaf
    in_elements: Leaf
    out_elements: Leaf
    weight_elements: Leaf
    bias_elements: Leaf
    live_elements: Leaf
    layout_elements: Leaf
    serial: Leaf
    starts: Leaf
    edge_elements: Leaf
    name: str = struct.field(pytree_node=False)
    groups: tuple[str, ...] = struct.field(pytree_node=False)
    kinds: tuple[str, ...] = struct.field(pytree_node=False)
    ops: tuple[str, ...] = struct.field(pytree_node=False)
    nodes: tuple[tuple[str, ...], ...] = struct.field(pytree_node=False)
    works: tuple[tuple[str, ...], ...] = struct.field(pytree_node=False)
    tails: tuple[tuple[tuple[str, str], ...], ...] = struct.field(pytree_node=False)
    weights: tuple[str, ...] = struct.field(pytree_node=False)
    inputs: tuple[tuple[str, ...], ...] = struct.field(pytree_node=False)
    outputs: tuple[str, ...] = struct.field(pytree_node=False)
    edges: tuple[tuple[int, int], ...] = struct.field(pytree_node=False)
    edge_tensors: tuple[str, ...] = struct.field(pytree_node=False)
    blocks: Any = None

    def index(self, name: str) -> int:
        """The group of a node (main or fused); ModelError names the nearest otherwise."""
        for index, names in enumerate(self.nodes):
            if name in names:
                return index
        known = [node for names in self.nodes for node in names]
        raise ModelError(f"no group of {self.name!r} holds node {name!r}{nearest(name, known)}")


def workload(graph: Graph, params: Mapping[str, Any], batch: int = 1) -> Workload:
    """The fusion groups of a graph whose shapes are known; symbolic dimensions become `batch`.

    `params` gives the shapes of the weights (arrays, or anything with a shape). Raises
    ModelError where a shape is unknown.
    """
    shapes = _shapes(graph, params, batch)
    constant = constants_of(graph)
    tensors = Tensors(shapes, channel_axes(graph, shapes, constant), constant)
    groups, alias = group_nodes(graph, tensors)
    makers = {group.output: index for index, group in enumerate(groups)}
    for index, group in enumerate(groups):
        for node in group.nodes:
            makers.update({out: index for out in node.outputs if out})
    edges, sizes, names = [], [], []
    for index, group in enumerate(groups):
        for name in group.inputs:
            edges.append((makers.get(name, -1), index))
            sizes.append(prod(shapes[name]))
            names.append(name)
    for name in graph.outputs:
        root = _root(alias, name)
        if root in makers:
            edges.append((makers[root], -1))
            sizes.append(prod(shapes[root]))
            names.append(root)
    weights = [_weight(group, tensors) for group in groups]
    constants = [sum(_constant_elements(group, tensors)) for group in groups]
    weight_elements = [prod(shapes[w]) if w else 0 for w in weights]
    outputs = tuple(group.output for group in groups)
    out_elements = _array([prod(shapes[name]) for name in outputs])
    return Workload(
        dims=_dims(groups),
        passes=_array([[g.work.passes.get(k, 0.0) for k in VECTOR_WORK] for g in groups]),
        in_elements=_array([sum(prod(shapes[n]) for n in g.inputs) for g in groups]),
        out_elements=out_elements,
        weight_elements=_array(weight_elements),
        live_elements=np.asarray(
            live_elements(edges, names, _array(sizes), outputs, out_elements), np.float32
        ),
        layout_elements=_array([_channels_first(g, graph, tensors, alias) for g in groups]),
        serial=_array([_serial(g, tensors) for g in groups]),
        starts=_array([index == 0 for index in range(len(groups))]),
        bias_elements=_array([c - w for c, w in zip(constants, weight_elements, strict=True)]),
        edge_elements=_array(sizes),
        name=graph.name,
        groups=tuple(group.name for group in groups),
        kinds=tuple(group.work.kind for group in groups),
        ops=tuple(group.op for group in groups),
        nodes=tuple(
            tuple(n.name for n in (*g.nodes, *(n for t in g.tails for n in t.nodes)))
            for g in groups
        ),
        works=tuple(tuple(group.work.passes) for group in groups),
        tails=tuple(tuple((tail.op, tail.work) for tail in group.tails) for group in groups),
        weights=tuple(weights),
        inputs=tuple(group.inputs for group in groups),
        outputs=outputs,
        edges=tuple(edges),
        edge_tensors=tuple(names),
    )


def _array(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def _dims(groups: tuple[Group, ...]) -> Dims:
    works = [group.work for group in groups]
    return Dims(
        count=_array([w.count for w in works]),
        height=_array([w.height for w in works]),
        width=_array([w.width for w in works]),
        in_channels=_array([w.in_channels for w in works]),
        out_channels=_array([w.out_channels for w in works]),
        groups=_array([w.groups for w in works]),
        kernel_height=_array([w.kernel[0] for w in works]),
        kernel_width=_array([w.kernel[1] for w in works]),
        stride_height=_array([w.stride[0] for w in works]),
        stride_width=_array([w.stride[1] for w in works]),
        in_height=_array([w.in_size[0] or w.height for w in works]),
        in_width=_array([w.in_size[1] or w.width for w in works]),
    )


def _weight(group: Group, tensors: Tensors) -> str:
    """The constant operand of a group's product, or ""."""
    if group.work.kind not in ("conv", "depthwise", "dense"):
        return ""
    fixed = [n for n in group.nodes[0].inputs if n and n in tensors.constant]
    return max(fixed, key=lambda n: prod(tensors.shapes[n]), default="")


def _serial(group: Group, tensors: Tensors) -> bool:
    _, height, width, _ = tensors.image(group.output)
    gathers = group.work.kind in PRODUCT_KINDS or "reduce" in group.work.passes
    return height * width == 1 and gathers


def _channels_first(group: Group, graph: Graph, tensors: Tensors, alias: Mapping[str, str]) -> int:
    """Elements of graph inputs that the group reads, and outputs that it makes, in NCHW."""
    outputs = {_root(alias, name) for name in graph.outputs}
    names = [n for n in group.inputs if n in graph.inputs]
    names += [group.output] * (group.output in outputs)
    images = {n: (tensors.image(n), len(tensors.shapes[n]), tensors.axes.get(n)) for n in names}
    return sum(
        image.elements
        for image, rank, axis in images.values()
        if rank == 4 and axis == 1 and image.channels > 1 and image.height * image.width > 1
    )


def _constant_elements(group: Group, tensors: Tensors) -> list[int]:
    nodes = (*group.nodes, *(node for tail in group.tails for node in tail.nodes))
    names = {n for node in nodes for n in node.inputs if n and n in tensors.constant}
    return [prod(tensors.shapes[n]) for n in names]


def _shapes(graph: Graph, params: Mapping[str, Any], batch: int) -> dict[str, tuple[int, ...]]:
    """Declared shapes where the model declares all of them as numbers, else inferred ones."""
    shapes = {name: tuple(np.shape(value)) for name, value in params.items()}
    shapes.update({name: value.shape for name, value in graph.constants.items()})
    for name, info in graph.info.items():
        if info.shape is not None and all(isinstance(d, int) for d in info.shape):
            shapes.setdefault(name, tuple(int(d) for d in info.shape if isinstance(d, int)))
    if all(name in shapes for name in graph.tensors):
        return shapes
    return {name: s.shape for name, s in infer_shapes(graph, params, batch).items()}


def _root(alias: Mapping[str, str], name: str) -> str:
    while name in alias:
        name = alias[name]
    return name
