"""Encodings: arithmetic against the quantizers, exact round trip, refusals that name the key."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from built import built, node

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError
from jqnt.formats import FP16, Granularity, Integer
from jqnt.freeze import freeze
from jqnt.graph.lower import lower
from jqnt.graph.onnx_import import import_onnx
from jqnt.learn.calibrate import calibrate
from jqnt.lpbq import factor
from jqnt.placement import plan
from jqnt.plan import bind
from jqnt.quantizers import Affine
from jqnt.rules import Rule
from jqnt.thaw import thaw

RNG = np.random.default_rng(0)


def sample() -> Encodings:
    per_channel = RNG.uniform(0.01, 0.1, 6).astype(np.float32)
    return Encodings(
        {
            "x": Encoding(Integer(8), np.float32(0.1), np.int64(128)),
            "/conv/w": Encoding(
                Integer(4, signed=True), per_channel, np.zeros(6, np.int64), Granularity(0)
            ),
            "blocks": Encoding(
                Integer(4, signed=True, strict=True),
                RNG.uniform(0.1, 1, (6, 2)).astype(np.float32),
                np.zeros((6, 2), np.int64),
                Granularity(1, block=4),
            ),
            "y": Encoding(FP16),
        },
        {"bias": np.asarray([2**30 + 1, -5], np.int64)},
    )


def test_saving_and_loading_is_exact(tmp_path):
    before = sample()
    before.save(tmp_path / "e.json")
    after = Encodings.load(tmp_path / "e.json")
    assert list(before) == list(after)
    for name in before:
        a, b = before[name], after[name]
        assert (a.format, a.granularity) == (b.format, b.granularity)
        if a.scale is not None:
            np.testing.assert_array_equal(a.scale, b.scale)
            np.testing.assert_array_equal(a.zero_point, b.zero_point)
    np.testing.assert_array_equal(before.codes["bias"], after.codes["bias"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.json", "e.npz"]


RULES = [
    ("int8", {}), ("uint4", {}), ("int1", {}), ("int24", {"granularity": "tensor"}),
    ("int4", {"granularity": 2}), ("int4", {"granularity": 2, "scale_format": "int4"}),
    ("int8", {"scale_format": "power_of_two"}),
    ("int4", {"granularity": Granularity((0, 1), (2, 3))}), ("int2_shifted", {}),
    (Integer(8, signed=True, strict=True), {}), ("float16", {}), ("bfloat16", {}),
    ("float8_e4m3fn", {}), ("float8_e5m2", {"granularity": "tensor"}), ("float6_e3m2fn", {}),
    ("float4_e2m1fn", {"granularity": 4}), ("float7_e3m3", {}), ("mxint8", {}), ("mxfp8_e4m3", {}),
    ("mxfp8_e5m2", {}), ("mxfp6_e2m3", {}), ("mxfp6_e3m2", {}), ("mxfp4_e2m1", {}), ("nvfp4", {}),
]  # fmt: skip


@pytest.mark.parametrize(("fmt", "more"), RULES)
def test_every_format_comes_back_from_its_file_exactly(tmp_path, fmt, more):
    """From a rule to the file and back, the simulation keeps every bit of its output."""
    w = RNG.normal(size=(6, 40)).astype(np.float32)
    graph, params, _ = import_onnx(
        built([node("Gemm", "x w", "y", transB=1)], {"x": ["N", 40]}, ["y"], {"w": w})
    )
    laid = plan(graph, (Rule(role="weight", format=fmt, **more),), target="simulation")
    x = {"x": RNG.normal(size=(5, 40)).astype(np.float32)}
    qparams = bind(calibrate(lower(graph), params, laid, [x]), laid)
    params, encodings = freeze(graph, params, qparams)
    encodings.save(tmp_path / "e.json")
    read = Encodings.load(tmp_path / "e.json")
    for name, encoding in encodings.items():
        assert (read[name].format, read[name].granularity) == (
            encoding.format, encoding.granularity,
        )  # fmt: skip
        for a, b in (
            (encoding.scale, read[name].scale),
            (encoding.zero_point, read[name].zero_point),
        ):
            assert (a is None) == (b is None)
            np.testing.assert_array_equal(a, b)
            assert a is None or a.dtype == b.dtype
    before = lower(graph)({"w": w}, qparams, x)["y"]
    after = lower(graph)(params, thaw(read), x)["y"]
    np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
    if more.get("scale_format") == "int4":
        channel, multiple = factor(read["w"].scale, 0, "w")
        assert multiple.min() >= 1 and multiple.max() == 16 and channel.shape == (6, 1)
        np.testing.assert_array_equal(channel * multiple.astype(np.float32), read["w"].scale)


def test_codes_equal_those_of_the_quantizer():
    encodings = sample()
    for name, shape in [("x", (7, 3)), ("/conv/w", (6, 5, 2)), ("blocks", (6, 7))]:
        e = encodings[name]
        x = RNG.normal(size=shape).astype(np.float32)
        q = Affine(
            jnp.asarray(e.scale),
            jnp.asarray(e.zero_point, jnp.float32),
            jnp.float32(e.format.bits),
            signed=e.format.signed,
            strict=e.format.strict,
            granularity=e.granularity,
        )
        codes = e.quantize(x)
        np.testing.assert_array_equal(codes, np.asarray(q.codes(jnp.asarray(x))))
        np.testing.assert_array_equal(e.dequantize(codes), np.asarray(q(jnp.asarray(x))))


def test_symmetry_is_seen():
    encodings = sample()
    assert [encodings[n].symmetric for n in ("x", "/conv/w", "y")] == [True, True, False]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Encoding(Integer(8)),
        lambda: Encoding(Integer(8), np.float32(0), np.int64(0)),
        lambda: Encoding(Integer(8), np.float32(np.nan), np.int64(0)),
        lambda: Encoding(Integer(8), np.ones(3, np.float32), np.zeros(2, np.int64), Granularity(0)),
        lambda: Encoding(FP16).quantize(np.ones(3)),
    ],
)
def test_contradictions_are_refused(make):
    with pytest.raises(DataError):
        make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not an encodings file"),
        ("[]", "not an encodings file"),
        ('{"jqnt_encodings": 99, "tensors": {}}', "version 99"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, text, message):
    path = tmp_path / "e.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        Encodings.load(path)


def test_a_malformed_entry_is_named(tmp_path):
    path = tmp_path / "e.json"
    sample().save(path)
    document = json.loads(path.read_text())
    document["tensors"]["/conv/w"]["format"]["kind"] = "ternary"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"/conv/w.*ternary"):
        Encodings.load(path)


def test_a_missing_tensor_suggests_the_nearest():
    with pytest.raises(KeyError, match="did you mean '/conv/w'"):
        sample()["conv/w"]
