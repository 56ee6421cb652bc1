"""The fast mode: forward the exact integers, backward the float network, where peers fail too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from built import built, node
from jax import lax

import jqnt
from jqnt.errors import ConfigError, UnsupportedError
from jqnt.learn.divergence import output_mse
from jqnt.learn.fast import fast
from jqnt.learn.method import Method
from jqnt.learn.qat import relative_adam

RNG = np.random.default_rng(0)


def network(nodes, shape, weights, rng=RNG):
    model = built(nodes, {"x": ["N", *shape[1:]]}, ["y"], weights)
    graph, params, _ = jqnt.import_onnx(model)
    x = rng.normal(size=shape).astype(np.float32)
    return graph, params, x


CASES = {
    "padded": (
        [node("Conv", "x w b", "y", pads=[1] * 4, strides=[2, 2])],
        (3, 4, 7, 7),
        {"w": (6, 4, 3, 3), "b": (6,)},
    ),
    "pointwise": ([node("Conv", "x w", "y", strides=[2, 2])], (3, 4, 7, 7), {"w": (6, 4, 1, 1)}),
    "depthwise": (
        [node("Conv", "x w", "y", pads=[1] * 4, group=4)],
        (3, 4, 7, 7),
        {"w": (4, 1, 3, 3)},
    ),
    "grouped": (
        [node("Conv", "x w", "y", pads=[1] * 4, group=2)],
        (3, 4, 7, 7),
        {"w": (6, 2, 3, 3)},
    ),
    "dilated": ([node("Conv", "x w", "y", dilations=[2, 1])], (2, 3, 8, 8), {"w": (4, 3, 3, 3)}),
    "line": ([node("Conv", "x w", "y", pads=[1, 0])], (2, 3, 9), {"w": (4, 3, 3)}),
    "gemm": ([node("Gemm", "x w b", "y", transB=1)], (5, 8), {"w": (4, 8), "b": (4,)}),
    "gemm, not transposed": ([node("Gemm", "x w", "y")], (5, 8), {"w": (8, 4)}),
    "matmul": ([node("MatMul", "x w", "y")], (2, 5, 8), {"w": (8, 4)}),
}


def float_library(case, x, w):
    """The product in the library's own operators, in ONNX's layout."""
    nodes = CASES[case][0]
    attrs = {a.name: a for a in nodes[0].attribute}
    if nodes[0].op_type != "Conv":
        turned = "transB" in attrs and attrs["transB"].i
        return x @ (w.T if turned else w)
    rank = x.ndim - 2
    ints = {k: list(a.ints) for k, a in attrs.items()}
    pads = ints.get("pads", [0] * (2 * rank))
    return lax.conv_general_dilated(
        x, w, ints.get("strides", [1] * rank), list(zip(pads[:rank], pads[rank:], strict=True)),
        rhs_dilation=ints.get("dilations", [1] * rank),
        feature_group_count=attrs["group"].i if "group" in attrs else 1,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_forward_is_the_integers_and_backward_the_float_product(case):
    """At W4A8, which peers refuse for convolutions."""
    nodes, shape, sizes = CASES[case]
    values = {name: RNG.normal(size=size) for name, size in sizes.items()}
    graph, params, x = network(nodes, shape, values)
    plan = jqnt.plan(graph, jqnt.scheme("int4", "uint8"))
    theta = jqnt.calibrate(jqnt.lower(graph), params, plan, [{"x": x}])
    qparams = {name: q for name, q in jqnt.bind(theta, plan).items() if name in ("x", "w")}
    apply = fast(graph, plan)
    g = RNG.normal(size=jqnt.lower(graph)(params, {}, {"x": x})["y"].shape).astype(np.float32)

    def product(w, x):
        y = apply({**params, "w": w}, qparams, {"x": x})["y"]
        return jnp.sum(g * y), y

    (_, y), (dw, dx) = jax.jit(jax.value_and_grad(product, argnums=(0, 1), has_aux=True))(
        jnp.asarray(params["w"]), jnp.asarray(x)
    )
    # float64 on the codes: what int8 products and one scaling must give
    given = {"x": x, "w": params["w"]}
    codes = {n: np.asarray(q.codes(jnp.asarray(given[n])), float) for n, q in qparams.items()}
    with jax.enable_x64(True):
        centred = codes["x"] - float(qparams["x"].zero_point)
        total = np.asarray(float_library(case, jnp.asarray(centred), jnp.asarray(codes["w"])))
    axis = 1 if total.ndim > 2 and nodes[0].op_type == "Conv" else total.ndim - 1
    scale = np.asarray(qparams["w"].scale, np.float64) * float(qparams["x"].scale)
    along = [-1 if d == axis else 1 for d in range(total.ndim)]
    expected = total * scale.reshape(along)
    if "b" in values:
        expected = expected + np.asarray(params["b"]).reshape(along)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    _, transpose = jax.vjp(
        lambda x, w: float_library(case, x, w), jnp.asarray(x), jnp.asarray(params["w"])
    )
    want_x, want_w = transpose(jnp.asarray(g))
    np.testing.assert_allclose(dx, want_x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dw, want_w, rtol=1e-4, atol=1e-4)


def residual():
    """A tensor that a product and an Add read; a product of two activations; an odd matrix."""
    nodes = [
        node("Conv", "x stem", "a", pads=[1] * 4),
        node("Relu", "a", "ra"),
        node("Conv", "ra deep", "b", group=4, pads=[1] * 4),
        node("Add", "b ra", "c"),
        node("GlobalAveragePool", "c", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f head", "y", transB=1),
    ]
    sizes = {"stem": (4, 2, 3, 3), "deep": (4, 1, 3, 3), "head": (3, 4)}
    rng = np.random.default_rng(0)
    return network(nodes, (8, 2, 6, 6), {n: rng.normal(size=s) for n, s in sizes.items()}, rng)


def test_a_network_agrees_with_the_exact_simulation_and_trains():
    graph, params, x = residual()
    plan = jqnt.plan(graph, jqnt.scheme("int4", "uint8"))
    theta = jqnt.calibrate(jqnt.lower(graph), params, plan, [{"x": x}])
    qparams = jqnt.bind(theta, plan)
    exact = jqnt.lower(graph)(params, qparams, {"x": x})["y"]
    quick = fast(graph, plan)(params, qparams, {"x": x})["y"]
    # They differ where a value lies on a tie: by a step of an activation, averaged away.
    assert float(jnp.abs(quick - exact).max()) < 0.02 * float(jnp.abs(exact).max())
    # From weights far off: by straight-through gradients alone, near the grid, luck decides.
    rng = np.random.default_rng(1)
    away = {n: w + 0.5 * rng.normal(size=w.shape).astype(w.dtype) for n, w in params.items()}
    method = Method(fast=True, divergence=output_mse, optimizer=relative_adam(2e-2, 0.0, 200))
    trained, after = jqnt.qat(
        graph, away, theta, plan, [{"x": x}], params, steps=200, batch_size=8, method=method,
        key=jax.random.key(0),
    )  # fmt: skip
    wanted = jqnt.lower(graph)(params, {}, {"x": x})["y"]

    def error(p, t):
        return float(
            jnp.mean((jqnt.lower(graph)(p, jqnt.bind(t, plan), {"x": x})["y"] - wanted) ** 2)
        )

    assert error(trained, after) < 0.5 * error(away, theta)
    np.testing.assert_array_equal(after["stem"].scale, theta["stem"].scale)


def test_bits_may_be_traced():
    """One program for every width, in both modes: static types cannot do that."""
    graph, params, x = residual()
    plan = jqnt.plan(graph, jqnt.scheme("int8", "uint8"))
    theta = jqnt.calibrate(jqnt.lower(graph), params, plan, [{"x": x}])
    for apply in (jqnt.lower(graph), fast(graph, plan)):
        traces = []

        @jax.jit
        def run(bits, w, apply=apply, traces=traces):
            traces.append(1)
            ratio = 2.0 ** (8 - bits)
            q = theta["deep"].replace(bits=bits, scale=theta["deep"].scale * ratio)
            qparams = jqnt.bind({**theta, "deep": q}, plan)
            return jnp.sum(apply({**params, "deep": w}, qparams, {"x": x})["y"] ** 2)

        slopes = [
            jax.grad(run, argnums=1)(jnp.float32(b), jnp.asarray(params["deep"])) for b in (8, 4, 3)
        ]
        assert all(np.isfinite(s).all() and np.any(s) for s in slopes)
        assert len(traces) == 1


def test_errors():
    graph, _, _ = residual()
    with pytest.raises(UnsupportedError, match="no product has integers of 8 bits or less"):
        fast(graph, jqnt.Plan({}))
    with pytest.raises(ConfigError, match="no half and no wraps"):
        Method(fast=True, half=True)
