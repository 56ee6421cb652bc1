"""Which values share a scale: numpy's own indexing, for one and several axes."""

import jax.numpy as jnp
import numpy as np
import pytest

from jqnt.encodings import Encoding
from jqnt.errors import ConfigError
from jqnt.formats import Integer
from jqnt.granularity import PER_TENSOR, Granularity

SHAPE = (6, 7, 5)
CASES = [
    (PER_TENSOR, (), lambda i: ()),
    (Granularity(-1), (5,), lambda i: (i[2],)),
    (Granularity((0, 2)), (6, 5), lambda i: (i[0], i[2])),
    (Granularity((2, 0)), (5, 6), lambda i: (i[2], i[0])),
    (Granularity(1, 3), (6, 3, 5), lambda i: (i[0], i[1] // 3, i[2])),
    (Granularity((0, 1), (4, 3)), (2, 3, 5), lambda i: (i[0] // 4, i[1] // 3, i[2])),
    (Granularity((-1, 1), (5, 7)), (6, 1, 1), lambda i: (i[0], 0, 0)),
]


@pytest.mark.parametrize(("granularity", "scale_shape", "scale_of"), CASES)
def test_every_value_has_the_scale_of_its_index(granularity, scale_shape, scale_of):
    assert granularity.scale_shape(SHAPE) == scale_shape
    scale = np.arange(1, 1 + np.prod(scale_shape, dtype=int), dtype=np.float32)
    scale = scale.reshape(scale_shape)
    expected = np.zeros(SHAPE, np.float32)
    for index in np.ndindex(*SHAPE):
        expected[index] = scale[scale_of(index)]
    found = np.broadcast_to(np.asarray(granularity.expand(jnp.asarray(scale), SHAPE)), SHAPE)
    np.testing.assert_array_equal(found, expected)
    frozen = Encoding(Integer(8), scale, np.zeros_like(scale), granularity)
    np.testing.assert_array_equal(np.broadcast_to(frozen.expand(scale, SHAPE), SHAPE), expected)
    # The sum over each group, whatever fills up the last blocks.
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    sums = np.zeros(scale_shape, np.float64)
    for index in np.ndindex(*SHAPE):
        sums[scale_of(index)] += x[index]
    np.testing.assert_allclose(granularity.groups(jnp.asarray(x)).sum(-1), sums, atol=1e-5)


@pytest.mark.parametrize("wrong", [(None, 4), (1, 0), ((0, 1), (4,)), ((0, 1), 4), ((), None)])
def test_blocks_need_an_axis_each(wrong):
    with pytest.raises(ConfigError):
        Granularity(*wrong)
