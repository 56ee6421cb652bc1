"""Channel counts as variables: the scaled workload is that of the network built with them."""

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqnt.npu as npu
from jqnt.errors import ConfigError
from jqnt.graph.ir import Graph, Node, TensorInfo
from jqnt.npu.channels import free_widths, scaled_channels
from jqnt.npu.smooth import RELAXED


def network(stem, inner, branch, size=16):
    """A stem, a residual block with a depthwise convolution, two branches joined, a classifier."""
    nodes, params, shapes = [], {}, {"x": (1, 3, size, size)}

    def add(op, inputs, output, shape, **attrs):
        nodes.append(Node(op, output, tuple(inputs), (output,), attrs, since=17))
        shapes[output] = shape

    def conv(name, source, out, kernel=3, group=1):
        height = shapes[source][2]
        params[f"{name}.w"] = np.zeros((out, shapes[source][1] // group, kernel, kernel), "f4")
        params[f"{name}.b"] = np.zeros(out, "f4")
        pads = (kernel // 2,) * 4
        add("Conv", (source, f"{name}.w", f"{name}.b"), name, (1, out, height, height),
            group=group, pads=pads, kernel_shape=(kernel, kernel))  # fmt: skip

    def relu(source):
        add("Relu", (source,), f"{source}.relu", shapes[source])

    conv("stem", "x", stem)
    relu("stem")
    conv("expand", "stem.relu", inner, 1)
    relu("expand")
    conv("depthwise", "expand.relu", inner, 3, inner)
    conv("project", "depthwise", stem, 1)
    add("Add", ("project", "stem.relu"), "sum", shapes["stem"])
    conv("left", "sum", branch)
    conv("right", "sum", 2 * branch, 1)
    add("Concat", ("left", "right"), "joined", (1, 3 * branch, size, size), axis=1)
    add("MaxPool", ("joined",), "pooled", (1, 3 * branch, size // 2, size // 2),
        kernel_shape=(2, 2), strides=(2, 2))  # fmt: skip
    conv("last", "pooled", 24, 1)
    add("GlobalAveragePool", ("last",), "mean", (1, 24, 1, 1))
    add("Flatten", ("mean",), "flat", (1, 24))
    params["fc.w"] = np.zeros((24, 10), "f4")
    add("Gemm", ("flat", "fc.w"), "y", (1, 10))
    info = {name: TensorInfo(np.dtype("f4"), shape) for name, shape in shapes.items()}
    graph = Graph("widths", tuple(nodes), ("x",), ("y",), tuple(params), {}, info)
    return npu.workload(graph, params)


@pytest.fixture(scope="module")
def work():
    return network(32, 64, 16)


def test_what_must_agree_shares_a_width(work):
    widths = free_widths(work)
    assert dict(zip(widths.names, widths.channels, strict=True)) == {
        "stem": 32, "expand": 64, "left": 16, "right": 32, "last": 24
    }  # fmt: skip
    of = dict(zip(work.groups, widths.of_group, strict=True))
    assert of["project"] == of["stem"]
    assert of["depthwise"] == of["expand"]
    assert of["joined"] == of["pooled"] == -2
    assert of["y"] == -1


def test_scaled_is_built(work):
    factors = {"stem": 1.5, "expand": 1.25, "left": 0.5, "right": 0.5}
    scaled = scaled_channels(work, free_widths(work), factors)
    built = network(48, 80, 8)
    assert scaled.groups == built.groups
    for found, want in zip(jax.tree.leaves(scaled), jax.tree.leaves(built), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-6)
    for name in ("snapdragon-8-gen-3", "embedded-demo"):
        device = npu.device(name)
        np.testing.assert_allclose(
            npu.latency(scaled, "w8a8", device), npu.latency(built, "w8a8", device), rtol=1e-6
        )
    same = scaled_channels(work, free_widths(work), {})
    for field in fields(work):
        if not isinstance(getattr(work, field.name), tuple | str):
            for a, b in zip(jax.tree.leaves(getattr(same, field.name)),
                            jax.tree.leaves(getattr(work, field.name)), strict=True):  # fmt: skip
                np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=field.name)


def test_slopes_in_the_widths_are_differences_of_the_relaxed_form(work):
    widths = free_widths(work)
    device = replace(npu.device("embedded-demo"), vtcm_bytes=20_000.0)

    @jax.jit
    def seconds(factors):
        return npu.latency(
            scaled_channels(work, widths, factors), "w8a8", device, calculus=RELAXED
        )  # fmt: skip

    at = jnp.asarray([1.013, 0.987, 1.021, 0.991, 1.017])
    slope = jax.grad(seconds)(at)
    for i in range(len(widths.names)):
        step = jnp.zeros(len(widths.names)).at[i].set(1e-3)
        difference = (seconds(at + step) - seconds(at - step)) / 2e-3
        np.testing.assert_allclose(slope[i], difference, rtol=2e-2, atol=2e-2 * seconds(at))


def test_an_unknown_width_is_one_line(work):
    with pytest.raises(ConfigError, match="stem"):
        scaled_channels(work, free_widths(work), {"stm": 2.0})
