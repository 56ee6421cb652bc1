"""The cost model against closed forms, and its tables against its own exact prices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jqnt.npu as npu
from jqnt.errors import ConfigError
from jqnt.graph.ir import Graph, Node, TensorInfo


def chain(spec, size=16, channels=3):
    """A graph of convolutions (out channels, kernel, stride, group), each with a Relu."""
    nodes, params, name, shape = [], {}, "x", (1, channels, size, size)
    info = {"x": TensorInfo(np.dtype("float32"), shape)}
    for i, (out, kernel, stride, group) in enumerate(spec):
        params[f"w{i}"] = np.zeros((out, shape[1] // group, kernel, kernel), np.float32)
        pad = kernel // 2
        attrs = {"group": group, "strides": (stride, stride), "pads": (pad,) * 4}
        nodes.append(Node("Conv", f"conv{i}", (name, f"w{i}"), (f"c{i}",), attrs, since=17))
        nodes.append(Node("Relu", f"relu{i}", (f"c{i}",), (f"r{i}",), since=17))
        shape = (1, out, -(-shape[2] // stride), -(-shape[3] // stride))
        info[f"c{i}"] = info[f"r{i}"] = TensorInfo(np.dtype("float32"), shape)
        name = f"r{i}"
    return Graph("chain", tuple(nodes), ("x",), (name,), tuple(params), {}, info), params


@pytest.fixture(scope="module")
def small():
    return npu.workload(*chain([(32, 3, 1, 1), (32, 3, 2, 32), (64, 1, 1, 1)]))


def test_groups_hold_the_convolution_and_its_activation(small):
    assert small.groups == ("conv0", "conv1", "conv2")
    assert small.nodes[1] == ("conv1", "relu1")
    assert small.kinds == ("conv", "depthwise", "conv")
    np.testing.assert_array_equal(
        small.dims.macs, [16 * 16 * 27 * 32, 8 * 8 * 9 * 32, 8 * 8 * 32 * 64]
    )
    np.testing.assert_array_equal(small.weight_elements, [27 * 32, 9 * 32, 32 * 64])
    assert small.edges == ((-1, 0), (0, 1), (1, 2), (2, -1))


def test_guide_profile_is_the_roofline_of_the_guide(small):
    device = npu.device("snapdragon-8-gen-3-guide")
    macs = np.asarray(small.dims.macs, np.float64)
    weights = np.asarray(small.weight_elements, np.float64)
    seconds = np.maximum(macs / 18e12, weights / (68.3e9 * 0.732)) + 2e-6
    table = npu.tables(small, device, ["w8a8"])
    np.testing.assert_allclose(table.latency_s[:, 0], seconds, rtol=1e-5)


@pytest.mark.parametrize("name", npu.device_names())
def test_expectation_is_exact_at_every_uniform_plan(small, name):
    device = npu.device(name)
    table = npu.tables(small, device)
    for column, pair in enumerate(table.pairs):
        rows = jax.nn.one_hot(np.full(len(small.groups), column), len(table.pairs))
        expected = npu.expected_latency(table, rows)
        np.testing.assert_allclose(expected, npu.latency(small, pair, device), rtol=1e-6)


def test_bits_matter_on_the_demo_device():
    graph, params = chain([(16, 3, 1, 1), (32, 3, 2, 1), (64, 3, 2, 1), (64, 3, 1, 1)], size=32)
    table = npu.tables(npu.workload(graph, params), npu.device("embedded-demo"))
    fastest, slowest = npu.latency_range(table)
    assert slowest / fastest >= 1.5


def test_int4_on_hexagon_helps_only_where_less_is_moved():
    wide = npu.workload(*chain([(512, 3, 1, 1), (512, 1, 1, 1)], size=7, channels=512))
    table = npu.tables(wide, npu.device("snapdragon-8-gen-3"), ["w8a8", "w4a8"])
    assert table.latency_s[0, 0] == table.latency_s[0, 1]
    assert table.latency_s[1, 0] > table.latency_s[1, 1]


def test_latency_has_gradients_in_the_device(small):
    device = npu.device("snapdragon-8-gen-3")
    gradient = jax.grad(lambda d: npu.latency(small, "w8a8", d))(device)
    assert gradient.dram_bytes_per_s < 0
    assert gradient.dispatch_s == len(small.groups)
    assert jnp.isfinite(gradient.macs_per_s["w8a8"])


def test_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError, match="snapdragon-8-gen-3"):
        npu.device("snapdragon-8-gen3")
    with pytest.raises(ConfigError, match="w8a8"):
        npu.device("snapdragon-8-gen-3").pair("w8a9")
