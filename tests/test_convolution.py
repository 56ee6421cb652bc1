"""Convolution and its gradients: values against jax's own, the layout that XLA gets to see."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jqnt.ops.convolution import Geometry, convolve, input_gradient, weight_gradient
from jqnt.ops.window import Window

RNG = np.random.default_rng(2)

CASES = {  # kernel, strides, dilations, pads, groups, channels in, out
    "3x3": ((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 1, 4, 6),
    "strided": ((3, 3), (2, 2), (1, 1), ((0, 1), (1, 2)), 1, 4, 6),
    "strided, four columns at once": ((3, 3), (1, 2), (2, 1), ((2, 2), (1, 1)), 1, 4, 6),
    "two columns at once": ((3, 5), (1, 1), (1, 1), ((1, 1), (2, 2)), 1, 12, 16),
    "grouped, dilated": ((3, 2), (2, 1), (2, 1), ((0, 1), (1, 2)), 2, 4, 6),
    "depthwise": ((3, 3), (2, 2), (1, 1), ((1, 0), (1, 1)), 4, 4, 4),
    "depthwise, dilated": ((3, 3), (1, 1), (2, 2), ((2, 2), (2, 2)), 4, 4, 4),
    "two outputs a channel": ((5, 5), (2, 2), (1, 1), ((2, 2), (2, 2)), 4, 4, 8),
    "pointwise": ((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), 1, 4, 6),
    "pointwise, strided": ((1, 1), (2, 2), (1, 1), ((0, 0), (0, 0)), 1, 4, 6),
    "pointwise, padded": ((1, 1), (2, 2), (1, 1), ((1, 1), (0, 0)), 1, 4, 6),
    "one axis": ((3,), (2,), (1,), ((1, 1),), 1, 4, 6),
    "three axes": ((2, 3, 2), (1, 2, 1), (1, 1, 2), ((1, 1), (0, 0), (1, 0)), 1, 4, 6),
}


def make(case):
    kernel, strides, dilations, pads, groups, channels, outputs = CASES[case]
    view = Window(kernel, strides, dilations, pads)
    sizes = (9, 8, 7)[: len(kernel)]
    out = tuple(
        (n + sum(p) - span) // s + 1
        for n, p, span, s in zip(sizes, pads, view.spans, strides, strict=True)
    )
    x, w, g = (
        jnp.asarray(RNG.normal(size=shape), jnp.float32)
        for shape in (
            (2, *sizes, channels),
            (outputs, channels // groups, *kernel),
            (2, *out, outputs),
        )
    )
    return Geometry(sizes, view, out, groups), x, w, g


def plain(x, w, geometry):
    """jax's convolution, differentiated by jax."""
    spatial = "DHW"[: x.ndim - 2]
    return lax.conv_general_dilated(
        x,
        w,
        geometry.view.strides,
        geometry.view.pads,
        rhs_dilation=geometry.view.dilations,
        dimension_numbers=(f"N{spatial}C", f"OI{spatial}", f"N{spatial}C"),
        feature_group_count=geometry.groups,
    )


def close(found, expected, tolerance=1e-4):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "kernel, strides, dilations, pads, sizes",
    [
        ((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), (17, 5)),
        ((5, 3), (2, 1), (1, 1), ((2, 2), (0, 0)), (33, 6)),
        ((3, 3), (2, 2), (1, 1), ((0, 1), (1, 0)), (16, 16)),
        ((3, 3), (1, 2), (4, 3), ((4, 4), (3, 3)), (4, 2)),  # taps that see the border alone
        ((3, 1), (1, 1), (1, 1), ((9, 1), (-1, -2)), (15, 9)),
        ((9,), (1,), (1,), ((4, 4),), (31,)),
        ((11, 9), (1, 1), (1, 1), ((5, 5), (4, 4)), (12, 10)),
    ],
)
def test_depthwise_weight_gradients_of_any_number_of_rows(kernel, strides, dilations, pads, sizes):
    view = Window(kernel, strides, dilations, pads)
    x = jnp.asarray(RNG.normal(size=(2, *sizes, 6)), jnp.float32)
    w = jnp.zeros((6, 1, *kernel))
    out = jax.eval_shape(lambda x: plain(x, w, Geometry(sizes, view, (), 6)), x).shape[1:-1]
    geometry = Geometry(sizes, view, out, 6)
    g = jnp.asarray(RNG.normal(size=(2, *out, 6)), jnp.float32)
    (expected,) = jax.vjp(lambda w: plain(x, w, geometry), w)[1](g)
    close(weight_gradient(x, g, geometry), expected)


@pytest.mark.parametrize("case", ["depthwise", "pointwise"])
def test_gradients_store_no_copy_of_the_data_per_tap(case):
    """Scratch of nine times the data, kept from forward to backward, was most of a step's."""
    kernel, pads, groups = {
        "depthwise": ((3, 3), ((1, 1), (1, 1)), 64),
        "pointwise": ((1, 1), ((0, 0), (0, 0)), 1),
    }[case]
    view = Window(kernel, (1, 1), (1, 1), pads)
    shape = Geometry((56, 56), view, (56, 56), groups)
    x = jax.ShapeDtypeStruct((8, 56, 56, 64), jnp.float32)
    compiled = jax.jit(weight_gradient, static_argnums=2).lower(x, x, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2.5 * x.size * 4


@pytest.mark.parametrize("case", CASES)
def test_the_triple_is_right(case):
    geometry, x, w, g = make(case)
    y, back = jax.vjp(lambda x, w: plain(x, w, geometry), x, w)
    dx, dw = back(g)
    close(jax.jit(convolve, static_argnums=2)(x, w, geometry), y)
    close(input_gradient(g, w, geometry), dx)
    close(weight_gradient(x, g, geometry), dw)


@pytest.mark.parametrize("case", ["strided", "grouped, dilated", "depthwise", "pointwise, strided"])
def test_every_transformation(case):
    geometry, x, w, _ = make(case)

    def loss(conv):
        return lambda x, w: jnp.sum(jnp.sin(conv(x, w, geometry)))

    def hessian_vector(f):
        return jax.jvp(jax.grad(f, (0, 1)), (x, w), (x * 0.5, w * 0.3))

    def second(f):
        return jax.grad(lambda w: sum(map(jnp.sum, jax.grad(f, (0, 1))(x, jnp.cos(w)))))(w)

    def over(axes):
        xs = jnp.stack([x, 2 * x, x + 1], 1) if axes[0] is not None else x
        ws = jnp.stack([w, 2 * w, w + 1], 2) if axes[1] is not None else w
        return lambda f: jax.vmap(jax.grad(f, (0, 1)), axes)(xs, ws)

    for transform in (hessian_vector, second, over((1, None)), over((None, 2)), over((1, 2))):
        found, expected = (
            jax.jit(lambda conv=conv, t=transform: t(loss(conv)))() for conv in (convolve, plain)
        )
        close(found, expected, 1e-3)


@pytest.mark.parametrize("case", ["3x3", "strided", "depthwise", "grouped, dilated", "pointwise"])
def test_only_the_canonical_layout_reaches_the_cpu(case):
    """A training step in a scan: XLA canonicalizes the layouts of the entry computation only, and
    others are 25 to 50 times slower there; depthwise ones must not be grouped convolutions."""
    if jax.default_backend() != "cpu":
        pytest.skip("layouts are the library's elsewhere")
    geometry, x, w, _ = make(case)

    def loss(w, x):
        return jnp.sum(convolve(jnp.sin(convolve(x, w, geometry)), w, deeper) ** 2)

    deeper = geometry
    if geometry.out != geometry.sizes or x.shape[-1] != w.shape[0]:

        def loss(w, x):
            return jnp.sum(convolve(jnp.sin(x * jnp.sum(w)), w, geometry) ** 2)

    def steps(w, x):
        return lax.scan(lambda w, _: (w - 0.1 * jax.grad(loss)(w, x), None), w, length=3)[0]

    text = jax.jit(steps).lower(w, x).compile().as_text()
    layouts = re.findall(r"dim_labels=([\w>-]+)", text)
    assert set(layouts) <= {"b01f_01io->b01f"}
    expected = {"depthwise": 0, "pointwise": 0}.get(case)
    assert (len(layouts) == 0) == (expected == 0)


def test_half_precision_accumulates_in_single():
    geometry, x, w, _ = make("depthwise")
    half = convolve(x.astype(jnp.float16), w.astype(jnp.float16), geometry)
    assert half.dtype == jnp.float16
    np.testing.assert_allclose(half, plain(x, w, geometry), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("channels", "outputs", "width", "columns"),
    [(16, 16, 32, 2), (3, 16, 32, 4), (3, 16, 30, 2), (16, 16, 31, 1), (32, 32, 32, 1)],
)
def test_few_channels_take_neighbouring_columns_together(channels, outputs, width, columns):
    view = Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    geometry = Geometry((8, width), view, (8, width), 1)
    x, w = jnp.zeros((1, 8, width, channels)), jnp.zeros((outputs, channels, 3, 3))
    traced = jax.jit(convolve, static_argnums=2).trace(x, w, geometry)
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    (result,) = re.findall(r"stablehlo.convolution.*-> tensor<([0-9x]+)xf32>", text)
    assert result == f"1x8x{width // columns}x{outputs * columns}"
