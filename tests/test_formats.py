"""Formats against ml_dtypes and exact integers; names and granularity."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jqnt.errors import ConfigError
from jqnt.formats import (
    BF16,
    FP16,
    PER_TENSOR,
    Granularity,
    Integer,
    Minifloat,
    format_named,
    integer_limits,
    storage_dtype,
)


@pytest.mark.parametrize("name", ["int4", "uint8", "int16", "float16", "bfloat16", "float8_e5m2"])
def test_a_name_reads_back(name):
    assert format_named(name).name == name


@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [
        (FP16, np.float16),
        (BF16, ml_dtypes.bfloat16),
        (format_named("float8_e4m3fn"), ml_dtypes.float8_e4m3fn),
        (format_named("float8_e5m2"), ml_dtypes.float8_e5m2),
        (format_named("float6_e2m3fn"), ml_dtypes.float6_e2m3fn),
        (format_named("float6_e3m2fn"), ml_dtypes.float6_e3m2fn),
        (format_named("float4_e2m1fn"), ml_dtypes.float4_e2m1fn),
    ],
)
def test_the_largest_number_is_that_of_the_storage_type(fmt, dtype):
    assert fmt.max == float(ml_dtypes.finfo(dtype).max)
    assert storage_dtype(fmt) == np.dtype(dtype)


@pytest.mark.parametrize(
    ("fmt", "limits", "dtype"),
    [
        (Integer(8, signed=True), (-128, 127), np.int8),
        (Integer(8, signed=True, strict=True), (-127, 127), np.int8),
        (Integer(8), (0, 255), np.uint8),
        (Integer(4, signed=True), (-8, 7), ml_dtypes.int4),
        (Integer(3), (0, 7), np.uint8),
        (Integer(32, signed=True), (-(2**31), 2**31 - 1), np.int32),
        (Integer(1, signed=True, strict=True), (-1, 1), np.int8),
    ],
)
def test_integer_limits_and_storage(fmt, limits, dtype):
    assert fmt.limits == limits == integer_limits(fmt.bits, fmt.signed, fmt.strict)
    assert storage_dtype(fmt) == np.dtype(dtype)


@pytest.mark.parametrize("name", ["int0", "int33", "unt8", "float17", ""])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ConfigError):
        format_named(name)


def test_the_nearest_name_is_suggested():
    with pytest.raises(ConfigError, match=r"did you mean .*bfloat16"):
        format_named("bfloat17")


@pytest.mark.parametrize(
    "make", [lambda: Integer(8, strict=True), lambda: Minifloat(0, 3), lambda: Granularity(block=4)]
)
def test_contradictions_are_refused(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize(
    ("granularity", "scale_shape", "expanded"),
    [
        (PER_TENSOR, (), ()),
        (Granularity(axis=0), (6,), (6, 1, 1)),
        (Granularity(axis=-1), (5,), (1, 1, 5)),
        (Granularity(axis=1, block=3), (6, 3, 5), (6, 7, 5)),
    ],
)
def test_a_scale_expands_to_its_tensor(granularity, scale_shape, expanded):
    scale = np.arange(1, 1 + np.prod(scale_shape, dtype=int), dtype=np.float32)
    scale = scale.reshape(scale_shape)
    out = np.asarray(granularity.expand(jnp.asarray(scale), (6, 7, 5)))
    assert out.shape == expanded
    if granularity.block:
        np.testing.assert_array_equal(out[:, 5], scale[:, 5 // 3])
