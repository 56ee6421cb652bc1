"""Encodings: arithmetic against the quantizers, exact round trip, refusals that name the key."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jqnt.encodings import Encoding, Encodings
from jqnt.errors import DataError
from jqnt.formats import FP16, Granularity, Integer
from jqnt.quantizers import Affine

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
