"""Every kernel against onnxruntime's own, on random shapes, scales and zero points."""

import math

import numpy as np
import pytest

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import UnsupportedError
from jqnt.formats import Granularity, Integer
from jqnt.integer import lower as lower_integers
from jqnt.interop.onnx_qdq import to_qdq
from tests.built import node
from tests.quantized_case import WEIGHT, case, encoded, mismatches, ort_session

U8, S8 = Integer(8), Integer(8, signed=True)


def _normal(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def _check(nodes, inputs, params, tensors, **grids):
    output = nodes[-1].output[0]
    graph, params = case(nodes, inputs, [output], params)
    encodings = encoded(graph, params, inputs, tensors, **grids)
    assert mismatches(graph, params, encodings, inputs) == 0


CONVS = {
    "3x3": ((5, 3, 9, 11), (7, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "1x1": ((2, 40, 6, 6), (24, 40, 1, 1), {}),
    "1x1 strided": ((2, 40, 6, 6), (24, 40, 1, 1), {"strides": [2, 2]}),
    "3x3 wide": ((2, 40, 7, 7), (16, 40, 3, 3), {"pads": [1, 1, 1, 1]}),
    "strided": ((3, 16, 9, 9), (48, 16, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "strided rgb": ((3, 3, 9, 10), (8, 3, 3, 3), {"pads": [0, 1, 1, 0], "strides": [2, 2]}),
    "dilated": ((2, 8, 12, 12), (8, 8, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    "even kernel": ((2, 4, 8, 8), (6, 4, 2, 4), {"auto_pad": "SAME_UPPER"}),
    "depthwise": ((2, 20, 8, 8), (20, 1, 3, 3), {"group": 20, "pads": [1, 1, 1, 1]}),
    "depthwise strided": ((2, 20, 9, 9), (20, 1, 5, 5), {"group": 20, "strides": [2, 2]}),
    "multiplier 2": ((2, 6, 8, 8), (12, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    "grouped": ((2, 12, 8, 8), (18, 4, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "1-D": ((2, 5, 17), (6, 5, 3), {"pads": [1, 1]}),
    "3-D": ((1, 4, 5, 6, 5), (6, 4, 3, 3, 3), {"pads": [1] * 6}),
}


@pytest.mark.parametrize("name", CONVS)
def test_convolutions(name):
    shape, weight, attrs = CONVS[name]
    for seed, grids in enumerate(
        [{}, {"activation": S8}, {"per_channel": False}, {"weight": Integer(4, signed=True)}]
    ):
        inputs = {"x": _normal(seed, *shape)}
        params = {"w": _normal(seed + 9, *weight), "b": _normal(seed + 5, weight[0])}
        nodes = [node("Conv", "x w b", "y", **attrs)]
        _check(nodes, inputs, params, ["y"], seed=seed, **grids)


CLAMPS = {
    "relu": ([node("Relu", "c", "y")], {}),
    "relu6": ([node("Clip", "c low high", "y")], {"low": np.float32(0), "high": np.float32(0.7)}),
    "per channel": (
        [node("Relu", "c", "r"), node("Min", "r top", "y")],
        {"top": np.linspace(0.1, 2, 6).astype(np.float32).reshape(1, 6, 1, 1)},
    ),
    "max, min": (
        [node("Max", "low c", "r"), node("Min", "r top", "y")],
        {"top": _normal(1, 6, 1, 1) ** 2, "low": -(_normal(2, 6, 1, 1) ** 2)},
    ),
}


@pytest.mark.parametrize("name", CLAMPS)
def test_fused_clamps(name):
    nodes, bounds = CLAMPS[name]
    nodes = [node("Conv", "x w", "c", pads=[1] * 4), *nodes]
    for grid in (U8, S8):
        params = {"w": _normal(3, 6, 4, 3, 3, scale=0.2), **bounds}
        _check(nodes, {"x": _normal(4, 2, 4, 8, 8)}, params, ["y"], activation=grid)


@pytest.mark.parametrize("grids", [{}, {"activation": S8}, {"per_channel": False}], ids=str)
@pytest.mark.parametrize("attrs", [{}, {"transB": 1}, {"alpha": 0.7}], ids=str)
def test_gemm(grids, attrs):
    params = {"w": _normal(1, *((30, 50) if "transB" in attrs else (50, 30))), "b": _normal(2, 30)}
    _check([node("Gemm", "x w b", "y", **attrs)], {"x": _normal(3, 40, 50)}, params, ["y"], **grids)


@pytest.mark.parametrize("shape", [(40, 50), (3, 7, 50)])
def test_matmul_with_a_weight(shape):
    for grid in (U8, S8):
        for channels in (True, False):
            params = {"w": _normal(1, 50, 30)}
            nodes = [node("MatMul", "x w", "y")]
            inputs = {"x": _normal(2, *shape)}
            _check(nodes, inputs, params, ["y"], activation=grid, per_channel=channels)


@pytest.mark.parametrize("shapes", [((9, 30), (30, 7)), ((2, 3, 9, 30), (2, 3, 30, 7))])
def test_matmul_of_two_activations(shapes):
    inputs = {"a": _normal(1, *shapes[0]), "b": _normal(2, *shapes[1])}
    for grid in (U8, S8) if WEIGHT.bits == 8 else (U8,):
        _check([node("MatMul", "a b", "y")], inputs, {}, ["y"], activation=grid)


@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize(
    "shapes", [((4, 6, 8, 8), (4, 6, 8, 8)), ((4, 6, 8, 8), (4, 6, 1, 1)), ((64, 64), (64,))]
)
def test_sums_and_products_of_two(op, shapes):
    for seed in range(4):
        ratio = 10.0 ** np.random.default_rng(seed).uniform(-2, 2)
        inputs = {"a": _normal(seed, *shapes[0]), "b": _normal(seed + 50, *shapes[1]) * ratio}
        inputs["b"] = inputs["b"].astype(np.float32)
        for grid in (U8, S8):
            _check([node(op, "a b", "y")], inputs, {}, ["y"], activation=grid, seed=seed)


@pytest.mark.parametrize("op", ["Sub", "Add", "Mul"])
def test_joins_without_an_integer_kernel_of_onnxruntime(op):
    """Sub, and 16 bits: float32 between DequantizeLinear and QuantizeLinear there."""
    inputs = {"a": _normal(1, 4, 6, 8), "b": _normal(2, 6, 8) * 3}
    graph, params = case([node(op, "a b", "y")], inputs, ["y"], {}, opset=21)
    for grid in (U8, Integer(16), Integer(16, signed=True)):
        if grid == U8 and op != "Sub":
            continue
        encodings = encoded(graph, params, inputs, ["y"], activation=grid)
        model = to_qdq(graph, params, encodings)
        (theirs,) = ort_session(model, optimized=False).run(["y"], inputs)
        ours = lower_integers(graph, params, encodings)(inputs)["y"]
        assert (np.asarray(ours) != theirs).sum() == 0


TRANSPOSED = {
    "strided": ((6, 4, 3, 3), {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}),
    "grouped": ((6, 4, 2, 3), {"strides": [3, 2], "group": 2}),
    "dilated": ((6, 4, 2, 3), {"dilations": [1, 2], "pads": [0, 1, 1, 0]}),
    "same": ((6, 4, 4, 4), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name):
    """The sum over taps in int64 numpy, one input pixel after the other."""
    sizes, attrs = TRANSPOSED[name]
    groups = attrs.get("group", 1)
    inputs = {"x": _normal(1, 2, 6, 5, 7)}
    params = {"w": _normal(2, *sizes), "b": _normal(3, sizes[1] * groups)}
    graph, params = case([node("ConvTranspose", "x w b", "y", **attrs)], inputs, ["y"], params)
    encodings = encoded(graph, params, inputs, ["y"], per_channel=groups == 1)
    found = {k: e for k, e in encodings.items() if k != "b"}
    encodings = Encodings(found)
    run = lower_integers(graph, params, encodings)
    ours = np.asarray(run(inputs, integers=True)["y"]).astype(int)
    x, w, y = (encodings[k] for k in "xwy")
    codes = x.quantize(inputs["x"]) - x.zero_point
    taps = w.quantize(np.asarray(params["w"]))
    strides, dilations = attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1])
    full = [
        (n - 1) * s + (k - 1) * d + 1 + extra
        for n, s, k, d, extra in zip(
            codes.shape[2:], strides, sizes[2:], dilations, attrs.get("output_padding", [0, 0]),
            strict=True,
        )
    ]  # fmt: skip
    total = np.zeros((2, sizes[1] * groups, *full), np.int64)
    inner = sizes[0] // groups
    for g in range(groups):
        for i, j in np.ndindex(*codes.shape[2:]):
            for a, b in np.ndindex(*sizes[2:]):
                part = codes[:, g * inner : (g + 1) * inner, i, j]
                place = (i * strides[0] + a * dilations[0], j * strides[1] + b * dilations[1])
                outputs = slice(g * sizes[1], (g + 1) * sizes[1])
                total[:, outputs, *place] += part @ taps[g * inner : (g + 1) * inner, :, a, b]
    pads = attrs.get("pads", [0, 0, 0, 0])
    if "auto_pad" in attrs:
        wanted = [n * s for n, s in zip(codes.shape[2:], strides, strict=True)]
        cut = [f - n for f, n in zip(full, wanted, strict=True)]
        pads = [c // 2 for c in cut] + [c - c // 2 for c in cut]
    total = total[:, :, pads[0] : full[0] - pads[2], pads[1] : full[1] - pads[3]]
    product = np.broadcast_to(x.scale * w.scale, total.shape[1])
    bias = np.rint(np.asarray(params["b"], np.float64) / product).astype(np.int64)
    scale = (product / y.scale)[:, None, None]
    exact = np.rint((total + bias[:, None, None]).astype(np.float32) * scale) + y.zero_point
    np.testing.assert_array_equal(ours, np.clip(exact, 0, 255))


def test_block_scales_that_are_products_stay_whole():
    """LPBQ: int4 codes times multiples of 1 to 16 are the weights of one int32 sum."""
    inputs, weight = {"x": _normal(1, 40, 64)}, _normal(2, 64, 10)
    graph, params = case([node("MatMul", "x w", "y")], inputs, ["y"], {"w": weight})
    multiples = np.random.default_rng(0).integers(1, 17, (4, 10))
    channel = (np.abs(weight).max(0) / 7 / 16).astype(np.float32)
    scale = (multiples.astype(np.float32) * channel).astype(np.float32)
    grid = Encoding(
        Integer(4, signed=True), scale, np.zeros(scale.shape, np.int64), Granularity(0, 16)
    )
    encodings = encoded(graph, params, inputs, ["y"])
    encodings = Encodings({**encodings.tensors, "w": grid})
    ours = lower_integers(graph, params, encodings)(inputs, integers=True)["y"]
    x, y = encodings["x"], encodings["y"]
    rows = x.quantize(inputs["x"]) - x.zero_point
    total = rows @ (grid.quantize(weight) * np.repeat(multiples, 16, 0))
    exact = np.rint(total.astype(np.float32) * ((x.scale * channel) / y.scale)) + y.zero_point
    np.testing.assert_array_equal(np.asarray(ours), np.clip(exact, 0, 255))


def test_nearest_resizing_moves_codes():
    inputs = {"x": _normal(1, 2, 3, 5, 6)}
    nodes = [node("Relu", "x", "r"), node("Resize", "r  scales", "y", mode="nearest")]
    nodes[1].input[:] = ["r", "", "scales"]
    graph, params = case(nodes, inputs, ["y"], {"scales": np.float32([1, 1, 2, 2])})
    encodings = encoded(graph, params, inputs, ["r"])
    ours = lower_integers(graph, params, encodings)(inputs, integers=True)["y"]
    x, r = encodings["x"], encodings["r"]
    kept = r.quantize(np.maximum(x.dequantize(x.quantize(inputs["x"])), 0))
    np.testing.assert_array_equal(np.asarray(ours), kept.repeat(2, 2).repeat(2, 3))


RESIZES = {
    "twice": ((9, 11), {"scales": [1, 1, 2, 2]}),
    "broken ratios": ((9, 11), {"scales": [1, 1, 1.7, 2.3]}),
    "smaller": ((17, 13), {"scales": [1, 1, 0.4, 0.6]}),
    "rows alone": ((8, 6), {"scales": [1, 1, 1.5, 1]}),
    "to sizes": ((6, 7), {"sizes": [2, 3, 9, 20]}),
    "from one pixel": ((1, 5), {"sizes": [2, 3, 4, 1]}),
}


def _resized(size, sizes, mode, **attrs):
    inputs = {"x": _normal(1, 2, 3, *size)}
    reads = "x - scales" if "scales" in sizes else "x - - sizes"
    attrs = {"mode": "linear", "coordinate_transformation_mode": mode, **attrs}
    params = {k: np.asarray(v, np.float32 if k == "scales" else np.int64) for k, v in sizes.items()}
    return (*case([node("Resize", reads, "y", **attrs)], inputs, ["y"], params), inputs)


@pytest.mark.parametrize("mode", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("name", RESIZES)
def test_linear_resizing_of_codes(name, mode):
    if mode == "half_pixel" and "scales" in RESIZES[name][1]:
        mode = "pytorch_half_pixel"
    graph, params, inputs = _resized(*RESIZES[name], mode)
    for grid in (U8, S8):
        own = encoded(graph, params, inputs, ["y"], activation=grid)
        for encodings in (own, Encodings({"x": own["x"], "y": own["x"]})):
            assert mismatches(graph, params, encodings, inputs) == 0
            ours = lower_integers(graph, params, encodings)(inputs)["y"]
            session = ort_session(to_qdq(graph, params, encodings))
            assert (np.asarray(ours) != session.run(["y"], inputs)[0]).sum() == 0


def test_resizing_that_no_kernel_does():
    size, sizes = RESIZES["twice"]
    for found, attrs in (
        ("half_pixel, exclude_outside=1", {"exclude_outside": 1}),
        ("half_pixel_symmetric", {"coordinate_transformation_mode": "half_pixel_symmetric"}),
    ):
        graph, params, inputs = _resized(size, sizes, "half_pixel", **attrs)
        x = encoded(graph, params, inputs, [])["x"]
        with pytest.raises(UnsupportedError, match=f"Resize 'n_y'.*not {found}"):
            lower_integers(graph, params, Encodings({"x": x, "y": x}))
    graph, params, inputs = _resized(*RESIZES["from one pixel"], "pytorch_half_pixel")
    with pytest.raises(UnsupportedError, match=r"Resize 'n_y'.*down to one pixel"):
        lower_integers(graph, params, Encodings({"x": x, "y": x}))(inputs)
    graph, params, inputs = _resized(size, sizes, "half_pixel")
    with pytest.raises(UnsupportedError, match=r"Resize 'n_y'.*share the encodings"):
        lower_integers(graph, params, encoded(graph, params, inputs, ["y"]), "tflite-reference")
    wide = Encoding(Integer(16), np.float32(1e-4), np.int64(2**15))
    with pytest.raises(UnsupportedError, match=r"Resize 'n_y'.*at most 8 bits, not uint16"):
        lower_integers(graph, params, Encodings({"x": wide, "y": wide}), "tflite-reference")
    with pytest.raises(UnsupportedError, match="'xnnpack' has no integer kernel for Resize 'n_y'"):
        lower_integers(graph, params, Encodings({"x": x, "y": x}), "xnnpack")


def test_sum_with_a_constant_on_a_grid():
    inputs = {"a": _normal(1, 4, 6, 8)}
    nodes = [node("Add", "a c", "s"), node("Relu", "s", "y")]
    graph, params = case(nodes, inputs, ["y"], {"c": _normal(2, 6, 8)})
    encodings = encoded(graph, params, inputs, ["y"])
    constant = Encoding(U8, np.float32(0.03), np.int64(120))
    encodings = Encodings({**encodings.tensors, "c": constant})
    assert mismatches(graph, params, encodings, inputs) == 0


def test_sums_on_exact_ties():
    """Scales of eighths put every second sum on a half; FMA order and zero point decide it."""
    codes = np.arange(256)
    a, b = (g.reshape(1, -1).astype(np.float32) for g in np.meshgrid(codes, codes))
    nodes = [node("Add", "a b", "y")]
    for seed in range(8):
        rng = np.random.default_rng(seed)
        sa, sb, sy = (np.float32(rng.integers(1, 9) / 8 * 0.0371) for _ in range(3))
        za, zb, zy = rng.integers(0, 256, 3)
        inputs = {"a": (a - np.float32(za)) * sa, "b": (b - np.float32(zb)) * sb}
        graph, params = case(nodes, inputs, ["y"], {})
        grids = {"a": (sa, za), "b": (sb, zb), "y": (sy, zy)}
        encodings = Encodings({k: Encoding(U8, s, np.int64(z)) for k, (s, z) in grids.items()})
        assert mismatches(graph, params, encodings, inputs) == 0


@pytest.mark.parametrize("shape", [(3, 10, 7, 7), (2, 5, 13, 9), (1, 3, 1, 1)])
def test_global_means(shape):
    for grid in (U8, S8):
        inputs = {"x": _normal(1, *shape)}
        _check([node("GlobalAveragePool", "x", "y")], inputs, {}, ["y"], activation=grid)
        for keep in (0, 1):
            nodes = [node("ReduceMean", "x", "y", axes=[2, 3], keepdims=keep)]
            _check(nodes, inputs, {}, ["y"], activation=grid)


MEANS = {
    "channels": ((3, 10, 7, 6), [1]),
    "one of space": ((3, 10, 7, 6), [-1]),
    "space out of order": ((3, 10, 7, 6), [3, 2]),
    "channel and width": ((3, 10, 7, 6), [1, 3]),
    "all but the batch": ((3, 10, 7, 6), [1, 2, 3]),
    "the batch": ((30, 10, 4), [0]),
    "everything": ((3, 10, 7, 6), []),
    "tokens": ((4, 50, 24), [1]),
    "features": ((4, 50, 24), [2]),
    "of a matrix": ((40, 24), [1]),
    "volume": ((2, 5, 4, 6, 3), [2, 4]),
}


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("name", MEANS)
def test_means_over_any_axes(name, keep):
    """onnxruntime's global pool over rows of what is reduced."""
    shape, axes = MEANS[name]
    for seed, grid in enumerate((U8, S8)):
        inputs = {"x": _normal(seed, *shape) + np.float32(0.2)}
        given = {"axes": axes} if axes else {}
        nodes = [node("ReduceMean", "x", "m", keepdims=keep, **given), node("Relu", "m", "y")]
        _check(nodes, inputs, {}, ["y"], activation=grid, seed=seed)


def test_mean_over_axes_that_are_an_input():
    inputs, axes = {"x": _normal(1, 3, 10, 7, 6)}, {"axes": np.int64([1, -1])}
    graph, params = case([node("ReduceMean", "x axes", "y")], inputs, ["y"], axes, opset=18)
    encodings = encoded(graph, params, inputs, ["y"])
    assert mismatches(graph, params, encodings, inputs) == 0


def test_means_that_no_kernel_computes():
    inputs = {"x": _normal(1, 2, 3, 4)}
    graph, params = case([node("ReduceMean", "x", "y", axes=[1])], inputs, ["y"], {})
    encodings = encoded(graph, params, inputs, ["y"])
    with pytest.raises(UnsupportedError, match=r"ReduceMean 'n_y' \(dyadic\).*no such kernel"):
        lower_integers(graph, params, encodings, "dyadic")
    nothing = [node("ReduceMean", "x", "y", noop_with_empty_axes=1)]
    graph, params = case(nothing, inputs, ["y"], {}, opset=18)
    with pytest.raises(UnsupportedError, match="no integer kernel for ReduceMean 'n_y'"):
        lower_integers(graph, params, encodings)
    inputs = {"x": np.zeros((2, 2**15), np.float32)}
    graph, params = case([node("ReduceMean", "x", "y", axes=[1])], inputs, ["y"], {})
    wide = Encoding(Integer(16), np.float32(0.1), np.int64(0))
    with pytest.raises(UnsupportedError, match=r"'n_y'.*32768 codes of uint16 overflows"):
        lower_integers(graph, params, Encodings({"x": wide, "y": wide}))(inputs)


@pytest.mark.parametrize(
    "attrs",
    [
        {"kernel_shape": [3, 3]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [2, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    ],
    ids=str,
)
def test_average_pool(attrs):
    for grid in (U8, S8):
        nodes = [node("AveragePool", "x", "y", **attrs)]
        _check(nodes, {"x": _normal(1, 3, 5, 9, 8)}, {}, ["y"], activation=grid)


def test_concat():
    inputs = {"a": _normal(1, 2, 3, 5, 5), "b": _normal(2, 2, 4, 5, 5), "c": _normal(3, 2, 1, 5, 5)}
    for grid in (U8, S8):
        _check([node("Concat", "a b c", "y", axis=1)], inputs, {}, ["y"], activation=grid)


@pytest.mark.parametrize("op", ["LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "Relu"])
def test_functions_of_one_code(op):
    for grid in (U8, S8):
        nodes = [node(op, "x", "y")]
        _check(nodes, {"x": _normal(1, 3, 5, 9, 8, scale=2)}, {}, ["y"], activation=grid)


def _erf(x):
    return np.vectorize(math.erf)(x)


TABLES = {
    "Gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "Exp": np.exp,
    "Erf": _erf,
    "Softplus": lambda x: np.log1p(np.exp(x)),
    "Elu": lambda x: np.where(x > 0, x, np.expm1(x)),
}


@pytest.mark.parametrize("arithmetic", ["onnxruntime", "dyadic", "tflite-reference"])
@pytest.mark.parametrize("op", TABLES)
def test_tables_of_functions(op, arithmetic):
    """Every code of 8 bits, and of 16 some, where float32 cannot tell all halves, in float64."""
    for grid in (U8, S8, Integer(16)):
        low, high = grid.limits
        codes = np.arange(low, high + 1, max((high - low) // 997, 1))
        x = Encoding(grid, np.float32(8 / (high - low)), np.int64((low + high) // 2))
        inputs = {"x": x.dequantize(codes)}
        graph, params = case([node(op, "x", "y")], inputs, ["y"], {}, opset=20)
        exact = TABLES[op](inputs["x"].astype(np.float64))
        top = 1.01 * float(exact.max() - exact.min()) / (high - low)
        y = Encoding(grid, np.float32(top), np.int64(round(low - float(exact.min()) / top)))
        encodings = Encodings({"x": x, "y": y})
        ours = lower_integers(graph, params, encodings, arithmetic)(inputs, integers=True)["y"]
        wanted = np.clip(np.rint(exact / np.float64(y.scale)) + y.zero_point, low, high)
        off = np.abs(np.asarray(ours).astype(int) - wanted)
        assert off.max() <= 1 and (off > 0).mean() <= (0 if grid.bits == 8 else 0.02)


@pytest.mark.parametrize("length", [5, 100, 1001])
def test_softmax(length):
    """Scale 1/256 as converters give it, and finer and coarser ones."""
    inputs = {"x": _normal(1, 40, length, scale=3)}
    graph, params = case([node("Softmax", "x", "y", axis=-1)], inputs, ["y"], {})
    for grid in (U8, S8):
        for scale in (2.0**-8, 0.0031, 0.011):
            encodings = encoded(graph, params, inputs, [], activation=grid)
            y = Encoding(grid, np.float32(scale), np.int64(grid.limits[0]))
            encodings = Encodings({**encodings.tensors, "y": y})
            assert mismatches(graph, params, encodings, inputs) == 0


def test_softmax_on_a_fine_grid():
    """So fine that the last bit of the table's entries moves one value in 10^4 or 10^5."""
    grid = Encoding(U8, np.float32(0.012160555), np.int64(125))
    inputs = {"x": _normal(1, 400, 319, scale=90) * grid.scale}
    graph, params = case([node("Softmax", "x", "y", axis=-1)], inputs, ["y"], {})
    for scale in (4.957293e-05, 3.1e-05):
        y = Encoding(U8, np.float32(scale), np.int64(20))
        assert mismatches(graph, params, Encodings({"x": grid, "y": y}), inputs) == 0


MOVES = {
    "slice": node("Slice", "x starts ends axes steps", "y"),
    "pad": node("Pad", "x pads", "y"),
    "transpose": node("Transpose", "x", "y", perm=[0, 2, 3, 1]),
    "reshape": node("Reshape", "x shape", "y"),
    "flatten": node("Flatten", "x", "y"),
    "gather": node("Gather", "x indices", "y", axis=2),
    "reflect": node("Pad", "x pads", "y", mode="reflect"),
    "tile": node("Tile", "x repeats", "y"),
    "unsqueeze": node("Unsqueeze", "x two", "y"),
    "spread": node("SpaceToDepth", "x", "y", blocksize=1),
    "max pool": node("MaxPool", "x", "y", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
}
INTEGERS = {
    "starts": [0, 1],
    "ends": [9, 7],
    "axes": [2, 3],
    "steps": [2, 2],
    "pads": [0, 1, 0, 2, 0, 0, 1, 1],
    "shape": [0, -1],
    "indices": [[4, 0], [2, -1]],
    "repeats": [1, 2, 1, 3],
    "two": [2],
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("own", [True, False], ids=["own grid", "shared grid"])
def test_moves(name, own):
    inputs = {"x": _normal(1, 3, 5, 9, 8)}
    used = {k: np.asarray(v, np.int64) for k, v in INTEGERS.items() if k in MOVES[name].input}
    for grid in (U8, S8):
        graph, params = case([MOVES[name]], inputs, ["y"], used)
        encodings = encoded(graph, params, inputs, ["y"] if own else [], activation=grid)
        assert mismatches(graph, params, encodings, inputs) == 0
