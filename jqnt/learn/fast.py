"""A fast simulation for training: products of 8-bit integers forward, of floats backward."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jqnt.errors import UnsupportedError
from jqnt.formats import Integer
from jqnt.graph.ir import Graph, Node
from jqnt.graph.layout import Laid, to_last, to_onnx
from jqnt.graph.lower import call, lower
from jqnt.graph.match import static_tensors
from jqnt.graph.roles import Weight, weight_of
from jqnt.integer import accumulate as integers
from jqnt.ops.convolution import Geometry, convolve, input_gradient, weight_gradient
from jqnt.ops.window import output_sizes, window
from jqnt.plan import Plan
from jqnt.quantizers import Affine, affine_of, grid
from jqnt.types import Apply

__all__ = ["fast"]

# So many products of two int8 codes sum up exactly in float32: 2^10 * 2^7 * 2^7 = 2^24.
_EXACT_SUM = 1024


def fast(graph: Graph, plan: Plan) -> Apply:
    """`lower(graph)`, whose convolutions and matrix products multiply int8 codes.

    Where both operands of a Conv, Gemm or MatMul have integer grids of 8 bits or less (one scale
    for the activation; a symmetric weight), forward is the exact integer product times the
    scales, and backward that of the values before quantization: no masks, and no gradient in the
    ranges, which stay as they were calibrated. Everywhere else a quantizer passes gradients
    straight through. It costs about a float step; `lower` is exact. Source: qwix, dot_general_qt
    and conv_general_qt.

    Raises UnsupportedError if no product of the plan has such grids.
    """
    sites = _sites(graph, plan)
    if not sites:
        raise UnsupportedError(
            "no product has integers of 8 bits or less on both sides: use the exact mode"
        )
    alone = _read_by_products_alone(graph, sites)

    def apply(
        params: Mapping[str, Any],
        qparams: Mapping[str, Any],
        inputs: Mapping[str, Any],
        want: Iterable[str] = graph.outputs,
    ) -> dict[str, Any]:
        want = tuple(want)
        grids = {name: affine_of(q) for name, q in qparams.items()}
        rest = {
            name: q if grids[name] is None else _Through(grids[name])
            for name, q in qparams.items()
            if name not in alone or name in want
        }
        compute = partial(_computed, sites, grids)
        return lower(graph, compute=compute)(params, rest, inputs, want)

    return apply


class _Through(NamedTuple):
    """Quantizes; the derivative is that of the identity."""

    quantizer: Any

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return _through(x, self.quantizer)


@jax.custom_vjp
def _through(x, quantizer):
    return quantizer(x)


_through.defvjp(
    lambda x, quantizer: (quantizer(x), quantizer),
    lambda quantizer, g: (g, jax.tree.map(jnp.zeros_like, quantizer)),
)


def _sites(graph: Graph, plan: Plan) -> dict[str, Weight]:
    """Node name -> its weight, where both sides have narrow enough grids."""
    static = static_tensors(graph)

    def narrow(name: str, symmetric: bool) -> bool:
        spec = plan.specs.get(plan.tied.get(name, name))
        if spec is None or not isinstance(spec.format, Integer) or spec.format.bits > 8:
            return False
        return spec.granularity.block is None and (spec.symmetric is True or not symmetric)

    found = {}
    for node in graph.nodes:
        weight = weight_of(node, static)
        if weight is None or node.op not in ("Conv", "Gemm", "MatMul"):
            continue
        if node.op == "MatMul" and weight.tensor != node.inputs[1]:
            continue
        if node.attrs.get("transA", 0) or node.attrs.get("alpha", 1.0) != 1:
            continue
        spec = plan.specs.get(weight.tensor)
        axis = None if spec is None else spec.granularity.axis
        rank = len(graph.info[weight.tensor].shape or ()) if weight.tensor in graph.info else 2
        channel = (weight.channel_axis or 0) % max(rank, 1)
        along = axis is None or (isinstance(axis, int) and axis % max(rank, 1) == channel)
        if narrow(weight.data, False) and narrow(weight.tensor, True) and along:
            found[node.name] = weight
    return found


def _read_by_products_alone(graph: Graph, sites: Mapping[str, Weight]) -> frozenset[str]:
    """The operands that the products quantize themselves, and nobody else reads."""
    names = {n for w in sites.values() for n in (w.data, w.tensor)}
    return frozenset(
        name
        for name in names
        if name not in graph.outputs
        and all(
            node.name in sites and name in (sites[node.name].data, sites[node.name].tensor)
            for node in graph.readers.get(name, ())
        )
    )


def _computed(
    sites: Mapping[str, Weight],
    grids: Mapping[str, Affine | None],
    node: Node,
    values: list[Laid | None],
) -> tuple[Laid, ...]:
    weight = sites.get(node.name)
    x, w = (grids.get(weight.data), grids.get(weight.tensor)) if weight else (None, None)
    if x is None or w is None or values[0] is None or values[1] is None:
        return call(node, values)
    matrix: Any = to_onnx(values[1]).array
    if node.op == "Conv":
        data: Any = to_last(values[0]).array
        sizes = data.shape[1:-1]
        view = window(node, sizes, matrix.shape[2:])
        geometry = Geometry(
            sizes, view, output_sizes(node, view, sizes), node.attrs.get("group", 1)
        )
        y: Any = _convolution(data, matrix, x, w, geometry)
    else:
        if matrix.ndim != 2:
            return call(node, values)
        turned = bool(node.op == "Gemm" and node.attrs.get("transB", 0))
        y: Any = _matrix(to_onnx(values[0]).array, matrix, x, w, turned)
    if len(values) > 2 and values[2] is not None:
        beta = node.attrs.get("beta", 1.0) if node.op == "Gemm" else 1.0
        bias: Any = to_onnx(values[2]).array
        bias = bias if beta == 1 else bias * np.float32(beta)
        y = y + bias.reshape((1,) * (y.ndim - 1) + (-1,))
    return (Laid(y, node.op == "Conv"),)


def _codes(x: Any, quantizer: Affine) -> tuple[Any, Any, Any]:
    """(int8 codes, the code of zero as int32, scale); codes of unsigned grids are shifted."""
    scale, zero, qmin, qmax = grid(quantizer, x.shape)
    shift = 0.0 if quantizer.signed else 128.0
    # A reciprocal: the nearest code but for exact ties, in one pass.
    code = jnp.clip(jnp.round(x * (1 / scale)) + (zero - shift), qmin - shift, qmax - shift)
    return code.astype(jnp.int8), (zero - shift).astype(jnp.int32), scale


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _convolution(x, w, x_grid, w_grid, geometry):
    if geometry.groups == w.shape[0] == x.shape[-1] > 1:
        # Shifted multiply-adds are float; of codes they are exact. The barrier keeps every tap
        # from rounding for itself.
        scale, zero, qmin, qmax = grid(x_grid, x.shape)
        codes = jnp.clip(jnp.round(x * (1 / scale)) + zero, qmin, qmax) - zero
        factor, _, low, high = grid(w_grid, w.shape)
        weights = jnp.clip(jnp.round(w * (1 / factor)), low, high)
        exact = geometry._replace(precision="highest")
        total = convolve(lax.optimization_barrier(codes), weights, exact)
        return total * (scale * factor.reshape(-1)).reshape((1,) * (total.ndim - 1) + (-1,))
    code, zero, scale = _codes(x, x_grid)
    weights, _, factor = _codes(w, w_grid)
    view = geometry.view
    if any(map(any, view.pads)) or max(view.kernel) > 1:
        code = lax.pad(
            code,
            zero.astype(jnp.int8),
            [(0, 0, 0), *((low, high, 0) for low, high in view.pads), (0, 0, 0)],
        )
        view = view._replace(pads=((0, 0),) * len(view.pads))
        geometry = geometry._replace(sizes=code.shape[1:-1], view=view)
    if max(view.kernel) > 1 and math.prod(w.shape[1:]) <= _EXACT_SUM:
        total = lax.platform_dependent(
            code,
            weights,
            zero,
            cpu=partial(_float_sums, geometry),
            default=partial(_sums, geometry),
        )
    else:
        total = _sums(geometry, code, weights, zero)
    sums = jnp.sum(weights, axis=tuple(range(1, weights.ndim)), dtype=jnp.int32)
    total = total - (zero * sums).reshape((1,) * (total.ndim - 1) + (-1,))
    scale = scale * factor.reshape(-1)
    return total.astype(jnp.float32) * scale.reshape((1,) * (total.ndim - 1) + (-1,))


def _sums(geometry, code, weights, zero):
    kernel = jnp.moveaxis(weights, (0, 1), (-1, -2))
    return integers.convolve(code, [kernel], geometry.view, geometry.groups, zero)


def _float_sums(geometry, code, weights, zero):
    """On the CPU float convolutions of few channels are faster, and of codes exact; GPUs may
    transform them first (Winograd), which isn't."""
    del zero
    total = convolve(code.astype(jnp.float32), weights.astype(jnp.float32), geometry)
    return total.astype(jnp.int32)


def _convolution_forward(x, w, x_grid, w_grid, geometry):
    return _convolution(x, w, x_grid, w_grid, geometry), (x, w, x_grid, w_grid)


def _convolution_backward(geometry, saved, g):
    x, w, *grids = saved
    return (
        input_gradient(g, w, geometry),
        weight_gradient(x, g, geometry),
        *jax.tree.map(jnp.zeros_like, grids),
    )


_convolution.defvjp(_convolution_forward, _convolution_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _matrix(x, w, x_grid, w_grid, turned):
    code, zero, scale = _codes(x, x_grid)
    weights, _, factor = _codes(w, w_grid)
    inner = 1 if turned else 0
    total = integers.dot(code, [weights.T if turned else weights])
    sums = jnp.sum(weights, axis=inner, dtype=jnp.int32)
    last = (1,) * (total.ndim - 1) + (-1,)
    total = total - (zero * sums).reshape(last)
    return total.astype(jnp.float32) * (scale * factor.reshape(-1)).reshape(last)


def _matrix_forward(x, w, x_grid, w_grid, turned):
    return _matrix(x, w, x_grid, w_grid, turned), (x, w, x_grid, w_grid)


def _matrix_backward(turned, saved, g):
    x, w, *grids = saved
    axes = tuple(range(x.ndim - 1))
    dx = lax.dot_general(g, w, (((g.ndim - 1,), (0 if turned else 1,)), ((), ())))
    left, right = (g, x) if turned else (x, g)
    dw = lax.dot_general(left, right, ((axes, axes), ((), ())))
    return dx, dw, *jax.tree.map(jnp.zeros_like, grids)


_matrix.defvjp(_matrix_forward, _matrix_backward)
