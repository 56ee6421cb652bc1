"""Convolution as a trilinear form: it, its input gradient and its weight gradient are one triple.

With T(x, w, g) = <g, conv(x, w)> each member of the triple is the derivative of T by one
argument, so each is bilinear and its transposes are the other two. As primitives they stay
themselves under jvp, grad (of any order), vmap and scan, and each is lowered per platform: on the
CPU depthwise convolutions become shifted multiply-adds, pointwise ones matrix products, and
all others keep the canonical layout b01f_01io->b01f, outside which XLA's CPU convolutions are
20 to 140 times slower; elsewhere the library's convolutions stay.

Layouts: x "n *s i", w "o i/groups *k" (ONNX), g "n *t o".
"""

import math
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jqnt.ops.window import Window, taps

__all__ = ["Geometry", "convolve", "input_gradient", "weight_gradient"]

_ROWS = 7
"""Rows of a depthwise weight gradient that one pass adds up, written out one by one."""

_FEW_TAPS = 64
"""Larger depthwise windows don't write rows out: there would be too much to compile."""


class Geometry(NamedTuple):
    """What is static about a convolution: `sizes` of x, of the window, and of the output.

    `precision` is that of jax's products where it was traced; its gradients keep it.
    """

    sizes: tuple[int, ...]
    view: Window
    out: tuple[int, ...]
    groups: int
    precision: str | None = None


def convolve(x: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """y[n, t, o] = sum_{k, i} x[n, t * stride + k * dilation - before, i] w[o, i, k]."""
    return _convolve.bind(x, w, geometry=_traced(geometry))


def input_gradient(g: jax.Array, w: jax.Array, geometry: Geometry) -> jax.Array:
    """d<g, conv(x, w)> / dx, of x's shape; also what ONNX calls ConvTranspose."""
    return _input_gradient.bind(g, w, geometry=_traced(geometry))


def weight_gradient(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """d<g, conv(x, w)> / dw, of w's shape."""
    return _weight_gradient.bind(x, g, geometry=_traced(geometry))


def _traced(geometry: Geometry) -> Geometry:
    if geometry.precision is not None:
        return geometry
    return geometry._replace(precision=jax.config.jax_default_matmul_precision)  # pyright: ignore[reportAttributeAccessIssue]


# Shapes


def _convolve_shape(x, w, *, geometry: Geometry):
    if x.dtype != w.dtype:
        raise TypeError(f"data of type {x.dtype} and weights of type {w.dtype}")
    return x.update(shape=(x.shape[0], *geometry.out, w.shape[0]))


def _input_gradient_shape(g, w, *, geometry: Geometry):
    if g.dtype != w.dtype:
        raise TypeError(f"data of type {g.dtype} and weights of type {w.dtype}")
    return g.update(shape=(g.shape[0], *geometry.sizes, w.shape[1] * geometry.groups))


def _weight_gradient_shape(x, g, *, geometry: Geometry):
    channels = x.shape[-1] // geometry.groups
    return x.update(shape=(g.shape[-1], channels, *geometry.view.kernel))


# The library's convolution, for platforms that have a good one


def _library(x, w, *, geometry: Geometry):
    spatial = "DHWXYZ"[: x.ndim - 2]
    return lax.conv_general_dilated(
        x,
        w,
        geometry.view.strides,
        geometry.view.pads,
        rhs_dilation=geometry.view.dilations,
        dimension_numbers=(f"N{spatial}C", f"OI{spatial}", f"N{spatial}C"),
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def _library_input_gradient(g, w, *, geometry: Geometry):
    shape = (g.shape[0], *geometry.sizes, w.shape[1] * geometry.groups)
    x = jax.ShapeDtypeStruct(shape, g.dtype)
    return jax.linear_transpose(partial(_library, w=w, geometry=geometry), x)(g)[0]


def _library_weight_gradient(x, g, *, geometry: Geometry):
    shape = (g.shape[-1], x.shape[-1] // geometry.groups, *geometry.view.kernel)
    w = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(lambda w: _library(x, w, geometry=geometry), w)(g)[0]


# The CPU


def _pointwise(geometry: Geometry) -> bool:
    """A matrix product: one tap, no padding, one group."""
    view = geometry.view
    flat = not any(map(any, view.pads))
    return geometry.groups == 1 and set(view.kernel) <= {1} and flat


def _depthwise(geometry: Geometry, channels: int, outputs: int) -> bool:
    return geometry.groups == channels == outputs and channels > 1


def _cpu(x, w, *, geometry: Geometry):
    view, out = geometry.view, geometry.out
    if _pointwise(geometry):
        return jnp.einsum("...i,oi->...o", _strided(x, geometry), w.reshape(w.shape[:2]))
    if _depthwise(geometry, x.shape[-1], w.shape[0]):
        return _weighted(taps(x, view, out, 0), w)
    kernel = jnp.moveaxis(w, (0, 1), (-1, -2))
    return _canonical(x, kernel, view.strides, view.pads, view.dilations, geometry.groups)


def _cpu_input_gradient(g, w, *, geometry: Geometry):
    view, out, sizes = geometry.view, geometry.out, geometry.sizes
    rank = len(sizes)
    channels = w.shape[1] * geometry.groups
    if _pointwise(geometry):
        y = jnp.einsum("...o,oi->...i", g, w.reshape(w.shape[:2]))
        return _spread(y, geometry)
    pads = []
    for size, count, stride, span, (before, _) in zip(
        sizes, out, view.strides, view.spans, view.pads, strict=True
    ):
        low = span - 1 - before
        pads.append((low, size + span - 1 - low - ((count - 1) * stride + 1)))
    flipped = jnp.flip(w, tuple(range(2, 2 + rank)))
    if _depthwise(geometry, channels, w.shape[0]):
        interior = [(0, 0, 0), *((0, 0, s - 1) for s in view.strides), (0, 0, 0)]
        dilated = lax.pad(g, jnp.zeros((), g.dtype), interior)
        whole = Window(view.kernel, (1,) * rank, view.dilations, tuple(pads))
        return _weighted(taps(dilated, whole, sizes, 0), flipped)
    # (o, i/groups, *k) -> (*k, o/groups, i): within each group outputs become inputs
    kernel = flipped.reshape(geometry.groups, -1, *flipped.shape[1:])
    kernel = jnp.moveaxis(kernel, (0, 1, 2), (-2, -3, -1))
    kernel = kernel.reshape(*kernel.shape[:-2], channels)
    return _canonical(
        g, kernel, (1,) * rank, tuple(pads), view.dilations, geometry.groups, view.strides
    )


def _cpu_weight_gradient(x, g, *, geometry: Geometry):
    view, out, groups = geometry.view, geometry.out, geometry.groups
    if _pointwise(geometry):
        axes = tuple(range(x.ndim - 1))
        x, first = _strided(x, geometry), x.shape[-1] < g.shape[-1]
        # the first operand is transposed in memory: the narrower
        a, b = (x, g) if first else (g, x)
        w = lax.dot_general(a, b, ((axes, axes), ((), ())))
        w = w.T if first else w
        return w.reshape(*w.shape, *view.kernel)
    if _depthwise(geometry, x.shape[-1], g.shape[-1]):
        return _depthwise_weight_gradient(x, g, view, out)
    # x as (i/groups, *s, groups * n), g as (*t, n, o): a convolution over the batch
    rank = x.ndim - 2
    lhs = x.reshape(*x.shape[:-1], groups, -1)
    lhs = jnp.moveaxis(lhs, (-1, -2, 0), (0, -2, -1))
    lhs = lhs.reshape(*lhs.shape[:-2], -1)
    rhs = jnp.moveaxis(g, 0, rank)
    pads = []
    for size, count, stride, span, (before, _) in zip(
        geometry.sizes, out, view.strides, view.spans, view.pads, strict=True
    ):
        pads.append((before, (count - 1) * stride + span - size - before))
    w = _canonical(lhs, rhs, view.dilations, tuple(pads), view.strides, groups)
    return jnp.moveaxis(w, (-1, 0), (0, 1))


def _depthwise_weight_gradient(x, g, view: Window, out: tuple[int, ...]):
    """For each tap the sum of x * g over the outputs from which it sees data.

    XLA fuses shifted slices into elementwise sums, but not into reductions, before which it
    stores a copy of x for every tap, most of a training step's memory. So the sum over every
    `_ROWS` rows is written out, and a product with ones does the rest.
    """
    together = _ROWS if math.prod(view.kernel) <= _FEW_TAPS else 1
    wide = jnp.promote_types(x.dtype, jnp.float32)
    sums = []
    for tap in product(*map(range, view.kernel)):
        offsets = [
            j * d - before for j, d, (before, _) in zip(tap, view.dilations, view.pads, strict=True)
        ]
        rows, *others = map(_seeing, offsets, x.shape[1:-1], out, view.strides)
        whole = len(rows) // together * together
        blocks = [
            [rows[i:whole:together] for i in range(together) if whole],
            [rows[i : i + 1] for i in range(whole, len(rows))],
        ]
        total = jnp.zeros(x.shape[-1:], wide)
        for block in blocks if all(others) else ():
            terms = []
            for places in ([row, *others] for row in block):
                seen = x[(slice(None), *map(_inputs, places, offsets, view.strides))]
                terms.append(seen.astype(wide) * g[(slice(None), *map(_inputs, places))])
            if terms:
                some = sum(terms[1:], terms[0]).reshape(-1, x.shape[-1])
                total = total + jnp.ones(len(some), wide) @ some
        sums.append(total)
    return jnp.stack(sums, -1).reshape(-1, 1, *view.kernel).astype(x.dtype)


def _seeing(offset: int, size: int, count: int, stride: int) -> range:
    """The outputs t < count with 0 <= t * stride + offset < size."""
    first = max(-(offset // stride), 0)
    return range(first, max(min((size - 1 - offset) // stride + 1, count), first))


def _inputs(outputs: range, offset: int = 0, stride: int = 1) -> slice:
    """t * stride + offset for each output t."""
    first, last = (t * stride + offset for t in (outputs[0], outputs[-1]))
    return slice(first, last + 1, outputs.step * stride)


def _canonical(x, kernel, strides, pads, dilations, groups, input_dilation=None):
    """The one layout in which XLA's CPU convolutions are fast, in a loop too."""
    spatial = "DHWXYZ"[: x.ndim - 2]
    convolution = partial(
        lax.conv_general_dilated,
        padding=pads,
        lhs_dilation=input_dilation,
        rhs_dilation=dilations,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=groups,
    )
    count = 1 if groups > 1 or dilations[-1] > 1 else _neighbours(kernel)
    if count > 1:
        shape = jax.eval_shape(partial(convolution, window_strides=strides), x, kernel).shape
        count = math.gcd(count, shape[-2])
        wide = _widened(kernel, count, strides[-1])
        return convolution(x, wide, (*strides[:-1], strides[-1] * count)).reshape(shape)
    return convolution(x, kernel, strides)


def _neighbours(kernel) -> int:
    """How many neighbouring columns one window computes best, as so many times the channels.

    Few channels leave the registers of a product idle and make it copy its window for little
    work: 3x3, batch 32, 32x32 pixels, 16 to 16 channels takes 0.7 of the time two by two, 3 to
    16 0.3 four by four; beyond a product of 32x32 the zeros in the window cost more than they
    save.
    """
    channels, outputs = kernel.shape[-2:]
    return next((n for n in (4, 2) if n * n * channels * outputs <= 1024), 1)


def _widened(kernel, count: int, stride: int):
    """The kernel for `count` neighbouring outputs at once: zeros on either side of each copy."""
    lead = [(0, 0)] * (kernel.ndim - 3)
    shifts = [(i * stride, (count - 1 - i) * stride) for i in range(count)]
    copies = [jnp.pad(kernel, [*lead, shift, (0, 0), (0, 0)]) for shift in shifts]
    return jnp.concatenate(copies, -1)


def _weighted(taps, w):
    """The sum of the taps of a depthwise convolution, in float32 or wider."""
    wide = jnp.promote_types(w.dtype, jnp.float32)
    factors = w.reshape(w.shape[0], -1).T.astype(wide)
    total: Any = 0
    for i, tap in enumerate(taps):
        total = total + tap.astype(wide) * factors[i].reshape((1,) * (w.ndim - 1) + (-1,))
    return total.astype(w.dtype)


def _strided(x, geometry: Geometry):
    """The pixels that a window of one tap sees."""
    strides = geometry.view.strides
    if set(strides) <= {1}:
        return x
    return lax.slice(x, (0,) * x.ndim, x.shape, (1, *strides, 1))


def _spread(y, geometry: Geometry):
    """The transpose of `_strided`: zeros between the pixels."""
    widths = [
        (0, size - ((count - 1) * stride + 1), stride - 1)
        for size, count, stride in zip(
            geometry.sizes, geometry.out, geometry.view.strides, strict=True
        )
    ]
    if not any(map(any, widths)):
        return y
    return lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *widths, (0, 0, 0)])


# The primitives


def _sequential(primitive, arrays, dims, *, geometry: Geometry):
    """vmap over weights as a loop: grouped convolutions are 9 times slower on the CPU."""
    moved = [a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(arrays, dims, strict=True)]
    mapped = [d is not None for d in dims]

    def one(slices):
        rest = iter(slices)
        operands = [next(rest) if m else a for m, a in zip(mapped, moved, strict=True)]
        return primitive.bind(*operands, geometry=geometry)

    batched = [a for m, a in zip(mapped, moved, strict=True) if m]
    return lax.map(one, batched), 0


def _merged(primitive, arrays, dims, *, geometry: Geometry):
    """vmap over data as a larger batch."""
    if dims[1] is not None or dims[0] is None:
        return _sequential(primitive, arrays, dims, geometry=geometry)
    data = jnp.moveaxis(arrays[0], dims[0], 0)
    merged = data.reshape(-1, *data.shape[2:])
    y = primitive.bind(merged, arrays[1], geometry=geometry)
    return y.reshape(*data.shape[:2], *y.shape[1:]), 0


def _primitive(name, shape, cpu, library, batch):
    primitive = Primitive(name)
    primitive.def_impl(partial(jax.jit(primitive.bind, static_argnames="geometry")))
    primitive.def_abstract_eval(shape)
    mlir.register_lowering(primitive, mlir.lower_fun(library, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(cpu, multiple_results=False), "cpu")
    batching.primitive_batchers[primitive] = partial(batch, primitive)
    return primitive


_convolve = _primitive("convolve", _convolve_shape, _cpu, _library, _merged)
_input_gradient = _primitive(
    "convolve_input_gradient",
    _input_gradient_shape,
    _cpu_input_gradient,
    _library_input_gradient,
    _merged,
)
_weight_gradient = _primitive(
    "convolve_weight_gradient",
    _weight_gradient_shape,
    _cpu_weight_gradient,
    _library_weight_gradient,
    _sequential,
)

ad.defbilinear(
    _convolve,
    lambda g, x, w, *, geometry: input_gradient(g, w, geometry),
    lambda g, x, w, *, geometry: weight_gradient(x, g, geometry),
)
ad.defbilinear(
    _input_gradient,
    lambda x, g, w, *, geometry: convolve(x, w, geometry),
    lambda x, g, w, *, geometry: weight_gradient(x, g, geometry),
)
ad.defbilinear(
    _weight_gradient,
    lambda w, x, g, *, geometry: input_gradient(g, w, geometry),
    lambda w, x, g, *, geometry: convolve(x, w, geometry),
)
