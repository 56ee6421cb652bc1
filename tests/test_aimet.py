"""AIMET's encodings files: the documented words, round trips, and files that are wrong."""

import json

import numpy as np
import pytest

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import ConfigError, DataError, UnsupportedError
from jqnt.formats import BF16, FP16, Granularity, Integer
from jqnt.interop.aimet import VERSIONS, to_aimet
from jqnt.interop.aimet_load import load_encodings
from jqnt.interop.aimet_read import from_aimet
from jqnt.placement import plan
from tests.built import node
from tests.quantized_case import case

S8, U8, S4 = Integer(8, signed=True), Integer(8), Integer(4, signed=True)


def _grid(fmt, scale, zero_point, granularity=None):
    scale = np.float32(scale)
    zero_point = np.broadcast_to(np.asarray(zero_point, np.int64), scale.shape)
    return Encoding(fmt, scale, zero_point, granularity or Granularity())


def _model():
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(2, 3, 1, 1)).astype(np.float32)}
    nodes = [
        node("Conv", "x w b", "c"),
        node("Relu", "c", "r"),
        node("Flatten", "r", "f"),
        node("MatMul", "f m", "y"),
    ]
    params = {"w": rng.normal(size=(2, 3, 1, 1)), "b": rng.normal(size=2)}
    params["m"] = rng.normal(size=(2, 5))
    graph, params = case(nodes, inputs, ["y"], params)
    return graph, params


ENCODINGS = Encodings(
    {
        "x": _grid(U8, 0.01, 100),
        "r": _grid(Integer(16), 0.001, 7),
        "y": Encoding(FP16),
        "w": _grid(S8, [0.002, 0.003], 0, Granularity(0)),
        "b": _grid(Integer(32, signed=True), [2e-5, 3e-5], 0, Granularity(0)),
        "m": _grid(S4, [0.1, 0.2, 0.3, 0.4, 0.5], 0, Granularity(1)),
    }
)


def _equal(a: Encoding, b: Encoding) -> bool:
    if a.format != b.format or a.granularity != b.granularity:
        return False
    return a.scale is None or bool(
        np.array_equal(a.scale, b.scale) and np.array_equal(a.zero_point, b.zero_point)
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_a_round_trip_through_json(version):
    graph, params = _model()
    text = json.dumps(to_aimet(graph, params, ENCODINGS, version=version))
    back = from_aimet(json.loads(text), graph, params)
    expected = {n: e for n, e in ENCODINGS.items() if version < "2" or e.format != FP16}
    assert set(back) == set(expected)
    for name, encoding in expected.items():
        assert _equal(back[name], encoding), (name, back[name], encoding)


def test_the_words_of_0_6_1():
    document = to_aimet(*_model(), ENCODINGS, version="0.6.1")
    (x,) = document["activation_encodings"]["x"]
    assert x["bitwidth"] == 8 and x["dtype"] == "int" and x["offset"] == -100
    assert x["is_symmetric"] == "False"
    assert x["min"] == pytest.approx(-1.0) and x["max"] == pytest.approx(1.55)
    first, second = document["param_encodings"]["w"]
    assert first["offset"] == second["offset"] == -128
    assert first["is_symmetric"] == "True"
    assert first["min"] == pytest.approx(-0.256) and first["max"] == pytest.approx(0.254)
    assert document["activation_encodings"]["y"] == [{"bitwidth": 16, "dtype": "float"}]
    assert document["quantizer_args"]["is_symmetric"] == "True"


def test_the_words_of_1_0_0():
    document = to_aimet(*_model(), ENCODINGS)
    entries = {e["name"]: e for e in document["activation_encodings"]}
    assert entries["x"] == {
        "name": "x",
        "enc_type": "PER_TENSOR",
        "dtype": "INT",
        "bw": 8,
        "is_sym": False,
        "scale": [float(np.float32(0.01))],
        "offset": [-100],
    }
    assert entries["y"] == {"name": "y", "enc_type": "PER_TENSOR", "dtype": "FLOAT", "bw": 16}
    weights = {e["name"]: e for e in document["param_encodings"]}
    assert weights["w"]["enc_type"] == "PER_CHANNEL" and weights["w"]["offset"] == [-128, -128]
    assert weights["w"]["is_sym"] is True


def test_the_words_of_2_0_0():
    document = to_aimet(*_model(), ENCODINGS, version="2.0.0")
    entries = {e["name"]: e for e in document["encodings"]}
    assert entries["x"] == {
        "name": "x",
        "output_dtype": "uint8",
        "y_scale": float(np.float32(0.01)),
        "y_zero_point": 100,
    }
    assert entries["w"]["axis"] == 0 and "y_zero_point" not in entries["w"]
    assert entries["m"]["axis"] == 1 and entries["m"]["output_dtype"] == "int4"


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0", "2.1.0"])
def test_blocks_run_channel_by_channel(version):
    graph, params = _model()
    scale = np.arange(1, 11, dtype=np.float32).reshape(2, 5) / 100
    blocks = Encodings({"m": _grid(S4, scale, 0, Granularity(0, 1))})
    document = to_aimet(graph, params, blocks, version=version)
    if version == "1.0.0":
        (entry,) = document["param_encodings"]
        assert entry["enc_type"] == "PER_BLOCK" and entry["block_size"] == 1
        np.testing.assert_array_equal(np.float32(entry["scale"]), scale.T.reshape(-1))
    assert _equal(from_aimet(document, graph, params)["m"], blocks["m"])


def test_lpbq_is_a_product():
    graph, params = _model()
    entry = {
        "name": "m",
        "enc_type": "LPBQ",
        "dtype": "INT",
        "bw": 8,
        "compressed_bw": 4,
        "is_sym": True,
        "block_size": 1,
        "scale": [0.1, 0.2, 0.3, 0.4, 0.5],
        "offset": [-128] * 5,
        "per_block_int_scale": list(range(1, 11)),
    }
    document = {"version": "1.0.0", "activation_encodings": [], "param_encodings": [entry]}
    found = from_aimet(document, graph, params)["m"]
    expected = np.float32([[0.1, 0.6, 1.5, 2.8, 4.5], [0.2, 0.8, 1.8, 3.2, 5.0]])
    np.testing.assert_allclose(found.scale, expected, rtol=1e-6)
    assert found.format == S4 and found.granularity == Granularity(0, 1)


def test_ranges_stand_in_for_scale_and_offset():
    graph, params = _model()
    entry = {"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "min": -1.0, "max": 1.55}
    document = {"version": "0.6.1", "activation_encodings": {"x": [entry]}, "param_encodings": {}}
    found = from_aimet(document, graph, params)["x"]
    assert found.scale == pytest.approx(0.01) and found.zero_point == 100


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": "9"}, "key 'version' is '9'"),
        ({"activation_encodings": {}}, "key 'activation_encodings' must hold a list"),
        ({"activation_encodings": [{}]}, r"activation_encodings\[0\] is no object with a 'name'"),
        ({"activation_encodings": [{"name": "xx"}]}, "'xx'.*did you mean"),
        ({"activation_encodings": [{"name": "x"}]}, "tensor 'x': no key 'dtype'"),
        (
            {"activation_encodings": [{"name": "x", "dtype": "FLOAT", "bw": 11}]},
            "a float encoding of 11 bits",
        ),
    ],
)
def test_malformed_files_name_the_key(change, message):
    graph, params = _model()
    document = {"version": "1.0.0", "activation_encodings": [], "param_encodings": []} | change
    with pytest.raises(DataError, match=message):
        from_aimet(document, graph, params)


def test_files_that_are_no_json(tmp_path):
    graph, params = _model()
    path = tmp_path / "encodings.json"
    with pytest.raises(DataError, match=r"encodings\.json: cannot be read"):
        from_aimet(path, graph, params)
    path.write_text("[")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        from_aimet(path, graph, params)


def test_what_a_version_cannot_say():
    graph, params = _model()
    with pytest.raises(ConfigError, match=r"no encodings version '1\.0'"):
        to_aimet(graph, params, ENCODINGS, version="1.0")
    with pytest.raises(UnsupportedError, match="knows float16, not bfloat16"):
        to_aimet(graph, params, Encodings({"x": Encoding(BF16)}))
    with pytest.raises(UnsupportedError, match="has no uint6"):
        to_aimet(graph, params, Encodings({"x": _grid(Integer(6), 0.1, 3)}), version="2.0.0")
    other = Encodings({"w": _grid(S8, [0.1, 0.2, 0.3], 0, Granularity(1))})
    with pytest.raises(UnsupportedError, match="implies scales along axis 0, the output"):
        to_aimet(graph, params, other)


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0", "2.1.0"])
def test_block_scales_as_products(version):
    graph, params = _model()
    multiples = np.arange(1, 11).reshape(2, 5)
    channel = np.float32([0.01, 0.02, 0.03, 0.004, 0.05])
    scale = multiples.astype(np.float32) * channel
    blocks = Encodings({"m": _grid(S4, scale, 0, Granularity(0, 1))})
    document = json.loads(json.dumps(to_aimet(graph, params, blocks, version=version, lpbq=True)))
    assert _equal(from_aimet(document, graph, params)["m"], blocks["m"])
    if version == "1.0.0":
        (entry,) = document["param_encodings"]
        assert (entry["enc_type"], entry["bw"], entry["compressed_bw"]) == ("LPBQ", 8, 4)
        assert entry["per_block_int_scale"][:4] == [1, 6, 2, 7] and len(entry["scale"]) == 5
    odd = Encodings({"m": _grid(S4, scale * np.float32([[1], [1.037]]), 0, Granularity(0, 1))})
    with pytest.raises(UnsupportedError, match="tensor 'm': the block scales of channel 0"):
        to_aimet(graph, params, odd, version=version, lpbq=True)


def test_loading_onto_a_plan():
    graph, params = _model()
    some = Encodings({k: e for k, e in ENCODINGS.items() if k in ("x", "w", "b", "r")})
    document = to_aimet(graph, params, some)
    document["activation_encodings"].append({**document["activation_encodings"][0], "name": "z"})
    chosen = plan(graph)
    found, mismatches = load_encodings(document, graph, params, chosen, strict=False, partial=True)
    assert set(found) == set(some)
    words = {(m.tensor, m.what) for m in mismatches}
    assert {("z", "no such tensor in the graph"), ("r", "format"), ("m", "missing")} <= words
    assert not any(m.tensor in ("x", "w", "b") for m in mismatches)
    with pytest.raises(DataError, match=r"'z': no such tensor.*strict=False"):
        load_encodings(document, graph, params, chosen, partial=True)
    with pytest.raises(DataError, match=r"'m': missing.*partial=True"):
        load_encodings(document, graph, params, chosen, strict=False)
