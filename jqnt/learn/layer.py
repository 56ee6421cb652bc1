"""A layer as a matrix product: convolution, Gemm or MatMul on patches of its input."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jqnt.errors import UnsupportedError
from jqnt.graph.ir import Node
from jqnt.graph.lower import run_node
from jqnt.ops.window import Window, output_sizes, taps, window

__all__ = ["Layer", "layer_of", "matrix", "outputs", "patches", "product", "tensor"]


@dataclass(frozen=True)
class Layer:
    """What a layer is, apart from names and numbers: equal layers share compiled programs.

    For each of `groups` groups, output[s, o] = sum_k patch[s, k] * matrix[o, k], where s runs
    over samples and positions. `shape` is the weight's, as the node reads it at input `slot`;
    `perm` is the transposition on the way there from the tensor that is stored and quantized.
    """

    op: str
    since: int
    attrs: tuple[tuple[str, Any], ...]
    shape: tuple[int, ...]
    perm: tuple[int, ...]
    slot: int = 1

    @property
    def node(self) -> Node:
        """A node that computes this layer; without a bias, since Gemm's beta is left out."""
        names = ("x", "w") if self.slot == 1 else ("w", "x")
        return Node(self.op, "layer", names, ("y",), dict(self.attrs), since=self.since)

    @property
    def groups(self) -> int:
        """1, or the `group` of a convolution."""
        return dict(self.attrs).get("group", 1)

    @property
    def form(self) -> "Layer":
        """What decides how the weight is a matrix: layers that differ in strides are equal here."""
        kept = tuple((k, v) for k, v in self.attrs if k in ("group", "transB"))
        return replace(self, attrs=kept)


def layer_of(node: Node, weight: str, shape: tuple[int, ...], perm: tuple[int, ...] = ()) -> Layer:
    """The layer that `node` computes with its input `weight`, of `shape` as it reads it.

    Raises UnsupportedError for a MatMul whose weight is no matrix.
    """
    if node.op == "MatMul" and len(shape) != 2:
        raise UnsupportedError(
            f"MatMul node {node.name!r}: weight {weight!r} of shape {list(shape)} is not a matrix, "
            f"so its rounding cannot be learned; give it a float format in the plan"
        )
    attrs = {k: tuple(v) if isinstance(v, list) else v for k, v in node.attrs.items()}
    slot = 0 if node.op == "MatMul" and node.inputs[0] == weight else 1
    return Layer(node.op, node.since, tuple(sorted(attrs.items())), tuple(shape), tuple(perm), slot)


def product(layer: Layer, x: Float[Array, "..."], w: Float[Array, "..."]) -> Float[Array, "..."]:
    """The layer itself, without bias, by its ordinary lowering; w as it is stored."""
    w = w.transpose(layer.perm) if layer.perm else w
    return run_node(layer.node, (x, w) if layer.slot == 1 else (w, x))[0]


def matrix(layer: Layer, w: Float[Array, "..."]) -> Float[Array, "groups out inner"]:
    """The stored weight as one matrix per group; inner is (taps, channels) for convolutions."""
    w = w.transpose(layer.perm) if layer.perm else w
    if layer.op == "Conv":
        out, channels, count = w.shape[0] // layer.groups, w.shape[1], _size(w.shape[2:])
        return (
            w.reshape(layer.groups, out, channels, count)
            .swapaxes(2, 3)
            .reshape(layer.groups, out, -1)
        )
    if layer.op == "ConvTranspose":
        channels, out, count = w.shape[0] // layer.groups, w.shape[1], _size(w.shape[2:])
        m = w.reshape(layer.groups, channels, out, count)[..., ::-1]
        return m.transpose(0, 2, 3, 1).reshape(layer.groups, out, -1)
    return (w if _rows_are_outputs(layer) else w.T)[None]


def tensor(layer: Layer, m: Float[Array, "groups out inner"]) -> Float[Array, "..."]:
    """The inverse of `matrix`."""
    groups, out, _ = m.shape
    if layer.op == "Conv":
        channels, count = layer.shape[1], _size(layer.shape[2:])
        w = m.reshape(groups, out, count, channels).swapaxes(2, 3).reshape(layer.shape)
    elif layer.op == "ConvTranspose":
        channels, count = layer.shape[0] // groups, _size(layer.shape[2:])
        m = m.reshape(groups, out, count, channels).transpose(0, 3, 1, 2)[..., ::-1]
        w = m.reshape(layer.shape)
    else:
        w = m[0] if _rows_are_outputs(layer) else m[0].T
    return w.transpose(np.argsort(layer.perm)) if layer.perm else w


def patches(layer: Layer, x: Float[Array, "..."]) -> list[Float[Array, "samples groups part"]]:
    """What each output position sees, in parts along `inner` (one part per tap of a kernel)."""
    if layer.op in ("Conv", "ConvTranspose"):
        x = jnp.moveaxis(x, 1, -1)
        x, view, out = _slid(layer, x)
        return [
            t.reshape(-1, layer.groups, t.shape[-1] // layer.groups) for t in taps(x, view, out, 0)
        ]
    attrs = dict(layer.attrs)
    if layer.op == "Gemm":
        x = x.T if attrs.get("transA", 0) else x
        alpha = attrs.get("alpha", 1.0)
        x = x if alpha == 1 else x * jnp.asarray(alpha, x.dtype)
    elif layer.slot == 0:
        x = jnp.moveaxis(x, -2, -1) if x.ndim > 1 else x
    return [x.reshape(-1, 1, x.shape[-1])]


def outputs(layer: Layer, y: Float[Array, "..."]) -> Float[Array, "samples groups out"]:
    """The layer's output in the order of `patches`."""
    if layer.op in ("Conv", "ConvTranspose"):
        return jnp.moveaxis(y, 1, -1).reshape(-1, layer.groups, y.shape[1] // layer.groups)
    if layer.slot == 0:
        y = jnp.moveaxis(y, -2, -1) if y.ndim > 1 else y
    return y.reshape(-1, 1, y.shape[-1])


def _rows_are_outputs(layer: Layer) -> bool:
    """Whether a matrix weight is (out, inner) as stored."""
    if layer.op == "Gemm":
        return bool(dict(layer.attrs).get("transB", 0))
    return layer.slot == 0


def _slid(layer: Layer, x: Array) -> tuple[Array, Window, tuple[int, ...]]:
    """A channels-last input, the window that slides over it, and the output's spatial sizes.

    A transposed convolution is a plain one, of the flipped kernel, over the input with
    stride - 1 zeros between its elements.
    """
    node, kernel = layer.node, layer.shape[2:]
    sizes = x.shape[1:-1]
    view = window(node, sizes, kernel)
    if layer.op == "Conv":
        return x, view, output_sizes(node, view, sizes)
    before, out = _transposed_geometry(layer, view, sizes)
    edges = []
    for size, stride, span, pad, count in zip(
        sizes, view.strides, view.spans, before, out, strict=True
    ):
        low = span - 1 - pad
        edges.append((low, count + span - 1 - low - ((size - 1) * stride + 1), stride - 1))
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    plain = Window(view.kernel, (1,) * len(out), view.dilations, ((0, 0),) * len(out))
    return x, plain, out


def _transposed_geometry(
    layer: Layer, view: Window, sizes: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(padding before, output sizes) of https://onnx.ai/onnx/operators/onnx__ConvTranspose.html"""
    attrs = dict(layer.attrs)
    auto = attrs.get("auto_pad", "NOTSET")
    extra = tuple(attrs.get("output_padding", ())) or (0,) * len(sizes)
    full = [
        stride * (size - 1) + more + span
        for size, stride, more, span in zip(sizes, view.strides, extra, view.spans, strict=True)
    ]
    wanted = tuple(attrs.get("output_shape", ()))[-len(sizes) :]
    if not wanted and auto.startswith("SAME"):
        wanted = tuple(size * stride for size, stride in zip(sizes, view.strides, strict=True))
    if not wanted:
        pads = view.pads
        return tuple(a for a, _ in pads), tuple(
            f - a - b for f, (a, b) in zip(full, pads, strict=True)
        )
    total = [max(f - w, 0) for f, w in zip(full, wanted, strict=True)]
    before = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total]
    return tuple(before), wanted


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
